# SPDX-License-Identifier: Apache-2.0
import pytest
from header_models import HeaderModel, header_model

from lilliput.errors import RecipeError
from lilliput.recipes.plan import Plan, resolve
from lilliput.recipes.recipe import parse_recipe


def plan_of(model: HeaderModel, recipe: str, *, statistics_present: bool = True) -> Plan:
    chosen = parse_recipe(recipe, "mine.yaml") if "\n" in recipe else recipe
    return resolve(model, chosen, statistics_present=statistics_present)


def test_bytes_and_bits_per_weight_are_those_of_the_formats() -> None:
    plan = plan_of(header_model(layers=1, tied=True, vocab_size=1000), "Q8_0")
    matrices = 512 * 1000 + 2 * 512 * 512 + 2 * 128 * 512 + 3 * 512 * 1536
    vectors = 3 * 512
    assert plan.tensor_bytes == matrices * 34 // 32 + vectors * 4
    assert plan.bits_per_weight == pytest.approx((matrices * 8.5 + vectors * 32) / (matrices + vectors))


def test_rows_follow_the_file_order_and_name_both_spellings() -> None:
    model = header_model()
    plan = plan_of(model, "Q4_K_M")
    assert [row.name for row in plan.rows] == list(model.headers)
    assert plan.row("blk.0.ffn_down.weight").source_name == "model.layers.0.mlp.down_proj.weight"
    assert plan.row("blk.0.ffn_down.weight").shape == (512, 1536)


def test_vectors_stay_f32_whatever_the_recipe() -> None:
    plan = plan_of(header_model(), "Q4_0")
    norm = plan.row("blk.0.attn_norm.weight")
    assert (norm.format.name, norm.method, norm.reason) == ("f32", "copy", "vectors stay F32")


def test_a_tied_embedding_is_planned_once_and_as_output() -> None:
    plan = plan_of(header_model(tied=True), "Q4_K_M")
    assert "output.weight" not in [row.name for row in plan.rows]
    embedding = plan.row("token_embd.weight")
    assert embedding.format.name == "q6_k"
    assert embedding.reason.endswith("shared with the output head")
    assert plan_of(header_model(tied=False), "Q4_K_M").row("token_embd.weight").format.name == "q4_k"


def test_rows_that_do_not_divide_fall_back_and_say_so() -> None:
    plan = plan_of(header_model(hidden_size=576, ffn_size=1536, heads=9, kv_heads=3), "Q4_K_S")
    row = plan.row("blk.3.attn_q.weight")
    assert row.format.name == "q5_0"
    assert row.reason == "rows of 576 do not divide into Q4_K's blocks of 256: Q5_0 instead"
    assert any("fall back" in warning for warning in plan.warnings)


def test_a_rule_may_name_its_own_fallback() -> None:
    recipe = 'rules:\n  - {match: "*", format: Q4_K, fallback: Q8_0}\n'
    plan = plan_of(header_model(hidden_size=576, heads=9, kv_heads=3), recipe)
    assert plan.row("blk.0.attn_q.weight").format.name == "q8_0"


def test_rows_that_no_block_divides_become_f16() -> None:
    plan = plan_of(header_model(ffn_size=172), "Q8_0")
    row = plan.row("blk.0.ffn_down.weight")
    assert (row.format.name, row.method) == ("f16", "copy")


def test_the_first_rule_that_matches_wins() -> None:
    recipe = """\
rules:
  - {match: "model.layers.1.mlp.down_proj.weight", format: Q8_0}
  - {match: "gguf:blk.*.ffn_down.weight", format: Q6_K, method: round_to_nearest}
  - {match: "*", format: Q4_K}
"""
    plan = plan_of(header_model(), recipe)
    rows = {row.name: (row.format.name, row.method) for row in plan.rows}
    assert rows["blk.1.ffn_down.weight"] == ("q8_0", "searched_scales")
    assert rows["blk.2.ffn_down.weight"] == ("q6_k", "round_to_nearest")
    assert rows["blk.2.ffn_up.weight"] == ("q4_k", "searched_scales")


def test_a_tensor_that_no_rule_matches_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"no rule matches model\.embed_tokens\.weight"):
        plan_of(header_model(), "rules:\n  - {role: ffn_down, format: Q6_K}\n")


def test_a_rule_that_decides_nothing_is_reported() -> None:
    recipe = 'base: Q4_K_M\nrules:\n  - {match: "*.mlp.donw_proj.weight", format: Q6_K}\n'
    assert any("donw_proj" in warning for warning in plan_of(header_model(), recipe).warnings)


def test_a_format_without_encoder_is_refused() -> None:
    with pytest.raises(RecipeError, match="would become Q1_0, and there is no encoder"):
        plan_of(header_model(), 'rules:\n  - {match: "*", format: Q1_0}\n')


def test_method_copy_cannot_change_a_format() -> None:
    with pytest.raises(RecipeError, match="method 'copy' cannot turn"):
        plan_of(header_model(), 'rules:\n  - {match: "*", format: Q4_K, method: copy}\n')


def test_a_tensor_already_in_its_format_is_copied_without_warning() -> None:
    plan = plan_of(header_model(stored_format="q8_0"), "Q8_0")
    assert {row.method for row in plan.rows} == {"copy"}
    assert plan.warnings == ()


def test_quantizing_again_warns() -> None:
    plan = plan_of(header_model(stored_format="q8_0"), "Q4_K_M")
    assert any("already quantized" in warning for warning in plan.warnings)
    assert not any("already quantized" in warning for warning in plan_of(header_model(), "Q4_K_M").warnings)


def test_an_output_larger_than_its_input_warns() -> None:
    plan = plan_of(header_model(stored_format="q4_k"), "F16")
    assert any("larger than the input" in warning for warning in plan.warnings)


def test_small_formats_without_statistics_warn() -> None:
    advice = "give --text, --statistics or --imatrix"
    assert any(advice in w for w in plan_of(header_model(), "Q4_K_M", statistics_present=False).warnings)
    assert any(advice in w for w in plan_of(header_model(), "Q2_K_S", statistics_present=False).warnings)
    assert not any(advice in w for w in plan_of(header_model(), "Q4_K_M").warnings)
    assert not any(advice in w for w in plan_of(header_model(), "Q6_K", statistics_present=False).warnings)


def test_fingerprint_depends_on_what_is_written_alone() -> None:
    q4 = plan_of(header_model(), "Q4_K_M")
    assert q4.fingerprint == plan_of(header_model(), "Q4_K_M").fingerprint
    assert q4.fingerprint != plan_of(header_model(), "Q4_K_S").fingerprint
    # Statistics change the type map of IQ4_XS only; the codes they change are fingerprinted with the run.
    assert q4.fingerprint == plan_of(header_model(), "Q4_K_M", statistics_present=False).fingerprint


def test_json_rows_hold_the_contract() -> None:
    row = plan_of(header_model(), "Q4_K_M").json_rows()[1]
    assert row["name"] == "blk.0.attn_norm.weight"
    row = next(row for row in plan_of(header_model(), "Q4_K_M").json_rows() if row["name"] == "blk.0.attn_k.weight")
    assert row == {
        "name": "blk.0.attn_k.weight",
        "source_name": "model.layers.0.self_attn.k_proj.weight",
        "shape": [128, 512],
        "format": "Q4_K",
        "method": "searched_scales",
        "bytes": 128 * 512 * 144 // 256,
        "inputs": None,
        "reason": "the type of this preset's weights",
    }
