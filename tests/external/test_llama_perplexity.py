# SPDX-License-Identifier: Apache-2.0
"""Our evaluation against llama-perplexity, on stories260K.

    pytest tests/external --llama-cpp FOLDER

llama-perplexity keeps the base's log-probabilities in a file of 16 bits each, cut off 16 below the largest, so its KL
statistics are those of that file; fed with the same files our formulas must give its numbers.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from lilliput import workflows
from lilliput.arrays import FloatArray, IntArray
from lilliput.containers import open_model
from lilliput.evaluation.chunks import Chunks
from lilliput.evaluation.compare import evaluate
from lilliput.evaluation.model_logits import EvaluationOptions, ModelLogits, tokenize
from lilliput.text.documents import read_text

pytestmark = pytest.mark.external
CONTEXT = 128


@dataclass
class LogitsFile:
    """Log-probabilities that llama-perplexity wrote, as a source of logits.

    Layout: "_logits_", int32 context, vocabulary, chunks, tokens [chunks, context]; then per scored position
    float32 scale, float32 smallest and uint16 [vocabulary], padded to even.
    """

    path: Path
    bytes: int = 0
    bits_per_weight: float = 0.0
    name: str = ""
    vocab_size: int = 0
    tokens: IntArray = field(init=False)
    _chunk: int = -1
    _position: int = 0

    def __post_init__(self) -> None:
        raw = self.path.read_bytes()
        assert raw[:8] == b"_logits_"
        context, self.vocab_size, chunks = (int(size) for size in np.frombuffer(raw, np.int32, 3, 8))
        self.tokens = np.frombuffer(raw, np.int32, context * chunks, 20).reshape(chunks, context)
        width = 2 * ((self.vocab_size + 1) // 2) + 4
        rows = np.frombuffer(raw, np.uint16, offset=20 + 4 * context * chunks)
        rows = rows.reshape(chunks, context - 1 - context // 2, width)
        head = np.ascontiguousarray(rows[..., :4]).view(np.float32)
        self.logits: FloatArray = head[..., :1] * rows[..., 4 : 4 + self.vocab_size] + head[..., 1:]

    def start(self) -> None:
        self._chunk, self._position = self._chunk + 1, 0

    def advance(self, token_ids: IntArray, *, outputs: int) -> FloatArray:
        rows = self.logits[self._chunk, self._position : self._position + outputs]
        self._position += outputs
        return rows


@dataclass(frozen=True)
class Run:
    """Files and printed reports of llama-perplexity."""

    folder: Path
    text: Path
    base_report: str
    quantized_report: str


@pytest.fixture(scope="module")
def run(llama_cpp: Path, stories_folder: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("perplexity")
    text = shared_data / "tinystories" / "tinystories_sample.txt"
    workflows.quantize(stories_folder, "F32", folder / "F32.gguf")
    quantize = [str(llama_cpp / "llama-quantize"), str(folder / "F32.gguf"), str(folder / "Q4_0.gguf"), "Q4_0"]
    subprocess.run(quantize, capture_output=True, check=True)

    def perplexity(model: str, *options: str) -> str:
        command = [str(llama_cpp / "llama-perplexity"), "-m", str(folder / f"{model}.gguf"), "-f", str(text)]
        command += ["-c", str(CONTEXT), "-t", "2", *options]
        # Its log thread now and then loses the last lines at exit: a report is whole when its last line is there.
        last = "Same top p" if "--kl-divergence" in options else "Final estimate"
        for _ in range(5):
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            if last in (report := done.stdout + done.stderr):
                return report
        pytest.fail(f"llama-perplexity printed no '{last}' in 5 runs")

    base = perplexity("F32", "--kl-divergence-base", str(folder / "base.kld"))
    perplexity("Q4_0", "--kl-divergence-base", str(folder / "quantized.kld"))
    quantized = perplexity("Q4_0", "--kl-divergence-base", str(folder / "base.kld"), "--kl-divergence")
    return Run(folder, text, base, quantized)


def printed(report: str, label: str) -> list[float]:
    """The numbers after a label, `±` left out."""
    found = re.search(rf"^{re.escape(label)}\s*:?\s*(.*)$", report, re.MULTILINE)
    assert found is not None, label
    return [float(number) for number in re.findall(r"-?\d+\.\d+", found[1])]


def test_windows_hold_the_tokens_that_llama_perplexity_evaluates(run: Run) -> None:
    source = open_model(run.folder / "F32.gguf")
    chunks = tokenize(source, read_text(run.text), EvaluationOptions(context=CONTEXT))
    theirs = LogitsFile(run.folder / "base.kld").tokens
    # Theirs are written before BOS replaces the first of each window.
    assert np.array_equal(chunks.token_ids[:, 1:], theirs[:, 1:])
    assert set(chunks.token_ids[:, 0].tolist()) == {source.vocabulary().bos_token_id}


def test_statistics_of_the_same_logits_are_those_it_prints(run: Run) -> None:
    base = LogitsFile(run.folder / "base.kld")
    result = evaluate(base, [LogitsFile(run.folder / "quantized.kld")], Chunks(base.tokens))
    found = result.files[0].divergence
    # It prints 6 digits after the point (3 in percent) and rounds the second model's logits to 16 bits over a range
    # of 16 for our file only: each nll and KL then moves by at most 16 / 65535 / 2.
    step = 16.0 / 65535.0 / 2.0
    assert [found.mean_kld.value, found.mean_kld.stderr] == pytest.approx(
        printed(run.quantized_report, "Mean    KLD"), abs=step
    )
    for label, percent in (("Maximum KLD", 100.0), ("99.9%   KLD", 99.9), ("Median  KLD", 50.0), (" 5.0%   KLD", 5.0)):
        assert [found.kld_percentiles[percent]] == pytest.approx(printed(run.quantized_report, label), abs=2.0 * step)
    assert [100 * found.same_top.value, 100 * found.same_top.stderr] == pytest.approx(
        printed(run.quantized_report, "Same top p"), abs=100.0 / found.tokens + 5e-4
    )
    assert [100 * found.rms_dp.value, 100 * found.rms_dp.stderr] == pytest.approx(
        printed(run.quantized_report, "RMS Δp"), abs=100.0 * step
    )
    assert 100 * found.dp_percentiles[90.0] == pytest.approx(printed(run.quantized_report, "90.0%   Δp")[0], abs=0.03)


def test_perplexity_of_the_float_model_is_its_perplexity(run: Run) -> None:
    found = re.search(r"PPL = (\d+\.\d+) \+/- (\d+\.\d+)", run.base_report)
    assert found is not None
    options = EvaluationOptions(context=CONTEXT, activations="engine")
    result = workflows.evaluate(run.folder / "F32.gguf", [run.folder / "F32.gguf"], run.text, options=options)
    ppl = result.files[0].divergence.ppl
    # Both round keys and values to F16, 11 bits: log-probabilities agree to about 2^-11.
    assert ppl.value == pytest.approx(float(found[1]), rel=2.0**-11)
    assert ppl.stderr == pytest.approx(float(found[2]), rel=2.0**-9)


def test_divergence_through_our_engine_is_what_it_measures_through_its_own(run: Run) -> None:
    result = workflows.evaluate(
        run.folder / "F32.gguf", [run.folder / "Q4_0.gguf"], run.text, options=EvaluationOptions(context=CONTEXT)
    )
    ours = result.files[0].divergence.mean_kld
    (theirs, stderr) = printed(run.quantized_report, "Mean    KLD")
    # Theirs adds its engine's int8 inputs, far smaller than one standard error of the mean.
    assert abs(ours.value - theirs) < stderr


def test_our_engine_is_no_further_from_exact_arithmetic_than_its_own(run: Run) -> None:
    source = open_model(run.folder / "Q4_0.gguf")
    exact = EvaluationOptions(context=CONTEXT)
    theirs = LogitsFile(run.folder / "quantized.kld", name="llama.cpp")
    ours = ModelLogits(source, "lilliput", replace(exact, activations="engine"))
    chunks = tokenize(source, read_text(run.text), exact)
    (pair,) = evaluate(ModelLogits(source, "exact", exact), [ours, theirs], chunks).paired
    assert pair.low <= 1.0, pair.verdict
