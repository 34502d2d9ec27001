# SPDX-License-Identifier: Apache-2.0
"""Run by the environment's own python: log probabilities of the next token, as vLLM computes them.

python vllm_run.py JOBS.json OUTPUT.json, with JOBS a list of [folder, token ids, dtype]
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}

from vllm import LLM, SamplingParams

found = []
for folder, ids, dtype in json.loads(Path(sys.argv[1]).read_text()):
    try:
        model = LLM(model=folder, skip_tokenizer_init=True, enforce_eager=True, dtype=dtype, max_model_len=64)
        asked = SamplingParams(max_tokens=1, temperature=0, detokenize=False, logprobs=20)
        (answer,) = model.generate([{"prompt_token_ids": ids}], asked)
        probabilities = answer.outputs[0].logprobs[0]
        found.append({str(token): item.logprob for token, item in probabilities.items()})
        del model
    except Exception as failure:  # each folder is a test of its own
        found.append({"error": f"{type(failure).__name__}: {str(failure)[:2000]}"})
    Path(sys.argv[2]).write_text(json.dumps(found))
