# SPDX-License-Identifier: Apache-2.0
"""What other runtimes make of what we write: format by container by runtime, each cell with the test that proves it.

`docs/containers.md` shows this table; `plan` and `convert` warn from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from lilliput.formats import NumberFormat


class Reading(StrEnum):
    """What a runtime does with a format in a container.

    RUNS: computes with it.  DECODES: reads it as floats.  REFUSES: by an error.  NO_KERNEL: knows the container and has
    nothing that computes with this format.  UNTRIED: said to read it, not run by a test here.
    """

    RUNS = "runs"
    DECODES = "decodes"
    REFUSES = "refuses"
    NO_KERNEL = "no kernel"
    UNTRIED = "untried"


@dataclass(frozen=True, slots=True)
class Cell:
    """One runtime's reading. test: `folder/file.py::name` under tests.  note: what one must know."""

    runtime: str
    reading: Reading
    test: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """formats: as shown.  pattern: of our format names that it is about."""

    container: str
    formats: str
    pattern: str
    cells: tuple[Cell, ...]


# What to quantize to where nothing says so: a format that the container holds and its runtimes compute with.
SUGGESTED = {
    "gguf": "q4_k",
    "lilliput": "q4_k",
    "compressed-tensors": "int4_g128",
    "compressed-tensors-w8a8": "int8_channel",
    "compressed-tensors-w8a8-static": "int8_channel",
    "gptq": "int4_g128",
    "awq": "int4_g128_asym",
    "bitsandbytes": "nf4",
    "bitsandbytes-double": "nf4",
    "mlx": "int4_g64_affine",
    "onnx": "int4_g32",
    "onnx-qdq": "int4_g32",
    "onnx-int8": "int8_channel",
    "onnx-tensorrt": "int8_channel_narrow",
    "qonnx": "int8_channel_pow2",
    "litert": "int8_channel_narrow",
    "litert-int8": "int8_channel_narrow",
}
_CT = "external/test_transformers_reads_our_compressed_tensors.py::"
_GPTQ = "external/test_gptqmodel_reads_our_folders.py::test_logits_are_those_of_our_decoded_weights"
_BNB = "external/test_bitsandbytes_reads_our_folders.py::"
_LOADER, _DEQUANTIZING, _VLLM = "transformers", "transformers, dequantize=True", "vLLM"
_EXACT = f"{_CT}test_logits_are_exactly_those_of_our_decoded_weights"
_SMALL = f"{_CT}test_small_floats_are_those_of_our_decoded_weights"
_ZERO = f"{_CT}test_zero_points_are_exact_where_transformers_dequantizes"
_W8A8 = f"{_CT}test_inputs_in_eight_bits_are_rounded_as_described"
_STATIC = f"{_CT}test_static_inputs_are_rounded_to_the_range_that_was_measured"
_REFUSED = f"{_CT}test_what_the_table_says_is_refused_is_refused"
_MLX = "external/test_mlx_runs_our_folders.py::"
_VLLM_RUNS = "external/test_vllm_runs_our_folders.py::test_next_tokens_have_the_probabilities_of_our_weights"
_VLLM_NOT = "external/test_vllm_runs_our_folders.py::test_what_the_table_says_it_cannot_run_is_refused"
_NOT_ON_CPUS = "its CPU build has no kernel for it"
_GGUF_PY = "conformance/test_containers.py::test_gguf_py_reads_our_files_and_decodes_the_same_values"
_LLAMA_PYTHON = "external/test_llama_cpp_python.py::test_every_format_decodes_there_to_what_it_decodes_to_here"
_ONNX, _PROFILES = "conformance/test_onnx.py::", "conformance/test_onnx_profiles.py::"
_GENAI = "external/test_onnxruntime_genai.py::test_greedy_tokens_are_those_of_our_engine"
_OPENVINO = "external/test_openvino.py::test_logits_are_those_of_our_weights_which_stay_compressed"
_LITERT_INT8 = "external/test_litert_integers.py::"
_FIXED_POINT = r"int[2-8]_(?:channel|tensor)_pow2|fixed\d+\.\d+"
_POSITIVE = r"int[2-8]_.*_(?:narrow|pow2)|tq1_0|ternary_.*|fixed\d+\.\d+"
_ONNX_INTEGERS = r"int[2-8]_.*|q[458]_0|tq[12]_0|ternary_.*|fixed\d+\.\d+"

ROWS: tuple[Row, ...] = (
    Row("gguf", "ggml types", r"(?:i?q\d|tq\d|mxfp4|nvfp4|b?f16|f32).*", (
        Cell("llama.cpp", Reading.RUNS, _LLAMA_PYTHON),
        Cell("gguf-py", Reading.DECODES, _GGUF_PY, "all but Q1_0"),
    )),
    Row("compressed-tensors", "int4: g32, g64, g128, channel", r"int4_(?:g32|g64|g128|channel)", (
        Cell(_LOADER, Reading.RUNS, _EXACT), Cell(_DEQUANTIZING, Reading.DECODES, _EXACT),
        Cell(_VLLM, Reading.RUNS, _VLLM_RUNS),
    )),
    Row("compressed-tensors", "int8: g32, g64, g128, channel", r"int8_(?:g32|g64|g128|channel)", (
        Cell(_LOADER, Reading.RUNS, _EXACT), Cell(_DEQUANTIZING, Reading.DECODES, _EXACT),
        Cell(_VLLM, Reading.UNTRIED, _VLLM_NOT, _NOT_ON_CPUS),
    )),
    Row("compressed-tensors", "other int2 to int8", r"int[2-8]_(?:g\d+|channel|tensor)", (
        Cell(_LOADER, Reading.RUNS, _EXACT), Cell(_DEQUANTIZING, Reading.DECODES, _EXACT),
        Cell(_VLLM, Reading.NO_KERNEL, _VLLM_NOT, "its kernels take 4 and 8 bits in groups of 32, 64, 128 or a row"),
    )),
    Row("compressed-tensors", "int4 with zero points: g32, g64, g128, channel",
        r"int4_(?:g32|g64|g128|channel)_asym", (
        Cell(_LOADER, Reading.REFUSES, _REFUSED, "transformers 5.23 expects zero points unpacked"),
        Cell(_DEQUANTIZING, Reading.DECODES, _ZERO), Cell(_VLLM, Reading.RUNS, _VLLM_RUNS),
    )),
    Row("compressed-tensors", "other int2 to int8 with zero points", r"int[2-8]_(?:g\d+|channel)_asym", (
        Cell(_LOADER, Reading.REFUSES, _REFUSED, "transformers 5.23 expects zero points unpacked"),
        Cell(_DEQUANTIZING, Reading.DECODES, _ZERO), Cell(_VLLM, Reading.UNTRIED, _VLLM_NOT, _NOT_ON_CPUS),
    )),
    Row("compressed-tensors", "FP8: tensor, channel", r"fp8_e4m3_(?:tensor|channel)", (
        Cell(_LOADER, Reading.RUNS, _EXACT), Cell(_DEQUANTIZING, Reading.DECODES, _EXACT),
        Cell(_VLLM, Reading.UNTRIED, _VLLM_NOT, _NOT_ON_CPUS),
    )),
    Row("compressed-tensors", "FP8: blocks of 128 x 128", r"fp8_e4m3_block128", (
        Cell(_DEQUANTIZING, Reading.DECODES, _SMALL), Cell(_VLLM, Reading.UNTRIED, _VLLM_NOT, _NOT_ON_CPUS),
    )),
    Row("compressed-tensors-w8a8", "int8 a row", r"int8_channel", (
        Cell(_LOADER, Reading.RUNS, _W8A8, "inputs rounded to int8, a scale a token"),
        Cell(_VLLM, Reading.RUNS, _VLLM_RUNS),
    )),
    Row("compressed-tensors-w8a8", "FP8: channel", r"fp8_e4m3_channel", (
        Cell(_LOADER, Reading.RUNS, _W8A8, "inputs rounded to FP8, a scale a token"),
        Cell(_VLLM, Reading.RUNS, _VLLM_RUNS),
    )),
    Row("compressed-tensors-w8a8", "FP8: tensor", r"fp8_e4m3_tensor", (
        Cell(_LOADER, Reading.RUNS, _W8A8, "inputs rounded to FP8, a scale a token"),
        Cell(_VLLM, Reading.UNTRIED, _VLLM_NOT, _NOT_ON_CPUS),
    )),
    Row("compressed-tensors-w8a8-static", "int8 a row", r"int8_channel", (
        Cell(_LOADER, Reading.RUNS, _STATIC, "inputs rounded to int8, one scale a layer"),
        Cell(_VLLM, Reading.RUNS, _VLLM_RUNS),
    )),
    Row("compressed-tensors-w8a8-static", "FP8: tensor, channel", r"fp8_e4m3_(?:tensor|channel)", (
        Cell(_LOADER, Reading.RUNS, _STATIC, "inputs rounded to FP8, one scale a layer"),
        Cell(_VLLM, Reading.UNTRIED, _VLLM_NOT, _NOT_ON_CPUS),
    )),
    Row("compressed-tensors", "MXFP4, NVFP4", r"(?:mx|nv)fp4", (
        Cell(_LOADER, Reading.REFUSES, _REFUSED,
             "transformers 5.23 makes BF16 weights of it, which float32 models refuse"),
        Cell(_DEQUANTIZING, Reading.DECODES, _SMALL), Cell(_VLLM, Reading.UNTRIED, _VLLM_NOT, _NOT_ON_CPUS),
    )),
    Row("gptq", "int4", r"int4_(?:g\d+|channel)", (
        Cell("GPTQModel, transformers", Reading.RUNS, _GPTQ), Cell(_VLLM, Reading.RUNS, _VLLM_RUNS),
    )),
    Row("gptq", "int8", r"int8_(?:g\d+|channel)", (
        Cell("GPTQModel, transformers", Reading.RUNS, _GPTQ),
        Cell(_VLLM, Reading.UNTRIED, _VLLM_NOT, _NOT_ON_CPUS),
    )),
    Row("gptq", "int2, int3", r"int[23]_(?:g\d+|channel)", (
        Cell("GPTQModel, transformers", Reading.RUNS, _GPTQ),
        Cell(_VLLM, Reading.REFUSES, _VLLM_NOT, "it takes 4 and 8 bits"),
    )),
    Row("gptq", "int2, int3, int4, int8 with zero points", r"int[2348]_(?:g\d+|channel)_asym", (
        Cell("GPTQModel, transformers", Reading.RUNS, _GPTQ),
        Cell(_VLLM, Reading.REFUSES, _VLLM_NOT,
             "it has kernels for symmetric GPTQ alone; AWQ or compressed-tensors instead"),
    )),
    Row("gptq", "groups in the order of importance (desc_act)", r"int[2348]_g\d+_(?:asym_)?ordered", (
        Cell("GPTQModel, transformers", Reading.RUNS, _GPTQ), Cell(_VLLM, Reading.UNTRIED),
    )),
    Row("awq", "int4 with zero points", r"int4_g\d+_asym", (
        Cell("GPTQModel, transformers", Reading.RUNS, _GPTQ), Cell(_VLLM, Reading.RUNS, _VLLM_RUNS),
    )),
    Row("bitsandbytes", "NF4, FP4", r"(?:nf4|fp4bnb)(?:_g\d+)?", (
        Cell("bitsandbytes, transformers", Reading.RUNS, f"{_BNB}test_four_bit_weights_are_ours_exactly"),
    )),
    Row("bitsandbytes-double", "NF4, FP4, scales quantized twice", r"(?:nf4|fp4bnb)(?:_g\d+)?", (
        Cell("bitsandbytes, transformers", Reading.RUNS, f"{_BNB}test_four_bit_weights_are_ours_exactly"),
    )),
    Row("bitsandbytes", "int8 a row", r"int8_channel", (
        Cell("bitsandbytes, transformers", Reading.RUNS, f"{_BNB}test_eight_bit_weights_are_ours_exactly",
             "it rounds inputs to int8 as well"),
    )),
    Row("mlx", "int2 to int6, int8 with a scale and a minimum: g32, g64, g128", r"int[234568]_g(?:32|64|128)_affine", (
        Cell("mlx-lm", Reading.RUNS, f"{_MLX}test_logits_are_those_of_our_decoded_weights", "on its CPU backend"),
    )),
    Row("mlx", "MXFP4, NVFP4", r"(?:mx|nv)fp4", (
        Cell("mlx-lm", Reading.RUNS, f"{_MLX}test_logits_are_those_of_our_decoded_weights", "on its CPU backend"),
    )),
    Row("onnx", "integers under a scale: int2 to int8, Q4_0, Q5_0, Q8_0, ternary", _ONNX_INTEGERS, (
        Cell("ONNX Runtime", Reading.RUNS, f"{_ONNX}test_every_format_that_is_held_computes_our_decoded_values"),
        Cell("onnxruntime-genai", Reading.RUNS, _GENAI),
    )),
    Row("onnx-qdq", "the same, with DequantizeLinear", _ONNX_INTEGERS, (
        Cell("ONNX Runtime", Reading.RUNS, f"{_PROFILES}test_dequantized_weights_are_ours_in_every_format_held"),
        Cell("OpenVINO", Reading.RUNS, _OPENVINO),
    )),
    Row("onnx-qdq", "FP8: tensor, channel", r"fp8_e4m3_(?:tensor|channel)", (
        Cell("ONNX Runtime", Reading.RUNS, f"{_PROFILES}test_dequantized_weights_are_ours_in_every_format_held"),
    )),
    Row("onnx-int8", "int8 a row or tensor, 8-bit inputs", _ONNX_INTEGERS, (
        Cell("ONNX Runtime", Reading.RUNS, f"{_PROFILES}test_static_inputs_are_rounded_to_the_range_that_was_measured"),
        Cell("OpenVINO", Reading.RUNS,
             "external/test_openvino.py::test_static_int8_is_computed_in_bytes_and_close_to_onnx_runtime"),
    )),
    Row("onnx-tensorrt", "narrow and power-of-two integers, ternary", _POSITIVE, (
        Cell("ONNX Runtime", Reading.RUNS, f"{_PROFILES}test_static_inputs_are_rounded_to_the_range_that_was_measured"),
        Cell("OpenVINO", Reading.RUNS, _OPENVINO),
        Cell("TensorRT", Reading.UNTRIED, note="held to its published rules; no engine was built"),
    )),
    Row("onnx-tensorrt", "FP8: tensor, channel", r"fp8_e4m3_(?:tensor|channel)", (
        Cell("ONNX Runtime", Reading.RUNS,
             f"{_PROFILES}test_fp8_inputs_are_rounded_to_the_range_that_was_measured"),
        Cell("TensorRT", Reading.UNTRIED, note="held to its published rules; no engine was built"),
    )),
    Row("qonnx", "power-of-two scales a row or tensor, fixed point", _FIXED_POINT, (
        Cell("qonnx", Reading.RUNS, "external/test_qonnx.py::test_logits_are_those_of_the_program"),
        Cell("FINN, hls4ml", Reading.UNTRIED),
    )),
    Row("litert", "integers a row or tensor, without -128", r"int[2-8]_.*|ternary_.*|fixed\d+\.\d+", (
        Cell("LiteRT, with and without XNNPACK", Reading.RUNS,
             "external/test_litert_runs_our_files.py::test_int8_is_as_near_to_its_weights_as_rounded_inputs_allow",
             "it rounds inputs to int8 as well"),
    )),
    Row("litert-int8", "the same, activations in integers too (encoders)", r"int[2-8]_.*|ternary_.*|fixed\d+\.\d+", (
        Cell("LiteRT", Reading.RUNS, f"{_LITERT_INT8}test_every_operator_gives_the_codes_that_it_means"),
        Cell("LiteRT with XNNPACK", Reading.RUNS, f"{_LITERT_INT8}test_whole_models_are_near_their_floats"),
    )),
)  # fmt: skip


def row_of(container: str, number_format: NumberFormat) -> Row | None:
    """The first row of the table that is about a format in a container."""
    rows = (row for row in ROWS if row.container == container)
    return next((row for row in rows if re.fullmatch(row.pattern, number_format.name)), None)


# Containers that keep experts apart, as transformers does not, which is what most of their readers build on.
_EXPERTS_APART = ("compressed-tensors", "compressed-tensors-w8a8", "compressed-tensors-w8a8-static", "gptq", "awq")


def runtimes_of(container: str, formats: Iterable[NumberFormat], *, has_experts: bool = False) -> tuple[str, ...]:
    """Runtimes that, as tests show, run or decode every one of these formats in this container.

    has_experts: quantized ones.
    """
    if has_experts and container in _EXPERTS_APART:
        return ()
    rows = {item.name: row for item in formats if (row := row_of(container, item)) is not None}
    read = [
        {cell.runtime for cell in row.cells if cell.reading in (Reading.RUNS, Reading.DECODES)} for row in rows.values()
    ]
    if not read:
        return ()
    shared = set.intersection(*read)
    return tuple(cell.runtime for cell in next(iter(rows.values())).cells if cell.runtime in shared)


def reading_warnings(container: str, formats: Iterable[NumberFormat], *, has_experts: bool = False) -> list[str]:
    """What users of these formats in this container should know before the work. has_experts: quantized ones."""
    used = {item.name: item for item in formats}
    found = list(dict.fromkeys(_warnings(container, used)))
    if has_experts and container in _EXPERTS_APART:
        reader = "vLLM knows a matrix for each, which was not tried here"
        if container == "gptq":
            reader = "GPTQModel.load runs Qwen3-MoE"
        found.append(f"quantized experts in {container}: transformers joins experts and cannot load them; {reader}")
    return found


def _warnings(container: str, formats: dict[str, NumberFormat]) -> Iterator[str]:
    rows = {row.formats: row for item in formats.values() if (row := row_of(container, item)) is not None}
    for row in rows.values():
        for cell in row.cells:
            if cell.reading in (Reading.REFUSES, Reading.NO_KERNEL):
                yield f"{cell.runtime} cannot use {row.formats} in {container}: {cell.note}"
    quantized = [name for name in formats if row_of(container, formats[name]) is not None]
    if container == "compressed-tensors" and len(quantized) > 1:
        yield (
            f"{_DEQUANTIZING} decodes every layer by the first group and refuses several formats in one folder "
            f"({', '.join(name.upper() for name in sorted(quantized))}); its default path reads them"
        )
