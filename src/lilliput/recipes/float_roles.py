# SPDX-License-Identifier: Apache-2.0
"""A number format asked for by its name alone, narrowed to what the output's readers take quantized."""

from __future__ import annotations

from lilliput.checkpoints.model_source import ModelSource
from lilliput.recipes.plan import PLAIN_FLOATS
from lilliput.recipes.recipe import Recipe, Rule
from lilliput.records import Role


def with_float_roles(recipe: Recipe, roles: tuple[Role, ...], source: ModelSource) -> Recipe:
    """The recipe, with rules before it that leave tensors of these roles as they are.

    Only where one rule serves every matrix: who wrote several has decided, and is told when the container disagrees.
    """
    if not roles or recipe.base is not None or [rule.match for rule in recipe.rules] != ["*"]:
        return recipe
    table = {entry.name: entry.role for entry in source.architecture.tensor_table(source.config)}
    rules = []
    for name, header in source.headers.items():
        role = table.get(name)
        if role in roles:
            kept = header.format.name if header.format.name in PLAIN_FLOATS else "f16"
            reason = f"{role.value} tensors stay {kept.upper()}: the output's readers take only layers quantized"
            rules.append(Rule(role=(role,), format=kept, reason=reason))
    return recipe.model_copy(update={"rules": (*rules, *recipe.rules)})
