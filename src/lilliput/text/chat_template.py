# SPDX-License-Identifier: Apache-2.0
"""Turn a conversation into the text that a chat model was trained on, by the model's own jinja2 template.

Templates come with downloaded models and are untrusted: they run in `template_sandbox`, within limits. What they may
use (`raise_exception`, `strftime_now`, `tojson`, `{% generation %}`, loop controls) is what transformers offers them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from lilliput.architectures.architecture import Json
from lilliput.errors import TokenizerError
from lilliput.text.template_sandbox import Budget, LimitedEnvironment, LimitError, current_budget
from lilliput.text.vocabulary import Vocabulary

Message = Mapping[str, Json]
# Longer templates are not templates.
LONGEST_TEMPLATE = 1_000_000
# Names under which callers pass a message's reasoning; the first is the one that templates read.
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class _ConversationRefusedError(TemplateError):
    """The template called `raise_exception`: the conversation is not one that the model knows."""


def apply_chat_template(
    vocabulary: Vocabulary,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Json]] | None = None,
    *,
    add_generation_prompt: bool = False,
    variables: Mapping[str, Json] | None = None,
) -> str:
    """The prompt text of `messages`; encode it with `add_special=False, parse_special=True`.

    tools: JSON schemas of functions.  add_generation_prompt: end with the start of the assistant's reply.
    variables: further names that the template reads (`enable_thinking`, `documents`, a `date_string` to pin).
    Raises TokenizerError: no template, a damaged one, one that refuses the messages, loops, or leaves its sandbox.
    """
    if vocabulary.chat_template is None:
        raise TokenizerError(
            "the model has no chat template (tokenizer.chat_template); give it plain text instead of messages"
        )
    given: dict[str, Json] = {
        "messages": [_with_reasoning(message) for message in messages],
        "tools": [dict(tool) for tool in tools] if tools is not None else None,
        "documents": None,
        **vocabulary.special_tokens(),
        **(variables or {}),
        "add_generation_prompt": add_generation_prompt,
    }
    return _render(vocabulary.chat_template, given)


def _render(source: str, given: dict[str, Json]) -> str:
    with _clear_errors():
        template = _compiled(source)
        token = current_budget.set(Budget.of(given))
        try:
            return template.render(**given)
        finally:
            current_budget.reset(token)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """One line for whatever a template does wrong; a template may raise anything."""
    try:
        yield
    except TokenizerError:
        raise
    except _ConversationRefusedError as error:
        raise TokenizerError(f"the chat template refuses these messages: {error}") from error
    except TemplateSyntaxError as error:
        raise TokenizerError(f"the chat template is damaged, line {error.lineno}: {error.message}") from error
    except SecurityError as error:
        raise TokenizerError(f"the chat template is unsafe and was stopped: {error}") from error
    except (LimitError, OverflowError, RecursionError, MemoryError) as error:
        raise TokenizerError(f"the chat template went past its limits and was stopped: {error}") from error
    except Exception as error:
        raise TokenizerError(f"the chat template failed: {type(error).__name__}: {error}") from error


def _with_reasoning(message: Message) -> dict[str, Json]:
    """A copy in which the reasoning, whatever the caller called it, has the names that templates read."""
    found = next((message[name] for name in REASONING_FIELDS if message.get(name) is not None), None)
    return {**message} if found is None else {"thinking": found, **message, "reasoning_content": found}


@lru_cache(maxsize=16)
def _compiled(source: str) -> Template:
    if len(source) > LONGEST_TEMPLATE:
        raise TokenizerError(f"the chat template has {len(source)} characters; at most {LONGEST_TEMPLATE} are allowed")
    environment = LimitedEnvironment([_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here it only groups them."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """Keep the body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise_exception(message: object) -> None:
    raise _ConversationRefusedError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Json,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: no HTML escapes."""
    budget = current_budget.get()
    budget.check(budget.size_of(value) * (2 + (indent or 0)))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
