# SPDX-License-Identifier: Apache-2.0
"""Squared errors of our searched encoders over llama-quantize's, type by type, on the same tensors.

    python benchmarks/encoders.py --llama-quantize PATH [--safetensors FILE ...] [--formats q4_k ...]
    python benchmarks/encoders.py --llama-quantize PATH --golden tests/golden/llama_quantize_errors.json

One JSON line per format and tensor on stdout: ratios ours / theirs of the squared error, without importance ("plain"),
and with it, weighted by the imatrix ("imatrix") and by imatrix * sqrt(s + x^2), with s the mean square of the row
("imatrix_row") or twice that of 256 weights ("imatrix_block"). Synthetic tensors always; two-dimensional tensors of
the safetensors files too, under an importance drawn like a trained model's. --golden stores llama-quantize's sums of
the synthetic tensors, which `make test` then holds our encoders to without llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from lilliput.arrays import FloatArray
from lilliput.checkpoints.safetensors_reader import SafetensorsFile
from lilliput.formats import FORMATS, NumberFormat
from lilliput.methods.searched_scales import encode

# llama-quantize's names of the formats, all run with --pure.
FILE_TYPES = {
    "q8_0": "Q8_0",
    "q4_0": "Q4_0",
    "q4_1": "Q4_1",
    "q5_0": "Q5_0",
    "q5_1": "Q5_1",
    "q2_k": "Q2_K",
    "q3_k": "Q3_K_S",
    "q4_k": "Q4_K_S",
    "q5_k": "Q5_K_S",
    "q6_k": "Q6_K",
    "iq4_nl": "IQ4_NL",
    "iq4_xs": "IQ4_XS",
}
TOKENS = 512


@dataclass(frozen=True, slots=True)
class Case:
    """weight [rows, columns] and importance [columns], float32."""

    weight: FloatArray
    importance: FloatArray


def synthetic_cases() -> dict[str, Case]:
    """Gaussian, heavy-tailed (Student t4) and outlier-column tensors; legacy streams, which never change."""
    rows, columns = 32, 1024
    draw = np.random.RandomState(42)
    log_normal = np.exp(draw.standard_normal((3, columns)))
    outliers = draw.standard_normal((rows, columns))
    outliers[:, draw.permutation(columns)[:20]] *= 8
    log_normal[2, draw.permutation(columns)[:12]] *= 200
    tensors = {
        "gaussian": draw.standard_normal((rows, columns)),
        "student_t4": draw.standard_t(4, (rows, columns)),
        "outlier_columns": outliers,
    }
    return {
        name: Case((0.02 * tensor).astype(np.float32), importance.astype(np.float32))
        for (name, tensor), importance in zip(tensors.items(), log_normal, strict=True)
    }


def checkpoint_cases(path: Path) -> dict[str, Case]:
    """Two-dimensional tensors of a safetensors file; importance falls off like a power law, in random order."""
    cases = {}
    draw = np.random.RandomState(7)
    file = SafetensorsFile(path)
    for name in file.tensors:
        tensor = file.float32(name)
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            ranks = draw.permutation(tensor.shape[1]) + 1.0
            importance = np.exp(draw.standard_normal(tensor.shape[1])) / ranks
            cases[f"{path.parent.name}:{name}"] = Case(np.array(tensor), importance.astype(np.float32))
    return cases


def write_model(path: Path, cases: Mapping[str, Case]) -> None:
    """A GGUF that llama-quantize accepts: tensors of one Llama-like layer each."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(len(cases))
    writer.add_context_length(TOKENS)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(256)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for index, case in enumerate(cases.values()):
        writer.add_tensor(f"blk.{index}.ffn_down.weight", np.ascontiguousarray(case.weight))
    close(writer)


def write_importance(path: Path, cases: Mapping[str, Case]) -> None:
    """The importance as llama.cpp's imatrix file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["synthetic"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", TOKENS)
    for index, case in enumerate(cases.values()):
        name = f"blk.{index}.ffn_down.weight"
        writer.add_tensor(f"{name}.in_sum2", (case.importance * np.float32(TOKENS)).reshape(1, -1))
        writer.add_tensor(f"{name}.counts", np.array([[TOKENS]], dtype=np.float32))
    close(writer)


def close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_quantize(
    program: Path, folder: Path, name: str, cases: Mapping[str, Case], with_importance: bool
) -> list[FloatArray]:
    """Values that llama-quantize's file of format `name` decodes to, one array per case."""
    output = folder / "output.gguf"
    importance = ["--imatrix", str(folder / "imatrix.gguf")] if with_importance else []
    command = [str(program), *importance, "--pure", str(folder / "model.gguf"), str(output), FILE_TYPES[name], "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    found: dict[int, FloatArray] = {}
    for tensor in gguf.GGUFReader(output).tensors:
        assert tensor.tensor_type.name.lower() == name, f"{tensor.name} became {tensor.tensor_type.name}"
        found[int(tensor.name.split(".")[1])] = np.array(gguf.dequantize(tensor.data, tensor.tensor_type))
    return [found[index].reshape(case.weight.shape) for index, case in enumerate(cases.values())]


def error_sums(case: Case, values: FloatArray) -> dict[str, float]:
    """Sums of squared errors under each weighting, in float64."""
    x, importance = case.weight.astype(np.float64), case.importance.astype(np.float64)
    squares = (x - values) ** 2
    row = np.mean(x * x, axis=1, keepdims=True)
    sums = {
        "plain": squares.sum(),
        "imatrix": (squares * importance).sum(),
        "imatrix_row": (squares * importance * np.sqrt(row + x * x)).sum(),
    }
    if x.shape[1] % 256 == 0:
        block = np.repeat(2 * np.mean(x.reshape(len(x), -1, 256) ** 2, axis=2), 256, axis=1)
        sums["imatrix_block"] = (squares * importance * np.sqrt(block + x * x)).sum()
    return {name: float(value) for name, value in sums.items()}


def our_values(number_format: NumberFormat, case: Case, with_importance: bool) -> FloatArray:
    planes = encode(number_format, case.weight, case.importance if with_importance else None, threads=2)
    return number_format.dequantize(planes, case.weight.shape[1])


def compare(program: Path, folder: Path, name: str, cases: Mapping[str, Case]) -> dict[str, dict[str, float]]:
    """Print a JSON line per tensor; return llama-quantize's sums."""
    number_format = FORMATS[name]
    cases = {label: case for label, case in cases.items() if case.weight.shape[1] % number_format.block_size == 0}
    write_model(folder / "model.gguf", cases)
    write_importance(folder / "imatrix.gguf", cases)
    plain = llama_quantize(program, folder, name, cases, False)
    weighted = llama_quantize(program, folder, name, cases, True)
    theirs_by_case = {}
    for (label, case), without, with_importance in zip(cases.items(), plain, weighted, strict=True):
        ours = {"plain": error_sums(case, our_values(number_format, case, False))["plain"]}
        sums = error_sums(case, our_values(number_format, case, True))
        theirs = error_sums(case, with_importance) | {"plain": error_sums(case, without)["plain"]}
        ours = sums | ours
        ratios = {f"{key}_ratio": round(ours[key] / theirs[key], 5) for key in theirs}
        print(json.dumps({"format": name, "tensor": label, **ratios}), flush=True)
        theirs_by_case[label] = theirs
    return theirs_by_case


def main() -> None:
    parser = argparse.ArgumentParser(description="encoders against llama-quantize")
    parser.add_argument("--llama-quantize", type=Path, required=True, metavar="PATH")
    parser.add_argument("--safetensors", type=Path, nargs="*", default=[], metavar="FILE")
    parser.add_argument("--formats", nargs="*", default=list(FILE_TYPES), choices=list(FILE_TYPES))
    parser.add_argument("--golden", type=Path, metavar="FILE")
    parser.add_argument("--label", default="", help="which llama.cpp made the golden file")
    arguments = parser.parse_args()
    cases = synthetic_cases()
    for path in arguments.safetensors:
        cases |= checkpoint_cases(path)
    golden = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.formats:
            golden[name] = compare(arguments.llama_quantize, Path(folder), name, cases)
    if arguments.golden:
        command = "python benchmarks/encoders.py --llama-quantize PATH --golden FILE --label LABEL"
        content = {"command": command, "llama_cpp": arguments.label, "sums": golden}
        arguments.golden.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{len(arguments.formats)} formats, {len(cases)} tensors", file=sys.stderr)


if __name__ == "__main__":
    main()
