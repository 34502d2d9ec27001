# SPDX-License-Identifier: Apache-2.0
"""`lilliput run`: a text continued by a model, token after token."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from lilliput.architectures.architecture import Json
from lilliput.checkpoints.model_source import ModelSource
from lilliput.opening import PathLike, opened
from lilliput.runtime.generate import Generation
from lilliput.runtime.sampler import SamplingOptions
from lilliput.runtime.session import EngineOptions, KvFormat, Session
from lilliput.text.tokenizer import StreamDecoder, Tokenizer
from lilliput.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How to continue a text.

    context: positions of the cache; None means just enough for prompt and answer, up to the model's.
    guesses: tokens guessed and verified in one pass, from the text so far or by `draft`, a smaller file of the same
    vocabulary; the text is distributed as without.  kv_format, repack: as in `EngineOptions`.
    """

    max_tokens: int = 128
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    context: int | None = None
    threads: int | None = None
    revision: str | None = None
    guesses: int = 0
    draft: PathLike | None = None
    kv_format: KvFormat = "f16"
    repack: bool = True


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """What was generated: without prompt, BOS and EOS. Rates are None where nothing ran.

    passes: of the engine; fewer than tokens where guesses came true.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    prefill_tok_s: float | None
    decode_tok_s: float | None
    finish_reason: str
    passes: int = 0

    def to_json(self) -> dict[str, Json]:
        """The contract of `lilliput run --json`."""
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "prompt_tokens": self.prompt_tokens,
            "prefill_tok_s": self.prefill_tok_s,
            "decode_tok_s": self.decode_tok_s,
            "finish_reason": self.finish_reason,
            "passes": self.passes,
        }


def generate(
    model: PathLike | ModelSource,
    prompt: str,
    *,
    options: GenerateOptions | None = None,
    on_text: Callable[[str], None] | None = None,
) -> GenerateResult:
    """Continue `prompt` as raw text: no chat template, BOS as the metadata says.

    on_text: called with each piece of text as it comes.  Raises RuntimeModelError, TokenizerError.
    """
    options = options or GenerateOptions()
    with ExitStack() as stack:
        source = stack.enter_context(opened(model, options.revision))
        vocabulary = source.vocabulary()
        tokenizer = Tokenizer(vocabulary)
        prompt_ids = tokenizer.encode(prompt, add_special=True) or _first_token(vocabulary)
        enough = min(len(prompt_ids) + options.max_tokens, source.config.context_length)
        engine = EngineOptions(
            threads=options.threads, context=options.context or max(enough, 1), kv_format=options.kv_format,
            repack=options.repack,
        )  # fmt: skip
        draft = None if options.draft is None else Session(stack.enter_context(opened(options.draft)), engine)
        generation = Generation(
            Session(source, engine), prompt_ids, options.sampling,
            max_tokens=options.max_tokens, stop_ids=tokenizer.end_of_generation_ids, guesses=options.guesses,
            draft=draft,
        )  # fmt: skip
        decoder = StreamDecoder(tokenizer, continues=bool(prompt))
        pieces, token_ids = [], []
        for token in generation:
            token_ids.append(token)
            pieces.append(decoder.feed(token))
            if on_text is not None and pieces[-1]:
                on_text(pieces[-1])
        pieces.append(decoder.finish())
        if on_text is not None and pieces[-1]:
            on_text(pieces[-1])
    timings = generation.timings
    return GenerateResult(
        "".join(pieces), tuple(token_ids), timings.prompt_tokens, timings.prefill_tok_s, timings.decode_tok_s,
        str(generation.finish_reason), timings.passes,
    )  # fmt: skip


def _first_token(vocabulary: Vocabulary) -> list[int]:
    """What an empty prompt starts from where the tokenizer adds no BOS of its own."""
    first = vocabulary.bos_token_id if vocabulary.bos_token_id is not None else vocabulary.eos_token_id
    return [] if first is None else [first]
