# SPDX-License-Identifier: Apache-2.0
"""A jinja2 sandbox for templates of unknown origin: nothing of Python is reachable, and work and text are limited.

jinja2's own ImmutableSandboxedEnvironment hides underscored attributes and forbids changes to arguments. It does not
bound time and memory: loops nest, macros recurse, `"x" * 10**9` and `a ~ a` in a loop grow text, `[a, a]` grows trees.
Every loop, call and filter therefore costs steps, and every text or tree that a template builds is measured first.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NoReturn

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# Steps and characters that any template may use; both grow with the size of the messages.
BASE_STEPS = 1_000_000
BASE_TEXT = 4_000_000
# Widths, counts and exponents beyond this have no place in a prompt.
LARGEST_NUMBER_ARGUMENT = 100_000
# Steps of one call or filter; a loop turn is one. About 1 microsecond a step, measured 2026-11 on 2 shared cores.
CALL_STEPS = 5
_LONG_NUMBER = re.compile(r"\d{6,}")
# Formats whose width is an argument: `%*d`, `{:{width}}`.
_ARGUMENT_WIDTH = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*\{")
_COUNTED_FILTERS = ("do_center", "do_indent", "do_wordwrap", "do_batch", "do_slice", "sync_do_slice")
_WIDTH_METHODS = ("ljust", "rjust", "center", "zfill", "expandtabs", "to_bytes", "join", "replace", "translate")


class LimitError(Exception):
    """A template went past its limits."""


@dataclass(slots=True)
class Budget:
    """What one rendering may still use.

    steps: loop turns, calls and filters left.  largest: characters that one text, or a tree written out, may have.
    trees: expanded size of each list, tuple or dict that the template built, kept alive so that ids stay theirs.
    """

    steps: int
    largest: int
    trees: dict[int, tuple[object, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, data: object) -> Budget:
        """A budget in proportion to what the template is given."""
        size = cls(0, 1 << 62).size_of(data)
        return cls(BASE_STEPS + 16 * size, BASE_TEXT + 8 * size)

    def spend(self, steps: int = 1) -> None:
        """Raise LimitError when nothing is left."""
        self.steps -= steps
        if self.steps < 0:
            raise LimitError("it loops too long")

    def check(self, size: int) -> None:
        """Raise LimitError for texts that are too large."""
        if size > self.largest:
            raise LimitError(f"it builds a text of more than {self.largest} characters")

    def size_of(self, value: object, depth: int = 0) -> int:
        """Characters of a value written out, roughly; shared parts count each time they occur."""
        if isinstance(value, str):
            return len(value)
        known = self.trees.get(id(value))
        if known is not None:
            return known[1]
        if depth > 100:
            raise LimitError("it builds a tree more than 100 levels deep")
        total = 8
        if isinstance(value, Mapping):
            for key, entry in value.items():
                total += self.size_of(key, depth + 1) + self.size_of(entry, depth + 1) + 4
                self.check(total)
        elif isinstance(value, (list, tuple, set)):
            for entry in value:
                total += self.size_of(entry, depth + 1) + 2
                self.check(total)
        elif isinstance(value, int) and not isinstance(value, bool):
            total = value.bit_length() // 3 + 1
        return total

    def built(self, value: object) -> None:
        """Measure something that the template made, and remember its size."""
        size = self.size_of(value)
        self.check(size)
        if isinstance(value, (list, tuple, dict)):
            self.trees[id(value)] = (value, size)


_UNLIMITED = Budget(1 << 62, 1 << 62)
# The budget of the rendering in progress; compilation, which folds constants only, has none.
current_budget: ContextVar[Budget] = ContextVar("current_budget", default=_UNLIMITED)


class SafeNamespace(Namespace):
    """A namespace that refuses underscored names, so that none of Python's own can be planted."""

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _namespace(*entries: Mapping[str, object], **named: object) -> SafeNamespace:
    """`namespace(...)` in a template."""
    values = dict(*entries, **named)
    for name in values:
        _check_name(name)
    return SafeNamespace(values)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"namespace attribute {name!r} begins with an underscore")


class _LimitedCode(CodeGenerator):
    """Lets the environment see texts that `~` joins and trees that literals build."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  jinja2's name
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802  jinja2's name
        self.write("environment.built(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802  jinja2's name
        self.write("environment.built(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802  jinja2's name
        if node.ctx != "load":
            super().visit_Tuple(node, frame)
            return
        self.write("environment.built(")
        super().visit_Tuple(node, frame)
        self.write(")")


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox; `current_budget` says how much a rendering may use."""

    code_generator_class = _LimitedCode
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, extensions: list[str | type]) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=self._shown, cache_size=0
        )
        self.filters.pop("random", None)
        for name, function in list(self.filters.items()):
            self.filters[name] = _limited_filter(function)
        self.filters["counted"] = _counted
        self.globals["namespace"] = _namespace
        self.globals.pop("lipsum", None)

    def concat(self, parts: Iterable[str]) -> str:
        """Join what a template or macro wrote."""
        budget, total, kept = current_budget.get(), 0, []
        for part in parts:
            total += len(part)
            budget.check(total)
            kept.append(part)
        return "".join(kept)

    def joined(self, parts: tuple[object, ...]) -> str:
        """What `~` does."""
        current_budget.get().check(sum(map(current_budget.get().size_of, parts)))
        return "".join(map(str, parts))

    def built(self, value: object) -> object:
        """A list, tuple or dict that a template spelled out."""
        current_budget.get().built(value)
        return value

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """Arithmetic, refused where its result would be huge."""
        budget = current_budget.get()
        if operator == "*":
            texts = [value for value in (left, right) if isinstance(value, (str, list, tuple))]
            counts = [value for value in (left, right) if isinstance(value, int)]
            if texts and counts:
                budget.check(budget.size_of(texts[0]) * max(counts[0], 0))
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right)
        elif operator == "**":
            _check_power(left, right)
        result: object = super().call_binop(context, operator, left, right)
        budget.built(result)
        return result

    def call(self, __context: Context, __obj: object, *args: object, **kwargs: object) -> object:
        """Call a function, method or macro."""
        budget = current_budget.get()
        budget.spend(CALL_STEPS)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name in _WIDTH_METHODS:
            _check_text_method(name, owner, args)
        result: object = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, (str, list, tuple, dict)):
            budget.built(result)
        return result

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        """`str.format`, with widths checked; jinja2 hides attributes from it already."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        pattern, safe = str(getattr(value, "__self__", "")), wrapped

        def checked(*args: object, **kwargs: object) -> str:
            _check_format(pattern, *args, *kwargs.values())
            return safe(*args, **kwargs)

        return checked

    def unsafe_undefined(self, obj: object, attribute: str) -> NoReturn:
        """Reaching for Python's internals is refused at once, rather than when the result is used."""
        raise SecurityError(f"it reaches for {attribute!r} of {type(obj).__name__!r}, outside its sandbox")

    def _shown(self, value: object) -> object:
        """What `{{ ... }}` prints."""
        if not isinstance(value, (str, Undefined)):
            current_budget.get().check(current_budget.get().size_of(value))
        return value

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Make every loop count its turns."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        return tree


def _counted(values: Iterable[object]) -> Iterable[object]:
    budget = current_budget.get()
    if isinstance(values, Sized):
        budget.spend(len(values))
        return values
    return _counted_one_by_one(values, budget)


def _counted_one_by_one(values: Iterable[object], budget: Budget) -> Iterator[object]:
    for value in values:
        budget.spend()
        yield value


def _limited_filter(function: Callable[..., object]) -> Callable[..., object]:
    """The filter, with its arguments and result measured; keeps jinja2's marks on the function."""

    @functools.wraps(function)
    def limited(*args: object, **kwargs: object) -> object:
        budget = current_budget.get()
        if budget is not _UNLIMITED:
            budget.spend(CALL_STEPS)
            values = [value for value in (*args, *kwargs.values()) if isinstance(value, (str, list, tuple, dict))]
            for value in values:
                budget.check(budget.size_of(value))
            _check_filter(function.__name__, args, kwargs)
        result = function(*args, **kwargs)
        if isinstance(result, (str, list, tuple, dict)):
            budget.built(result)
        return result

    return limited


def _check_filter(name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
    texts = [value for value in args if isinstance(value, str)]
    if name in _COUNTED_FILTERS:
        _check_numbers(*args[1:], *kwargs.values())
    elif name == "do_format":
        _check_format(str(args[0]), *args[1:], *kwargs.values())
    elif name == "do_replace" and len(texts) >= 3:
        _check_text_method("replace", texts[0], tuple(texts[1:3]))
    elif name == "sync_do_join" and len(args) > 2 and isinstance(args[1], Sized):
        current_budget.get().check(len(args[1]) * current_budget.get().size_of(args[2]))


def _check_text_method(name: str, owner: str, args: tuple[object, ...]) -> None:
    """Refuse methods of str whose result would be huge."""
    budget = current_budget.get()
    if name not in ("replace", "join", "translate"):
        _check_numbers(*args)
    if name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        occurrences = owner.count(args[0]) if args[0] else len(owner) + 1
        budget.check(len(owner) + occurrences * len(args[1]))
    elif name == "join" and args and isinstance(args[0], Sized):
        budget.check(budget.size_of(args[0]) + len(args[0]) * len(owner))
    elif name == "translate" and args:
        budget.check(len(owner) * max(1, budget.size_of(args[0])))
    elif name == "expandtabs":
        width = next((value for value in args if isinstance(value, int)), 8)
        budget.check(len(owner) + owner.count("\t") * width)


def _check_format(pattern: str, *values: object) -> None:
    """Refuse widths that only an attack would use, spelled in the pattern or given as arguments."""
    if _LONG_NUMBER.search(pattern):
        raise LimitError("it formats a text with a width of six digits or more")
    if _ARGUMENT_WIDTH.search(pattern):
        _check_numbers(*values)


def _check_numbers(*values: object) -> None:
    entries = [entry for value in values for entry in (value if isinstance(value, tuple) else (value,))]
    if any(isinstance(entry, int) and abs(entry) > LARGEST_NUMBER_ARGUMENT for entry in entries):
        raise LimitError(f"it uses a number beyond {LARGEST_NUMBER_ARGUMENT} as a width or count")


def _check_power(left: object, right: object) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * max(right, 0) > LARGEST_NUMBER_ARGUMENT:
        raise LimitError(f"it computes {left} ** {right}")
