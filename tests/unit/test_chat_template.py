# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from lilliput.architectures.architecture import Json
from lilliput.errors import TokenizerError
from lilliput.text.chat_template import apply_chat_template
from lilliput.text.vocabulary import TokenType, Vocabulary

MESSAGES: list[dict[str, Json]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 < 3?\n\u00e9"},
    {"role": "assistant", "content": "Yes.", "reasoning": "small"},
]
GROW = "{% set ns = namespace(x='aaaaaaaaaa', t=['a'], u=['a']) %}{% for i in range(60) %}"


def render(template: str | None, messages: list[dict[str, Json]] | None = None, **options: bool) -> str:
    types = (TokenType.CONTROL, TokenType.CONTROL)
    vocabulary = Vocabulary(
        "gpt2", "gpt-2", ("<s>", "</s>"), types, bos_token_id=0, eos_token_id=1, chat_template=template
    )
    return apply_chat_template(vocabulary, MESSAGES if messages is None else messages, **options)


def test_messages_tokens_and_the_generation_prompt_reach_the_template() -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}\n  {% if m.role != 'system' %}\n[{{ m.role }}] {{ m['content'] }}"
        "{{ eos_token }}{{ pad_token }}\n  {% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    expected = "<s>[user] 2 < 3?\n\u00e9</s>\n[assistant] Yes.</s>\n"
    assert render(template) == expected
    assert render(template, add_generation_prompt=True) == expected + "[assistant]"


def test_json_is_written_without_html_escapes() -> None:
    assert render("{{ messages[1]|tojson }}") == '{"role": "user", "content": "2 < 3?\\n\u00e9"}'
    assert render("{{ {'a': [1]}|tojson(indent=2) }}") == '{\n  "a": [\n    1\n  ]\n}'


def test_tools_and_variables_reach_the_template() -> None:
    vocabulary = Vocabulary(
        "gpt2", "gpt-2", (), (), chat_template="{{ tools[0].name }}{{ enable_thinking }}{{ documents }}"
    )
    text = apply_chat_template(vocabulary, [], [{"name": "add"}], variables={"enable_thinking": False})
    assert text == "addFalseNone"


def test_reasoning_is_found_under_the_names_that_templates_read() -> None:
    assert render("{{ messages[2].reasoning_content }} {{ messages[2].thinking }}") == "small small"


def test_loop_controls_and_generation_blocks_work() -> None:
    template = (
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}"
        "{% generation %}{{ i }}{% endgeneration %}{% endfor %}"
    )
    assert render(template) == "01"


def test_long_messages_are_within_the_limits() -> None:
    text = "word " * 400_000
    template = "{% for m in messages %}{{ m.content|trim ~ '!' }}{% for c in m.content %}{% endfor %}{% endfor %}"
    assert render(template, [{"role": "user", "content": text}]) == text.strip() + "!"


def test_dates_are_todays() -> None:
    assert render("{{ strftime_now('%Y')|length }}") == "4"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{% for %}", "is damaged, line 1"),
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ missing.name }}", "failed: UndefinedError: 'missing' is undefined"),
        ("{% include 'x' %}", "failed: TypeError"),
        ("x" * 1_000_001, "has 1000001 characters"),
    ],
)
def test_templates_that_cannot_run_are_explained(template: str | None, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        render(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ messages|attr('__class__') }}",
        "{{ messages|map(attribute='__class__')|list }}",
        "{{ ().__class__.__bases__[0].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(__class__=1) }}",
    ],
)
def test_reaching_outside_the_sandbox_is_stopped(template: str) -> None:
    with pytest.raises(TokenizerError, match="unsafe and was stopped"):
        render(template)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(999) recursive %}{{ loop(range(999)) }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(0) }}",
        "{{ 'x' * 10**9 }}",
        "{{ [0] * 10**9 }}",
        "{{ 9 ** (10 ** 9) }}",
        "{{ 'a'.ljust(10**9) }}",
        "{{ 'a'|center(10**9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10**9, 1) }}",
        "{{ '{:1000000000d}'.format(1) }}",
        "{{ '{:{w}d}'.format(1, w=10**9) }}",
        "{{ {'a': 1}|tojson(indent=10**9) }}",
        "{% for i in range(9999) %}{{ 'y' * 3000 }}{% endfor %}",
        "{% set x %}{% for i in range(9999) %}{{ 'y' * 3000 }}{% endfor %}{% endset %}{{ x|length }}",
        GROW + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        GROW + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
        GROW + "{% set ns.x = ns.x|replace('a', 'aaaaaaaaaa') %}{% endfor %}",
        GROW + "{% set ns.x = ns.x.replace('a', 'aaaaaaaaaa') %}{% endfor %}",
        GROW + "{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
        GROW + "{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.t }}",
        GROW + "{% set ns.t = {'a': ns.t, 'b': ns.t} %}{% endfor %}{{ ns.t|tojson }}",
        GROW + "{% set ns.t = (ns.t, ns.t) %}{% set ns.u = (ns.u, ns.u) %}{% endfor %}{{ ns.t == ns.u }}",
        "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    ],
)
def test_endless_work_and_endless_text_are_stopped(template: str) -> None:
    with pytest.raises(TokenizerError, match="past its limits and was stopped"):
        render(template)


@pytest.mark.parametrize("template", ["{{ '{:{w}d}'.format(1, w=10**9) }}", "{{ '%*d' % (10**9, 1) }}"])
def test_widths_given_as_arguments_are_refused_before_any_text_is_made(template: str) -> None:
    with pytest.raises(TokenizerError, match="as a width or count"):
        render(template)
