# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from lilliput.checkpoints.safetensors_reader import decode_float32


def test_eight_bit_floats_decode_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    codes = np.arange(256, dtype=np.uint8)
    for dtype, theirs in (
        ("F8_E4M3", torch.float8_e4m3fn),
        ("F8_E5M2", torch.float8_e5m2),
        ("F8_E8M0", torch.float8_e8m0fnu),
    ):
        expected = torch.from_numpy(codes.copy()).view(theirs).float().numpy()
        found = decode_float32(dtype, codes)
        assert np.array_equal(np.isnan(found), np.isnan(expected)), dtype
        assert np.array_equal(found[~np.isnan(found)], expected[~np.isnan(found)]), dtype
