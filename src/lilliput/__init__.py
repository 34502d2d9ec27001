# SPDX-License-Identifier: Apache-2.0
"""lilliput makes big language models small, and proves what it cost.

from pathlib import Path
import lilliput
lilliput.plan("path/to/model", "Q4_K_M")
lilliput.calibrate("path/to/model", ["text.txt"], "statistics.safetensors")
guidance = lilliput.Guidance(statistics=Path("statistics.safetensors"))
lilliput.quantize("path/to/model", "Q4_K_M", "model.gguf", guidance=guidance)
lilliput.evaluate("path/to/model", ["model.gguf"], "held-out.txt")
lilliput.report("path/to/model", ["model.gguf"])
lilliput.fit("path/to/model", lilliput.Goal(size=6 * 10**9), "fitted.gguf", text=[Path("text.txt")])
print(lilliput.generate("model.gguf", "Once").text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lilliput.converting import ConvertOptions, convert
    from lilliput.evaluation.model_logits import EvaluationOptions
    from lilliput.fitting.fit import fit
    from lilliput.fitting.request import FitOptions, Goal
    from lilliput.generating import GenerateOptions, generate
    from lilliput.pushing import PushOptions, push
    from lilliput.reporting import ReportOptions, report
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
    "ConvertOptions",
    "EvaluationOptions",
    "FitOptions",
    "GenerateOptions",
    "Goal",
    "Guidance",
    "PushOptions",
    "QuantizeOptions",
    "ReportOptions",
    "__version__",
    "calibrate",
    "convert",
    "evaluate",
    "fit",
    "generate",
    "inspect",
    "plan",
    "push",
    "quantize",
    "report",
]

# What is not in `lilliput.workflows`.
_ROOMS = {
    "ConvertOptions": "converting",
    "FitOptions": "fitting",
    "GenerateOptions": "generating",
    "Goal": "fitting",
    "PushOptions": "pushing",
    "ReportOptions": "reporting",
    "convert": "converting",
    "fit": "fitting",
    "generate": "generating",
    "push": "pushing",
    "report": "reporting",
}


def __getattr__(name: str) -> object:
    # Loaded on first use, so that reading one room does not import them all.
    if name == "torch":
        return import_module("lilliput.torch")
    if name in __all__:
        return getattr(import_module(f"lilliput.{_ROOMS.get(name, 'workflows')}"), name)
    raise AttributeError(f"module 'lilliput' has no attribute {name!r}")
