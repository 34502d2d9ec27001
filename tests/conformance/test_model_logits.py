# SPDX-License-Identifier: Apache-2.0
"""Evaluation of real files through the engine, on a tiny random model."""

from pathlib import Path

import numpy as np
import pytest
from tiny_llama import TEXT, write_tiny_llama

from lilliput import workflows
from lilliput.containers import open_model
from lilliput.errors import EvaluationError, RuntimeModelError, TextError
from lilliput.evaluation.model_logits import EvaluationOptions, ModelLogits, compare_models, tokenize


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, Path]:
    made = {name: folder.parent / f"{name}.gguf" for name in ("F32", "Q8_0", "Q4_0")}
    for name, path in made.items():
        workflows.quantize(folder, name, path, options=workflows.QuantizeOptions(method="round_to_nearest"))
    return made


def test_a_file_of_the_same_numbers_has_no_divergence(folder: Path, files: dict[str, Path]) -> None:
    with_base = ("base", open_model(folder))
    result = compare_models(with_base, [("copy", open_model(files["F32"]))], TEXT * 4, EvaluationOptions(context=64))
    assert result.files[0].divergence.mean_kld.value == 0.0
    assert result.files[0].divergence.same_top.value == 1.0


def test_fewer_bits_diverge_more_and_the_floor_is_below_both(folder: Path, files: dict[str, Path]) -> None:
    named = [(name, open_model(files[name])) for name in ("Q8_0", "Q4_0")]
    result = compare_models(("base", open_model(folder)), named, TEXT * 6, EvaluationOptions(context=64))
    q8_0, q4_0 = (file.divergence.mean_kld.value for file in result.files)
    assert 0.0 < q8_0 < q4_0
    assert [file.bytes for file in result.files] == [files[name].stat().st_size for name in ("Q8_0", "Q4_0")]
    assert result.files[0].bits_per_weight < 8.6
    assert result.floor is not None
    assert result.floor.divergence.mean_kld.value < q4_0


def test_windows_and_blocks_give_the_logits_of_one_pass(folder: Path) -> None:
    source = open_model(folder)
    options = EvaluationOptions(context=64, threads=1)
    chunks = tokenize(source, TEXT * 4, options)
    model = ModelLogits(source, "tiny", options)
    for window in chunks.token_ids[:2]:
        model.start()
        whole = model.advance(window, outputs=64)
        model.start()
        parts = [model.advance(window[start : start + 20], outputs=min(20, 64 - start)) for start in (0, 20, 40, 60)]
        # Batches of other sizes may sum in another order: float32 rounding of sums over 512 terms.
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)


def test_short_text_and_long_context_are_told(folder: Path, tmp_path: Path) -> None:
    base = ("base", open_model(folder))
    with pytest.raises(EvaluationError, match="less than one context"):
        compare_models(base, [], "Bread.", EvaluationOptions(context=64))
    with pytest.raises(RuntimeModelError, match="longer than the model's"):
        compare_models(base, [], TEXT * 100, EvaluationOptions(context=1024))
    with pytest.raises(TextError, match="no such file"):
        workflows.evaluate(folder, [], tmp_path / "none.txt")
