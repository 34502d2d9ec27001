# SPDX-License-Identifier: Apache-2.0
"""How a file was made: from the ledger beside it where that belongs to it, else from what the file says of itself."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections import Counter
from pathlib import Path

from lilliput.calibration.builtin_mix import BUILT_IN_DATASET
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import ContainerError, RecipeError
from lilliput.recipes.ledger import Ledger, ledger_path, read_ledger
from lilliput.recipes.recipe import find_recipe
from lilliput.reports.records import Making

FINGERPRINT_KEY = "lilliput.fingerprint"
CALIBRATED_HERE = "calibrated in the same run"
# Methods that only copy say nothing about how codes were chosen.
COPIES = ("copy", "cast")
_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")


def found_ledger(source: ModelSource) -> tuple[Ledger | None, tuple[str, ...]]:
    """The ledger of an opened file, and notes where there is one that does not belong to it or cannot be read."""
    # A split set has one ledger, named after the whole.
    names = (source.path.name, _PART.sub("", source.path.name))
    path = next((found for name in names if (found := ledger_path(source.path.with_name(name))).is_file()), None)
    if path is None:
        return None, ()
    try:
        ledger = read_ledger(path)
    except ContainerError as error:
        return None, (f"{error}; its errors were computed from the weights",)
    fingerprint = source.provenance.extra.get(FINGERPRINT_KEY)
    if fingerprint is not None and ledger.fingerprints.get("output") != fingerprint:
        return None, (f"{path.name} belongs to another file; errors were computed from the weights",)
    return ledger, ()


def making(source: ModelSource, ledger: Ledger | None) -> Making:
    """Recipe, command, calibration, versions and hashes, as far as they are known."""
    digests = {path.name: file_digest(path) for path in source.weight_files}
    extra = source.provenance.extra
    if ledger is None:
        version, dataset = extra.get("lilliput.version"), extra.get("quantize.imatrix.dataset")
        return Making(
            recipe=str(extra.get("lilliput.recipe", "")),
            datasets=(Path(str(dataset)).name,) if dataset else (),
            versions={"lilliput": str(version)} if version else {},
            sha256=digests,
        )
    methods = Counter(entry.method for entry in ledger.entries if entry.method not in COPIES)
    return Making(
        recipe=ledger.recipe,
        command=_command(source, ledger, methods),
        methods=tuple(methods.most_common()),
        transforms=tuple(Counter(edge.transform for edge in ledger.transforms).most_common()),
        datasets=ledger.datasets,
        versions=ledger.versions,
        fingerprints=ledger.fingerprints,
        sha256=digests,
        notes=ledger.notes,
    )


def file_digest(path: Path) -> str:
    """sha256 hex of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _command(source: ModelSource, ledger: Ledger, methods: Counter[str]) -> str:
    """The `lilliput quantize` that makes an equivalent file; limits on tokens are not in the ledger.

    Empty where the recipe has no name that a command line knows: a user's YAML file, or what a search found.
    """
    try:
        find_recipe(ledger.recipe, presets_only=True)
    except RecipeError:
        return ""
    words = ["lilliput", "quantize", ledger.model, "--to", ledger.recipe]
    statistics = source.provenance.extra.get("quantize.imatrix.file")
    if isinstance(statistics, str) and statistics != CALIBRATED_HERE:
        option = "--statistics" if statistics.endswith(".safetensors") else "--imatrix"
        words += [option, statistics]
    elif ledger.datasets:
        words += [word for name in ledger.datasets for word in ("--text", _text_word(name))]
    if len(methods) == 1:
        words += ["--method", next(iter(methods))]
    words += [word for name in _transform_words(ledger) for word in ("--transform", name)]
    return " ".join(shlex.quote(word) for word in (*words, "-o", source.path.name))


def _transform_words(ledger: Ledger) -> list[str]:
    """As the user wrote them: a strength that was searched is searched again."""
    words: dict[str, str] = {}
    for edge in ledger.transforms:
        is_chosen = edge.strength and edge.loss_ratio is None
        words[edge.transform] = (
            f"{edge.transform}:{edge.strength:g}" if is_chosen else words.get(edge.transform, edge.transform)
        )
    return list(words.values())


def _text_word(dataset: str) -> str:
    return "builtin" if dataset == BUILT_IN_DATASET else dataset
