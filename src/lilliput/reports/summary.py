# SPDX-License-Identifier: Apache-2.0
"""The figures of one file in words, rounded once for page and card alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lilliput.reports.numbers import change, human_bytes, share, with_error
from lilliput.reports.records import QuantizedFile, Report


@dataclass(frozen=True, slots=True)
class Figures:
    """What the first screen says of one file, each with its unit."""

    label: str
    size: str
    share: str
    bits_per_weight: str
    kld: str
    same_top: str
    perplexity: str
    perplexity_change: str
    word: str
    advice: str


def figures(report: Report, file: QuantizedFile) -> Figures:
    """Sizes beside the original, divergence with its interval, and the verdict."""
    measured = file.measured
    return Figures(
        label=file.label,
        size=human_bytes(file.bytes),
        share=share(file.bytes, report.original.bytes),
        bits_per_weight=f"{file.bits_per_weight:.2f}",
        kld=with_error(measured.mean_kld),
        same_top=with_error(measured.same_top, factor=100.0, unit="%"),
        perplexity=with_error(measured.perplexity),
        perplexity_change=change(measured.perplexity_ratio),
        word=measured.verdict.word,
        advice=measured.verdict.advice,
    )


def verdict_scale(report: Report) -> str:
    """Words with their limits: indistinguishable to 0.001, faithful to 0.01 …, damaged above."""
    parts = [f"{word} to {limit:g}" if math.isfinite(limit) else f"{word} above" for word, limit in report.verdicts]
    return ", ".join(parts)


def headline_text(report: Report) -> str:
    """How big, how much worse, and whether it is safe, in one sentence."""
    shown = figures(report, report.files[report.headline])
    return (
        f"{shown.label} is {shown.size}, {shown.share} of the original, and {shown.word}: its predictions differ by "
        f"{shown.kld} nats of KL divergence and name the same next token {shown.same_top} of the time; {shown.advice}."
    )
