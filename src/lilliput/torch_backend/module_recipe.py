# SPDX-License-Identifier: Apache-2.0
r"""Which module becomes what: an ordered list of rules on module names, from a scheme's name, a YAML file or a mapping.

    name: first-block-wide
    rules:
      - modules: "*.layer.0.*"            # a glob, or re:REGEX, on the names that model.named_modules() gives
        scheme: W8A16
      - modules: "re:\\.(query|key|value)$"
        kind: linear                      # linear or embedding; both where it is left out
        scheme: int4_g64/int8_token
      - kind: embedding
        scheme: int8_channel
      - modules: "*classifier*"
        keep: true                        # stays as it is
      - scheme: W8A8-static
        ranges: mse                       # min_max, percentile, mse or entropy
        smoothing: 0.5                    # SmoothQuant's strength

The first rule that matches wins. Modules that no rule matches stay as they are, and the report says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from yaml import YAMLError, safe_load

from lilliput.errors import RecipeError
from lilliput.torch_backend.scheme import LayerScheme, get_scheme

Kind = Literal["linear", "embedding"]


class ModuleRule(BaseModel):
    """One line of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    modules: str = "*"
    kind: Kind | None = None
    scheme: str | None = None
    keep: bool = False
    ranges: str = "min_max"
    smoothing: float = 0.0

    @model_validator(mode="after")
    def _is_whole(self) -> ModuleRule:
        if self.keep == (self.scheme is not None):
            raise ValueError("a rule needs either a scheme or keep: true")
        if self.modules.startswith("re:"):
            try:
                re.compile(self.modules[3:])
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
        if self.scheme is not None:
            try:
                self.layer_scheme()
            except RecipeError as error:
                raise ValueError(str(error)) from error
        return self

    def layer_scheme(self) -> LayerScheme:
        """What a matching module becomes. Raises RecipeError."""
        assert self.scheme is not None
        return get_scheme(self.scheme, ranges=self.ranges, smoothing=self.smoothing)

    def matches(self, name: str, kind: Kind) -> bool:
        """Whether this rule is about that module."""
        if self.kind not in (None, kind):
            return False
        if self.modules.startswith("re:"):
            return re.search(self.modules[3:], name) is not None
        return fnmatchcase(name, self.modules)


class ModuleRecipe(BaseModel):
    """Rules, the first that matches wins."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    name: str = ""
    rules: tuple[ModuleRule, ...]

    def rule_for(self, name: str, kind: Kind) -> ModuleRule | None:
        """The rule of one module; None where none matches."""
        return next((rule for rule in self.rules if rule.matches(name, kind)), None)


def read_recipe(recipe: str | Path | Mapping[str, object] | ModuleRecipe) -> ModuleRecipe:
    """A scheme's name, a path to YAML, the content of one, or a recipe. Raises RecipeError."""
    if isinstance(recipe, ModuleRecipe):
        return recipe
    if isinstance(recipe, str) and not recipe.endswith((".yaml", ".yml")):
        get_scheme(recipe)
        return ModuleRecipe(name=recipe, rules=(ModuleRule(scheme=recipe),))
    if not isinstance(recipe, str | Path | Mapping):
        raise RecipeError(
            f"the recipe is a {type(recipe).__name__}; give a scheme's name, a YAML file's path, or what it holds"
        )
    if isinstance(recipe, str | Path) and not Path(recipe).is_file():
        raise RecipeError(
            f"recipe {recipe}: no such file; give the path of a YAML file, or a scheme such as W8A8-dynamic"
        )
    try:
        content = recipe if isinstance(recipe, Mapping) else safe_load(Path(recipe).read_text(encoding="utf-8"))
        return ModuleRecipe.model_validate(content)
    except (OSError, YAMLError) as error:
        raise RecipeError(f"recipe {recipe}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        raise RecipeError(f"recipe, field {where}: {first['msg']}") from error
