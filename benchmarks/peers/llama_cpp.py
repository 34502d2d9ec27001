# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's own programs: llama-quantize, llama-imatrix, llama-perplexity, run on files."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np

from lilliput.arrays import FloatArray

# Number format -> the llama-quantize type that gives it under --pure.
PURE_TYPES = {
    "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1", "q5_0": "Q5_0", "q5_1": "Q5_1",
    "q2_k": "Q2_K", "q3_k": "Q3_K_S", "q4_k": "Q4_K_S", "q5_k": "Q5_K_S", "q6_k": "Q6_K",
    "iq4_nl": "IQ4_NL", "iq4_xs": "IQ4_XS", "iq3_s": "IQ3_S", "iq3_xxs": "IQ3_XXS",
    "iq2_s": "IQ2_M", "iq2_xs": "IQ2_XS", "iq2_xxs": "IQ2_XXS", "iq1_s": "IQ1_S", "iq1_m": "IQ1_M",
    "tq1_0": "TQ1_0", "tq2_0": "TQ2_0",
}  # fmt: skip
# Formats that have no such type: each tensor is told.
TOLD_TYPES = ("mxfp4", "nvfp4")
# What llama-quantize refuses without an imatrix; where none is wanted it gets one of ones.
NEEDS_IMPORTANCE = ("iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_s", "iq1_m")
# Tokens that an imatrix of bare tensors says it has seen; it only scales.
TOKENS = 512
# llama-perplexity's log thread now and then loses the last lines at exit; it is asked again this often.
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """A folder with llama.cpp's programs."""

    folder: Path
    threads: int = 2

    def quantize(
        self, source: Path, output: Path, file_type: str, *, imatrix: Path | None = None, is_pure: bool = False
    ) -> None:
        """Write `output`. file_type: as llama-quantize spells it.  is_pure: every matrix gets that type.

        One of TOLD_TYPES as file_type: every `ffn_down` gets it.
        """
        options = ["--pure"] if is_pure else []
        if file_type in TOLD_TYPES:
            options, file_type = ["--tensor-type", f"ffn_down={file_type}"], "Q8_0"
        options += ["--imatrix", str(imatrix)] if imatrix is not None else []
        self._run("llama-quantize", [*options, str(source), str(output), file_type, str(self.threads)])

    def importance(self, model: Path, text: Path, output: Path, *, context: int) -> None:
        """Write an imatrix of `model` on `text`."""
        options = ["-m", str(model), "-f", str(text), "-o", str(output), "-c", str(context), "-t", str(self.threads)]
        self._run("llama-imatrix", options)

    def keep_logits(self, model: Path, text: Path, output: Path, *, context: int, chunks: int) -> None:
        """Write what `divergence` compares with."""
        self._perplexity(model, text, ["--kl-divergence-base", str(output)], (context, chunks), "Final estimate")

    def divergence(self, model: Path, text: Path, logits: Path, *, context: int, chunks: int) -> float:
        """Mean KL divergence of `model` from the model of `logits`, as llama-perplexity measures it."""
        options = ["--kl-divergence-base", str(logits), "--kl-divergence"]
        report = self._perplexity(model, text, options, (context, chunks), "Same top p:")
        found = re.search(r"^Mean\s+KLD:\s*(-?\d+\.\d+)", report, re.MULTILINE)
        if found is None:
            raise SystemExit(f"llama-perplexity printed no mean KLD:\n{report[-2000:]}")
        return float(found[1])

    def _perplexity(self, model: Path, text: Path, options: list[str], size: tuple[int, int], last: str) -> str:
        """The report. size: context and chunks.  last: what its last line says."""
        words = ["-m", str(model), "-f", str(text), "-t", str(self.threads), "-c", str(size[0]), "--chunks"]
        for _ in range(ATTEMPTS):
            report = self._run("llama-perplexity", [*words, str(size[1]), *options])
            if last in report:
                return report
        raise SystemExit(f"llama-perplexity printed no '{last}' in {ATTEMPTS} runs")

    def _run(self, program: str, words: Sequence[str]) -> str:
        """Standard output and error of one run; raises SystemExit with their end when it fails."""
        done = subprocess.run([str(self.folder / program), *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{program} {' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout + done.stderr


@dataclass(frozen=True, slots=True)
class Case:
    """One bare matrix: weight [rows, columns] and importance [columns], float32."""

    weight: FloatArray
    importance: FloatArray


def write_model(path: Path, cases: Sequence[Case]) -> None:
    """A GGUF that llama-quantize accepts: each matrix is the ffn_down of one Llama-like layer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(len(cases))
    writer.add_context_length(TOKENS)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(256)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for index, case in enumerate(cases):
        writer.add_tensor(f"blk.{index}.ffn_down.weight", np.ascontiguousarray(case.weight))
    _close(writer)


def write_importance(path: Path, cases: Sequence[Case]) -> None:
    """The importance as llama.cpp's imatrix file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["bare tensors"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", TOKENS)
    for index, case in enumerate(cases):
        name = f"blk.{index}.ffn_down.weight"
        writer.add_tensor(f"{name}.in_sum2", (case.importance * np.float32(TOKENS)).reshape(1, -1))
        writer.add_tensor(f"{name}.counts", np.array([[TOKENS]], dtype=np.float32))
    _close(writer)


def quantized_values(
    llama_cpp: LlamaCpp, folder: Path, format_name: str, cases: Sequence[Case], *, is_weighted: bool
) -> list[FloatArray]:
    """Values of bare matrices after llama-quantize. folder: for its files.  Asserts that it chose that format."""
    model, imatrix, output = folder / "model.gguf", folder / "imatrix.gguf", folder / "output.gguf"
    write_model(model, cases)
    flat = [replace(case, importance=np.ones_like(case.importance)) for case in cases]
    write_importance(imatrix, cases if is_weighted else flat)
    file_type = PURE_TYPES.get(format_name, format_name)
    has_imatrix = is_weighted or format_name in NEEDS_IMPORTANCE
    llama_cpp.quantize(model, output, file_type, imatrix=imatrix if has_imatrix else None, is_pure=True)
    found: dict[int, FloatArray] = {}
    for tensor in gguf.GGUFReader(output).tensors:
        assert tensor.tensor_type.name.lower() == format_name, f"{tensor.name} became {tensor.tensor_type.name}"
        found[int(tensor.name.split(".")[1])] = np.array(gguf.dequantize(tensor.data, tensor.tensor_type))
    return [found[index].reshape(case.weight.shape) for index, case in enumerate(cases)]


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file. format: its name.  bytes: stored.  weights: how many."""

    format: str
    bytes: int
    weights: int


def stored_tensors(path: Path) -> dict[str, Stored]:
    """Each tensor of a GGUF by name, read by gguf-py."""
    return {
        tensor.name: Stored(tensor.tensor_type.name.lower(), int(tensor.n_bytes), int(tensor.n_elements))
        for tensor in gguf.GGUFReader(path).tensors
    }


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
