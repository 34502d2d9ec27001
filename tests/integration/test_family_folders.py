# SPDX-License-Identifier: Apache-2.0
"""Decoder families from their own checkpoints through calibration and quantization to logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lilliput import workflows
from lilliput.containers import open_model
from lilliput.errors import ContainerError
from lilliput.runtime.session import EngineOptions, Session
from lilliput.text.tokenizer import Tokenizer
from lilliput.workflows import Guidance, QuantizeOptions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from family_folders import FAMILIES, write_family  # noqa: E402

EXACT = EngineOptions(threads=1, activations="f32", kv_format="f32")
TOKENS = np.random.default_rng(4).integers(3, 300, 40)
TEXT = "Once upon a time there was a little model. It had 3 layers, and 42 heads; it said: hello!\n" * 60


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: write_family(root / f"tiny-{name}", name) for name in FAMILIES}


def suffix(name: str) -> str:
    return ".safetensors" if name in ("opt", "gptj") else ".gguf"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_and_its_file_give_the_logits_of_transformers(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / f"tiny{suffix(name)}"
    workflows.quantize(folders[name], "F32", output)
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    folder, file = open_model(folders[name]), open_model(output)
    ours = Session(folder, EXACT).forward(TOKENS, "all")
    # Sums of up to 256 float32 terms in another order, a dozen one after the other.
    assert np.abs(ours - theirs).max() <= 12 * 256 * 2.0**-24 * np.abs(theirs).max()
    np.testing.assert_array_equal(Session(file, EXACT).forward(TOKENS, "all"), ours)
    assert file.vocabulary() == folder.vocabulary()


# One of each kind: learned positions, side by side, norms around branches, experts.
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gemma3_text", "mixtral"])
def test_effort_balanced_comes_closer_than_fast(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    guidance, found = Guidance(text=(text,)), {}
    source = open_model(folders[name])
    ids = np.array(Tokenizer(source.vocabulary()).encode(TEXT)[:200])
    exact = log_probabilities(source, ids)
    for effort in ("fast", "balanced"):
        output = tmp_path / f"{effort}{suffix(name)}"
        workflows.quantize(folders[name], "Q4_0", output, guidance=guidance, options=QuantizeOptions(effort=effort))
        other = log_probabilities(open_model(output), ids)
        found[effort] = float((np.exp(exact) * (exact - other)).sum(axis=1).mean())
    assert 0 < found["balanced"] < found["fast"]


def log_probabilities(source: object, ids: np.ndarray) -> np.ndarray:
    logits = Session(source, EXACT).forward(ids, "all").astype(np.float64)  # type: ignore[arg-type]
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_a_checkpoint_saved_without_a_head_opens_too(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    for name, prefix in (("gpt2", "transformer."), ("opt", "model.")):
        bare = tmp_path / name
        bare.mkdir()
        for file in folders[name].iterdir():
            (bare / file.name).write_bytes(file.read_bytes())
        tensors = load_file(bare / "model.safetensors")
        save_file({key.removeprefix(prefix): value for key, value in tensors.items()}, bare / "model.safetensors")
        ours = Session(open_model(bare), EXACT).forward(TOKENS, "all")
        np.testing.assert_array_equal(ours, Session(open_model(folders[name]), EXACT).forward(TOKENS, "all"))


def test_a_family_that_gguf_does_not_know_is_refused_there(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match=r"GGUF has no name for opt models.*safetensors"):
        workflows.quantize(folders["opt"], "Q8_0", tmp_path / "opt.gguf")
