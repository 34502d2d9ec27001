# SPDX-License-Identifier: Apache-2.0
"""What each source expression makes of a checkpoint's tensors, and the way back."""

from __future__ import annotations

import numpy as np
import pytest

from lilliput.architectures.sources import (
    Computed,
    FirstOf,
    InterleavedHeads,
    Named,
    PermutedHeads,
    Rows,
    Shifted,
    Source,
    Stacked,
    Transposed,
    arranged,
    checkpoint_tensors,
    chosen_source,
    source_names,
    stored_shape,
)

MATRIX = np.arange(48, dtype=np.float32).reshape(12, 4)
# Expression and the shape of the canonical tensor that it makes of MATRIX.
MADE = {
    "named": (Named("w"), MATRIX),
    "permuted heads": (PermutedHeads("w", 3), MATRIX[[0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11]]),
    "interleaved heads": (InterleavedHeads("w", 2), MATRIX[[0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]]),
    "transposed": (Transposed("w"), MATRIX.T),
    "shifted": (Shifted("w", 1.0), MATRIX + 1),
    "rows": (Rows("w", 3, 7, 12), MATRIX[3:7]),
}


@pytest.mark.parametrize("name", MADE)
def test_expressions_arrange_a_checkpoints_tensor(name: str) -> None:
    source, expected = MADE[name]
    np.testing.assert_array_equal(arranged(source, {"w": MATRIX}.__getitem__), expected)
    assert stored_shape(source, expected.shape) == MATRIX.shape


def test_rows_of_vectors_and_of_every_matrix_of_a_stack() -> None:
    vector, stack = MATRIX[:, 0], MATRIX.reshape(2, 6, 4)
    np.testing.assert_array_equal(arranged(Rows("w", 3, 7, 12), {"w": vector}.__getitem__), vector[3:7])
    np.testing.assert_array_equal(arranged(Rows("w", 0, 2, 6), {"w": stack}.__getitem__), stack[:, :2])
    assert stored_shape(Rows("w", 0, 2, 6), (2, 2, 4)) == (2, 6, 4)
    assert stored_shape(Rows("w", 3, 7, 12), (4,)) == (12,)


def test_a_stack_is_made_of_tensors_of_its_own_names() -> None:
    parts = {"a": MATRIX, "b": MATRIX + 1}
    np.testing.assert_array_equal(arranged(Stacked(("a", "b")), parts.__getitem__), np.stack([MATRIX, MATRIX + 1]))
    assert stored_shape(Stacked(("a", "b")), (2, 12, 4)) == (12, 4)


def test_of_several_layouts_the_one_that_is_there_is_chosen() -> None:
    source = FirstOf((Rows("fused", 0, 6, 12), Stacked(("a", "b"))))
    assert chosen_source(source, {"a", "b"}) == Stacked(("a", "b"))
    assert chosen_source(source, {"fused", "a", "b"}) == Rows("fused", 0, 6, 12)
    assert chosen_source(source, {"b"}) == Rows("fused", 0, 6, 12)
    assert source_names(source) == ("fused", "a", "b")
    assert source_names(Computed((1.0,))) == ()


def test_the_way_back_gives_the_checkpoints_tensors() -> None:
    generator = np.random.default_rng(0)
    checkpoint = {
        name: generator.integers(-9, 9, (12, 4)).astype(np.float32) for name in ("n", "p", "i", "t", "s", "r", "a", "b")
    }
    sources: dict[str, Source] = {
        "1": Named("n"), "2": PermutedHeads("p", 3), "3": InterleavedHeads("i", 2), "4": Transposed("t"),
        "5": Shifted("s", 1.0), "6": Rows("r", 0, 5, 12), "7": Rows("r", 5, 12, 12), "8": Stacked(("a", "b")),
    }  # fmt: skip
    stored = {name: chosen_source(source, checkpoint) for name, source in sources.items()}
    canonical = {
        name: arranged(source, checkpoint.__getitem__)
        for name, source in stored.items()
        if not isinstance(source, Computed)
    }
    back = checkpoint_tensors(sources, canonical)
    assert set(back) == set(checkpoint)
    for name, values in checkpoint.items():
        np.testing.assert_array_equal(back[name], values)
