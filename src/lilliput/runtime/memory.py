# SPDX-License-Identifier: Apache-2.0
"""What a matrix takes in memory when the engine runs it, told from its shape and number format alone."""

from __future__ import annotations

from lilliput import _native
from lilliput.formats import NumberFormat
from lilliput.formats.integer_lines import has_integer_form

# Of what is decoded; float16 serves where it is exact, which is known only when the values are read.
FLOAT_BYTES = 4


def bytes_in_memory(number_format: NumberFormat, rows: int, columns: int) -> int:
    """Bytes of a matrix [rows, columns] that is multiplied with, once its file's pages have been given back.

    Most block formats take what they take in the file; those of codebooks are written out, 1.2 to 2 times that, as long
    as nobody asks for `repack=False`. Integers under scales have a byte a code, and what else has no kernel is decoded.
    """
    stored = number_format.stored_bytes(rows, columns)
    if number_format.name in _native.formats():
        return _native.repacked_bytes(number_format.name, rows, columns) or stored
    if not has_integer_form(number_format):
        return FLOAT_BYTES * rows * columns
    return rows * columns + stored - number_format.stored_planes(rows, columns)["codes"].nbytes
