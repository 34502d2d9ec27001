# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_tokenizers import byte_level, named, sentencepiece_like, wordpiece, write_folder
from tokenizers import Tokenizer as RustTokenizer

from lilliput.errors import TokenizerError
from lilliput.text import byte_level_bpe
from lilliput.text.huggingface import load_vocabulary
from lilliput.text.literal_search import any_of
from lilliput.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer, pre_tokenizer
from lilliput.text.probes import PROBES
from lilliput.text.tokenizer import StreamDecoder, Tokenizer
from lilliput.text.vocabulary import TokenType, Vocabulary


def loaded(folder: Path, huggingface: RustTokenizer, **config: object) -> Tokenizer:
    return Tokenizer(load_vocabulary(write_folder(folder, huggingface, **config)))


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bytes")
    return loaded(folder, byte_level(named("qwen2")), bos_token="<|begin|>", eos_token="<|end|>")


@pytest.fixture(scope="module")
def pieces_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("pieces")
    return loaded(folder, sentencepiece_like(), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(params=["bytes_tokenizer", "pieces_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("text", PROBES)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["", "x", "\U0001f999\u00e9\u6211 x"])
def test_streamed_text_equals_decoded_text_and_never_splits_a_character(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    stream = StreamDecoder(tokenizer)
    parts = [stream.feed(token_id) for token_id in ids]
    assert "".join(parts) == text
    assert stream.finish() == ""


def test_a_character_cut_off_at_the_end_becomes_a_replacement_character(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode("\U0001f999", add_special=False)
    assert len(ids) > 1
    stream = StreamDecoder(bytes_tokenizer)
    assert [stream.feed(token_id) for token_id in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.finish() == "\ufffd" == bytes_tokenizer.decode(ids[:-1])


def test_text_that_continues_other_text_keeps_its_first_space(pieces_tokenizer: Tokenizer) -> None:
    ids = pieces_tokenizer.encode("Hello", add_special=False)
    assert pieces_tokenizer.decode(ids) == "Hello"
    assert pieces_tokenizer.decode(ids, continues=True) == " Hello"


def test_control_tokens_in_text_are_text_unless_asked_for(bytes_tokenizer: Tokenizer) -> None:
    end = bytes_tokenizer.eos_id
    assert end is not None
    forged = "good <|end|> bye"
    assert end not in bytes_tokenizer.encode(forged)
    assert bytes_tokenizer.decode(bytes_tokenizer.encode(forged)) == forged
    assert end in bytes_tokenizer.encode(forged, parse_special=True)


def test_user_defined_tokens_are_found_either_way(bytes_tokenizer: Tokenizer) -> None:
    call = bytes_tokenizer.vocabulary.tokens.index("<tool_call>")
    for parse_special in (False, True):
        assert call in bytes_tokenizer.encode("a<tool_call>b", parse_special=parse_special)


def test_bos_is_added_only_when_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == [tokenizer.bos_id]
    assert tokenizer.encode("", add_special=False) == []


def test_skipping_special_tokens_is_a_choice(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode("hi<|end|>", parse_special=True)
    assert bytes_tokenizer.decode(ids) == "hi"
    assert bytes_tokenizer.decode(ids, skip_special=False) == "<|begin|>hi<|end|>"


def test_half_a_surrogate_pair_becomes_a_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_ids_outside_the_vocabulary_are_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=f"token id {len(tokenizer)} is outside"):
        tokenizer.decode([len(tokenizer)])


@pytest.mark.parametrize("text", ["a" * 60_000, " " * 60_000, "\n" * 60_000, "\u6211" * 60_000, "ab1. " * 12_000])
def test_long_inputs_without_places_to_cut_are_encoded(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("rules", [rules for rules in PRE_TOKENIZERS if rules.cuts_at_newlines], ids=lambda r: r.name)
def test_long_text_is_cut_only_where_no_piece_spans(
    rules: PreTokenizer, bytes_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_level_bpe, "SHORT_TEXT", 0)
    tokenizer = Tokenizer(replace(bytes_tokenizer.vocabulary, pre=rules.name))
    text = "\nThen ".join(PROBES) + "\nEnd\nx" * 3
    whole = tokenizer.encode(text)
    monkeypatch.setattr(byte_level_bpe, "WINDOW", 40)
    assert tokenizer.encode(text) == whole


@pytest.mark.parametrize("rules", PRE_TOKENIZERS, ids=lambda rules: rules.name)
def test_the_first_characters_become_the_tokens_that_the_library_makes_of_them(
    rules: PreTokenizer, bytes_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = replace(bytes_tokenizer.vocabulary, pre=rules.name)
    short = Tokenizer(vocabulary)
    monkeypatch.setattr(byte_level_bpe, "SHORT_TEXT", 0)
    library = Tokenizer(vocabulary)
    for text in (*PROBES, "aaa" * 99, "ab" * 99):
        assert short.encode(text) == library.encode(text)


def test_bytes_without_a_token_are_left_out_before_and_after_the_library_takes_over(
    bytes_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = bytes_tokenizer.vocabulary
    types = tuple(
        int(TokenType.UNUSED) if token == "b" else kind
        for token, kind in zip(vocabulary.tokens, vocabulary.token_types, strict=True)
    )
    without = replace(vocabulary, token_types=types)
    short = Tokenizer(without)
    monkeypatch.setattr(byte_level_bpe, "SHORT_TEXT", 0)
    assert short.encode("abba cab") == Tokenizer(without).encode("abba cab") == short.encode("aa ca")


def test_merges_of_pruned_tokens_are_left_out(bytes_tokenizer: Tokenizer) -> None:
    vocabulary = bytes_tokenizer.vocabulary
    kept = tuple("[GONE]" if index == 300 else token for index, token in enumerate(vocabulary.tokens))
    assert Tokenizer(replace(vocabulary, tokens=kept)).decode(bytes_tokenizer.encode("plain ascii")) == "plain ascii"


def test_unknown_pre_tokenizers_are_named_with_what_still_works(bytes_tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"'nonsense' is not known here; known are .*llama-bpe.*still works"):
        Tokenizer(replace(bytes_tokenizer.vocabulary, pre="nonsense"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_types": (1,)}, "1 entries for"),
        ({"scores": (1.0,)}, "scores: 1 entries for"),
        ({"eos_token_id": 10**6}, "eos_token_id: 1000000 is outside"),
        ({"merges": ("ab",)}, "'ab' is not two tokens"),
        ({"model": "rwkv"}, "'rwkv' cannot be rebuilt here"),
    ],
)
def test_contradicting_fields_are_named(bytes_tokenizer: Tokenizer, changes: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(replace(bytes_tokenizer.vocabulary, **changes))  # type: ignore[arg-type]


def test_wordpiece_equals_the_original(tmp_path: Path) -> None:
    huggingface = wordpiece()
    tokenizer = loaded(tmp_path, huggingface, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    for text in PROBES:
        assert tokenizer.encode(text) == huggingface.encode(text).ids, repr(text)
    assert tokenizer.decode(tokenizer.encode("Hello world")) == "hello world"


def test_every_known_end_of_reply_ends_generation() -> None:
    tokens = ("a", "<s>", "</s>", "<|eot_id|>", "<|end|>", "<|return|>", "<|call|>", "<|im_end|>")
    types = (TokenType.NORMAL, *(TokenType.CONTROL,) * 6, TokenType.NORMAL)
    vocabulary = Vocabulary("gpt2", "gpt-2", tokens, types, eos_token_id=0, bos_token_id=1)
    tokenizer = Tokenizer(vocabulary)
    # `<|end|>` closes a message where `<|return|>` and `<|call|>` end the reply; an ordinary token ends nothing.
    assert tokenizer.end_of_generation_ids == {0, 2, 3, 5, 6}
    assert tokenizer.eot_id == 3


def test_of_several_literals_the_longest_at_the_first_place_wins() -> None:
    pattern = any_of(["ab", "abc", "b", "  ", "   ", "a+"])
    assert pattern is not None
    assert pattern.findall("xabcab  a+     b") == ["abc", "ab", "  ", "a+", "   ", "  ", "b"]
    assert any_of([]) is None


def test_scores_decide_before_position() -> None:
    tokens = ("<unk>", "<s>", "</s>", "a", "b", "c", "ab", "bc")
    types = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *(TokenType.NORMAL,) * 5)
    scores = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -2.0, -1.0)
    vocabulary = Vocabulary("llama", "default", tokens, types, scores, unknown_token_id=0, add_space_prefix=False)
    assert Tokenizer(vocabulary).encode("abc") == [3, 7]
    assert Tokenizer(replace(vocabulary, scores=(0.0,) * 8)).encode("abc") == [6, 5]


def test_characters_without_bytes_or_token_become_unknown() -> None:
    tokens, types = ("<unk>", "a"), (TokenType.UNKNOWN, TokenType.NORMAL)
    vocabulary = Vocabulary("llama", "default", tokens, types, (0.0, 0.0), unknown_token_id=0, add_space_prefix=False)
    assert Tokenizer(vocabulary).encode("a\u00e9a") == [1, 0, 1]


def test_every_alias_leads_to_its_rules() -> None:
    assert pre_tokenizer("llama-v3").name == "llama-bpe"
    assert pre_tokenizer("").name == "default"


@pytest.mark.parametrize(("pre", "ids"), [("llama-bpe", [3]), ("dbrx", [2, 2])])
def test_a_piece_that_is_a_token_is_taken_whole_where_the_rules_say_so(pre: str, ids: list[int]) -> None:
    tokens, types = ("a", "b", "ab", "abab"), (TokenType.NORMAL,) * 4
    vocabulary = Vocabulary("gpt2", pre, tokens, types, merges=("a b",))
    assert Tokenizer(vocabulary).encode("abab") == ids


@pytest.mark.parametrize("model", ["gpt2", "llama", "bert"])
def test_tokens_whose_bytes_are_no_text_are_never_chosen_but_decode(model: str) -> None:
    tokens = ("[UNK]", "a\udcff", "\u2581a" if model != "gpt2" else "a", "<\udc80>")
    types = (TokenType.UNKNOWN, TokenType.NORMAL, TokenType.NORMAL, TokenType.CONTROL)
    base = Vocabulary("llama", "default", tokens, types, (0.0,) * 4, unknown_token_id=0)
    tokenizer = Tokenizer(replace(base, model=model))  # type: ignore[arg-type]
    assert 2 in tokenizer.encode("a", add_special=False, parse_special=True)
    assert tokenizer.decode_bytes([2, 1, 3], skip_special=False).endswith(b"a\xff<\x80>")
