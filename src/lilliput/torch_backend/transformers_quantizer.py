# SPDX-License-Identifier: Apache-2.0
"""save_pretrained and from_pretrained of quantized models, through transformers' own interface for quantizers.

Registered when lilliput.torch is imported: from then on `AutoModel….from_pretrained` opens folders that were saved from
quantized models, and `quantization_config=LilliputConfig("W8A8-dynamic")` quantizes a float model as it loads. Tensors
are the planes of each module in safetensors; config.json lists the modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lilliput.errors import ContainerError
from lilliput.formats import get_format
from lilliput.torch_backend.embedding import QuantizedEmbedding
from lilliput.torch_backend.linear import QuantizedLinear, float_weight
from lilliput.torch_backend.scheme import get_scheme
from lilliput.torch_backend.stored_weight import StoredWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHOD = "lilliput"
VERSION = 1


class ModuleEntry(BaseModel):
    """One module of a saved model, in config.json.

    scheme: <format>/<inputs> of a linear layer, <format> of an embedding.  shared_with: module that holds its weight.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: str
    scheme: str
    is_smoothed: bool = False
    shared_with: str | None = None


@register_quantization_config(METHOD)
class LilliputConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What config.json says of a quantized model. recipe: for models that are quantized as they load."""

    def __init__(
        self,
        recipe: str | Mapping[str, object] = "W8A8-dynamic",
        modules: Mapping[str, object] | None = None,
        version: int = VERSION,
        **_: object,
    ) -> None:
        """`modules`: as saved. Raises ContainerError for a version or an entry that is not known here."""
        self.quant_method = METHOD
        self.recipe = recipe
        self.version = version
        self.modules = dict(modules or {})
        if version != VERSION:
            raise ContainerError(
                f"quantization_config: version {version} is not known here, {VERSION} is; update lilliput"
            )
        self.entries()

    def entries(self) -> dict[str, ModuleEntry]:
        """Modules by name, checked."""
        found = {}
        for name, entry in self.modules.items():
            try:
                found[name] = ModuleEntry.model_validate(entry)
            except ValidationError as error:
                raise ContainerError(f"quantization_config: module '{name}': {error.errors()[0]['msg']}") from error
        return found


@register_quantizer(METHOD)
class LilliputQuantizer(HfQuantizer):  # type: ignore[misc]
    """What transformers asks while it loads and saves."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: object) -> None:
        if self.pre_quantized:
            place_empty_modules(model, self.quantization_config.entries())

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: object) -> PreTrainedModel:
        if self.pre_quantized:
            for module in model.modules():
                if isinstance(module, StoredWeight):
                    module.prepare()
        else:
            from lilliput.torch_backend.quantize import quantize_

            quantize_(model, self.quantization_config.recipe)
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The model's own state dict, whose codes lie in rows."""
        return model.state_dict(), {}

    def is_serializable(self) -> bool:
        """Yes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """No: codes have no gradient."""
        return False

    @property
    def is_compileable(self) -> bool:
        """The operators are opaque to torch.compile."""
        return True

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        for name, module in list(model.named_modules()):
            if isinstance(module, StoredWeight):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, _float_module(module, _torch_type(dtype)))
        return model


def attach_quantizer(model: torch.nn.Module) -> None:
    """Describe the quantized modules of a model in its config, so that save_pretrained writes what can be opened."""
    owners = {id(module): name for name, module in model.named_modules() if isinstance(module, StoredWeight)}
    entries = {}
    for name, module in model.named_modules():
        if not isinstance(module, StoredWeight):
            continue
        is_linear = isinstance(module, QuantizedLinear)
        entry = ModuleEntry(
            kind="linear" if is_linear else "embedding",
            scheme=module.scheme.name if isinstance(module, QuantizedLinear) else module.number_format.name,
            is_smoothed=isinstance(module, QuantizedLinear) and module.input_factors is not None,
            shared_with=owners[id(module._sharing[0])] if module._sharing else None,
        )
        entries[name] = entry.model_dump(exclude_defaults=True)
    config = LilliputConfig(modules=entries)
    hf_model = cast("PreTrainedModel", model)
    hf_model.hf_quantizer = LilliputQuantizer(config, pre_quantized=True)
    hf_model.config.quantization_config = config
    hf_model.is_quantized = True
    hf_model.quantization_method = METHOD
    _untie(hf_model)


def place_empty_modules(model: PreTrainedModel, entries: Mapping[str, ModuleEntry]) -> None:
    """Put modules without content where a saved model had ours. Raises ContainerError for names that are not there."""
    placed: dict[str, StoredWeight] = {}
    for name, entry in entries.items():
        place = _place_of(model, name)
        if place is None:
            # A head that this class of model does not have.
            continue
        module = model.get_submodule(place)
        new = _empty_module(place, module, entry)
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
        placed[name] = new
    if entries and not placed:
        raise ContainerError(
            f"quantization_config: {type(model).__name__} has none of its modules, such as '{next(iter(entries))}'"
        )
    for name, entry in entries.items():
        owner = placed.get(entry.shared_with) if entry.shared_with else None
        if name in placed and owner is not None:
            placed[name].share_weight(owner)
        elif name in placed and entry.shared_with:
            raise ContainerError(
                f"quantization_config: '{name}' shares its weight with '{entry.shared_with}', not there"
            )
    _untie(model)


def _place_of(model: PreTrainedModel, name: str) -> str | None:
    """Where a module of the saved model is in this one, which may be its base or may hold it as its base."""
    prefix = f"{model.base_model_prefix}."
    names = dict(model.named_modules(remove_duplicate=False))
    candidates = (name, name.removeprefix(prefix), prefix + name)
    return next((candidate for candidate in candidates if candidate in names), None)


def _empty_module(name: str, module: torch.nn.Module, entry: ModuleEntry) -> StoredWeight:
    if isinstance(module, torch.nn.Embedding) and entry.kind == "embedding":
        return QuantizedEmbedding.like(module, get_format(entry.scheme))
    if entry.kind != "linear" or not isinstance(getattr(module, "weight", None), torch.Tensor):
        raise ContainerError(f"quantization_config: '{name}' is a {type(module).__name__}, not a {entry.kind} module")
    rows, columns = float_weight(module).shape
    scheme = get_scheme(entry.scheme, smoothing=0.5 if entry.is_smoothed else 0.0)
    return QuantizedLinear(scheme, columns, rows, has_bias=module.bias is not None)


def _untie(model: PreTrainedModel) -> None:
    """Keep transformers from tying weights that are ours now: shared ones are shared already."""
    ours = {name for name, module in model.named_modules() if isinstance(module, StoredWeight)}
    for prefix, part in model.named_modules():
        for attribute in ("all_tied_weights_keys", "_tied_weights_keys"):
            tied = getattr(part, attribute, None)
            if isinstance(tied, dict):
                start = f"{prefix}." if prefix else ""
                left = {
                    target: source
                    for target, source in tied.items()
                    if not {(start + key).rpartition(".")[0] for key in (target, source)} & ours
                }
                setattr(part, attribute, left)


def _float_module(module: StoredWeight, dtype: torch.dtype) -> torch.nn.Module:
    weight = torch.nn.Parameter(module.dequantized_weight().to(dtype))
    if isinstance(module, QuantizedEmbedding):
        table = torch.nn.Embedding(module.rows, module.columns, padding_idx=module.padding_idx, device="meta")
        table.weight = weight
        return table
    linear = torch.nn.Linear(module.columns, module.rows, bias=module.bias is not None, device="meta")
    linear.weight = weight
    if module.bias is not None:
        linear.bias = module.bias
    return linear


def _torch_type(dtype: torch.dtype | str | None) -> torch.dtype:
    """A config may hold the name."""
    found = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return found if isinstance(found, torch.dtype) else torch.float32
