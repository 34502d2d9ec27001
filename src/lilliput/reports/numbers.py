# SPDX-License-Identifier: Apache-2.0
"""Numbers for people: as many digits as their intervals justify, and always a unit."""

from __future__ import annotations

import math

from lilliput.reports.records import Interval

# Below this a fixed-point number has more zeros than digits.
SMALLEST_FIXED = 1e-4
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MINUS, TIMES, UNKNOWN = "\u2212", "\u00d7", "\u2013"


def with_error(interval: Interval, *, factor: float = 1.0, unit: str = "") -> str:
    """`0.0065 ± 0.0012 nats`; very small ones with a power of ten. Four digits where no interval is known.

    factor: multiplies all of it, 100 for percent.
    """
    value, error = interval.value * factor, abs(interval.half_width * factor)
    ending = f" {unit}" if unit else ""
    if not (math.isfinite(value) and math.isfinite(error)) or error == 0.0:
        return significant(value, 4) + ending
    size = max(abs(value), error)
    if size >= SMALLEST_FIXED:
        digits = max(error_decimals(error), 0)
        return f"{signed(value, digits)} ± {error:.{digits}f}{ending}"
    power = math.floor(math.log10(size))
    value, error = value / 10.0**power, error / 10.0**power
    digits = max(error_decimals(error), 0)
    return f"({signed(value, digits)} ± {error:.{digits}f}) {TIMES} {raised(power)}{ending}"


def error_decimals(error: float) -> int:
    """Decimals that an error bar justifies: two digits of it when they begin with 100 to 354, else one.

    Source: Particle Data Group, Review of Particle Physics, introduction, section 5.3 (rounding).
    """
    exponent = math.floor(math.log10(error))
    leading = error / 10.0**exponent
    return 1 - exponent if leading < 3.55 else -exponent


def signed(value: float, digits: int) -> str:
    """Fixed decimals, with a real minus sign, and no minus before zero."""
    shown = f"{value:.{digits}f}"
    return shown.replace("-", "") if float(shown) == 0.0 else shown.replace("-", MINUS)


def significant(value: float, digits: int) -> str:
    """A number with so many significant digits; very small ones with a power of ten."""
    if value == 0.0:
        return "0"
    if not math.isfinite(value):
        return "∞" if value > 0 else UNKNOWN
    power = math.floor(math.log10(abs(value)) + 1e-12)
    if power < -4:
        return f"{signed(value / 10.0**power, digits - 1)} {TIMES} {raised(power)}"
    return signed(value, max(digits - 1 - power, 0))


def raised(power: int) -> str:
    """10 to a power, with raised digits."""
    return "10" + str(power).translate(_RAISED)


def human_bytes(count: float) -> str:
    """Three digits and a decimal unit: 6.02 MB, GB = 10^9."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.{2 if count < 10 * size else 1 if count < 100 * size else 0}f} {unit}"
    return f"{count:.0f} B"


def human_count(count: float) -> str:
    """9.18 million."""
    for unit, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def share(part: float, whole: float) -> str:
    """33 %; one decimal below ten percent."""
    percent = 100.0 * part / whole if whole else 0.0
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %"


def change(ratio: Interval) -> str:
    """A ratio as a change: +0.4 ± 0.4 %."""
    moved = Interval(ratio.value - 1.0, ratio.low - 1.0, ratio.high - 1.0)
    shown = with_error(moved, factor=100.0, unit="%")
    return shown if shown.startswith((MINUS, "(", UNKNOWN)) else f"+{shown}"


def power_of_ten(exponent: int) -> str:
    """1, 10, 0.1, 0.01, 0.001, then 10⁻⁴."""
    if -3 <= exponent <= 3:
        return f"{10.0**exponent:g}"
    return raised(exponent)
