# SPDX-License-Identifier: Apache-2.0
"""A tokenizer rebuilt from a Vocabulary alone: text to ids and back, special tokens, streaming."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Protocol

from lilliput.errors import TokenizerError
from lilliput.text.byte_level_bpe import ByteLevelBpe
from lilliput.text.literal_search import any_of
from lilliput.text.sentencepiece_bpe import SPACE, SentencePieceBpe
from lilliput.text.unigram import Unigram
from lilliput.text.vocabulary import WHAT_STILL_WORKS, TokenType, Vocabulary, token_bytes
from lilliput.text.wordpiece import WordPiece

# Tokens that end a reply in the chat formats of known families; files often name only one of them as eos.
END_OF_GENERATION = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>"),
        *("<end_of_utterance>", "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~["),
        *("<|fim_pad|>", "<|fim_repo|>", "<|repo_name|>", "<|file_sep|>"),
    }
)
# Of these, the ones that end a turn rather than a document, in order of preference.
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<EOT>", "_<EOT>", "[EOT]", "<end_of_utterance>")
_SPACES = re.compile(r"\s+")
_SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN)
_ORDINARY = int(TokenType.NORMAL)


class TokenizerCore(Protocol):
    """How one kind of model cuts ordinary text into tokens, and what bytes a token stands for."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, which holds no special tokens."""

    def piece(self, token_id: int) -> bytes:
        """The bytes of a token of ordinary text."""


class Tokenizer:
    """Text to token ids and back.

    bos_id, eos_id, eot_id: None where the model has none.
    end_of_generation_ids: every token after which a reply is over.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Raises TokenizerError for damaged vocabularies and unknown pre-tokenizers."""
        _check(vocabulary)
        self.vocabulary = vocabulary
        self.bos_id = vocabulary.bos_token_id
        self.eos_id = vocabulary.eos_token_id
        self.end_of_generation_ids = end_of_generation_ids(vocabulary)
        self.eot_id = _end_of_turn(vocabulary)
        self._core = _core(vocabulary)
        self._hidden = self.end_of_generation_ids | _of_kinds(vocabulary, *_SPECIAL, TokenType.UNUSED).keys()
        self._always_split = self._literals(TokenType.USER_DEFINED)
        self._specials_split = self._literals(TokenType.USER_DEFINED, *_SPECIAL)
        self._swallows_before, self._swallows_after = frozenset(vocabulary.lstrip_ids), frozenset(vocabulary.rstrip_ids)
        self._splitters: dict[bool, re.Pattern[str] | None] = {}

    def __len__(self) -> int:
        return len(self.vocabulary.tokens)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        add_special: put bos (cls) before and eos (sep) after where the vocabulary asks for it.
        parse_special: control tokens spelled in `text` become those tokens; otherwise they are ordinary text, so that
            a user's text cannot forge them. User-defined tokens are recognized either way.
        """
        text = _without_lone_surrogates(text)
        before, after = self._added_ids() if add_special else ([], [])
        ids = before
        is_first = after_special = True
        for fragment in self._fragments(text, parse_special=parse_special):
            if isinstance(fragment, int):
                ids.append(fragment)
                after_special = True
            else:
                ids += self._core.encode(self._prepared(fragment, is_first, after_special))
                after_special = False
            is_first = False
        return ids + after

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, continues: bool = False) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD.

        skip_special: leave control tokens out.  continues: `ids` follow other text, so that the space which
            SentencePiece puts before a text's first word belongs to the text.
        """
        return self.decode_bytes(ids, skip_special=skip_special, continues=continues).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = True, continues: bool = False) -> bytes:
        """As `decode`, before bytes become text. Raises TokenizerError for ids outside the vocabulary."""
        decoder = StreamDecoder(self, skip_special=skip_special, continues=continues)
        return b"".join(decoder.feed_bytes(token_id) for token_id in ids)

    def piece(self, token_id: int, *, skip_special: bool = True) -> bytes:
        """The bytes of one token as it stands inside a text. Raises TokenizerError."""
        if not 0 <= token_id < len(self.vocabulary.tokens):
            raise TokenizerError(
                f"token id {token_id} is outside the vocabulary of {len(self.vocabulary.tokens)} tokens"
            )
        if token_id in self._hidden:
            return b"" if skip_special else token_bytes(self.vocabulary.tokens[token_id])
        if self.vocabulary.token_types[token_id] == TokenType.USER_DEFINED:
            return token_bytes(self.vocabulary.tokens[token_id])
        return self._core.piece(token_id)

    @property
    def strips_first_space(self) -> bool:
        """Whether decoding a whole text drops one space that encoding had put before it."""
        kind = self.vocabulary.model
        return kind == "bert" or (kind in ("llama", "t5") and self.vocabulary.add_space_prefix)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token rather than text."""
        return token_id in self._hidden

    def _prepared(self, text: str, is_first: bool, after_special: bool) -> str:
        """Ordinary text as the model was trained on it: normalized, with the space that goes before it."""
        vocabulary = self.vocabulary
        if vocabulary.normalization:
            text = unicodedata.normalize(vocabulary.normalization, text)
        if vocabulary.model in ("bert", "t5") or not vocabulary.add_space_prefix:
            return text
        if vocabulary.space_prefix == "always":
            # llama.cpp heeds this key for SentencePiece alone.
            return " " + text if after_special and vocabulary.model == "llama" else text
        wanted = is_first if vocabulary.space_prefix == "first_unless_present" else after_special
        return " " + text if wanted and not text.startswith((" ", SPACE)) else text

    def _added_ids(self) -> tuple[list[int], list[int]]:
        vocabulary = self.vocabulary
        if vocabulary.model == "bert":
            first = vocabulary.cls_token_id if vocabulary.cls_token_id is not None else vocabulary.bos_token_id
            return _present(first), _present(vocabulary.separator_token_id)
        before = _present(vocabulary.bos_token_id) if vocabulary.add_bos_token else []
        return before, _present(vocabulary.eos_token_id) if vocabulary.add_eos_token else []

    def _literals(self, *kinds: TokenType) -> dict[str, int]:
        found = {token: index for index, token in _of_kinds(self.vocabulary, *kinds).items() if token}
        if TokenType.CONTROL in kinds:
            return found | {self.vocabulary.tokens[index]: index for index in sorted(self.end_of_generation_ids)}
        return {token: index for token, index in found.items() if index not in self.end_of_generation_ids}

    def _fragments(self, text: str, *, parse_special: bool) -> Iterator[str | int]:
        """`text` as ordinary parts and ids of the tokens that stand in it literally; the longest token wins."""
        if parse_special not in self._splitters:
            self._splitters[parse_special] = any_of(self._specials_split if parse_special else self._always_split)
        pattern = self._splitters[parse_special]
        start = 0
        for match in pattern.finditer(text) if pattern else ():
            token_id = self._specials_split[match.group()]
            before, start = text[start : match.start()], match.end()
            if token_id in self._swallows_before:
                before = before.rstrip()
            if token_id in self._swallows_after:
                spaces = _SPACES.match(text, start)
                start = spaces.end() if spaces else start
            if before:
                yield before
            yield token_id
        if start < len(text):
            yield text[start:]


class StreamDecoder:
    """Decodes ids one by one as they are generated; emits whole characters only.

    The concatenation of all it returns equals `Tokenizer.decode` of the same ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip = tokenizer.strips_first_space and not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """The text that is certain after this token; empty while a character is incomplete."""
        return self._utf8.decode(self.feed_bytes(token_id))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole."""
        return self._utf8.decode(b"", final=True)

    def feed_bytes(self, token_id: int) -> bytes:
        """The bytes that this token adds."""
        piece = self._tokenizer.piece(token_id, skip_special=self._skip_special)
        if self._strip and piece:
            self._strip = False
            if not self._tokenizer.is_special(token_id):
                return piece.removeprefix(b" ")
        return piece


def end_of_generation_ids(vocabulary: Vocabulary) -> frozenset[int]:
    """eos, eot and every special token that is known to end a reply."""
    marked = _of_kinds(vocabulary, TokenType.CONTROL, TokenType.USER_DEFINED)
    by_text = {token: index for index, token in marked.items() if token in END_OF_GENERATION}
    # In the harmony format `<|end|>` closes a message, not the reply, which `<|return|>` or `<|call|>` end.
    if {"<|return|>", "<|call|>"} <= by_text.keys() or {"<|calls|>", "<|flush|>"} <= by_text.keys():
        by_text.pop("<|end|>", None)
    named = (vocabulary.eos_token_id, vocabulary.eot_token_id)
    return frozenset(by_text.values()) | {token_id for token_id in named if token_id is not None}


def _of_kinds(vocabulary: Vocabulary, *kinds: TokenType) -> dict[int, str]:
    """Id -> token of the kinds named, ordinary ones apart."""
    wanted = frozenset(map(int, kinds))
    # One look at each of a hundred thousand ordinary tokens, several times a start.
    return {
        index: vocabulary.tokens[index]
        for index, kind in enumerate(vocabulary.token_types)
        if kind != _ORDINARY and kind in wanted
    }


def _end_of_turn(vocabulary: Vocabulary) -> int | None:
    if vocabulary.eot_token_id is not None:
        return vocabulary.eot_token_id
    ending = {vocabulary.tokens[index]: index for index in end_of_generation_ids(vocabulary)}
    return next((ending[token] for token in END_OF_TURN if token in ending), None)


def _core(vocabulary: Vocabulary) -> TokenizerCore:
    if vocabulary.model == "gpt2":
        return ByteLevelBpe(vocabulary)
    if vocabulary.model == "llama":
        return SentencePieceBpe(vocabulary)
    if vocabulary.model == "bert":
        return WordPiece(vocabulary)
    if vocabulary.model == "t5":
        return Unigram(vocabulary)
    raise TokenizerError(
        f"tokenizer.ggml.model: '{vocabulary.model}' cannot be rebuilt here; known are gpt2, llama, bert, t5. "
        + WHAT_STILL_WORKS
    )


def _check(vocabulary: Vocabulary) -> None:
    """Raise TokenizerError where fields contradict each other."""
    size = len(vocabulary.tokens)
    if len(vocabulary.token_types) != size:
        raise TokenizerError(f"tokenizer.ggml.token_type: {len(vocabulary.token_types)} entries for {size} tokens")
    if vocabulary.scores and len(vocabulary.scores) != size:
        raise TokenizerError(f"tokenizer.ggml.scores: {len(vocabulary.scores)} entries for {size} tokens")
    for name in ("bos", "eos", "eot", "unknown", "padding", "separator", "cls", "mask"):
        token_id: int | None = getattr(vocabulary, f"{name}_token_id")
        if token_id is not None and not 0 <= token_id < size:
            raise TokenizerError(
                f"tokenizer.ggml.{name}_token_id: {token_id} is outside the vocabulary of {size} tokens"
            )


def _present(token_id: int | None) -> list[int]:
    return [] if token_id is None else [token_id]


def _without_lone_surrogates(text: str) -> str:
    """Half surrogate pairs have no UTF-8; each becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
