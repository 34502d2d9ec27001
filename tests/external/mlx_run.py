# SPDX-License-Identifier: Apache-2.0
"""Run by the environment's own python: a folder's logits through mlx-lm, or a folder that mlx-lm quantizes itself.

python mlx_run.py logits FOLDER IDS.npy OUTPUT.npy
python mlx_run.py convert FOLDER TARGET BITS GROUP
"""

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

if sys.argv[1] == "logits":
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(sys.argv[2]))
    found = model(mx.array(np.load(sys.argv[3])))
    np.save(sys.argv[4], np.array(found.astype(mx.float32)))
else:
    from mlx_lm import convert

    bits, group = int(sys.argv[4]), int(sys.argv[5])
    convert(sys.argv[2], mlx_path=sys.argv[3], quantize=True, q_bits=bits, q_group_size=group, dtype="float16")
    quantized, written = mx.load(f"{sys.argv[3]}/model.safetensors"), {}
    for name, array in quantized.items():
        module = name.removesuffix(".weight")
        if f"{module}.scales" in quantized and name.endswith(".weight"):
            parts = [quantized[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases")]
            written[name] = np.array(mx.dequantize(array, *parts, group_size=group, bits=bits))
    np.savez(f"{sys.argv[3]}/dequantized.npz", **written)
