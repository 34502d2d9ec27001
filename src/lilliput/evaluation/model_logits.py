# SPDX-License-Identifier: Apache-2.0
"""Models as sources of logits: files and folders through the native engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lilliput.arrays import FloatArray, IntArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import EvaluationError
from lilliput.evaluation.chunks import SMALLEST_CONTEXT, Chunks, cut
from lilliput.evaluation.compare import EvaluationResult, Floor, evaluate
from lilliput.runtime.session import EXACT_ACTIVATIONS, Activations, EngineOptions, KvFormat, Session, checked_context
from lilliput.text.tokenizer import Tokenizer

# Formats whose weights the engine multiplies with float32 inputs anyway: its two arithmetics are one.
EXACT_FORMATS = frozenset(("f32", "f16", "bf16"))


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """How to measure.

    context: tokens in a window.  tokens: of the text to use at most, None means all.
    activations: "file" measures the files, static inputs whose range they hold included; "f32" without those;
        "engine" runs files and base as the engine would run them; integer inputs by name are those of every weight of
        integers, see `EngineOptions`.
    kv_format: of the files' cache of keys and values; None is float32, and F16 where "engine" runs them.
    measure_floor: also measure what the engine's own arithmetic adds, on the first file that has quantized weights.
    """

    context: int = 512
    tokens: int | None = None
    activations: Activations = "file"
    measure_floor: bool = True
    threads: int | None = None
    seed: int = 0
    kv_format: KvFormat | None = None

    @property
    def cache_format(self) -> KvFormat:
        """The cache of keys and values that the files run with."""
        return self.kv_format or ("f32" if self.activations in EXACT_ACTIVATIONS else "f16")


class ModelLogits:
    """A LogitsSource that runs one model in the native engine."""

    def __init__(self, source: ModelSource, name: str, options: EvaluationOptions) -> None:
        """Load the model. name: as the report shall call it. Raises RuntimeModelError."""
        self.name = name
        self.bytes = sum(path.stat().st_size for path in source.weight_files)
        headers = source.headers.values()
        self.bits_per_weight = 8 * sum(h.nbytes for h in headers) / sum(h.rows * h.columns for h in headers)
        self._session = Session(
            source,
            EngineOptions(
                threads=options.threads,
                context=options.context,
                activations=options.activations,
                kv_format=options.cache_format,
            ),
        )
        self.vocab_size = self._session.vocab_size

    def start(self) -> None:
        """Forget all tokens."""
        self._session.truncate(0)

    def advance(self, token_ids: IntArray, *, outputs: int) -> FloatArray:
        """Feed tokens; logits after the last `outputs` of them."""
        rows = range(len(token_ids) - outputs, len(token_ids))
        return self._session.forward(token_ids, list(rows))


def compare_models(
    base: tuple[str, ModelSource],
    files: Sequence[tuple[str, ModelSource]],
    text: str | None,
    options: EvaluationOptions | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Measure every file against `base` on `text`, tokenized once with the base's tokenizer.

    base, files: name for the report, and the opened model.  text: None means the built-in mix.
    Raises EvaluationError, RuntimeModelError or TokenizerError, one line each.
    """
    options = options or EvaluationOptions()
    for _, source in (base, *files):
        checked_context(options.context, source.config.context_length)
    chunks = tokenize(base[1], text, options) if text is not None else builtin_chunks(base[1], options)
    # What a smaller cache costs counts too: the original keeps its own.
    reference = ModelLogits(base[1], base[0], replace(options, kv_format=None))
    sources = [ModelLogits(source, name, options) for name, source in files]
    floor = engine_floor(files, options)
    return evaluate(reference, sources, chunks, floor=floor, seed=options.seed, progress=progress)


def tokenize(source: ModelSource, text: str, options: EvaluationOptions) -> Chunks:
    """Windows of the text in the tokens of `source`."""
    vocabulary = source.vocabulary()
    token_ids = np.asarray(Tokenizer(vocabulary).encode(text, add_special=True), dtype=np.int32)
    if vocabulary.add_eos_token and token_ids.size and token_ids[-1] == vocabulary.eos_token_id:
        # The text is one stream cut into windows: only its last one would see an end.
        token_ids = token_ids[:-1]
    bos = vocabulary.bos_token_id if vocabulary.add_bos_token else None
    return cut(token_ids, options.context, bos_token_id=bos, limit=options.tokens)


def builtin_chunks(source: ModelSource, options: EvaluationOptions) -> Chunks:
    """Windows of the built-in mix, chats through the model's template. Raises EvaluationError for too few tokens."""
    from lilliput.calibration.data import calibration_chunks

    chunks = Chunks(calibration_chunks(source.vocabulary(), (), chunk_size=options.context, tokens=options.tokens))
    if chunks.context < SMALLEST_CONTEXT:
        raise EvaluationError(f"{chunks.context} tokens are too few to measure; give --tokens 512 or more")
    return chunks


def engine_floor(files: Sequence[tuple[str, ModelSource]], options: EvaluationOptions) -> Floor | None:
    """The first file with quantized weights, in the engine's other arithmetic."""
    if not options.measure_floor:
        return None
    other: Activations = "engine" if options.activations in EXACT_ACTIVATIONS else "file"
    for index, (name, source) in enumerate(files):
        if any(header.format.name not in EXACT_FORMATS for header in source.headers.values()):
            return Floor(ModelLogits(source, name, replace(options, activations=other)), index)
    return None
