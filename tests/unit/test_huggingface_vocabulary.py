# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer

from lilliput.text.huggingface import load_vocabulary
from lilliput.text.probes import PROBES
from lilliput.text.tokenizer import Tokenizer


def test_stories_tokenizer_gives_the_ids_of_its_tokenizer_json(stories_folder: Path) -> None:
    tokenizer = Tokenizer(load_vocabulary(stories_folder))
    huggingface = RustTokenizer.from_file(str(stories_folder / "tokenizer.json"))
    for text in PROBES:
        assert tokenizer.encode(text, parse_special=True) == huggingface.encode(text).ids, repr(text)
