# SPDX-License-Identifier: Apache-2.0
"""Write tests/golden/llama_quantize_type_maps.json: which type llama-quantize gives each tensor of known shapes.

Every model is a sparse file: real header, no data, because `llama-quantize --dry-run` decides from the header alone.

    python tools/make_type_maps.py PATH/TO/llama-quantize
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import gguf
import numpy as np

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "llama_quantize_type_maps.json"
# fmt: off
PRESETS = (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q2_K_S",
    "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M",
    "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0",
)
# fmt: on
LINE = re.compile(r"\[\s*\d+/\s*\d+\]\s+(\S+)\s+- \[.*?\], type =\s*(\S+), size = .*?(?:\((\w+)\))?$")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one model in elements."""

    family: str
    vocab_size: int
    hidden_size: int
    ffn_size: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> [out, in], without biases: they are 1-D and tell nothing."""
        head_dim = self.hidden_size // self.heads
        kv_width = head_dim * self.kv_heads
        hidden, ffn = self.hidden_size, self.ffn_size
        table: dict[str, tuple[int, ...]] = {"token_embd.weight": (self.vocab_size, hidden)}
        for layer in range(self.layers):
            block = {
                "attn_norm": (hidden,),
                "attn_q": (hidden, hidden),
                "attn_k": (kv_width, hidden),
                "attn_v": (kv_width, hidden),
                "attn_output": (hidden, hidden),
                "ffn_norm": (hidden,),
                "ffn_gate": (ffn, hidden),
                "ffn_up": (ffn, hidden),
                "ffn_down": (hidden, ffn),
            }
            table |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
        table["output_norm.weight"] = (hidden,)
        if not self.tied:
            table["output.weight"] = (self.vocab_size, hidden)
        return table


SHAPES = {
    "llama-3.2-1b": Shape("llama", 128256, 2048, 8192, 16, 32, 8, tied=True),
    "llama-3.2-1b-untied": Shape("llama", 128256, 2048, 8192, 16, 32, 8, tied=False),
    "smollm-135m": Shape("llama", 49152, 576, 1536, 30, 9, 3, tied=True),
    "stories260k": Shape("llama", 512, 64, 172, 5, 8, 4, tied=True),
    "llama-7b": Shape("llama", 32000, 4096, 11008, 32, 32, 32, tied=False),
    "llama-80-layers": Shape("llama", 32000, 512, 1536, 80, 16, 2, tied=False),
    "qwen2-0.5b": Shape("qwen2", 151936, 896, 4864, 24, 14, 2, tied=True),
    "qwen2-80-layers": Shape("qwen2", 32000, 512, 1536, 80, 16, 2, tied=False),
    "qwen3-0.6b": Shape("qwen3", 151936, 1024, 3072, 28, 16, 8, tied=True),
}


def write_sparse(shape: Shape, path: Path) -> None:
    """A GGUF whose header is real and whose data is a hole."""
    writer = gguf.GGUFWriter(path, shape.family)
    writer.add_context_length(2048)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(shape.hidden_size // shape.heads)
    writer.add_vocab_size(shape.vocab_size)
    total = 0
    for name, size in shape.tensors().items():
        kind = np.float16 if len(size) > 1 else np.float32
        count = int(np.prod(size)) * np.dtype(kind).itemsize
        writer.add_tensor_info(name, size, np.dtype(kind), count)
        total += -(-count // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as file:
        file.truncate(-(-file.tell() // 32) * 32 + total)


def write_imatrix(path: Path) -> None:
    """The smallest file that llama-quantize accepts as an importance matrix."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["none"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.ones((1, 32), np.float32))
    writer.add_tensor("blk.0.attn_q.weight.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def type_map(tool: Path, model: Path, preset: str, imatrix: Path | None) -> dict[str, list[str]]:
    """Type -> tensors with two axes, as "attn_v 0-3,7" (name and layers); the commonest type has just ["*"]."""
    options = ["--imatrix", str(imatrix)] if imatrix else []
    run = subprocess.run(
        [str(tool), "--dry-run", *options, str(model), preset], capture_output=True, text=True, check=True
    )
    types: dict[str, list[str]] = {}
    for line in (run.stdout + run.stderr).splitlines():
        found = LINE.match(line.strip())
        if found and "_norm" not in found[1]:
            types.setdefault((found[3] or found[2]).lower(), []).append(found[1])
    if not types:
        raise SystemExit(f"no tensor line understood in:\n{run.stdout}{run.stderr}")
    commonest = Counter({kind: len(names) for kind, names in types.items()}).most_common(1)[0][0]
    return {kind: ["*"] if kind == commonest else shortened(names) for kind, names in types.items()}


def shortened(names: list[str]) -> list[str]:
    """Names without `blk.` and `.weight`, layers of one kind folded into ranges."""
    layers: dict[str, list[int]] = {}
    for name in names:
        parts = name.removesuffix(".weight").split(".")
        layers.setdefault(parts[-1], []).extend([int(parts[1])] if parts[0] == "blk" else [])
    return [f"{kind} {ranges(found)}".strip() for kind, found in layers.items()]


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def main() -> None:
    """Run every preset on every shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("llama_quantize", type=Path)
    tool = parser.parse_args().llama_quantize
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        imatrix = Path(folder) / "imatrix.gguf"
        write_imatrix(imatrix)
        for name, shape in SHAPES.items():
            model = Path(folder) / f"{name}.gguf"
            write_sparse(shape, model)
            plain = {preset: type_map(tool, model, preset, None) for preset in PRESETS}
            weighted = {preset: type_map(tool, model, preset, imatrix) for preset in PRESETS}
            differing = {preset: types for preset, types in weighted.items() if types != plain[preset]}
            result[name] = {"shape": asdict(shape), "without_imatrix": plain, "with_imatrix": differing}
            model.unlink()
    text = json.dumps(result, separators=(",", ":"))
    GOLDEN.write_text(re.sub(r'("(?:without_imatrix|with_imatrix|shape|[A-Z]+\d\w*)":)', r"\n\1", text) + "\n")


if __name__ == "__main__":
    main()
