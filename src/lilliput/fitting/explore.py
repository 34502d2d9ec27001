# SPDX-License-Identifier: Apache-2.0
"""What a search knows before it chooses: every tensor in every format, their costs, and the real KL of some mixes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from lilliput import workflows
from lilliput.architectures.architecture import Json
from lilliput.arrays import IntArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.evaluation.chunks import Chunks
from lilliput.fitting.files import versions
from lilliput.fitting.request import COSTS, FitOptions
from lilliput.formats import get_format
from lilliput.pipeline.work_folder import WorkFolder
from lilliput.recipes.recipe import Method
from lilliput.runtime.processors import default_threads
from lilliput.search.candidates import CandidateOptions, Candidates, make_candidates
from lilliput.search.choices import Choice, Picks
from lilliput.search.frontier import Point, frontier_sizes, point, read_records, write_records
from lilliput.search.measure import AssembledModel, Meter
from lilliput.search.predict import (
    Agreement,
    CostTable,
    agreement,
    fitted_factors,
    measured_costs,
    predicted_costs,
)
from lilliput.search.problem import Limits, Problem
from lilliput.search.sensitivity import measure_sensitivity
from lilliput.search.speed_costs import MemoryProbe, SpeedTable, decode_seconds, speed_table

Stages = Callable[[str], AbstractContextManager[workflows.Progress]]
# Windows of the backward pass; its averages are over thousands of tokens then.
SENSITIVITY_WINDOWS = 16
# Configurations measured along the frontier, and drawn at random to judge the predictions by.
FRONTIER_POINTS = 12
RANDOM_CONFIGURATIONS = 20


@dataclass(frozen=True, slots=True)
class Explored:
    """What is known before anything is chosen. exact: with costs as predicted.  corrected: by what was measured."""

    exact: Problem
    corrected: Problem
    meter: Meter
    points: tuple[Point, ...]
    agreement: Agreement


@dataclass(frozen=True)
class Exploration:
    """One exploration; all of it is kept in the work folder and found there again.

    overhead: bytes of the file beside the chosen tensors.  calibration: token ids [windows, context].  windows: of the
    selection text that mixes are compared on.  memory_probe: beside measurements of speed; None where speed does not
    matter.  stages: called with the name of each stage; a context that gives a progress callback.
    """

    source: ModelSource
    choices: tuple[Choice, ...]
    overhead: int
    calibration: IntArray
    windows: Chunks
    method: Method
    options: FitOptions
    folder: Path
    memory_probe: MemoryProbe | None
    stages: Stages

    @property
    def threads(self) -> int:
        """For everything."""
        return self.options.threads or default_threads()

    def run(self) -> Explored:
        """Candidates, their costs, and real KL along the frontier and at random configurations."""
        with WorkFolder(self.folder / "candidates", _key(self.source, self.calibration, self.method)) as store:
            with self.stages("making candidates") as advance:
                candidates = make_candidates(
                    self.source, self.choices, self.calibration, store,
                    CandidateOptions(self.method, self.threads), advance,
                )  # fmt: skip
            meter = Meter(
                self.source, self.choices, candidates, self.windows, self.folder / "measured.jsonl",
                threads=self.options.threads,
            )  # fmt: skip
            costs = self._costs(candidates, meter)
            speed = None if self.memory_probe is None else self._speed(candidates, self.memory_probe)
            problem = Problem(self.choices, costs, self.overhead, speed)
            exact = [problem.solve(Limits(size)) for size in frontier_sizes(problem, FRONTIER_POINTS)]
            drawn = _random_configurations(problem, RANDOM_CONFIGURATIONS)
            with self.stages("measuring") as advance:
                for place, picks in enumerate((*exact, *drawn)):
                    meter.kl(picks)
                    advance(place + 1, len(exact) + len(drawn))
        quality = agreement([problem.predicted(picks) for picks in drawn], [meter.kl(picks).mean for picks in drawn])
        points = [self._point(problem, picks, meter, "exact") for picks in dict.fromkeys(exact)]
        points += [self._point(problem, picks, meter, "random") for picks in drawn]
        # What was measured corrects the predictions: a factor a tensor, drawn towards a common one.
        measured = {picks: meter.kl(picks).mean for picks in (*exact, *drawn)}
        corrected = problem.with_costs(costs.scaled(fitted_factors(costs, measured).tolist()))
        return Explored(problem, corrected, meter, tuple(points), quality)

    def _costs(self, candidates: Candidates, meter: Meter) -> CostTable:
        """Predicted KL of every candidate; the backward pass is kept like all else."""
        key: list[Json] = [self.options.sensitivity]
        key += [[*choice.names, *(item.name for item in choice.formats)] for choice in self.choices]
        known = read_records(self.folder, COSTS)
        table = known.get("costs")
        if known.get("choices") == key and isinstance(table, list):
            return CostTable(tuple(tuple(cast("list[float]", row)) for row in table))
        with self.stages("measuring sensitivity") as advance:
            if self.options.sensitivity == "measured":
                costs = measured_costs(self.choices, candidates, lambda picks: meter.kl(picks).mean, advance)
            else:
                chunks = self.calibration[:SENSITIVITY_WINDOWS]
                found = measure_sensitivity(self.source, chunks, self.folder, threads=self.threads, progress=advance)
                costs = predicted_costs(self.source, self.choices, candidates, found)
        rows: list[Json] = [list[Json](row) for row in costs.by_choice]
        write_records(self.folder, COSTS, {"choices": key, "costs": rows})
        return costs

    def _speed(self, candidates: Candidates, probe: MemoryProbe) -> SpeedTable:
        def seconds_of(formats: Mapping[str, str]) -> float:
            tensors = {name: candidates.get(name, get_format(item)).tensor for name, item in formats.items()}
            return decode_seconds(AssembledModel(self.source, tensors), probe, self.threads)

        known = self.folder / f"speed-{self.threads}.json"
        with self.stages("measuring speed") as advance:
            return speed_table(self.source, self.choices, seconds_of, known, progress=advance)

    def _point(self, problem: Problem, picks: Picks, meter: Meter, found_by: str) -> Point:
        return point(problem, picks, meter.kl(picks), found_by, self.source)


def _random_configurations(problem: Problem, count: int) -> list[Picks]:
    """Configurations around random widths, every tensor within 1.6 bits of it where it can be."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(count):
        width = draw.uniform(2.3, 8.0)
        picks = []
        for choice in problem.choices:
            distances = [abs(item.bits_per_weight - width) for item in choice.formats]
            near = [place for place, distance in enumerate(distances) if distance < 1.6]
            picks.append(int(draw.choice(near)) if near else int(np.argmin(distances)))
        found.append(tuple(picks))
    return found


def _key(source: ModelSource, calibration: IntArray, method: Method) -> str:
    """Of everything that decides a candidate."""
    digest = hashlib.sha256(np.ascontiguousarray(calibration).tobytes()).hexdigest()
    content = [versions(), source.fingerprint(), digest, calibration.shape, method]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
