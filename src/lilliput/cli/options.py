# SPDX-License-Identifier: Apache-2.0
"""Options that several subcommands share, spelled once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lilliput.cli import values

if TYPE_CHECKING:
    from lilliput.fitting import Goal

Model = Annotated[
    str,
    typer.Argument(
        help="Hugging Face folder or id, GGUF or lilliput safetensors file, or 'gulliver', the built-in model."
    ),
]
To = Annotated[str, typer.Option("--to", help="Preset (Q4_K_M), number format (Q4_K, F16) or recipe.yaml.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o",
        help="The ending decides the container: .gguf, .safetensors, or a folder for other runtimes "
        "(.compressed-tensors, .w8a8, .gptq, .awq, .bitsandbytes, .onnx …: docs/containers.md). "
        "Default: <Model>-<QUANT>.gguf here.",
    ),
]  # fmt: skip
Outputs = Annotated[
    list[Path] | None,
    typer.Option(
        "--output", "-o", metavar="<path>",
        help="The ending decides the container: .gguf, .safetensors, .tflite, or a folder for other runtimes "
        "(.compressed-tensors, .w8a8, .gptq, .awq, .bitsandbytes, .onnx …: docs/containers.md). Repeatable: "
        "the same codes in every file. Default: <Model>-<QUANT>.gguf here.",
    ),
]  # fmt: skip
Text = Annotated[
    list[Path] | None,
    typer.Option(
        "--text",
        metavar="<path>",
        help="Text, JSONL or chat file to calibrate on (gzip too); repeatable; 'builtin' for ours.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="<number>", min=1, help="Threads; default LILLIPUT_THREADS or all cores."),
]
KvCache = Annotated[
    str,
    typer.Option("--kv", help="KV cache: f16, f32, q8_0 or q4_0; q8_0_plain, q4_0_plain do not rotate."),
]
Repack = Annotated[
    bool,
    typer.Option(
        "--repack/--no-repack",
        help="Lay weights out in memory for speed, or run them where the file is mapped, shared between processes.",
    ),
]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub id; default: main.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")]
Effort = Annotated[
    str | None,
    typer.Option(
        "--effort",
        help="fast (the default without --text), balanced (with it) or best: how carefully codes are chosen.",
    ),
]
Method = Annotated[str | None, typer.Option("--method", help="One method by name, instead of --effort.")]
Transforms = Annotated[
    list[str] | None,
    typer.Option(
        "--transform",
        metavar="<name>",
        help="Rewrite the float model first, e.g. awq_scaling or smooth_quant:0.5; repeatable, in order.",
    ),
]
StaticActivations = Annotated[
    str | None,
    typer.Option(
        "--activations",
        help="Static inputs of integer weights, their ranges found on --text and kept in the file: int8_static or "
        "int8_static_asym, with :min_max (default), :percentile, :mse or :entropy.",
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        "--tokens",
        metavar="<number>",
        min=1,
        help="Use at most this many tokens of the text; default: 65536, or all with --effort fast.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="Where the model runs while calibrating, e.g. cuda.")]
Inputs = Annotated[
    str | None,
    typer.Option(
        "--inputs",
        help="Fit layers to quantized inputs, float ones, or both; default: quantized, with --effort best both.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision", help="Of the text's passes through the model: float32, or bfloat16 where it is faster."
    ),
]
StatisticsFile = Annotated[Path | None, typer.Option("--statistics", help="Statistics from `lilliput calibrate`.")]
ImatrixFile = Annotated[Path | None, typer.Option("--imatrix", help="llama.cpp's imatrix.gguf (or legacy .dat).")]
# Targets of a search.
Size = Annotated[str | None, typer.Option("--size", help="Largest file, e.g. 6GB; GB is 10^9 bytes, GiB 2^30.")]
Ram = Annotated[str | None, typer.Option("--ram", help="Most memory for weights and KV cache together, e.g. 8GB.")]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="<number>",
        min=1,
        help="Tokens of the KV cache for --ram; default: all that the model can see.",
    ),
]
Bpw = Annotated[float | None, typer.Option("--bpw", help="Most bits per weight, all tensors.")]
MaxKld = Annotated[float | None, typer.Option("--max-kld", help="Most KL from the original, nats a token.")]
MinSpeed = Annotated[float | None, typer.Option("--min-speed", help="Least generated tokens a second here.")]
Runtime = Annotated[str, typer.Option("--for", help="What will run it: llama.cpp, lilliput, vllm or onnxruntime.")]
Candidates = Annotated[
    str, typer.Option("--formats", help="Comma list of formats to choose among; default: those that --for takes.")
]


def given(context: typer.Context) -> dict[str, str]:
    """Parameters that the command line names, by the option that a user writes: {"runtime": "--for"}."""
    found = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            names = [*parameter.opts, *parameter.secondary_opts]
            found[parameter.name or ""] = next((name for name in names if name.startswith("--")), names[0])
    return found


def refuse(context: typer.Context, names: Sequence[str], reason: str) -> None:
    """Raise RecipeError where an option was given that would have no effect. reason: `WHY; WHAT TO DO`."""
    from lilliput.errors import RecipeError

    known = given(context)
    useless = [known[name] for name in names if name in known]
    if useless:
        raise RecipeError(f"{', '.join(useless)}: without effect {reason}")


def refuse_for_search(context: typer.Context) -> None:
    """Refuse what another option, given or not, leaves without effect in a search. Raises RecipeError."""
    known = given(context)
    if "ram" not in known:
        refuse(context, ("context", "kv"), "without --ram, which counts its cache; add --ram or leave it out")
    if "method" in known:
        refuse(context, ("effort",), "with --method, which says what an effort stands for; give one of them")


def refuse_for_quantize(context: typer.Context, *, effort: str | None) -> None:
    """Refuse what has no effect on `quantize`. Raises RecipeError."""
    known = given(context)
    if "text" not in known:
        words = ("tokens", "inputs", "precision", "device")
        refuse(context, words, "without a text to calibrate on; add --text FILE (or --text builtin), or leave it out")
    if "method" in known and effort != "best":
        refuse(context, ("effort",), "with --method, which says what an effort stands for; give one of them")


def candidate_names(words: str) -> tuple[str, ...]:
    """Names of a comma list."""
    return tuple(name.strip().lower() for name in words.split(",") if name.strip())


def goal(
    size: str | None,
    ram: str | None,
    context: int | None,
    bpw: float | None,
    max_kld: float | None,
    min_speed: float | None,
) -> Goal:
    """The targets of a search. Raises RecipeError where none was given."""
    from lilliput.fitting import Goal

    return Goal(
        size=values.parse_bytes(size, "--size") if size else None,
        ram=values.parse_bytes(ram, "--ram") if ram else None,
        context=context,
        bits_per_weight=bpw,
        max_kld=max_kld,
        min_speed=min_speed,
    )
