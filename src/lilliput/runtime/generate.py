# SPDX-License-Identifier: Apache-2.0
"""Streaming generation: token after token, with the cache reused and both phases timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from lilliput.arrays import FloatArray
from lilliput.errors import RuntimeModelError
from lilliput.runtime.draft_model import DraftModel
from lilliput.runtime.prompt_lookup import PromptLookup, shared_prefix
from lilliput.runtime.sampler import Sampler, SamplingOptions
from lilliput.runtime.session import Session
from lilliput.runtime.text_and_draft import TextAndDraft


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"  # the model said so
    LENGTH = "length"  # max_tokens
    CONTEXT = "context"  # the cache is full


@dataclass(frozen=True, slots=True)
class Timings:
    """What a generation cost.

    prompt_tokens: of the prompt.  prefilled: those not in the cache already.  decoded: tokens run after it, wrong
    guesses left out.  passes: of the engine that ran them; as many, unless guesses came true.
    Rates are tokens per second, None where nothing ran.
    """

    prompt_tokens: int
    prefilled: int
    prefill_seconds: float
    decoded: int
    decode_seconds: float
    passes: int = 0

    @property
    def prefill_tok_s(self) -> float | None:
        """Prompt tokens per second."""
        return self.prefilled / self.prefill_seconds if self.prefilled and self.prefill_seconds > 0 else None

    @property
    def decode_tok_s(self) -> float | None:
        """Generated tokens per second, sampling included."""
        return self.decoded / self.decode_seconds if self.decoded and self.decode_seconds > 0 else None


class Generation:
    """Iterate over it to get token ids; afterwards `timings` and `finish_reason` tell how it went.

    The stop token that ended it is not among the ids.
    """

    def __init__(  # noqa: PLR0913 - each is the caller's own choice; a record of them would be made for this call alone
        self,
        session: Session,
        prompt: Sequence[int],
        sampling: SamplingOptions | Sampler,
        *,
        max_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
        guesses: int = 0,
        draft: Session | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Prepare; nothing runs yet.

        prompt: token ids, BOS included; what the session already holds of it is not run again.
        sampling: how to choose, or what chooses.
        guesses: most tokens to guess and verify in one pass, from the text so far (`prompt_lookup`), which pays for
        text that repeats itself; 0 guesses nothing.  draft: guesses elsewhere are this smaller model's, of the same
        vocabulary (`draft_model`). The text is distributed as without, up to the engine's rounding.
        progress: called with (prompt tokens done, prompt tokens to run) during prefill.
        Raises RuntimeModelError for an empty prompt or one that leaves no room in the context.
        """
        if not prompt:
            raise RuntimeModelError("nothing to continue: the prompt is empty and the model has no BOS token")
        if len(prompt) > session.context:
            raise RuntimeModelError(
                f"the prompt has {len(prompt)} tokens, more than the context of {session.context}; "
                "shorten it or give a larger --context"
            )
        self._session = session
        self._prompt = [int(token) for token in prompt]
        self._sampler = sampling if isinstance(sampling, Sampler) else Sampler(sampling)
        self._max_tokens = max_tokens
        self._stop_ids = stop_ids
        self._guesses = guesses
        self._draft = draft
        if draft is not None and draft.vocab_size != session.vocab_size:
            raise RuntimeModelError(
                f"the draft model has {draft.vocab_size} tokens and the model {session.vocab_size}; a draft must share "
                "the vocabulary"
            )
        self._progress = progress
        self.timings = Timings(len(self._prompt), 0, 0.0, 0, 0.0)
        self.finish_reason: FinishReason | None = None

    def __iter__(self) -> Iterator[int]:
        """Token ids as they come. Can run once."""
        if self.finish_reason is not None:
            raise RuntimeModelError("this generation has ended; start a new one")
        if self._max_tokens <= 0:
            self.finish_reason = FinishReason.LENGTH
            return
        session, previous = self._session, list(self._prompt)
        shared = shared_prefix(session.token_ids, self._prompt)
        start = time.perf_counter()
        # The last prompt token runs in any case: its logits are what generation starts from.
        session.truncate(min(shared, len(self._prompt) - 1))
        pending = self._prompt[session.length :]
        logits = session.forward(pending, progress=self._progress)[0]
        prefill_seconds = time.perf_counter() - start
        self.timings = Timings(len(self._prompt), len(pending), prefill_seconds, 0, 0.0)
        yield from self._decode(logits, previous)

    def _decode(self, logits: FloatArray, previous: list[int]) -> Iterator[int]:
        """Choose, yield and run tokens until the end; logits: [vocab_size] after the prompt."""
        session, lookup = self._session, self._guesser(previous)
        rows, guessed = [logits], list[int]()
        count = 0
        while True:
            for index, row in enumerate(rows):
                start = time.perf_counter()
                token = self._sampler.choose(row, previous)
                self._count(seconds=time.perf_counter() - start)
                came_true = index < len(guessed) and token == guessed[index]
                if not came_true or token in self._stop_ids:
                    # Guesses that the model did not choose leave the cache.
                    session.truncate(len(previous))
                if token in self._stop_ids:
                    self.finish_reason = FinishReason.STOP
                    return
                yield token
                count += 1
                previous.append(token)
                if count == self._max_tokens or len(previous) > session.context:
                    session.truncate(len(previous) - 1)
                    is_limit = count == self._max_tokens
                    self.finish_reason = FinishReason.LENGTH if is_limit else FinishReason.CONTEXT
                    return
                if lookup is not None:
                    lookup.append(token)
                if not came_true:
                    break
                self._count(decoded=1)
            start = time.perf_counter()
            room = min(self._max_tokens - count - 1, session.context - len(previous))
            guessed = lookup.guess(min(self._guesses, room)) if lookup is not None else []
            rows = list(session.forward([token, *guessed], "all") if guessed else session.forward([token]))
            self._count(decoded=1, passes=1, seconds=time.perf_counter() - start)

    def _guesser(self, previous: list[int]) -> PromptLookup | TextAndDraft | None:
        if not self._guesses:
            return None
        text = PromptLookup(previous)
        return text if self._draft is None else TextAndDraft(text, DraftModel(self._draft, previous, self._sampler))

    def _count(self, *, decoded: int = 0, passes: int = 0, seconds: float = 0.0) -> None:
        now = self.timings
        self.timings = replace(
            now,
            decoded=now.decoded + decoded,
            passes=now.passes + passes,
            decode_seconds=now.decode_seconds + seconds,
        )
