# SPDX-License-Identifier: Apache-2.0
"""Heads that predict several tokens ahead (DeepSeek-V3, arXiv 2412.19437 section 2.2; Qwen3-Next; MiMo).

A checkpoint has them beside the model, as `mtp.*` or as blocks past the last one that config.json counts. Nothing here
runs them, and a model without them is another model to whoever does: they are kept under their own names and quantized
as their names and shapes say (`unknown`), without inputs to calibrate on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from lilliput.architectures import unknown
from lilliput.architectures.architecture import ListedTensor, ModelConfig, TensorEntry
from lilliput.architectures.sources import Named

_NAMED = re.compile(r"(^|\.)(mtp|mtp_\w+|nextn|multi_token_prediction)\.")
_BLOCK = re.compile(r"(^|\.)layers\.(\d+)\.")


def with_prediction_heads(
    config: ModelConfig, found: Sequence[unknown.FoundTensor], known: Collection[str], blocks: int
) -> ModelConfig:
    """The config with what a checkpoint has of such heads.

    found: all of its tensors.  known: names that the family's table reads.  blocks: how many config.json announces
    past the last (`num_nextn_predict_layers`); more than those are not heads but another model.
    """
    heads = [item for item in found if item.name not in known and _is_head(item.name, config.layers, blocks)]
    listed = unknown.listed_tensors(config, heads)
    return replace(
        config,
        prediction_heads=tuple(replace(item, assumed=f"predicts further tokens, {item.assumed}") for item in listed),
    )


def head_entries(config: ModelConfig) -> Iterator[TensorEntry]:
    """Rows of the tensor table for them."""
    for item in config.prediction_heads:
        yield TensorEntry(item.name, Named(item.name), item.shape, item.role, assumed=item.assumed)


def described_heads(heads: Sequence[ListedTensor], names: Collection[str], *, are_kept: bool) -> str:
    """One sentence for the user. names: those of them that the output has or lacks."""
    shown = [item.name for item in heads if item.name in names]
    what = f"{len(shown)} tensors of heads that predict further tokens ({shown[0]} …)"
    if are_kept:
        return f"{what} are kept, quantized by names and shapes without inputs; lilliput does not run them"
    return (
        f"{what} are NOT in the output: GGUF has no place for them in this family, and llama.cpp refuses files with "
        "tensors that it does not know; -o NAME.safetensors and -o NAME.compressed-tensors keep them"
    )


def _is_head(name: str, layers: int, blocks: int) -> bool:
    block = _BLOCK.search(name)
    return _NAMED.search(name) is not None or (block is not None and layers <= int(block[2]) < layers + blocks)
