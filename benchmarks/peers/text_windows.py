# SPDX-License-Identifier: Apache-2.0
"""A text as the windows of tokens that every tool calibrates on; needs transformers alone, as peers' environments have.

The two scripts beside this one run in an environment of their peer's own:

    python -m venv AR && AR/bin/pip install torch auto-round
    python -m venv GM && GM/bin/pip install torch && GM/bin/pip install --no-build-isolation gptqmodel

Each takes a Hugging Face folder and a text, quantizes every linear layer inside the blocks to 4-bit symmetric integers
in groups of 128 as that tool does by default, and writes a Hugging Face folder of the dequantized float32 weights.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

BITS, GROUP_SIZE = 4, 128


@dataclass(frozen=True)
class Job:
    """The command line of a peer's script. windows: token ids, each `length` long."""

    model: str
    out: str
    windows: list[list[int]]


def job(description: str | None) -> Job:
    """Parse the command line and cut the text."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", help="Hugging Face folder")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ids = tokenizer(options.text.read_text(encoding="utf-8"))["input_ids"]
    length = options.length
    windows = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    return Job(options.model, options.out, windows)
