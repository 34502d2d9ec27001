# SPDX-License-Identifier: Apache-2.0
"""Small real tokenizers, trained in a moment on the probing texts, written as Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lilliput.text.pre_tokenizers import PRE_TOKENIZERS
from lilliput.text.probes import PROBES

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# Digits in every grouping, and words twice, so that a few hundred merges tell the split rules apart.
CORPUS = [*PROBES, *PROBES, *(f"{number} {number}{number}" for number in range(0, 3000, 7))]


def byte_level(split: pre_tokenizers.PreTokenizer, size: int = 900) -> Tokenizer:
    """A byte-level BPE with bos `<|begin|>`, eos `<|end|>`, and two tokens that are added without being special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<|begin|>"), AddedToken("<|end|>")])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("\t\t\t", normalized=False)])
    begin = tokenizer.token_to_id("<|begin|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B", special_tokens=[("<|begin|>", begin)]
    )
    return tokenizer


def splitting(*patterns: str) -> pre_tokenizers.PreTokenizer:
    """Split rules as a tokenizer.json spells them."""
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def named(name: str) -> pre_tokenizers.PreTokenizer:
    """The split rules under one of the known names."""
    return next(rules for rules in PRE_TOKENIZERS if rules.name == name).build()


def sentencepiece_like(*, prefix: bool = True, size: int = 900) -> Tokenizer:
    """SentencePiece BPE as Llama 2's tokenizer.json spells it: U+2581 for spaces, bytes for unknown characters."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend("\u2581")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    words = [word for text in CORPUS for word in text.replace(" ", " \u2581").split(" ")]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], limit_alphabet=80, show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    return with_every_merge(tokenizer)


def with_every_merge(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the merges that SentencePiece allows: every pair of tokens that joins into a token.

    Its bytes are no longer added tokens, which would be found in text.
    """
    data = json.loads(tokenizer.to_str())
    vocabulary = data["model"]["vocab"]
    merges = []
    for token, index in sorted(vocabulary.items(), key=lambda entry: entry[1]):
        if index >= 259:
            pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
            merges += [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
    data["model"]["merges"] = merges
    data["added_tokens"] = data["added_tokens"][:3]
    rebuilt: Tokenizer = Tokenizer.from_str(json.dumps(data))
    begin = rebuilt.token_to_id("<s>")
    rebuilt.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", begin)]
    )
    return rebuilt


def wordpiece(size: int = 600) -> Tokenizer:
    """BERT's tokenizer."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def unigram(size: int = 500, charsmap: bytes = b"") -> Tokenizer:
    """T5's tokenizer: Unigram, words cut at spaces, `</s>` at the end of every text."""
    tokenizer = Tokenizer(models.Unigram())
    steps = [normalizers.Precompiled(charsmap)] if charsmap else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    # As in real files, scores are float32: their sums are exact in float64, so that equal ways to cut a word tie
    # here as in GGUF. Those of the trainer differ in the last bits, from run to run.
    trained = json.loads(tokenizer.to_str())
    trained["model"]["vocab"] = [[piece, float(np.float32(score))] for piece, score in trained["model"]["vocab"]]
    tokenizer = Tokenizer.from_str(json.dumps(trained))
    tokenizer.add_special_tokens([AddedToken("<extra_id_0>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def write_folder(folder: Path, tokenizer: Tokenizer, **config: object) -> Path:
    """tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
