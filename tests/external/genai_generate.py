# SPDX-License-Identifier: Apache-2.0
"""Run by the environment's own python: continue a prompt greedily with onnxruntime-genai, print token ids as JSON.

python genai_generate.py FOLDER PROMPT TOKENS
"""

import json
import sys

import onnxruntime_genai as og

folder, prompt, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = og.Model(folder)
tokenizer = og.Tokenizer(model)
prompt_ids = [int(token) for token in tokenizer.encode(prompt)]
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=len(prompt_ids) + count, do_sample=False)
generator = og.Generator(model, parameters)
generator.append_tokens(prompt_ids)
while not generator.is_done():
    generator.generate_next_token()
sequence = [int(token) for token in generator.get_sequence(0)]
print(json.dumps({"prompt": prompt_ids, "sequence": sequence, "text": tokenizer.decode(sequence[len(prompt_ids) :])}))
