# SPDX-License-Identifier: Apache-2.0
"""Tiny LLaMA models in the GGML layouts of 2023, written out from their description, with the values they stand for."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

VOCABULARY, HIDDEN, FFN, HEADS = 300, 64, 96, 2
LAYER = "layers.0."


def tokens() -> list[bytes]:
    plain = [b" ", b"a", b"b", b" a", b"ab", b" ab"]
    return [b"", b"", b"", *(bytes([byte]) for byte in range(256)), *plain, *(b"x%d" % n for n in range(35))]


def shapes() -> dict[str, tuple[int, ...]]:
    layer = {
        "attention.wq": (HIDDEN, HIDDEN), "attention.wk": (HIDDEN, HIDDEN), "attention.wv": (HIDDEN, HIDDEN),
        "attention.wo": (HIDDEN, HIDDEN), "feed_forward.w1": (FFN, HIDDEN), "feed_forward.w2": (HIDDEN, FFN),
        "feed_forward.w3": (FFN, HIDDEN), "attention_norm": (HIDDEN,), "ffn_norm": (HIDDEN,),
    }  # fmt: skip
    return {
        "tok_embeddings.weight": (VOCABULARY, HIDDEN), "norm.weight": (HIDDEN,), "output.weight": (VOCABULARY, HIDDEN),
        **{f"{LAYER}{name}.weight": shape for name, shape in layer.items()},
    }  # fmt: skip


class Blocks:
    """Random blocks of one type and the values that they stand for, written out from the layouts' description."""

    def __init__(self, kind: int, magic: bytes, version: int, seed: int) -> None:
        self.kind = kind
        self.has_pairs = magic != b"tjgg" or version < 2
        self.scale_type = "<f4" if kind in (2, 3, 8) and version < 3 else "<f2"
        self.random = np.random.default_rng(seed)

    def make(self, rows: int, columns: int) -> tuple[bytes, np.ndarray]:
        group = 16 if self.kind in (4, 5) else 32
        count = rows * columns // group
        bits = {8: 8, 6: 5, 7: 5}.get(self.kind, 4)
        codes = self.random.integers(0, 1 << bits, (count, group)).astype(np.uint8)
        scale = self.random.uniform(0.001, 0.1, (count, 1)).astype(self.scale_type)
        parts = [scale.view(np.uint8)]
        minimum = np.zeros((count, 1), self.scale_type)
        if self.kind in (3, 5, 7):
            minimum = self.random.uniform(-1, 0, (count, 1)).astype(self.scale_type)
            parts.append(minimum.view(np.uint8))
        if bits == 5:
            parts.append(np.packbits(codes >> 4, axis=1, bitorder="little"))
        parts.append(self._packed(codes, group) if bits < 8 else codes ^ 0x80)
        zero = 0 if self.kind in (3, 5, 7) else 1 << (bits - 1)
        level = codes.astype(np.float32) - np.float32(zero)
        values = scale.astype(np.float32) * level + minimum.astype(np.float32)
        return np.concatenate(parts, axis=1).tobytes(), values.reshape(rows, columns)

    def _packed(self, codes: np.ndarray, group: int) -> np.ndarray:
        low = codes & 15
        if self.has_pairs:
            return low[:, ::2] | low[:, 1::2] << 4
        return low[:, : group // 2] | low[:, group // 2 :] << 4


def write_legacy(path: Path, magic: bytes, version: int, kind: int) -> dict[str, np.ndarray]:
    """A tiny model; its float values by own name."""
    out = bytearray(magic + (b"" if magic == b"lmgg" else struct.pack("<I", version)))
    out += struct.pack("<7I", VOCABULARY, HIDDEN, 32, HEADS, 1, HIDDEN // HEADS, 0)
    for index, token in enumerate(tokens()):
        out += struct.pack("<I", len(token)) + token
        if magic != b"lmgg":
            out += struct.pack("<f", -float(index))
    values: dict[str, np.ndarray] = {}
    for seed, (name, shape) in enumerate(shapes().items()):
        is_vector = len(shape) == 1
        used = 0 if is_vector else kind
        if used in (0, 1):
            array = np.random.default_rng(seed).normal(0, 0.1, shape).astype("<f2" if used else "<f4")
            data, values[name] = array.tobytes(), array.astype(np.float32)
        else:
            data, values[name] = Blocks(kind, magic, version, seed).make(*shape)
        out += struct.pack("<3I", len(shape), len(name), used) + struct.pack(f"<{len(shape)}I", *shape[::-1])
        out += name.encode()
        if magic == b"tjgg":
            out += bytes(-len(out) % 32)
        out += data
    path.write_bytes(out)
    return values
