# SPDX-License-Identifier: Apache-2.0
"""A model card for files that were not measured: origin, licence, formats, how they were made; no claim of quality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from lilliput.reports.card import HUB, LIBRARIES, TASK, code, plain
from lilliput.reports.numbers import human_bytes
from lilliput.reports.records import Making


@dataclass(frozen=True, slots=True)
class PlainCard:
    """What such a card shows. general: as GGUF's `general.*` has it.  files: name -> bytes.  formats: tensors each."""

    name: str
    container: str
    general: Mapping[str, object]
    files: Mapping[str, int]
    formats: Counter[str]
    making: Making


def plain_card(shown: PlainCard) -> str:
    """The whole file."""
    block = yaml.safe_dump(_metadata(shown), sort_keys=False, allow_unicode=True, width=1000)
    lines = [f"---\n{block}---\n", f"# {plain(shown.name)}, quantized\n", "| file | size |", "|---|--:|"]
    lines += [f"| {code(name)} | {human_bytes(size)} |" for name, size in shown.files.items()]
    counts = ", ".join(f"{code(name.upper())} ({count})" for name, count in shown.formats.most_common())
    lines += ["", "## How it was made", "", f"- formats: {counts}"]
    made = shown.making
    if made.recipe:
        lines.append(f"- recipe: {code(made.recipe)}")
    if made.command:
        lines.append(f"- command: {code(made.command)}")
    if made.datasets:
        lines.append("- calibration text: " + ", ".join(map(code, made.datasets)))
    lines += [f"- sha256 of {code(name)}: {code(digest)}" for name, digest in made.sha256.items()]
    lines += ["", "Not measured against the original; `lilliput report ORIGINAL FILE --card README.md` does that.", ""]
    return "\n".join(lines)


def _metadata(shown: PlainCard) -> dict[str, object]:
    general = shown.general
    found: dict[str, object] = {}
    if base := _base_model(general):
        found |= {"base_model": base, "base_model_relation": "quantized"}
    names = {"license": "license", "license.name": "license_name", "license.link": "license_link"}
    found |= {to: value for key, to in names.items() if isinstance(value := general.get(key), str) and value}
    found["library_name"] = LIBRARIES.get(shown.container, "lilliput")
    found["pipeline_tag"] = TASK
    if languages := _texts(general.get("languages")):
        found["language"] = list(languages)
    found["tags"] = [tag for tag in dict.fromkeys([*_texts(general.get("tags")), "lilliput"]) if tag != TASK]
    found["quantized_by"] = "lilliput"
    return found


def _base_model(general: Mapping[str, object]) -> str:
    for key in ("source.repo_url", "repo_url", "base_model.0.repo_url"):
        url = general.get(key)
        if isinstance(url, str) and url.startswith(HUB):
            return url.removeprefix(HUB)
    return ""


def _texts(value: object) -> Sequence[str]:
    return [value] if isinstance(value, str) else [str(item) for item in value] if isinstance(value, list) else []
