# SPDX-License-Identifier: Apache-2.0
"""Formulas are held to direct transcriptions, one token at a time; expected tolerances are float64 rounding."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lilliput.arrays import DoubleArray, FloatArray, IntArray
from lilliput.errors import EvaluationError
from lilliput.evaluation import compare, divergence
from lilliput.evaluation.chunks import Chunks, cut
from lilliput.evaluation.compare import EvaluationResult, Floor, evaluate
from lilliput.evaluation.divergence import log_probabilities, predict, row_divergences, score

# Sums of a few hundred float64 terms of order 1.
ROUNDING = 1e-12


class TableModel:
    """Logits by position and token: a fixed table plus noise, so that files differ from the base by `noise`."""

    def __init__(self, name: str, noise: float, vocab_size: int = 50, seed: int = 0) -> None:
        table = np.random.default_rng(99).standard_normal((512, vocab_size)) * 3.0
        own = np.random.default_rng(seed).standard_normal((512, vocab_size))
        self.table: FloatArray = (table + noise * own).astype(np.float32)
        self.name, self.vocab_size = name, vocab_size
        self.bytes, self.bits_per_weight = 1000, 4.5
        self.fed: list[int] = []
        self.rows_given: list[int] = []

    def start(self) -> None:
        self.fed = []

    def advance(self, token_ids: IntArray, *, outputs: int) -> FloatArray:
        self.fed.extend(token_ids.tolist())
        self.rows_given.append(outputs)
        positions = np.arange(len(self.fed) - outputs, len(self.fed))
        return self.table[(positions * 7 + np.array(self.fed)[positions] * 13) % 512]


def some_chunks(count: int = 6, context: int = 32) -> Chunks:
    return cut(np.random.default_rng(5).integers(0, 50, count * context + 3), context)


def softmax(logits: FloatArray) -> DoubleArray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    return exponentials / exponentials.sum()


def test_windows_are_cut_as_llama_perplexity_cuts_them() -> None:
    chunks = cut(range(100, 135), 8, bos_token_id=1)
    assert len(chunks) == 4
    assert chunks.token_ids[0].tolist() == [1, 101, 102, 103, 104, 105, 106, 107]
    assert chunks.token_ids[3].tolist() == [1, 125, 126, 127, 128, 129, 130, 131]
    assert (chunks.first_scored, chunks.scored_per_chunk, chunks.scored) == (4, 3, 12)
    assert chunks.targets(0).tolist() == [105, 106, 107]
    assert cut(range(35), 8).token_ids[1, 0] == 8


def test_a_limit_drops_windows_but_keeps_one() -> None:
    assert len(cut(range(100), 8, limit=40)) == 5
    assert len(cut(range(100), 8, limit=3)) == 1


@pytest.mark.parametrize(("tokens", "context"), [(7, 8), (100, 3), (2, 8)])
def test_too_short_a_text_or_context_is_refused(tokens: int, context: int) -> None:
    with pytest.raises(EvaluationError, match="token"):
        cut(range(tokens), context)


def test_scores_equal_the_definitions_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    # Small blocks, so that windows are cut at places that do not divide them.
    monkeypatch.setattr(divergence, "BLOCK_NUMBERS", 3 * 50)
    monkeypatch.setattr(compare, "FORWARD_NUMBERS", 7 * 50)
    base, other, chunks = TableModel("base", 0.0), TableModel("q", 0.3, seed=1), some_chunks()
    result = evaluate(base, [other], chunks)
    nll, base_nll, kld, dp, same = [], [], [], [], []
    for window in chunks:
        for position in range(16, 31):
            row = (position * 7 + int(window[position]) * 13) % 512
            p, q = softmax(base.table[row]), softmax(other.table[row])
            target = window[position + 1]
            base_nll.append(-math.log(p[target]))
            nll.append(-math.log(q[target]))
            kld.append(float(np.sum(p * np.log(p / q))))
            dp.append(q[target] - p[target])
            same.append(p.argmax() == q.argmax())
    scores = result.files[0].scores
    np.testing.assert_allclose(scores.nll, nll, rtol=ROUNDING)
    np.testing.assert_allclose(scores.kld, kld, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(scores.dp, dp, atol=ROUNDING)
    assert scores.same_top.tolist() == same
    assert result.base_ppl.value == pytest.approx(math.exp(np.mean(base_nll)), rel=ROUNDING)
    assert max(other.rows_given) == 7


def test_statistics_equal_llama_perplexity_s_formulas() -> None:
    result = evaluate(TableModel("base", 0.0), [TableModel("q", 0.5, seed=2)], some_chunks(20))
    found, scores = result.files[0].divergence, result.files[0].scores
    n, x = len(scores.nll), scores.nll
    # The same sums as its kl_divergence_result keeps; base nll recovered from p = q - dp.
    y = -np.log(np.exp(-x) - scores.dp)
    mean_x, mean_y = x.sum() / n, y.sum() / n
    err_x = math.sqrt(((x * x).sum() / n - mean_x**2) / (n - 1))
    err_y = math.sqrt(((y * y).sum() / n - mean_y**2) / (n - 1))
    cov = ((x * y).sum() / n - mean_x * mean_y) / (n - 1)
    close = {"rel": 1e-9}
    assert found.ppl.value == pytest.approx(math.exp(mean_x), **close)
    assert found.ppl.stderr == pytest.approx(math.exp(mean_x) * err_x, **close)
    assert found.correlation == pytest.approx(cov / (err_x * err_y), **close)
    assert found.log_ratio.value == pytest.approx(mean_x - mean_y, **close)
    assert found.log_ratio.stderr == pytest.approx(math.sqrt(err_x**2 + err_y**2 - 2 * cov), **close)
    assert found.ratio.stderr == pytest.approx(math.exp(mean_x - mean_y) * found.log_ratio.stderr, **close)
    px, py = math.exp(mean_x), math.exp(mean_y)
    expected = math.sqrt((px * err_x) ** 2 + (py * err_y) ** 2 - 2 * px * py * cov)
    assert found.difference.stderr == pytest.approx(expected, **close)
    square = scores.dp**2
    rms = math.sqrt(square.mean())
    rms_error = 0.5 / rms * math.sqrt(((square**2).mean() - square.mean() ** 2) / (n - 1))
    assert (found.rms_dp.value, found.rms_dp.stderr) == pytest.approx((rms, rms_error), **close)
    same = scores.same_top.mean()
    assert found.same_top.stderr == pytest.approx(math.sqrt(same * (1 - same) / (n - 1)), **close)
    ordered = sorted(scores.kld.tolist())
    place = 0.999 * (n - 1)
    low = int(place)
    expected = ordered[low] + (place - low) * (ordered[min(low + 1, n - 1)] - ordered[low])
    assert found.kld_percentiles[99.9] == pytest.approx(expected, **close)
    assert found.kld_percentiles[100.0] == ordered[-1]


def test_a_model_has_no_divergence_from_itself() -> None:
    result = evaluate(TableModel("base", 0.0), [TableModel("copy", 0.0)], some_chunks())
    found = result.files[0].divergence
    assert (found.mean_kld.value, found.kld_percentiles[100.0], found.rms_dp.value) == (0.0, 0.0, 0.0)
    assert (found.same_top.value, found.ratio.value, found.ratio.stderr) == (1.0, 1.0, 0.0)


def test_kl_is_never_negative_beyond_rounding() -> None:
    result = evaluate(TableModel("base", 0.0), [TableModel("q", 1e-6, seed=3)], some_chunks())
    assert result.files[0].scores.kld.min() > -1e-15


def test_a_token_that_cannot_follow_in_either_model_adds_nothing() -> None:
    logits = np.array([[0.0, 1.0, -np.inf]], np.float32)
    prediction = divergence.predict(logits, np.array([1], np.int32))
    scores = divergence.score(prediction, prediction)
    assert scores.kld.tolist() == [0.0]


def test_files_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(EvaluationError, match="q: vocabulary of 49 tokens, base has 50"):
        evaluate(TableModel("base", 0.0), [TableModel("q", 0.1, vocab_size=49)], some_chunks())
    with pytest.raises(EvaluationError, match="token 49 of the text is outside"):
        evaluate(TableModel("base", 0.0, vocab_size=40), [], cut([49] * 40, 8))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_name_file_and_chunk(bad: float) -> None:
    broken = TableModel("broken.gguf", 0.1)
    chunks = some_chunks()
    broken.table[(20 * 7 + int(chunks.token_ids[2, 20]) * 13) % 512, 3] = bad
    with pytest.raises(EvaluationError, match=r"broken\.gguf: chunk [123]: logits hold (NaN|infinity)"):
        evaluate(TableModel("base", 0.0), [broken], chunks)


def three_files() -> EvaluationResult:
    files = [TableModel(f"{noise}.gguf", noise, seed=7) for noise in (0.1, 0.2, 0.1)]
    return evaluate(TableModel("base", 0.0), files, some_chunks(), floor=Floor(TableModel("0.2.gguf", 0.3, seed=7), 1))


def test_json_holds_the_contract() -> None:
    content = json.loads(json.dumps(three_files().to_json(), allow_nan=False))
    assert [file["path"] for file in content["files"]] == ["0.1.gguf", "0.2.gguf", "0.1.gguf"]
    assert set(content["files"][0]) == {
        *("path", "bytes", "bits_per_weight", "tokens", "ppl", "ppl_stderr", "mean_kld", "mean_kld_stderr"),
        *("median_kld", "kld_99_9", "max_kld", "same_top", "rms_dp"),
    }
    assert content["files"][0]["tokens"] == 6 * 15
    assert 0.0 < content["files"][0]["same_top"] <= 1.0
    assert [(pair["a"], pair["b"]) for pair in content["paired"]] == [
        ("0.1.gguf", "0.2.gguf"),
        ("0.1.gguf", "0.1.gguf"),
        ("0.2.gguf", "0.1.gguf"),
    ]
    assert content["paired"][0]["kld_ratio"] < 1.0
    pair = content["paired"][1]
    assert (pair["kld_ratio"], pair["low"], pair["high"], pair["verdict"]) == (1.0, 1.0, 1.0, "no difference")
    assert content["base"]["ppl"] > 1.0


def test_text_has_llama_perplexity_s_labels_in_its_order() -> None:
    text = three_files().to_text()
    labels = (
        "====== Perplexity statistics ======",
        "Mean PPL(Q)                   : ",
        "Mean PPL(base)                : ",
        "Cor(ln(PPL(Q)), ln(PPL(base))): ",
        "Mean ln(PPL(Q)/PPL(base))     : ",
        "Mean PPL(Q)/PPL(base)         : ",
        "Mean PPL(Q)-PPL(base)         : ",
        "====== KL divergence statistics ======",
        "Mean    KLD: ",
        "Maximum KLD: ",
        "99.9%   KLD: ",
        "99.0%   KLD: ",
        "95.0%   KLD: ",
        "90.0%   KLD: ",
        "Median  KLD: ",
        "10.0%   KLD: ",
        " 5.0%   KLD: ",
        " 1.0%   KLD: ",
        " 0.1%   KLD: ",
        "Minimum KLD: ",
        "====== Token probability statistics ======",
        "Mean    Δp: ",
        "Maximum Δp: ",
        "99.9%   Δp: ",
        "75.0%   Δp: ",
        "Minimum Δp: ",
        "RMS Δp    : ",
        "Same top p: ",
    )
    place = 0
    for label in labels:
        place = text.index("\n" + label, place) + 1
    assert "engine floor: " in text
    assert "0.1.gguf: within 3 times the floor" in text


def test_text_says_that_one_chunk_has_no_interval() -> None:
    files = [TableModel(f"{noise}.gguf", noise, seed=7) for noise in (0.1, 0.2)]
    result = evaluate(TableModel("base", 0.0), files, some_chunks(1))
    text = result.to_text()
    assert "no interval: too few chunks to tell (1; give text or --tokens for 5)" in text
    assert "nan" not in text
    assert result.to_json()["paired"][0]["low"] is None  # type: ignore[index, call-overload]


def test_too_few_tokens_for_a_standard_error_are_said() -> None:
    result = evaluate(TableModel("base", 0.0), [TableModel("q", 0.1)], cut(list(range(16)), 16))
    assert "7 scored tokens are too few for a standard error" in result.to_text()


def test_the_floor_is_measured_against_the_same_file() -> None:
    files = [TableModel("a", 0.1, seed=1), TableModel("b", 0.2, seed=2)]
    again = evaluate(TableModel("base", 0.0), files, some_chunks(), floor=Floor(TableModel("b", 0.2, seed=2), 1))
    assert again.floor is not None
    assert again.floor.divergence.mean_kld.value == 0.0
    base = evaluate(TableModel("base", 0.0), files, some_chunks(), floor=Floor(TableModel("b", 0.2, seed=2)))
    assert base.floor is not None
    assert base.floor.divergence.mean_kld == base.files[1].divergence.mean_kld


def test_progress_is_told_after_every_window() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(TableModel("base", 0.0), [], some_chunks(3), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("noise", [1e-3, 0.1, 3.0])
def test_the_fast_divergence_equals_the_definition(noise: float) -> None:
    random = np.random.default_rng(3)
    logits = (4 * random.standard_normal((5, 3000))).astype(np.float32)
    other = (logits + noise * random.standard_normal(logits.shape) + 7).astype(np.float32)
    logits[1, 5] = other[1, 5] = -np.inf
    targets = np.zeros(5, dtype=np.int32)
    expected = score(predict(logits, targets), predict(other, targets)).kld
    found = row_divergences(log_probabilities(logits), other)
    # Rounding of float32 logits near 20, a thousandth of which survives the mean: 2e-6 * 1e-3 and some room.
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)
    assert row_divergences(log_probabilities(logits), logits).max() < 1e-7
    other[2, 9] = np.nan
    with pytest.raises(EvaluationError, match="NaN"):
        row_divergences(log_probabilities(logits), other)


def test_a_token_that_the_other_model_forbids_is_infinitely_far() -> None:
    logits = np.zeros((1, 4), dtype=np.float32)
    other = np.array([[0.0, 0.0, 0.0, -np.inf]], dtype=np.float32)
    assert np.isinf(row_divergences(log_probabilities(logits), other)).all()
