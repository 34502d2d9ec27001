# SPDX-License-Identifier: Apache-2.0
"""The built-in calibration mix: a little of everything a general model is asked for, written for this project.

`builtin_mix.jsonl` holds one object a line: `category`, `language`, and `text` or `messages` (with `tools`).
Categories take turns, so that any beginning of it is mixed too.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from lilliput.calibration.document import Document, document_from_record
from lilliput.text.documents import SEPARATOR

FILE_NAME = "builtin_mix.jsonl"
# How statistics name this mix among their datasets.
BUILT_IN_DATASET = "built-in mix"


@cache
def builtin_documents() -> tuple[Document, ...]:
    """All documents, in order."""
    lines = files("lilliput.calibration").joinpath(FILE_NAME).read_text(encoding="utf-8").splitlines()
    return tuple(
        document_from_record(json.loads(line), f"{FILE_NAME}: line {number}", is_builtin=True)
        for number, line in enumerate(lines, start=1)
    )


def builtin_texts() -> tuple[str, ...]:
    """The documents as plain text, a chat as its messages: to measure on, where no template matters."""
    return tuple(
        document if isinstance(document, str) else SEPARATOR.join(str(turn["content"]) for turn in document.messages)
        for document in builtin_documents()
    )
