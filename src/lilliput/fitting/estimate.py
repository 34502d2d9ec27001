# SPDX-License-Identifier: Apache-2.0
"""What `fit` will take, stage by stage: from headers, the length of the text and the speeds of this machine.

Which formats will be chosen is not known yet; the last stages count with the formats nearest to the target's size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from lilliput.architectures.architecture import Json
from lilliput.checkpoints.model_source import ModelSource
from lilliput.evaluation.chunks import Chunks
from lilliput.evaluation.divergence import log_probabilities, row_divergences
from lilliput.fitting.texts import Texts
from lilliput.formats import get_format
from lilliput.methods import METHODS
from lilliput.recipes.estimate import (
    FIRST_READERS,
    FLOAT32_BYTES,
    IMPORT_SECONDS,
    PROCESS_BYTES,
    TORCH_BYTES,
    CostEstimate,
    TextWork,
    block_bytes,
    factor_seconds,
    method_seconds,
    text_seconds,
)
from lilliput.recipes.machine import MachineSpeeds
from lilliput.recipes.plan import weights_of
from lilliput.recipes.recipe import Method
from lilliput.records import TensorPlan
from lilliput.runtime.session import BATCH_MEMORY
from lilliput.search.candidates import candidate_rows
from lilliput.search.choices import Choice
from lilliput.search.measure import KEPT_BYTES
from lilliput.search.sensitivity import LOGIT_NUMBERS

# Logits that show what a comparison of two models takes.
SCORED_SAMPLE = 1 << 17
# Arrays of a window's logits that are alive at once.
LOGIT_ARRAYS_BYTES = 3 * FLOAT32_BYTES


@dataclass(frozen=True, slots=True)
class FitPlan:
    """What `fit` will do.

    smallest, largest: bytes of the files that the candidates can make.  limit: bytes that the targets leave, `largest`
    where they leave more.  tensors: that get a format of their own.
    candidates: tensors in formats, all together.  configurations: measured before anything is chosen.
    """

    smallest: int
    largest: int
    limit: int
    tensors: int
    candidates: int
    configurations: int
    cost: CostEstimate

    def to_json(self) -> dict[str, Json]:
        """The contract of `lilliput plan --size … --json`."""
        content = asdict(self)
        cost = content.pop("cost")
        seconds = {**cost["seconds"], "total": sum(cost["seconds"].values())}
        return {**content, **cost, "seconds": seconds}


@dataclass(frozen=True, slots=True)
class Search:
    """What a search will run. explored: windows that configurations are compared on.  file_bytes: of the result."""

    choices: tuple[Choice, ...]
    texts: Texts
    method: Method
    explored: Chunks
    configurations: int
    sensitivity_windows: int
    file_bytes: int


def estimate_fit(source: ModelSource, search: Search, speeds: MachineSpeeds) -> CostEstimate:
    """Time, memory and disk of `fit`."""
    rows = candidate_rows(source, search.choices, search.method)
    chosen = _near(rows, search)
    read = sum(header.nbytes for header in source.headers.values()) / speeds.bytes_hashed_per_second()
    seconds = {
        "start": IMPORT_SECONDS + speeds.seconds_to_start() + read,
        "candidates": _candidates(source, rows, search, speeds),
        "sensitivity": _sensitivity(source, chosen, search, speeds),
        "measuring": _measuring(source, rows, search, speeds),
        "quantize": _quantizing(source, chosen, search, speeds),
    }
    disk = sum(row.nbytes for row in rows) + 2 * search.file_bytes
    hidden = search.texts.calibration.shape[1] * source.config.hidden_size * FLOAT32_BYTES
    disk += hidden * max(len(search.texts.calibration), search.sensitivity_windows * (source.config.layers + 1))
    kept = _kept_bytes(source, search)
    disk += kept if kept > KEPT_BYTES else 0
    return CostEstimate(_peak_bytes(source, chosen, search), disk, seconds, speeds.age_seconds(), speeds.was_busy)


def _near(rows: Sequence[TensorPlan], search: Search) -> list[TensorPlan]:
    """For each tensor the candidate whose width is nearest to what the target leaves on average."""
    by_name: dict[str, list[TensorPlan]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    weights = sum(weights_of(rows[0]) for rows in by_name.values())
    width = 8 * search.file_bytes / weights
    return [min(rows, key=lambda row: abs(row.format.bits_per_weight - width)) for rows in by_name.values()]


def _candidates(source: ModelSource, rows: Sequence[TensorPlan], search: Search, speeds: MachineSpeeds) -> float:
    """One pass with the sums of all inputs, then every tensor in every format, judged by all pairs of its columns."""
    first = list({row.name: row for row in rows}.values())
    tokens = int(search.texts.calibration.size)
    text = TextWork(tokens, search.texts.calibration.shape[1], passes=1, sees_hessians=True)
    seconds = text_seconds(first, text, speeds) + 2.0 * source.config.hidden_size**2 * tokens / speeds.flops()
    factored: set[str] = set()
    for row in rows:
        header, columns = source.headers[row.name], row.shape[-1]
        cost = speeds.method_cost(row, header)
        seconds += cost.seconds(weights_of(row) // columns, columns)
        if row.role in FIRST_READERS and METHODS[row.method].needs == "hessian" and row.name not in factored:
            factored.add(row.name)
            seconds += factor_seconds(columns, speeds)
        seconds += 2.0 * weights_of(row) * columns / speeds.flops(columns)
        # Read, and decoded once more with its codes: for its own error and for its loss.
        seconds += 4 * weights_of(row) / speeds.weights_decoded_per_second()
        seconds += row.nbytes / speeds.bytes_written_per_second()
    return seconds


def _sensitivity(source: ModelSource, rows: Sequence[TensorPlan], search: Search, speeds: MachineSpeeds) -> float:
    """Forward, forward again with gradients, backward to the inputs; two products with the head."""
    chunk = int(search.texts.calibration.shape[1])
    tokens = search.sensitivity_windows * chunk
    blocks = text_seconds(rows, TextWork(tokens, chunk, passes=3), speeds)
    return blocks + 4.0 * source.config.vocab_size * source.config.hidden_size * tokens / speeds.flops()


def _measuring(source: ModelSource, rows: Sequence[TensorPlan], search: Search, speeds: MachineSpeeds) -> float:
    """Every configuration and the original through the engine, and their predictions compared."""
    formats = {row.format.name: row.format for row in rows}.values()
    a_weight = sum(1 / speeds.engine_flops(item) for item in formats) / len(formats)
    weights = sum(weights_of(row) for row in {row.name: row for row in rows}.values())
    return (search.configurations + 1) * _measured(source, search.explored, 2.0 * weights * a_weight, speeds)


def _measured(source: ModelSource, chunks: Chunks, seconds_a_token: float, speeds: MachineSpeeds) -> float:
    scored = len(chunks) * chunks.scored_per_chunk
    logits = scored * source.config.vocab_size
    return chunks.token_ids.size * seconds_a_token + logits / speeds.other("logits", _scored_per_second)


def _quantizing(source: ModelSource, rows: Sequence[TensorPlan], search: Search, speeds: MachineSpeeds) -> float:
    """The file itself, then both its texts."""
    weights = sum(weights_of(row) for row in rows)
    calibration = search.texts.calibration
    text = TextWork(int(calibration.size), calibration.shape[1], passes=2, sees_hessians=True)
    seconds = text_seconds(rows, text, speeds) + 3 * weights / speeds.weights_decoded_per_second()
    seconds += sum(method_seconds(row, source.headers[row.name], speeds) for row in rows)
    seconds += search.file_bytes / speeds.bytes_written_per_second()
    original = 2.0 * sum(weights_of(row) / speeds.engine_flops(get_format("bf16")) for row in rows)
    written = 2.0 * sum(weights_of(row) / speeds.engine_flops(row.format) for row in rows)
    for chunks in (search.texts.selection, search.texts.held_out):
        seconds += _measured(source, chunks, original + written, speeds)
    return seconds


def _peak_bytes(source: ModelSource, rows: Sequence[TensorPlan], search: Search) -> int:
    """The largest of the stages: candidates and quantizing, the backward pass, measuring."""
    config = source.config
    blocks = block_bytes(rows, sees_hessians=True)
    head = config.vocab_size * config.hidden_size * FLOAT32_BYTES
    largest = max(weights_of(row) for row in rows) * FLOAT32_BYTES
    backward = max(2 * head + 3 * FLOAT32_BYTES * LOGIT_NUMBERS, blocks)
    logits = search.explored.scored_per_chunk * config.vocab_size
    kept = _kept_bytes(source, search)
    # In a file, whose pages the system takes back.
    kept = kept if kept <= KEPT_BYTES else 0
    cache = 2 * config.layers * config.kv_heads * config.head_dim * search.explored.context * FLOAT32_BYTES
    measuring = 2 * (BATCH_MEMORY + cache) + kept + logits * LOGIT_ARRAYS_BYTES
    return PROCESS_BYTES + TORCH_BYTES + max(blocks + largest, backward, measuring)


def _kept_bytes(source: ModelSource, search: Search) -> int:
    """Of the original's predictions, which every configuration is compared with."""
    return search.explored.scored * source.config.vocab_size * FLOAT32_BYTES


def _scored_per_second() -> float:
    """Logits of two models compared a second."""
    random = np.random.default_rng(0)
    rows = [random.standard_normal((8, SCORED_SAMPLE // 8), dtype=np.float32) for _ in range(2)]
    base = log_probabilities(rows[0])
    start = time.perf_counter()
    row_divergences(base, rows[1])
    return SCORED_SAMPLE / max(time.perf_counter() - start, 1e-9)


def reachable(choices: Sequence[Choice], overhead: int) -> tuple[int, int]:
    """Bytes of the smallest and of the largest file."""
    return overhead + sum(min(c.sizes) for c in choices), overhead + sum(max(c.sizes) for c in choices)
