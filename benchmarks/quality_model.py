# SPDX-License-Identifier: Apache-2.0
"""Quality on a causal language model: our files against llama-quantize's, of identical types and bytes.

The imatrix is one file for both sides: `lilliput calibrate` writes it (llama-imatrix has no entry for a tied head,
so theirs would be the weaker baseline), llama-quantize and every method that needs no more than it read it. Methods
that need a Hessian get the text that the imatrix was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from peers.llama_cpp import PURE_TYPES, LlamaCpp, Stored, stored_tensors
from quality_results import Measured, result_line

from lilliput import workflows
from lilliput.arrays import DoubleArray
from lilliput.evaluation.compare import EvaluationResult, FileResult
from lilliput.evaluation.model_logits import EvaluationOptions, compare_models
from lilliput.evaluation.paired import paired_ratio
from lilliput.formats import FORMATS
from lilliput.methods import METHODS
from lilliput.text.documents import read_text

PEER = "llama-quantize --imatrix"
# Characters of one piece of an excerpt: a few windows of 512 tokens.
PIECE = 8000


@dataclass(frozen=True, slots=True)
class Text:
    """A text to measure on. domain: in-domain or off-domain, seen from the calibration text."""

    domain: str
    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Setting:
    """What every file of a run has in common.

    folder: for files; the original, the imatrix and the peer's files are taken from there where they exist already.
    calibration: plain text.  reuses: files of ours are taken from the folder too, and so are measured again.
    """

    model: str
    folder: Path
    calibration: Path
    llama_cpp: LlamaCpp
    options: EvaluationOptions
    reuses: bool = False

    @property
    def calibration_name(self) -> str:
        """What was calibrated on, and how much of it."""
        return f"{self.calibration.stem}, {len(self.calibration.read_text(encoding='utf-8'))} characters"

    @property
    def name(self) -> str:
        """The model, as results call it."""
        return Path(self.model).name


@dataclass(frozen=True, slots=True)
class Target:
    """What to make: a number format for every matrix (is_pure) or a preset."""

    type: str
    is_pure: bool

    @property
    def label(self) -> str:
        """For file names."""
        return f"{self.type}-{'pure' if self.is_pure else 'mixture'}"


@dataclass(frozen=True, slots=True)
class Made:
    """A file of ours beside a peer's of the same target. bytes, weights: of all tensors that were quantized."""

    target: Target
    method: str
    path: Path
    peer: Path
    peer_name: str
    bytes: int
    weights: int

    @property
    def bits_per_weight(self) -> float:
        """Of the quantized tensors."""
        return self.bytes * 8 / self.weights


def excerpt(source: Path, output: Path, characters: int) -> Path:
    """Write pieces spread evenly over a text, at most that many characters together, each from a line's start.

    The head of a collection is one document, or one author; evenly spread pieces are all of it.
    """
    text = read_text(source)
    count = max(1, characters // PIECE)
    if len(text) > count * PIECE:
        starts = [index * len(text) // count for index in range(count)]
        pieces = [text[start : start + PIECE] for start in starts]
        text = "".join(piece[piece.find("\n") + 1 :] for piece in pieces)
    output.write_text(text, encoding="utf-8")
    return output


def parse_targets(types: str, presets: str) -> list[Target]:
    """Comma lists -> targets. Raises SystemExit for an unknown number format."""
    pure = [word.strip().upper() for word in types.split(",") if word.strip()]
    unknown = [name for name in pure if name.lower() not in PURE_TYPES or name.lower() not in FORMATS]
    if unknown:
        raise SystemExit(f"--types: {', '.join(unknown)} unknown; known: {', '.join(PURE_TYPES).upper()}")
    mixtures = [word.strip().upper() for word in presets.split(",") if word.strip()]
    return [*(Target(name, True) for name in pure), *(Target(name, False) for name in mixtures)]


def measure(
    setting: Setting, targets: Sequence[Target], methods: Sequence[str], texts: Sequence[Text]
) -> Iterator[dict[str, object]]:
    """Make all files, then a result line for each, text by text. The original runs once a text."""
    base, imatrix = prepare(setting)
    made = [file for target in targets for file in make(setting, target, methods, base, imatrix)]
    for text in texts:
        yield from score(setting, base, made, text)


def prepare(setting: Setting) -> tuple[Path, Path]:
    """The original as a float file, which loses nothing of BF16 and F32 checkpoints, and the imatrix."""
    base, imatrix = setting.folder / "base.gguf", setting.folder / "imatrix.gguf"
    if not base.exists():
        workflows.quantize(setting.model, "F32", base)
    if not imatrix.exists():
        options = workflows.CalibrateOptions(threads=setting.options.threads)
        workflows.calibrate(setting.model, [setting.calibration], imatrix, options=options)
    return base, imatrix


def score(setting: Setting, base: Path, made: Sequence[Made], text: Text) -> Iterator[dict[str, object]]:
    """A result line for each file on one text."""
    if not made:
        raise SystemExit("no method supports any of these types")
    result = compare(setting, base, made, text)
    files = {Path(file.name): file for file in result.files}
    with cross_check(setting, base, text, result) as their_measure:
        for file in made:
            ours, theirs = files[file.path], files[file.peer]
            pair = paired_ratio(file.method, file.peer_name, _chunked(ours, result), _chunked(theirs, result))
            about = Measured(
                setting.name, text.domain, text.name, file.target.type, file.method, file.target.is_pure,
                file.peer_name,
            )  # fmt: skip
            yield result_line(
                about, pair, ours.divergence.mean_kld.value, theirs.divergence.mean_kld.value,
                bits_per_weight=file.bits_per_weight, bytes=file.bytes, tokens=ours.divergence.tokens,
                calibration=setting.calibration_name,
                ppl=ours.divergence.ppl.value, peer_ppl=theirs.divergence.ppl.value, base_ppl=result.base_ppl.value,
                kld_99_9=ours.divergence.kld_percentiles[99.9],
                peer_kld_99_9=theirs.divergence.kld_percentiles[99.9],
                llama_perplexity_kld=their_measure(file.path), llama_perplexity_peer_kld=their_measure(file.peer),
            )  # fmt: skip


def make(setting: Setting, target: Target, methods: Sequence[str], base: Path, imatrix: Path) -> Iterator[Made]:
    """Our file by each method that supports the type, beside the peer's. Raises SystemExit when type maps differ."""
    folder = setting.folder
    chosen = [method for method in methods if supports(method, target)]
    if not chosen:
        return
    peer = folder / f"{target.label}-peer.gguf"
    file_type = PURE_TYPES[target.type.lower()] if target.is_pure else target.type
    if not peer.exists():
        setting.llama_cpp.quantize(base, peer, file_type, imatrix=imatrix, is_pure=target.is_pure)
    recipe = target.type
    if target.is_pure:
        file = folder / f"pure-{target.type}.yaml"
        file.write_text(f'rules:\n  - match: "*"\n    format: {target.type}\n', encoding="utf-8")
        recipe = str(file)
    for method in chosen:
        path = folder / f"{target.label}-{method}.gguf"
        quantize(setting, recipe, path, method, imatrix)
        ours, theirs = stored_tensors(path), stored_tensors(peer)
        check_types(target.label, ours, theirs)
        total = sum(tensor.bytes for tensor in ours.values())
        yield Made(target, method, path, peer, PEER, total, sum(tensor.weights for tensor in ours.values()))


def check_types(label: str, ours: Mapping[str, Stored], theirs: Mapping[str, Stored]) -> None:
    """Raise SystemExit unless both files hold the same tensors in the same formats and bytes."""
    different = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    if different:
        first = different[0]
        raise SystemExit(
            f"{label}: {len(different)} tensors differ in type or bytes, so it is no fair comparison "
            f"(first: {first}, ours {ours.get(first)}, theirs {theirs.get(first)})"
        )


def supports(method: str, target: Target) -> bool:
    """Whether a method, or any effort, can choose codes of a target's formats."""
    if not target.is_pure:
        return True
    number_format = FORMATS[target.type.lower()]
    return METHODS[method].supports(number_format) if method in METHODS else number_format.can_encode


def quantize(setting: Setting, recipe: str, output: Path, method: str, imatrix: Path) -> None:
    """One file of ours."""
    if setting.reuses and output.exists():
        return
    needs_text = method not in METHODS or METHODS[method].needs == "hessian"
    guidance = workflows.Guidance(text=(setting.calibration,)) if needs_text else workflows.Guidance(imatrix=imatrix)
    options = workflows.QuantizeOptions(force=True, threads=setting.options.threads)
    options = replace(options, method=method) if method in METHODS else replace(options, effort=method)
    workflows.quantize(setting.model, recipe, output, guidance=guidance, options=options)


def compare(setting: Setting, base: Path, made: Sequence[Made], text: Text) -> EvaluationResult:
    """Every file against the original on one text."""
    paths = dict.fromkeys(path for file in made for path in (file.peer, file.path))
    with ExitStack() as stack:
        original = (setting.name, stack.enter_context(workflows.opened(base)))
        files = [(str(path), stack.enter_context(workflows.opened(path))) for path in paths]
        options = replace(setting.options, measure_floor=False)
        return compare_models(original, files, read_text(text.path), options)


@contextmanager
def cross_check(
    setting: Setting, base: Path, text: Text, result: EvaluationResult
) -> Iterator[Callable[[Path], float | None]]:
    """A function that gives the mean KL of a GGUF as llama-perplexity measures it, through its own engine.

    None for what is no GGUF.
    """
    logits = setting.folder / f"{text.domain}.logits"
    sizes = {"context": result.context, "chunks": result.chunks}

    @cache
    def divergence(path: Path) -> float | None:
        if path.suffix != ".gguf":
            return None
        if not logits.exists():
            setting.llama_cpp.keep_logits(base, text.path, logits, **sizes)
        return setting.llama_cpp.divergence(path, text.path, logits, **sizes)

    logits.unlink(missing_ok=True)
    try:
        yield divergence
    finally:
        logits.unlink(missing_ok=True)


def _chunked(file: FileResult, result: EvaluationResult) -> DoubleArray:
    """KL of each scored token, [chunks, scored per chunk]."""
    return file.scores.kld.reshape(result.chunks, -1)
