# SPDX-License-Identifier: Apache-2.0
"""lilliput.torch: quantized layers inside PyTorch models.

import lilliput.torch
report = lilliput.torch.quantize_(model, "W8A8-dynamic")   # in place; what torch's quantize_dynamic did
print(report)
model.save_pretrained("folder")                            # AutoModel….from_pretrained("folder") opens it
"""

from __future__ import annotations

from importlib.util import find_spec

from lilliput.torch_backend.embedding import QuantizedEmbedding
from lilliput.torch_backend.linear import QuantizedLinear
from lilliput.torch_backend.module_report import ModuleReport, ModuleRow, size_report
from lilliput.torch_backend.quantize import quantize_
from lilliput.torch_backend.scheme import SCHEMES, LayerScheme, get_scheme

__all__ = [
    "SCHEMES",
    "LayerScheme",
    "ModuleReport",
    "ModuleRow",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "get_scheme",
    "quantize_",
    "size_report",
]

if find_spec("transformers") is not None:
    # Importing it registers the quantizer, so that from_pretrained knows our folders.
    from lilliput.torch_backend.transformers_quantizer import LilliputConfig as LilliputConfig

    __all__ += ["LilliputConfig"]
