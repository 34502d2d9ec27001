# SPDX-License-Identifier: Apache-2.0
"""Which layers of Qwen and Gemma have a sliding window: `use_sliding_window`, `max_window_layers`, `layer_types`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures.architecture import Json, ModelConfig
from lilliput.architectures.config_fields import ConfigFields

# What transformers' Qwen2Config and Qwen3Config assume.
_DEFAULT_FULL_LAYERS = 28


def read_windowed_layers(config: ModelConfig, source: Mapping[str, Json]) -> ModelConfig:
    """The same config with `sliding_window` and `windowed_layers` as config.json `source` means them.

    Off unless `use_sliding_window`; then on the layers from `max_window_layers` on, or on those `layer_types` names.
    """
    fields = ConfigFields(source, "config.json")
    kinds = fields.value("layer_types")
    is_used = fields.boolean("use_sliding_window", default=False) and config.sliding_window is not None
    if kinds is None:
        first = (
            fields.integer("max_window_layers", _DEFAULT_FULL_LAYERS) if fields.value("max_window_layers") != 0 else 0
        )
        windowed = tuple(range(first, config.layers)) if is_used else ()
    else:
        windowed = layers_of_kind(fields, config.layers) or ()
        if windowed and not is_used:
            raise fields.error("layer_types", "has sliding_attention", "that only with use_sliding_window: true")
    if not windowed:
        return replace(config, sliding_window=None, windowed_layers=None)
    return replace(config, windowed_layers=None if len(windowed) == config.layers else windowed)


def layers_of_kind(fields: ConfigFields, layers: int) -> tuple[int, ...] | None:
    """Layers that `layer_types` says have a sliding window; None where there is no such field."""
    kinds = fields.value("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise fields.error("layer_types", f"is {kinds!r}", f"a list of {layers} kinds, one a layer")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise fields.error("layer_types", f"has {kind!r}", "full_attention, sliding_attention")
    return tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
