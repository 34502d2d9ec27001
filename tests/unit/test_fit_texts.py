# SPDX-License-Identifier: Apache-2.0
"""The text of a search: what calibrates, what chooses and what measures never overlap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_llama import TEXT, write_tiny_llama

from lilliput.calibration.data import calibration_chunks
from lilliput.containers import open_model
from lilliput.errors import CalibrationError
from lilliput.fitting import FitOptions
from lilliput.fitting.texts import cut_texts


def test_the_parts_are_the_text_in_order_and_do_not_overlap(tmp_path: Path) -> None:
    source = open_model(write_tiny_llama(tmp_path / "model", layers=1))
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 150)
    whole = calibration_chunks(source.vocabulary(), [text], chunk_size=512)
    parts = cut_texts(source, (text,), FitOptions())
    found = np.concatenate([parts.calibration, parts.selection.token_ids, parts.held_out.token_ids])
    assert np.array_equal(found, whole)
    assert len(parts.selection) == len(whole) // 4
    assert len(parts.held_out) == len(whole) // 8


def test_texts_of_ones_own_replace_parts_and_tokens_limit_only_calibration(tmp_path: Path) -> None:
    source = open_model(write_tiny_llama(tmp_path / "model", layers=1))
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    text.write_text(TEXT * 150)
    other.write_text(TEXT[::-1] * 60)
    all_of_it = cut_texts(source, (text,), FitOptions())
    parts = cut_texts(source, (text,), FitOptions(tokens=1024, selection=other))
    assert parts.calibration.shape == (2, 512)
    assert np.array_equal(parts.calibration, all_of_it.calibration[:2])
    assert not np.array_equal(parts.selection.token_ids[0], all_of_it.selection.token_ids[0])


def test_too_little_text_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    source = open_model(write_tiny_llama(tmp_path / "model", layers=1))
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 3)
    with pytest.raises(CalibrationError, match="at least 4096"):
        cut_texts(source, (text,), FitOptions())
