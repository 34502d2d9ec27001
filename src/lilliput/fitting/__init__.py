# SPDX-License-Identifier: Apache-2.0
"""`fit`: a budget goes in, a model comes out. Joins search with quantize, as workflows.py joins the other rooms.

A room of its own because it stands above `quantize`: it searches, then quantizes with what it found, and measures.
"""

from lilliput.fitting.estimate import FitPlan
from lilliput.fitting.fit import fit, fit_again, plan_fit
from lilliput.fitting.request import FitOptions, FitResult, Goal, Interval, SearchKind, SensitivityKind

__all__ = [
    "FitOptions",
    "FitPlan",
    "FitResult",
    "Goal",
    "Interval",
    "SearchKind",
    "SensitivityKind",
    "fit",
    "fit_again",
    "plan_fit",
]
