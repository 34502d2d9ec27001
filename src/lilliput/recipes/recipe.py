# SPDX-License-Identifier: Apache-2.0
r"""What a user wants: an ordered list of rules, from a YAML file or a preset. The first rule that matches wins.

    name: my-mix
    base: Q4_K_M                            # its rules follow after mine
    transforms: [untie, awq_scaling:0.5]    # rewrites of the float model, in this order; a strength where one is wanted
    rules:
      - match: "*.mlp.down_proj.weight"     # Hugging Face name: glob, or re:REGEX; gguf:GLOB is for GGUF's names
        format: Q6_K
      - role: output                        # includes a token embedding that serves as output head
        format: Q8_0
      - role: [embeddings, attention]       # a role, or several; embeddings, attention, ffn and head stand for theirs
        format: INT8_CHANNEL
      - match: "re:model\\.layers\\.[01]\\."
        layers: before 1/8                  # before N, from N, before N/D, from N/D of the layers, first, last,
                                            # first_and_last, or more_bits; of each half in an encoder-decoder
        when: without_statistics
        format: Q5_K
        fallback: Q8_0                      # where rows do not divide into blocks; the default is llama.cpp's
        inputs: int8_static_asym:mse        # of integer weights: one range for all tokens, found on --text, in the
                                            # file; int8_static or int8_static_asym : min_max, percentile, mse, entropy
        method: round_to_nearest

Presets are files of the same form in `presets/`; a new one needs no edit anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from yaml import MappingNode, Node, SafeLoader, ScalarNode, SequenceNode, YAMLError, compose, safe_load

from lilliput.activations import parse_static_inputs
from lilliput.errors import FormatError, RecipeError
from lilliput.formats import FORMATS, find_format, get_format
from lilliput.methods import METHODS
from lilliput.records import Role
from lilliput.transforms import parse_transform

Method = str  # a name in METHODS; the fields and functions that take one check it
# What a rule's `when` may ask of the model or the run. llama_70b: 80 layers of Llama or Qwen2 shape.
Condition = Literal[
    "with_statistics", "without_statistics", "gqa_at_least_4", "llama_70b", "experts_at_least_4", "eight_experts"
]

_NAMED_LAYERS = ("first", "last", "first_and_last")
FRACTION = re.compile(r"(before|from) (\d+)(?:/([1-9]\d*))?")


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


# What other tools call a method, and its name here.
ELSEWHERE = {
    "awq": "a rewriting of the model before any method: --transform awq_scaling",
    "gptq": "'feedback', what --effort balanced takes",
    "hqq": "'half_quadratic'",
    "rtn": "'round_to_nearest'",
}
# Names that stand for several roles.
ROLE_GROUPS: Mapping[str, tuple[Role, ...]] = {
    "embeddings": (Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING, Role.SEGMENT_EMBEDDING),
    "attention": tuple(role for role in Role if "attention_" in role.value),
    "cross_attention": tuple(role for role in Role if role.value.startswith("cross_attention_")),
    "ffn": (Role.FFN_GATE, Role.FFN_UP, Role.FFN_DOWN),
    "head": (Role.OUTPUT, Role.POOLER, Role.CLASSIFIER),
}


def _as_roles(value: object) -> object:
    """Names of roles and of groups of them, as roles; what is neither is left to be refused."""
    if value is None:
        return None
    found: list[object] = []
    for name in value if isinstance(value, list | tuple) else [value]:
        found.extend(ROLE_GROUPS.get(name, (name,)) if isinstance(name, str) else (name,))
    return tuple(found)


class Rule(BaseModel):
    """One line of a recipe: which tensors, and what becomes of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    match: str | None = None
    role: Annotated[tuple[Annotated[Role, Field(strict=False)], ...] | None, BeforeValidator(_as_roles)] = None
    layers: str | None = None
    when: Annotated[tuple[Condition, ...], BeforeValidator(_as_tuple)] = ()
    format: str
    method: Method | None = None
    fallback: str | None = None
    inputs: str | None = None
    reason: str | None = None

    @field_validator("format", "fallback")
    @classmethod
    def _known_format(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            return get_format(value).name
        except FormatError as error:
            raise ValueError(str(error)) from error

    @field_validator("inputs")
    @classmethod
    def _known_inputs(cls, value: str | None) -> str | None:
        try:
            return None if value is None else parse_static_inputs(value).name
        except FormatError as error:
            raise ValueError(str(error)) from error

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str | None) -> str | None:
        if value is not None and value not in METHODS:
            raise ValueError(f"unknown method '{value}'")
        return value

    @field_validator("match")
    @classmethod
    def _legal_pattern(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("re:"):
            try:
                re.compile(value[3:])
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
        return value

    @field_validator("layers")
    @classmethod
    def _legal_layers(cls, value: str | None) -> str | None:
        if value is not None and value not in (*_NAMED_LAYERS, "more_bits") and not FRACTION.fullmatch(value):
            raise ValueError(
                f"'{value}' selects no layers; write first, last, first_and_last, more_bits, before N, from N, "
                "before N/D or from N/D"
            )
        return value

    @model_validator(mode="after")
    def _selects_something(self) -> Rule:
        if self.match is None and self.role is None:
            raise ValueError("a rule needs 'match' or 'role'; for all other tensors write match: \"*\"")
        return self

    def matches_name(self, huggingface_names: tuple[str, ...], canonical_name: str) -> bool:
        """Whether `match` holds for a tensor of these names."""
        if self.match is None:
            return True
        if self.match.startswith("gguf:"):
            return fnmatchcase(canonical_name, self.match[5:])
        if self.match.startswith("re:"):
            return any(re.search(self.match[3:], name) for name in huggingface_names)
        return any(fnmatchcase(name, self.match) for name in huggingface_names)

    def holds_for_layer(self, layer: int | None, n_layers: int) -> bool:
        """Whether `layers` holds; a tensor outside the layers matches only rules without it."""
        if self.layers is None:
            return True
        if layer is None:
            return False
        if self.layers == "more_bits":
            return gets_more_bits(layer, n_layers)
        if self.layers in _NAMED_LAYERS:
            return layer in {"first": (0,), "last": (n_layers - 1,), "first_and_last": (0, n_layers - 1)}[self.layers]
        found = FRACTION.fullmatch(self.layers)
        assert found is not None
        bound = int(found[2]) if found[3] is None else int(found[2]) * n_layers // int(found[3])
        return layer < bound if found[1] == "before" else layer >= bound


def gets_more_bits(layer: int, n_layers: int) -> bool:
    """The first and last eighth of the layers and every third between: llama.cpp's `use_more_bits`."""
    first = n_layers // 8
    return layer < first or layer >= 7 * n_layers // 8 or (layer - first) % 3 == 2


class Recipe(BaseModel):
    """Rules in order.

    transforms: as `parse_transform` reads them.
    needs_statistics: the formats are so small that codes chosen without input statistics ruin the model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = ""
    description: str = ""
    base: str | None = None
    needs_statistics: bool = False
    transforms: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    rules: Annotated[tuple[Rule, ...], BeforeValidator(_as_tuple)] = ()

    @field_validator("name")
    @classmethod
    def _legal_name(cls, value: str) -> str:
        # It becomes part of a file name.
        if value and not re.fullmatch(r"\w[\w.+-]*", value):
            raise ValueError(f"'{value}' cannot name a file; use letters, digits and . _ + -")
        return value

    @field_validator("base")
    @classmethod
    def _known_base(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                return find_recipe(value, presets_only=True).name
            except RecipeError as error:
                raise ValueError(str(error)) from error
        return None

    @field_validator("transforms")
    @classmethod
    def _known_transforms(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for words in value:
            try:
                parse_transform(words)
            except RecipeError as error:
                raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _decides_something(self) -> Recipe:
        if not self.rules and self.base is None:
            raise ValueError("a recipe needs 'rules' or 'base'")
        return self

    def all_rules(self) -> Iterator[Rule]:
        """Own rules, then those of `base`."""
        yield from self.rules
        if self.base is not None:
            yield from find_recipe(self.base, presets_only=True).all_rules()


# What other tools call a scheme or a file -> how it is asked for here.
NAMES_ELSEWHERE = {
    "W4A16": "--to int4_g128 -o NAME.compressed-tensors",
    "W8A16": "--to int8_channel -o NAME.compressed-tensors",
    "W8A8": "--to int8_channel -o NAME.w8a8",
    "FP8-DYNAMIC": "--to fp8_e4m3_channel -o NAME.w8a8",
    "GPTQ": "--to int4_g128 -o NAME.gptq",
    "AWQ": "--to int4_g128_asym -o NAME.awq",
    "GGUF": "--to Q4_K_M -o NAME.gguf",
    "ONNX": "--to int4_g32 -o NAME.onnx",
    "MLX": "--to int4_g64_affine -o NAME.mlx",
}


def find_recipe(name: str, *, presets_only: bool = False) -> Recipe:
    """A preset or plain type by its name in any case (`GGUF:` before it is ignored), or a YAML file by its path.

    Raises RecipeError with the nearest names, or with the line of a fault in the file.
    """
    if not presets_only and name.lower().endswith((".yaml", ".yml")):
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise RecipeError(f"{name}: cannot read the recipe: {why}") from error
        recipe = parse_recipe(text, path.name)
        return recipe if recipe.name else recipe.model_copy(update={"name": path.stem})
    wanted = name.upper().removeprefix("GGUF:")
    if wanted in preset_names():
        return _preset(wanted)
    if _is_format(wanted):
        rule = Rule(match="*", format=wanted, reason=f"every weight matrix is {wanted}, as asked")
        return Recipe(name=wanted, rules=(rule,))
    if wanted in NAMES_ELSEWHERE:
        raise RecipeError(f"'{name}' is a name of other tools; here it is {NAMES_ELSEWHERE[wanted]}")
    known = sorted({*preset_names(), *(number_format.upper() for number_format in FORMATS)})
    near = get_close_matches(wanted, known, n=3, cutoff=0.0)
    raise RecipeError(
        f"unknown preset '{name}'; nearest: {', '.join(near)}; `lilliput formats` lists all (a recipe file's name ends "
        "in .yaml)"
    )


def _is_format(name: str) -> bool:
    """Raises RecipeError for a misspelt name of a family of formats."""
    try:
        return find_format(name) is not None
    except FormatError as error:
        raise RecipeError(str(error)) from error


@cache
def preset_names() -> tuple[str, ...]:
    """Names of the presets that come with the package."""
    folder = resources.files("lilliput.recipes") / "presets"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


@cache
def _preset(name: str) -> Recipe:
    file = resources.files("lilliput.recipes") / "presets" / f"{name}.yaml"
    return parse_recipe(file.read_text(encoding="utf-8"), f"{name}.yaml").model_copy(update={"name": name})


def parse_recipe(text: str, origin: str) -> Recipe:
    """Read YAML.

    origin: what to call the text in errors.
    Raises RecipeError with line, field and the nearest known name.
    """
    try:
        root = compose(text, Loader=SafeLoader)
        data = safe_load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise RecipeError(f"{origin}{line}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if root is None or not isinstance(data, dict):
        raise RecipeError(f"{origin}: expected fields like 'rules:', found {type(data).__name__}")
    _refuse_repeated_keys(root, origin)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(_describe(error, root, origin)) from error


def _refuse_repeated_keys(root: Node, origin: str) -> None:
    """YAML's last value would win silently."""
    waiting, visited = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        children = list(node.value) if isinstance(node, SequenceNode) else []
        if isinstance(node, MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if isinstance(key, ScalarNode) and key.value in seen:
                    raise RecipeError(f"{origin}:{key.start_mark.line + 1}: field '{key.value}' is given twice")
                seen.add(str(key.value))
                children.append(value)
        # An alias may lead back to where it stands.
        waiting.extend(child for child in children if id(child) not in visited)
        visited.update(id(child) for child in children)


def _describe(error: ValidationError, root: Node, origin: str) -> str:
    """The first fault as one line: where, which field, what is allowed."""
    # A misspelt field also leaves a required one missing: the misspelling is the fault to tell.
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    location = fault["loc"]
    field = ".".join(str(part) for part in location) or "recipe"
    place = f"{origin}:{_line(root, location)}: {field}"
    if fault["type"] == "extra_forbidden":
        known = list((Rule if "rules" in location else Recipe).model_fields)
        near = get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        return f"{place}: unknown field; {hint}"
    if fault["type"] == "missing":
        return f"{place}: this field is required"
    message = fault["msg"].removeprefix("Value error, ")
    choices = {"role": (*Role, *ROLE_GROUPS), "method": tuple(METHODS), "when": get_args(Condition)}
    for name, allowed in choices.items():
        if name in location:
            near = get_close_matches(str(fault["input"]), allowed, n=1)
            message = f"unknown {name} '{fault['input']}'; " + (
                f"did you mean '{near[0]}'?" if near else f"known: {', '.join(allowed)}"
            )
    return f"{place}: {message}"


def _line(root: Node, location: tuple[int | str, ...]) -> int:
    """Line, from 1, of the deepest node that `location` names."""
    node, line = root, root.start_mark.line
    for part in location:
        if isinstance(node, MappingNode):
            found = [(key, value) for key, value in node.value if key.value == part]
            if not found:
                break
            line, node = found[0][0].start_mark.line, found[0][1]
        elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return int(line) + 1


def parse_method(name: str | None) -> Method | None:
    """The method of that name, or None for the default. Raises RecipeError."""
    if name is not None and name not in METHODS:
        if name in ELSEWHERE:
            raise RecipeError(f"unknown method '{name}': here it is {ELSEWHERE[name]}")
        near = get_close_matches(name, METHODS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(METHODS)}"
        raise RecipeError(f"unknown method '{name}'; {hint}")
    return name
