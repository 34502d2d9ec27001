# SPDX-License-Identifier: Apache-2.0
"""GPTQModel (GPTQ, arXiv 2210.17323) with its defaults.

GM/bin/python benchmarks/peers/run_gptqmodel.py FOLDER --text FILE --out FOLDER
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# On fewer than four processors its default of one worker is refused by its own pool.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from safetensors.torch import load_file
from text_windows import BITS, GROUP_SIZE, job
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Quantize, write the dequantized folder."""
    todo = job(__doc__)
    config = QuantizeConfig(bits=BITS, group_size=GROUP_SIZE, sym=True, device="cpu")
    tool = GPTQModel.load(todo.model, config, backend=BACKEND.TORCH)
    tool.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in todo.windows], batch_size=8)
    with tempfile.TemporaryDirectory() as folder:
        tool.save(folder)
        stored = {
            name: tensor for path in Path(folder).glob("*.safetensors") for name, tensor in load_file(path).items()
        }
    model = AutoModelForCausalLM.from_pretrained(todo.model, dtype=torch.float32)
    for name in [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]:
        layer = model.get_submodule(name)
        layer.weight.data = dequantized(stored, name)
    model.save_pretrained(todo.out)
    AutoTokenizer.from_pretrained(todo.model).save_pretrained(todo.out)


def dequantized(stored: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Float32 [out, in] of one layer, from the layout that AutoGPTQ began.

    qweight: int32 [in / 8, out], eight codes of 4 bits each, lowest first.  scales: [groups, out].  g_idx: [in].
    The zero point is 8 for symmetric integers.
    """
    shifts = torch.arange(0, 32, BITS)[None, :, None]
    codes = (stored[f"{name}.qweight"][:, None, :] >> shifts) & (2**BITS - 1)
    codes = codes.reshape(-1, codes.shape[-1]) - 2 ** (BITS - 1)
    scales = stored[f"{name}.scales"].float()[stored[f"{name}.g_idx"].long()]
    return (codes * scales).T.contiguous()


if __name__ == "__main__":
    main()
