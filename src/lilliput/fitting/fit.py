# SPDX-License-Identifier: Apache-2.0
"""`fit`: a budget goes in, a model comes out. Joins search with quantize, as workflows.py joins the other rooms.

A module of its own because it stands above `quantize`: it searches, then quantizes with what it found, and measures.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import cast

from lilliput import workflows
from lilliput.architectures.architecture import Json
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers import FOLDERS
from lilliput.containers.container import Container
from lilliput.containers.gguf_metadata import file_name
from lilliput.converting import ConvertOptions, convert
from lilliput.errors import PublishError, RecipeError
from lilliput.evaluation.chunks import Chunks
from lilliput.evaluation.compare import evaluate
from lilliput.evaluation.model_logits import EvaluationOptions, ModelLogits
from lilliput.fitting.estimate import FitPlan, Search, estimate_fit, reachable
from lilliput.fitting.explore import (
    FRONTIER_POINTS,
    RANDOM_CONFIGURATIONS,
    SENSITIVITY_WINDOWS,
    Exploration,
    Explored,
    Stages,
)
from lilliput.fitting.files import absolute, digest, file_fingerprint, locked, move, nbytes_of, versions
from lilliput.fitting.request import (
    IDENTITY,
    RESULT,
    FitOptions,
    FitResult,
    Goal,
    Interval,
    SensitivityKind,
    result_from_json,
)
from lilliput.fitting.texts import Texts, cut_texts
from lilliput.formats import NumberFormat
from lilliput.models import BUILT_IN
from lilliput.recipes.ledger import ledger_path
from lilliput.recipes.machine import MachineSpeeds
from lilliput.recipes.plan import PLAIN_FLOATS
from lilliput.recipes.recipe import Method, Recipe, Rule, parse_method
from lilliput.runtime.processors import default_threads
from lilliput.runtime.session import checked_context
from lilliput.search.choices import RUNTIMES, Choice, Picks, Runtime, choices_of, chosen_bytes, formats_by_tensor
from lilliput.search.evolve import Refined, SearchOptions, evolve
from lilliput.search.frontier import (
    FRONTIER,
    Point,
    bits_per_weight,
    distinct,
    pareto,
    picks_from,
    point,
    read_points,
    read_records,
    sensitivities,
    write_records,
)
from lilliput.search.measure import MeasuredKl, Meter
from lilliput.search.predict import (
    no_costs,
)
from lilliput.search.problem import Limits, Problem, cache_bytes, reasons
from lilliput.search.reinforce import reinforce
from lilliput.search.speed_costs import MemoryProbe, decode_seconds

SEARCHES = {"evolution": evolve, "agent": reinforce}
SENSITIVITIES = ("gradient", "measured")
# Weights times tokens of one measurement, and the fewest windows of one: large models compare configurations on a part
# of the selection text. The written file is measured on all of it.
MEASURED_WORK, FEWEST_EXPLORED = 5e12, 8
# Where --max-kld aims inside [0.9 X, X], and how often it may try.
AIM, LOWEST_SHARE, TRIES = 0.98, 0.9, 6
HALVINGS = 10
TRIMS = 12


def fit(
    model: workflows.PathLike,
    goal: Goal,
    output: workflows.PathLike | None = None,
    *,
    text: Sequence[Path],
    options: FitOptions | None = None,
    stages: Stages | None = None,
) -> FitResult:
    """Find the best configuration within the goal, quantize with it, measure the result.

    text: calibration text, or ("builtin",); parts of it are set aside to compare configurations and to measure the
    result.  stages: called with the name of each stage; a context that gives a progress callback.
    Raises RecipeError for a goal out of reach, naming the nearest that is not; LilliputError in general.
    """
    options = options or FitOptions()
    with workflows.opened(model, options.revision) as source:
        _check_task(source)
        target = Path(output) if output is not None else _default_name(source, goal, options)
        folder = options.work or target.with_name(target.name + ".fit")
        fitting = _Fitting(str(model), source, tuple(text), goal, options, folder, target, stages or _silent)
        known = fitting.earlier_result()
        if known is not None:
            return known
        if target.exists() and not options.force and not fitting.was_moving():
            raise PublishError(f"{target} exists already; pass --force to replace it or choose another name with -o")
        with locked(folder):
            return fitting.run()


def _check_task(source: ModelSource) -> None:
    """Raise RecipeError for a model whose loss the search cannot measure."""
    if source.config.task != "next_token":
        raise RecipeError(
            f"{source.path.name}: fit compares predictions of the next token, and this model's task is "
            f"{source.config.task}; quantize it to several presets and compare them with `lilliput eval`"
        )


def plan_fit(
    model: workflows.PathLike,
    goal: Goal,
    *,
    text: Sequence[Path],
    options: FitOptions | None = None,
    measuring: Callable[[str], None] | None = None,
) -> FitPlan:
    """What `fit` will take, from headers and the text. Raises RecipeError for a goal out of reach.

    measuring: called with the name of each speed of this machine that is not known yet, before it is measured.
    """
    options = options or FitOptions()
    with workflows.opened(model, options.revision) as source:
        _check_task(source)
        target = _default_name(source, goal, options)
        return _Fitting(str(model), source, tuple(text), goal, options, target, target, _silent).plan(measuring)


def fit_again(
    work: Path,
    goal: Goal,
    output: workflows.PathLike,
    *,
    options: FitOptions | None = None,
    stages: Stages | None = None,
) -> FitResult:
    """Another point of an earlier search, without searching again: `fit --from WORK`.

    options: threads, force and held_out count; all else is as in the search.  Raises RecipeError for a folder that
    holds no search.
    """
    request = read_records(work, IDENTITY).get("request")
    unfinished = f"{work}: holds no finished search; run `lilliput fit MODEL ...` first and keep its work folder"
    if not isinstance(request, dict):
        raise RecipeError(unfinished)
    try:
        earlier = _earlier_options(request, options or FitOptions())
        text = [Path(str(path)) for path in cast("list[str]", request["text"])]
        model = str(request["model"])
    except (KeyError, TypeError) as missing:
        raise RecipeError(f"{work}: written by another version of lilliput ({missing}); search anew") from missing
    if not (work / FRONTIER).is_file():
        raise RecipeError(unfinished)
    return fit(model, goal, output, text=text, options=replace(earlier, work=work), stages=stages)


def _earlier_options(request: Mapping[str, Json], options: FitOptions) -> FitOptions:
    """What a search was asked for, with what may differ now. Raises KeyError, TypeError."""
    selection = request["selection"]
    return replace(
        options,
        runtime=str(request["runtime"]),
        sensitivity=cast("SensitivityKind", str(request["sensitivity"])),
        formats=tuple(cast("list[str]", request["formats"])),
        effort=cast("str | None", request["effort"]),
        method=str(request["method"]),
        search="none",
        tokens=cast("int | None", request["tokens"]),
        revision=cast("str | None", request["revision"]),
        selection=Path(str(selection)) if selection else None,
    )


@dataclass(frozen=True, slots=True)
class _Made:
    """A quantized file on trial."""

    path: Path
    bits_per_weight: float
    picks: Picks
    selection: MeasuredKl
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Fitting:
    """One run of `fit`."""

    model: str
    source: ModelSource
    text: tuple[Path, ...]
    goal: Goal
    options: FitOptions
    folder: Path
    target: Path
    stages: Stages
    notes: list[str] = field(default_factory=list)

    @cached_property
    def method(self) -> Method:
        """What candidates and the result are made with."""
        return _method(self.text, self.options)

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        """What can be chosen."""
        return choices_of(self.source, _runtime(self.options.runtime), self.options.formats, self.container)

    @cached_property
    def container(self) -> Container:
        """Of the result."""
        return _runtime(self.options.runtime).container(self.target)

    @cached_property
    def texts(self) -> Texts:
        """Calibration, selection, held out."""
        return cut_texts(self.source, self.text, self.options)

    @cached_property
    def explored(self) -> Chunks:
        """The part of the selection text that configurations are compared on."""
        chunks = self.texts.selection
        weights = _weights(self.source)
        windows = max(FEWEST_EXPLORED, int(MEASURED_WORK / (weights * chunks.context)))
        return Chunks(chunks.token_ids[:windows])

    @cached_property
    def memory_probe(self) -> MemoryProbe:
        """Beside every measurement of speed."""
        return MemoryProbe(self.folder / "memory.json")

    @property
    def threads(self) -> int:
        """For everything."""
        return self.options.threads or default_threads()

    def earlier_result(self) -> FitResult | None:
        """What the same command wrote before, where the file is still what it was."""
        known = read_records(self.folder, RESULT)
        if self.options.force or known.get("request") != self._request_key() or not self.target.exists():
            return None
        if "result" not in known or known.get("fingerprint") != file_fingerprint(self.target):
            return None
        return result_from_json(cast("dict[str, Json]", known["result"]), self.target, self.folder)

    def was_moving(self) -> bool:
        """Whether the same command put the file there and was killed before it had written its record."""
        known = read_records(self.folder, RESULT)
        moved = known.get("request") == self._request_key() and "result" not in known
        return moved and known.get("fingerprint") == file_fingerprint(self.target)

    def plan(self, measuring: Callable[[str], None] | None) -> FitPlan:
        """What `run` will take."""
        problem = Problem(self.choices, no_costs(self.choices), self._overhead)
        smallest, largest = reachable(self.choices, problem.overhead)
        # What KL or speed leave room for is not known before anything is measured: the middle, then.
        expected = limit = min(self._limits(problem).file_bytes, largest)
        expected = round((smallest * largest) ** 0.5) if expected == largest else expected
        search = Search(
            self.choices, self.texts, self.method, self.explored, FRONTIER_POINTS + RANDOM_CONFIGURATIONS,
            min(SENSITIVITY_WINDOWS, len(self.texts.calibration)), expected,
        )  # fmt: skip
        cost = estimate_fit(self.source, search, MachineSpeeds(self.threads, guided=True, measuring=measuring))
        candidates = sum(len(choice.formats) for choice in self.choices)
        return FitPlan(smallest, largest, limit, len(self.choices), candidates, search.configurations, cost)

    def run(self) -> FitResult:
        """Search, quantize, measure, publish."""
        if self.goal.min_speed is not None and self.container in FOLDERS:
            raise RecipeError(
                f"--min-speed is measured with this engine, which says nothing of {self.options.runtime}; leave it out"
            )
        # Sizes are known from headers: a budget that nothing meets is refused before any work.
        self._limits(Problem(self.choices, no_costs(self.choices), self._overhead))
        self._claim_folder()
        exploration = Exploration(
            self.source, self.choices, self._overhead, self.texts.calibration, self.explored, self.method, self.options,
            self.folder, self.memory_probe if self.goal.min_speed is not None else None, self.stages,
        )  # fmt: skip
        found = exploration.run()
        problem, meter = found.corrected, found.meter
        limits = self._limits(problem)
        earlier = read_points(self.folder, self.choices)
        if self.goal.max_kld is not None:
            made, refined = self._within_divergence(problem, meter, limits, self.goal.max_kld), None
        else:
            start = self._best_known(found, limits, earlier if self.options.search == "none" else ())
            refined = self._refine(problem, limits, start, meter)
            refined = replace(refined, picks=self._exactly_within(problem, limits, refined.picks))
            made = self._fast_enough(problem, limits, refined)
        chosen = point(problem, made.picks, meter.kl(made.picks), "chosen", self.source)
        self._write_frontier(found, distinct([*found.points, chosen, *earlier]))
        return self._publish(found, made, refined)

    def _claim_folder(self) -> None:
        """Write what the folder is about, or refuse one that is about something else. Raises RecipeError."""
        identity: dict[str, Json] = {
            "version": versions(),
            "model": self.source.fingerprint(),
            "text": [digest(path) for path in self.text],
            "selection": digest(self.options.selection) if self.options.selection else None,
            "tokens": self.options.tokens,
            "method": self.method,
        }
        known = read_records(self.folder, IDENTITY).get("identity")
        if known is not None and known != identity:
            assert isinstance(known, dict)
            changed = ", ".join(name for name in identity if known.get(name) != identity[name])
            raise RecipeError(
                f"{self.folder} belongs to another search (different: {changed}); give another folder with --work, or "
                "remove this one"
            )
        request: dict[str, Json] = {
            "model": self.model if self.model == BUILT_IN else absolute(self.model),
            "text": [absolute(str(path)) for path in self.text],
            "selection": absolute(str(self.options.selection)) if self.options.selection else None,
            "runtime": self.options.runtime,
            "sensitivity": self.options.sensitivity,
            "formats": list(self.options.formats),
            "effort": self.options.effort,
            "method": self.method,
            "tokens": self.options.tokens,
            "revision": self.options.revision,
        }
        write_records(self.folder, IDENTITY, {"identity": identity, "request": request})

    @cached_property
    def _overhead(self) -> int:
        """Bytes of the file beside the chosen tensors: exactly for names as long as the longest.

        A folder names its layers format by format, so there a mix of all formats is laid out.
        """
        is_folder = self.container in FOLDERS
        picks = tuple(place % len(c.formats) if is_folder else 0 for place, c in enumerate(self.choices))
        recipe = _recipe(self.source, formats_by_tensor(self.choices, picks), {}, 16.0)
        return self._planned_bytes(recipe) - chosen_bytes(self.choices, picks)

    def _planned_bytes(self, recipe: Recipe) -> int:
        """Exact size of the result."""
        options = self._quantize_options()
        return workflows.planned_bytes(self.model, recipe, self.target, guidance=self._guidance(), options=options)

    def _exactly_within(self, problem: Problem, limits: Limits, picks: Picks) -> Picks:
        """A folder describes its layers in as many bytes as the choice itself needs: choose again within the rest."""
        if self.container not in FOLDERS:
            return picks
        left = limits
        for _ in range(TRIES):
            formats = formats_by_tensor(self.choices, picks)
            over = self._planned_bytes(_recipe(self.source, formats, {}, 16.0)) - limits.file_bytes
            if over <= 0:
                return picks
            left = replace(left, file_bytes=left.file_bytes - over)
            picks = problem.solve(left)
        return picks

    def _write_frontier(self, found: Explored, points: Sequence[Point]) -> None:
        write_records(
            self.folder, FRONTIER,
            {
                "agreement": {**asdict(found.agreement)},
                "sensitivity": sensitivities(found.exact),
                "frontier": [item.to_json() for item in pareto(points)],
                "measured": [item.to_json() for item in points],
            },
        )  # fmt: skip

    def _limits(self, problem: Problem) -> Limits:
        """The goal as bytes of the file and seconds of a token."""
        goal, in_memory = self.goal, None
        sizes = [problem.file_bytes(problem.largest)]
        if goal.size is not None:
            sizes.append(goal.size)
        if goal.ram is not None:
            context, cache = self._cache
            least = problem.memory_bytes(problem.lightest)
            if goal.ram - cache < least:
                smaller = " or --kv q8_0" if goal.kv_format in ("f16", "f32") else ""
                raise RecipeError(
                    f"--ram {goal.ram:,} bytes: the cache of {context} tokens takes {cache:,} in {goal.kv_format} and "
                    f"the smallest weights {least:,}; ask for {least + cache:,}, a shorter --context{smaller}"
                )
            in_memory = goal.ram - cache
            if not any(choice.loads for choice in self.choices):
                # The runtime maps the file: one budget, exact for folders too.
                sizes.append(in_memory)
                in_memory = None
        if goal.bits_per_weight is not None:
            headers, weights = self.source.headers.values(), _weights(self.source)
            chosen = {name for choice in self.choices for name in choice.names}
            vectors = sum(4 * h.rows * h.columns for h in headers if h.name not in chosen)
            sizes.append(int(goal.bits_per_weight * weights / 8) - vectors + problem.overhead)
            if sizes[-1] < problem.file_bytes(problem.smallest):
                narrowest = bits_per_weight(self.source, formats_by_tensor(self.choices, problem.smallest))
                raise RecipeError(
                    f"--bpw {goal.bits_per_weight:g}: the smallest mix of these formats has {narrowest:.3f} bits "
                    "per weight; ask for more than that, or allow smaller formats with --formats"
                )
        limits = Limits(min(sizes), None if goal.min_speed is None else 1 / goal.min_speed, in_memory)
        problem.check(limits)
        return limits

    @cached_property
    def _cache(self) -> tuple[int, int]:
        """Tokens of the cache that --ram counts, and its bytes."""
        context = checked_context(self.goal.context, self.source.config.context_length)
        return context, cache_bytes(self.source.config, context, self.goal.kv_format)

    def _best_known(self, explored: Explored, limits: Limits, earlier: Sequence[Point]) -> Picks:
        """The exact solution, with costs as predicted or as corrected, or a measured configuration that is better."""
        problem, meter = explored.corrected, explored.meter
        recorded = (picks_from(self.choices, item.formats) for item in (*explored.points, *earlier))
        found = {problem.solve(limits), explored.exact.solve(limits)}
        found |= {picks for picks in recorded if problem.is_within(picks, limits)}
        return min(sorted(found), key=lambda picks: meter.kl(picks).mean)

    def _refine(self, problem: Problem, limits: Limits, start: Picks, meter: Meter) -> Refined:
        search = SEARCHES.get(self.options.search)
        if search is None:
            return Refined(start, meter.kl(start).mean, 1.0, ())
        options = SearchOptions(self.options.evaluations, self.options.seed)
        with self.stages("searching") as advance:
            return search(problem, limits, start, meter, options, advance)

    def _within_divergence(self, problem: Problem, meter: Meter, limits: Limits, most: float) -> _Made:
        """The smallest file whose own KL lies in [0.9 most, most]: quantized, measured, and corrected for."""
        ratio, kept, tried = 1.0, None, []
        for _ in range(TRIES):
            picks = self._smallest_within(problem, meter, limits, AIM * most / ratio)
            if picks in tried:
                break
            tried.append(picks)
            made = self._quantize(problem, picks)
            found = made.selection.mean
            if found <= most and (kept is None or found > kept.selection.mean):
                kept = made
            if LOWEST_SHARE * most <= found <= most:
                return made
            ratio = found / max(meter.kl(picks).mean, 1e-12)
        if kept is None:
            raise RecipeError(
                f"--max-kld {most:g}: the largest file within the other limits has a KL of "
                f"{min(self._quantize(problem, p).selection.mean for p in tried):.3g} on the selection text; ask for "
                "that, or allow more bytes"
            )
        if problem.file_bytes(kept.picks) == problem.file_bytes(problem.smallest):
            self.notes.append(f"the smallest file of these formats stays below KL {most:g}; nothing smaller exists")
        return kept

    def _smallest_within(self, problem: Problem, meter: Meter, limits: Limits, most: float) -> Picks:
        """The smallest exact solution whose measured KL is at most that, or the best within the limits."""
        low, high = problem.file_bytes(problem.smallest), limits.file_bytes
        smallest = _solved(problem, replace(limits, file_bytes=low))
        if smallest is not None and meter.kl(smallest).mean <= most:
            return smallest
        best = problem.solve(limits)
        with self.stages("narrowing down") as advance:
            for step in range(HALVINGS):
                middle = (low + high) // 2
                picks = _solved(problem, replace(limits, file_bytes=middle))
                if picks is not None and meter.kl(picks).mean <= most:
                    best, high = picks, problem.file_bytes(picks)
                else:
                    low = middle
                advance(step + 1, HALVINGS)
        return self._trimmed(problem, meter, replace(limits, file_bytes=high), best, most)

    def _trimmed(self, problem: Problem, meter: Meter, limits: Limits, picks: Picks, most: float) -> Picks:
        """Single tensors narrowed, what saves most bytes first, while the measured KL allows it.

        Few tensors make coarse steps; between two exact solutions lie others that use what is left of the KL.
        """
        for _ in range(TRIMS):
            scale = meter.kl(picks).mean / problem.predicted(picks)
            children = [
                (*picks[:place], option, *picks[place + 1 :])
                for place, choice in enumerate(problem.choices)
                for option in range(len(choice.sizes))
                if choice.sizes[option] < choice.sizes[picks[place]]
            ]
            hopeful = [child for child in children if scale * problem.predicted(child) <= most]
            hopeful.sort(key=lambda child: (problem.file_bytes(child), problem.predicted(child)))
            allowed = [child for child in hopeful if problem.is_within(child, limits)]
            smaller = next((child for child in allowed[:3] if meter.kl(child).mean <= most), None)
            if smaller is None:
                break
            picks = smaller
        return picks

    def _fast_enough(self, problem: Problem, limits: Limits, refined: Refined) -> _Made:
        """Quantize; where the file is slower than predicted, search again with as much less time."""
        made = self._quantize(problem, refined.picks)
        for _ in range(TRIES):
            if self.goal.min_speed is None or limits.seconds is None:
                return made
            with workflows.opened(made.path) as written:
                seconds = decode_seconds(written, self.memory_probe, self.threads)
            if seconds <= 1 / self.goal.min_speed:
                return made
            tighter = limits.seconds * (1 / self.goal.min_speed) / seconds * 0.99
            limits = replace(limits, seconds=tighter)
            start = problem.solve(limits)
            made = self._quantize(problem, start)
        raise RecipeError(
            f"--min-speed {self.goal.min_speed:g}: not reached when measured; {made.path} is the fastest tried"
        )

    def _guidance(self) -> workflows.Guidance:
        return workflows.Guidance(text=self.text)

    def _quantize_options(self) -> workflows.QuantizeOptions:
        effort = "best" if self.options.effort == "best" else None
        return workflows.QuantizeOptions(
            effort=effort,
            method=None if effort else self.method,
            tokens=int(self.texts.calibration.size),
            threads=self.options.threads,
            revision=self.options.revision,
        )

    def _quantize(self, problem: Problem, picks: Picks) -> _Made:
        """The configuration through the whole pipeline, into the work folder; measured on the selection text."""
        formats = formats_by_tensor(problem.choices, picks)
        recipe = _recipe(self.source, formats, reasons(problem, picks), bits_per_weight(self.source, formats))
        key = hashlib.sha256(json.dumps(sorted((n, f.name) for n, f in formats.items())).encode()).hexdigest()
        # Folders of other runtimes are made from our own file, which the engine runs.
        name = "model.safetensors" if self.container in FOLDERS else self.target.name
        path = self.folder / "made" / key[:16] / name
        with self.stages("quantizing") as advance:
            done = workflows.quantize(
                self.model, recipe, path,
                guidance=self._guidance(), options=self._quantize_options(), progress=advance,
            )  # fmt: skip
        selection = self._measure(path, self.texts.selection, "measuring")
        return _Made(path, done.bits_per_weight, picks, selection, done.warnings)

    def _measure(self, path: Path, chunks: Chunks, label: str) -> MeasuredKl:
        options = EvaluationOptions(context=chunks.context, threads=self.options.threads, measure_floor=False)
        with workflows.opened(path) as written, self.stages(label) as advance:
            base = ModelLogits(self.source, self.source.path.name, options)
            found = evaluate(base, [ModelLogits(written, path.name, options)], chunks, progress=advance)
        kld = found.files[0].scores.kld.reshape(len(chunks), -1)
        return MeasuredKl(kld.sum(axis=1), chunks.scored_per_chunk)

    def _publish(self, explored: Explored, made: _Made, refined: Refined | None) -> FitResult:
        """Measure on the held-out text, move file and ledger into place, write the record."""
        held_out = self._measure(made.path, self.texts.held_out, "measuring held-out text")
        speed = None
        if self.goal.min_speed is not None:
            with workflows.opened(made.path) as written:
                speed = 1 / decode_seconds(written, self.memory_probe, self.threads)
        about = {"request": self._request_key(), "fingerprint": file_fingerprint(made.path)}
        write_records(self.folder, RESULT, {**about})
        self._move(made.path)
        ram = None
        if self.goal.ram is not None:
            problem = explored.corrected
            repacking = problem.memory_bytes(made.picks) - problem.file_bytes(made.picks)
            ram = nbytes_of(self.target) + repacking + self._cache[1]
        shutil.rmtree(self.folder / "made", ignore_errors=True)
        result = FitResult(
            output=self.target,
            bytes=nbytes_of(self.target),
            bits_per_weight=made.bits_per_weight,
            predicted=explored.corrected.predicted(made.picks),
            selection=_interval(made.selection),
            held_out=_interval(held_out),
            agreement=explored.agreement,
            search=self.options.search if refined is not None and refined.history else "exact",
            history=tuple((step.evaluations, step.kl) for step in refined.history) if refined is not None else (),
            tokens_per_second=speed,
            ram_bytes=ram,
            work=self.folder,
            notes=(*self.notes, *made.warnings),
        )
        about["fingerprint"] = file_fingerprint(self.target)
        write_records(self.folder, RESULT, {**about, "result": result.to_json()})
        return result

    def _move(self, made: Path) -> None:
        """Put what was measured where it belongs; into another runtime's folder without changing a value."""
        if self.container not in FOLDERS:
            # The ledger first: a run that is killed here makes the file once more, and never leaves one without it.
            move(ledger_path(made), ledger_path(self.target))
            move(made, self.target)
            return
        base = None if self.model == BUILT_IN or not Path(self.model).is_dir() else self.model
        done = convert(made, self.target, ConvertOptions(base=base, force=self.options.force, threads=self.threads))
        if not done.is_exact:
            changed = next(tensor.name for tensor in done.tensors if not tensor.is_exact)
            raise PublishError(f"{self.target}: {changed} cannot be stored as it was measured; change --formats")
        self.notes.extend(done.notes)

    def _request_key(self) -> str:
        """Of everything that decides the output."""
        chosen = replace(self.options, threads=None, work=None, force=False, selection=None, held_out=None)
        selection = self.texts.selection.token_ids.tobytes() + self.texts.held_out.token_ids.tobytes()
        content = [
            versions(), self.source.fingerprint(), [digest(path) for path in self.text],
            hashlib.sha256(selection).hexdigest(), asdict(self.goal), asdict(chosen), self.method,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def _runtime(name: str) -> Runtime:
    if name not in RUNTIMES:
        raise RecipeError(f"unknown --for '{name}'; known: {', '.join(RUNTIMES)}")
    return RUNTIMES[name]


def _method(text: tuple[Path, ...], options: FitOptions) -> Method:
    """The method that candidates and the result are made with."""
    if options.sensitivity not in SENSITIVITIES:
        raise RecipeError(f"unknown --sensitivity '{options.sensitivity}'; known: {', '.join(SENSITIVITIES)}")
    if options.search not in (*SEARCHES, "none"):
        raise RecipeError(f"unknown --search '{options.search}'; known: {', '.join((*SEARCHES, 'none'))}")
    asked = workflows.QuantizeOptions(effort=options.effort, method=parse_method(options.method))
    return workflows.chosen_method(workflows.Guidance(text=text), asked)


def _solved(problem: Problem, limits: Limits) -> Picks | None:
    """The exact solution, or None where nothing is within the limits."""
    try:
        return problem.solve(limits)
    except RecipeError:
        return None


def _recipe(
    source: ModelSource, formats: Mapping[str, NumberFormat], why: Mapping[str, str], bits_per_weight: float
) -> Recipe:
    """One rule a tensor; what was not searched stays as it is, or becomes F16 where it is no float."""
    rules = [
        Rule(match=f"gguf:{name}", format=item.name, reason=why.get(name, "candidate"))
        for name, item in formats.items()
    ]
    kept = [header for header in source.headers.values() if header.name not in formats and len(header.shape) > 1]
    for header in kept:
        name = header.format.name if header.format.name in PLAIN_FLOATS else "f16"
        rules.append(Rule(match=f"gguf:{header.name}", format=name, reason="no part of the search"))
    rest = Rule(match="*", format="f16", reason="no part of the search")
    return Recipe(name=f"FIT-{bits_per_weight:.2f}BPW", rules=(*rules, rest))


def _default_name(source: ModelSource, goal: Goal, options: FitOptions) -> Path:
    weights = _weights(source)
    words = [
        f"{goal.size or goal.ram}B" if goal.size or goal.ram else "",
        f"{goal.bits_per_weight:g}bpw" if goal.bits_per_weight else "",
        f"kl{goal.max_kld:g}" if goal.max_kld else "",
        f"{goal.min_speed:g}tps" if goal.min_speed else "",
    ]
    name = Path(file_name(source.provenance.general, weights, "-".join(["FIT", *filter(None, words)])))
    suffix = _runtime(options.runtime).container(None).suffix
    return name.with_name(name.name.removesuffix(".gguf") + suffix)


def _weights(source: ModelSource) -> int:
    """Of all tensors."""
    return sum(header.rows * header.columns for header in source.headers.values())


def _interval(measured: MeasuredKl) -> Interval:
    return Interval(measured.mean, *measured.interval())


def _silent(_stage: str) -> AbstractContextManager[workflows.Progress]:
    return nullcontext(lambda _done, _total: None)
