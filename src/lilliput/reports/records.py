# SPDX-License-Identifier: Apache-2.0
"""What a report shows, as plain frozen data; `lilliput.reporting` fills it, the rest of this room draws it.

KL divergence is in nats, probabilities and shares are fractions, sizes are bytes. NaN bounds of an interval mean that
too little was measured to tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width; NaN where it is not known."""
        return (self.high - self.low) / 2.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the divergence means in use. level: 0 best to 4 worst.  word, advice: for the reader."""

    level: int
    word: str
    advice: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between edges. edges: [n + 1], ascending.  counts: [n]."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """How far one file's predictions are from the original's, on the text of the report.

    tokens: scored positions.  perplexity_ratio: file over original.
    kld_percentiles: (percent, nats), ascending.  kld_histogram: over log10 of KL; what is below its first edge counts
    there.
    """

    tokens: int
    mean_kld: Interval
    same_top: Interval
    perplexity: Interval
    perplexity_ratio: Interval
    kld_percentiles: tuple[tuple[float, float], ...]
    kld_histogram: Histogram
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One stored tensor beside its original.

    layer: number of its block, or None outside.  part: its name without block and ending (`attn_q`, `token_embd`).
    relative_error: sum (w - v)^2 / sum w^2.  weighted_error: the same with each square weighted by its column's input
    mean square.  sensitivity: KL in nats that this tensor alone adds.  None where it is not known.
    """

    name: str
    layer: int | None
    part: str
    shape: tuple[int, ...]
    format: str
    bits_per_weight: float
    bytes: int
    method: str
    relative_error: float | None = None
    weighted_error: float | None = None
    sensitivity: float | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether it has rows and columns; norms and biases have not."""
        return len(self.shape) > 1


@dataclass(frozen=True, slots=True)
class WeightPicture:
    """The weights of one tensor, and how one group of them was rounded.

    why: it was chosen.  original: of all weights (or a sample).  quantized: the same bins, stored values.
    group: float weights of one group.  levels: the values that its codes can take, ascending; empty where the format
    has no grid that could be drawn (plain floats).
    """

    tensor: str
    why: str
    format: str
    relative_error: float
    original: Histogram
    quantized: Histogram
    group: tuple[float, ...]
    levels: tuple[float, ...]
    group_name: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible next token and its probability."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of the text that was measured.

    before: text that came just before.  tokens: text of each.  candidates: the original's most probable tokens at each.
    window: number of its window, from 1.
    """

    window: int
    before: str
    tokens: tuple[str, ...]
    candidates: tuple[tuple[Candidate, ...], ...]


@dataclass(frozen=True, slots=True)
class PassageScores:
    """What one file made of the passage, token by token.

    klds: of the prediction of each token.  candidates: the file's most probable tokens.
    """

    klds: tuple[float, ...]
    candidates: tuple[tuple[Candidate, ...], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """One position where a file is far from the original. before, token, after: of the text."""

    before: str
    token: str
    after: str
    kld: float
    original: tuple[Candidate, ...]
    quantized: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class WrittenToken:
    """A token that a model wrote, and the KL between both models' predictions at its place."""

    text: str
    kld: float


@dataclass(frozen=True, slots=True)
class Continuation:
    """The same prompt continued by both models, most probable token after most probable token.

    parts_at: index of the first token in which they differ, None where they do not.
    """

    prompt: str
    original: tuple[WrittenToken, ...]
    quantized: tuple[WrittenToken, ...]
    parts_at: int | None


@dataclass(frozen=True, slots=True)
class Making:
    """How a file was made, from its ledger or from what the file says of itself; empty where neither tells.

    command: that makes it again.  datasets: calibration texts.  sha256: of each weight file.
    methods: and how many tensors each did.  transforms: and at how many edges each rewrote the weights.
    """

    recipe: str = ""
    command: str = ""
    methods: tuple[tuple[str, int], ...] = ()
    transforms: tuple[tuple[str, int], ...] = ()
    datasets: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QuantizedFile:
    """One quantized file of the report. label: its name, shortened until files differ."""

    label: str
    file: str
    container: str
    bytes: int
    bits_per_weight: float
    measured: Measured
    tensors: tuple[TensorRow, ...]
    pictures: tuple[WeightPicture, ...]
    passage: PassageScores
    places: tuple[Place, ...]
    continuation: Continuation | None
    making: Making


@dataclass(frozen=True, slots=True)
class Original:
    """The model that the files were made from. general: name, license, tags … as GGUF's `general.*` spells them."""

    name: str
    file: str
    bytes: int
    bits_per_weight: float
    weights: int
    family: str
    layers: int
    context_length: int
    perplexity: Interval
    general: Mapping[str, str | tuple[str, ...]]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """KL of file a over that of file b, both on the same tokens."""

    a: str
    b: str
    ratio: Interval
    verdict: str


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One mix of formats that a search measured. speed: tokens a second.  kld: NaN bounds where no interval is known.

    formats: of each tensor, empty where the file does not tell.
    """

    bytes: int
    bits_per_weight: float | None
    kld: Interval
    speed: float | None = None
    formats: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MeasuringText:
    """What was measured on. windows of context tokens each; the second half of each is scored."""

    name: str
    sha256: str
    windows: int
    context: int
    scored: int
    activations: str


@dataclass(frozen=True, slots=True)
class Report:
    """All that a page or card shows.

    files: in the order given.  paired: all pairs.  floor: KL that the engine's own int8 arithmetic adds, or None.
    headline: index of the file that the first sentence speaks of.
    verdicts: words and the largest mean KL of each, best first; the last has no limit.
    command: that makes this report again, with basenames only.
    """

    original: Original
    files: tuple[QuantizedFile, ...]
    text: MeasuringText
    passage: Passage
    headline: int = 0
    verdicts: tuple[tuple[str, float], ...] = ()
    paired: tuple[Comparison, ...] = ()
    frontier: tuple[FrontierPoint, ...] = ()
    floor: Interval | None = None
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The object of `lilliput report --json`; numbers that are not finite are null."""
        return {name: finite(value) for name, value in asdict(self).items()}


def finite(value: object) -> object:
    """The same value with every NaN or infinity as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [finite(item) for item in value]
    return value
