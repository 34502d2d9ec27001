# SPDX-License-Identifier: Apache-2.0
"""Everything that consumers look for in a GGUF file's keys (ggml docs/gguf.md; llama.cpp, ollama, the hub's viewer)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lilliput.architectures.architecture import Json
from lilliput.containers.container import Contents
from lilliput.containers.gguf_types import DEFAULT_ALIGNMENT, QUANTIZATION_VERSION, file_type_number
from lilliput.containers.side_files import embedded_files
from lilliput.text.gguf_metadata import metadata_from_vocabulary


def file_metadata(contents: Contents) -> dict[str, Json]:
    """All keys of the first part, in file order.

    `general.*` from the provenance, with a size label counted here where none is known; `<family>.*`; the tokenizer;
    keys carried over; licence texts and generation_config.json as `lilliput.side_file.<name>`; this file's own.
    """
    metadata: dict[str, Json] = {"general.architecture": contents.config.family, "general.type": "model"}
    general = contents.provenance.general
    metadata["general.name"] = general.get("name", contents.config.family)
    metadata |= {f"general.{key}": value for key, value in general.items()}
    metadata.setdefault("general.size_label", size_label(contents.weights))
    metadata.setdefault("general.quantized_by", "lilliput")
    metadata |= contents.architecture.gguf_metadata(contents.config)
    if contents.vocabulary is not None:
        for key, value in metadata_from_vocabulary(contents.vocabulary).items():
            metadata[key] = list[Json](value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    metadata |= contents.provenance.extra
    metadata |= embedded_files(contents.provenance.side_files)
    metadata |= contents.metadata
    metadata["general.file_type"] = file_type_number(contents.preset or _only_format(contents))
    metadata["general.quantization_version"] = QUANTIZATION_VERSION
    metadata["general.alignment"] = DEFAULT_ALIGNMENT
    return metadata


def size_label(weights: int) -> str:
    """Number of weights as names spell it: two significant digits at least, `260K`, `1.2B`, `70B`."""
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if weights >= unit or suffix == "K":
            scaled = weights / unit
            return f"{scaled:.1f}{suffix}" if round(scaled) < 10 else f"{scaled:.0f}{suffix}"
    raise AssertionError


def file_name(general: Mapping[str, Json], weights: int, preset: str) -> str:
    """`<Name>-<SizeLabel>-<Encoding>.gguf`; the size is left out where the name already says it.

    The GGUF naming convention, in the form that the hub's quantized repositories use.
    """
    name = str(general.get("name") or "model").strip().replace("/", "-").replace(" ", "-")
    size = str(general.get("size_label") or size_label(weights))
    already = size.lower() in name.lower().split("-")
    return "-".join([name] + ([] if already else [size]) + [preset.upper()]) + ".gguf"


def _only_format(contents: Contents) -> str:
    """The format of most weights, for files without a preset."""
    weights: dict[str, int] = {}
    for header in contents.headers:
        weights[header.format.name] = weights.get(header.format.name, 0) + header.rows * header.columns
    return max(weights, key=lambda name: weights[name], default="f32")
