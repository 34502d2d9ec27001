# SPDX-License-Identifier: Apache-2.0
"""The text of a search, cut in three: to calibrate on, to choose by, and to measure the result on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lilliput import workflows
from lilliput.arrays import IntArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError
from lilliput.evaluation.chunks import Chunks
from lilliput.evaluation.model_logits import EvaluationOptions, builtin_chunks, tokenize
from lilliput.fitting.request import FitOptions
from lilliput.text.documents import read_text

# Windows of the text that candidates are compared on, and that only the result is measured on, at most.
SELECTION_WINDOWS = 32
HELD_OUT_WINDOWS = 32
FEWEST_WINDOWS = 8


@dataclass(frozen=True, slots=True)
class Texts:
    """calibration: [n, chunk_size].  selection, held_out: windows that the calibration does not hold."""

    calibration: IntArray
    selection: Chunks
    held_out: Chunks


def cut_texts(source: ModelSource, text: tuple[Path, ...], options: FitOptions) -> Texts:
    """Cut the text: calibration first, then what is selected on, then what is held out.

    Raises CalibrationError for too little text.
    """
    from lilliput.calibration.data import calibration_chunks

    size = min(workflows.CalibrateOptions().chunk_size, source.config.context_length)
    wanted = (options.tokens or workflows.STREAM_TOKENS) + (SELECTION_WINDOWS + HELD_OUT_WINDOWS) * size
    chunks = calibration_chunks(source.vocabulary(), workflows.text_files(text), chunk_size=size, tokens=wanted)
    if len(chunks) < FEWEST_WINDOWS or chunks.shape[1] < size:
        raise CalibrationError(
            f"the text has {chunks.size} tokens; fit needs at least {FEWEST_WINDOWS * size}, to calibrate, "
            "to choose and to measure on; give more text"
        )
    held_out = min(HELD_OUT_WINDOWS, len(chunks) // 8)
    selection = min(SELECTION_WINDOWS, len(chunks) // 4)
    rest = len(chunks) - held_out - selection
    own = [Chunks(chunks[rest : rest + selection]), Chunks(chunks[rest + selection :])]
    for place, (file, most) in enumerate(
        ((options.selection, SELECTION_WINDOWS), (options.held_out, HELD_OUT_WINDOWS))
    ):
        if file is not None:
            if file in text:
                raise CalibrationError(f"{file}: calibrated on with --text; what is compared or measured on is apart")
            chosen = EvaluationOptions(context=size, tokens=most * size)
            is_builtin = workflows.is_builtin(file)
            own[place] = builtin_chunks(source, chosen) if is_builtin else tokenize(source, read_text(file), chosen)
    count = rest if options.tokens is None else max(1, min(rest, options.tokens // size))
    return Texts(chunks[:count], own[0], own[1])
