# SPDX-License-Identifier: Apache-2.0
"""Seeing what enters linear modules: a model runs on calibration data, and observers sit before its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch

from lilliput.activations import RangeObserver
from lilliput.errors import CalibrationError

Batch = torch.Tensor | Mapping[str, torch.Tensor] | Sequence[torch.Tensor]
# Batches that the model is called with, or a function that runs it.
CalibrationData = Iterable[Batch] | Callable[[torch.nn.Module], object]


def observe_inputs(
    model: torch.nn.Module,
    modules: Mapping[str, torch.nn.Module],
    data: CalibrationData,
    factors: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, RangeObserver]:
    """What enters each of the modules, by name. factors: [columns] of some, multiplied on before.

    Raises CalibrationError where a module was never reached or saw what is not finite.
    """
    observers = {name: RangeObserver() for name in modules}

    def watch(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            x = arguments[0].detach().float()
            if factors and name in factors:
                x = x * factors[name].to(x)
            try:
                observers[name].observe(np.ascontiguousarray(x.reshape(-1, x.shape[-1]).cpu().numpy()))
            except CalibrationError as error:
                raise CalibrationError(f"{name}: {error}") from error

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            _run(model, data)
    finally:
        for handle in handles:
            handle.remove()
    for name, observer in observers.items():
        if not observer.tokens:
            raise CalibrationError(f"{name}: the calibration data never reached this layer; give data that does")
    return observers


def _run(model: torch.nn.Module, data: CalibrationData) -> None:
    if callable(data):
        data(model)
        return
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    for batch in data:
        if isinstance(batch, Mapping):
            model(**{key: value.to(device) for key, value in batch.items()})
        elif isinstance(batch, torch.Tensor):
            model(batch.to(device))
        else:
            model(*(part.to(device) for part in batch))
