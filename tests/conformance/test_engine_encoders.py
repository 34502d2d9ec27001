# SPDX-License-Identifier: Apache-2.0
"""What encoders and encoder-decoders ask of the engine, against float64: attention in both directions, relative biases,
keys and values that one program leaves to another, and several answers side by side.
"""

from __future__ import annotations

import numpy as np
import pytest
from reference_program import ProgramSource, float_tensor, run_program

from lilliput import _native
from lilliput.architectures.program import (
    Add,
    Attention,
    CrossAttention,
    Embed,
    KvState,
    Linear,
    Program,
    RelativeBias,
    SelectOutputRows,
    Share,
)
from lilliput.errors import RuntimeModelError
from lilliput.runtime.lowering import lower
from lilliput.runtime.session import EngineOptions, Session

INSTRUCTION_SETS = _native.available_instruction_sets()
HEADS, HEAD_DIM, VOCABULARY, BUCKETS = 3, 20, 50, 8
WIDTH = HEADS * HEAD_DIM
# Float32 attention errs by about n roundings of dot products of head_dim terms and of sums over keys: at most 300 of
# 2^-24 on numbers of a few units.
BOUND = 300 * 2.0**-24 * 4


def tensors_of(*names: str, width: int = WIDTH):
    rng = np.random.default_rng(3)
    made = {name: float_tensor(name, rng.standard_normal((VOCABULARY, width)).astype(np.float32)) for name in names}
    made["bias"] = float_tensor("bias", rng.standard_normal((BUCKETS, HEADS)).astype(np.float32))
    made["head"] = float_tensor("head", (0.3 * rng.standard_normal((VOCABULARY, WIDTH))).astype(np.float32))
    return made


def self_attention(*, causal: bool, bias: RelativeBias | None = None, head_dim: int = HEAD_DIM) -> ProgramSource:
    """Attention over embeddings of the tokens."""
    operations = [Embed(name, name) for name in "qkv"]
    operations.append(Attention("y", *"qkv", 0, HEADS, HEADS, head_dim, 0.2, causal=causal, bias=bias))
    width = HEADS * head_dim
    program = Program(
        {**dict.fromkeys("qkvy", width), "out": width}, (KvState(0, HEADS, head_dim),),
        (*operations, SelectOutputRows("out", "y")), "out",
    )  # fmt: skip
    return ProgramSource(program, tensors_of(*"qkv", width=width))


def tokens_of(count: int):
    return np.random.default_rng(count).integers(0, VOCABULARY, count, dtype=np.int32)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65, 200])
@pytest.mark.parametrize(("threads", "head_dim"), [(1, 20), (3, 20), (2, 48), (1, 80)])
def test_without_a_causal_mask_every_token_sees_all(instruction_set, count, threads, head_dim):
    # Heads of a multiple of 16 go past the cache.
    source = self_attention(causal=False, head_dim=head_dim)
    options = EngineOptions(threads, 256, "f32", "f32", instruction_set)
    found = Session(source, options).forward(tokens_of(count), "all")
    assert np.abs(found - run_program(source, tokens_of(count), range(count))).max() < BOUND


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("head_dim", [20, 32])
@pytest.mark.parametrize("count", [1, 6, 130])
def test_relative_biases_are_added_by_distance(instruction_set, causal, head_dim, count):
    bias = RelativeBias("bias", BUCKETS, 20, bidirectional=not causal)
    source = self_attention(causal=causal, bias=bias, head_dim=head_dim)
    without = self_attention(causal=causal, head_dim=head_dim)
    expected = run_program(source, tokens_of(count), range(count))
    session = Session(source, EngineOptions(2, count, "f32", "f32", instruction_set))
    pieces = [tokens_of(count)] if not causal else np.array_split(tokens_of(count), 2 if count > 1 else 1)
    found = np.concatenate([session.forward(piece, "all") for piece in pieces])
    assert np.abs(found - expected).max() < BOUND
    if count > 1:
        assert np.abs(expected - run_program(without, tokens_of(count), range(count))).max() > 0.01


def test_a_sequence_in_both_directions_comes_in_one_pass():
    session = Session(self_attention(causal=False), EngineOptions(1, 64, "f32", "f32"))
    session.forward([1, 2, 3])
    with pytest.raises(RuntimeModelError, match="takes one pass from its start"):
        session.forward([4])


def two_programs() -> tuple[ProgramSource, ProgramSource]:
    """An encoder that shares what it embeds, and a decoder that attends to itself and to that."""
    shared = (KvState(0, HEADS, HEAD_DIM),)
    encoder = Program(
        {"ek": WIDTH, "ev": WIDTH, "out": WIDTH}, (),
        (Embed("ek", "ek"), Embed("ev", "ev"), Share("ek", "ev", 0), SelectOutputRows("out", "ev")), "out", shared,
    )  # fmt: skip
    operations = (
        *(Embed(name, name) for name in "qkv"),
        Attention("y", *"qkv", 0, HEADS, HEADS, HEAD_DIM, 0.2),
        CrossAttention("z", "y", 0, HEADS, HEADS, HEAD_DIM, 0.7),
        Add("z", "z", "y"),
        SelectOutputRows("chosen", "z"),
        Linear("logits", "chosen", "head"),
    )
    widths = {**dict.fromkeys([*"qkvyz", "chosen"], WIDTH), "logits": VOCABULARY}
    decoder = Program(widths, (KvState(0, HEADS, HEAD_DIM),), operations, "logits", shared)
    tensors = tensors_of("ek", "ev", *"qkv")
    return ProgramSource(encoder, tensors), ProgramSource(decoder, tensors)


def engines(instruction_set: str = "", *, sequences: int = 1, kv_format: str = "f32"):
    encoder, decoder = two_programs()
    lowered = lower(encoder.program, encoder.tensor)
    shared = _native.SharedCache(lowered, context=128, kv_format=kv_format)
    common = {
        "context": 128, "batch": 128, "threads": 2, "kv_format": kv_format, "activations": "f32", "shared": shared,
        "instruction_set": instruction_set,
    }  # fmt: skip
    return _native.Engine(lowered, **common), _native.Engine(
        lower(decoder.program, decoder.tensor), sequences=sequences, **common
    )


def rows(count: int):
    return np.arange(count, dtype=np.int32)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("length", [1, 8, 100])
def test_the_decoder_reads_what_the_encoder_shared(instruction_set, length):
    encoder, decoder = engines(instruction_set)
    text, answer = tokens_of(length), tokens_of(12)
    # A longer text before it: its rest must not be seen.
    encoder.forward(tokens_of(120), 0, rows(0))
    encoder.forward(text, 0, rows(0))
    found = np.concatenate([decoder.forward(answer[:9], 0, rows(9)), decoder.forward(answer[9:], 9, rows(3))])
    left: dict = {}
    reference = two_programs()
    run_program(reference[0], text, [], shared=left)
    assert np.abs(found - run_program(reference[1], answer, range(12), shared=left)).max() < BOUND


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize(("kv_format", "error"), [("f16", 0.001), ("q8_0", 0.03), ("q4_0", 0.4)])
def test_what_is_shared_may_lie_in_any_format(instruction_set, kv_format, error):
    text, answer = tokens_of(100), tokens_of(12)
    found = []
    for chosen in ("f32", kv_format):
        encoder, decoder = engines(instruction_set, kv_format=chosen)
        encoder.forward(text, 0, rows(0))
        found.append(decoder.forward(answer, 0, rows(12)))
    assert 0 < np.sqrt(np.mean((found[1] - found[0]) ** 2) / np.mean(found[0] ** 2)) < error


def test_engines_of_two_instruction_sets_do_not_share_a_cache():
    encoder, decoder = two_programs()
    lowered = lower(encoder.program, encoder.tensor)
    common = {
        "context": 8, "batch": 8, "threads": 1,
        "shared": _native.SharedCache(lowered, context=8, kv_format="q8_0"),
    }  # fmt: skip
    _native.Engine(lowered, instruction_set=INSTRUCTION_SETS[-1], **common)
    with pytest.raises(ValueError, match="the shared cache is laid out for another instruction set"):
        _native.Engine(lower(decoder.program, decoder.tensor), instruction_set="scalar", **common)


def test_a_decoder_does_not_run_before_its_encoder():
    _, decoder = engines()
    with pytest.raises(ValueError, match="encoder has not run"):
        decoder.forward(tokens_of(1), 0, rows(1))


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_answers_side_by_side_are_what_each_would_be_alone(instruction_set):
    encoder, together = engines(instruction_set, sequences=4)
    encoder.forward(tokens_of(30), 0, rows(0))
    history = [[5], [5], [5], [5]]
    for step in range(40):
        found = together.forward(np.array([h[-1] for h in history], dtype=np.int32), step, rows(4), abreast=True)
        if step in (0, 7, 20, 39):
            for tokens, logits in zip(history, found, strict=True):
                _, alone = engines_after(tokens_of(30), instruction_set)
                expected = alone.forward(np.array(tokens, dtype=np.int32), 0, np.array([step], dtype=np.int32))
                assert np.abs(logits - expected[0]).max() < BOUND
        sources = np.random.default_rng(step).integers(0, 4, 4, dtype=np.int32)
        together.reorder(sources)
        history = [[*history[source], (step * 7 + index * 11) % VOCABULARY] for index, source in enumerate(sources)]


def engines_after(text, instruction_set: str):
    encoder, decoder = engines(instruction_set)
    encoder.forward(text, 0, rows(0))
    return encoder, decoder


def test_sequences_that_the_cache_has_no_room_for_are_refused():
    encoder, decoder = engines(sequences=2)
    encoder.forward(tokens_of(4), 0, rows(0))
    with pytest.raises(ValueError, match="room for 2 sequences"):
        decoder.forward(tokens_of(3), 0, rows(3), abreast=True)
    with pytest.raises(ValueError, match="none of the cache's 2"):
        decoder.reorder(np.array([0, 2], dtype=np.int32))


def test_a_program_is_refused_a_shared_cache_that_is_not_its_own():
    encoder, _ = two_programs()
    lowered = lower(encoder.program, encoder.tensor)
    with pytest.raises(ValueError, match="shared states are not those"):
        _native.Engine(lowered, context=8, batch=8, threads=1)
