# SPDX-License-Identifier: Apache-2.0
"""Every error that lilliput raises on purpose.

LilliputError                 one clear line for the user: which item, what was found, what is allowed, what to do
├── FormatError               a tensor cannot be held by, or decoded from, a number format
├── ContainerError            a file is damaged, unsupported, or cannot hold what it was given
├── CheckpointError           a model folder or hub id cannot be read
├── RecipeError               a recipe, preset or option names something that does not exist
├── CalibrationError          calibration text or statistics cannot be used
├── TextError                 a text file is missing, empty, or not in a form that can be read
├── TokenizerError            a tokenizer or chat template cannot be rebuilt or run
├── UnsupportedModelError     a model family or a variant of one that is not known here
├── RuntimeModelError         the engine cannot run what it was asked to
├── EvaluationError           two models cannot be compared
└── PublishError              an output file cannot be written or published
"""


class LilliputError(Exception):
    """Root of all errors whose message is written for the user."""

    def __init__(self, message: str = "") -> None:
        # Names come out of files: a line break or an escape sequence in one must not reach the terminal.
        super().__init__("".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in message))


class FormatError(LilliputError):
    """A tensor cannot be held by, or decoded from, a number format."""


class ContainerError(LilliputError):
    """A file is damaged, unsupported, or cannot hold what it was given."""


class CheckpointError(LilliputError):
    """A model folder or hub id cannot be read."""


class RecipeError(LilliputError):
    """A recipe, preset or option names something that does not exist."""


class CalibrationError(LilliputError):
    """Calibration text or statistics cannot be used."""


class TextError(LilliputError):
    """A text file is missing, empty, or not in a form that can be read."""


class TokenizerError(LilliputError):
    """A tokenizer or chat template cannot be rebuilt or run."""


class UnsupportedModelError(LilliputError):
    """A model family, or a variant of one, that is not known here."""


class RuntimeModelError(LilliputError):
    """The engine cannot run what it was asked to."""


class EvaluationError(LilliputError):
    """Two models cannot be compared."""


class PublishError(LilliputError):
    """An output file cannot be written or published."""
