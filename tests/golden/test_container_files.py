# SPDX-License-Identifier: Apache-2.0
"""Files made once by make_container_files.py: they open as they did, whatever changes around them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import numpy as np

from lilliput.checkpoints.fingerprint import tensor_digest
from lilliput.containers import open_model
from lilliput.containers.container import Contents, Split
from lilliput.containers.lilliput_safetensors import LilliputSafetensors

HERE = Path(__file__).parent
# sha256 over the digests of all tensors in file order, as version 1 first read them.
TENSORS_OF_VERSION_1 = "ff4d9e1a87cf920e4082b5af6dcd52d06bf7dab43d5bd5108c2bdad1fe7e4a00"


def test_our_own_layout_of_version_1_opens_as_it_always_did() -> None:
    model = open_model(HERE / "tiny-q8_0.lilliput.safetensors")
    digest = hashlib.sha256("".join(tensor_digest(model.tensor(name)) for name in model.headers).encode())
    assert digest.hexdigest() == TENSORS_OF_VERSION_1
    assert (model.config.family, model.config.hidden_size, model.config.rope.base) == ("llama", 32, 10000.0)
    assert model.headers["blk.0.ffn_down.weight"].format.name == "q8_0"
    assert model.vocabulary().tokens[:4] == ("<unk>", "<s>", "</s>", "<0x00>")
    assert model.provenance.general["name"] == "Tiny Model"


def written_again(path: Path, folder: Path) -> Path:
    model = open_model(path)
    contents = Contents(
        model.architecture, model.config, model.vocabulary(), model.provenance, tuple(model.headers.values())
    )
    container = LilliputSafetensors()
    folder.mkdir()
    parts = container.layout(contents, path.name, Split())
    return container.write(parts, (model.tensor(name) for name in model.headers), folder).paths[0]


def test_writing_what_was_read_gives_the_same_model_and_then_the_same_bytes(tmp_path: Path) -> None:
    golden = HERE / "tiny-q8_0.lilliput.safetensors"
    once = written_again(golden, tmp_path / "once")
    assert open_model(once).fingerprint() == open_model(golden).fingerprint()
    assert written_again(once, tmp_path / "twice").read_bytes() == once.read_bytes()


def test_a_file_of_llama_quantize_decodes_as_gguf_py_decodes_it() -> None:
    path = HERE / "tiny-q4_0.gguf"
    model = open_model(path)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert list(model.headers) == list(theirs)
    for name, tensor in theirs.items():
        values = gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type)
        assert np.array_equal(model.tensor(name).dequantize().reshape(-1), values.reshape(-1)), name
    assert model.vocabulary().tokens[:3] == ("<unk>", "<s>", "</s>")
    assert model.provenance.extra["quantize.imatrix.file"] == "x"
