# SPDX-License-Identifier: Apache-2.0
"""Jobs of models that do not predict the next token: sentence vectors, classes, answers; and their evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np

from lilliput.architectures.architecture import Json, Task
from lilliput.calibration.builtin_mix import builtin_texts
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import EvaluationError, RuntimeModelError, TextError
from lilliput.evaluation.divergence import FEWEST_FOR_ERROR
from lilliput.evaluation.model_logits import EvaluationOptions
from lilliput.evaluation.sequences import (
    AnswerScores,
    ClassScores,
    PlaceScores,
    Sample,
    Scores,
    VectorScores,
    measure,
)
from lilliput.opening import PathLike, is_builtin
from lilliput.opening import opened as open_named
from lilliput.progress import Progress
from lilliput.runtime import encoder_heads as heads
from lilliput.runtime.answers import AnswerOptions, answer
from lilliput.runtime.encoder_decoder import EncoderDecoderSession
from lilliput.runtime.encoder_session import EncoderSession
from lilliput.runtime.session import EngineOptions
from lilliput.text.documents import is_json_lines, read_documents, read_json_lines
from lilliput.text.tokenizer import Tokenizer

# Lines with fewer characters are headings and braces more often than text.
SHORTEST_LINE = 20
# All pairs of so many texts are a million similarities.
MOST_TEXTS = 1_500
_ERROR = "_stderr"


@dataclass(frozen=True, slots=True)
class SequenceFile:
    """One file's measurement."""

    name: str
    bytes: int
    bits_per_weight: float
    scores: Scores


@dataclass(frozen=True, slots=True)
class SequenceEvaluation:
    """What was measured in one run. files: in the order given."""

    task: Task
    base_name: str
    texts: int
    files: tuple[SequenceFile, ...]

    def to_json(self) -> dict[str, Json]:
        """The object of `lilliput eval --json`."""
        files: list[Json] = [
            {"path": file.name, "bytes": file.bytes, "bits_per_weight": file.bits_per_weight, **_numbers(file.scores)}
            for file in self.files
        ]
        return {"task": self.task, "base": {"path": self.base_name}, "texts": self.texts, "files": files}

    def to_text(self) -> str:
        """A line a file, best read with the definitions in docs/encoders.md."""
        numbers = [_numbers(file.scores) for file in self.files]
        has_errors = any(value for each in numbers for name, value in each.items() if name.endswith(_ERROR))
        few = "" if has_errors or self.texts >= FEWEST_FOR_ERROR else "; too few for a standard error"
        lines = [f"{self.task.replace('_', ' ')}, {self.texts} texts{few}, compared with {self.base_name}"]
        for file, each in zip(self.files, numbers, strict=True):
            shown = f"{file.bytes:,} bytes, {file.bits_per_weight:.3f} bits per weight; {', '.join(_words(each))}"
            lines.append(f"{file.name}: {shown}")
        return "\n".join(lines)


def _words(numbers: Mapping[str, float | None]) -> Iterator[str]:
    """Each number with its name, and with its standard error where it has one."""
    for name, value in numbers.items():
        if value is None or name.endswith(_ERROR):
            continue
        error = numbers.get(name + _ERROR)
        shown = f"{name.replace('_', ' ').replace('kld', 'KL')} {value:.6g}"
        yield f"{shown} ± {error:.2g}" if error else shown


def evaluate(
    base: PathLike,
    files: Sequence[PathLike],
    text: PathLike,
    *,
    options: EvaluationOptions | None = None,
    progress: Progress | None = None,
) -> SequenceEvaluation:
    """Measure quantized encoders or encoder-decoders against the original, text by text.

    text: "builtin", plain (a line is a text), or JSON Lines with `text` and, where known, `label` or `answer`.
    options: tokens bounds the text; context does not matter.  progress: called with (models done, models in all).
    Raises EvaluationError for models that cannot be compared.
    """
    options = options or EvaluationOptions()
    with ExitStack() as stack:
        opened = [(str(name), stack.enter_context(open_named(name))) for name in (base, *files)]
        original = opened[0][1]
        samples = list(_samples(original, Path(text), options.tokens))
        engine = EngineOptions(threads=options.threads, activations=options.activations, kv_format=options.cache_format)
        base_cache = replace(options, kv_format=None).cache_format
        reference = measure(original, samples, replace(engine, kv_format=base_cache))
        found = []
        for index, (name, source) in enumerate(opened[1:]):
            _check_alike(original, name, source)
            scores = reference.compared(measure(source, samples, engine, reference))
            found.append(SequenceFile(name, _bytes(source), _bits_per_weight(source), scores))
            if progress is not None:
                progress(index + 1, len(files))
    return SequenceEvaluation(original.config.task, str(base), len(samples), tuple(found))


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """What a model made of one text: one of these.

    vector: of the sentence.  classes: label -> probability.  answer: text, its tokens beside it.
    tags: token, its likeliest label, that one's probability.  guesses: for each mask, tokens with their probabilities.
    """

    vector: tuple[float, ...] = ()
    classes: tuple[tuple[str, float], ...] = ()
    answer: str | None = None
    token_ids: tuple[int, ...] = ()
    tags: tuple[tuple[str, str, float], ...] = ()
    guesses: tuple[tuple[tuple[str, float], ...], ...] = ()

    def to_json(self) -> dict[str, Json]:
        """The contract of `lilliput run --json` for such models."""
        if self.vector:
            return {"vector": [*self.vector]}
        if self.classes:
            return {"classes": dict(self.classes)}
        if self.tags:
            return {"tags": [{"token": token, "label": label, "probability": p} for token, label, p in self.tags]}
        if self.guesses:
            return {"masks": [[{"token": token, "probability": p} for token, p in mask] for mask in self.guesses]}
        return {"text": self.answer, "token_ids": [*self.token_ids]}

    def to_text(self) -> str:
        """For people: the answer, or classes from the likeliest on, or the vector's numbers."""
        if self.classes:
            return "\n".join(f"{share:.4f} {name}" for name, share in sorted(self.classes, key=lambda item: -item[1]))
        if self.tags:
            return "\n".join(f"{share:.4f} {label} {token}" for token, label, share in self.tags)
        if self.guesses:
            return "\n".join("  ".join(f"{share:.4f} {token}" for token, share in mask) for mask in self.guesses)
        return self.answer if self.answer is not None else " ".join(f"{value:.6f}" for value in self.vector)


def run(
    model: PathLike | ModelSource,
    text: str,
    *,
    answers: AnswerOptions | None = None,
    engine: EngineOptions | None = None,
    revision: str | None = None,
) -> SequenceResult:
    """Embed, classify or answer one text. Raises RuntimeModelError for a model that predicts the next token."""
    answers = answers or AnswerOptions()
    with open_named(model, revision) as source:
        tokenizer = Tokenizer(source.vocabulary())
        tokens = tokenizer.encode(text, add_special=True)
        match source.config.task:
            case "embedding":
                return SequenceResult(vector=tuple(EncoderSession(source, engine).embed(tokens).tolist()))
            case "classification":
                session = EncoderSession(source, engine)
                logits = session.classify(tokens).astype(np.float64)
                shares = np.exp(logits - logits.max())
                shares /= shares.sum()
                return SequenceResult(classes=tuple(zip(session.traits.labels, shares.tolist(), strict=True)))
            case "tagging":
                return SequenceResult(tags=heads.tags(EncoderSession(source, engine), tokenizer, text))
            case "spans":
                return SequenceResult(answer=heads.span(EncoderSession(source, engine), tokenizer, text))
            case "masked_token":
                return SequenceResult(guesses=heads.guesses(EncoderSession(source, engine), tokenizer, text))
            case "sequence_to_sequence":
                found = answer(EncoderDecoderSession(source, engine, beams=answers.beams), tokens, answers)
                ends = {found.token_ids[0], *(source.config.decoder.end_token_ids if source.config.decoder else ())}
                inner = [token for token in found.token_ids if token not in ends]
                return SequenceResult(answer=tokenizer.decode(inner).strip(), token_ids=found.token_ids)
            case _:
                raise RuntimeModelError(f"{source.path.name}: predicts the next token; it continues texts")


def _samples(source: ModelSource, path: Path, limit: int | None) -> Iterator[Sample]:
    """Texts in the original's tokens, cut to its context, until `limit` tokens are reached."""
    tokenizer = Tokenizer(source.vocabulary())
    labels = source.config.encoder.labels if source.config.encoder else ()
    context, used = source.config.context_length, 0
    for text, label, wanted in list(_texts(path))[:MOST_TEXTS]:
        tokens = tokenizer.encode(text, add_special=True)
        if len(tokens) > context:
            tokens = [*tokens[: context - 1], tokens[-1]]
        masked: tuple[tuple[int, int], ...] = ()
        if source.config.task == "masked_token":
            tokens, masked = heads.masked(tokens, tokenizer)
        used += len(tokens)
        if limit is not None and used > limit:
            return
        answer_tokens = None
        if wanted is not None and source.config.decoder is not None:
            answer_tokens = (source.config.decoder.start_token_id, *tokenizer.encode(wanted, add_special=True))
        is_of_text = source.config.task == "classification"
        yield Sample(tokens, _label_index(label, labels, path) if is_of_text else None, answer_tokens, masked=masked)


def _label_index(label: object, labels: tuple[str, ...], path: Path) -> int | None:
    if label is None or not labels:
        return None
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(labels):
        return label
    if label in labels:
        return labels.index(str(label))
    raise TextError(f"{path}: label {label!r} is none of the model's: {', '.join(labels)}")


def _texts(path: Path) -> Iterator[tuple[str, object, str | None]]:
    """Text, label and answer of every line."""
    if is_builtin(path) or not is_json_lines(path):
        for document in builtin_texts() if is_builtin(path) else read_documents(path):
            yield from ((line.strip(), None, None) for line in document.split("\n") if len(line) >= SHORTEST_LINE)
        return
    for number, record in read_json_lines(path):
        text, wanted = record.get("text"), record.get("answer")
        if not isinstance(text, str):
            raise TextError(f"{path}: line {number}: expected a string field 'text'")
        yield text, record.get("label"), wanted if isinstance(wanted, str) else None


def _check_alike(base: ModelSource, name: str, other: ModelSource) -> None:
    ours, theirs = base.config, other.config
    if (ours.task, ours.vocab_size, ours.hidden_size) != (theirs.task, theirs.vocab_size, theirs.hidden_size):
        raise EvaluationError(
            f"{name}: {theirs.task} with {theirs.vocab_size} tokens and width {theirs.hidden_size}, the original is "
            f"{ours.task} with {ours.vocab_size} and {ours.hidden_size}; only files made from it can be compared"
        )


def _numbers(scores: Scores) -> dict[str, float | None]:
    """Names and values; what is not a number is null."""
    match scores:
        case VectorScores(cosine, lowest, ranks):
            found: dict[str, float | None] = {
                "mean_cosine": cosine.value,
                "mean_cosine_stderr": cosine.stderr,
                "lowest_cosine": lowest,
                "spearman": ranks,
            }
        case ClassScores(agreement, kld, accuracy):
            found = {"agreement": agreement, "mean_kld": kld.value, "mean_kld_stderr": kld.stderr, "accuracy": accuracy}
        case PlaceScores(exact, agreement, kld, accuracy):
            found = {
                "exact": exact,
                "agreement": agreement,
                "mean_kld": kld.value,
                "mean_kld_stderr": kld.stderr,
                "accuracy": accuracy,
            }
        case AnswerScores(exact, kld, same_top, wanted):
            found = {
                "exact": exact,
                "mean_kld": kld.value,
                "mean_kld_stderr": kld.stderr,
                "same_top": same_top,
                "as_wanted": wanted,
            }
    return {name: value if value is None or isfinite(value) else None for name, value in found.items()}


def _bytes(source: ModelSource) -> int:
    return sum(path.stat().st_size for path in source.weight_files)


def _bits_per_weight(source: ModelSource) -> float:
    headers = source.headers.values()
    return 8 * sum(header.nbytes for header in headers) / sum(header.rows * header.columns for header in headers)
