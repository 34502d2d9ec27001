# SPDX-License-Identifier: Apache-2.0
"""The inverse of `huggingface`: a Vocabulary as tokenizer.json and tokenizer_config.json, which transformers reads."""

from __future__ import annotations

import json

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from lilliput.architectures.architecture import Json
from lilliput.errors import TokenizerError
from lilliput.text.byte_level_bpe import build_core, split_merge
from lilliput.text.pre_tokenizers import pre_tokenizer
from lilliput.text.sentencepiece_bpe import SPACE
from lilliput.text.vocabulary import TokenType, Vocabulary, is_text

_FORMS = {"NFC": normalizers.NFC, "NFD": normalizers.NFD, "NFKC": normalizers.NFKC, "NFKD": normalizers.NFKD}


def tokenizer_files(vocabulary: Vocabulary) -> dict[str, str]:
    """File name -> content. Raises TokenizerError for tokenizers that cannot be written as tokenizer.json."""
    if not all(is_text(token) for token in vocabulary.tokens):
        raise TokenizerError("tokens that are not whole characters have no place in tokenizer.json")
    if vocabulary.model == "gpt2":
        tokenizer = _byte_level(vocabulary)
    elif vocabulary.model == "llama":
        tokenizer = _sentencepiece(vocabulary)
    else:
        raise TokenizerError(f"a '{vocabulary.model}' tokenizer cannot be written as tokenizer.json")
    if vocabulary.normalization:
        form = _FORMS[vocabulary.normalization]()
        own = tokenizer.normalizer
        tokenizer.normalizer = form if own is None else normalizers.Sequence([form, own])
    _add_special(tokenizer, vocabulary)
    tokenizer.post_processor = _template(vocabulary)
    return {
        "tokenizer.json": str(tokenizer.to_str()) + "\n",
        "tokenizer_config.json": json.dumps(_config(vocabulary), indent=2, ensure_ascii=False) + "\n",
    }


def _byte_level(vocabulary: Vocabulary) -> RustTokenizer:
    rules = pre_tokenizer(vocabulary.pre)
    # Checks the merges and says what is wrong with them.
    build_core(vocabulary, rules)
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    merges = [pair for pair in map(split_merge, vocabulary.merges) if {*pair, "".join(pair)} <= ids.keys()]
    tokenizer = RustTokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=rules.ignores_merges))
    if vocabulary.add_space_prefix:
        raise TokenizerError(
            "a byte-level tokenizer that puts a space before texts cannot be written as tokenizer.json"
        )
    tokenizer.pre_tokenizer = rules.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: Vocabulary) -> RustTokenizer:
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    unknown = vocabulary.unknown_token_id
    model = models.BPE(
        vocab=ids,
        merges=_merges(vocabulary, ids),
        byte_fallback=True,
        fuse_unk=True,
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
    )
    tokenizer = RustTokenizer(model)
    replaced = normalizers.Replace(" ", SPACE)
    steps: list[object] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.add_space_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    if vocabulary.add_space_prefix and vocabulary.space_prefix != "always":
        scheme = "always" if vocabulary.space_prefix == "unless_present" else "first"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    else:
        prepended = [normalizers.Prepend(SPACE)] if vocabulary.add_space_prefix else []
        tokenizer.normalizer = normalizers.Sequence([*prepended, replaced])
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(vocabulary: Vocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of tokens that make a token, best score first: merging by rank then repeats merging by score."""
    mergeable = (TokenType.NORMAL, TokenType.USER_DEFINED)
    scored: list[tuple[float, int, int, tuple[str, str]]] = []
    for index, token in enumerate(vocabulary.tokens):
        if vocabulary.token_types[index] not in mergeable:
            continue
        score = vocabulary.scores[index] if vocabulary.scores else -float(index)
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                scored.append((-score, ids[left], ids[right], (left, right)))
    return [pair for *_, pair in sorted(scored)]


def _add_special(tokenizer: RustTokenizer, vocabulary: Vocabulary) -> None:
    """Tokens that are found in raw text, with the ids that they have."""
    control = (TokenType.CONTROL, TokenType.UNKNOWN)
    for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.token_types, strict=True)):
        if not token or kind not in (*control, TokenType.USER_DEFINED):
            continue
        added = AddedToken(
            token,
            lstrip=index in vocabulary.lstrip_ids,
            rstrip=index in vocabulary.rstrip_ids,
            normalized=False,
            special=kind in control,
        )
        if kind in control:
            tokenizer.add_special_tokens([added])
        else:
            tokenizer.add_tokens([added])


def _template(vocabulary: Vocabulary) -> processors.TemplateProcessing:
    """What encoding adds before and after a text."""
    before = vocabulary.bos_token_id if vocabulary.add_bos_token else None
    after = vocabulary.eos_token_id if vocabulary.add_eos_token else None
    ends = [(vocabulary.tokens[index], index) for index in (before, after) if index is not None]
    first = [vocabulary.tokens[before]] if before is not None else []
    last = [vocabulary.tokens[after]] if after is not None else []
    return processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *(f"{token}:1" for token in first), "$B:1", *(f"{token}:1" for token in last)],
        special_tokens=ends,
    )


def _config(vocabulary: Vocabulary) -> dict[str, Json]:
    """tokenizer_config.json."""
    config: dict[str, Json] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= vocabulary.special_tokens()
    if vocabulary.chat_template is not None:
        config["chat_template"] = vocabulary.chat_template
    return config
