# SPDX-License-Identifier: Apache-2.0
"""4-bit symmetric integers in groups of 128 against the tools that made them known: AutoRound and GPTQModel.

Each peer runs in its own environment on the same windows of the same text and writes its dequantized weights; ours are
written in our own layout and then decoded. Embedding, head and norms stay as they are on both sides, the other
matrices take 4.125 bits a weight: 4 of the code and an fp16 scale for 128. All are measured in float32 arithmetic.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from quality_model import Made, Setting, Target, Text, prepare, quantize, score

from lilliput import workflows
from lilliput.containers import open_model
from lilliput.formats import get_format
from lilliput.methods import METHODS
from lilliput.models import BUILT_IN, gulliver
from lilliput.records import TensorHeader

FORMAT = "int4_g128"
GROUP_SIZE, LEVELS, BITS_PER_WEIGHT = 128, 16, 4.125
SCRIPTS = {"AutoRound": "run_auto_round.py", "GPTQModel": "run_gptqmodel.py"}
RECIPE = f"""name: {FORMAT}
rules:
  - {{role: token_embedding, format: F32}}
  - {{role: output, format: F32}}
  - {{match: "*", format: {FORMAT}}}
"""


def measure(
    setting: Setting, pythons: Mapping[str, Path], methods: Sequence[str], texts: Sequence[Text]
) -> Iterator[dict[str, object]]:
    """A result line for each method, peer and text. pythons: name of SCRIPTS -> its environment's interpreter."""
    number_format = get_format(FORMAT)
    assert number_format.bits_per_weight == BITS_PER_WEIGHT, number_format.bits_per_weight
    base, imatrix = prepare(setting)
    peers = {name: peer_folder(setting, name, python) for name, python in pythons.items()}
    made = []
    for method in methods:
        if method in METHODS and not METHODS[method].supports(number_format):
            continue
        stored, path = setting.folder / f"{FORMAT}-{method}.safetensors", setting.folder / f"{FORMAT}-{method}.gguf"
        recipe = setting.folder / f"{FORMAT}.yaml"
        recipe.write_text(RECIPE, encoding="utf-8")
        quantize(setting, str(recipe), stored, method, imatrix)
        # The engine multiplies no such integers; their values are what is measured.
        workflows.quantize(stored, "F32", path, options=workflows.QuantizeOptions(force=True))
        tensors = quantized_tensors(stored)
        total, weights = sum(t.nbytes for t in tensors), sum(t.rows * t.columns for t in tensors)
        made += [Made(Target(FORMAT, True), method, path, peer, name, total, weights) for name, peer in peers.items()]
    for text in texts:
        yield from score(setting, base, made, text)


def peer_folder(setting: Setting, name: str, python: Path) -> Path:
    """The peer's dequantized Hugging Face folder, made unless it is there; asserts that its weights lie on the grid."""
    folder = setting.folder / name
    if not folder.exists():
        script = Path(__file__).parent / "peers" / SCRIPTS[name]
        model = gulliver() if setting.model == BUILT_IN else setting.model
        words = [python, script, model, "--text", setting.calibration, "--out", folder]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stdout[-1000:]}{done.stderr[-3000:]}")
    check_grid(setting, folder)
    return folder


def check_grid(setting: Setting, folder: Path) -> None:
    """Raise SystemExit unless every block matrix has at most 16 values a group and all else is the original's."""
    with workflows.opened(setting.model) as original, workflows.opened(folder) as found:
        for name, header in original.headers.items():
            mine, theirs = original.tensor(name).dequantize(), found.tensor(name).dequantize()
            if len(header.shape) == 2 and name.startswith("blk."):
                groups = np.sort(theirs.reshape(-1, GROUP_SIZE), axis=1)
                levels = int(1 + np.count_nonzero(np.diff(groups, axis=1) > 0, axis=1).max())
                if levels > LEVELS:
                    raise SystemExit(f"{folder.name}: {name} has {levels} values in a group, {LEVELS} are 4 bits")
            elif not np.array_equal(mine, theirs):
                raise SystemExit(f"{folder.name}: {name} is not the original's; it may keep all but block matrices")


def quantized_tensors(path: Path) -> list[TensorHeader]:
    """Headers of the tensors that have FORMAT."""
    source = open_model(str(path))
    try:
        return [header for header in source.headers.values() if header.format.name == FORMAT]
    finally:
        source.close()
