# SPDX-License-Identifier: Apache-2.0
"""Runtimes of language models under one signature: token ids and a count go in, as many greedy tokens come out.

Everything but the standard library is imported where it is used: each runtime is served by a python of its own
environment, which need not have what the others want.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel

# (the prompt, how many) -> exactly that many tokens: the prompt's pass gives the first, each further pass one more.
Generate = Callable[[Sequence[int], int], Sequence[int]]


@dataclass(frozen=True)
class Runtime:
    """One row of the comparison.

    file: of `runtime_models.FILES`.  packages: distributions that must be installed; the first one names the runtime.
    settings: what was chosen of it, in words.  start: (file, threads, positions that are needed) -> Generate.
    beside: our row that it is compared with; None of ours.
    """

    file: str
    packages: tuple[str, ...]
    settings: str
    start: Callable[[Path, int, int], Generate]
    beside: str | None = None


def lilliput(path: Path, threads: int, context: int) -> Generate:
    from lilliput.containers import open_model
    from lilliput.runtime.session import EngineOptions, Session

    session = Session(open_model(path), EngineOptions(threads=threads, context=context))

    def generate(ids: Sequence[int], count: int) -> list[int]:
        session.truncate(0)
        tokens = [int(session.forward(ids)[0].argmax())]
        while len(tokens) < count:
            tokens.append(int(session.forward(tokens[-1:])[0].argmax()))
        return tokens

    return generate


def openvino_genai(backend: str) -> Callable[[Path, int, int], Generate]:
    """backend: PA, paged attention, which is what LLMPipeline takes by itself on x86, or SDPA."""

    def start(path: Path, threads: int, context: int) -> Generate:
        import numpy as np
        import openvino
        import openvino_genai

        pipeline = openvino_genai.LLMPipeline(
            str(path), "CPU", INFERENCE_NUM_THREADS=threads, ATTENTION_BACKEND=backend
        )

        def generate(ids: Sequence[int], count: int) -> list[int]:
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
            result = pipeline.generate(openvino.Tensor(np.array([ids], np.int64)), config)
            return list(result.tokens[0])

        return generate

    return start


def onnxruntime_genai(path: Path, threads: int, context: int) -> Generate:
    import numpy as np
    import onnxruntime_genai as genai

    config = genai.Config(str(path))
    options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
    config.overlay(json.dumps(options))
    model = genai.Model(config)

    def generate(ids: Sequence[int], count: int) -> list[int]:
        parameters = genai.GeneratorParams(model)
        length = len(ids) + count
        # Random weights may end a text at any token.
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(np.array(ids, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return list(generator.get_sequence(0)[len(ids) :])

    return generate


def torch_plain(path: Path, threads: int, context: int) -> Generate:
    """Transformers as it is."""
    import torch
    from transformers import DynamicCache

    model = _transformers_model(path, threads)

    def generate(ids: Sequence[int], count: int) -> list[int]:
        with torch.inference_mode():
            return _greedy(lambda *step: _last_logits(model, *step), DynamicCache(config=model.config), ids, count)

    return generate


def torch_compiled(kind: str) -> Callable[[Path, int, int], Generate]:
    """kind: int8 (weights a row, inputs a token) or int4 (weights in groups of 128, inputs bfloat16)."""

    def start(path: Path, threads: int, context: int) -> Generate:
        import torch
        import torch._inductor.config as inductor
        import torchao.quantization as quantization
        from transformers import StaticCache

        model = _transformers_model(path, threads)
        # A head of its own, so that it is quantized while embeddings stay to be looked up.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
        if kind == "int8":
            quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
        else:
            from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

            quantization.quantize_(model, PrototypeInt4WeightOnlyConfig(group_size=128))
        # Weights become constants of the graph, so that what depends on them alone is computed once.
        inductor.freezing = True
        step = torch.compile(lambda *arguments: _last_logits(model, *arguments), dynamic=False)
        caches: dict[int, StaticCache] = {}

        def generate(ids: Sequence[int], count: int) -> list[int]:
            length = len(ids) + count
            if length not in caches:
                caches[length] = StaticCache(config=model.config, max_cache_len=length)
            caches[length].reset()
            # Weights that were made in inference mode cannot be frozen.
            with torch.no_grad():
                return _greedy(step, caches[length], ids, count)

        return generate

    return start


def _transformers_model(path: Path, threads: int) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval().requires_grad_(requires_grad=False)


def _last_logits(model: PreTrainedModel, ids: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
    found = model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return found.logits[0, -1]


def _greedy(step: Callable[..., torch.Tensor], cache: Cache, ids: Sequence[int], count: int) -> list[int]:
    import torch

    tokens = [int(step(torch.tensor([list(ids)]), torch.arange(len(ids))[None], cache).argmax())]
    while len(tokens) < count:
        position = torch.tensor([[len(ids) + len(tokens) - 1]])
        tokens.append(int(step(torch.tensor([tokens[-1:]]), position, cache).argmax()))
    return tokens


OPENVINO = ("openvino-genai", "openvino", "openvino-tokenizers")
ONNX = ("onnxruntime-genai", "onnxruntime")
TORCHAO = ("torch", "torchao", "transformers")
INT8_COMPILED = "torchao int8 weights a row and inputs a token, torch.compile with freezing, static cache"
INT4_COMPILED = "torchao int4 weights in groups of 128 (prototype), bfloat16 inputs, torch.compile with freezing"
GENAI = "accuracy_level 4 (int8 inputs), head on the last token, shared past and present"
GGUF = "GGUF reader, CPU plugin's defaults (int8 inputs, u8 KV cache)"
RUNTIMES = {
    "lilliput Q4_K_M": Runtime("Q4_K_M.gguf", ("lilliput",), "defaults", lilliput),
    "lilliput Q4_0": Runtime("Q4_0.gguf", ("lilliput",), "defaults", lilliput),
    "lilliput INT4_G128": Runtime("INT4_G128.safetensors", ("lilliput",), "defaults", lilliput),
    "lilliput INT8_CHANNEL": Runtime("INT8_CHANNEL.safetensors", ("lilliput",), "defaults", lilliput),
    "openvino-genai Q4_K_M": Runtime(
        "Q4_K_M.gguf", OPENVINO, f"{GGUF}, paged attention", openvino_genai("PA"), "lilliput Q4_K_M"
    ),
    "openvino-genai Q4_0": Runtime(
        "Q4_0.gguf", OPENVINO, f"{GGUF}, paged attention", openvino_genai("PA"), "lilliput Q4_0"
    ),
    "openvino-genai Q4_0, SDPA": Runtime(
        "Q4_0.gguf", OPENVINO, f"{GGUF}, ATTENTION_BACKEND SDPA", openvino_genai("SDPA"), "lilliput Q4_0"
    ),
    "onnxruntime-genai INT4_G32": Runtime("INT4_G32.onnx", ONNX, GENAI, onnxruntime_genai, "lilliput Q4_0"),
    "onnxruntime-genai INT4_G128": Runtime("INT4_G128.onnx", ONNX, GENAI, onnxruntime_genai, "lilliput INT4_G128"),
    "torch int8": Runtime("BF16", TORCHAO, INT8_COMPILED, torch_compiled("int8"), "lilliput INT8_CHANNEL"),
    "torch int4": Runtime("BF16", TORCHAO, INT4_COMPILED, torch_compiled("int4"), "lilliput INT4_G128"),
    "torch bfloat16": Runtime(
        "BF16", ("torch", "transformers"), "transformers as it is", torch_plain, "lilliput Q4_K_M"
    ),
}


def installed(packages: Sequence[str]) -> dict[str, str]:
    """Distribution -> version, of this python. Raises PackageNotFoundError for the first that is missing."""
    from importlib.metadata import version

    return {package: version(package) for package in packages}


if __name__ == "__main__":
    print(json.dumps(installed(sys.argv[1:])))
