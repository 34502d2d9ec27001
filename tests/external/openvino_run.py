# SPDX-License-Identifier: Apache-2.0
"""Run by the environment's own python: compute a folder's logits with OpenVINO, in float32, prefill and one more token.

    python openvino_run.py MODEL IDS.npy LOGITS.npy [SAVED.xml]

MODEL is model.onnx or an .xml.  SAVED: where to save it as IR, which is then what runs.
Prints the types of large constants, in the file and as compiled, as JSON.
"""

import json
import sys
from collections import Counter

import numpy as np
import openvino

model_path, ids_path, logits_path = sys.argv[1:4]
core = openvino.Core()
model = core.read_model(model_path)
if len(sys.argv) > 4:
    openvino.save_model(model, sys.argv[4], compress_to_fp16=False)
    model = core.read_model(sys.argv[4])
exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_NUM_THREADS": "1",
         "KV_CACHE_PRECISION": "f32"}  # fmt: skip
compiled = core.compile_model(model, "CPU", exact)
ids = np.load(ids_path).astype(np.int64)
names = {port.get_any_name(): port for port in compiled.inputs}
past = {
    name: np.zeros((1, port.partial_shape[1].get_length(), 0, port.partial_shape[3].get_length()), np.float32)
    for name, port in names.items()
    if name.startswith("past_key_values.")
}
logits, length = [], 0
for part in (ids[:-1], ids[-1:]):
    end = length + len(part)
    feed = {
        "input_ids": part[None],
        "attention_mask": np.ones((1, end), np.int64),
        "position_ids": np.arange(length, end, dtype=np.int64)[None],
        **past,
    }
    result = compiled({name: value for name, value in feed.items() if name in names})
    found = {port.get_any_name(): value for port, value in result.items()}
    past = {name: np.array(found[name.replace("past_key_values", "present")]) for name in past}
    logits.append(np.array(found["logits"][0]))
    length = end
np.save(logits_path, np.concatenate(logits))


def shown(items):
    """How many large constants of each element type, and products of each type that the plugin chose."""
    kinds = Counter()
    for node in items:
        info = node.get_rt_info()
        layer = info["layerType"].astype(str) if "layerType" in info else node.get_type_name()
        if layer in ("Const", "Constant") and np.prod(node.get_output_shape(0)) > 4096:
            kinds["constant " + node.get_output_element_type(0).get_type_name()] += 1
        elif layer == "FullyConnected":
            kinds["product " + info["primitiveType"].astype(str).rpartition("_")[2]] += 1
    return kinds


print(json.dumps({"file": shown(model.get_ops()), "compiled": shown(compiled.get_runtime_model().get_ops())}))
