# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from lilliput.errors import ContainerError


def test_a_message_is_one_line_without_control_characters_whatever_a_file_is_called() -> None:
    error = ContainerError("a\nb\x1b[31m\udc80 größe …")
    assert str(error) == r"a\nb\x1b[31m\udc80 größe …"
