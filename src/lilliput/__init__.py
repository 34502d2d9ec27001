# SPDX-License-Identifier: Apache-2.0
"""lilliput makes big language models small, and proves what it cost.

import lilliput
lilliput.plan("path/to/model", "Q4_K_M")
lilliput.calibrate("path/to/model", ["text.txt"], "statistics.safetensors")
guidance = lilliput.Guidance(statistics=Path("statistics.safetensors"))
lilliput.quantize("path/to/model", "Q4_K_M", "model.gguf", guidance=guidance)
lilliput.evaluate("path/to/model", ["model.gguf"], "held-out.txt")
lilliput.report("path/to/model", ["model.gguf"])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lilliput.evaluation.model_logits import EvaluationOptions
    from lilliput.reporting import report
    from lilliput.workflows import (
        CalibrateOptions,
        Guidance,
        QuantizeOptions,
        calibrate,
        evaluate,
        inspect,
        plan,
        quantize,
    )

__version__ = "0.1.0"
__all__ = [
    "CalibrateOptions",
    "EvaluationOptions",
    "Guidance",
    "QuantizeOptions",
    "__version__",
    "calibrate",
    "evaluate",
    "inspect",
    "plan",
    "quantize",
    "report",
]


def __getattr__(name: str) -> object:
    # Loaded on first use, so that reading one room does not import them all.
    if name == "torch":
        return import_module("lilliput.torch")
    if name in __all__:
        return getattr(import_module("lilliput.reporting" if name == "report" else "lilliput.workflows"), name)
    raise AttributeError(f"module 'lilliput' has no attribute {name!r}")
