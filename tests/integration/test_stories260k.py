# SPDX-License-Identifier: Apache-2.0
"""stories260K, a real trained model: the published greedy text through our files and our engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lilliput import workflows
from lilliput.containers import open_model
from lilliput.generating import GenerateOptions, generate
from lilliput.runtime.session import EngineOptions, Session
from lilliput.runtime.speed import SpeedTest, measure_speed


@pytest.fixture(scope="module")
def published_text(shared_data: Path) -> str:
    """What its card prints for greedy sampling from BOS."""
    card = (shared_data / "stories260K" / "stories260K.md").read_text()
    return card.split("-t 0.0\n")[1].split("\n```")[0]


@pytest.mark.parametrize("format_name", ["F32", "F16"])
def test_greedy_text_is_exactly_the_published_one(
    format_name: str, stories_folder: Path, published_text: str, tmp_path: Path
) -> None:
    file = tmp_path / f"stories260K-{format_name}.gguf"
    workflows.quantize(stories_folder, format_name, file)
    result = generate(file, "", options=GenerateOptions(max_tokens=256))
    assert len(result.token_ids) == 256
    assert result.text.strip() == published_text.strip()


def test_a_prompt_from_the_text_continues_as_the_text_does(stories_folder: Path, published_text: str) -> None:
    prompt = "Once upon a time, there was a little girl"
    result = generate(stories_folder, prompt, options=GenerateOptions(max_tokens=40))
    assert published_text.startswith(prompt + result.text)


def test_a_file_reads_as_before_once_its_pages_are_given_back(stories_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "stories260K-Q8_0.gguf"
    workflows.quantize(stories_folder, "Q8_0", file)
    source = open_model(file)
    before = {name: source.tensor(name).planes["blocks"].copy() for name in source.headers}
    session = Session(source, EngineOptions(threads=2))
    expected = session.forward([5, 9, 100], "all")
    assert session.repacked_bytes > 0
    for name, blocks in before.items():
        np.testing.assert_array_equal(source.tensor(name).planes["blocks"], blocks)
    np.testing.assert_array_equal(Session(source, EngineOptions(threads=2)).forward([5, 9, 100], "all"), expected)


def test_memory_stays_within_file_cache_and_300_megabytes(stories_folder: Path) -> None:
    source = open_model(stories_folder)
    config = source.config
    cache = 2 * 2 * config.layers * config.kv_heads * 16 * 512  # float16 keys and values; heads of 8 are padded to 16
    file = (stories_folder / "model.safetensors").stat().st_size
    row = measure_speed(str(stories_folder), [SpeedTest("prefill", 512, 0, 2, 1)])[0]
    assert row.peak_rss_bytes <= file + cache + 300_000_000
