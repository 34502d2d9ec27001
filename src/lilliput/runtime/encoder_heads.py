# SPDX-License-Identifier: Apache-2.0
"""What heads of encoders say, in words: tags of tokens, the answer inside a passage, guesses for masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lilliput.arrays import DoubleArray, FloatArray
from lilliput.errors import RuntimeModelError
from lilliput.runtime.encoder_session import EncoderSession
from lilliput.text.sentencepiece_bpe import SPACE
from lilliput.text.tokenizer import Tokenizer

# transformers' own defaults of its question answering pipeline.
LONGEST_ANSWER = 15
GUESSES = 5
# One token in so many is masked to measure a model: as many as BERT was trained on.
MASKED_EVERY = 7

Tag = tuple[str, str, float]
Guess = tuple[str, float]


def tags(session: EncoderSession, tokenizer: Tokenizer, text: str) -> tuple[Tag, ...]:
    """Each token of the text with its likeliest label and that one's probability; marks of the text are left out."""
    tokens = tokenizer.encode(text, add_special=True)
    shares = _softmax(session.token_logits(tokens))
    labels = session.traits.labels
    return tuple(
        (_text_of(token, tokenizer), labels[int(row.argmax())], float(row.max()))
        for token, row in zip(tokens, shares, strict=True)
        if not tokenizer.is_special(token)
    )


def span(session: EncoderSession, tokenizer: Tokenizer, text: str) -> str:
    """The likeliest answer: the first line of the text is the question, the rest the passage.

    Raises RuntimeModelError for a text of one line.
    """
    question, _, passage = text.partition("\n")
    if not question.strip() or not passage.strip():
        raise RuntimeModelError(
            "this model finds an answer in a passage: give the question, a line break and the passage; "
            "in a shell: -p $'Who was it?\\nIt was the cat.'"
        )
    tokens, segments, start = question_and_passage(tokenizer, question.strip(), passage.strip(), session.context)
    used = segments if session.traits.segments > 1 else None
    logits = session.token_logits(tokens, used)
    first, last = best_span(logits, start, len(tokens) - 1)
    return tokenizer.decode(tokens[first : last + 1]).strip()


def question_and_passage(
    tokenizer: Tokenizer, question: str, passage: str, context: int
) -> tuple[list[int], list[int], int]:
    """Tokens of both, the segment of each, and where the passage begins; its end is cut where it is too long.

    BERT: [CLS] question [SEP] passage [SEP]; RoBERTa: <s> question </s></s> passage </s>.
    """
    before = tokenizer.encode(question, add_special=True)
    after = tokenizer.encode(passage, add_special=True)
    begin, end = after[0], after[-1]
    inner = after[1:-1]
    join = [end] if tokenizer.vocabulary.model != "bert" else []
    room = context - len(before) - len(join) - 1
    if room < 1:
        raise RuntimeModelError(f"the question has {len(before)} tokens, the model takes {context} with the passage")
    assert before[0] == begin
    start = len(before) + len(join)
    tokens = [*before, *join, *inner[:room], end]
    return tokens, [0] * start + [1] * (len(tokens) - start), start


def best_span(logits: FloatArray, start: int, end: int) -> tuple[int, int]:
    """First and last token of the likeliest answer among tokens [start, end), at most LONGEST_ANSWER long.

    logits: [tokens, 2], of starting and of ending there.
    """
    best, chosen = -np.inf, (start, start)
    for first in range(start, end):
        last = first + int(logits[first : min(first + LONGEST_ANSWER, end), 1].argmax())
        score = float(logits[first, 0]) + float(logits[last, 1])
        if score > best:
            best, chosen = score, (first, last)
    return chosen


def guesses(session: EncoderSession, tokenizer: Tokenizer, text: str) -> tuple[tuple[Guess, ...], ...]:
    """For each mask in the text, the likeliest tokens. Raises RuntimeModelError for a text without one."""
    tokens = tokenizer.encode(text, add_special=True, parse_special=True)
    mask = _mask_id(tokenizer)
    places = [index for index, token in enumerate(tokens) if token == mask]
    if not places:
        spelled = tokenizer.vocabulary.tokens[mask]
        raise RuntimeModelError(f"this model guesses masked tokens, and the text has no {spelled}; put one into it")
    shares = _softmax(session.token_logits(tokens)[places])
    best = [np.argsort(-row, kind="stable")[:GUESSES].tolist() for row in shares]
    return tuple(
        tuple((_text_of(token, tokenizer), float(row[token])) for token in chosen)
        for row, chosen in zip(shares, best, strict=True)
    )


def masked(tokens: Sequence[int], tokenizer: Tokenizer) -> tuple[list[int], tuple[tuple[int, int], ...]]:
    """The text with one token in MASKED_EVERY masked, and their places with what they were; marks stay."""
    mask = _mask_id(tokenizer)
    ordinary = [index for index, token in enumerate(tokens) if not tokenizer.is_special(token)]
    places = ordinary[len(ordinary) // 2 % MASKED_EVERY :: MASKED_EVERY] or ordinary[:1]
    found = list(tokens)
    for place in places:
        found[place] = mask
    return found, tuple((place, tokens[place]) for place in places)


def _text_of(token: int, tokenizer: Tokenizer) -> str:
    """A token as words have it, without the space or the mark before it."""
    return tokenizer.piece(token, skip_special=False).decode("utf-8", "replace").removeprefix(SPACE).strip()


def _mask_id(tokenizer: Tokenizer) -> int:
    mask = tokenizer.vocabulary.mask_token_id
    if mask is None:
        raise RuntimeModelError("this model guesses masked tokens, and its tokenizer names no mask token")
    return mask


def _softmax(logits: FloatArray) -> DoubleArray:
    wide = logits.astype(np.float64)
    shares = np.exp(wide - wide.max(axis=1, keepdims=True))
    result: DoubleArray = shares / shares.sum(axis=1, keepdims=True)
    return result
