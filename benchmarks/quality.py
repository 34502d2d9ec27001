# SPDX-License-Identifier: Apache-2.0
"""Quality at equal bytes: mean KL divergence of our files against the peers', paired on the same tokens.

    python benchmarks/quality.py model gulliver --llama-cpp DIR --data DIR [--types Q4_K,Q3_K] [--presets Q4_K_M]
    python benchmarks/quality.py bart --llama-cpp DIR --data DIR [--types Q4_K,Q3_K]
    python benchmarks/quality.py integers gulliver --llama-cpp DIR --data DIR --peer AutoRound=AR/bin/python
    python benchmarks/quality.py plot

`model` takes any causal language model: a folder, a file, or the built-in one. It calibrates on technical documents
(techdocs/valid) and measures on others (techdocs/test, in-domain) and on raw WikiText-2 (off-domain). Each of
`--types` is given to every matrix, as llama-quantize's --pure does; each of `--presets` is a mixture. Our file and
llama-quantize's read the same imatrix; type and bytes of every tensor must be equal or the run fails. `bart` does the
same with bare matrices of an encoder-decoder. A line of JSON for each type, method and text is printed and, with
--out, appended: mean KL of both, their ratio with the paired 95 % interval, and what llama-perplexity says of both.
`integers` compares 4-bit integers in groups of 128 with tools that run in environments of their own (peers/).
`plot` draws benchmarks/results/quality.jsonl.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import quality_results
from peers.llama_cpp import PURE_TYPES, LlamaCpp

from lilliput.formats import FORMATS
from lilliput.methods import METHODS
from lilliput.workflows import EFFORTS

if TYPE_CHECKING:
    from quality_model import Setting, Text

TYPES = "Q6_K,Q5_K,Q4_K,IQ4_XS,IQ4_NL,Q4_0,Q3_K,IQ3_S,IQ2_S,Q2_K"
PRESETS = "Q5_K_M,Q4_K_M,Q3_K_M"


def run_model(options: argparse.Namespace) -> None:
    """Subcommand `model`."""
    from quality_model import measure, parse_targets

    targets = parse_targets(options.types, options.presets)
    with work_folder(options.folder) as folder:
        setting, texts = prepare(options, folder)
        quality_results.keep(measure(setting, targets, known_methods(options.methods), texts), options.out)


def run_integers(options: argparse.Namespace) -> None:
    """Subcommand `integers`."""
    from quality_integers import SCRIPTS, measure

    pythons = dict(word.split("=", 1) for word in options.peer)
    unknown = set(pythons) - set(SCRIPTS)
    if unknown:
        raise SystemExit(f"--peer {', '.join(unknown)} unknown; known: {', '.join(SCRIPTS)}, each as NAME=PYTHON")
    with work_folder(options.folder) as folder:
        setting, texts = prepare(options, folder)
        paths = {name: Path(python) for name, python in pythons.items()}
        quality_results.keep(measure(setting, paths, known_methods(options.methods), texts), options.out)


@contextmanager
def work_folder(chosen: Path | None) -> Iterator[Path]:
    """The folder that the user wants kept, or one that is gone afterwards."""
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def prepare(options: argparse.Namespace, folder: Path) -> tuple[Setting, list[Text]]:
    """The setting and the texts, cut to size."""
    from quality_model import Setting, Text, excerpt

    from lilliput.evaluation.model_logits import EvaluationOptions

    data: Path = options.data
    calibration: Path = options.calibrate or data / "techdocs" / "valid.jsonl.gz"
    plain = folder / f"{calibration.parent.name}-{calibration.name.split('.')[0]}.txt"
    setting = Setting(
        options.model,
        folder,
        excerpt(calibration, plain, options.characters),
        LlamaCpp(options.llama_cpp, options.threads),
        EvaluationOptions(context=options.context, tokens=options.tokens, threads=options.threads),
        options.reuse,
    )
    sources = [
        ("in-domain", "techdocs/test", data / "techdocs" / "test.jsonl.gz"),
        ("off-domain", "wikitext-2 raw", data / "wikitext-2" / "wiki.test.raw"),
    ]
    # Five characters a token is more than any vocabulary needs; what is too much is not used.
    texts = [
        Text(domain, label, excerpt(path, folder / f"{domain}.txt", 5 * options.tokens))
        for domain, label, path in sources
    ]
    return setting, texts


def run_bart(options: argparse.Namespace) -> None:
    """Subcommand `bart`."""
    import torch
    from quality_bart import measure

    torch.set_num_threads(options.threads)
    formats = [name.strip().lower() for name in options.types.split(",")]
    llama_cpp = LlamaCpp(options.llama_cpp, options.threads)
    methods = known_methods(options.methods, METHODS)
    lines = measure(options.data / "misaki-bart-g2p", llama_cpp, formats, methods, options.threads)
    quality_results.keep(lines, options.out)


def run_plot(options: argparse.Namespace) -> None:
    """Subcommand `plot`."""
    from quality_plot import draw

    draw(quality_results.read(options.results), options.out)


def known_methods(words: str, known: Iterable[str] = (*METHODS, *EFFORTS)) -> list[str]:
    """A comma list of methods. Raises SystemExit for one that is not known."""
    methods = [word.strip() for word in words.split(",")]
    unknown = [method for method in methods if method not in known]
    if unknown:
        raise SystemExit(f"--methods: {', '.join(unknown)} unknown; known: {', '.join(known)}")
    return methods


def encodable_types() -> str:
    """Those of TYPES that have an encoder."""
    return ",".join(name for name in TYPES.split(",") if FORMATS[name.lower()].can_encode)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    model, integers, bart, plot = (commands.add_parser(name) for name in ("model", "integers", "bart", "plot"))
    for command, run in ((model, run_model), (integers, run_integers), (bart, run_bart)):
        command.set_defaults(run=run)
        command.add_argument("--llama-cpp", type=Path, required=True, metavar="DIR", help="llama.cpp's programs")
        command.add_argument("--data", type=Path, required=True, metavar="DIR", help="texts and models to measure with")
        command.add_argument("--methods", default="searched_scales,feedback", help="methods, or efforts")
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--out", type=Path, metavar="FILE", help="append the lines to this file")
    for command in (model, bart):
        command.add_argument("--types", default=encodable_types(), help=f"of {', '.join(PURE_TYPES).upper()}")
    for command in (model, integers):
        command.add_argument("model")
        command.add_argument("--calibrate", type=Path, metavar="TEXT", help="instead of techdocs/valid")
        command.add_argument("--characters", type=int, default=200_000, help="of the calibration text, spread evenly")
        command.add_argument("--folder", type=Path, metavar="DIR", help="keep files here, reuse those of the last run")
        command.add_argument("--reuse", action="store_true", help="take our own files from that folder too")
        command.add_argument("--context", type=int, default=512)
        command.add_argument(
            "--tokens", type=int, default=20_000, help="of each measured text; half of them are scored"
        )
    model.add_argument("--presets", default=PRESETS)
    integers.add_argument("--peer", action="append", required=True, metavar="NAME=PYTHON", help="may be repeated")
    plot.set_defaults(run=run_plot)
    plot.add_argument("--results", type=Path, default=quality_results.RESULTS)
    plot.add_argument("--out", type=Path, default=quality_results.RESULTS.with_suffix(".png"))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
