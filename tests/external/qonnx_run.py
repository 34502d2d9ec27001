# SPDX-License-Identifier: Apache-2.0
"""Run by the environment's own python: execute a QONNX graph with qonnx's executor.

python qonnx_run.py MODEL IDS.npy LOGITS.npy
"""

import sys

import numpy as np
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes

model = ModelWrapper(sys.argv[1])
model = model.transform(InferShapes())
found = execute_onnx(model, {"input_ids": np.load(sys.argv[2]).astype(np.int64)})
np.save(sys.argv[3], next(iter(found.values())))
