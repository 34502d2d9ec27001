# SPDX-License-Identifier: Apache-2.0
"""Whether a text is long enough to calibrate on: refused where it says nothing, warned of where it says too little."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lilliput.architectures.architecture import ModelConfig
from lilliput.arrays import IntArray
from lilliput.errors import CalibrationError

# The smallest chunk that `--context` allows; a mean square of so few is off by a third (the square root of 2/16).
FEWEST_TOKENS = 16


def check_runnable(config: ModelConfig) -> None:
    """Raise CalibrationError for a model that cannot look at a text, because nothing here knows how it computes."""
    if config.unknown is not None:
        raise CalibrationError(
            f"{config.unknown.model_type}: lilliput cannot run this architecture, so it cannot look at its inputs on a "
            "text; leave --text out, or give --statistics or --imatrix by the checkpoint's tensor names"
        )


def check_enough(chunks: IntArray, texts: Sequence[Path]) -> None:
    """Raise CalibrationError for token ids [chunks, chunk_size] of a text that is hardly one."""
    if chunks.size < FEWEST_TOKENS:
        named = ", ".join(path.name for path in texts) or "built-in mix"
        raise CalibrationError(
            f"{named}: {chunks.size} tokens to calibrate on, at least {FEWEST_TOKENS} are needed and some thousands "
            "are wanted; give more text, or more --tokens"
        )


def few_tokens_notes(tokens: int, widest: int) -> list[str]:
    """A warning where a layer has more inputs than the text has tokens.

    tokens: calibrated on, 0 where that is not known.  widest: inputs of the widest layer. The sums of all products of
    two inputs have at most the rank of the number of tokens: with fewer than inputs, some directions were never seen.
    """
    if not 0 < tokens < widest:
        return []
    return [
        f"calibrated on {tokens:,} tokens, and the widest layer has {widest:,} inputs: codes will fit this text more "
        f"than the model's use; give at least {widest:,} tokens of text, better many times that"
    ]
