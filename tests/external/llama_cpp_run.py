# SPDX-License-Identifier: Apache-2.0
"""Run by the environment's own python: logits of every token, as llama.cpp computes them.

python llama_cpp_run.py MODEL.gguf IDS.npy LOGITS.npy
"""

import sys

import llama_cpp
import numpy as np

ids = np.load(sys.argv[2]).tolist()
model = llama_cpp.Llama(sys.argv[1], n_ctx=len(ids), n_batch=len(ids), logits_all=True, verbose=False)
model.eval(ids)
np.save(sys.argv[3], np.array(model.scores[: len(ids)]))
