# SPDX-License-Identifier: Apache-2.0
"""Cards of a repository that holds several models: one README.md with a part for each, parts told by comments.

Whatever else stands in a repository's card, by hand or by others, stays as it is.
"""

from __future__ import annotations

import re
from urllib.parse import quote

import yaml

from lilliput.reports.card import code

_FRONT_MATTER = re.compile(r"---\n(?P<block>.*?)^---[ \t]*\n?(?P<body>.*)", re.DOTALL | re.MULTILINE)
_PART = re.compile(r"<!-- lilliput push: (?P<key>\S*) -->\n.*?<!-- lilliput push end -->\n?", re.DOTALL)
_INDEX = "model-index"


def as_part(card: str, key: str, heading: str) -> str:
    """The card with all below its title as the part of one model.

    key: what the same model has in every push.  heading: of the part.
    """
    block, body = _split(card)
    title, _, rest = body.strip().partition("\n")
    inside = re.sub(r"^##(?=#* )", "###", rest.strip(), flags=re.MULTILINE)
    part = f"<!-- lilliput push: {quote(key)} -->\n## {code(heading)}\n\n{inside}\n\n<!-- lilliput push end -->\n"
    return _whole(block, f"{title}\n\n{part}")


def joined_cards(earlier: str, card: str) -> str:
    """The earlier card with the parts of `card` in the places of their namesakes, or at its end.

    Of the YAML blocks lists are joined and entries of `model-index` replaced by name; other keys stay as they were.
    Raises ValueError where the earlier block is no YAML mapping.
    """
    old_block, old_body = _split(earlier)
    block, body = _split(card)
    if not old_body.strip():
        old_body = _PART.sub("", body).strip() + "\n\n"
    for part in _PART.finditer(body):
        places = [place.span() for place in _PART.finditer(old_body) if place["key"] == part["key"]]
        start, end = places[0] if places else (len(old_body.rstrip()),) * 2
        gap = "" if places else "\n\n"
        old_body = f"{old_body[:start]}{gap}{part[0].rstrip()}\n{old_body[end:]}"
    return _whole(_joined_blocks(old_block, block), old_body)


def _split(card: str) -> tuple[dict[str, object], str]:
    """YAML block and body. Raises ValueError."""
    found = _FRONT_MATTER.match(card.replace("\r\n", "\n"))
    if found is None:
        return {}, card
    try:
        block = yaml.safe_load(found["block"]) or {}
    except yaml.YAMLError as failure:
        raise ValueError(str(failure)) from failure
    if not isinstance(block, dict):
        raise ValueError("it is no mapping")
    return block, found["body"]


def _whole(block: dict[str, object], body: str) -> str:
    shown = yaml.safe_dump(block, sort_keys=False, allow_unicode=True, width=1000) if block else ""
    return f"---\n{shown}---\n\n{body.strip()}\n"


def _joined_blocks(earlier: dict[str, object], new: dict[str, object]) -> dict[str, object]:
    found = {**new, **earlier}
    for key, value in new.items():
        kept = earlier.get(key)
        if isinstance(value, list) and isinstance(kept, list):
            names = {item.get("name") for item in value if isinstance(item, dict)} if key == _INDEX else set()
            kept = [item for item in kept if not (isinstance(item, dict) and item.get("name") in names)]
            found[key] = [*kept, *(item for item in value if item not in kept)]
    return found
