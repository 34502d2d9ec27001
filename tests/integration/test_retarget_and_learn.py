# SPDX-License-Identifier: Apache-2.0
"""What follows the choice of codes: weights retargeted to quantized inputs, and rounding trained with its block."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_llama import TEXT, write_tiny_llama

from lilliput.calibration.block_stream import BlockStream
from lilliput.calibration.data import calibration_chunks
from lilliput.calibration.input_sums import HessianSums
from lilliput.cli import main
from lilliput.evaluation.model_logits import EvaluationOptions
from lilliput.formats import get_format
from lilliput.methods import METHODS
from lilliput.methods.retarget import retargeting
from lilliput.pipeline.learn_block import BlockText, LearnOptions, learn_block
from lilliput.pipeline.quantize_tensors import quantize_tensor
from lilliput.pipeline.trained_weight import TrainedWeight
from lilliput.recipes.plan import resolve
from lilliput.records import NO_INPUTS, QuantizedTensor
from lilliput.workflows import Guidance, QuantizeOptions, evaluate, opened, quantize

torch = pytest.importorskip("torch")

TOKENS, COLUMNS = 4096, 16


def pairs_of_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """[tokens, columns] of a float model, and what quantized layers before made of them: correlated errors."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(TOKENS, COLUMNS, generator=draw) @ torch.randn(COLUMNS, COLUMNS, generator=draw)
    return inputs, inputs + 0.2 * inputs @ torch.randn(COLUMNS, COLUMNS, generator=draw) / 4


def sums_of(inputs: torch.Tensor, stream: torch.Tensor) -> HessianSums:
    sums = HessianSums("blk.0.x.weight")
    for part, seen in zip(inputs.split(TOKENS // 4), stream.split(TOKENS // 4), strict=True):
        sums.add_float(part)
        sums.add(seen)
    return sums


def test_retargeted_weights_give_the_float_models_outputs_from_quantized_inputs() -> None:
    inputs, stream = pairs_of_inputs()
    sums = sums_of(inputs, stream)
    cross = sums.cross
    known = sums.layer_inputs()
    weight = torch.randn(8, COLUMNS, generator=torch.Generator().manual_seed(1))
    wanted = inputs @ weight.T

    def error(share: float) -> float:
        found = retargeting(torch.as_tensor(known.hessian), cross, known.tokens, share=share)
        return float((stream @ (weight + weight @ found).T - wanted).square().mean())

    plain = float((stream @ weight.T - wanted).square().mean())
    # The stream is an invertible map of the inputs, so that only the damping, 1 % of the mean, is left of the error.
    assert error(1.0) < 0.1 * plain
    assert error(1.0) < error(0.5) < plain


def test_weights_stay_what_they_are_where_both_models_have_the_same_inputs() -> None:
    inputs, _ = pairs_of_inputs()
    sums = sums_of(inputs, inputs)
    cross = sums.cross
    known = sums.layer_inputs()
    assert not retargeting(torch.as_tensor(known.hessian), cross, known.tokens, share=1.0).any()


def test_inputs_of_held_out_chunks_stay_out_of_the_cross_products() -> None:
    sums = HessianSums("blk.0.x.weight")
    for chunk in range(8):
        sums.add_float(torch.full((1, 4), 100.0 if chunk == 7 else 2.0))
        sums.add(torch.ones(1, 4))
    np.testing.assert_array_equal(sums.cross.numpy(), np.full((4, 4), 2.0, np.float32))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 240)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", hidden=64, ffn=128, layers=3, heads=2)


def test_following_both_models_brings_the_quantized_one_nearer(model: Path, text: Path, tmp_path: Path) -> None:
    files = []
    for inputs in ("quantized", "both"):
        options = QuantizeOptions(threads=1, inputs=inputs)  # type: ignore[arg-type]
        files.append(tmp_path / f"{inputs}.gguf")
        quantize(model, "Q4_0", files[-1], guidance=Guidance(text=(text,)), options=options)
    ledger = json.loads(files[1].with_name("both.gguf.ledger.json").read_text())
    reasons = {entry["name"]: entry["reason"] for entry in ledger["entries"]}
    assert "retargeted to quantized inputs" in reasons["blk.2.ffn_down.weight"]
    result = evaluate(model, files, text, options=EvaluationOptions(context=64, tokens=2048, threads=1))
    plain, retargeted = (file.divergence.mean_kld.value for file in result.files)
    assert retargeted < plain


@pytest.mark.parametrize(
    ("option", "known"), [("--inputs", "quantized, float, both"), ("--precision", "float32, bfloat16")]
)
def test_an_unknown_choice_is_refused(
    option: str, known: str, model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", model, "--to", "Q4_0", "--text", text, option, "real", "-o", tmp_path / "x.gguf"]
    assert main([str(word) for word in words]) != 0
    assert f"unknown {option} 'real'; known: {known}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_short_products_give_nearly_the_same_states(model: Path, text: Path) -> None:
    with opened(model) as source:
        tokens = calibration_chunks(source.vocabulary(), [text], chunk_size=32, tokens=32)[0]
        outputs = []
        for precision in ("float32", "bfloat16"):
            stream = BlockStream(source, precision=precision)  # type: ignore[arg-type]
            with torch.inference_mode(), stream.block(0) as block:
                states = stream.forward(block, 0, 0, stream.embed(tokens), stream.block_arguments(32)[0])
            assert states.dtype == torch.float32
            outputs.append(states)
    # Each of a handful of roundings in a row has up to 2^-9 of the values' size.
    assert float((outputs[0] - outputs[1]).abs().max()) < 2.0**-6 * float(outputs[0].abs().max())
    assert bool((outputs[0] != outputs[1]).any())


@pytest.mark.parametrize("name", ["q2_k", "q3_k", "q4_0", "iq4_xs", "nf4_g32", "int4_g32_asym"])
def test_an_offset_beyond_one_half_moves_a_code_to_its_neighbour(name: str) -> None:
    number_format = get_format(name)
    values = np.random.RandomState(0).standard_normal((4, 256)).astype(np.float32)
    planes = METHODS["searched_scales"].quantize(number_format, values, NO_INPUTS, threads=1)
    tensor = QuantizedTensor("blk.0.x.weight", (4, 256), number_format, planes)
    weight = TrainedWeight(tensor, trains_rounding=True)
    start = weight.value()
    weight.offsets[:] = torch.linspace(-1.4, 1.4, 256)
    weight.offsets[:, 100:156] = torch.linspace(-0.49, 0.49, 56)
    moved = weight.value()
    np.testing.assert_allclose(moved.numpy(), weight.stored().dequantize(), atol=1e-6 * float(start.abs().max()))
    np.testing.assert_array_equal(moved[:, 100:156], start[:, 100:156])
    # Up or down as the offset says, with the sign of the group's scale, but for codes at the ends.
    assert float((moved != start)[:, :80].float().mean()) > 0.7
    assert float((moved != start)[:, -80:].float().mean()) > 0.7


def test_vector_codebooks_keep_their_codes() -> None:
    values = np.random.RandomState(0).standard_normal((2, 256)).astype(np.float32)
    planes = METHODS["searched_scales"].quantize(get_format("iq2_s"), values, NO_INPUTS, threads=1)
    tensor = QuantizedTensor("blk.0.x.weight", (2, 256), get_format("iq2_s"), planes)
    assert TrainedWeight(tensor, trains_rounding=True).offsets is None


def test_learning_a_block_lowers_its_error_on_chunks_it_has_not_seen(model: Path, text: Path) -> None:
    with opened(model) as source:
        rows = [
            replace(row, method="round_to_nearest")
            for row in resolve(source, "Q4_0", statistics_present=False).rows
            if row.name.startswith("blk.1.") and row.format.name == "q4_0"
        ]
        done = {row.name: quantize_tensor(source.tensor(row.name), row, NO_INPUTS, threads=1) for row in rows}
        stream = BlockStream(source)
        chunks = calibration_chunks(source.vocabulary(), [text], chunk_size=32, tokens=1024)
        with torch.inference_mode(), stream.block(1) as block:
            inputs = torch.stack([stream.embed(chunk) for chunk in chunks])
            arguments = stream.block_arguments(32)[1]
            wanted = torch.stack([stream.forward(block, 1, i, inputs[i], arguments) for i in range(len(chunks))])

            def error(tensors: dict) -> float:
                for tensor, _ in tensors.values():
                    stream.replace(block, 1, tensor)
                outputs = [stream.forward(block, 1, i, inputs[i], arguments) for i in range(7, len(chunks), 8)]
                return float((torch.stack(outputs) - wanted[7::8]).square().mean())

            options = LearnOptions(steps=60, batch=4)
            learned = learn_block(stream, block, 1, done, BlockText(inputs, wanted, arguments), options)
            assert "rounding learned with its block" in learned["blk.1.ffn_up.weight"][1].reason
            assert error(learned) < 0.9 * error(done)


def test_the_method_is_told_in_the_ledger(model: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.gguf"
    options = QuantizeOptions(method="learned_rounding", threads=1, tokens=512 * 8)
    quantize(model, "Q4_0", output, guidance=Guidance(text=(text,)), options=options)
    entries = json.loads(output.with_name("model.gguf.ledger.json").read_text())["entries"]
    row = next(entry for entry in entries if entry["name"] == "blk.0.ffn_up.weight")
    assert row["method"] == "learned_rounding"
    assert "learn" in row["reason"]
    with opened(output) as source:
        assert source.headers["blk.0.ffn_up.weight"].format.name == "q4_0"
