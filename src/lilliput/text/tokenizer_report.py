# SPDX-License-Identifier: Apache-2.0
"""Check a Vocabulary by behaviour: encode probing texts with the model's own tokenizer.json and with ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer

from lilliput.errors import TokenizerError
from lilliput.text.probes import PROBES, UNNORMALIZED_PROBES
from lilliput.text.tokenizer import Tokenizer
from lilliput.text.vocabulary import TokenType, Vocabulary

# How many special tokens are probed amid text.
PROBED_SPECIALS = 8


@dataclass(frozen=True, slots=True)
class ProbeDifference:
    """expected: ids from the model's own tokenizer.  found: ids from the rebuilt one."""

    text: str
    expected: tuple[int, ...]
    found: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenizerReport:
    """probes: texts compared, 0 where the folder holds no tokenizer.json to compare with.

    differences: ordinary texts that are encoded differently.
    around_specials: texts with special tokens amid them, which may swallow spaces beside them in the original.
    unnormalized: texts that Unicode normalization changes.
    """

    probes: int
    differences: tuple[ProbeDifference, ...] = ()
    around_specials: tuple[ProbeDifference, ...] = ()
    unnormalized: tuple[ProbeDifference, ...] = ()

    def warning(self) -> str | None:
        """One line for the user; None where all ordinary text is encoded alike."""
        if self.probes == 0:
            return "the tokenizer could not be checked: the folder holds no tokenizer.json to compare with"
        shown = (*self.differences, *self.around_specials)
        if not shown:
            return None
        example = shown[0]
        return (
            f"the tokenizer is not reproduced exactly: {len(shown)} of {self.probes} probing texts are encoded "
            f"differently, such as {example.text[:40]!r} ({list(example.expected[:8])} in the original, "
            f"{list(example.found[:8])} here)"
        )


def check_vocabulary(folder: Path, vocabulary: Vocabulary) -> TokenizerReport:
    """Compare `vocabulary` with the folder's tokenizer.json. Raises TokenizerError for a damaged one."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return TokenizerReport(probes=0)
    try:
        huggingface = RustTokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"{path.name}: cannot be read ({error})") from error
    # What the file says about batches is nothing about texts.
    huggingface.no_padding()
    huggingface.no_truncation()
    ours = Tokenizer(vocabulary)
    specials = _special_probes(vocabulary)
    return TokenizerReport(
        probes=len(PROBES) + len(specials),
        differences=_compare(huggingface, ours, PROBES),
        around_specials=_compare(huggingface, ours, specials),
        unnormalized=_compare(huggingface, ours, UNNORMALIZED_PROBES),
    )


def _compare(huggingface: RustTokenizer, ours: Tokenizer, texts: tuple[str, ...]) -> tuple[ProbeDifference, ...]:
    pairs = ((text, huggingface.encode(text).ids, ours.encode(text, parse_special=True)) for text in texts)
    return tuple(
        ProbeDifference(text, tuple(expected), tuple(found)) for text, expected, found in pairs if expected != found
    )


def _special_probes(vocabulary: Vocabulary) -> tuple[str, ...]:
    typed = zip(vocabulary.tokens, vocabulary.token_types, strict=True)
    added = [token for token, kind in typed if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)][:PROBED_SPECIALS]
    return tuple(f"{token}one {token} two\n{token}\n\nthree{token}" for token in added)
