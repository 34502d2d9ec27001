# SPDX-License-Identifier: Apache-2.0
"""Types of the native core; native/bindings/ says what each does."""

import numpy as np
from numpy.typing import NDArray

def gguf_strings(data: NDArray[np.uint8], position: int, count: int) -> tuple[list[str], int]: ...
def formats() -> list[str]: ...
def decode(name: str, blocks: NDArray[np.uint8], n_values: int, threads: int = 1) -> NDArray[np.float32]: ...
def encoders() -> list[str]: ...
def encode(
    name: str,
    weight: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
    mean_square_share: float = 2.0,
    threads: int = 1,
    isa: str = "",
) -> NDArray[np.uint8]: ...
def nearest_vectors(
    name: str, y: NDArray[np.float32], metric: NDArray[np.float32], threads: int = 1, isa: str = ""
) -> NDArray[np.int32]: ...

class GroupLines:
    def __init__(
        self,
        *,
        scale: NDArray[np.float32],
        inverse: NDArray[np.float32],
        offset: NDArray[np.float32] | None,
        zero_point: NDArray[np.float32] | None,
        group: int,
        numbers: NDArray[np.float32],
        codes: NDArray[np.uint8],
    ) -> None: ...

def feed_back_columns(
    *,
    lines: GroupLines,
    order: NDArray[np.int32],
    target: NDArray[np.float32],
    original: NDArray[np.float32],
    feedback: NDArray[np.float32],
    codes: NDArray[np.uint8],
    error: NDArray[np.float32],
    threads: int = 1,
    isa: str = "",
) -> None: ...
def descend_columns(
    *,
    lines: GroupLines,
    hessian: NDArray[np.float32],
    gradient: NDArray[np.float32],
    values: NDArray[np.float32],
    codes: NDArray[np.uint8],
    moves: NDArray[np.float32],
    threads: int = 1,
    isa: str = "",
) -> None: ...

class Program:
    def __init__(self) -> None: ...
    def add_buffer(self, width: int) -> int: ...
    def add_weight(
        self, name: str, format: str, columns: int, blocks: NDArray[np.uint8], is_mapped: bool = False
    ) -> int: ...
    def add_vector(self, values: NDArray[np.float32]) -> int: ...
    def add_rope(self, inverse_frequencies: NDArray[np.float64], magnitude: float) -> int: ...
    def add_state(self, kv_heads: int, head_dim: int) -> int: ...
    def add_shared_state(self, kv_heads: int, head_dim: int) -> int: ...
    def add_bias(self, heads: int, values: NDArray[np.float32]) -> int: ...
    def embed(
        self, *, out: int, weight: int, scale: float, by: str = "token", offset: int = 0, is_integer: bool = False
    ) -> None: ...
    def rms_norm(self, *, out: int, x: int, weight: int, epsilon: float, groups: int) -> None: ...
    def layer_norm(self, *, out: int, x: int, weight: int, bias: int, epsilon: float) -> None: ...
    def linears(self, *, x: int, parts: list[tuple[int, int, int, str | None]]) -> None: ...
    def add_integers(
        self,
        name: str,
        codes: NDArray[np.uint8],
        levels: NDArray[np.int8],
        scale: NDArray[np.float32],
        zero_point: NDArray[np.int32] | None,
    ) -> int: ...
    def integer_linears(
        self, *, x: int, input: IntegerInput, parts: list[tuple[int, int, int, str | None]]
    ) -> None: ...
    def rope(self, *, x: int, heads: int, head_dim: int, frequencies: int, style: str) -> None: ...
    def attention(
        self,
        *,
        buffers: tuple[int, int, int, int],
        layer: int,
        heads: tuple[int, int, int],
        scale: float,
        window: int,
        softcap: float,
        causal: bool = True,
        bias: int = -1,
    ) -> None: ...
    def share(self, *, k: int, v: int, layer: int) -> None: ...
    def glu(self, *, out: int, gate: int, up: int, activation: str) -> None: ...
    def experts(
        self,
        *,
        buffers: tuple[int, int, int],
        weights: tuple[int, int, int],
        activation: str,
        used: int,
        normalizes: bool,
    ) -> None: ...
    def integer_experts(
        self,
        *,
        buffers: tuple[int, int, int],
        integers: tuple[int, int, int],
        inputs: tuple[IntegerInput, IntegerInput],
        activation: str,
        used: int,
        normalizes: bool,
    ) -> None: ...
    def activate(self, *, out: int, x: int, activation: str) -> None: ...
    def scale(self, *, out: int, x: int, factor: float) -> None: ...
    def softcap(self, *, out: int, x: int, limit: float) -> None: ...
    def add(self, *, out: int, a: int, b: int) -> None: ...
    def select_output_rows(self, *, out: int, x: int) -> None: ...
    def set_output(self, buffer: int) -> None: ...

class SharedCache:
    def __init__(self, program: Program, *, context: int, kv_format: str = "f16") -> None: ...
    @property
    def length(self) -> int: ...

class Engine:
    def __init__(
        self,
        program: Program,
        *,
        context: int,
        batch: int,
        threads: int,
        instruction_set: str = "",
        activations: str = "engine",
        kv_format: str = "f16",
        repacks: bool = True,
        sequences: int = 1,
        shared: SharedCache | None = None,
    ) -> None: ...
    def forward(
        self,
        tokens: NDArray[np.int32],
        n_past: int,
        output_rows: NDArray[np.int32],
        segments: NDArray[np.int32] | None = None,
        abreast: bool = False,
        lengths: NDArray[np.int32] | None = None,
    ) -> NDArray[np.float32]: ...
    def truncate(self, length: int) -> None: ...
    def reorder(self, sources: NDArray[np.int32]) -> None: ...
    @property
    def length(self) -> int: ...
    @property
    def longest_of_several(self) -> int: ...
    threads: int
    @property
    def context(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def cache_bytes(self) -> int: ...
    @property
    def repacked_bytes(self) -> int: ...
    @property
    def instruction_set(self) -> str: ...

def available_instruction_sets() -> list[str]: ...
def repacked_bytes(name: str, rows: int, columns: int, instruction_set: str = "") -> int: ...
def kv_cache_bytes(kv_format: str, context: int, kv_heads: int, head_dim: int) -> int: ...
def usable_cpus() -> int: ...
def matmul(
    name: str,
    blocks: NDArray[np.uint8],
    rows: int,
    x: NDArray[np.float32],
    isa: str,
    exact_input: bool = False,
    threads: int = 1,
    interleaves: bool = False,
) -> NDArray[np.float32]: ...
def probe_dots(isa: str, iterations: int) -> int: ...
def probe_read(isa: str, bytes: NDArray[np.uint8]) -> int: ...

class IntegerInput:
    def __init__(
        self,
        *,
        is_symmetric: bool,
        bits: int,
        groups: int = 1,
        scale: float | None = None,
        zero_point: int = 0,
    ) -> None: ...

class IntegerWeight:
    def __init__(
        self,
        panels: NDArray[np.int8],
        scale: NDArray[np.float32],
        zero_point: NDArray[np.int32] | None,
        rows: int,
        columns: int,
    ) -> None: ...
    def multiply(
        self,
        x: NDArray[np.float32] | NDArray[np.uint16],
        input: IntegerInput,
        out: NDArray[np.float32] | NDArray[np.uint16],
        bias: NDArray[np.float32] | None,
        threads: int = 1,
        isa: str = "",
    ) -> None: ...
