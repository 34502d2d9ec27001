# SPDX-License-Identifier: Apache-2.0
"""What a model folder says about its own origin, as GGUF's `general.*` keys (ggml docs/gguf.md, "General metadata")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from lilliput.architectures.architecture import Json
from lilliput.checkpoints.model_source import Provenance
from lilliput.checkpoints.shards import read_json
from lilliput.errors import CheckpointError

# Text beside the weights whose content belongs to the model, by glob.
SIDE_FILES = (
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
    "README.md",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "*.py",
)
# generation_config.json -> general.sampling.*
_SAMPLING = {
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "temperature": ("temp", float),
    "repetition_penalty": ("penalty_repeat", float),
}
_SIZE = re.compile(r"(\d+x)?\d+(\.\d+)?[KMBT]", re.IGNORECASE)
_VERSION = re.compile(r"v\d+(\.\d+)*", re.IGNORECASE)


def read_provenance(folder: Path, config: Mapping[str, Json], repository: str | None = None) -> Provenance:
    """Name, licence, base models, languages, tags and sampling defaults.

    repository: hub id, when the folder came from the hub (its own name is then a commit hash).
    Never puts a local path into the result.
    """
    card = _front_matter(folder / "README.md")
    general: dict[str, Json] = {}
    name = repository or _text(card.get("model_name")) or _clean_name(folder, config)
    general.update(_name_parts(name))
    if repository:
        general["source.repo_url"] = general["repo_url"] = f"https://huggingface.co/{repository}"
    general.update(_licence(card))
    general.update(_base_models(card))
    for key, source in (("languages", "language"), ("tags", "tags")):
        values = _texts(card.get(source))
        pipeline = _text(card.get("pipeline_tag"))
        if key == "tags" and pipeline and pipeline not in values:
            values.append(pipeline)
        if values:
            general[key] = list[Json](values)
    general.update(_datasets(card))
    general.update(_sampling(folder / "generation_config.json"))
    side_files = {path: None for pattern in SIDE_FILES for path in sorted(folder.glob(pattern)) if path.is_file()}
    return Provenance(general=general, side_files=tuple(side_files), huggingface_config=config)


def _front_matter(path: Path) -> Mapping[str, object]:
    """The YAML block at the top of a model card; empty when there is none or it is not valid (cards are prose)."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if not found:
        return {}
    try:
        card = yaml.safe_load(found.group(1).replace("\t", "  "))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}


def _clean_name(folder: Path, config: Mapping[str, object]) -> str:
    resolved = folder.resolve()
    # Layout of huggingface_hub's cache: models--org--name/snapshots/<commit>.
    if resolved.parent.name == "snapshots" and resolved.parent.parent.name.startswith("models--"):
        return resolved.parent.parent.name.removeprefix("models--").replace("--", "/")
    named = config.get("_name_or_path")
    generic = resolved.name in ("hf", "model", "checkpoint", "output", "")
    if generic and isinstance(named, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", named) and named != ".":
        return named
    return f"{resolved.parent.name}" if generic and resolved.parent.name else resolved.name


def _name_parts(name: str) -> dict[str, Json]:
    """Split `org/Base-Name-7B-Instruct-v0.3` as the GGUF naming convention does."""
    organization, _, model = name.rpartition("/")
    parts = [part for part in re.split(r"[-\s]+", model) if part]
    general: dict[str, Json] = {"name": " ".join(parts) or "model"}
    if organization:
        general["organization"] = organization
    size = next((index for index, part in enumerate(parts) if index and _SIZE.fullmatch(part)), None)
    versions = [part for part in parts[1:] if _VERSION.fullmatch(part)]
    if versions:
        general["version"] = versions[-1]
    if size is not None:
        general["basename"] = "-".join(part for part in parts[:size] if part not in versions)
        general["size_label"] = parts[size].upper().replace("X", "x")
        tuned = [part for part in parts[size + 1 :] if part not in versions]
        if tuned:
            general["finetune"] = "-".join(tuned)
    return general


def _licence(card: Mapping[str, object]) -> dict[str, Json]:
    licences = _texts(card.get("license"))
    found: dict[str, Json] = {"license": ",".join(licences)} if licences else {}
    for key, source in (("license.name", "license_name"), ("license.link", "license_link")):
        value = _text(card.get(source))
        if value:
            found[key] = value
    return found


def _base_models(card: Mapping[str, object]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    models = _texts(card.get("base_model"))
    for index, model in enumerate(models):
        prefix = f"base_model.{index}"
        path = re.sub(r"^https?://huggingface\.co/", "", model)
        if re.match(r"\w+://", path):
            found[f"{prefix}.repo_url"] = model
            continue
        parts = _name_parts(path)
        found |= {f"{prefix}.{key}": parts[key] for key in ("name", "organization", "version") if key in parts}
        if "/" in path:
            found[f"{prefix}.repo_url"] = f"https://huggingface.co/{path}"
    return ({"base_model.count": len(models)} | found) if models else {}


def _datasets(card: Mapping[str, object]) -> dict[str, Json]:
    datasets = _texts(card.get("datasets"))
    found: dict[str, Json] = {"dataset.count": len(datasets)} if datasets else {}
    for index, dataset in enumerate(datasets):
        found[f"dataset.{index}.name"] = dataset.rpartition("/")[2]
        if "/" in dataset:
            found[f"dataset.{index}.repo_url"] = f"https://huggingface.co/datasets/{dataset}"
    return found


def _sampling(path: Path) -> dict[str, Json]:
    if not path.is_file():
        return {}
    try:
        config = read_json(path)
    except CheckpointError:
        # It only carries defaults of a sampler; some published ones are not valid JSON.
        return {}
    found: dict[str, Json] = {}
    for key, (name, kind) in _SAMPLING.items():
        value = config.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[f"sampling.{name}"] = kind(value)
    return found


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, list):
        # YAML reads an unquoted `no` (Norwegian) as false.
        return ["no" if item is False else str(item) for item in value if item is False or isinstance(item, str | int)]
    return []
