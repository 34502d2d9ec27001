# SPDX-License-Identifier: Apache-2.0
import gzip
import json
from pathlib import Path

import pytest

from lilliput.errors import TextError
from lilliput.text.documents import read_documents, read_text


def test_plain_text_is_one_document_and_loses_one_final_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\n\ntwo\n\n")
    assert read_documents(path) == ["one\r\n\ntwo\n\n"]
    assert read_text(path) == "one\r\n\ntwo\n"


def test_json_lines_are_joined_by_a_blank_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ("one", "two\u2028three")) + "\n\n")
    assert read_documents(path) == ["one", "two\u2028three"]
    assert read_text(path) == "one\n\ntwo\u2028three"


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt"])
def test_gzip_is_recognised_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress("grüße".encode()))
    assert read_text(path) == "grüße"


def test_gzipped_json_lines_are_read_as_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n{"text": "two"}\n', mtime=0))
    assert read_documents(path) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n ", "holds no text"),
        ("a.jsonl", b'{"text": ""}\n', "holds no text"),
        ("a.jsonl", b'{"text": "x"}\n{"messages": []}\n', "line 2: expected a string field 'text', found messages"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: expected a string field 'text'"),
        ("a.jsonl", b'["x"]\n', "line 1: expected a JSON object, found list"),
        ("a.jsonl", b'{"text": \n', "line 1: not JSON"),
        ("a.txt", b"caf\xe9 x", "byte 3 is not UTF-8"),
        ("a.txt", gzip.compress(b"hello world", mtime=0)[:-4], "cannot be read"),
    ],
)
def test_bad_text_is_refused_with_one_clear_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TextError, match=message) as caught:
        read_documents(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"nowhere\.txt: no such file"):
        read_text(tmp_path / "nowhere.txt")
