# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from sentencepiece_files import sentencepiece_bytes
from tiny_tokenizers import LLAMA3, byte_level, named, sentencepiece_like, splitting, unigram, write_folder
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from lilliput.errors import TokenizerError
from lilliput.text.byte_level_bpe import build_core
from lilliput.text.gguf_metadata import metadata_from_vocabulary, vocabulary_from_metadata
from lilliput.text.huggingface import load_vocabulary, padded
from lilliput.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer, pre_tokenizer
from lilliput.text.probes import PROBES
from lilliput.text.recognition import recognize
from lilliput.text.sentencepiece_model import parse_sentencepiece_model
from lilliput.text.tokenizer import Tokenizer
from lilliput.text.tokenizer_report import check_vocabulary
from lilliput.text.vocabulary import TokenType, Vocabulary


def test_stories_tokenizer_gives_the_ids_of_its_tokenizer_json(stories_folder: Path) -> None:
    tokenizer = Tokenizer(load_vocabulary(stories_folder))
    huggingface = RustTokenizer.from_file(str(stories_folder / "tokenizer.json"))
    for text in PROBES:
        assert tokenizer.encode(text, parse_special=True) == huggingface.encode(text).ids, repr(text)


def test_gpt2_is_read_from_vocab_and_merges(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "gpt2-tokenizer"
    (tmp_path / "vocab.json").write_bytes((source / "gpt2_vocab.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((source / "gpt2_merges.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}')
    vocabulary = load_vocabulary(tmp_path)
    assert (vocabulary.pre, len(vocabulary.tokens), len(vocabulary.merges)) == ("gpt-2", 50257, 50000)
    assert vocabulary.token_types[50256] == TokenType.CONTROL
    assert not vocabulary.add_bos_token
    tokenizer = Tokenizer(vocabulary)
    assert tokenizer.encode("Hello World, y'all! 3333") == [15496, 2159, 11, 331, 6, 439, 0, 513, 20370]


@pytest.mark.parametrize("rules", PRE_TOKENIZERS, ids=lambda rules: rules.name)
def test_each_set_of_rules_is_recognized_by_what_it_does(rules: PreTokenizer, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, byte_level(rules.build()), bos_token="<|begin|>", eos_token="<|end|>")
    vocabulary = load_vocabulary(folder)
    # Names that behave alike stand for each other; ids decide.
    assert vocabulary.pre == rules.name or rules.name in ALIKE[vocabulary.pre]
    assert check_vocabulary(folder, vocabulary).warning() is None


ALIKE = {
    "dbrx": ("llama-bpe", "chatglm-bpe", "glm4"),
    "qwen2": ("stablelm2", "bailingmoe"),
    "gpt-2": ("mpt",),
    "smollm": ("starcoder",),
    "gpt-4o": ("granite-embed-multi-97m",),
}


@pytest.mark.parametrize("ignores_merges", [True, False])
def test_a_llama_3_fine_tune_with_another_vocabulary_is_recognized(tmp_path: Path, ignores_merges: bool) -> None:
    huggingface = byte_level(splitting(LLAMA3), size=700)
    huggingface.model.ignore_merges = ignores_merges
    huggingface.add_special_tokens(["<|my_token|>"])
    vocabulary = load_vocabulary(write_folder(tmp_path, huggingface, bos_token="<|begin|>"))
    assert pre_tokenizer(vocabulary.pre).ignores_merges == ignores_merges
    assert vocabulary.pre == ("llama-bpe" if ignores_merges else "dbrx")
    assert check_vocabulary(tmp_path, vocabulary).warning() is None


def test_unknown_rules_are_never_refused_and_their_distance_is_told(tmp_path: Path) -> None:
    huggingface = byte_level(splitting(r"[aeiou]+|[^aeiou]+"))
    vocabulary = load_vocabulary(write_folder(tmp_path, huggingface, bos_token="<|begin|>"))
    report = check_vocabulary(tmp_path, vocabulary)
    assert report.differences
    warning = report.warning()
    assert warning is not None
    assert f"{len(report.differences) + len(report.around_specials)} of {report.probes}" in warning
    core = build_core(vocabulary, pre_tokenizer("gpt-2"))
    found = recognize(huggingface, core, ignores_merges=False)
    assert (found.name, found.is_exact) == (vocabulary.pre, False)


def test_a_unicode_normal_form_is_kept(tmp_path: Path) -> None:
    huggingface = byte_level(named("qwen2"))
    huggingface.normalizer = normalizers.NFC()
    vocabulary = load_vocabulary(write_folder(tmp_path, huggingface, bos_token="<|begin|>"))
    report = check_vocabulary(tmp_path, vocabulary)
    assert (vocabulary.pre, vocabulary.normalization) == ("qwen2", "NFC")
    assert report.warning() is None
    assert not report.unnormalized
    # llama.cpp has no such step.
    assert check_vocabulary(tmp_path, replace(vocabulary, normalization="")).unnormalized


def test_added_tokens_and_normalizers_do_not_blur_the_comparison(tmp_path: Path) -> None:
    huggingface = byte_level(named("smollm"))
    huggingface.normalizer = normalizers.Lowercase()
    vocabulary = load_vocabulary(write_folder(tmp_path, huggingface, bos_token="<|begin|>"))
    core = build_core(vocabulary, pre_tokenizer(vocabulary.pre))
    found = recognize(huggingface, core, ignores_merges=False)
    assert (found.name, found.is_exact, found.different_splits) == ("smollm", True, 0)


@pytest.mark.parametrize(
    ("scheme", "rule"), [("always", "unless_present"), ("first", "first_unless_present"), ("never", "always")]
)
def test_metaspace_puts_its_space_where_the_original_does(tmp_path: Path, scheme: str, rule: str) -> None:
    huggingface = sentencepiece_like()
    huggingface.normalizer = None
    huggingface.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    vocabulary = load_vocabulary(write_folder(tmp_path, huggingface, bos_token="<s>", eos_token="</s>"))
    assert vocabulary.add_space_prefix == (scheme != "never")
    if vocabulary.add_space_prefix:
        assert vocabulary.space_prefix == rule
    assert check_vocabulary(tmp_path, vocabulary).warning() is None
    assert vocabulary_from_metadata(metadata_from_vocabulary(vocabulary)) == vocabulary


def test_a_byte_level_tokenizer_that_puts_a_space_before_text_does_so_here_too(tmp_path: Path) -> None:
    huggingface = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True))
    vocabulary = load_vocabulary(write_folder(tmp_path, huggingface, bos_token="<|begin|>"))
    assert (vocabulary.pre, vocabulary.add_space_prefix) == ("gpt-2", True)
    assert check_vocabulary(tmp_path, vocabulary).warning() is None
    assert vocabulary_from_metadata(metadata_from_vocabulary(vocabulary)) == vocabulary


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_bpe_in_a_tokenizer_json_keeps_its_ids(tmp_path: Path, prefix: bool) -> None:
    folder = write_folder(tmp_path, sentencepiece_like(prefix=prefix), bos_token="<s>", eos_token="</s>")
    vocabulary = load_vocabulary(folder)
    assert (vocabulary.model, vocabulary.add_space_prefix, vocabulary.add_bos_token) == ("llama", prefix, True)
    assert vocabulary.token_types[:4] == (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE)
    assert check_vocabulary(folder, vocabulary).warning() is None


def test_tokenizer_model_gives_the_same_vocabulary_as_tokenizer_json(tmp_path: Path) -> None:
    flags = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocabulary = load_vocabulary(write_folder(tmp_path, sentencepiece_like(), **flags))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes(vocabulary))
    assert load_vocabulary(tmp_path) == vocabulary


def test_added_tokens_beside_a_tokenizer_model_join_it(tmp_path: Path) -> None:
    vocabulary = load_vocabulary(write_folder(tmp_path, sentencepiece_like()))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes(vocabulary))
    size = len(vocabulary.tokens)
    added = {str(size + 1): {"content": "<|user|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added, "add_bos_token": False}))
    read = load_vocabulary(tmp_path)
    assert read.tokens[size:] == (f"[PAD{size}]", "<|user|>")
    assert read.token_types[size:] == (TokenType.UNUSED, TokenType.CONTROL)
    assert not read.add_bos_token
    assert check_vocabulary(tmp_path, read).warning() is not None


@pytest.mark.parametrize("keep", [0, 1, 40, 2000])
def test_a_tokenizer_model_cut_short_is_refused(keep: int) -> None:
    vocabulary = replace(load_tiny(), model="llama", scores=(0.0,) * len(load_tiny().tokens))
    data = sentencepiece_bytes(vocabulary)
    with pytest.raises(TokenizerError, match=r"cut short|holds no pieces|unigram"):
        parse_sentencepiece_model(data[:keep])


def load_tiny() -> Vocabulary:
    return Vocabulary("llama", "default", tuple(f"t{index}" for index in range(300)), (1,) * 300)


def test_a_unigram_model_is_refused_with_what_still_works() -> None:
    vocabulary = replace(load_tiny(), scores=(0.0,) * 300)
    with pytest.raises(TokenizerError, match=r"unigram.*still works"):
        parse_sentencepiece_model(sentencepiece_bytes(vocabulary, model_type=1))


def test_special_ids_come_from_every_file_that_names_them(tmp_path: Path) -> None:
    huggingface = byte_level(named("gpt-2"))
    write_folder(tmp_path, huggingface, bos_token={"content": "<|begin|>"}, pad_token="<|end|>")
    end, begin = huggingface.token_to_id("<|end|>"), huggingface.token_to_id("<|begin|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 5, 10**9]}))
    vocabulary = load_vocabulary(tmp_path)
    assert (vocabulary.bos_token_id, vocabulary.eos_token_id, vocabulary.eot_token_id) == (begin, end, 5)
    assert vocabulary.padding_token_id == end
    assert Tokenizer(vocabulary).end_of_generation_ids == {end, 5}


def test_the_post_processor_decides_whether_bos_and_eos_are_added(tmp_path: Path) -> None:
    huggingface = byte_level(named("gpt-2"))
    ids = [(token, huggingface.token_to_id(token)) for token in ("<|begin|>", "<|end|>")]
    names = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "add_bos_token": False}
    huggingface.post_processor = processors.TemplateProcessing(single="<|begin|> $A <|end|>", special_tokens=ids)
    both = load_vocabulary(write_folder(tmp_path / "both", huggingface, **names))
    assert (both.add_bos_token, both.add_eos_token) == (True, True)
    huggingface.post_processor = processors.ByteLevel(trim_offsets=False)
    neither = load_vocabulary(write_folder(tmp_path / "neither", huggingface, **names))
    assert (neither.add_bos_token, neither.add_eos_token) == (False, False)


def test_added_tokens_are_control_when_special_or_when_they_look_so(tmp_path: Path) -> None:
    huggingface = byte_level(named("gpt-2"))
    huggingface.add_tokens(["<|looks|>", "<plain>"])
    vocabulary = load_vocabulary(write_folder(tmp_path, huggingface))
    types = dict(zip(vocabulary.tokens, vocabulary.token_types, strict=True))
    assert types["<|begin|>"] == types["<|looks|>"] == TokenType.CONTROL
    assert types["<plain>"] == types["<tool_call>"] == TokenType.USER_DEFINED


def test_padding_fills_up_to_the_rows_of_the_embedding(tmp_path: Path) -> None:
    vocabulary = load_vocabulary(write_folder(tmp_path, sentencepiece_like()))
    size = len(vocabulary.tokens)
    wide = padded(vocabulary, size + 2)
    assert wide.tokens[size:] == (f"[PAD{size}]", f"[PAD{size + 1}]")
    assert len(wide.token_types) == len(wide.scores) == size + 2
    assert wide.token_types[-1] == TokenType.UNUSED
    assert Tokenizer(wide).encode("Hello [PAD900]") == Tokenizer(vocabulary).encode("Hello [PAD900]")
    assert padded(vocabulary, size) == vocabulary


def test_added_tokens_without_a_row_are_dropped_and_ordinary_ones_refused(tmp_path: Path) -> None:
    huggingface = byte_level(named("gpt-2"))
    vocabulary = load_vocabulary(write_folder(tmp_path, huggingface, eos_token="<|end|>"))
    added = vocabulary.tokens.index("<|begin|>")
    narrow = padded(vocabulary, added)
    assert len(narrow.tokens) == added
    assert narrow.eos_token_id is None
    with pytest.raises(TokenizerError, match=f"{added - 1} rows; token {added - 1} .* has no row"):
        padded(vocabulary, added - 1)


def test_chat_templates_are_found_in_order_of_precedence(tmp_path: Path) -> None:
    huggingface = byte_level(named("gpt-2"))
    listed = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    write_folder(tmp_path, huggingface, chat_template=listed)
    assert load_vocabulary(tmp_path).chat_template == "D"
    write_folder(tmp_path, huggingface, chat_template="S")
    assert load_vocabulary(tmp_path).chat_template == "S"
    (tmp_path / "chat_template.jinja").write_text("J\n")
    assert load_vocabulary(tmp_path).chat_template == "J\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no tokenizer found; needs tokenizer\.json.*still works"),
        ({"tokenizer.json": "{"}, r"tokenizer\.json: not valid JSON.*still works"),
        ({"tokenizer.json": "[1]"}, r"tokenizer\.json: found list"),
        ({"tokenizer.json": '{"model": {"type": "BPE"}}'}, r"tokenizer\.json: cannot be read"),
        ({"tokenizer.model": "version https://git-lfs.github.com/spec/v1"}, r"tokenizer\.model"),
    ],
)
def test_missing_and_damaged_tokenizers_say_what_still_works(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(TokenizerError, match=message):
        load_vocabulary(tmp_path)


def _charsmap() -> bytes:
    """SentencePiece's own table, from a model trained on the probes."""
    trainer = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    trainer.SentencePieceTrainer.train(
        sentence_iterator=iter(PROBES), model_writer=model, vocab_size=300, hard_vocab_limit=False, minloglevel=2
    )
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    table: bytes = proto.normalizer_spec.precompiled_charsmap
    return table


@pytest.mark.parametrize("has_table", [True, False])
def test_a_unigram_tokenizer_gives_the_ids_of_its_tokenizer_json(tmp_path: Path, has_table: bool) -> None:
    original = unigram(charsmap=_charsmap() if has_table else b"")
    folder = write_folder(tmp_path, original, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    vocabulary = load_vocabulary(folder)
    report = check_vocabulary(folder, vocabulary)
    assert not report.differences
    assert not report.around_specials
    assert vocabulary.add_eos_token
    assert vocabulary_from_metadata(metadata_from_vocabulary(vocabulary)) == vocabulary
    text = "Hello world, fine."
    assert Tokenizer(vocabulary).decode(Tokenizer(vocabulary).encode(text)) == text


def test_a_damaged_table_of_characters_is_refused(tmp_path: Path) -> None:
    vocabulary = load_vocabulary(write_folder(tmp_path, unigram(), unk_token="<unk>"))
    with pytest.raises(TokenizerError, match="table of characters"):
        Tokenizer(replace(vocabulary, charsmap="AAAA"))
    with pytest.raises(TokenizerError, match="needs scores and an unknown token"):
        Tokenizer(replace(vocabulary, unknown_token_id=None))


def test_a_kind_of_model_that_is_not_known_says_what_still_works(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}})
    )
    with pytest.raises(TokenizerError, match=r"model type 'WordLevel' cannot be rebuilt here.*still works"):
        load_vocabulary(tmp_path)


def test_a_rule_of_a_later_version_is_named() -> None:
    metadata = metadata_from_vocabulary(load_tiny()) | {"lilliput.tokenizer.normalization": "NFX"}
    with pytest.raises(TokenizerError, match=r"lilliput\.tokenizer\.normalization: 'NFX' is not known here"):
        vocabulary_from_metadata(metadata)


def test_tokens_that_swallow_spaces_beside_them_do_so_here_too(tmp_path: Path) -> None:
    huggingface = byte_level(named("qwen2"))
    huggingface.add_special_tokens([AddedToken("<mask>", lstrip=True), AddedToken("<|turn|>", rstrip=True)])
    folder = write_folder(tmp_path, huggingface, bos_token="<|begin|>", eos_token="<|end|>")
    vocabulary = load_vocabulary(folder)
    tokenizer = Tokenizer(vocabulary)
    assert (len(vocabulary.lstrip_ids), len(vocabulary.rstrip_ids)) == (1, 1)
    for text in ("a \n <mask> b", "a <|turn|> \n\t\t\t b", "<mask> <|turn|>  <|turn|>\n", "  <mask>", "<|turn|>  "):
        assert tokenizer.encode(text, parse_special=True) == huggingface.encode(text).ids, repr(text)
    assert vocabulary_from_metadata(metadata_from_vocabulary(vocabulary)) == vocabulary
    assert padded(vocabulary, len(vocabulary.tokens) - 1).rstrip_ids == ()


def test_an_id_that_only_a_damaged_file_has_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, byte_level(named("gpt-2")), added_tokens_decoder={"1000000000": {"content": "far"}})
    with pytest.raises(TokenizerError, match="token id 1000000000 is beyond"):
        load_vocabulary(tmp_path)
