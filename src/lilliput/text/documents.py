# SPDX-License-Identifier: Apache-2.0
"""Text files as users have them: plain text, or JSON Lines with a `text` field, either of them gzipped.

Calibration and evaluation read through here, so that one file means the same text to both.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from lilliput.errors import TextError

GZIP_MAGIC = b"\x1f\x8b"
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson", ".json")
# What stands between two documents that become one text.
SEPARATOR = "\n\n"


def read_documents(path: Path) -> list[str]:
    """The documents of a file: one for plain text, one per line for JSON Lines.

    Raises TextError for a file that is missing, empty, not UTF-8, or has a line without a `text` string.
    """
    if not is_json_lines(path):
        documents = [_read_unicode(path)]
    else:
        documents = []
        for number, record in read_json_lines(path):
            text = record.get("text")
            if not isinstance(text, str):
                known = ", ".join(sorted(record)) or "no field"
                raise TextError(f"{path}: line {number}: expected a string field 'text', found {known}")
            documents.append(text)
    if not any(document.strip() for document in documents):
        raise TextError(f"{path}: holds no text")
    return documents


def read_text(path: Path) -> str:
    """All documents joined by a blank line; one final newline is dropped, as llama.cpp's tools do.

    Raises TextError as `read_documents` does.
    """
    return SEPARATOR.join(read_documents(path)).removesuffix("\n")


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Line number (from 1) and object of every line that is not blank.

    Raises TextError with the line for what is not a JSON object.
    """
    for number, line in enumerate(_read_unicode(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TextError(f"{path}: line {number}: not JSON ({error}); expected one object per line") from error
        if not isinstance(record, dict):
            raise TextError(f"{path}: line {number}: expected a JSON object, found {type(record).__name__}")
        yield number, record


def is_json_lines(path: Path) -> bool:
    """Whether the name, without `.gz`, says JSON Lines."""
    name = path.name.lower().removesuffix(".gz")
    return name.endswith(JSON_LINES_SUFFIXES)


def _read_unicode(path: Path) -> str:
    """Whole content, unzipped where the first bytes say gzip; newlines stay as they are."""
    try:
        data = path.read_bytes()
        if data.startswith(GZIP_MAGIC):
            data = gzip.decompress(data)
    except FileNotFoundError as error:
        raise TextError(f"{path}: no such file; give a text or JSONL file, gzipped or not") from error
    except (OSError, EOFError, zlib.error) as error:
        raise TextError(f"{path}: cannot be read: {error}") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8 first") from error
