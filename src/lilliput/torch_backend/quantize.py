# SPDX-License-Identifier: Apache-2.0
"""quantize_: linear and embedding modules of any model become ours, in place.

Steps   1. rules give every linear and embedding module a scheme, or a reason to stay
        2. where schemes need it, the float model runs on calibration data
        3. weights are quantized module by module, and the module is replaced; shared weights once
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from lilliput.activations import FixedScale, FloatInputs, IntegerInputs, RangeObserver
from lilliput.errors import CalibrationError, FormatError, RecipeError
from lilliput.formats import NumberFormat, Planes
from lilliput.formats.families import fitting_sibling
from lilliput.torch_backend.calibrate_modules import CalibrationData, observe_inputs
from lilliput.torch_backend.embedding import QuantizedEmbedding, is_embedding
from lilliput.torch_backend.linear import QuantizedLinear, float_weight
from lilliput.torch_backend.module_recipe import Kind, ModuleRecipe, read_recipe
from lilliput.torch_backend.module_report import ModuleReport, size_report
from lilliput.torch_backend.scheme import LayerScheme
from lilliput.torch_backend.stored_weight import StoredWeight
from lilliput.torch_backend.weight_planes import made_planes
from lilliput.transforms.smooth_quant import smoothing_factors

# What the report says of modules that are none of ours to replace, before their class.
ALIEN = "no replacement for"


@dataclass(frozen=True, slots=True)
class Chosen:
    """What one module becomes. note: what the report should say."""

    name: str
    module: torch.nn.Module
    kind: Kind
    scheme: LayerScheme
    note: str


def quantize_(
    model: torch.nn.Module,
    recipe: str | Path | Mapping[str, object] | ModuleRecipe = "W8A8-dynamic",
    *,
    calibration: CalibrationData | None = None,
    keep: Iterable[str] = (),
) -> ModuleReport:
    """Replace linear and embedding modules of `model`, in place, as the recipe says.

    recipe: a scheme such as "W8A8-dynamic" or "Q4_K", a YAML file, or its content (module_recipe.py).
    calibration: batches, or a function that runs the model; needed by static inputs and smoothing.
    keep: module names or globs that stay as they are, before any rule.
    Returns what became of every module, with bytes; what stays float is there with its reason.
    Raises RecipeError for a recipe that cannot be, CalibrationError where data are missing.
    """
    _check_model(model)
    rules = read_recipe(recipe)
    if keep:
        kept = [{"modules": pattern, "keep": True} for pattern in keep]
        rules = ModuleRecipe.model_validate({"name": rules.name, "rules": [*kept, *rules.rules]})
    if _kind(model) is not None:
        raise RecipeError(
            "the model is a single layer; use QuantizedLinear.from_float or QuantizedEmbedding.from_float"
        )
    chosen, notes = _choose(model, rules)
    if not chosen:
        raise RecipeError("no module of this model is quantized by this recipe: " + _reasons(model, notes))
    factors, fixed = _calibrate(model, chosen, calibration)
    made: dict[int, StoredWeight] = {}
    for choice in chosen:
        notes[choice.name] = choice.note
        try:
            new = _replacement(choice, made, factors.get(choice.name), fixed.get(choice.name))
        except FormatError as error:
            notes[choice.name] = str(error)
            continue
        _set_module(model, choice.name, new)
    report = size_report(model, notes)
    _tell_transformers(model)
    return report


def _choose(model: torch.nn.Module, rules: ModuleRecipe) -> tuple[list[Chosen], dict[str, str]]:
    """Modules to replace, and why others with matrices stay."""
    chosen: list[Chosen] = []
    notes: dict[str, str] = {}
    # A module that two parents hold is one module with two names; replaced once, it must be replaced twice.
    for name, module in model.named_modules(remove_duplicate=False):
        kind = _kind(module)
        if isinstance(module, StoredWeight):
            continue
        if kind is None:
            if reason := _why_not(module):
                notes[name] = reason
            continue
        rule = rules.rule_for(name, kind)
        if rule is None or rule.keep:
            notes[name] = "kept by the recipe" if rule else "no rule of the recipe matches"
            continue
        scheme, note = rule.layer_scheme(), ""
        columns = _columns(module)
        fitted = _fitting(scheme.weight, columns)
        if isinstance(fitted, str):
            notes[name] = fitted
            continue
        if fitted is not scheme.weight:
            note = f"rows of {columns} do not divide into {scheme.weight.name}"
            scheme = replace(scheme, weight=fitted)
        if kind == "linear" and isinstance(scheme.inputs, IntegerInputs):
            try:
                scheme.inputs.groups(columns)
            except FormatError as error:
                notes[name] = str(error)
                continue
        chosen.append(Chosen(name, module, kind, scheme, note))
    return chosen, notes


def _fitting(wanted: NumberFormat, columns: int) -> NumberFormat | str:
    """The format, or its sibling that rows of this length divide into; a reason where there is none."""
    try:
        wanted.check_columns("weight", columns)
        return wanted
    except FormatError as error:
        return fitting_sibling(wanted, columns) or str(error)


def _calibrate(
    model: torch.nn.Module, chosen: list[Chosen], data: CalibrationData | None
) -> tuple[dict[str, torch.Tensor], dict[str, FixedScale]]:
    """Factors of smoothed layers, what inputs are multiplied by; static scales. Both by module name."""
    linears = [choice for choice in chosen if choice.kind == "linear" and choice.scheme.needs_calibration]
    if not linears:
        return {}, {}
    if data is None:
        raise CalibrationError(
            f"{linears[0].scheme.name}: this scheme needs calibration data; give calibration=batches"
        )
    data = data if callable(data) else list(data)
    modules = {choice.name: choice.module for choice in linears}
    was_training = model.training
    model.eval()
    try:
        observers = observe_inputs(model, modules, data)
        factors = {
            choice.name: _input_factors(choice, observers[choice.name]) for choice in linears if choice.scheme.smoothing
        }
        static = [choice for choice in linears if choice.scheme.inputs.is_static]
        smoothed = {choice.name: choice.module for choice in static if choice.name in factors}
        if smoothed:
            observers |= observe_inputs(model, smoothed, data, factors)
    finally:
        model.train(was_training)
    return factors, {choice.name: _fixed_scale(choice.scheme, observers[choice.name]) for choice in static}


def _fixed_scale(scheme: LayerScheme, seen: RangeObserver) -> FixedScale:
    if isinstance(scheme.inputs, IntegerInputs):
        return seen.fixed_scale(scheme.inputs, scheme.ranges)
    assert isinstance(scheme.inputs, FloatInputs)
    return scheme.inputs.fixed_scale(seen.low, seen.high)


def _input_factors(choice: Chosen, seen: RangeObserver) -> torch.Tensor:
    weight = float_weight(choice.module).float().abs().amax(dim=0).cpu().numpy()
    factors = smoothing_factors(seen.absmax, weight, choice.scheme.smoothing)
    return torch.from_numpy(np.ascontiguousarray(1.0 / factors))


def _replacement(
    choice: Chosen, made: dict[int, StoredWeight], factors: torch.Tensor | None, fixed: FixedScale | None
) -> StoredWeight:
    """Our module in place of a float one; it shares its weight where the float one did."""
    parameter = cast("torch.Tensor", choice.module.weight)
    owner = made.get(id(parameter)) if factors is None else None
    if owner is not None and owner.number_format is choice.scheme.weight and _is_transposed(choice.module) is False:
        planes: Planes = {name: plane.cpu().numpy() for name, plane in owner.planes().items()}
    else:
        owner = None
        weight = float_weight(choice.module)
        planes = made_planes(choice.scheme.weight, weight if factors is None else weight / factors.to(weight))
    new: StoredWeight
    if choice.kind == "embedding":
        new = QuantizedEmbedding.from_planes(cast("torch.nn.Embedding", choice.module), choice.scheme.weight, planes)
    else:
        new = QuantizedLinear.from_planes(choice.module, choice.scheme, planes, fixed=fixed, factors=factors)
    if owner is not None:
        new.share_weight(owner)
        new._forget()
        if isinstance(new, QuantizedLinear):
            new.prepare()
    elif factors is None:
        made.setdefault(id(parameter), new)
    return new


def _kind(module: torch.nn.Module) -> Kind | None:
    if type(module) is torch.nn.Linear or _is_transposed(module):
        return "linear"
    return "embedding" if is_embedding(module) else None


def _is_transposed(module: torch.nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _columns(module: torch.nn.Module) -> int:
    return float_weight(module).shape[1]


def _why_not(module: torch.nn.Module) -> str:
    """Why a module with matrices of its own is not replaced; nothing where it has none."""
    shapes = [tuple(parameter.shape) for parameter in module._parameters.values() if parameter is not None]
    if not any(len(shape) > 1 for shape in shapes):
        return ""
    if isinstance(module, torch.nn.Embedding | torch.nn.Linear):
        return f"a {type(module).__name__} computes in a way of its own"
    return f"{ALIEN} {type(module).__name__}"


def _set_module(model: torch.nn.Module, name: str, new: torch.nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _check_model(model: object) -> None:
    """Raise RecipeError for what is no float module: a path, a class, a model that was quantized before."""
    if isinstance(model, str | Path):
        raise RecipeError(
            f"quantize_ takes a torch.nn.Module, and '{model}' is a name; load it first, with "
            "AutoModel….from_pretrained, or quantize the folder to a file with `lilliput quantize`"
        )
    if not isinstance(model, torch.nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise RecipeError(f"quantize_ takes a torch.nn.Module, and this is {kind}")
    if isinstance(model, StoredWeight):
        raise RecipeError("this layer is quantized already; quantize the float one it came from")


def _reasons(model: torch.nn.Module, notes: Mapping[str, str]) -> str:
    """Why nothing is left to do."""
    ours = sum(isinstance(module, StoredWeight) for module in model.modules())
    if ours:
        return (
            f"it is quantized already ({ours} modules); load the float model again to quantize it otherwise, or call "
            "model.dequantize() on one of transformers"
        )
    kinds = Counter(type(model.get_submodule(name)).__name__ for name, note in notes.items() if note.startswith(ALIEN))
    listed = [f"{name}: {note}" for name, note in notes.items() if note]
    if kinds and sum(kinds.values()) == len(listed):
        named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3))
        return (
            f"it has no linear or embedding modules, only {named}; linear layers and embeddings are what is quantized"
        )
    return "; ".join(listed[:3]) or "it has no linear or embedding modules"


def _tell_transformers(model: torch.nn.Module) -> None:
    """Let save_pretrained know, where the model has one."""
    if hasattr(model, "save_pretrained") and hasattr(model, "config"):
        from lilliput.torch_backend.transformers_quantizer import attach_quantizer

        attach_quantizer(model)
