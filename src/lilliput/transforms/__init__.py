# SPDX-License-Identifier: Apache-2.0
"""Transforms: function-preserving rewrites before quantization. To add one, write its file and add one line here."""

from __future__ import annotations

import math
from collections.abc import Callable
from difflib import get_close_matches

from lilliput.errors import RecipeError
from lilliput.transforms.awq_scaling import AwqScaling
from lilliput.transforms.residual_rotation import ResidualRotation
from lilliput.transforms.smooth_quant import SmoothQuant
from lilliput.transforms.transform import Transform
from lilliput.transforms.untie import Untie
from lilliput.transforms.value_rotation import ValueRotation

__all__ = ["TRANSFORMS", "Transform", "parse_transform"]

TRANSFORMS: dict[str, Transform] = {
    transform.name: transform
    for transform in (AwqScaling(), SmoothQuant(), ResidualRotation(), ValueRotation(), Untie())
}
# Those whose strength the user may choose.
_WITH_STRENGTH: dict[str, Callable[[float], Transform]] = {"awq_scaling": AwqScaling, "smooth_quant": SmoothQuant}


def parse_transform(words: str) -> Transform:
    """`name` or, where it has a strength between 0 and 1, `name:STRENGTH`. Raises RecipeError that lists the names."""
    name, colon, number = words.partition(":")
    if name not in TRANSFORMS:
        near = get_close_matches(name, TRANSFORMS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise RecipeError(f"unknown transform '{name}'; {hint}known: {', '.join(TRANSFORMS)}")
    if not colon:
        return TRANSFORMS[name]
    if name not in _WITH_STRENGTH:
        raise RecipeError(f"transform '{name}' has no strength; write it without ':{number}'")
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not 0.0 <= strength <= 1.0:
        raise RecipeError(f"transform '{name}': strength '{number}' is not a number from 0 to 1")
    return _WITH_STRENGTH[name](strength)
