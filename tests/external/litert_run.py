# SPDX-License-Identifier: Apache-2.0
"""Run by the environment's own python: compute a .tflite file's first output.

python litert_run.py MODEL IDS.npy OUTPUT.npy plain|xnnpack [ALL.npz]

IDS.npy: [texts, tokens], a text after the other.  OUTPUT.npy: [texts, ...]; its scale and zero point are
printed.  ALL.npz: of the last text, every tensor that can be asked for, and its scales and zero point.
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

kinds = {"plain": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, "xnnpack": OpResolverType.AUTO}
interpreter = Interpreter(
    sys.argv[1],
    num_threads=1,
    experimental_op_resolver_type=kinds[sys.argv[4]],
    experimental_preserve_all_tensors=len(sys.argv) > 5,
)
interpreter.allocate_tensors()
outputs = []
for ids in np.load(sys.argv[2]).astype(np.int32)[:, None]:
    for item in interpreter.get_input_details():
        # Tokens of -1 are padding.
        known = {"input_ids": np.maximum(ids, 0), "attention_mask": (ids >= 0).astype(item["dtype"])}
        interpreter.set_tensor(item["index"], known.get(item["name"], np.zeros_like(ids)))
    interpreter.invoke()
    (result, *_) = interpreter.get_output_details()
    outputs.append(interpreter.get_tensor(result["index"]))
np.save(sys.argv[3], np.concatenate(outputs))
# 0 and 0 of floats.
print(*result["quantization"])
if len(sys.argv) > 5:
    kept = {}
    for item in interpreter.get_tensor_details():
        try:
            interpreter.get_tensor(item["index"])
        except ValueError:
            # XNNPACK keeps what lies between its operators to itself.
            continue
        grid = item["quantization_parameters"]
        kept[f"{item['index']}.codes"] = interpreter.get_tensor(item["index"])
        kept[f"{item['index']}.scales"], kept[f"{item['index']}.zero_points"] = grid["scales"], grid["zero_points"]
    np.savez(sys.argv[5], **kept)
