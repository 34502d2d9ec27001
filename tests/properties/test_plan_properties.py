# SPDX-License-Identifier: Apache-2.0
from header_models import header_model
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.errors import RecipeError
from lilliput.formats import FORMATS
from lilliput.recipes.plan import PLAIN_FLOATS, resolve
from lilliput.recipes.recipe import find_recipe, preset_names


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, int | bool | str]:
    """Any Llama shape, rows that no block divides included."""
    kv_heads = draw(st.integers(1, 4))
    heads = kv_heads * draw(st.integers(1, 8))
    return {
        "family": draw(st.sampled_from(["llama", "qwen2", "qwen3"])),
        "vocab_size": draw(st.integers(1, 5000)),
        "hidden_size": heads * draw(st.sampled_from([2, 8, 32, 64, 80, 128])),
        "ffn_size": draw(st.integers(1, 3000)),
        "layers": draw(st.sampled_from([1, 2, 7, 8, 32, 80])),
        "heads": heads,
        "kv_heads": kv_heads,
        "tied": draw(st.booleans()),
    }


@settings(max_examples=60, deadline=None)
@given(shapes(), st.sampled_from(preset_names()), st.booleans())
def test_every_tensor_is_planned_once_in_a_format_that_holds_it(
    shape: dict[str, int | bool | str], preset: str, statistics_present: bool
) -> None:
    model = header_model(**shape)
    try:
        plan = resolve(model, preset, statistics_present=statistics_present)
    except RecipeError:
        # Only a format without an encoder refuses a preset; the golden test holds which.
        assert not all(FORMATS[rule.format].can_encode for rule in find_recipe(preset).all_rules())
        return
    assert [row.name for row in plan.rows] == list(model.headers)
    for row in plan.rows:
        assert row.shape == model.headers[row.name].shape
        assert row.shape[-1] % row.format.block_size == 0
        assert row.format.can_encode
        assert (row.method == "copy") == (row.format.name in PLAIN_FLOATS)
        assert row.reason
        if "instead" in row.reason:
            assert any("fall back" in warning for warning in plan.warnings)
    assert plan.tensor_bytes == sum(row.nbytes for row in plan.rows)
