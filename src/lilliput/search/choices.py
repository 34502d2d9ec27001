# SPDX-License-Identifier: Apache-2.0
"""What can be chosen: for each tensor (or group that must agree) the formats that a runtime loads, and their bytes.

A runtime loads some kinds of file, and of each some formats; bytes are those of the container that is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lilliput.architectures.architecture import TensorEntry
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers import container_for
from lilliput.containers.container import Container, Contents, Split
from lilliput.errors import FormatError, RecipeError
from lilliput.formats import NumberFormat, get_format
from lilliput.recipes.plan import PLAIN_FLOATS, VECTOR_ROLES
from lilliput.records import Role, TensorHeader
from lilliput.runtime.memory import bytes_in_memory

# One format for each choice, by index into `Choice.formats`, in order of the choices.
Picks = tuple[int, ...]
# Rows that are multiples of 256, and rows that are multiples of 32 only.
WIDE_FORMATS = (
    "f16", "q8_0", "q6_k", "q5_k", "q4_k", "iq4_xs", "q3_k", "iq3_s", "iq3_xxs", "q2_k", "iq2_s", "iq2_xs", "iq2_xxs",
)  # fmt: skip
NARROW_FORMATS = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "iq4_nl", "q4_0")
WIDE_ROW = 256
# GGUF aligns every tensor to this many bytes.
GGUF_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class Runtime:
    """What will load the file.

    files: suffix of a container that it loads -> formats to choose among there, None means ggml's; the first is the
    default.
    uniform_groups: whether tensors that it fuses (q/k/v, gate/up) must have one format.
    bytes_in_memory: (format, rows, columns) -> bytes of a matrix that it runs; None where it runs the file's own.
    """

    name: str
    files: Mapping[str, tuple[str, ...] | None]
    uniform_groups: bool = False
    bytes_in_memory: Callable[[NumberFormat, int, int], int] | None = None

    def container(self, target: Path | None) -> Container:
        """What to write. Raises RecipeError for a file that it does not load."""
        if target is None:
            return container_for(Path("model" + next(iter(self.files))))
        if target.suffix not in self.files:
            raise RecipeError(f"--for {self.name}: loads {' and '.join(self.files)}, not '{target.suffix}'; change -o")
        return container_for(target)


# What MatMulNBits of ONNX Runtime multiplies with (docs/onnx.md). 3, 5, 6 and 7 bits would travel as 4 and 8.
ONNX_FORMATS = (
    "f16", "int8_g128", "int8_g32", "int4_g16_asym", "int4_g32_asym", "int4_g32", "int4_g64_asym", "int4_g128_asym",
    "int4_g128", "int2_g16_asym", "int2_g32_asym", "int2_g64_asym",
)  # fmt: skip
# vLLM runs q/k/v and gate/up as one matrix each and refuses or corrupts mixed formats there. Its kernels take 4 and 8
# bits; one scale for 32 or 128 weights. ONNX Runtime fuses nothing across formats.
RUNTIMES = {
    "llama.cpp": Runtime("llama.cpp", {".gguf": None}),
    "lilliput": Runtime("lilliput", {".gguf": None, ".safetensors": None}, bytes_in_memory=bytes_in_memory),
    "vllm": Runtime(
        "vllm",
        {".compressed-tensors": ("bf16", "int8_channel", "int8_g32", "int4_g32", "int4_g128"), ".gguf": None},
        uniform_groups=True,
    ),
    "onnxruntime": Runtime("onnxruntime", {".onnx": ONNX_FORMATS}),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """Tensors that get one format together.

    formats: candidates, most bytes first.  sizes: file bytes of all its tensors in each, alignment included.
    loads: what the runtime keeps in memory of them; () means as many bytes as the file has.
    """

    names: tuple[str, ...]
    formats: tuple[NumberFormat, ...]
    sizes: tuple[int, ...]
    loads: tuple[int, ...] = ()

    def index(self, format_name: str) -> int:
        """Place of a format. Raises KeyError."""
        for place, number_format in enumerate(self.formats):
            if number_format.name == format_name:
                return place
        raise KeyError(format_name)


def choices_of(
    source: ModelSource, runtime: Runtime, names: Sequence[str] = (), container: Container | None = None
) -> tuple[Choice, ...]:
    """Every matrix of the model with its candidates, in file order; vectors and unknown tensors are no choice.

    names: formats to choose among, in place of the default ones.  container: None means the runtime's first.
    Raises RecipeError for a tensor that none of the formats fits, or a format that the container cannot hold;
    FormatError for an unknown name.
    """
    container = container or runtime.container(None)
    names = names or runtime.files.get(container.suffix) or ()
    for name in names:
        if not container.holds(get_format(name)):
            raise RecipeError(f"--formats {name.upper()}: a {container.name} file cannot hold it")
    table = {entry.name: entry for entry in source.architecture.tensor_table(source.config)}
    groups: dict[str, list[TensorHeader]] = {}
    for name, header in source.headers.items():
        entry = table.get(name)
        if entry is not None and is_chosen(header, entry) and entry.role not in container.float_roles:
            fused = entry.runtime_group if runtime.uniform_groups else None
            groups.setdefault(fused or name, []).append(header)
    sizes = _Sizes(source, container)
    return tuple(_choice(headers, names, sizes, runtime) for headers in groups.values())


def is_chosen(header: TensorHeader, entry: TensorEntry) -> bool:
    """Whether a tensor's format is searched for."""
    return len(header.shape) >= 2 and entry.role not in VECTOR_ROLES and entry.role is not Role.OTHER


def candidate_formats(columns: int, names: Sequence[str] = ()) -> tuple[NumberFormat, ...]:
    """Formats for rows of so many weights. Raises FormatError for a name that is unknown or cannot be written."""
    chosen = names or (NARROW_FORMATS if columns % WIDE_ROW else WIDE_FORMATS)
    found = [get_format(name) for name in chosen]
    for number_format in found:
        if not number_format.can_encode:
            raise FormatError(f"--formats {number_format.name.upper()}: there is no encoder for this format yet")
    return tuple(item for item in found if columns % item.block_size == 0)


def formats_by_tensor(choices: Sequence[Choice], picks: Picks) -> dict[str, NumberFormat]:
    """Tensor name -> chosen format."""
    return {name: choice.formats[pick] for choice, pick in zip(choices, picks, strict=True) for name in choice.names}


def loaded_bytes(choices: Sequence[Choice], picks: Picks) -> int:
    """Bytes in memory of all chosen tensors."""
    return sum((choice.loads or choice.sizes)[pick] for choice, pick in zip(choices, picks, strict=True))


def chosen_bytes(choices: Sequence[Choice], picks: Picks) -> int:
    """File bytes of all chosen tensors."""
    return sum(choice.sizes[pick] for choice, pick in zip(choices, picks, strict=True))


class _Sizes:
    """Bytes that a tensor takes in a container, as the container itself lays it out."""

    def __init__(self, source: ModelSource, container: Container) -> None:
        self._source = source
        self._container = container
        self._known: dict[str, Mapping[str, int]] = {}

    def of(self, header: TensorHeader, number_format: NumberFormat) -> int:
        """In one format, alignment included."""
        if self._container.suffix == ".gguf":
            nbytes = number_format.stored_bytes(header.rows, header.columns)
            return -(-nbytes // GGUF_ALIGNMENT) * GGUF_ALIGNMENT
        if number_format.name in PLAIN_FLOATS:
            return number_format.stored_bytes(header.rows, header.columns)
        if number_format.name not in self._known:
            self._known[number_format.name] = self._laid_out(number_format)
        return self._known[number_format.name][header.name]

    def _laid_out(self, number_format: NumberFormat) -> Mapping[str, int]:
        source, float32 = self._source, get_format("f32")
        table = {entry.name: entry for entry in source.architecture.tensor_table(source.config)}
        headers = []
        for name, header in source.headers.items():
            entry = table.get(name)
            if entry is None or entry.tied_to is not None:
                continue
            fits = is_chosen(header, entry) and entry.role not in self._container.float_roles
            fits = fits and header.columns % number_format.block_size == 0
            headers.append(TensorHeader(name, header.shape, number_format if fits else float32))
        contents = Contents(source.architecture, source.config, None, source.provenance, tuple(headers))
        parts = self._container.layout(contents, "model" + self._container.suffix, Split())
        return {
            placed.header.name: sum(piece.nbytes for piece in placed.pieces)
            for part in parts
            for placed in part.tensors
        }


def _choice(headers: Sequence[TensorHeader], names: Sequence[str], sizes: _Sizes, runtime: Runtime) -> Choice:
    fitting = [set(candidate_formats(header.columns, names)) for header in headers]
    shared = [item for item in candidate_formats(headers[0].columns, names) if all(item in found for found in fitting)]
    if not shared:
        fits = "Q8_0, whose blocks have 32 weights" if headers[0].columns % 32 == 0 else "F16, which fits every row"
        raise RecipeError(
            f"{headers[0].name}: rows of {headers[0].columns} weights fit none of the formats "
            f"{', '.join(name.upper() for name in names)}; add {fits}"
        )
    sized = sorted(
        ((sum(sizes.of(header, item) for header in headers), item) for item in shared),
        key=lambda pair: (-pair[0], pair[1].name),
    )
    loads: tuple[int, ...] = ()
    if (load := runtime.bytes_in_memory) is not None:
        loads = tuple(sum(load(item, header.rows, header.columns) for header in headers) for _, item in sized)
    return Choice(
        tuple(header.name for header in headers),
        tuple(item for _, item in sized),
        tuple(size for size, _ in sized),
        loads,
    )
