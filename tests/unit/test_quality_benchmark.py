# SPDX-License-Identifier: Apache-2.0
"""benchmarks/quality.py: what it cuts, keeps and refuses. The measurements themselves need llama.cpp."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import quality_model
import quality_results
from peers.llama_cpp import Stored
from quality_results import Measured, result_line

from lilliput.evaluation.paired import paired_ratio


def line(method: str, mean_kld: float, *, kind: str = "Q4_K") -> dict[str, object]:
    about = Measured("m", "in-domain", "t", kind, method, is_pure=True)
    ours, theirs = np.full((6, 1), mean_kld) * np.arange(1, 7)[:, None], np.ones((6, 1)) * np.arange(1, 7)[:, None]
    return result_line(about, paired_ratio("a", "b", ours, theirs), mean_kld, 1.0, bits_per_weight=4.5)


def test_an_excerpt_takes_pieces_of_the_whole_text_from_the_starts_of_lines(tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    source.write_text("".join(f"line {number:06d}\n" for number in range(20_000)), encoding="utf-8")
    found = quality_model.excerpt(source, tmp_path / "out.txt", 40_000).read_text(encoding="utf-8").split("\n")
    numbers = [int(text.split()[1]) for text in found if len(text) == len("line 000000")]
    assert len("\n".join(found)) <= 40_000
    assert numbers[0] < 5
    assert numbers[-1] > 16_000, "the last of five pieces is not in the last fifth"


def test_a_short_text_is_its_own_excerpt(tmp_path: Path) -> None:
    (tmp_path / "source.txt").write_text("first\nlast", encoding="utf-8")
    assert quality_model.excerpt(tmp_path / "source.txt", tmp_path / "out.txt", 100).read_text() == "first\nlast"


def test_formats_are_pure_and_presets_are_mixtures_even_of_one_name() -> None:
    pure, mixture = quality_model.parse_targets("q2_k", "Q2_K")
    assert (pure.type, pure.is_pure) == ("Q2_K", True)
    assert (mixture.type, mixture.is_pure) == ("Q2_K", False)
    assert pure.label != mixture.label


def test_a_type_that_llama_quantize_cannot_give_to_every_tensor_is_refused_by_name() -> None:
    with pytest.raises(SystemExit, match=r"Q9_K unknown; known: .*Q4_K"):
        quality_model.parse_targets("Q4_K,Q9_K", "")


def test_files_of_different_types_are_never_compared() -> None:
    ours = {"a": Stored("q4_k", 144, 256), "b": Stored("q4_k", 144, 256)}
    theirs = {"a": Stored("q4_k", 144, 256), "b": Stored("q6_k", 210, 256)}
    quality_model.check_types("Q4_K", ours, dict(ours))
    with pytest.raises(SystemExit, match=r"1 tensors differ .*first: b, ours .*q4_k.*, theirs .*q6_k"):
        quality_model.check_types("Q4_K", ours, theirs)
    with pytest.raises(SystemExit, match="first: b"):
        quality_model.check_types("Q4_K", ours, {"a": ours["a"]})


def test_of_lines_that_measure_the_same_thing_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    quality_results.keep([line("x", 0.9), line("y", 0.8), line("x", 0.5)], path)
    assert [(found["method"], found["mean_kld"]) for found in quality_results.read(path)] == [("x", 0.5), ("y", 0.8)]


def test_a_number_that_is_none_is_null_in_the_results() -> None:
    about = Measured("m", "in-domain", "t", "Q4_K", "x", is_pure=True)
    pair = paired_ratio("a", "b", np.ones((2, 1)), np.full((2, 1), 2.0))
    found = json.loads(json.dumps(result_line(about, pair, 1.0, 2.0), allow_nan=False))
    assert (found["ratio"], found["low"], found["high"]) == (0.5, None, None)


def test_the_plot_is_drawn_from_the_lines_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from quality_plot import draw

    lines = [
        line(method, mean_kld, kind=kind)
        for method, mean_kld in (("searched_scales", 0.9), ("an_unknown_method", 0.5), ("round_to_nearest", 2.0))
        for kind in ("Q4_K", "IQ4_NL")
    ]
    draw(lines, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_a_plot_without_lines_says_what_to_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from quality_plot import draw

    with pytest.raises(SystemExit, match=r"quality\.py model"):
        draw([], tmp_path / "plot.png")
