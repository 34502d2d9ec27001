# SPDX-License-Identifier: Apache-2.0
"""Read the tokenizer of a Hugging Face folder as a Vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer

from lilliput.architectures.architecture import Json
from lilliput.errors import TokenizerError
from lilliput.text.byte_level_bpe import build_core
from lilliput.text.json_values import JsonObject, as_array, as_object, find_entry, has_type, read_json
from lilliput.text.pre_tokenizers import pre_tokenizer
from lilliput.text.probes import PROBES
from lilliput.text.recognition import recognize
from lilliput.text.sentencepiece_bpe import SPACE
from lilliput.text.sentencepiece_model import parse_sentencepiece_model
from lilliput.text.vocabulary import WHAT_STILL_WORKS, Normalization, SpacePrefix, TokenType, Vocabulary

# Score of tokens that no merge produces; below every rank.
UNREACHABLE_SCORE = -1e9
# Sixteen times the largest vocabulary seen.
LARGEST_VOCABULARY = 1 << 22
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True)
class _AddedToken:
    token_id: int
    text: str
    is_special: bool
    strips_left: bool = False
    strips_right: bool = False


@dataclass(frozen=True, slots=True)
class _Folder:
    """The JSON files of a model folder that say something about its tokenizer; absent ones are empty."""

    path: Path
    tokenizer: JsonObject
    tokenizer_config: JsonObject
    special_tokens: JsonObject
    config: JsonObject
    generation: JsonObject


def load_vocabulary(folder: Path) -> Vocabulary:
    """The tokenizer of a model folder: tokenizer.json, else tokenizer.model, vocab.json + merges.txt, or vocab.txt.

    It has the tokens that the files name; `padded` brings it to the number of rows of the embedding.
    Raises TokenizerError that says what is missing and what still works without a tokenizer.
    """
    read = _Folder(
        path=folder,
        tokenizer=read_json(folder / "tokenizer.json"),
        tokenizer_config=read_json(folder / "tokenizer_config.json"),
        special_tokens=read_json(folder / "special_tokens_map.json"),
        config=read_json(folder / "config.json"),
        generation=read_json(folder / "generation_config.json"),
    )
    if read.tokenizer:
        vocabulary = _from_tokenizer_json(read)
    elif (folder / "tokenizer.model").is_file():
        vocabulary = _from_sentencepiece(read)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary = _from_vocab_and_merges(read)
    else:
        raise TokenizerError(
            f"{folder.name}: no tokenizer found; needs tokenizer.json, tokenizer.model, or vocab.json with merges.txt. "
            + WHAT_STILL_WORKS
        )
    return replace(vocabulary, chat_template=_chat_template(read))


def padded(vocabulary: Vocabulary, size: int) -> Vocabulary:
    """The vocabulary with exactly `size` tokens, the number of rows of the embedding.

    Missing tokens become `[PAD<id>]`, unused. Added tokens past the last row are dropped: the model has no vector for
    them. Raises TokenizerError where ordinary tokens have no row.
    """
    tokens, types, scores = vocabulary.tokens, vocabulary.token_types, vocabulary.scores
    if len(tokens) > size:
        lost = [index for index in range(size, len(tokens)) if types[index] == TokenType.NORMAL]
        if lost:
            raise TokenizerError(
                f"the tokenizer has {len(tokens)} tokens and the embedding {size} rows; token {lost[0]} "
                f"'{tokens[lost[0]]}' has no row. The tokenizer files belong to another model: restore the right ones"
            )
        kept = _without_ids_from(vocabulary, size)
        return replace(kept, tokens=tokens[:size], token_types=types[:size], scores=scores[:size])
    extra = range(len(tokens), size)
    return replace(
        vocabulary,
        tokens=tokens + tuple(f"[PAD{index}]" for index in extra),
        token_types=types + (int(TokenType.UNUSED),) * len(extra),
        scores=scores + (UNREACHABLE_SCORE,) * len(extra) if scores else (),
    )


def _without_ids_from(vocabulary: Vocabulary, size: int) -> Vocabulary:
    def kept(token_id: int | None) -> int | None:
        return token_id if token_id is not None and token_id < size else None

    return replace(
        vocabulary,
        bos_token_id=kept(vocabulary.bos_token_id),
        eos_token_id=kept(vocabulary.eos_token_id),
        eot_token_id=kept(vocabulary.eot_token_id),
        unknown_token_id=kept(vocabulary.unknown_token_id),
        padding_token_id=kept(vocabulary.padding_token_id),
        separator_token_id=kept(vocabulary.separator_token_id),
        cls_token_id=kept(vocabulary.cls_token_id),
        mask_token_id=kept(vocabulary.mask_token_id),
        lstrip_ids=tuple(index for index in vocabulary.lstrip_ids if index < size),
        rstrip_ids=tuple(index for index in vocabulary.rstrip_ids if index < size),
    )


def _from_tokenizer_json(read: _Folder) -> Vocabulary:
    model = as_object(read.tokenizer.get("model"))
    kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece" if "vocab" in model else None)
    try:
        huggingface = RustTokenizer.from_file(str(read.path / "tokenizer.json"))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"tokenizer.json: cannot be read ({error}). {WHAT_STILL_WORKS}") from error
    # Padding and truncation are for batches of the one who trained.
    huggingface.no_padding()
    huggingface.no_truncation()
    if kind == "WordPiece":
        vocabulary = _wordpiece(read, model)
    elif kind == "Unigram":
        vocabulary = _unigram(read, model, huggingface)
    elif kind == "BPE" and _has_step(read.tokenizer, "ByteLevel"):
        vocabulary = _byte_level(read, model, huggingface)
    elif kind == "BPE":
        vocabulary = _sentencepiece_bpe(read, model, huggingface)
    else:
        raise TokenizerError(
            f"tokenizer.json: model type '{kind}' cannot be rebuilt here; known are BPE, Unigram and WordPiece. "
            + WHAT_STILL_WORKS
        )
    vocabulary = replace(vocabulary, normalization=_normalization(read.tokenizer.get("normalizer")))
    return _with_special_ids(vocabulary, read, huggingface)


def _normalization(normalizer: Json) -> Normalization:
    """The Unicode form that the normalizer brings text to. WordPiece's own normalizer is not one of these."""
    forms: tuple[Normalization, ...] = ("NFC", "NFD", "NFKC", "NFKD")
    return next((form for form in forms if has_type(normalizer, form)), "")


def _byte_level(read: _Folder, model: JsonObject, huggingface: RustTokenizer) -> Vocabulary:
    tokens, types = _tokens(read, model)
    # Tokens never hold a space here, but an added token taking part in merges may.
    merges = tuple(" ".join(part.replace(" ", "\u0120") for part in pair) for pair in _merges(model))
    unnamed = Vocabulary("gpt2", "gpt-2", tokens, types, merges=merges, add_space_prefix=False)
    core = build_core(unnamed, pre_tokenizer("gpt-2"))
    prefixes = _prefixes_space(huggingface, "a", "\u0120")
    # Rules are compared beyond the space that the original puts before a text.
    probes = tuple(" " + text.lstrip(" ") for text in PROBES) if prefixes else PROBES
    recognition = recognize(huggingface, core, ignores_merges=bool(model.get("ignore_merges")), probes=probes)
    named = replace(unnamed, pre=recognition.name)
    return replace(named, add_space_prefix=True, space_prefix="unless_present") if prefixes else named


def _sentencepiece_bpe(read: _Folder, model: JsonObject, huggingface: RustTokenizer) -> Vocabulary:
    tokens, types = _tokens(read, model)
    unknown = model.get("unk_token")
    scores = _scores(tokens, types, _merges(model))
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        token_types=types,
        scores=scores,
        unknown_token_id=tokens.index(unknown) if isinstance(unknown, str) and unknown in tokens else None,
        add_space_prefix=_prefixes_space(huggingface, "a"),
        space_prefix=_space_prefix(huggingface),
    )


def _scores(tokens: tuple[str, ...], types: tuple[int, ...], merges: list[tuple[str, str]]) -> tuple[float, ...]:
    """Scores under which merging by score repeats merging by rank: minus the first rank that produces the token."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return tuple(
        -float(ranks[token])
        if token in ranks
        else 0.0
        if kind != TokenType.NORMAL or len(token) == 1
        else UNREACHABLE_SCORE
        for token, kind in zip(tokens, types, strict=True)
    )


def _space_prefix(huggingface: RustTokenizer) -> SpacePrefix:
    """Whether a space is put before texts that have one, and before texts after a special token."""
    if _prefixes_space(huggingface, SPACE + "a", SPACE * 2):
        return "always"
    special = next((token.content for token in huggingface.get_added_tokens_decoder().values() if token.special), None)
    if special is None:
        return "unless_present"
    text = huggingface.encode(f"{special}a", add_special_tokens=False).tokens[1:2]
    return "unless_present" if text and text[0].startswith(SPACE) else "first_unless_present"


def _prefixes_space(huggingface: RustTokenizer, text: str, prefix: str = SPACE) -> bool:
    """Whether `text`, as the merges see it, begins with `prefix`."""
    if huggingface.normalizer is not None:
        text = huggingface.normalizer.normalize_str(text)
    if huggingface.pre_tokenizer is not None:
        pieces = huggingface.pre_tokenizer.pre_tokenize_str(text)
        text = "".join(piece for piece, _ in pieces)
    return text.replace(" ", SPACE).startswith(prefix)


def _wordpiece(read: _Folder, model: JsonObject) -> Vocabulary:
    tokens, types = _tokens(read, model)
    spelled = tuple(_gguf_wordpiece(token, kind) for token, kind in zip(tokens, types, strict=True))
    lowercase = find_entry(read.tokenizer.get("normalizer"), "lowercase")
    return Vocabulary(
        "bert",
        "",
        spelled,
        types,
        add_bos_token=True,
        add_eos_token=True,
        add_space_prefix=False,
        lowercase=lowercase is not False,
    )


def _unigram(read: _Folder, model: JsonObject, huggingface: RustTokenizer) -> Vocabulary:
    pieces = [entry for entry in as_array(model.get("vocab")) if isinstance(entry, list) and len(entry) == 2]
    unknown = model.get("unk_id")
    names = {str(piece): index for index, (piece, _) in enumerate(pieces)}
    named: dict[str, Json] = {
        "vocab": dict(names),
        "unk_token": str(pieces[unknown][0]) if isinstance(unknown, int) and 0 <= unknown < len(pieces) else None,
        "byte_fallback": model.get("byte_fallback"),
    }
    tokens, types = _tokens(read, named)
    scores = [float(score) if isinstance(score, int | float) else 0.0 for _, score in pieces]
    scores += [UNREACHABLE_SCORE] * (len(tokens) - len(scores))
    charsmap = find_entry(read.tokenizer.get("normalizer"), "precompiled_charsmap")
    return Vocabulary(
        model="t5",
        pre="default",
        tokens=tokens,
        token_types=types,
        scores=tuple(scores),
        unknown_token_id=unknown if isinstance(unknown, int) else None,
        add_space_prefix=_prefixes_space(huggingface, "a"),
        remove_extra_whitespaces=huggingface.encode(" a  b ", add_special_tokens=False).ids
        == huggingface.encode("a b", add_special_tokens=False).ids,
        charsmap=charsmap if isinstance(charsmap, str) else "",
    )


def _gguf_wordpiece(token: str, kind: int) -> str:
    if kind != TokenType.NORMAL or (token.startswith("[") and token.endswith("]")):
        return token
    return token[2:] if token.startswith("##") else SPACE + token


def _tokens(read: _Folder, model: JsonObject) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Texts and types by id; ids that no file names become unused padding."""
    by_id = {token_id: token for token, token_id in _vocab(model).items()}
    added = {token.token_id: token for token in _added_tokens(read)}
    unknown = model.get("unk_token")
    tokens: list[str] = []
    types: list[int] = []
    for index in range(1 + _checked_id(max([*by_id, *added], default=-1))):
        token, entry = by_id.get(index), added.get(index)
        if entry is not None:
            # Added tokens are found in raw text, where a space is a space.
            kind = TokenType.CONTROL if _is_control(entry) else TokenType.USER_DEFINED
            text = entry.text.replace(SPACE, " ") if kind == TokenType.USER_DEFINED else entry.text
            tokens.append(text)
            types.append(int(TokenType.UNKNOWN if entry.text == unknown else kind))
        elif token is not None:
            is_byte = model.get("byte_fallback") and _BYTE_TOKEN.fullmatch(token)
            kind = TokenType.BYTE if is_byte else TokenType.UNKNOWN if token == unknown else TokenType.NORMAL
            tokens.append(token)
            types.append(int(kind))
        else:
            tokens.append(f"[PAD{index}]")
            types.append(int(TokenType.UNUSED))
    return tuple(tokens), tuple(types)


def _checked_id(token_id: int) -> int:
    """Raise TokenizerError for ids that only a damaged file has; every id below is given a token."""
    if token_id >= LARGEST_VOCABULARY:
        raise TokenizerError(f"token id {token_id} is beyond {LARGEST_VOCABULARY}; the tokenizer files are damaged")
    return token_id


def _is_control(token: _AddedToken) -> bool:
    """Special by declaration, or by its looks, as in llama.cpp: many files forget to declare `<|...|>` tokens."""
    text = token.text
    looks_special = (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )
    return token.is_special or looks_special


def _added_tokens(read: _Folder) -> list[_AddedToken]:
    """From tokenizer.json, then tokenizer_config.json, whose word is the last."""
    found: dict[int, _AddedToken] = {}
    entries = [as_object(entry) for entry in as_array(read.tokenizer.get("added_tokens"))]
    decoder = as_object(read.tokenizer_config.get("added_tokens_decoder"))
    entries += [{**as_object(entry), "id": int(key)} for key, entry in decoder.items() if key.isdigit()]
    for entry in entries:
        token_id, text = entry.get("id"), entry.get("content")
        if isinstance(token_id, int) and isinstance(text, str):
            found[token_id] = _AddedToken(
                token_id, text, bool(entry.get("special")), bool(entry.get("lstrip")), bool(entry.get("rstrip"))
            )
    return list(found.values())


def _with_special_ids(vocabulary: Vocabulary, read: _Folder, huggingface: RustTokenizer | None) -> Vocabulary:
    """Ids of special tokens, and which of them encoding adds: as the tokenizer itself does on a probe."""
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    named = {role: _named_id(read, role, ids) for role in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")}
    listed = _eos_ids(read, len(ids))
    bos = named["bos"] if named["bos"] is not None else _config_id(read, "bos_token_id", len(ids))
    eos = named["eos"] if named["eos"] is not None else next(iter(listed), None)
    before, after = _added_by_encoding(huggingface) if huggingface is not None else ([], [])
    if vocabulary.model == "bert":
        bos, eos = named["cls"], named["sep"]
    if before and bos is None:
        bos = before[0]
    if after and eos is None:
        eos = after[-1]
    checked = huggingface is not None
    added = sorted(_added_tokens(read), key=lambda token: token.token_id)
    unknown = named["unk"] if named["unk"] is not None else vocabulary.unknown_token_id
    return replace(
        vocabulary,
        bos_token_id=bos,
        eos_token_id=eos,
        eot_token_id=next((token_id for token_id in listed if token_id != eos), None),
        unknown_token_id=unknown,
        padding_token_id=named["pad"] if named["pad"] is not None else _config_id(read, "pad_token_id", len(ids)),
        separator_token_id=named["sep"],
        cls_token_id=named["cls"],
        lstrip_ids=tuple(token.token_id for token in added if token.strips_left),
        rstrip_ids=tuple(token.token_id for token in added if token.strips_right),
        mask_token_id=named["mask"],
        add_bos_token=before[:1] == [bos] if checked else vocabulary.add_bos_token,
        add_eos_token=after[-1:] == [eos] if checked else vocabulary.add_eos_token,
    )


def _added_by_encoding(huggingface: RustTokenizer) -> tuple[list[int], list[int]]:
    """Ids that encoding puts before and after a text."""
    plain = huggingface.encode("a", add_special_tokens=False).ids
    full = huggingface.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    return [], []


def _named_id(read: _Folder, role: str, ids: Mapping[str, int]) -> int | None:
    """The id of the token that the files call `<role>_token`."""
    for source in (read.tokenizer_config, read.special_tokens):
        entry = source.get(f"{role}_token")
        text = as_object(entry).get("content") if isinstance(entry, dict) else entry
        if isinstance(text, str) and text in ids:
            return ids[text]
    return None


def _eos_ids(read: _Folder, size: int) -> list[int]:
    """Every end-of-sequence id that generation_config.json and config.json list, in order."""
    found: list[int] = []
    for source in (read.generation, read.config):
        value = source.get("eos_token_id")
        for token_id in value if isinstance(value, list) else [value]:
            if isinstance(token_id, int) and 0 <= token_id < size and token_id not in found:
                found.append(token_id)
    return found


def _config_id(read: _Folder, key: str, size: int) -> int | None:
    for source in (read.generation, read.config):
        value = source.get(key)
        if isinstance(value, int) and 0 <= value < size:
            return value
    return None


def _from_sentencepiece(read: _Folder) -> Vocabulary:
    """tokenizer.model, with the tokens that other files add to it."""
    model = parse_sentencepiece_model((read.path / "tokenizer.model").read_bytes())
    tokens = [piece[0] for piece in model.pieces]
    scores = [piece[1] for piece in model.pieces]
    types = [piece[2] for piece in model.pieces]
    legacy = read_json(read.path / "added_tokens.json")
    added = [_AddedToken(index, text, False) for text, index in legacy.items() if isinstance(index, int)]
    for token in sorted([*added, *_added_tokens(read)], key=lambda token: token.token_id):
        for index in range(len(tokens), _checked_id(token.token_id) + 1):
            tokens.append(f"[PAD{index}]")
            scores.append(UNREACHABLE_SCORE)
            types.append(int(TokenType.UNUSED))
        if types[token.token_id] == TokenType.UNKNOWN:
            continue
        control = _is_control(token) or types[token.token_id] == TokenType.CONTROL
        tokens[token.token_id] = token.text if control else token.text.replace(SPACE, " ")
        types[token.token_id] = int(TokenType.CONTROL if control else TokenType.USER_DEFINED)
    flags = read.tokenizer_config
    vocabulary = Vocabulary(
        model="llama",
        pre="default",
        tokens=tuple(tokens),
        token_types=tuple(types),
        scores=tuple(scores),
        unknown_token_id=model.unknown_id,
        add_bos_token=flags.get("add_bos_token") is not False,
        add_eos_token=flags.get("add_eos_token") is True,
        add_space_prefix=model.add_space_prefix and flags.get("add_prefix_space") is not False,
        remove_extra_whitespaces=model.remove_extra_whitespaces,
    )
    found = _with_special_ids(vocabulary, read, None)
    return replace(
        found,
        bos_token_id=found.bos_token_id if found.bos_token_id is not None else model.bos_id,
        eos_token_id=found.eos_token_id if found.eos_token_id is not None else model.eos_id,
        padding_token_id=found.padding_token_id if found.padding_token_id is not None else model.padding_id,
    )


def _from_vocab_and_merges(read: _Folder) -> Vocabulary:
    """GPT-2's two files. They do not say how text is cut; Qwen's class does, every other is taken for GPT-2's."""
    lines = (read.path / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = tuple(line for line in lines if line and not line.startswith("#version"))
    tokens, types = _tokens(read, {"vocab": dict(read_json(read.path / "vocab.json"))})
    name = str(read.tokenizer_config.get("tokenizer_class", "")) + str(read.config.get("model_type", ""))
    pre = "qwen2" if "qwen" in name.lower() else "gpt-2"
    flags = read.tokenizer_config
    vocabulary = Vocabulary(
        model="gpt2",
        pre=pre,
        tokens=tokens,
        token_types=types,
        merges=merges,
        add_bos_token=flags.get("add_bos_token") is True,
        add_space_prefix=False,
    )
    return _with_controls(_with_special_ids(vocabulary, read, None))


def _with_controls(vocabulary: Vocabulary) -> Vocabulary:
    """Mark the named special tokens as control tokens where no list of added tokens did."""
    named = {vocabulary.bos_token_id, vocabulary.eos_token_id, vocabulary.padding_token_id}
    types = tuple(
        int(TokenType.CONTROL) if index in named else kind for index, kind in enumerate(vocabulary.token_types)
    )
    return replace(vocabulary, token_types=types)


def _chat_template(read: _Folder) -> str | None:
    """chat_template.jinja, else the `default` entry of tokenizer_config.json or chat_template.json."""
    file = read.path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for source in (read.tokenizer_config, read_json(read.path / "chat_template.json")):
        template = source.get("chat_template")
        if isinstance(template, str):
            return template
        named = {str(as_object(entry).get("name")): as_object(entry).get("template") for entry in as_array(template)}
        chosen = named.get("default") or next(iter(named.values()), None)
        if isinstance(chosen, str):
            return chosen
    return None


def _merges(model: JsonObject) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for merge in as_array(model.get("merges")):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(parts, list) and len(parts) == 2):
            raise TokenizerError(f"tokenizer.json: merge {merge!r} is not two tokens; the file is damaged")
        pairs.append((str(parts[0]), str(parts[1])))
    return pairs


def _vocab(model: JsonObject) -> dict[str, int]:
    return {token: index for token, index in as_object(model.get("vocab")).items() if isinstance(index, int)}


def _has_step(tokenizer: JsonObject, name: str) -> bool:
    """Whether any stage of the tokenizer, nested ones included, is of that type."""
    stages: list[Json] = [tokenizer.get(stage) for stage in ("pre_tokenizer", "decoder", "normalizer")]
    return any(has_type(stage, name) for stage in stages)
