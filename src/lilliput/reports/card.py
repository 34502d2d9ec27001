# SPDX-License-Identifier: Apache-2.0
"""The model card: a README.md with the YAML block that hubs read, and the same figures as the page.

Keys of the block: huggingface.co/docs/hub/model-cards; `base_model_relation: quantized` links it to its original.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

import yaml

from lilliput.reports.markup import visible
from lilliput.reports.numbers import human_bytes, human_count, significant, with_error
from lilliput.reports.records import Original, QuantizedFile, Report
from lilliput.reports.summary import figures, headline_text, verdict_scale

HUB = "https://huggingface.co/"
# Our container -> what hubs call the library that reads it.
LIBRARIES = {"gguf": "gguf", "huggingface": "transformers"}
TASK = "text-generation"
# What Markdown would take for formatting or HTML; a line break would end a table row.
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&]|^[-+])")


def card(report: Report) -> str:
    """The whole file."""
    block = yaml.safe_dump(_metadata(report), sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"---\n{block}---\n",
        f"# {plain(report.original.name)}, quantized\n",
        plain(headline_text(report)) + "\n",
        _files(report),
        _how_to_run(report),
        _how_made(report),
        _how_measured(report),
        _limits(report),
    ]
    return "\n".join(part for part in parts if part)


def plain(value: str) -> str:
    """Text that Markdown shows as it is."""
    return _MARKS.sub(r"\\\1", " ".join(visible(value).split()))


def code(value: str) -> str:
    """Text as code on one line, whatever it holds."""
    shown = " ".join(visible(value).split()).replace("|", "¦")
    fence = "`" * (max((len(run) for run in re.findall(r"`+", shown)), default=0) + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _metadata(report: Report) -> dict[str, object]:
    original, general = report.original, report.original.general
    base = _base_model(original)
    tags = [*_texts(general.get("tags")), *(_width(file) for file in report.files), "lilliput"]
    found: dict[str, object] = {}
    if base:
        found |= {"base_model": base, "base_model_relation": "quantized"}
    found |= _licence(general)
    found["library_name"] = LIBRARIES.get(report.files[0].container, "lilliput")
    found["pipeline_tag"] = TASK
    if languages := _texts(general.get("languages")):
        found["language"] = languages
    found["tags"] = [tag for tag in dict.fromkeys(tags) if tag != TASK]
    if datasets := list(dict.fromkeys(name for file in report.files for name in file.making.datasets)):
        found["datasets"] = datasets
    found["quantized_by"] = "lilliput"
    found["model-index"] = [_index_entry(report, file) for file in report.files]
    return found


def _index_entry(report: Report, file: QuantizedFile) -> dict[str, object]:
    measured = file.measured
    metrics = [
        ("kl_divergence", "mean KL divergence to the original, nats", measured.mean_kld.value),
        ("same_top_token", "share of positions with the same most probable token", measured.same_top.value),
        ("perplexity", "perplexity", measured.perplexity.value),
    ]
    values = [{"type": kind, "name": name, "value": float(f"{value:.6g}")} for kind, name, value in metrics]
    dataset = {"name": report.text.name, "type": "text"}
    return {
        "name": PurePath(file.file).stem,
        "results": [{"task": {"type": TASK}, "dataset": dataset, "metrics": values}],
    }


def _base_model(original: Original) -> str:
    """The hub id of the original: of the folder itself, else what its own card calls its base."""
    for key in ("source.repo_url", "repo_url", "base_model.0.repo_url"):
        url = original.general.get(key)
        if isinstance(url, str) and url.startswith(HUB):
            return url.removeprefix(HUB)
    return ""


def _licence(general: Mapping[str, str | tuple[str, ...]]) -> dict[str, object]:
    names = {"license": "license", "license.name": "license_name", "license.link": "license_link"}
    return {shown: value for key, shown in names.items() if isinstance(value := general.get(key), str) and value}


def _width(file: QuantizedFile) -> str:
    """A tag for what most bytes of a file are in: 4-bit for Q4_K and int4_g128."""
    sizes = _by_format(file)
    name = max(sizes, key=lambda key: sizes[key]) if sizes else ""
    found = re.search(r"\d+", name)
    return f"{found[0]}-bit" if found else name.lower()


def _by_format(file: QuantizedFile) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for row in file.tensors:
        sizes[row.format] = sizes.get(row.format, 0) + row.bytes
    return sizes


def _files(report: Report) -> str:
    lines = [
        "| file | size | bits per weight | mean KL, nats | same top token | perplexity | verdict |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for file in report.files:
        shown = figures(report, file)
        lines.append(
            f"| {code(file.file)} | {shown.size} ({shown.share}) | {shown.bits_per_weight} | {shown.kld} | "
            f"{shown.same_top} | {shown.perplexity} ({shown.perplexity_change}) | {shown.word}: {shown.advice} |"
        )
    original = report.original
    lines.append(
        f"| original, {code(original.file)} | {human_bytes(original.bytes)} | {original.bits_per_weight:.2f} | 0 "
        f"| 100 % | {with_error(original.perplexity)} | |"
    )
    return "\n".join([*lines, "", f"± is half a 95 % interval. {_measured_on(report)}", ""])


def _measured_on(report: Report) -> str:
    text = report.text
    return (
        f"Measured against the original on {text.scored:,} tokens of {code(text.name)} ({text.windows} windows of "
        f"{text.context}), over the whole vocabulary."
    )


def _how_to_run(report: Report) -> str:
    file = report.files[report.headline]
    lines = ["## How to run", "", "```sh", f'lilliput run {_word(file.file)} --prompt "…"']
    if file.container == "gguf":
        lines.append(f'llama-cli -m {_word(file.file)} -p "…"')
    return "\n".join([*lines, "```", ""])


def _word(name: str) -> str:
    """A file name inside a fenced block: nothing that could end it."""
    return visible(name).replace("`", "'").replace("\n", " ")


def _how_made(report: Report) -> str:
    lines = ["## How it was made", ""]
    lines.append(
        f"From {code(report.original.file)}: {report.original.family}, {human_count(report.original.weights)} weights."
    )
    for file in report.files:
        made = file.making
        lines += ["", f"**{plain(file.label)}**", ""]
        if made.recipe:
            lines.append(f"- recipe: {code(made.recipe)}")
        if made.command:
            lines.append(f"- command: {code(made.command)}")
        if made.methods:
            lines.append("- codes chosen by: " + ", ".join(f"{code(name)} ({count})" for name, count in made.methods))
        if made.transforms:
            shown = ", ".join(f"{code(name)} ({count})" for name, count in made.transforms)
            lines.append(f"- rewritten before by: {shown}")
        lines.append("- calibration text: " + (", ".join(map(code, made.datasets)) or "none, or not known"))
        lines.append("- formats: " + _formats(file))
        if made.versions:
            shown = ", ".join(f"{plain(name)} {plain(version)}" for name, version in made.versions.items())
            lines.append(f"- versions: {shown}")
        lines += [f"- sha256 of {code(name)}: {code(digest)}" for name, digest in made.sha256.items()]
        lines += [f"- note: {plain(note)}" for note in made.notes]
    return "\n".join([*lines, ""])


def _formats(file: QuantizedFile) -> str:
    counts: dict[str, int] = {}
    for row in file.tensors:
        counts[row.format] = counts.get(row.format, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{code(name)} ({count})" for name, count in ranked)


def _how_measured(report: Report) -> str:
    lines = ["## How it was measured", ""]
    if report.command:
        lines.append(f"- command: {code(report.command)}")
    if report.text.sha256:
        lines.append(f"- sha256 of the text: {code(report.text.sha256)}")
    lines.append(f"- fingerprint of the original: {code(report.original.fingerprint)}")
    percents = (50.0, 99.0, 99.9)
    for file in report.files:
        known = dict(file.measured.kld_percentiles)
        shown = ", ".join(
            f"{percent:g} %: {significant(known[percent], 2)}" for percent in percents if percent in known
        )
        lines.append(f"- KL at single tokens of {plain(file.label)}, percentiles in nats: {shown}")
    return "\n".join([*lines, ""])


def _limits(report: Report) -> str:
    lines = ["## Limits", "", *(f"- {plain(note)}" for note in report.notes)]
    lines.append(
        "- KL on one text says nothing of a task by itself; the verdict is a rule of thumb, by the upper end of the "
        f"interval in nats: {verdict_scale(report)}. What the original cannot do, this cannot either."
    )
    return "\n".join([*lines, ""])


def _texts(value: object) -> Sequence[str]:
    return [value] if isinstance(value, str) else list(value) if isinstance(value, tuple) else []
