# SPDX-License-Identifier: Apache-2.0
"""What `import lilliput` offers."""

from __future__ import annotations

import inspect

import pytest

import lilliput


@pytest.mark.parametrize("name", sorted(set(lilliput.__all__) - {"__version__"}))
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    found = getattr(lilliput, name)
    first = (inspect.getdoc(found) or "").partition("\n")[0]
    assert found.__name__ == name
    assert first[0].isupper()
    assert first.endswith((".", ":")) or ";" in first
