# SPDX-License-Identifier: Apache-2.0
"""One item of calibration text: plain text, or a chat that the model's own template lays out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lilliput.architectures.architecture import Json
from lilliput.errors import CalibrationError

# ShareGPT's names for speakers, and what chat templates call them.
_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool", "function_call": "assistant"}


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation.

    messages: each with `role` and `content`, and what else the template may use.  tools: descriptions, or empty.
    where: file and line, for errors.  is_builtin: from the built-in mix, not from a user's file.
    """

    messages: tuple[Mapping[str, Json], ...]
    tools: tuple[Mapping[str, Json], ...] = ()
    where: str = ""
    is_builtin: bool = False


Document = str | Chat


def document_from_record(record: Mapping[str, object], where: str, *, is_builtin: bool = False) -> Document:
    """A JSON object with `text`, `messages`, or `conversations` (ShareGPT).

    where: file and line, for the error. Raises CalibrationError for any other object.
    """
    text = record.get("text")
    if isinstance(text, str):
        return text
    messages = record.get("messages", record.get("conversations"))
    if not isinstance(messages, list) or not messages:
        known = ", ".join(sorted(record)) or "no field"
        raise CalibrationError(f"{where}: found {known}; expected 'text' (a string) or 'messages' (a list)")
    tools = record.get("tools")
    return Chat(
        tuple(_message(message, where) for message in messages),
        tuple(tool for tool in tools if isinstance(tool, dict)) if isinstance(tools, list) else (),
        where,
        is_builtin,
    )


def _message(message: object, where: str) -> Mapping[str, Json]:
    if isinstance(message, dict):
        if isinstance(message.get("role"), str):
            return {"content": "", **message}
        if isinstance(message.get("from"), str) and isinstance(message.get("value"), str):
            return {"role": _ROLES.get(message["from"], message["from"]), "content": message["value"]}
    raise CalibrationError(
        f"{where}: a message needs 'role' and 'content' (or 'from' and 'value'), found {message!r:.80}"
    )
