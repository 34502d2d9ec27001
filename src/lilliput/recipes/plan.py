# SPDX-License-Identifier: Apache-2.0
"""The plan: what happens to every tensor, decided from recipe and headers before any work."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from lilliput.activations import StaticInputs, parse_static_inputs
from lilliput.architectures import unknown
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.sources import Named, source_names
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import RecipeError
from lilliput.formats import NumberFormat, get_format
from lilliput.formats.families import fitting_sibling
from lilliput.formats.integer_lines import MOST_COLUMNS, has_integer_form
from lilliput.methods import MASKS, METHODS
from lilliput.recipes.assumptions import Assumption, assumptions
from lilliput.recipes.recipe import Condition, Method, Recipe, Rule, find_recipe
from lilliput.records import Role, TensorHeader, TensorPlan, TransformPlan
from lilliput.transforms.transformed_source import original_of

PLAIN_FLOATS = ("f32", "f16", "bf16", "f64")
# Roles that are never multiplied as matrices; whatever their shape, they stay F32.
VECTOR_ROLES = (
    Role.NORM,
    Role.BIAS,
    Role.ROPE,
    Role.SEGMENT_EMBEDDING,
    Role.RELATIVE_BIAS,
    Role.ROUTER,
)
# Format -> what llama.cpp takes when a row does not divide into its blocks of 256; F16 when even that does not divide.
FALLBACKS = {
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    "tq1_0": "q4_0",
    "tq2_0": "q4_0",
    "iq1_s": "iq4_nl",
    "iq1_m": "iq4_nl",
    "iq2_xxs": "iq4_nl",
    "iq2_xs": "iq4_nl",
    "iq2_s": "iq4_nl",
    "iq3_xxs": "iq4_nl",
    "iq3_s": "iq4_nl",
    "iq4_xs": "iq4_nl",
}
# Up to this many bits per weight, codes chosen by input statistics are clearly better than without.
STATISTICS_MATTER_BELOW = 4.6
LAYER = re.compile(r"(?:(?:enc|dec)\.)?blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Plan:
    """One row per tensor of the output file, in file order.

    recipe: its name.  source: basename of the model.
    warnings: sentences for the user.  kv_format: of the KV cache, None means the runtime's own.
    transforms: rewrites of the float model before all else, in their order.
    assumed: of an architecture that is not known here, what its tensors were taken for.
    """

    recipe: str
    source: str
    rows: tuple[TensorPlan, ...]
    warnings: tuple[str, ...] = ()
    kv_format: NumberFormat | None = None
    transforms: tuple[TransformPlan, ...] = ()
    assumed: tuple[Assumption, ...] = ()

    @property
    def tensor_bytes(self) -> int:
        """Stored bytes of all tensors; tied ones once."""
        return sum(row.nbytes for row in self.rows)

    @property
    def weights(self) -> int:
        """Number of stored weights; tied ones once."""
        return sum(weights_of(row) for row in self.rows if row.tied_to is None)

    @property
    def bits_per_weight(self) -> float:
        """Tensor bytes only."""
        return self.tensor_bytes * 8 / max(self.weights, 1)

    @property
    def fingerprint(self) -> str:
        """sha256 hex of what would be written: equal plans give equal fingerprints, whatever their reasons say."""
        # Inputs last and only where there are some, so that other plans keep their fingerprints.
        rows = [
            [row.name, row.shape, row.format.name, row.method, row.tied_to, *([row.inputs.name] if row.inputs else [])]
            for row in self.rows
        ]
        transforms = [[item.name, item.strength, item.edges] for item in self.transforms]
        content = [self.recipe, self.kv_format.name if self.kv_format else None, rows, transforms]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    def row(self, name: str) -> TensorPlan:
        """The row of a canonical tensor name. Raises KeyError."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def json_transforms(self) -> list[Json]:
        """The `transforms` of `lilliput plan --json`."""
        return [
            {
                "name": item.name,
                "edges": [*item.edges],
                "skipped": dict(item.skipped),
                "strength": item.strength,
            }
            for item in self.transforms
        ]

    def json_rows(self) -> list[dict[str, Json]]:
        """The `tensors` of `lilliput plan --json`."""
        return [
            {
                "name": row.name,
                "source_name": row.source_name,
                "shape": [*row.shape],
                "format": row.format.name.upper(),
                "method": row.method,
                "bytes": row.nbytes,
                "inputs": row.inputs.name if row.inputs is not None else None,
                "reason": row.reason,
            }
            for row in self.rows
        ]


def _layer_of(name: str, config: ModelConfig) -> int | None:
    """The block that a tensor is in."""
    if config.unknown is not None:
        return unknown.layer_of(name)
    found = LAYER.match(name)
    return int(found[1]) if found else None


def weights_of(tensor: TensorPlan | TensorHeader) -> int:
    """Number of weights of a tensor."""
    return prod(tensor.shape)


def resolve(
    source: ModelSource, recipe: Recipe | str, *, statistics_present: bool, method: Method | None = None,
    inputs: StaticInputs | None = None,
) -> Plan:  # fmt: skip
    """Decide format and method of every tensor of `source` from headers alone.

    recipe: rules, or the name of a preset, plain type or YAML file.  statistics_present: the run will have input
    statistics.  method: replaces the default; a rule's own method still wins.  inputs: static ones of every layer whose
    rule names no others.
    Raises RecipeError for a tensor that no rule matches, a format that cannot be encoded, static inputs of no layer.
    """
    if isinstance(recipe, str):
        recipe = find_recipe(recipe)
    resolver = _Resolver(source.config, recipe, statistics_present, method, inputs)
    table = {entry.name: entry for entry in source.architecture.tensor_table(source.config)}
    rows = []
    for name, header in source.headers.items():
        entry = table.get(name) or TensorEntry(name, Named(source.source_name(name)), header.shape, Role.OTHER)
        if entry.tied_to in source.headers:
            continue  # its bytes are those of the tensor it is tied to
        rows.append(resolver.row(header, entry, source.source_name(name)))
    plan = Plan(recipe.name, source.path.name, tuple(rows), assumed=assumptions(source.config))
    if inputs is not None and not any(row.inputs is not None for row in rows):
        raise RecipeError(
            f"{recipe.name}: inputs {inputs.name} are for layers whose weights are integers under scales, and no layer "
            "of this plan has any; choose INT8_CHANNEL, INT4_G128, Q8_0 or their like with --to, or leave inputs out"
        )
    warnings = [*_warnings(plan, original_of(source).headers), *resolver.unused_rules()]
    if not statistics_present:
        warnings.extend(_warnings_without_statistics(plan, recipe))
    return replace(plan, warnings=tuple(warnings))


class _Resolver:
    """Applies one recipe to the tensors of one model; remembers which rules were used."""

    def __init__(
        self, config: ModelConfig, recipe: Recipe, statistics_present: bool, method: Method | None,
        inputs: StaticInputs | None,
    ) -> None:  # fmt: skip
        self._inputs = inputs
        self._config = config
        self._recipe = recipe
        self._method = method
        self._conditions = frozenset(_conditions(config, statistics_present))
        self._rules = tuple(recipe.all_rules())
        self._used: set[int] = set()

    def row(self, header: TensorHeader, entry: TensorEntry, source_name: str) -> TensorPlan:
        """The plan of one tensor."""
        inputs = None
        if entry.role is Role.KEPT:
            number_format, method, reason = header.format, "copy", "stays as it is stored"
        elif len(header.shape) < 2 or entry.role in VECTOR_ROLES:
            reason = "vectors stay F32" if len(header.shape) < 2 else f"{entry.role.value} tensors stay F32"
            number_format, method = get_format("f32"), "copy"
        elif entry.role is Role.POSITION_EMBEDDING:
            # llama.cpp's tools leave them alone, too; half of F32's bytes is all that is worth saving.
            wanted = get_format(self._rule(header, entry, source_name).format)
            number_format = wanted if wanted.name in PLAIN_FLOATS else get_format("f16")
            method, reason = "copy", "every token reads a position: they stay plain floats"
        else:
            rule = self._rule(header, entry, source_name)
            number_format, reason = _fitting_format(rule, header)
            inputs = self._inputs_of(rule, number_format, header, entry)
            reason = reason or rule.reason or f"recipe {self._recipe.name}"
            if self._serves_as_output(entry) and entry.role is Role.TOKEN_EMBEDDING:
                reason += "; shared with the output head"
            method, note = self._method_of(rule, number_format, header, entry)
            reason += note if inputs is None else f"{note}; inputs {inputs.name}"
        if entry.assumed:
            reason = f"{entry.assumed}; {reason}"
        return TensorPlan(
            name=header.name,
            source_name=source_name,
            shape=header.shape,
            role=entry.role,
            format=number_format,
            method=method,
            reason=reason,
            runtime_group=entry.runtime_group,
            inputs=inputs,
        )

    def _inputs_of(
        self, rule: Rule, number_format: NumberFormat, header: TensorHeader, entry: TensorEntry
    ) -> StaticInputs | None:
        """Static inputs of a layer, where any were asked for and it can have them."""
        wanted = self._inputs if rule.inputs is None else parse_static_inputs(rule.inputs)
        is_layer = len(header.shape) == 2 and header.columns <= MOST_COLUMNS and self._has_inputs(entry)
        return wanted if is_layer and has_integer_form(number_format) else None

    def unused_rules(self) -> Iterator[str]:
        """A warning for each of the recipe's own rules whose `match` found nothing: most likely a typo."""
        for index, rule in enumerate(self._recipe.rules):
            if index not in self._used and rule.match not in (None, "*"):
                yield f"rule {index + 1} of {self._recipe.name} ('{rule.match}') decided about no tensor"

    def _rule(self, header: TensorHeader, entry: TensorEntry, source_name: str) -> Rule:
        """The first rule that matches."""
        names = [source_name, *source_names(entry.source)]
        layer = _layer_of(header.name, self._config)
        for index, rule in enumerate(self._rules):
            if (
                self._conditions.issuperset(rule.when)
                and self._plays_role(entry, rule.role)
                and rule.holds_for_layer(layer, self._layers_beside(header.name))
                and rule.matches_name(tuple(names), header.name)
            ):
                self._used.add(index)
                return rule
        raise RecipeError(
            f"{self._recipe.name}: no rule matches {source_name} ({header.name}, role {entry.role.value}); "
            'end the recipe with a rule for the rest: {match: "*", format: Q4_K}, or name a preset as its base'
        )

    def _layers_beside(self, name: str) -> int:
        """How many layers there are of the kind that a tensor is in."""
        decoder = self._config.decoder
        return decoder.layers if decoder is not None and name.startswith("dec.") else self._config.layers

    def _plays_role(self, entry: TensorEntry, roles: tuple[Role, ...] | None) -> bool:
        if roles is None or entry.role in roles:
            return True
        # The rows of a fused weight hold the values; llama-quantize treats it so too.
        holds_values = Role.ATTENTION_V in roles and entry.role is Role.ATTENTION_QKV
        return holds_values or (Role.OUTPUT in roles and self._serves_as_output(entry))

    def _serves_as_output(self, entry: TensorEntry) -> bool:
        return entry.role is Role.OUTPUT or (entry.role is Role.TOKEN_EMBEDDING and self._config.tied)

    def _method_of(
        self, rule: Rule, number_format: NumberFormat, header: TensorHeader, entry: TensorEntry
    ) -> tuple[str, str]:
        """Method, and what the reason says about it. Raises RecipeError when the format has no encoder."""
        if number_format.name in PLAIN_FLOATS or number_format.name == header.format.name:
            return "copy", ""
        if not number_format.can_encode:
            raise RecipeError(
                f"{self._recipe.name}: {header.name} would become {number_format.name.upper()}, and there is no "
                "encoder for that format yet; IQ1_S is the smallest format that can be written"
            )
        method = rule.method or self._method or "searched_scales"
        if not METHODS[method].supports(number_format) or method == "copy":
            able = [name for name, item in METHODS.items() if item.supports(number_format) and name != "copy"]
            raise RecipeError(
                f"{self._recipe.name}: method '{method}' cannot turn {header.name} from {header.format.name.upper()} "
                f"into {number_format.name.upper()}; {_serves(method)}use {' or '.join(able)}"
            )
        if METHODS[method].needs != "nothing" and not self._has_inputs(entry):
            return "searched_scales", "; no inputs to calibrate on, so searched_scales"
        if method in MASKS and entry.role in (Role.OUTPUT, Role.TOKEN_EMBEDDING):
            return "searched_scales", f"; {method} is for the layers, so searched_scales"
        if METHODS[method].needs == "mean_square" and "with_statistics" not in self._conditions:
            raise RecipeError(
                f"{self._recipe.name}: method '{method}' weighs by the inputs of {header.name}; give --text, "
                "--statistics or --imatrix"
            )
        return method, ""

    def _has_inputs(self, entry: TensorEntry) -> bool:
        """Whether calibration sees what is multiplied with this tensor."""
        return entry.input_group is not None or self._serves_as_output(entry)


def _serves(method: str) -> str:
    """What the method says of the formats it is for, where it says something."""
    serves: str = getattr(METHODS[method], "serves", "")
    return f"it serves {serves}; " if serves else ""


def _conditions(config: ModelConfig, statistics_present: bool) -> Iterator[Condition]:
    """What holds for this model and run."""
    yield "with_statistics" if statistics_present else "without_statistics"
    if config.heads >= 4 * config.kv_heads:
        yield "gqa_at_least_4"
    if config.experts >= 4:
        yield "experts_at_least_4"
    if config.experts == 8:
        yield "eight_experts"
    if config.layers == 80 and (
        config.family == "qwen2" or (config.family == "llama" and config.heads != config.kv_heads)
    ):
        yield "llama_70b"


def _fitting_format(rule: Rule, header: TensorHeader) -> tuple[NumberFormat, str]:
    """The rule's format or, where rows do not divide into its blocks, what it falls back to, with the reason."""
    wanted = get_format(rule.format)
    columns = header.columns
    if columns % wanted.block_size == 0:
        return wanted, ""
    named = rule.fallback or FALLBACKS.get(wanted.name)
    chosen = get_format(named) if named else fitting_sibling(wanted, columns) or get_format("f16")
    if columns % chosen.block_size:
        chosen = get_format("f16")
    return chosen, (
        f"rows of {columns} do not divide into {wanted.name.upper()}'s blocks of {wanted.block_size}: "
        f"{chosen.name.upper()} instead"
    )


def _warnings(plan: Plan, headers: Mapping[str, TensorHeader]) -> Iterator[str]:
    """What the user should know before the work starts."""
    input_bytes = sum(header.nbytes for header in headers.values())
    if plan.tensor_bytes > input_bytes:
        yield (
            f"the output's tensors ({plan.tensor_bytes:,} bytes) are larger than the input's ({input_bytes:,} bytes): "
            "choose a smaller preset, or keep the input"
        )
    stored = {name: header.format.name for name, header in headers.items()}
    # Models are published in FP8; that is an original.
    originals = (*PLAIN_FLOATS, "fp8_e4m3_tensor", "fp8_e4m3_channel", "fp8_e4m3_block128")
    again = [row for row in plan.rows if stored.get(row.name, "f32") not in (*originals, row.format.name)]
    if again:
        name = stored[again[0].name].upper()
        yield (
            f"{len(again)} tensors of the input are already quantized ({again[0].name} is {name}): quantizing again "
            "adds their errors up; start from the original model where you can"
        )
    fallen = [row for row in plan.rows if "do not divide" in row.reason]
    if fallen:
        yield f"{len(fallen)} tensors fall back because their rows do not divide into blocks (first: {fallen[0].name})"


def _warnings_without_statistics(plan: Plan, recipe: Recipe) -> Iterator[str]:
    """What would be better with input statistics."""
    advice = "give --statistics or --imatrix" if plan.assumed else "give --text, --statistics or --imatrix"
    if recipe.needs_statistics:
        yield f"{recipe.name} without input statistics leaves little of a model: {advice}"
        return
    small = [row for row in plan.rows if row.method != "copy" and row.format.bits_per_weight < STATISTICS_MATTER_BELOW]
    if small:
        yield f"{len(small)} tensors get at most 4.5 bits per weight without input statistics; for less loss {advice}"
