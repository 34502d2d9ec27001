# SPDX-License-Identifier: Apache-2.0
"""Types of the native core; native/bindings/ says what each does."""

import numpy as np
from numpy.typing import NDArray

def formats() -> list[str]: ...
def decode(name: str, blocks: NDArray[np.uint8], n_values: int, threads: int = 1) -> NDArray[np.float32]: ...
