# SPDX-License-Identifier: Apache-2.0
"""Chat templates and tokenizers against transformers and sentencepiece themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sentencepiece_files import sentencepiece_bytes
from tiny_llama import write_tiny_llama
from tiny_tokenizers import byte_level, named, sentencepiece_like, write_folder

from lilliput import workflows
from lilliput.architectures.architecture import Json
from lilliput.errors import TokenizerError
from lilliput.text.chat_template import apply_chat_template
from lilliput.text.huggingface import load_vocabulary
from lilliput.text.probes import PROBES
from lilliput.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

CHATML = (
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- '\\n' ~ (tool | tojson) }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}{%- set ns = namespace(last=-1) %}{%- for message in messages %}"
    "{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{{- message.content | trim + '<|im_end|>\\n' }}"
    "{%- if loop.index0 == ns.last %}{{- '[' ~ loop.length ~ ']' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% else %}"
    "{% set loop_messages = messages %}{% set system = '' %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
)
USER: dict[str, Json] = {"role": "user", "content": " 2 < 3?\n\u00e9 "}
CONVERSATIONS: list[list[dict[str, Json]]] = [
    [USER],
    [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "Yes.", "thinking": "a"}, USER],
    [USER, USER],
]
TOOLS: list[dict[str, Json]] = [{"type": "function", "function": {"name": "add", "description": '"a" & <b>'}}]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("template", [CHATML, LLAMA2], ids=["chatml", "llama2"])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("prompt", [False, True])
def test_chat_text_equals_transformers(
    tmp_path: Path,
    messages: list[dict[str, Json]],
    template: str,
    tools: list[dict[str, Json]] | None,
    prompt: bool,
) -> None:
    write_folder(
        tmp_path, byte_level(named("qwen2")), bos_token="<|begin|>", eos_token="<|end|>", chat_template=template
    )
    vocabulary = load_vocabulary(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    try:
        expected = theirs.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:
        with pytest.raises(TokenizerError, match=str(error)):
            apply_chat_template(vocabulary, messages, tools, add_generation_prompt=prompt)
        return
    ours = apply_chat_template(vocabulary, messages, tools, add_generation_prompt=prompt)
    assert ours == expected
    ids = theirs(expected, add_special_tokens=False)["input_ids"]
    assert Tokenizer(vocabulary).encode(ours, add_special=False, parse_special=True) == ids


def test_tokenizer_model_gives_the_ids_of_sentencepiece(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    vocabulary = load_vocabulary(write_folder(tmp_path, sentencepiece_like()))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes(vocabulary))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = Tokenizer(load_vocabulary(tmp_path))
    for text in PROBES:
        assert tokenizer.encode(text, add_special=False) == processor.encode(text), repr(text)


def test_encoding_adds_what_transformers_adds(tmp_path: Path) -> None:
    write_folder(tmp_path, byte_level(named("smollm")), bos_token="<|begin|>", eos_token="<|end|>")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokenizer = Tokenizer(load_vocabulary(tmp_path))
    assert tokenizer.encode("Hello") == theirs("Hello")["input_ids"]
    assert tokenizer.decode(tokenizer.encode("Hello <|end|>", parse_special=True), skip_special=False) == theirs.decode(
        theirs("Hello <|end|>")["input_ids"]
    )


def test_a_tokenizer_that_cannot_be_reproduced_is_warned_about(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "model")
    assert workflows.quantize(folder, "F16", tmp_path / "exact.gguf").warnings == ()
    file = folder / "tokenizer.json"
    original = json.loads(file.read_text()) | {"normalizer": {"type": "Lowercase"}}
    file.write_text(json.dumps(original))
    (warning,) = workflows.quantize(folder, "F16", tmp_path / "nearest.gguf").warnings
    assert warning.startswith("the tokenizer is not reproduced exactly:")
