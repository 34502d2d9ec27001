# SPDX-License-Identifier: Apache-2.0
"""From values to pixels, and where an axis has its ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lilliput.reports.markup import Markup, element, join


@dataclass(frozen=True, slots=True)
class Axis:
    """Values low..high on pixels start..end; logarithmic in base 10 where asked."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value, kept inside the axis."""
        low, high, shown = self.low, self.high, value
        if self.is_log:
            low, high, shown = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        part = (shown - low) / (high - low) if high > low else 0.5
        return self.start + min(max(part, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values inside: steps of 1, 2 or 5; powers of ten (and 2, 5 times them where few) on a log axis."""
        if self.is_log:
            return self._log_ticks(wanted)
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        raw = span / wanted
        power = 10.0 ** math.floor(math.log10(raw))
        size = next(step * power for step in (1, 2, 5, 10) if step * power >= raw * 0.999)
        first = math.ceil(self.low / size - 1e-9)
        return [index * size for index in range(first, math.floor(self.high / size + 1e-9) + 1)]

    def _log_ticks(self, wanted: int) -> list[float]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        stride = max(1, math.ceil((last - first + 1) / (wanted + 2)))
        found = [10.0**power for power in range(first, last + 1, stride)]
        if len(found) >= 3:
            return found
        fine = [base * 10.0**power for power in range(first - 1, last + 1) for base in (1, 2, 5)]
        return [value for value in fine if self.low <= value * 1.0001 and value <= self.high * 1.0001]


def label(x: float, y: float, content: str, *, anchor: str = "middle", class_: str = "tick") -> Markup:
    """A word in a chart."""
    return element("text", content, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


def svg(width: float, height: float, *children: Markup, title: str) -> Markup:
    """A chart that fills the width it is given; title: what it shows, for readers who do not see it."""
    return element(
        "svg", join(*children), viewbox=f"0 0 {width:g} {height:g}", role="img", aria_label=title, class_="chart"
    )
