# SPDX-License-Identifier: Apache-2.0
"""Vocabulary <-> `tokenizer.ggml.*` keys (ggml docs/gguf.md, "GGML"; defaults as llama-vocab.cpp has them)."""

from __future__ import annotations

from collections.abc import Mapping

from lilliput.architectures.architecture import Json
from lilliput.errors import TokenizerError
from lilliput.text.vocabulary import TokenizerModel, TokenType, Vocabulary

PREFIX = "tokenizer.ggml."
CHAT_TEMPLATE = "tokenizer.chat_template"
_MODELS: dict[str, TokenizerModel] = {"llama": "llama", "gpt2": "gpt2", "bert": "bert"}
# Vocabulary field -> key; "seperator" is GGUF's own spelling.
_IDS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "eot_token_id": "eot_token_id",
    "unknown_token_id": "unknown_token_id",
    "padding_token_id": "padding_token_id",
    "separator_token_id": "seperator_token_id",
    "cls_token_id": "cls_token_id",
    "mask_token_id": "mask_token_id",
}
_FLAGS = ("add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces")
_DEFAULT_IDS: dict[TokenizerModel, dict[str, int]] = {
    "llama": {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0},
    "gpt2": {"bos_token_id": 11, "eos_token_id": 11},
    "bert": {
        "bos_token_id": 101,
        "unknown_token_id": 100,
        "separator_token_id": 102,
        "padding_token_id": 0,
        "mask_token_id": 103,
    },
}
# Byte-level pre-tokenizers that put BOS in front when `add_bos_token` is absent.
_PRE_WITH_BOS = frozenset(
    [
        "llama3",
        "llama-v3",
        "llama-bpe",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
        "jina-v5-nano",
        "tekken",
        "chameleon",
    ]
)
KNOWN_KEYS = frozenset(
    [PREFIX + key for key in ("model", "pre", "tokens", "scores", "token_type", "merges", *_IDS.values(), *_FLAGS)]
    + [CHAT_TEMPLATE]
)


def vocabulary_from_gguf(metadata: Mapping[str, Json], file_name: str = "GGUF metadata") -> Vocabulary:
    """Rebuild the tokenizer's data. Raises TokenizerError naming the key that is missing or wrong."""
    keys = _Keys(metadata, file_name)
    name = keys.text("model")
    model = _MODELS.get(name)
    if model is None:
        raise TokenizerError(f"{file_name}: tokenizer model '{name}' is not known; known: {', '.join(_MODELS)}")
    pre = keys.text("pre", "")
    tokens = keys.texts("tokens")
    size = len(tokens)
    types = keys.integers("token_type", size) or (int(TokenType.NORMAL),) * size
    ids = {field: keys.token_id(key, _DEFAULT_IDS[model].get(field), size) for field, key in _IDS.items()}
    add_bos = model in ("llama", "bert") or pre in _PRE_WITH_BOS
    return Vocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        token_types=types,
        scores=keys.numbers("scores", size),
        merges=keys.texts("merges", optional=True),
        **ids,
        add_bos_token=keys.flag("add_bos_token", default=add_bos),
        add_eos_token=keys.flag("add_eos_token", default=False),
        add_space_prefix=keys.flag("add_space_prefix", default=model == "llama"),
        remove_extra_whitespaces=keys.flag("remove_extra_whitespaces", default=False),
        chat_template=keys.chat_template(),
    )


def vocabulary_to_gguf(vocabulary: Vocabulary) -> dict[str, Json]:
    """The keys, in the order llama.cpp's converter writes them; absent ids stay absent."""
    metadata: dict[str, Json] = {PREFIX + "model": vocabulary.model}
    if vocabulary.pre:
        metadata[PREFIX + "pre"] = vocabulary.pre
    metadata[PREFIX + "tokens"] = list[Json](vocabulary.tokens)
    if vocabulary.scores:
        metadata[PREFIX + "scores"] = [float(score) for score in vocabulary.scores]
    metadata[PREFIX + "token_type"] = [int(kind) for kind in vocabulary.token_types]
    if vocabulary.merges:
        metadata[PREFIX + "merges"] = list[Json](vocabulary.merges)
    for field, key in _IDS.items():
        value = getattr(vocabulary, field)
        if value is not None:
            metadata[PREFIX + key] = value
    for key in _FLAGS:
        metadata[PREFIX + key] = getattr(vocabulary, key)
    if vocabulary.chat_template is not None:
        metadata[CHAT_TEMPLATE] = vocabulary.chat_template
    return metadata


class _Keys:
    """Typed look-ups under `tokenizer.ggml.`."""

    def __init__(self, metadata: Mapping[str, Json], file_name: str) -> None:
        self.metadata = metadata
        self.file_name = file_name

    def fail(self, key: str, message: str) -> TokenizerError:
        return TokenizerError(f"{self.file_name}: {PREFIX}{key} {message}")

    def text(self, key: str, default: str | None = None) -> str:
        found = self.metadata.get(PREFIX + key, default)
        if found is None:
            raise self.fail(key, "is missing; this file carries no tokenizer")
        if not isinstance(found, str):
            raise self.fail(key, "is not text")
        return found

    def texts(self, key: str, *, optional: bool = False) -> tuple[str, ...]:
        found = self.metadata.get(PREFIX + key, [] if optional else None)
        if found is None:
            raise self.fail(key, "is missing; this file carries no tokenizer")
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise self.fail(key, "is not a list of texts")
        return tuple(str(item) for item in found)

    def numbers(self, key: str, size: int) -> tuple[float, ...]:
        found = self._list(key, size, (int, float))
        return tuple(float(item) for item in found)

    def integers(self, key: str, size: int) -> tuple[int, ...]:
        found = self._list(key, size, (int,))
        return tuple(int(item) for item in found)

    def _list(self, key: str, size: int, kinds: tuple[type, ...]) -> list[int | float]:
        found = self.metadata.get(PREFIX + key, [])
        if not isinstance(found, list):
            raise self.fail(key, "is not a list")
        if found and len(found) != size:
            raise self.fail(key, f"has {len(found)} entries for {size} tokens")
        numbers = [item for item in found if isinstance(item, int | float) and type(item) in kinds]
        if len(numbers) != len(found):
            raise self.fail(key, "holds something that is no number")
        return numbers

    def token_id(self, key: str, default: int | None, size: int) -> int | None:
        found = self.metadata.get(PREFIX + key)
        if found is None:
            return default if default is not None and default < size else None
        if not isinstance(found, int) or isinstance(found, bool):
            raise self.fail(key, "is not a token id")
        # Writers mark "none" with -1 or its unsigned image.
        if found in (-1, 0xFFFFFFFF):
            return None
        if not 0 <= found < size:
            raise self.fail(key, f"is {found}, the vocabulary has {size} tokens")
        return found

    def flag(self, key: str, *, default: bool) -> bool:
        found = self.metadata.get(PREFIX + key, default)
        if not isinstance(found, bool):
            raise self.fail(key, "is not a boolean")
        return found

    def chat_template(self) -> str | None:
        found = self.metadata.get(CHAT_TEMPLATE)
        if found is not None and not isinstance(found, str):
            raise TokenizerError(f"{self.file_name}: {CHAT_TEMPLATE} is not text")
        return found
