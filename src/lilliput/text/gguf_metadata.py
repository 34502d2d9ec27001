# SPDX-License-Identifier: Apache-2.0
"""A Vocabulary as GGUF's `tokenizer.*` metadata, both ways."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

from lilliput.errors import TokenizerError
from lilliput.text.pre_tokenizers import adds_bos_by_default
from lilliput.text.vocabulary import WHAT_STILL_WORKS, Normalization, SpacePrefix, TokenizerModel, TokenType, Vocabulary

_Name = TypeVar("_Name", bound=str)
Scalar = None | bool | int | float | str
Value = Scalar | Sequence[Scalar]
MODELS: tuple[TokenizerModel, ...] = ("llama", "gpt2", "bert", "t5")
# Vocabulary field -> key after `tokenizer.ggml.`; GGUF misspells the separator.
ID_KEYS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "eot_token_id": "eot_token_id",
    "unknown_token_id": "unknown_token_id",
    "padding_token_id": "padding_token_id",
    "separator_token_id": "seperator_token_id",
    "cls_token_id": "cls_token_id",
    "mask_token_id": "mask_token_id",
}
# What GGUF has no keys for, under names of our own; written only where it differs from what llama.cpp does.
SPACE_PREFIX_KEY = "lilliput.tokenizer.space_prefix"
NORMALIZATION_KEY = "lilliput.tokenizer.normalization"
LSTRIP_KEY = "lilliput.tokenizer.lstrip_ids"
RSTRIP_KEY = "lilliput.tokenizer.rstrip_ids"
SPACE_PREFIXES: tuple[SpacePrefix, ...] = ("always", "unless_present", "first_unless_present")
NORMALIZATIONS: tuple[Normalization, ...] = ("", "NFC", "NFD", "NFKC", "NFKD")
# Every key that a Vocabulary is made from and turns into.
KEYS = frozenset(
    [SPACE_PREFIX_KEY, NORMALIZATION_KEY, LSTRIP_KEY, RSTRIP_KEY]
    + ["tokenizer.chat_template", "tokenizer.ggml.normalizer.lowercase"]
    + [f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "scores", "token_type", "merges")]
    + [f"tokenizer.ggml.{name}" for name in ("add_bos_token", "add_eos_token", "add_space_prefix")]
    + [
        "tokenizer.ggml.remove_extra_whitespaces",
        "tokenizer.ggml.precompiled_charsmap",
        *(f"tokenizer.ggml.{key}" for key in ID_KEYS.values()),
    ]
)
# What llama.cpp assumes where a file names no ids.
_DEFAULT_IDS: dict[str, dict[str, int]] = {
    "llama": {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0},
    "bert": {"bos_token_id": 101, "unknown_token_id": 100, "separator_token_id": 102, "padding_token_id": 0},
    "gpt2": {"bos_token_id": 11, "eos_token_id": 11},
    "t5": {"eos_token_id": 1, "unknown_token_id": 2, "padding_token_id": 0},
}


def vocabulary_from_metadata(metadata: Mapping[str, object]) -> Vocabulary:
    """Read `tokenizer.*`, with llama.cpp's defaults where keys are absent. Raises TokenizerError."""
    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        raise TokenizerError(f"the file holds no tokenizer (no tokenizer.ggml.model). {WHAT_STILL_WORKS}")
    if model not in MODELS:
        raise TokenizerError(
            f"tokenizer.ggml.model: '{model}' cannot be rebuilt here; known are {', '.join(MODELS)}. "
            + WHAT_STILL_WORKS
        )
    kind = next(name for name in MODELS if name == model)
    tokens = _strings(metadata, "tokens")
    if not tokens:
        raise TokenizerError(f"tokenizer.ggml.tokens: missing or empty. {WHAT_STILL_WORKS}")
    types = _numbers(metadata, "token_type")
    scores = _numbers(metadata, "scores")
    for key, values in (("token_type", types), ("scores", scores)):
        if values and len(values) != len(tokens):
            raise TokenizerError(f"tokenizer.ggml.{key}: has {len(values)} entries for {len(tokens)} tokens")
    charsmap = tuple(map(int, _numbers(metadata, "precompiled_charsmap")))
    pre = str(metadata.get("tokenizer.ggml.pre", "") or "")
    template = metadata.get("tokenizer.chat_template")
    return Vocabulary(
        model=kind,
        pre=pre,
        tokens=tokens if all(tokens) else tuple(token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)),
        token_types=tuple(map(int, types)) or (int(TokenType.NORMAL),) * len(tokens),
        scores=tuple(map(float, scores)),
        merges=_strings(metadata, "merges"),
        add_bos_token=_flag(
            metadata, "add_bos_token", kind in ("llama", "bert") or (kind == "gpt2" and adds_bos_by_default(pre))
        ),
        add_eos_token=_flag(metadata, "add_eos_token", kind == "t5"),
        add_space_prefix=_flag(metadata, "add_space_prefix", kind in ("llama", "t5") or SPACE_PREFIX_KEY in metadata),
        remove_extra_whitespaces=_flag(metadata, "remove_extra_whitespaces", False),
        chat_template=str(template) if template is not None else None,
        lowercase=_flag(metadata, "normalizer.lowercase", True),
        space_prefix=_one_of(metadata, SPACE_PREFIX_KEY, SPACE_PREFIXES),
        normalization=_one_of(metadata, NORMALIZATION_KEY, NORMALIZATIONS),
        lstrip_ids=_id_list(metadata, LSTRIP_KEY),
        rstrip_ids=_id_list(metadata, RSTRIP_KEY),
        charsmap=base64.b64encode(bytes(value & 255 for value in charsmap)).decode("ascii"),
        **_ids(metadata, kind, types, len(tokens)),
    )


def metadata_from_vocabulary(vocabulary: Vocabulary) -> dict[str, Value]:
    """The `tokenizer.*` keys that llama.cpp reads, in its converter's order."""
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.pre": vocabulary.pre or "default",
        "tokenizer.ggml.tokens": vocabulary.tokens,
    }
    if vocabulary.scores:
        metadata["tokenizer.ggml.scores"] = vocabulary.scores
    metadata["tokenizer.ggml.token_type"] = vocabulary.token_types
    if vocabulary.merges:
        metadata["tokenizer.ggml.merges"] = vocabulary.merges
    for field, key in ID_KEYS.items():
        token_id: int | None = getattr(vocabulary, field)
        if token_id is not None:
            metadata[f"tokenizer.ggml.{key}"] = token_id
    metadata["tokenizer.ggml.add_bos_token"] = vocabulary.add_bos_token
    metadata["tokenizer.ggml.add_eos_token"] = vocabulary.add_eos_token
    if vocabulary.charsmap:
        metadata["tokenizer.ggml.precompiled_charsmap"] = list(base64.b64decode(vocabulary.charsmap))
    if vocabulary.model in ("llama", "t5"):
        metadata["tokenizer.ggml.add_space_prefix"] = vocabulary.add_space_prefix
        metadata["tokenizer.ggml.remove_extra_whitespaces"] = vocabulary.remove_extra_whitespaces
    if vocabulary.model == "bert":
        metadata["tokenizer.ggml.normalizer.lowercase"] = vocabulary.lowercase
    if vocabulary.space_prefix != SPACE_PREFIXES[0]:
        metadata[SPACE_PREFIX_KEY] = vocabulary.space_prefix
    if vocabulary.normalization != NORMALIZATIONS[0]:
        metadata[NORMALIZATION_KEY] = vocabulary.normalization
    swallowing = {LSTRIP_KEY: vocabulary.lstrip_ids, RSTRIP_KEY: vocabulary.rstrip_ids}
    metadata |= {key: ids for key, ids in swallowing.items() if ids}
    if vocabulary.chat_template is not None:
        metadata["tokenizer.chat_template"] = vocabulary.chat_template
    return metadata


def _ids(metadata: Mapping[str, object], model: str, types: tuple[float, ...], size: int) -> dict[str, int | None]:
    """Ids of special tokens; one outside the vocabulary counts as absent, as in llama.cpp.

    Where no key names an id, llama.cpp's default stands only if that token is not ordinary text: taking the comma, 11
    in many vocabularies, for the end would cut replies short.
    """
    found: dict[str, int | None] = {}
    for field, key in ID_KEYS.items():
        default = _DEFAULT_IDS[model].get(field)
        if default is not None and default < len(types) and types[default] == TokenType.NORMAL:
            default = None
        value = metadata.get(f"tokenizer.ggml.{key}", default)
        valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size
        found[field] = int(value) if valid and isinstance(value, int) else None
    return found


def _id_list(metadata: Mapping[str, object], key: str) -> tuple[int, ...]:
    return tuple(map(int, _as_numbers(_as_list(metadata.get(key), key), key)))


def _list(metadata: Mapping[str, object], key: str) -> Sequence[object]:
    return _as_list(metadata.get(f"tokenizer.ggml.{key}"), f"tokenizer.ggml.{key}")


def _as_list(value: object, key: str) -> Sequence[object]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        if hasattr(value, "tolist"):  # an array
            return list(value.tolist())
        raise TokenizerError(f"{key}: found {type(value).__name__}, needs an array")
    return value


def _strings(metadata: Mapping[str, object], key: str) -> tuple[str, ...]:
    values = _list(metadata, key)
    if not all(issubclass(kind, str) for kind in set(map(type, values))):
        raise TokenizerError(f"tokenizer.ggml.{key}: every entry must be text")
    return tuple(map(str, values))


def _numbers(metadata: Mapping[str, object], key: str) -> tuple[float, ...]:
    return _as_numbers(_list(metadata, key), f"tokenizer.ggml.{key}")


def _as_numbers(values: Sequence[object], key: str) -> tuple[float, ...]:
    if not all(issubclass(kind, (int, float)) and kind is not bool for kind in set(map(type, values))):
        raise TokenizerError(f"{key}: every entry must be a number")
    return tuple(cast(Sequence[float], values))


def _one_of(metadata: Mapping[str, object], key: str, names: tuple[_Name, ...]) -> _Name:
    """The value of a key that names one of `names`; the first where the key is absent."""
    value = metadata.get(key, names[0])
    for name in names:
        if name == value:
            return name
    raise TokenizerError(f"{key}: '{value}' is not known here; known are {', '.join(filter(None, names))}")


def _flag(metadata: Mapping[str, object], key: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    return bool(value)
