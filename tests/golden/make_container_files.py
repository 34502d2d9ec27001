# SPDX-License-Identifier: Apache-2.0
"""Make the golden files: PYTHONPATH=src:tests python tests/golden/make_container_files.py LLAMA_CPP_FOLDER.

tiny-q8_0.lilliput.safetensors   our own layout, version 1, as first released: it must open for ever.
tiny-q4_0.gguf                   written by llama-quantize (vendored in llama-cpp-python 0.3.36) from our F32 file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from model_files import tiny_model

from lilliput.containers.gguf import Gguf
from lilliput.containers.lilliput_safetensors import LilliputSafetensors
from lilliput.containers.publish import publish
from lilliput.formats import get_format

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def main(tools: Path) -> None:
    here = Path(__file__).parent
    contents, tensors = tiny_model(get_format("q8_0"), **SMALL)
    own = here / "tiny-q8_0.lilliput.safetensors"
    publish(LilliputSafetensors(), contents, tensors.values(), own, overwrite=True)
    contents, tensors = tiny_model(get_format("f16"), **SMALL)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "tiny.gguf"
        publish(Gguf(), contents, tensors.values(), source)
        command = [tools / "llama-quantize", source, here / "tiny-q4_0.gguf", "Q4_0", "1"]
        subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
