# SPDX-License-Identifier: Apache-2.0
"""Quantizing block by block on text: same bytes at any thread count and after any interruption, nothing silent."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_llama import TEXT, write_tiny_llama

from lilliput.calibration.input_sums import HessianSums
from lilliput.containers import open_model
from lilliput.errors import CalibrationError
from lilliput.formats import get_format
from lilliput.pipeline import quantize_blocks as blocks_module
from lilliput.pipeline.quantize_blocks import StreamOptions, quantize_blocks
from lilliput.pipeline.quantize_tensors import quantize_tensor
from lilliput.pipeline.work_folder import WorkFolder, work_path
from lilliput.recipes.ledger import Ledger, ledger_path, read_ledger
from lilliput.recipes.plan import resolve
from lilliput.records import LayerInputs, QuantizedTensor, Role, TensorPlan
from lilliput.workflows import CalibrateOptions, Guidance, Progress, QuantizeOptions, calibrate, quantize

torch = pytest.importorskip("torch")

CHUNKS, LAYERS = 8, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    # The chunks of calibration are as long as the model's context.
    return write_tiny_llama(folder, hidden=32, ffn=32, layers=LAYERS, heads=2, kv_heads=1, vocab=300, context=64)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 30)
    return path


def run(
    model: Path, text: Path, output: Path, *, to: str = "Q4_0", threads: int = 1, progress: Progress | None = None
) -> Path:
    options = QuantizeOptions(effort="balanced", threads=threads, tokens=64 * CHUNKS)
    quantize(model, to, output, guidance=Guidance(text=(text,)), options=options, progress=progress)
    return output


@pytest.fixture(scope="module")
def whole(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run writes."""
    return run(model, text, tmp_path_factory.mktemp("whole") / "model.gguf")


class Stopped(BaseException):
    """As sudden as a signal inside one process can be."""


def stop_at(step: int) -> Progress:
    def progress(done: int, total: int) -> None:
        # Later calls count weights, not chunks.
        if total == (2 * LAYERS + 1) * CHUNKS and done >= step:
            raise Stopped

    return progress


def killed(*_: object) -> None:
    raise Stopped


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_bytes_do_not_depend_on_the_number_of_threads(model: Path, text: Path, whole: Path, tmp_path: Path) -> None:
    assert digest(run(model, text, tmp_path / "model.gguf", threads=2)) == digest(whole)


KILLED = """
import os, signal, sys
from pathlib import Path
from lilliput.workflows import Guidance, QuantizeOptions, quantize
import torch
from lilliput.calibration.block_stream import BlockStream
from lilliput.containers import open_model
model, text, output = map(Path, sys.argv[1:4])
BlockStream(open_model(model))  # imports what is slow to import once, before the forks
for point in map(int, sys.argv[4:]):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        def progress(done, total):
            if total == int(os.environ["STEPS"]) and done >= point:
                os.kill(os.getpid(), signal.SIGKILL)
        options = QuantizeOptions(effort="balanced", threads=1, tokens=int(os.environ["TOKENS"]))
        quantize(model, "Q4_0", output, guidance=Guidance(text=(text,)), options=options, progress=progress)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    steps = sorted(path.stem for path in Path(f"{output}.work").glob("*.safetensors"))
    print(os.waitstatus_to_exitcode(status), *steps, flush=True)
"""


def test_a_run_killed_again_and_again_ends_in_the_same_bytes(
    model: Path, text: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.gguf"
    points = [3, 28, 44, 52]
    environment = {
        **os.environ, "STEPS": str((2 * LAYERS + 1) * CHUNKS), "TOKENS": str(64 * CHUNKS), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, (model, text, output, *points))],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    killed = f"{-signal.SIGKILL}"
    assert done.stdout.splitlines() == [
        killed, f"{killed} blk.0", f"{killed} blk.0 blk.1", f"{killed} blk.0 blk.1 blk.2",
    ]  # fmt: skip
    assert not output.exists()
    run(model, text, output)
    assert digest(output) == digest(whole)
    assert not work_path(output).exists()


# The step that is damaged, and where the run stopped: hidden states lie in two files by turns, so what a damaged step
# would start from may be gone.
@pytest.mark.parametrize(("damaged", "stopped"), [("blk.0", 20), ("blk.1", 44)])
def test_a_step_cut_short_is_done_again(
    model: Path, text: Path, whole: Path, tmp_path: Path, damaged: str, stopped: int
) -> None:
    output = tmp_path / "model.gguf"
    with pytest.raises(Stopped):
        run(model, text, output, progress=stop_at(stopped))
    step = work_path(output) / f"{damaged}.safetensors"
    os.truncate(step, step.stat().st_size // 2)
    run(model, text, output)
    assert digest(output) == digest(whole)
    assert not work_path(output).exists()


def test_a_finished_block_is_not_done_again(model: Path, text: Path, whole: Path, tmp_path: Path) -> None:
    output, seen = tmp_path / "model.gguf", []
    with pytest.raises(Stopped):
        run(model, text, output, progress=stop_at(20))
    run(model, text, output, progress=lambda done, total: seen.append(done))
    assert seen[0] == 2 * CHUNKS
    assert digest(output) == digest(whole)


def test_a_run_killed_between_file_and_ledger_writes_the_ledger_the_next_time(
    model: Path, text: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model.gguf"
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "write", killed)
        with pytest.raises(Stopped):
            run(model, text, output)
    assert output.exists()
    assert work_path(output).exists()
    seen: list[int] = []
    run(model, text, output, progress=lambda done, _: seen.append(done))
    # All blocks come from the work folder.
    assert seen[0] == 2 * CHUNKS * LAYERS
    assert digest(output) == digest(whole)
    assert read_ledger(ledger_path(output)).fingerprints == read_ledger(ledger_path(whole)).fingerprints
    assert not work_path(output).exists()


def test_a_run_killed_before_it_removed_its_work_folder_removes_it_the_next_time(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model.gguf"
    with monkeypatch.context() as patched:
        patched.setattr(WorkFolder, "discard", lambda _: None)
        run(model, text, output)
    assert work_path(output).exists()
    run(model, text, output, progress=lambda *_: pytest.fail("quantized again"))
    assert not work_path(output).exists()


def test_another_torch_never_continues_a_run(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model.gguf"
    with pytest.raises(Stopped):
        run(model, text, output, progress=stop_at(36))
    monkeypatch.setattr("lilliput.recipes.ledger.versions", lambda: {"torch": "0.0"})
    seen: list[int] = []
    run(model, text, output, progress=lambda done, _: seen.append(done))
    assert seen[0] == 1


@pytest.mark.parametrize("change", ["text", "recipe"])
def test_another_text_or_recipe_never_continues_a_run(model: Path, text: Path, tmp_path: Path, change: str) -> None:
    output, fresh = tmp_path / "model.gguf", tmp_path / "fresh.gguf"
    with pytest.raises(Stopped):
        run(model, text, output, progress=stop_at(36))
    to = "Q5_0" if change == "recipe" else "Q4_0"
    if change == "text":
        text = tmp_path / "text.txt"
        text.write_text(TEXT[::-1] * 30)
    run(model, text, output, to=to)
    run(model, text, fresh, to=to)
    assert digest(output) == digest(fresh)


def test_a_method_that_runs_the_model_is_refused_without_a_text(model: Path, text: Path, tmp_path: Path) -> None:
    imatrix = tmp_path / "imatrix.gguf"
    calibrate(model, [text], imatrix, options=CalibrateOptions(tokens=128))
    for guidance, options in (
        (Guidance(), QuantizeOptions(effort="balanced")),
        (Guidance(imatrix=imatrix), QuantizeOptions(method="feedback")),
    ):
        with pytest.raises(CalibrationError, match=r"blk\.0\.\w+\.weight: method 'feedback' .*runs the model on text.*"
                           r"give --text FILE \(or --text builtin\), or --effort fast"):  # fmt: skip
            quantize(model, "Q4_0", tmp_path / "model.gguf", guidance=guidance, options=options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imatrix.gguf"]


def seen_inputs(
    model: Path, folder: Path, inputs: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, LayerInputs], dict[str, np.ndarray]]:
    """What the methods were told of each tensor's inputs, and what they made of it."""
    seen: dict[str, LayerInputs] = {}
    original = quantize_tensor

    def remember(tensor: QuantizedTensor, row: TensorPlan, known: LayerInputs, *, threads: int) -> object:
        seen[row.name] = known
        return original(tensor, replace(row, method="round_to_nearest"), known, threads=threads)

    monkeypatch.setattr(blocks_module, "quantize_tensor", remember)
    source = open_model(model)
    plan = resolve(source, "Q4_0", statistics_present=True, method="feedback")
    chunks = np.random.default_rng(5).integers(0, 290, size=(CHUNKS, 24), dtype=np.int32)
    with WorkFolder(folder, "key") as work:
        options = StreamOptions(inputs=inputs)  # type: ignore[arg-type]
        done = quantize_blocks(source, plan, chunks, work, options)
        tensors = {name: item.dequantize() for name, (item, _) in done.items()}
    return seen, tensors


def hooked_mean_squares(model: Path, replaced: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mean square of what enters each layer of the whole transformers model, with some weights replaced."""
    import transformers

    whole = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    state = whole.state_dict()
    for name, values in replaced.items():
        state[name].copy_(torch.from_numpy(values))
    found: dict[str, list[object]] = {}
    names = {f"model.layers.{layer}.self_attn.q_proj": f"blk.{layer}.attn_q.weight" for layer in range(LAYERS)}
    for module, name in {**names, "lm_head": "output.weight"}.items():
        kept = found.setdefault(name, [])
        whole.get_submodule(module).register_forward_pre_hook(lambda _, given, kept=kept: kept.append(given[0][0]))
    chunks = np.random.default_rng(5).integers(0, 290, size=(CHUNKS, 24), dtype=np.int32)
    with torch.no_grad():
        for chunk in chunks:
            whole(torch.from_numpy(chunk)[None].long())
    return {name: torch.cat(kept).double().square().mean(0).numpy() for name, kept in found.items()}


@pytest.mark.parametrize("inputs", ["quantized", "float"])
def test_methods_see_the_inputs_of_the_prefix_they_were_asked_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: str
) -> None:
    seen, tensors = seen_inputs(model, tmp_path / "work", inputs, monkeypatch)
    replaced = {}
    if inputs == "quantized":
        source = open_model(model)
        for name, tensor in tensors.items():
            if name != "output.weight":
                replaced[source.source_name(name)] = in_checkpoint_order(name, tensor)
    expected = hooked_mean_squares(model, replaced)
    for name, mean_square in expected.items():
        # Float32 forwards of the same mathematics in another order, three blocks deep.
        np.testing.assert_allclose(seen[name].mean_square, mean_square, rtol=1e-4)
        assert seen[name].held_out is not None
        assert seen[name].tokens == (CHUNKS - 1) * 24
    assert seen["blk.0.attn_q.weight"] is seen["blk.0.attn_v.weight"]


def in_checkpoint_order(name: str, values: np.ndarray) -> np.ndarray:
    """GGUF interleaves the two halves of each head of q and k."""
    heads = {"attn_q": 2, "attn_k": 1}.get(name.split(".")[-2])
    if heads is None:
        return values
    return np.ascontiguousarray(values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2)).reshape(values.shape)


def spoiled(model: Path, folder: Path, name: str, value: float) -> Path:
    """A copy of the model with one row of a tensor replaced."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors[name][5] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_activations_that_overflow_are_named_and_leave_nothing(model: Path, text: Path, tmp_path: Path) -> None:
    bad = spoiled(model, tmp_path / "bad", "model.layers.0.mlp.up_proj.weight", 3e38)
    with pytest.raises(CalibrationError, match=r"blk\.0\.ffn_down\.weight: its input holds NaN or Inf \(feature 5"):
        run(bad, text, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


# Of one tensor.
ROW = TensorPlan("blk.0.x.weight", "x", (4, 32), Role.FFN_UP, get_format("q4_0"), "feedback", "asked for")
WEIGHT = np.random.RandomState(0).standard_normal((4, 32)).astype(np.float32)
TENSOR = QuantizedTensor("blk.0.x.weight", (4, 32), get_format("f32"), {"blocks": WEIGHT.view(np.uint8)})


def correlated(seed: int) -> np.ndarray:
    draw = np.random.RandomState(seed)
    x = draw.standard_normal((256, 32)) @ draw.standard_normal((32, 32)) / np.arange(1, 33)
    return (x.T @ x / 256).astype(np.float32)


def test_where_feedback_loses_on_unseen_text_the_baseline_stays_and_the_ledger_says_so() -> None:
    hessian, other = correlated(0), correlated(9)
    square = np.diag(hessian).copy()
    for held_out, method, words in (
        (hessian, "feedback", r"asked for; held-out loss 0."),
        (other, "searched_scales", "of searched_scales's, which is kept"),
        (np.full_like(hessian, np.nan), "searched_scales", "which is kept"),
    ):
        inputs = LayerInputs(256, square, hessian, held_out)
        tensor, entry = quantize_tensor(TENSOR, ROW, inputs, threads=1)
        alone, _ = quantize_tensor(TENSOR, replace(ROW, method=method), LayerInputs(256, square, hessian), threads=1)
        assert (entry.method, words in entry.reason) == (method, True), entry.reason
        np.testing.assert_array_equal(tensor.planes["blocks"], alone.planes["blocks"])


@pytest.mark.parametrize("columns", [1, 8, 20])
def test_hessians_are_symmetric_means_of_products_whatever_is_summed_together(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lilliput.calibration.input_sums.COLUMNS_AT_ONCE", 8)
    sums = HessianSums("blk.0.x.weight")
    chunks = np.random.RandomState(0).standard_normal((9, 5, columns)).astype(np.float32)
    for chunk in chunks:
        sums.add(torch.from_numpy(chunk))
    inputs = sums.layer_inputs()
    for found, seen in ((inputs.hessian, [*range(7), 8]), (inputs.held_out, [7])):
        rows = chunks[seen].reshape(-1, columns).astype(np.float64)
        matrix = np.asarray(found)
        np.testing.assert_array_equal(matrix, matrix.T)
        # Each entry is a float32 sum of as many products as there are rows.
        bound = len(rows) * 2.0**-24 * np.abs(rows).max() ** 2
        np.testing.assert_allclose(matrix, rows.T @ rows / len(rows), rtol=0, atol=bound)


def test_a_layer_that_saw_no_token_gets_the_baseline_and_the_ledger_says_so() -> None:
    sums = HessianSums("blk.0.x.weight")
    for _ in range(CHUNKS):
        sums.add(torch.zeros(0, 32))
    inputs = sums.layer_inputs()
    assert (inputs.tokens, inputs.hessian, inputs.mean_square) == (0, None, None)
    tensor, entry = quantize_tensor(TENSOR, ROW, inputs, threads=1)
    plain, _ = quantize_tensor(TENSOR, replace(ROW, method="searched_scales"), inputs, threads=1)
    assert entry.method == "searched_scales"
    assert entry.tokens == 0
    assert entry.reason == "asked for; no token of the text reached it, so searched_scales"
    np.testing.assert_array_equal(tensor.planes["blocks"], plain.planes["blocks"])


def test_a_layer_seen_only_in_held_out_text_gets_the_baseline() -> None:
    sums = HessianSums("blk.0.x.weight")
    for chunk in range(CHUNKS):
        sums.add(torch.ones(4 if chunk == CHUNKS - 1 else 0, 32))
    assert quantize_tensor(TENSOR, ROW, sums.layer_inputs(), threads=1)[1].method == "searched_scales"


def test_a_hessian_that_overflows_names_its_tensor() -> None:
    sums = HessianSums("blk.0.x.weight")
    sums.add(torch.full((4, 32), 1e19))
    with pytest.raises(CalibrationError, match=r"^blk\.0\.x\.weight: the Hessian .* holds NaN or Inf"):
        quantize_tensor(TENSOR, ROW, sums.layer_inputs(), threads=1)
