# SPDX-License-Identifier: Apache-2.0
"""Cards of repositories that hold several models."""

from __future__ import annotations

import pytest
import yaml

from lilliput.reports.joined_cards import as_part, joined_cards


def card(name: str, kl: float) -> str:
    block = {"tags": ["lilliput", name], "model-index": [{"name": name, "results": [kl]}]}
    return f"---\n{yaml.safe_dump(block)}---\n# Tiny, quantized\n\n| file |\n|---|\n\n## How to run\n\nKL {kl}\n"


def block_of(joined: str) -> dict[str, object]:
    found = yaml.safe_load(joined.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_parts_of_one_name_replace_each_other_and_others_follow() -> None:
    first = as_part(card("a", 0.5), "a.gguf", "a.gguf")
    both = joined_cards(first, as_part(card("b", 0.25), "b c.gguf", "b c.gguf"))
    again = joined_cards(both, as_part(card("a", 0.125), "a.gguf", "a.gguf"))
    assert [line for line in again.splitlines() if line.startswith("#")] == [
        *("# Tiny, quantized", "## `a.gguf`", "### How to run"),
        *("## `b c.gguf`", "### How to run"),
    ]
    assert "KL 0.125" in again
    assert "KL 0.5" not in again
    entries = [{"name": "b", "results": [0.25]}, {"name": "a", "results": [0.125]}]
    assert block_of(again) == {"tags": ["lilliput", "a", "b"], "model-index": entries}


def test_the_same_card_joined_twice_changes_nothing() -> None:
    first = as_part(card("a", 0.5), "a.gguf", "a.gguf")
    assert joined_cards(first, first) == first
    assert joined_cards("", first) == first


def test_what_others_wrote_stays() -> None:
    earlier = "---\r\nlicense: mit\r\nlanguage: en\r\n---\r\n# Mine\r\n\r\nBy hand.\r\n"
    joined = joined_cards(earlier, as_part("---\nlicense: other\nlanguage: [de]\n---\n# T\n\nx\n", "", "Folder"))
    assert block_of(joined) == {"license": "mit", "language": "en"}
    assert joined.index("# Mine\n\nBy hand.\n\n") < joined.index("## `Folder`")


@pytest.mark.parametrize("block", ["a: [", "- a"])
def test_a_block_that_is_no_mapping_is_refused(block: str) -> None:
    with pytest.raises(ValueError, match=r"expected|mapping"):
        joined_cards(f"---\n{block}\n---\n", "# T\n")
