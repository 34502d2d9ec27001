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
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from peers.llama_cpp import PURE_TYPES, TOLD_TYPES, Case, LlamaCpp, quantized_values

from lilliput.arrays import FloatArray
from lilliput.checkpoints.safetensors_reader import SafetensorsFile
from lilliput.formats import FORMATS, NumberFormat
from lilliput.methods.searched_scales import encode

DEFAULT = [*PURE_TYPES, *TOLD_TYPES]


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


def compare(llama_cpp: LlamaCpp, folder: Path, name: str, cases: Mapping[str, Case]) -> dict[str, dict[str, float]]:
    """Print a JSON line per tensor; return llama-quantize's sums."""
    number_format = FORMATS[name]
    cases = {label: case for label, case in cases.items() if case.weight.shape[1] % number_format.block_size == 0}
    plain = quantized_values(llama_cpp, folder, name, [*cases.values()], is_weighted=False)
    weighted = quantized_values(llama_cpp, folder, name, [*cases.values()], is_weighted=True)
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
    parser.add_argument("--formats", nargs="*", default=list(DEFAULT), choices=list(DEFAULT))
    parser.add_argument("--golden", type=Path, metavar="FILE")
    parser.add_argument("--label", default="", help="which llama.cpp made the golden file")
    arguments = parser.parse_args()
    cases = synthetic_cases()
    for path in arguments.safetensors:
        cases |= checkpoint_cases(path)
    golden = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.formats:
            golden[name] = compare(LlamaCpp(arguments.llama_quantize.parent), Path(folder), name, cases)
    if arguments.golden:
        command = "python benchmarks/encoders.py --llama-quantize PATH --golden FILE --label LABEL"
        content = {"command": command, "llama_cpp": arguments.label, "sums": golden}
        arguments.golden.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{len(arguments.formats)} formats, {len(cases)} tensors", file=sys.stderr)


if __name__ == "__main__":
    main()
