# SPDX-License-Identifier: Apache-2.0
"""AutoRound (SignSGD on rounding and clipping, arXiv 2309.05516) with its defaults: 200 iterations a block.

AR/bin/python benchmarks/peers/run_auto_round.py FOLDER --text FILE --out FOLDER
"""

from __future__ import annotations

import torch
from auto_round import AutoRound
from text_windows import BITS, GROUP_SIZE, job
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Quantize, write the dequantized folder."""
    todo = job(__doc__)
    model = AutoModelForCausalLM.from_pretrained(todo.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(todo.model)
    length = len(todo.windows[0])
    windows = [{"input_ids": torch.tensor([window])} for window in todo.windows]
    tool = AutoRound(
        model, tokenizer, bits=BITS, group_size=GROUP_SIZE, sym=True, dataset=windows, seqlen=length,
        nsamples=len(windows), device_map="cpu",
    )  # fmt: skip
    quantized, _ = tool.quantize()
    quantized.float().save_pretrained(todo.out)
    tokenizer.save_pretrained(todo.out)


if __name__ == "__main__":
    main()
