# SPDX-License-Identifier: Apache-2.0
"""Run by the environment's own python: compute a .tflite file's first output.

python litert_run.py MODEL IDS.npy OUTPUT.npy plain|xnnpack
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

kinds = {"plain": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, "xnnpack": OpResolverType.AUTO}
interpreter = Interpreter(sys.argv[1], num_threads=1, experimental_op_resolver_type=kinds[sys.argv[4]])
interpreter.allocate_tensors()
for item in interpreter.get_input_details():
    ids = np.load(sys.argv[2]).astype(np.int32)
    # Tokens of -1 are padding.
    known = {"input_ids": np.maximum(ids, 0), "attention_mask": (ids >= 0).astype(np.int32)}
    interpreter.set_tensor(item["index"], known.get(item["name"], np.zeros_like(ids)))
interpreter.invoke()
np.save(sys.argv[3], interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
