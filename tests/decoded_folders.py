# SPDX-License-Identifier: Apache-2.0
"""The float folder of our own decoded weights, for tests against other runtimes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lilliput.architectures.sources import checkpoint_tensors
from lilliput.containers import open_model


def write_decoded(made: Path, target: Path) -> Path:
    """Every tensor of the folder `made` in float32, rows in the checkpoint's order, without quantization_config."""
    source = open_model(made)
    table = source.architecture.tensor_table(source.config)
    sources = {entry.name: entry.source for entry in table if entry.name in source.headers}
    stored = checkpoint_tensors(sources, {name: source.tensor(name).dequantize() for name in sources})
    stored = {name: np.ascontiguousarray(values) for name, values in stored.items()}
    target.mkdir()
    config = json.loads((made / "config.json").read_text())
    del config["quantization_config"]
    (target / "config.json").write_text(json.dumps(config))
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    return target
