# SPDX-License-Identifier: Apache-2.0
import gzip
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from lilliput.calibration.builtin_mix import FILE_NAME, builtin_documents
from lilliput.calibration.data import calibration_chunks
from lilliput.calibration.document import Chat, document_from_record
from lilliput.errors import CalibrationError
from lilliput.text.byte_level_bpe import byte_alphabet
from lilliput.text.vocabulary import TokenType, Vocabulary

BOS = 256
# One token a byte, in the order of the printable alphabet, and a BOS.
LETTERS = sorted(byte_alphabet().items(), key=lambda item: item[1])
BYTES = Vocabulary(
    model="gpt2",
    pre="gpt-2",
    tokens=(*(letter for letter, _ in LETTERS), "<s>"),
    token_types=(*(int(TokenType.NORMAL) for _ in LETTERS), int(TokenType.CONTROL)),
    merges=(),
    bos_token_id=BOS,
    add_bos_token=True,
)


def spelled(chunks: np.ndarray) -> list[str]:
    return [bytes(int(i) for i in chunk if i != BOS).decode("utf-8", "replace") for chunk in chunks]


def test_every_chunk_begins_with_bos_in_place_of_its_first_token(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcdefghijk")
    chunks = calibration_chunks(BYTES, [path], chunk_size=4)
    # The stream is BOS abc, defg, hijk: as llama-imatrix has it, a chunk's own first token gives way to BOS.
    assert chunks[:, 0].tolist() == [BOS] * 3
    assert spelled(chunks) == ["abc", "efg", "ijk"]


def test_without_bos_the_text_is_cut_as_it_is_and_the_remainder_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcdefghijk")
    assert spelled(calibration_chunks(replace(BYTES, add_bos_token=False), [path], chunk_size=4)) == ["abcd", "efgh"]


def test_text_shorter_than_a_chunk_is_one_short_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc")
    assert calibration_chunks(BYTES, [path], chunk_size=512).shape == (1, 4)


def test_a_token_limit_cuts_the_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ab" * 100)
    assert calibration_chunks(BYTES, [path], chunk_size=4, tokens=9).shape == (2, 4)
    whole = calibration_chunks(BYTES, [path], chunk_size=4)
    np.testing.assert_array_equal(calibration_chunks(BYTES, [path], chunk_size=4, tokens=8), whole[:2])


def test_files_of_every_kind_are_joined_by_blank_lines_and_chats_keep_their_place(tmp_path: Path) -> None:
    plain, lines, chat = tmp_path / "a.txt", tmp_path / "b.jsonl.gz", tmp_path / "c.jsonl"
    plain.write_text("one\n")
    lines.write_bytes(gzip.compress(b'{"text": "two"}\n\n{"text": "three"}\n'))
    chat.write_text(
        json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
        + "\n"
        + json.dumps({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]})
    )
    vocabulary = replace(BYTES, add_bos_token=False)
    (text,) = spelled(calibration_chunks(vocabulary, [plain, lines, chat], chunk_size=512))
    assert text == "one\n\ntwo\n\nthree\n\nq\n\na\n\nQ\n\nA\n\n"


def test_control_tokens_spelled_in_a_text_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("<s>x")
    (chunk,) = calibration_chunks(BYTES, [path])
    assert (chunk == BOS).sum() == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", "", "empty.txt"),
        ("blank.txt", " \n", "blank.txt"),
        ("none.jsonl", '{"text": ""}', "holds no text"),
        ("odd.jsonl", '{"prompt": "x"}', "line 1: found prompt; expected 'text'"),
        ("roles.jsonl", '{"messages": [{"content": "x"}]}', "a message needs 'role'"),
        ("list.jsonl", "[1]", "line 1"),
    ],
)
def test_unusable_text_is_refused_with_the_file_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(CalibrationError, match=said):
        calibration_chunks(BYTES, [path])


def test_a_missing_file_and_a_chunk_size_of_zero_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no such file"):
        calibration_chunks(BYTES, [tmp_path / "none.txt"])
    with pytest.raises(CalibrationError, match="at least 1"):
        calibration_chunks(BYTES, [], chunk_size=0)


def test_a_chat_keeps_its_tools_and_unknown_speakers() -> None:
    record: dict[str, object] = {
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": []}],
        "tools": [{"type": "function"}],
    }
    chat = document_from_record(record, "here")
    assert isinstance(chat, Chat)
    assert chat.tools == ({"type": "function"},)
    assert chat.messages[1]["content"] == ""


def test_the_built_in_mix_is_varied_and_mixed_from_its_beginning() -> None:
    lines = files("lilliput.calibration").joinpath(FILE_NAME).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    categories = {"prose", "code", "chat", "tool_calls", "language", "reasoning", "markup"}
    assert {record["category"] for record in records} == categories
    assert len({record["language"] for record in records if record["category"] == "language"}) >= 8
    assert len({record["category"] for record in records[: len(records) // 4]}) == len(categories)
    assert len(builtin_documents()) == len(records) == len(set(lines))
    assert 60_000 < sum(len(line.encode()) for line in lines) < 100_000
    text = " ".join(str(record.get("text", "")) for record in records)
    runs = [text[start : start + 60] for start in range(0, len(text) - 60, 20)]
    assert len(set(runs)) == len(runs)


def test_the_built_in_mix_gives_chunks_without_files() -> None:
    chunks = calibration_chunks(BYTES, [], chunk_size=256, tokens=4096)
    assert chunks.shape == (16, 256)


TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
STRICT = "{{ raise_exception('no system message') }}"


def test_chats_go_through_the_models_own_template_and_its_control_tokens_are_tokens(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "q"}]}))
    vocabulary = replace(BYTES, add_bos_token=False, chat_template=TEMPLATE)
    (chunk,) = calibration_chunks(vocabulary, [path])
    assert chunk[0] == BOS
    assert spelled(chunk[None, 1:]) == ["[user]q"]


def test_a_chat_that_the_template_refuses_is_named_and_the_built_in_mix_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "system", "content": "q"}]}))
    vocabulary = replace(BYTES, chat_template=STRICT)
    with pytest.raises(CalibrationError, match=r"c\.jsonl: line 1: .*no system message"):
        calibration_chunks(vocabulary, [path])
    np.testing.assert_array_equal(calibration_chunks(vocabulary, []), calibration_chunks(BYTES, []))
