# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face folder as a ModelSource: config.json, safetensors, tokenizer and side files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from lilliput.activations import StaticFormat
from lilliput.architectures import architecture_for_huggingface, is_known, unknown
from lilliput.architectures.architecture import Json, TensorEntry
from lilliput.architectures.prediction_heads import with_prediction_heads
from lilliput.architectures.sources import (
    Computed,
    InterleavedHeads,
    Named,
    PermutedHeads,
    Shifted,
    Stacked,
    StoredSource,
    arranged,
    chosen_source,
    row_order,
    source_names,
    stored_shape,
)
from lilliput.architectures.unknown import FoundTensor
from lilliput.arrays import Array, ByteArray, FloatArray, IntArray
from lilliput.checkpoints.answer_tokens import described_answers
from lilliput.checkpoints.compressed_tensors import static_inputs
from lilliput.checkpoints.eight_bit_floats import SCALE_SUFFIXES
from lilliput.checkpoints.fingerprint import model_fingerprint
from lilliput.checkpoints.mapped_file import planes_of_bytes
from lilliput.checkpoints.model_card import read_provenance
from lilliput.checkpoints.packed_weight import PackedWeight
from lilliput.checkpoints.packed_weights import check_quantization, described_quantization, packed_weights
from lilliput.checkpoints.safetensors_reader import StoredTensor
from lilliput.checkpoints.scaled_weights import (
    FP8,
    IGNORED_SUFFIXES,
    apply_scale,
    block_shape,
)
from lilliput.checkpoints.sentence_transformers import described_modules
from lilliput.checkpoints.shards import open_shards, read_json
from lilliput.checkpoints.table_check import checked_table
from lilliput.errors import CheckpointError
from lilliput.formats import NumberFormat, Planes, get_format
from lilliput.formats.eight_bit_float import EightBitFloat
from lilliput.records import QuantizedTensor, Role, TensorHeader
from lilliput.text.huggingface import load_vocabulary, padded
from lilliput.text.vocabulary import Vocabulary

# safetensors dtype -> our format. FP8 times its scale is kept as F32: nothing but the product's last bit is rounded.
_FORMATS = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F8_E4M3": "f32", "F8_E5M2": "f32", "F64": "f32"}
# Buffers that only architectures without a family keep: what a known one needs is known.
_WHOLE_NUMBERS = {"I64": "i64", "I32": "i32", "I16": "i16", "I8": "i8"}
# Buffers that old checkpoints saved and every runtime recomputes.
_IGNORED = re.compile(
    r"(rotary_emb\.inv_freq|rotary_emb\.(cos|sin)_cached|masked_bias|attn\.bias|embeddings\.(position|token_type)_ids"
    r"|embed_positions\.weights)$"
)


class HuggingFaceModel:
    """One opened folder. Tensors are mapped; permuted, FP8 and packed ones are made when asked for."""

    container = "huggingface"

    def __init__(self, folder: Path, repository: str | None = None) -> None:
        """Open a folder. Raises CheckpointError or UnsupportedModelError.

        repository: the hub id it came from, for its provenance.
        """
        self.path = folder
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder.name}: an adapter, not a whole model; merge it into its base model first")
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder}: no config.json here; this is not a Hugging Face model folder")
        described = read_json(folder / "config.json")
        quantization = described_quantization(folder, described)
        check_quantization(quantization)
        self._block = block_shape(quantization)
        config: Mapping[str, Json] = described  # type: ignore[assignment]
        has_family = is_known(config)
        self.architecture = architecture_for_huggingface(config) if has_family else unknown
        beside = {**described_modules(folder), **described_answers(folder)} if has_family else {}
        self.config = self.architecture.config_from_huggingface({**config, **beside})
        self.provenance = read_provenance(folder, config, repository)
        self._fingerprint: str | None = None
        self._vocabulary: Vocabulary | None = None
        self._files = open_shards(folder)
        # Tensors that repeat the one they are tied to.
        self._copies: set[str] = set()
        try:
            # Weights of a quantized checkpoint, by the name that they have in a float one.
            self._packed: Mapping[str, PackedWeight] = packed_weights(quantization, self._files)
            self._ranges = static_inputs(quantization, self._files)
            if not has_family:
                self.config = unknown.with_tensors(self.config, config, self._found_tensors())
            table = checked_table(self.architecture, self.config, folder, len(self._files), CheckpointError)
            if self.config.tied and self._has_own_output():
                self.config = replace(self.config, tied=False)
                table = self.architecture.tensor_table(self.config)
            read = {name for entry in table for name in source_names(entry.source)}
            blocks = config.get("num_nextn_predict_layers")
            count = blocks if isinstance(blocks, int) else 0
            self.config = with_prediction_heads(self.config, self._found_tensors(), read, count)
            table = self.architecture.tensor_table(self.config)
            self._entries = {entry.name: entry for entry in table}
            self._packed = self._without_moved_blocks(table)
            self._sources = self._match(table)
        except BaseException:
            self.close()
            raise
        self._headers = {
            name: TensorHeader(name, self._entries[name].shape, self._format(name), self._inputs_of(name))
            for name in self._sources
        }

    @property
    def headers(self) -> Mapping[str, TensorHeader]:
        """Canonical name -> header, in the order of the architecture's table."""
        return self._headers

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """All shards."""
        return tuple(dict.fromkeys(file.path for file in self._files.values()))

    def source_name(self, name: str) -> str:
        """The checkpoint's own name of a canonical tensor; the canonical one where it holds none."""
        return next(iter(source_names(self._sources[name])), name)

    def tensor(self, name: str) -> QuantizedTensor:
        """One tensor in the format its header says."""
        header = self.headers[name]
        source = self._sources[name]
        packed = self._packed_weight(source)
        if isinstance(source, Stacked) and packed is not None:
            planes = self._stacked_planes(source, header.format)
        elif packed is not None:
            order = None if isinstance(source, Computed) else row_order(source, header.rows)
            planes = packed.planes(self._files)
            planes = planes if order is None else in_row_order(planes, order)
        else:
            planes = planes_of_bytes(header.format, header.rows, header.columns, self._data(name))
        sidecars = {} if header.inputs is None else self._ranges[self.source_name(name)].sidecars(self._files)
        return QuantizedTensor(name, header.shape, header.format, planes, sidecars)

    def release(self, name: str) -> None:
        """Give the memory of a tensor's pages back."""
        for source in source_names(self._sources[name]):
            packed = self._packed.get(source)
            for stored in packed.arrays.values() if packed is not None else (source,):
                self._files[stored].release(stored)

    def vocabulary(self) -> Vocabulary:
        """The tokenizer, padded with unused tokens up to the rows of the embedding."""
        # Kept: recognizing a tokenizer takes a good part of a second, and several rooms ask for it.
        self._vocabulary = self._vocabulary or padded(load_vocabulary(self.path), self.config.vocab_size)
        return self._vocabulary

    def fingerprint(self) -> str:
        """sha256 over config, tokenizer and every tensor's bytes, whatever the sharding."""
        self._fingerprint = self._fingerprint or model_fingerprint(self)
        return self._fingerprint

    def close(self) -> None:
        """Let go of the maps."""
        for file in self._files.values():
            file.close()

    def _stored(self, source: str) -> StoredTensor:
        return self._files[source].tensors[source]

    def _found_tensors(self) -> tuple[FoundTensor, ...]:
        """What the files hold under the names of the float checkpoint, for an architecture without a table."""
        arrays = {stored for packed in self._packed.values() for stored in packed.arrays.values()}
        packed = [FoundTensor(name, weight.shape, is_quantized=True) for name, weight in self._packed.items()]
        scales = {self._scale_name(name) for name in self._files}
        plain = [
            FoundTensor(name, self._stored(name).shape, is_float=self._stored(name).dtype in _FORMATS)
            for name in self._files
            if name not in arrays | scales and not name.endswith(IGNORED_SUFFIXES)
        ]
        # Masks of old checkpoints, which every runtime makes itself.
        return tuple(item for item in (*packed, *plain) if item.is_float or not _IGNORED.search(item.name))

    def _has_own_output(self) -> bool:
        """Whether a checkpoint that claims a tied output stores one, and with other values: then it is not tied.

        transformers 5 reads such a checkpoint the same way.
        """
        untied = self.architecture.tensor_table(replace(self.config, tied=False))
        tied = {entry.name: entry for entry in self.architecture.tensor_table(self.config)}
        for entry in untied:
            shared = tied.get(entry.name, entry)
            sources = (chosen_source(entry.source, self._files), chosen_source(shared.source, self._files))
            if shared.tied_to is None or not all(isinstance(source, Named) for source in sources):
                continue
            own, other = (source_names(source)[0] for source in sources)
            if own in self._files and other in self._files:
                self._copies.add(own)
                if not np.array_equal(self._files[own].data(own), self._files[other].data(other)):
                    return True
        return False

    def _without_moved_blocks(self, table: tuple[TensorEntry, ...]) -> dict[str, PackedWeight]:
        """Packed weights but for FP8 whose rows leave those that they share a scale with; that becomes F32."""
        moved: set[str] = set()
        for entry in table:
            source = chosen_source(entry.source, self._files.keys() | self._packed.keys())
            for name in source_names(source):
                packed = self._packed.get(name)
                if packed is not None and isinstance(packed.format, EightBitFloat):
                    together = packed.format.region.rows
                    if not _keeps_rows(source, entry.shape[0], together):
                        moved.add(name)
        return {name: packed for name, packed in self._packed.items() if name not in moved}

    def _match(self, table: tuple[TensorEntry, ...]) -> dict[str, StoredSource | Computed]:
        """Canonical name -> the layout that the checkpoint has, each checked against the table's shape."""
        sources: dict[str, StoredSource | Computed] = {}
        used: set[str] = set()
        absent: list[str] = []
        for entry in table:
            source = chosen_source(entry.source, self._files.keys() | self._packed.keys())
            if entry.tied_to is not None:
                self._check_copy(entry, sources)
                continue
            names = source_names(source)
            missing = [name for name in names if name not in self._packed and name not in self._files]
            if missing:
                absent.extend(() if entry.optional else missing)
                continue
            sources[entry.name] = source
            for name in names:
                self._check_shape(name, source, entry.shape)
                packed = self._packed.get(name)
                used |= {name} if packed is None else set(packed.arrays.values())
        if absent:
            raise CheckpointError(
                f"{self.path.name}: {len(absent)} tensors missing that {self.architecture.family} needs: {_few(absent)}"
            )
        self._refuse_unexpected(used)
        return sources

    def _check_copy(self, entry: TensorEntry, sources: Mapping[str, StoredSource | Computed]) -> None:
        """A second copy of the token embedding, as encoder-decoders may store. Raises CheckpointError for another."""
        kept = sources.get(entry.tied_to or "")
        if entry.role is not Role.TOKEN_EMBEDDING or not isinstance(entry.source, Named) or not isinstance(kept, Named):
            return
        copy, original = entry.source.name, kept.name
        if copy == original or copy not in self._files:
            return
        if not np.array_equal(self._files[copy].data(copy), self._files[original].data(original)):
            raise CheckpointError(
                f"{self.path.name}: '{copy}' and '{original}' differ; {self.architecture.family} shares one embedding"
            )
        self._copies.add(copy)

    def _refuse_unexpected(self, used: set[str]) -> None:
        scales = {self._scale_name(source) for source in used}
        unexpected = [
            name
            for name in self._files
            if name not in used | scales | self._copies
            and not _IGNORED.search(name)
            and not name.endswith(IGNORED_SUFFIXES)
            and not self._repeats(name, used)
        ]
        if unexpected:
            raise CheckpointError(
                f"{self.path.name}: {len(unexpected)} tensors that {self.architecture.family} does not know: "
                f"{_few(unexpected)}; dropping them would change the model, so it is refused"
            )

    def _repeats(self, name: str, used: set[str]) -> bool:
        """Whether it is the second name that heads of masked language models have for their bias, which none adds."""
        return name.endswith(".bias") and name.removesuffix(".bias") + ".decoder.bias" in used

    def _check_shape(self, source: str, expression: StoredSource | Computed, canonical: tuple[int, ...]) -> None:
        """The checkpoint's tensor `source`, one of those that the expression reads."""
        shape = canonical if isinstance(expression, Computed) else stored_shape(expression, canonical)
        packed = self._packed.get(source)
        found = self._stored(source).shape if packed is None else packed.shape
        if found != shape:
            raise CheckpointError(
                f"{self.path.name}: tensor '{source}' has shape {list(found)}, config.json implies {list(shape)}"
            )
        if packed is not None:
            if not isinstance(expression, Named | PermutedHeads | InterleavedHeads | Stacked):
                raise CheckpointError(
                    f"{self.path.name}: tensor '{source}' is quantized, and {self.architecture.family} keeps it in "
                    "another layout than its rows; use the original checkpoint"
                )
            return
        stored = self._stored(source)
        if stored.dtype not in (_FORMATS if self.config.unknown is None else {**_FORMATS, **_WHOLE_NUMBERS}):
            raise CheckpointError(
                f"{self.path.name}: tensor '{source}' is {stored.dtype}; weights may be {', '.join(_FORMATS)}"
            )

    def _format(self, name: str) -> NumberFormat:
        source = self._sources[name]
        packed = self._packed_weight(source)
        if isinstance(source, Stacked) and packed is not None:
            formats = {self._packed[each].format.name for each in source.names if each in self._packed}
            is_one = len(formats) == 1 and all(each in self._packed for each in source.names)
            return packed.format if is_one and packed.format.row_step is not None else get_format("f32")
        if packed is not None:
            return packed.format
        if isinstance(source, Computed | Shifted):
            return get_format("f32")
        kinds = {**_FORMATS, **_WHOLE_NUMBERS}
        dtypes = {kinds[self._stored(each).dtype] for each in source_names(source)}
        return get_format(dtypes.pop() if len(dtypes) == 1 else "f32")

    def _inputs_of(self, name: str) -> StaticFormat | None:
        """Static inputs of a weight that is one matrix in the files and not decoded to floats."""
        source = self._sources[name]
        if isinstance(source, Stacked) or self._packed_weight(source) is None or self._format(name).name == "f32":
            return None
        found = self._ranges.get(self.source_name(name))
        return None if found is None else found.inputs

    def _packed_weight(self, source: StoredSource | Computed) -> PackedWeight | None:
        return next((self._packed[each] for each in source_names(source) if each in self._packed), None)

    def _stacked_planes(self, source: Stacked, number_format: NumberFormat) -> Planes:
        """Experts below each other: in their own format where it is one for all, else as floats."""
        parts: list[Planes] = []
        for name in source.names:
            packed = self._packed.get(name)
            if packed is None:
                parts.append({"blocks": np.ascontiguousarray(self._float32(name)).view(np.uint8)})
            elif packed.format.name == number_format.name:
                parts.append(packed.planes(self._files))
            else:
                values = packed.format.dequantize(packed.planes(self._files), packed.shape[-1])
                parts.append({"blocks": np.ascontiguousarray(values).view(np.uint8)})
        return number_format.joined_rows(parts)

    def _scale_name(self, source: str) -> str | None:
        if self._stored(source).dtype not in FP8:
            return None
        return next((source + suffix for suffix in SCALE_SUFFIXES if source + suffix in self._files), None)

    def _data(self, name: str) -> ByteArray:
        """Stored bytes of the canonical tensor in its header's format."""
        source = self._sources[name]
        if isinstance(source, Computed):
            return np.asarray(source.values, dtype=np.float32).view(np.uint8)
        if self._format(name).name in _WHOLE_NUMBERS.values():
            stored = next(iter(source_names(source)))
            return self._files[stored].data(stored)
        is_float32 = self._format(name).name == "f32"
        values = arranged(source, self._float32 if is_float32 else self._halves)
        data: ByteArray = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        return data

    def _halves(self, source: str) -> Array:
        """A tensor of 16-bit floats as their bits, which is all that reordering needs."""
        bits: Array = self._files[source].data(source).view("<u2").reshape(self._stored(source).shape)
        return bits

    def _float32(self, source: str) -> FloatArray:
        values = self._files[source].float32(source)
        scale = self._scale_name(source)
        if scale is None:
            return values
        return apply_scale(source, values, self._files[scale].float32(scale), self._block)


def _keeps_rows(source: StoredSource | Computed, rows: int, together: int | None) -> bool:
    """Whether canonical rows are whole rows of the checkpoint, none of which changes its run of `together` rows."""
    if not isinstance(source, Named | PermutedHeads | InterleavedHeads):
        return False
    order = row_order(source, rows)
    if order is None or together in (None, 1):
        return True
    return bool(np.array_equal(order // together, np.arange(rows) // together))


def in_row_order(planes: Mapping[str, Array], order: IntArray) -> dict[str, Array]:
    """Planes of a matrix with its rows taken in this order; what all rows share stays as it is."""
    return {
        name: np.ascontiguousarray(array[order]) if len(array) == len(order) else array
        for name, array in planes.items()
    }


def _few(names: list[str]) -> str:
    return ", ".join(sorted(names)[:4]) + (" …" if len(names) > 4 else "")
