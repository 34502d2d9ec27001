# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from lilliput.containers import container_for
from lilliput.errors import RecipeError
from lilliput.formats import get_format
from lilliput.recipes.recipe import (
    NAMES_ELSEWHERE,
    ROLE_GROUPS,
    Rule,
    find_recipe,
    gets_more_bits,
    parse_recipe,
    preset_names,
)
from lilliput.records import Role

GOOD = """\
name: mine
rules:
  - match: "*.mlp.down_proj.weight"
    format: Q6_K
  - role: output
    format: Q8_0
    method: round_to_nearest
  - {match: "*", format: q4_k, fallback: Q8_0, when: with_statistics}
  - match: "re:model"
    layers: before 1/8
    format: F16
"""


def test_a_recipe_keeps_its_rules_in_order() -> None:
    recipe = parse_recipe(GOOD, "mine.yaml")
    assert [rule.format for rule in recipe.all_rules()] == ["q6_k", "q8_0", "q4_k", "f16"]
    assert recipe.rules[1].method == "round_to_nearest"
    assert recipe.rules[2].when == ("with_statistics",)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("format: Q6_K", "formt: Q6_K", 4, "formt: unknown field; did you mean 'format'?"),
        ("rules:", "ruls:", 2, "ruls: unknown field; did you mean 'rules'?"),
        ("format: Q6_K", "format: Q6_L", 4, "unknown number format 'Q6_L'; nearest: Q6_K"),
        ("format: Q8_0", "format: [Q8_0]", 6, "string"),
        ("    format: Q8_0\n", "", 5, "format: this field is required"),
        ("role: output", "role: outptu", 5, "unknown role 'outptu'; did you mean 'output'?"),
        ("round_to_nearest", "round_to_neares", 7, "did you mean 'round_to_nearest'?"),
        ("with_statistics", "with_statistic", 8, "did you mean 'with_statistics'?"),
        ("fallback: Q8_0", "fallback: Q9_0", 8, "unknown number format 'Q9_0'"),
        ("before 1/8", "befor 1/8", 10, "'befor 1/8' selects no layers"),
        ('"re:model"', '"re:mod("', 9, "not a regular expression"),
        ("  - role: output\n", "  - layers: more_bits\n", 5, "a rule needs 'match' or 'role'"),
        ("format: F16", "format: F16\n    format: F32", 12, "field 'format' is given twice"),
        ("name: mine", "name: [", 3, "not YAML"),
        ("name: mine", "name: ../mine", 1, "'../mine' cannot name a file"),
        ("name: mine", "base: Q4_K_X", 1, "unknown preset 'Q4_K_X'; nearest: Q4_K_"),
    ],
)
def test_a_typo_is_told_with_line_and_nearest_name(old: str, new: str, line: int, message: str) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError) as caught:
        parse_recipe(GOOD.replace(old, new, 1), "mine.yaml")
    assert str(caught.value).startswith(f"mine.yaml:{line}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "name: x", "!!python/object/apply:os.system [ls]", "rules: &a [*a]"])
def test_a_file_that_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_recipe(text, "mine.yaml")


def test_a_base_adds_the_rules_of_a_preset_after_mine() -> None:
    recipe = parse_recipe("base: q4_k_m\nrules:\n  - {role: output, format: Q8_0}\n", "mine.yaml")
    assert list(recipe.all_rules()) == [*recipe.rules, *find_recipe("Q4_K_M").all_rules()]


def test_a_recipe_file_is_named_after_its_file(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text('rules: [{match: "*", format: Q4_K}]')
    assert find_recipe(str(path)).name == "small"
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        find_recipe(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("name", ["Q4_K_M", "q4_k_m", "GGUF:Q4_K_M", "gguf:q4_k_m"])
def test_presets_are_found_in_any_case(name: str) -> None:
    assert find_recipe(name).name == "Q4_K_M"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_ends_with_a_rule_for_the_rest(name: str) -> None:
    recipe = find_recipe(name)
    assert recipe.description
    last = list(recipe.all_rules())[-1]
    assert (last.match, last.role, last.layers, last.when) == ("*", None, None, ())


@pytest.mark.parametrize("name", ["Q3_K", "Q4_K", "q5_k"])
def test_a_plain_type_name_is_that_type_for_every_matrix(name: str) -> None:
    (rule,) = find_recipe(name).all_rules()
    assert (rule.match, rule.format) == ("*", name.lower())


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Q4_K_X", "Q4_K_"),
        ("Q4KM", "Q4_K_M"),
        ("IQ4XS", "IQ4_XS"),
        ("fp16", "F16"),
        ("zzz", "lists all"),
    ],
)
def test_an_unknown_preset_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(RecipeError, match=f"unknown preset '{name}'.*{nearest}"):
        find_recipe(name)


@pytest.mark.parametrize("name", sorted(NAMES_ELSEWHERE))
def test_names_of_other_tools_are_answered_with_ours(name: str) -> None:
    with pytest.raises(RecipeError, match=r"is a name of other tools; here it is --to (\S+) -o NAME(\S+)$") as caught:
        find_recipe(name.lower())
    _, number_format, _, output = str(caught.value).rsplit(maxsplit=3)
    container = container_for(Path(output))
    assert container.suffix == output.removeprefix("NAME")
    if number_format not in preset_names():
        assert container.holds(get_format(number_format))


def test_more_bits_are_the_first_and_last_eighth_and_every_third_between() -> None:
    assert [layer for layer in range(16) if gets_more_bits(layer, 16)] == [0, 1, 4, 7, 10, 13, 14, 15]
    assert [layer for layer in range(4) if gets_more_bits(layer, 4)] == [2, 3]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("before 2", [0, 1]),
        ("from 14", [14, 15]),
        ("before 1/8", [0, 1]),
        ("from 7/8", [14, 15]),
        ("first", [0]),
        ("last", [15]),
        ("first_and_last", [0, 15]),
        (None, [*range(16)]),
    ],
)
def test_layers_select_by_number_or_fraction(layers: str | None, expected: list[int]) -> None:
    rule = Rule(match="*", layers=layers, format="q8_0")
    assert [layer for layer in range(16) if rule.holds_for_layer(layer, 16)] == expected
    assert rule.holds_for_layer(None, 16) is (layers is None)


def test_names_match_as_glob_as_regex_and_as_gguf_name() -> None:
    names = ("model.layers.3.mlp.down_proj.weight",)

    def matches(pattern: str) -> bool:
        return Rule(match=pattern, format="q8_0").matches_name(names, "blk.3.ffn_down.weight")

    assert matches("*.down_proj.weight")
    assert not matches("down_proj")
    assert matches("re:down_proj")
    assert matches(r"re:layers\.[0-3]\.")
    assert not matches("re:^layers")
    assert matches("gguf:blk.*.ffn_down.weight")
    assert not matches("gguf:*.down_proj.weight")


def test_a_role_may_be_several_or_a_name_for_several() -> None:
    recipe = parse_recipe("rules:\n  - {role: [embeddings, attention_v, ffn], format: Q8_0}\n", "mine.yaml")
    roles = recipe.rules[0].role
    assert roles is not None
    assert {Role.TOKEN_EMBEDDING, Role.ATTENTION_V, Role.FFN_GATE, Role.FFN_UP, Role.FFN_DOWN} < set(roles)
    assert Role.ATTENTION_Q not in roles
    assert {Role.ATTENTION_Q, Role.CROSS_ATTENTION_K} < set(ROLE_GROUPS["attention"])
    with pytest.raises(RecipeError, match="unknown role 'atention'; did you mean 'attention'"):
        parse_recipe("rules:\n  - {role: atention, format: Q8_0}\n", "mine.yaml")
