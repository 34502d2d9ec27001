# SPDX-License-Identifier: Apache-2.0
"""Names for the array types that cross room borders."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]
HalfArray = NDArray[np.float16]
ByteArray = NDArray[np.uint8]
IntArray = NDArray[np.int32]
# Arithmetic in `formats` runs on numpy and torch alike through array-api-compat; numpy's type stands for both.
Array = NDArray[Any]
