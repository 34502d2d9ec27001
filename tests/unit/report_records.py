# SPDX-License-Identifier: Apache-2.0
"""A report made of plain records, with text that would like to be markup."""

from __future__ import annotations

from dataclasses import replace

from lilliput.reports.records import (
    Candidate,
    Comparison,
    Continuation,
    FrontierPoint,
    Histogram,
    Interval,
    Making,
    Measured,
    MeasuringText,
    Original,
    Passage,
    PassageScores,
    Place,
    QuantizedFile,
    Report,
    TensorRow,
    Verdict,
    WeightPicture,
    WrittenToken,
)

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "&lt;b&gt;",
    '"><svg onload=alert(2)>',
    "\u202e\x00\n",
    "a`|b\n---\n# c",
)
PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def tensor_rows(layers: int = 3) -> tuple[TensorRow, ...]:
    rows = [
        TensorRow("token_embd.weight", None, "token_embd", (4096, 512), "Q6_K", 6.5625, 1720320, "cast", 3e-4, 2e-4)
    ]
    for layer in range(layers):
        rows += [
            TensorRow(
                f"blk.{layer}.{part}.weight", layer, part, (512, 512), "Q4_K", 4.5, 147456, "feedback", 0.005, 0.004
            )
            for part in PARTS
        ]
        rows.append(TensorRow(f"blk.{layer}.attn_norm.weight", layer, "attn_norm", (512,), "F32", 32.0, 2048, "copy"))
    return tuple(rows)


def passage_tokens(count: int = 255) -> tuple[str, ...]:
    words = (" the", " number", "\n", " of", " weights", *HOSTILE)
    return tuple(words[index % len(words)] for index in range(count))


def candidates(count: int = 255) -> tuple[tuple[Candidate, ...], ...]:
    words = (" the", " a", "\n", HOSTILE[0], HOSTILE[3])
    return tuple(
        tuple(Candidate(word, 0.4 / (rank + 1 + index % 2)) for rank, word in enumerate(words))
        for index in range(count)
    )


def measured(kld: float = 0.0123, level: int = 2) -> Measured:
    edges = tuple(-8.0 + index / 8 for index in range(81))
    counts = tuple(max(0, 40 - abs(index - 45)) for index in range(80))
    return Measured(
        tokens=4080,
        mean_kld=Interval(kld, kld * 0.9, kld * 1.1),
        same_top=Interval(0.9137, 0.9, 0.927),
        perplexity=Interval(45.75, 33.0, 60.0),
        perplexity_ratio=Interval(1.0039, 1.0, 1.0078),
        kld_percentiles=((50.0, kld / 2), (90.0, kld), (99.0, kld * 4), (99.9, kld * 9), (100.0, kld * 50)),
        kld_histogram=Histogram(edges, counts),
        verdict=Verdict(level, "close", "safe for most uses"),
    )


def quantized_file(label: str = "model-Q4_K_M", layers: int = 3, kld: float = 0.0123) -> QuantizedFile:
    picture = WeightPicture(
        "blk.0.attn_q.weight", "typical", "Q4_K", 0.005, Histogram((-1.0, 0.0, 1.0), (3, 5)),
        Histogram((-1.0, 0.0, 1.0), (4, 4)), (-0.5, 0.1, 0.4), (-0.75, -0.25, 0.25, 0.75), "row 1, columns 0 to 31",
    )  # fmt: skip
    place = Place("before ", HOSTILE[0], " after", 0.4, candidates(1)[0], candidates(1)[0])
    written = tuple(WrittenToken(text, 0.01 * at) for at, text in enumerate(HOSTILE))
    return QuantizedFile(
        label=label, file=f"{label}.gguf", container="gguf", bytes=6_015_616, bits_per_weight=5.129,
        measured=measured(kld), tensors=tensor_rows(layers), pictures=(picture,) * 3,
        passage=PassageScores(tuple(0.003 * (at % 50) for at in range(255)), candidates()),
        places=(place,) * 6, continuation=Continuation(HOSTILE[0], written, written[:3], 3),
        making=Making(
            "Q4_K_M", "lilliput quantize gulliver", (("feedback", 21),), (("awq_scaling", 3),), ("text.txt",),
            {"numpy": "2.4"}, {"output": "ab" * 32}, {f"{label}.gguf": "cd" * 32}, (HOSTILE[0],),
        ),
    )  # fmt: skip


def some_report(files: int = 2, layers: int = 3, name: str = "gulliver") -> Report:
    made = tuple(quantized_file(f"model-{index}", layers, 0.0123 / (index + 1)) for index in range(files))
    pairs = (Comparison("model-0", "model-1", Interval(2.0, 1.8, 2.2), "model-1 is closer"),) if files > 1 else ()
    return Report(
        original=Original(
            name, "gulliver", 18_360_416, 16.0, 9_178_624, "llama", layers, 512, Interval(45.7, 33.0, 60.0),
            {"license": "apache-2.0", "languages": ("en",), "repo_url": "https://huggingface.co/org/gulliver"},
            "ef" * 32,
        ),
        files=made,
        text=MeasuringText("test.txt", "01" * 32, 16, 512, 4080, "f32"),
        passage=Passage(7, HOSTILE[0], passage_tokens(), candidates()),
        paired=pairs,
        floor=Interval(1e-4, 0.9e-4, 1.1e-4),
        command="lilliput report",
        versions={"lilliput": "0.1.0"},
        notes=(HOSTILE[0],),
    )  # fmt: skip


def with_frontier(report: Report) -> Report:
    points = tuple(
        FrontierPoint(4_000_000 + 500_000 * index, None, Interval(0.1 / 2**index, float("nan"), float("nan")))
        for index in range(6)
    )
    return replace(report, frontier=points)
