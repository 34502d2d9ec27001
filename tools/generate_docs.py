# SPDX-License-Identifier: Apache-2.0
"""Fill the generated regions of the documentation, or check with --check that they are up to date.

A region is everything between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a function below.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from typer.main import get_command
from typer.testing import CliRunner

from lilliput.architectures import ARCHITECTURES
from lilliput.cli import app
from lilliput.containers.runtimes import ROWS, Reading
from lilliput.formats import FORMATS
from lilliput.methods import METHODS
from lilliput.recipes.recipe import find_recipe, preset_names
from lilliput.transforms import TRANSFORMS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NAMES = ("formats", "commands", "families", "recipes", "methods", "containers")
DOCUMENTS = ("README.md", *(f"docs/{name}.md" for name in NAMES))
REGION = re.compile(r"(<!-- generated: (?P<name>[a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def formats_table() -> str:
    """Every number format with its computed bits per weight."""
    rows = ["| format | bits per weight | weights per block | encoder |", "|---|--:|--:|---|"]
    for item in FORMATS.values():
        encoder = "yes" if item.can_encode else "decodes only"
        rows.append(f"| {item.name.upper()} | {item.bits_per_weight:.4g} | {item.block_size} | {encoder} |")
    return "\n".join(rows)


def presets_table() -> str:
    """Every preset, and whether all its formats can be written."""
    rows = ["| preset | | can be written |", "|---|---|---|"]
    for name in preset_names():
        recipe = find_recipe(name)
        formats = {rule.format for rule in recipe.all_rules()}
        written = "yes" if all(FORMATS[item].can_encode for item in formats) else "not yet"
        rows.append(f"| {name} | {recipe.description} | {written} |")
    return "\n".join(rows)


def methods_table() -> str:
    """Every method, with what it needs to know and what it must beat."""
    needs = {"nothing": "", "mean_square": "mean squares of the inputs", "hessian": "text"}
    rows = ["| method | | needs | must beat | paper |", "|---|---|---|---|---|"]
    for method in METHODS.values():
        module = sys.modules[type(method).__module__]
        line = (module.__doc__ or "").strip().splitlines()[0].partition(": ")[2].rstrip(".")
        paper = re.sub(r"(https?://[^\s),;]+)", r"<\1>", method.paper)
        rows.append(f"| `{method.name}` | {line} | {needs[method.needs]} | {method.baseline or ''} | {paper} |")
    return "\n".join(rows)


def transforms_table() -> str:
    """Every transform, with what it needs to know."""
    needs = {"nothing": "", "statistics": "`--text`, `--statistics` or `--imatrix`"}
    rows = ["| transform | | needs | paper |", "|---|---|---|---|"]
    for transform in TRANSFORMS.values():
        module = sys.modules[type(transform).__module__]
        line = " ".join((module.__doc__ or "").strip().partition("\n\n")[0].split()).partition(": ")[2].rstrip(".")
        paper = re.sub(r"(https?://[^\s),;]+)", r"<\1>", transform.paper)
        wants = "`--text` where inputs are weighed" if transform.mixes_inputs else needs[transform.needs]
        rows.append(f"| `{transform.name}` | {line} | {wants} | {paper} |")
    return "\n".join(rows)


def families_table() -> str:
    """Every model family."""
    rows = ["| family | Hugging Face `model_type` | GGUF architecture |", "|---|---|---|"]
    rows += [f"| {a.family} | {', '.join(a.huggingface_types)} | {a.family} |" for a in ARCHITECTURES]
    return "\n".join(rows)


def commands() -> str:
    """--help of every subcommand."""
    runner = CliRunner(env={"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"})
    names = list(getattr(get_command(app), "commands"))  # noqa: B009  typer's own attribute, untyped
    parts = []
    for name in names:
        text = runner.invoke(app, [name, "--help"]).stdout.rstrip()
        lines = "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
        parts.append(f"## lilliput {name}\n\n```text\n{lines}\n```\n")
    return "\n".join(parts).rstrip()


def results() -> str:
    """The demo's own table: Gulliver quantized, measured against the original."""
    path = RESULTS / "demo.jsonl"
    if not path.is_file():
        return "_No stored result yet; run `make demo`._"
    newest = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    rows = [
        "| file | size | bits per weight | mean KL (nats) | same top token | perplexity |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    base = newest["base"]
    rows.append(f"| original (BF16) | {base['bytes'] / 1e6:.2f} MB | 16 | 0 | 100 % | {base['ppl']:.3f} |")
    rows += [result_row(item) for item in newest["files"]]
    return "\n".join([*rows, "", f"{newest['caption']}"])


def result_row(item: dict) -> str:
    """One file of the results table."""
    size, bits, same_top = item["bytes"] / 1e6, item["bits_per_weight"], item["same_top"] * 100
    kl = f"{item['mean_kld']:.5f} ± {item['mean_kld_stderr']:.5f}"
    return f"| {item['name']} | {size:.2f} MB | {bits:.3f} | {kl} | {same_top:.2f} % | {item['ppl']:.3f} |"


def encoders_table() -> str:
    """Squared error of our encoders over llama-quantize's: the worst tensor of each format."""
    path = RESULTS / "encoders.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    measures = ("plain_ratio", "imatrix_ratio", "imatrix_row_ratio")
    rows = ["| format | without imatrix | by imatrix | by imatrix * sqrt(s + x^2) |", "|---|--:|--:|--:|"]
    for name in dict.fromkeys(line["format"] for line in lines):
        worst = (max(line[measure] for line in lines if line["format"] == name) for measure in measures)
        rows.append(f"| {name.upper()} | {' | '.join(f'{ratio:.3f}' for ratio in worst)} |")
    return "\n".join(rows)


def runtimes_table() -> str:
    """What other runtimes read of what we write, with the tests that prove it; empty where nothing computes."""
    shown = {Reading.REFUSES: "refuses", Reading.NO_KERNEL: "—", Reading.UNTRIED: "not run here"}
    rows = ["| container | formats | runtime | | proven by |", "|---|---|---|---|---|"]
    for row in ROWS:
        for cell in row.cells:
            word = shown.get(cell.reading, cell.reading.value)
            note = f": {cell.note}" if cell.note else ""
            test = f"`{cell.test}`" if cell.test else ""
            rows.append(f"| {row.container} | {row.formats} | {cell.runtime} | {word}{note} | {test} |")
    return "\n".join(rows)


GENERATORS: dict[str, Callable[[], str]] = {
    "formats_table": formats_table, "families_table": families_table, "commands": commands, "results": results,
    "encoders_table": encoders_table,
    "presets_table": presets_table, "methods_table": methods_table,
    "transforms_table": transforms_table, "runtimes_table": runtimes_table,
}  # fmt: skip


def filled(text: str) -> str:
    """The document with every region regenerated."""
    return REGION.sub(lambda found: f"{found[1]}{GENERATORS[found['name']]()}\n{found[3]}", text)


def main() -> int:
    """Rewrite, or with --check only compare."""
    stale = []
    for name in DOCUMENTS:
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    if "--check" in sys.argv and stale:
        print(f"out of date: {', '.join(stale)}; run `make docs`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
