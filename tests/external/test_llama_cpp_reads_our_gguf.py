# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's own tools on files that we wrote, and our reader on files that they wrote."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lilliput.checkpoints.huggingface import HuggingFaceModel
from lilliput.containers import open_model
from lilliput.containers.container import Contents, Split
from lilliput.containers.gguf import Gguf
from lilliput.containers.gguf_types import FILE_TYPES
from lilliput.containers.publish import publish
from lilliput.formats import get_format
from lilliput.records import QuantizedTensor, TensorHeader

pytestmark = pytest.mark.external


def write(folder: Path, target: Path, split: Split | None = None, kind: str = "f32") -> Path:
    """The folder's model as GGUF, matrices in a plain format."""
    model = HuggingFaceModel(folder)
    matrix = get_format(kind)
    tensors: list[QuantizedTensor] = []
    for name, header in model.headers.items():
        tensor = model.tensor(name)
        if len(header.shape) > 1 and kind != "f32":
            encoded = matrix.encode(tensor.dequantize())
            tensor = QuantizedTensor(name, header.shape, matrix, matrix.pack(encoded))
        tensors.append(tensor)
    headers = tuple(TensorHeader(tensor.name, tensor.shape, tensor.format) for tensor in tensors)
    contents = Contents(model.architecture, model.config, model.vocabulary(), model.provenance, headers, kind)
    return publish(Gguf(), replace(contents), tensors, target, split=split).paths[0]


def run(tool: Path, *arguments: object) -> str:
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def published_text(stories_folder: Path) -> str:
    """The story as the model's own page prints it, between the fences of its code block."""
    page = (stories_folder.parent / "stories260K.md").read_text(encoding="utf-8")
    return page[page.index("Once upon a time") :].split("```")[0]


@pytest.mark.parametrize("split", [None, Split(max_bytes=300_000)], ids=["single", "split"])
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_llama_cpp_tells_the_published_story_from_our_file(
    llama_cpp: Path, stories_folder: Path, tmp_path: Path, kind: str, split: Split | None
) -> None:
    first = write(stories_folder, tmp_path / "stories.gguf", split, kind)
    words = ("-m", first, "-p", "", "-n", 100, "--temp", 0, "-no-cnv", "--no-display-prompt", "-t", 1, "--no-warmup")
    # It prints from a thread of its own and may end before all is out: then once more.
    for _ in range(5):
        told = run(llama_cpp / "llama-completion", *words).strip()
        if len(told) > 200:
            break
    story = published_text(stories_folder)
    assert len(told) > 200
    assert story.startswith(told.removesuffix("[end of text]").strip()[:200])


def test_llama_quantize_takes_our_file_and_we_take_its(llama_cpp: Path, tmp_path: Path, stories_folder: Path) -> None:
    source = write(stories_folder, tmp_path / "stories.gguf")
    ours = open_model(source)
    run(llama_cpp / "llama-quantize", source, tmp_path / "theirs.gguf", "Q8_0", 1)
    theirs = open_model(tmp_path / "theirs.gguf")
    assert theirs.config == ours.config
    assert theirs.vocabulary() == ours.vocabulary()
    assert theirs.provenance.general["name"] == ours.provenance.general["name"]
    for name in ours.headers:
        weight = ours.tensor(name).dequantize()
        error = np.abs(theirs.tensor(name).dequantize() - weight).max()
        # Half a step of the largest block, plus the rounding of its float16 scale.
        assert error <= np.abs(weight).max() / 127 * (0.5 + 127 * 2.0**-11), name


def test_split_parts_of_llama_quantize_open_here(llama_cpp: Path, tmp_path: Path, stories_folder: Path) -> None:
    first = write(stories_folder, tmp_path / "stories.gguf", Split(max_tensors=10))
    run(llama_cpp / "llama-quantize", "--keep-split", first, tmp_path / "theirs.gguf", "Q8_0", 1)
    parts = sorted(tmp_path.glob("theirs-*.gguf"))
    assert len(parts) > 1
    assert list(open_model(parts[-1]).headers) == list(open_model(first).headers)


def test_file_type_numbers_are_llama_quantizes_own(llama_cpp: Path) -> None:
    done = subprocess.run([llama_cpp / "llama-quantize", "--help"], capture_output=True, text=True, timeout=60)
    listed: dict[str, int] = {}
    for line in (done.stdout + done.stderr).splitlines():
        words = line.split()
        if len(words) > 3 and words[0].isdigit() and words[1] == "or":
            listed[words[2]] = int(words[0])
    assert len(listed) > 20
    differing = {name: number for name, number in listed.items() if FILE_TYPES.get(name, number) != number}
    # Q3_K, Q4_K and Q5_K are listed there as other names of the _M mixes.
    assert not differing
