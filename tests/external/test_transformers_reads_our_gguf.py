# SPDX-License-Identifier: Apache-2.0
"""transformers' own reader of GGUF takes our files; quick enough for every run of the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lilliput.checkpoints.huggingface import HuggingFaceModel
from lilliput.containers.container import Contents
from lilliput.containers.gguf import Gguf
from lilliput.containers.publish import publish


@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_back_the_checkpoint_from_our_gguf(stories_folder: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = HuggingFaceModel(stories_folder)
    contents = Contents(
        source.architecture,
        source.config,
        source.vocabulary(),
        source.provenance,
        tuple(source.headers.values()),
        "F32",
    )
    publish(Gguf(), contents, (source.tensor(name) for name in source.headers), tmp_path / "stories.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="stories.gguf", dtype=torch.float32)
    original = transformers.AutoModelForCausalLM.from_pretrained(stories_folder, dtype=torch.float32)
    weights = dict(original.named_parameters())
    for name, found in theirs.named_parameters():
        assert np.array_equal(found.detach().numpy(), weights[name].detach().numpy()), name
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="stories.gguf")
    text = "Once upon a time, there was a little girl"
    expected = transformers.AutoTokenizer.from_pretrained(stories_folder)(text).input_ids
    assert tokenizer(text).input_ids == expected
