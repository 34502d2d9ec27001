# SPDX-License-Identifier: Apache-2.0
"""The border of the native program: whatever does not fit is a ValueError that names it, never a crash."""

from __future__ import annotations

import numpy as np
import pytest

from lilliput import _native


def program() -> _native.Program:
    """Buffers 0 to 3 of widths 32, 32, 64, 32; weight 0 is [32, 32]; vector 0 has 32 values; buffer 0 is embedded."""
    made = _native.Program()
    for width in (32, 32, 64, 32):
        made.add_buffer(width)
    made.add_weight("w", "q8_0", 32, np.zeros((32, 34), dtype=np.uint8))
    made.add_vector(np.ones(32, dtype=np.float32))
    made.add_rope(np.ones(8), 1.0)
    made.add_state(2, 16)
    made.embed(out=0, weight=0, scale=1.0)
    return made


ODD = np.ones(3, dtype=np.float32)
ATTENTION = {"layer": 0, "scale": 1.0, "window": 0, "softcap": 0.0}
REFUSED = {
    "a weight of unknown format": (
        lambda p: p.add_weight("w", "q9_9", 32, np.zeros((1, 34), dtype=np.uint8)), "q9_9"),
    "a weight with bytes missing": (
        lambda p: p.add_weight("w", "q8_0", 64, np.zeros((2, 34), dtype=np.uint8)), "w: 68 bytes, but q8_0"),
    "a weight of half a block": (
        lambda p: p.add_weight("w", "q8_0", 33, np.zeros((1, 34), dtype=np.uint8)), "does not divide into q8_0"),
    "a weight without rows": (
        lambda p: p.add_weight("w", "q8_0", 32, np.zeros((0, 34), dtype=np.uint8)), r"shape \[0, 32\]"),
    "a buffer without width": (lambda p: p.add_buffer(0), "width is 0"),
    "a cache without heads": (lambda p: p.add_state(0, 16), "at least one head"),
    "an unknown buffer": (lambda p: p.add(out=9, a=0, b=0), "buffer 9 is not one of the program's 4"),
    "a negative index": (lambda p: p.embed(out=0, weight=-1, scale=1.0), "weight -1 is not one"),
    "an embedding of another width": (lambda p: p.embed(out=2, weight=0, scale=1.0), "has width 64, must be 32"),
    "a sum of different widths": (lambda p: p.add(out=0, a=0, b=2), "must be 64"),
    "a linear without weights": (lambda p: p.linears(x=0, parts=[]), "no weights"),
    "a linear onto its input": (lambda p: p.linears(x=0, parts=[(0, 0, -1, None)]), "output buffer is its input"),
    "a bias of another length": (lambda p: p.linears(x=0, parts=[(1, 0, p.add_vector(ODD), None)]), "has 3"),
    "an unknown activation": (lambda p: p.glu(out=0, gate=0, up=0, activation="selu"), "known: silu, gelu, gelu_tanh"),
    "an unknown rope style": (
        lambda p: p.rope(x=0, heads=2, head_dim=16, frequencies=0, style="odd"), "known: adjacent, halves"),
    "heads of another width": (
        lambda p: p.rope(x=0, heads=3, head_dim=16, frequencies=0, style="halves"), "must be 48"),
    "attention with other heads than its cache": (
        lambda p: p.attention(buffers=(1, 0, 0, 0), heads=(2, 1, 16), **ATTENTION), "heads differ"),
    "heads that do not divide": (
        lambda p: p.attention(buffers=(1, 0, 0, 0), heads=(3, 2, 16), **ATTENTION), "do not divide among 2 kv heads"),
    "attention onto its input": (
        lambda p: p.attention(buffers=(0, 0, 0, 0), heads=(2, 2, 16), **ATTENTION), "one of its inputs"),
    "selection onto its input": (lambda p: p.select_output_rows(out=0, x=0), "output buffer is its input"),
    "an output of all tokens": (lambda p: p.set_output(0), "selects no output rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(name):
    act, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        act(program())


def test_rows_once_selected_stay_selected():
    made = program()
    made.select_output_rows(out=1, x=0)
    with pytest.raises(ValueError, match="already selected"):
        made.select_output_rows(out=3, x=1)
    with pytest.raises(ValueError, match="different rows"):
        made.add(out=3, a=0, b=1)
    with pytest.raises(ValueError, match="positions of selected rows"):
        made.rope(x=1, heads=2, head_dim=16, frequencies=0, style="halves")
    made.add(out=0, a=1, b=1)
    with pytest.raises(ValueError, match="serves other operations"):
        made.set_output(0)
    made.add(out=3, a=1, b=1)
    made.set_output(3)
    with pytest.raises(ValueError, match="after the program's output"):
        made.add(out=3, a=1, b=1)


def test_arrays_of_another_type_are_refused_rather_than_copied():
    made = program()
    with pytest.raises(TypeError):
        made.add_weight("w", "q8_0", 32, np.zeros((1, 34), dtype=np.int8))
    with pytest.raises(TypeError):
        made.add_weight("w", "q8_0", 32, np.zeros((2, 34), dtype=np.uint8)[:, ::-1])
    with pytest.raises(TypeError):
        made.add_vector(np.ones(3))


def test_an_engine_needs_a_whole_program_and_sound_options():
    with pytest.raises(ValueError, match="no output"):
        _native.Engine(program(), context=8, batch=8, threads=1)
    made = program()
    made.select_output_rows(out=1, x=0)
    made.set_output(1)
    for option, message in (
        ({"context": 0}, "context is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"threads": 0}, "threads is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            _native.Engine(made, **{"context": 8, "batch": 8, "threads": 1, **option})


def test_weights_outlive_the_names_that_python_had_for_them():
    made = program()
    made.select_output_rows(out=1, x=0)
    made.set_output(1)
    engine = _native.Engine(made, context=8, batch=8, threads=1)
    del made
    junk = [np.full((32, 34), 255, dtype=np.uint8) for _ in range(50)]
    logits = engine.forward(np.array([3], dtype=np.int32), 0, np.array([0], dtype=np.int32))
    assert len(junk) == 50
    assert (logits == 0).all()
