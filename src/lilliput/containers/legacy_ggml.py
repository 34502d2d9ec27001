# SPDX-License-Identifier: Apache-2.0
"""GGML files of 2023, before GGUF: LLaMA models in the layouts lmgg, fmgg and tjgg 1 to 3. Read only.

layout   magic, 4 bytes: "lmgg", or "fmgg" or "tjgg" and a uint32 version; seven uint32: vocabulary, embedding, multiple
         of the feed-forward size, heads, layers, rotary size, file type; per token uint32 length, bytes and, but for
         lmgg, a float32 score; per tensor uint32 axes, name length and type, axes innermost first, the name, for tjgg
         zeros up to a multiple of 32 bytes of the file, the data
blocks   before tjgg 2, codes of two neighbours share a byte, the first in the low bits; since then, of columns i and
         i + 16.  Before tjgg 3, Q4_0, Q4_1 and Q8_0 have float32 scales.  Q4_2 and Q4_3 (tjgg 1): groups of 16, fp16
rows     of q and k in adjacent pairs, as GGUF has them
source   llama.cpp's convert_llama_ggml_to_gguf.py, its pull requests 1405 and 1508, and its headers of that time

The files say nothing of the norm's epsilon, the context or the rope: those of LLaMA are taken, as llama.cpp's converter
does (epsilon 5e-6, between LLaMA 1's 1e-6 and LLaMA 2's 1e-5; context 2048).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lilliput.architectures import llama
from lilliput.architectures.architecture import Architecture, Json
from lilliput.arrays import Array, ByteArray
from lilliput.checkpoints.fingerprint import model_fingerprint
from lilliput.checkpoints.mapped_file import MappedFile, closing_on_error, planes_of_bytes
from lilliput.checkpoints.model_source import Provenance
from lilliput.checkpoints.table_check import checked_table
from lilliput.errors import ContainerError
from lilliput.formats import Encoded, NumberFormat, Planes, get_format
from lilliput.records import QuantizedTensor, TensorHeader
from lilliput.text.vocabulary import TokenType, Vocabulary

MAGICS = (b"lmgg", b"fmgg", b"tjgg")
ALIGNMENT = 32
NORM_EPSILON = 5e-6
CONTEXT = 2048
_MAX_AXES, _MAX_NAME = 2, 256
_NAMES = {"tok_embeddings.weight": "token_embd.weight", "norm.weight": "output_norm.weight"} | {
    "output.weight": "output.weight"
}
_LAYER_NAMES = {
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "attention_norm": "attn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "ffn_norm": "ffn_norm",
}


@dataclass(frozen=True, slots=True)
class _Block:
    """A type of blocks. group: weights.  scale_bytes: before the codes, one scale or a scale and a minimum.

    format: ours with the same numbers.  has_high_bits: four bytes of fifth bits before the codes.
    """

    group: int
    nbytes: int
    format: str
    scale_type: str
    has_minimum: bool = False
    has_high_bits: bool = False
    bits: int = 4


_OLD = {
    2: _Block(32, 20, "int4_g32_f32", "<f4"),
    3: _Block(32, 24, "int4_g32_affine_f32", "<f4", has_minimum=True),
    4: _Block(16, 10, "int4_g16", "<f2"),
    5: _Block(16, 12, "int4_g16_affine", "<f2", has_minimum=True),
    6: _Block(32, 22, "q5_0", "<f2", has_high_bits=True, bits=5),
    7: _Block(32, 24, "q5_1", "<f2", has_minimum=True, has_high_bits=True, bits=5),
    8: _Block(32, 36, "int8_g32_f32", "<f4", bits=8),
}
# Types whose bytes are today's.
_SAME = {0: "f32", 1: "f16"}
_SAME_V3 = {2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0"} | {
    10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Stored:
    """One tensor. block: how it is laid out; None where the bytes are the format's own."""

    shape: tuple[int, ...]
    format: NumberFormat
    block: _Block | None
    start: int
    nbytes: int


class LegacyModel:
    """One opened file."""

    container = "ggml"

    def __init__(self, path: Path) -> None:
        """Open a file. Raises ContainerError."""
        self.path = path
        with closing_on_error(MappedFile(path, ContainerError)) as file:
            self._file = file
            parser = _Parser(path.name, file.data)
            parser.read()
            self.metadata: Mapping[str, Json] = {"ggml.magic": parser.magic, "ggml.version": parser.version}
            self._version = parser.version if parser.magic == "tjgg" else 0
            self._stored = parser.tensors
            self._tokens = parser.tokens
            self._scores = parser.scores
            self.architecture: Architecture = llama
            self.config = self.architecture.config_from_gguf(
                _llama_metadata(parser), {name: item.shape for name, item in self._stored.items()}
            )
            self._check_table()
        self._headers = {name: TensorHeader(name, item.shape, item.format) for name, item in self._stored.items()}
        self.provenance = Provenance({"name": path.stem}, {})
        self._fingerprint: str | None = None

    @property
    def headers(self) -> Mapping[str, TensorHeader]:
        """Canonical name -> header, in file order."""
        return self._headers

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self.path,)

    def source_name(self, name: str) -> str:
        """Canonical names; the file's own are those of Meta's checkpoints."""
        return name

    def tensor(self, name: str) -> QuantizedTensor:
        """One tensor; old blocks in the order of today's."""
        stored = self._stored[name]
        header = self._headers[name]
        data = self._file.data[stored.start : stored.start + stored.nbytes]
        if stored.block is None:
            planes = planes_of_bytes(stored.format, header.rows, header.columns, data)
        else:
            has_pairs = self._version < 2
            planes = _planes(stored.block, stored.format, data.reshape(header.rows, -1), has_pairs=has_pairs)
        return QuantizedTensor(name, stored.shape, stored.format, planes)

    def release(self, name: str) -> None:
        """Give the memory of a tensor's pages back."""
        stored = self._stored[name]
        self._file.release(stored.start, stored.start + stored.nbytes)

    def vocabulary(self) -> Vocabulary:
        """SentencePiece's tokens, as the file has them."""
        return _vocabulary(self._tokens, self._scores)

    def fingerprint(self) -> str:
        """sha256 over config, tokenizer and every tensor's bytes."""
        self._fingerprint = self._fingerprint or model_fingerprint(self)
        return self._fingerprint

    def close(self) -> None:
        """Let go of the map."""
        self._file.close()

    def _check_table(self) -> None:
        table = checked_table(self.architecture, self.config, self.path, len(self._stored), ContainerError)
        for entry in table:
            if entry.tied_to is not None or (entry.optional and entry.name not in self._stored):
                continue
            if entry.name not in self._stored:
                raise ContainerError(f"{self.path.name}: tensor '{entry.name}' is missing")
            if self._stored[entry.name].shape != entry.shape:
                found = list(self._stored[entry.name].shape)
                raise ContainerError(
                    f"{self.path.name}: tensor '{entry.name}' has shape {found}, the header implies "
                    f"{list(entry.shape)}; models in several parts cannot be read: join them first"
                )


def recognises(path: Path) -> bool:
    """By the first bytes."""
    with path.open("rb") as file:
        return file.read(4) in MAGICS


class _Parser:
    """Reads the header and the places of tensors; every length is checked against the file."""

    def __init__(self, name: str, data: ByteArray) -> None:
        self._name = name
        self._data = data
        self._at = 0
        self.magic = ""
        self.version = 0
        self.numbers: tuple[int, ...] = ()
        self.tokens: list[bytes] = []
        self.scores: list[float] = []
        self.tensors: dict[str, _Stored] = {}

    def read(self) -> None:
        """Everything but the tensors' bytes. Raises ContainerError."""
        self.magic = self._bytes(4).decode("ascii", "replace")
        if self.magic != "lmgg":
            self.version = self._uint()
        allowed = {"lmgg": (0,), "fmgg": (1,), "tjgg": (1, 2, 3)}.get(self.magic)
        if allowed is None or self.version not in allowed:
            raise self._error(f"version {self.version} of '{self.magic}'; known are lmgg, fmgg 1 and tjgg 1 to 3")
        self.numbers = struct.unpack("<7I", self._bytes(28))
        self._read_vocabulary(self.numbers[0])
        while self._at < self._data.size:
            self._read_tensor()

    def _read_vocabulary(self, count: int) -> None:
        least = 4 if self.magic == "lmgg" else 8
        if count * least > self._data.size - self._at:
            raise self._error(f"{count} tokens do not fit into a file of {self._data.size} bytes")
        for _ in range(count):
            self.tokens.append(self._bytes(self._uint()))
            if self.magic != "lmgg":
                self.scores.append(float(struct.unpack("<f", self._bytes(4))[0]))

    def _read_tensor(self) -> None:
        axes, length, kind = struct.unpack("<3I", self._bytes(12))
        if not 1 <= axes <= _MAX_AXES or not 1 <= length <= _MAX_NAME:
            raise self._error(f"a tensor of {axes} axes with a name of {length} bytes at byte {self._at - 12}")
        shape = struct.unpack(f"<{axes}I", self._bytes(4 * axes))[::-1]
        own = self._bytes(length).decode("utf-8", "replace")
        name = _canonical(own)
        if name is None or name in self.tensors:
            raise self._error(f"tensor '{own}' is {'there twice' if name else 'no part of LLaMA'}")
        if self.magic == "tjgg":
            self._at += -self._at % ALIGNMENT
        number_format, block = self._type(own, kind)
        unit, size = (block.group, block.nbytes) if block is not None else _unit(number_format)
        if 0 in shape or shape[-1] % unit:
            raise self._error(f"tensor '{own}' {list(shape)} does not divide into blocks of {unit}")
        nbytes = int(np.prod(shape, dtype=object)) // unit * size
        if nbytes > self._data.size - self._at:
            raise self._error(f"truncated: tensor '{own}' ends at byte {self._at + nbytes}; download it again")
        self.tensors[name] = _Stored(shape, number_format, block, self._at, nbytes)
        self._at += nbytes

    def _type(self, name: str, kind: int) -> tuple[NumberFormat, _Block | None]:
        if kind in _SAME:
            return get_format(_SAME[kind]), None
        is_third = self.magic == "tjgg" and self.version == 3
        if is_third and kind in _SAME_V3:
            return get_format(_SAME_V3[kind]), None
        if not is_third and kind in _OLD:
            # Q4_2 and Q4_3 were gone by version 2.
            if kind in (4, 5) and self.version == 2:
                raise self._error(f"tensor '{name}' has type {kind}, which version 2 does not have")
            return get_format(_OLD[kind].format), _OLD[kind]
        raise self._error(f"tensor '{name}' has type {kind}, which {self.magic} {self.version} does not have")

    def _uint(self) -> int:
        return int(struct.unpack("<I", self._bytes(4))[0])

    def _bytes(self, count: int) -> bytes:
        if count > self._data.size - self._at:
            raise self._error(f"truncated at byte {self._at}; download it again")
        found = self._data[self._at : self._at + count].tobytes()
        self._at += count
        return found

    def _error(self, what: str) -> ContainerError:
        return ContainerError(f"{self._name}: GGML file of 2023: {what}")


def _unit(number_format: NumberFormat) -> tuple[int, int]:
    """Weights and bytes of the smallest piece of a row."""
    return number_format.block_size, number_format.stored_bytes(1, number_format.block_size)


def _canonical(name: str) -> str | None:
    if name in _NAMES:
        return _NAMES[name]
    parts = name.split(".", 2)
    if len(parts) != 3 or parts[0] != "layers" or not parts[1].isdecimal() or not parts[2].endswith(".weight"):
        return None
    found = _LAYER_NAMES.get(parts[2].removesuffix(".weight"))
    return f"blk.{int(parts[1])}.{found}.weight" if found else None


def _llama_metadata(parser: _Parser) -> dict[str, Json]:
    """The keys that a GGUF of this model would have. Raises ContainerError."""
    vocabulary, embedding, _, heads, layers, rotary, _ = parser.numbers
    up, key = parser.tensors.get("blk.0.ffn_up.weight"), parser.tensors.get("blk.0.attn_k.weight")
    if up is None or key is None or heads == 0 or embedding == 0 or embedding % heads:
        raise ContainerError(f"{parser._name}: GGML file of 2023: {heads} heads for {embedding}, or no first layer")
    return {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": embedding,
        "llama.feed_forward_length": up.shape[0],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": max(key.shape[0] // (embedding // heads), 1),
        "llama.attention.layer_norm_rms_epsilon": NORM_EPSILON,
        "llama.rope.dimension_count": rotary,
        "llama.vocab_size": vocabulary,
    }


def _planes(block: _Block, number_format: NumberFormat, rows: ByteArray, *, has_pairs: bool) -> Planes:
    """Old blocks of a matrix as planes of our format. has_pairs: two neighbours share a byte."""
    blocks = rows.reshape(-1, block.nbytes)
    width = np.dtype(block.scale_type).itemsize
    numbers = [_column(blocks, index * width, block.scale_type) for index in range(2 if block.has_minimum else 1)]
    at = width * len(numbers)
    high: ByteArray | None = None
    if block.has_high_bits:
        high, at = blocks[:, at : at + 4], at + 4
    codes = _codes(block, blocks[:, at:], has_pairs=has_pairs)
    if high is not None:
        codes = codes | np.unpackbits(np.ascontiguousarray(high), axis=1, bitorder="little") << np.uint8(4)
    count = rows.shape[0]
    parameters: dict[str, Array] = {"scale": numbers[0].reshape(count, -1)}
    if block.has_minimum:
        parameters["minimum"] = numbers[1].reshape(count, -1)
    return number_format.pack(Encoded(codes.reshape(count, -1), parameters))


def _column(blocks: ByteArray, start: int, kind: str) -> Array:
    size = np.dtype(kind).itemsize
    return np.ascontiguousarray(blocks[:, start : start + size]).view(kind)


def _codes(block: _Block, packed: ByteArray, *, has_pairs: bool) -> ByteArray:
    """Unsigned codes [blocks, group]."""
    if block.bits == 8:
        return packed ^ np.uint8(0x80)
    low, high = packed & np.uint8(15), packed >> np.uint8(4)
    # Q4_2 and Q4_3 only ever had neighbours in a byte.
    joined: Callable[..., Array] = np.stack if has_pairs else np.concatenate
    axis = 2 if has_pairs else 1
    result: ByteArray = joined([low, high], axis=axis).reshape(len(packed), block.group)
    return result


def _vocabulary(tokens: list[bytes], scores: list[float]) -> Vocabulary:
    """A SentencePiece vocabulary: bytes as <0xXX>, spaces as their mark."""
    special = {0: ("<unk>", TokenType.UNKNOWN), 1: ("<s>", TokenType.CONTROL), 2: ("</s>", TokenType.CONTROL)}
    texts: list[str] = []
    types: list[int] = []
    for index, token in enumerate(tokens):
        if index in special:
            text, kind = special[index]
        elif not token:
            text, kind = f"[PAD{index}]", TokenType.UNUSED
        elif index <= 258 and len(token) == 1:
            text, kind = f"<0x{token[0]:02X}>", TokenType.BYTE
        else:
            text, kind = token.decode("utf-8", "surrogateescape").replace(" ", "\u2581"), TokenType.NORMAL
        texts.append(text)
        types.append(int(kind))
    # Files without scores list tokens from the best score to the worst.
    ranked = tuple(scores) or tuple(-float(index) for index in range(len(tokens)))
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tuple(texts),
        token_types=tuple(types),
        scores=ranked,
        bos_token_id=1 if len(tokens) > 1 else None,
        eos_token_id=2 if len(tokens) > 2 else None,
        unknown_token_id=0 if tokens else None,
        add_bos_token=True,
    )
