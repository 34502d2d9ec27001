# SPDX-License-Identifier: Apache-2.0
"""What can be chosen: for each tensor (or group that must agree) the formats that a runtime loads, and their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lilliput.architectures.architecture import TensorEntry
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import FormatError, RecipeError
from lilliput.formats import NumberFormat, get_format
from lilliput.recipes.plan import VECTOR_ROLES
from lilliput.records import Role, TensorHeader

# One format for each choice, by index into `Choice.formats`, in order of the choices.
Picks = tuple[int, ...]
# GGUF aligns every tensor to this many bytes.
ALIGNMENT = 32
PLAIN = ("f16",)
# Rows that are multiples of 256, and rows that are multiples of 32 only.
WIDE_FORMATS = (
    *PLAIN, "q8_0", "q6_k", "q5_k", "q4_k", "iq4_xs", "q3_k", "iq3_s", "iq3_xxs", "q2_k", "iq2_s", "iq2_xs", "iq2_xxs",
)  # fmt: skip
NARROW_FORMATS = (*PLAIN, "q8_0", "q5_1", "q5_0", "q4_1", "iq4_nl", "q4_0")
WIDE_ROW = 256


@dataclass(frozen=True, slots=True)
class Runtime:
    """What will load the file.

    uniform_groups: whether tensors that it fuses (q/k/v, gate/up) must have one format.
    formats: candidates where nobody names any; none means GGUF's, by the length of the rows.
    """

    name: str
    uniform_groups: bool
    formats: tuple[str, ...] = ()


# What MatMulNBits of ONNX Runtime multiplies with (docs/onnx.md). 3, 5, 6 and 7 bits would travel as 4 and 8.
ONNX_FORMATS = (
    *PLAIN, "int8_g128", "int8_g32", "int4_g16_asym", "int4_g32_asym", "int4_g32", "int4_g64_asym", "int4_g128_asym",
    "int4_g128", "int2_g16_asym", "int2_g32_asym", "int2_g64_asym",
)  # fmt: skip
# ONNX Runtime fuses nothing across tensors of different formats.
# vLLM runs q/k/v and gate/up of a GGUF as one matrix each and refuses or corrupts mixed formats there.
RUNTIMES = {
    "llama.cpp": Runtime("llama.cpp", uniform_groups=False),
    "lilliput": Runtime("lilliput", uniform_groups=False),
    "vllm": Runtime("vllm", uniform_groups=True),
    "onnxruntime": Runtime("onnxruntime", uniform_groups=False, formats=ONNX_FORMATS),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """Tensors that get one format together.

    formats: candidates, most bytes first.  sizes: file bytes of all its tensors in each, alignment included.
    """

    names: tuple[str, ...]
    formats: tuple[NumberFormat, ...]
    sizes: tuple[int, ...]

    def index(self, format_name: str) -> int:
        """Place of a format. Raises KeyError."""
        for place, number_format in enumerate(self.formats):
            if number_format.name == format_name:
                return place
        raise KeyError(format_name)


def choices_of(source: ModelSource, runtime: Runtime, names: Sequence[str] = ()) -> tuple[Choice, ...]:
    """Every matrix of the model with its candidates, in file order; vectors and unknown tensors are no choice.

    names: formats to choose among, in place of the default ones.
    Raises RecipeError for a tensor that none of the formats fits, FormatError for an unknown name.
    """
    table = {entry.name: entry for entry in source.architecture.tensor_table(source.config)}
    groups: dict[str, list[TensorHeader]] = {}
    for name, header in source.headers.items():
        entry = table.get(name)
        if entry is not None and is_chosen(header, entry):
            fused = entry.runtime_group if runtime.uniform_groups else None
            groups.setdefault(fused or name, []).append(header)
    return tuple(_choice(headers, names or runtime.formats) for headers in groups.values())


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


def padded(nbytes: int) -> int:
    """Bytes that a tensor takes in a GGUF file."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def formats_by_tensor(choices: Sequence[Choice], picks: Picks) -> dict[str, NumberFormat]:
    """Tensor name -> chosen format."""
    return {name: choice.formats[pick] for choice, pick in zip(choices, picks, strict=True) for name in choice.names}


def chosen_bytes(choices: Sequence[Choice], picks: Picks) -> int:
    """File bytes of all chosen tensors."""
    return sum(choice.sizes[pick] for choice, pick in zip(choices, picks, strict=True))


def _choice(headers: Sequence[TensorHeader], names: Sequence[str]) -> Choice:
    fitting = [set(candidate_formats(header.columns, names)) for header in headers]
    shared = [item for item in candidate_formats(headers[0].columns, names) if all(item in found for found in fitting)]
    if not shared:
        raise RecipeError(
            f"{headers[0].name}: rows of {headers[0].columns} weights fit none of the formats "
            f"{', '.join(name.upper() for name in names)}; add one with blocks of 32, such as Q8_0, or F16"
        )
    sized = sorted(
        ((sum(padded(item.stored_bytes(h.rows, h.columns)) for h in headers), item) for item in shared),
        key=lambda pair: (-pair[0], pair[1].name),
    )
    return Choice(
        tuple(header.name for header in headers), tuple(item for _, item in sized), tuple(size for size, _ in sized)
    )
