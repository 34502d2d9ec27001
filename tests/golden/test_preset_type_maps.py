# SPDX-License-Identifier: Apache-2.0
"""Presets give each tensor the type that llama-quantize gives it.

llama_quantize_type_maps.json is made by `python tools/make_type_maps.py PATH/TO/llama-quantize`.
"""

import json
from pathlib import Path

import pytest
from header_models import header_model

from lilliput.errors import RecipeError
from lilliput.formats import FORMATS
from lilliput.recipes.plan import resolve
from lilliput.recipes.recipe import preset_names

MAPS = json.loads((Path(__file__).parent / "llama_quantize_type_maps.json").read_text())
PRESETS = tuple(MAPS["llama-3.2-1b"]["without_imatrix"])


def expected_types(lines: dict[str, list[str]], names: list[str]) -> dict[str, str]:
    """The golden file's short form, spelled out for all `names`."""
    (commonest,) = [kind for kind, tensors in lines.items() if tensors == ["*"]]
    types = dict.fromkeys(names, commonest)
    for kind, tensors in lines.items():
        for tensor in tensors:
            name, _, layers = tensor.partition(" ")
            for span in filter(None, layers.split(",")):
                first, _, last = span.partition("-")
                for layer in range(int(first), int(last or first) + 1):
                    types[f"blk.{layer}.{name}.weight"] = kind
            if not layers and name != "*":
                types[f"{name}.weight"] = kind
    return types


def test_every_preset_of_llama_quantize_is_known() -> None:
    # Names without a number of bits that GGUF has are ours: presets for models that are more than a stack of blocks.
    assert set(PRESETS) == {name for name in preset_names() if not name.startswith("INT")}


@pytest.mark.parametrize("statistics_present", [False, True], ids=["without_imatrix", "with_imatrix"])
@pytest.mark.parametrize("model", MAPS)
def test_type_maps_equal_those_of_llama_quantize(model: str, statistics_present: bool) -> None:
    source = header_model(**MAPS[model]["shape"], stored_format="f16")
    matrices = [name for name, header in source.headers.items() if len(header.shape) > 1]
    for preset, lines in MAPS[model]["without_imatrix"].items():
        if statistics_present:
            lines = MAPS[model]["with_imatrix"].get(preset, lines)
        expected = expected_types(lines, matrices)
        if not all(FORMATS[kind].can_encode for kind in expected.values()):
            with pytest.raises(RecipeError, match="there is no encoder for that format yet"):
                resolve(source, preset, statistics_present=statistics_present)
            continue
        plan = resolve(source, preset, statistics_present=statistics_present)
        assert {row.name: row.format.name for row in plan.rows if row.name in expected} == expected, preset
        assert all(row.format.name == "f32" for row in plan.rows if row.name not in expected)
