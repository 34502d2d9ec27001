# SPDX-License-Identifier: Apache-2.0
"""Quality on an encoder-decoder: Misaki's BART, which spells words as phonemes.

Its two fc2 layers (encoder and decoder, 128 rows of 1024) are quantized, everything else stays as it is. Calibrated on
words of its lexicon, measured on 3000 others: KL divergence of every output token, the decoder fed with the float
model's own spelling. llama-quantize gets the same two matrices as bare tensors, with the same imatrix.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peers.llama_cpp import Case, LlamaCpp, quantized_values
from quality_results import Measured, result_line
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration

from lilliput.arrays import DoubleArray, FloatArray
from lilliput.checkpoints.safetensors_reader import SafetensorsFile
from lilliput.evaluation.paired import paired_ratio
from lilliput.formats import FORMATS, NumberFormat
from lilliput.methods import METHODS
from lilliput.records import LayerInputs

LAYERS = ("model.encoder.layers.0.fc2", "model.decoder.layers.0.fc2")
START, END, UNKNOWN, PADDING = 1, 2, 3, 0
CALIBRATED, HELD_OUT, MEASURED = slice(0, 4000), slice(4000, 4600), slice(5000, 8000)
LONGEST = 63
BATCH = 250


@dataclass(frozen=True, slots=True)
class Words:
    """A batch, padded. letters, spelling: int64 [words, longest]; after START the model says START itself."""

    letters: Tensor
    spelling: Tensor


@dataclass(frozen=True, slots=True)
class Bart:
    """The model, its lexicon in tokens, and the float weights of LAYERS."""

    model: BartForConditionalGeneration
    lexicon: list[tuple[list[int], list[int]]]
    weights: Mapping[str, FloatArray]

    def layer(self, name: str) -> nn.Linear:
        """The linear layer of that name."""
        found = self.model.get_submodule(name)
        assert isinstance(found, nn.Linear)
        return found

    def set_weights(self, weights: Mapping[str, FloatArray]) -> None:
        """Replace float weights by others of the same shape."""
        for name, weight in weights.items():
            self.layer(name).weight.data = torch.from_numpy(np.ascontiguousarray(weight))


def load(folder: Path) -> Bart:
    """Read model and lexicon; words in a fixed random order."""
    found = json.loads((folder / "us_bart_config.json").read_text(encoding="utf-8"))
    letters = {character: index for index, character in enumerate(found.pop("grapheme_chars"))}
    phonemes = {character: index for index, character in enumerate(found.pop("phoneme_chars"))}
    model = BartForConditionalGeneration(BartConfig(**found)).eval()
    file = SafetensorsFile(folder / "us_bart.safetensors")
    # The decoder of an encoder-decoder, embeddings and head share one matrix, stored once.
    missing = model.load_state_dict(
        {name: torch.from_numpy(np.array(file.float32(name))) for name in file.tensors}, strict=False
    )
    assert not missing.unexpected_keys, missing.unexpected_keys
    assert all("embed_tokens" in name or name == "lm_head.weight" for name in missing.missing_keys), missing
    model.tie_weights()
    gold = json.loads((folder / "us_gold.json").read_text(encoding="utf-8"))
    words = sorted(
        word
        for word, spelling in gold.items()
        if isinstance(spelling, str) and word.isascii() and word.isalpha() and len(word) > 2
        and all(character in phonemes for character in spelling)
    )  # fmt: skip
    order = np.random.RandomState(1).permutation(len(words))
    lexicon = [
        (
            [START, *(letters.get(c, UNKNOWN) for c in words[i]), END],
            [START, START, *(phonemes[c] for c in gold[words[i]])],
        )
        for i in order
    ]
    weights = {name: np.array(model.get_submodule(name).weight.detach().numpy()) for name in LAYERS}
    return Bart(model, lexicon, weights)


def batches(pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[Words]:
    for start in range(0, len(pairs), BATCH):
        part = pairs[start : start + BATCH]
        yield Words(_padded([letters for letters, _ in part]), _padded([spelling for _, spelling in part]))


def own_spelling(bart: Bart, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[list[int], list[int]]]:
    """The same words, with what the float model spells, greedily, END left out."""
    found: list[list[int]] = []
    for batch in batches(pairs):
        spelled = bart.model.generate(
            batch.letters,
            attention_mask=(batch.letters != PADDING).long(),
            max_length=LONGEST,
            num_beams=1,
            do_sample=False,
        )
        found += [row[: row.index(END)] if END in row else row for row in spelled.tolist()]
    return [(letters, spelling) for (letters, _), spelling in zip(pairs, found, strict=True)]


def collect(bart: Bart, pairs: Sequence[tuple[list[int], list[int]]]) -> dict[str, tuple[int, DoubleArray]]:
    """Token count and sum of x x^T, float64 [1024, 1024], of each layer's input; padding left out."""
    sums = {name: np.zeros((weight.shape[1],) * 2) for name, weight in bart.weights.items()}
    counts = dict.fromkeys(sums, 0)
    real: dict[str, Tensor] = {}

    def keep(name: str, x: Tensor) -> None:
        rows = x[real["encoder" if ".encoder." in name else "decoder"]].double().numpy()
        sums[name] += rows.T @ rows
        counts[name] += len(rows)

    with ExitStack() as stack, torch.no_grad():
        for name in sums:
            hook = bart.layer(name).register_forward_pre_hook(lambda _, inputs, name=name: keep(name, inputs[0]))
            stack.callback(hook.remove)
        for batch in batches(pairs):
            real |= {"encoder": batch.letters != PADDING, "decoder": batch.spelling != PADDING}
            _logits(bart, batch)
    return {name: (counts[name], sums[name]) for name in sums}


def layer_inputs(bart: Bart) -> dict[str, LayerInputs]:
    """What methods may know: mean square and Hessian of the calibration words, and the Hessian of held-out ones."""
    seen, held_out = collect(bart, bart.lexicon[CALIBRATED]), collect(bart, bart.lexicon[HELD_OUT])
    inputs = {}
    for name, (tokens, total) in seen.items():
        hessian = (total / tokens).astype(np.float32)
        other_tokens, other = held_out[name]
        inputs[name] = LayerInputs(
            tokens=tokens, mean_square=hessian.diagonal().copy(), hessian=hessian,
            held_out=(other / other_tokens).astype(np.float32),
        )  # fmt: skip
    return inputs


def log_probabilities(bart: Bart, words: Sequence[Words]) -> list[Tensor]:
    """Float64 [words, longest, vocabulary] of each batch."""
    with torch.no_grad():
        return [torch.log_softmax(_logits(bart, batch).double(), dim=-1) for batch in words]


def divergences(base: Sequence[Tensor], other: Sequence[Tensor], words: Sequence[Words]) -> DoubleArray:
    """Summed KL of each word's tokens, float64 [words]."""
    sums = []
    for p, q, batch in zip(base, other, words, strict=True):
        kld = (p.exp() * (p - q)).sum(-1)
        sums.append((kld * (batch.spelling != PADDING)).sum(-1).numpy())
    return np.concatenate(sums)


def measure(
    folder: Path, llama_cpp: LlamaCpp, formats: Sequence[str], methods: Sequence[str], threads: int
) -> Iterator[dict[str, object]]:
    """A result line for each format and method."""
    bart = load(folder)
    inputs = layer_inputs(bart)
    words = list(batches(own_spelling(bart, bart.lexicon[MEASURED])))
    base = log_probabilities(bart, words)
    tokens = sum(int((batch.spelling != PADDING).sum()) for batch in words)

    def kld_of(weights: Mapping[str, FloatArray]) -> DoubleArray:
        bart.set_weights(weights)
        found = divergences(base, log_probabilities(bart, words), words)
        bart.set_weights(bart.weights)
        return found

    for format_name in formats:
        number_format = FORMATS[format_name]
        with tempfile.TemporaryDirectory() as scratch:
            cases = [Case(bart.weights[name], np.asarray(inputs[name].mean_square)) for name in LAYERS]
            values = quantized_values(llama_cpp, Path(scratch), format_name, cases, is_weighted=True)
        peer_weights = dict(zip(LAYERS, values, strict=True))
        peer = kld_of(peer_weights)
        for method in methods:
            if not METHODS[method].supports(number_format):
                continue
            ours = quantized(bart, inputs, number_format, method, threads)
            kld = kld_of(ours)
            pair = paired_ratio(method, "llama-quantize", kld[:, None], peer[:, None])
            losses = {
                f"{name.split('.')[1]}_loss_ratio": held_out_loss(bart, inputs, name, ours)
                / held_out_loss(bart, inputs, name, peer_weights)
                for name in LAYERS
            }
            yield result_line(
                Measured("misaki-bart-g2p", "words", "held-out words", format_name.upper(), method, is_pure=True),
                pair, kld.sum() / tokens, peer.sum() / tokens,
                bits_per_weight=number_format.bits_per_weight, tokens=tokens, calibration="4000 words of its lexicon",
                bytes=sum(number_format.stored_bytes(*weight.shape) for weight in bart.weights.values()), **losses,
            )  # fmt: skip


def quantized(
    bart: Bart, inputs: Mapping[str, LayerInputs], number_format: NumberFormat, method: str, threads: int
) -> dict[str, FloatArray]:
    """Values of LAYERS after quantization."""
    found = {}
    for name, weight in bart.weights.items():
        planes = METHODS[method].quantize(number_format, weight, inputs[name], threads=threads)
        assert sum(plane.nbytes for plane in planes.values()) == number_format.stored_bytes(*weight.shape)
        found[name] = number_format.dequantize(planes, weight.shape[1])
    return found


def held_out_loss(bart: Bart, inputs: Mapping[str, LayerInputs], name: str, values: Mapping[str, FloatArray]) -> float:
    """tr(D H D^T) with the held-out Hessian."""
    error = values[name].astype(np.float64) - bart.weights[name]
    return float(np.sum((error @ np.asarray(inputs[name].held_out, dtype=np.float64)) * error))


def _logits(bart: Bart, batch: Words) -> Tensor:
    logits: Tensor = bart.model(
        input_ids=batch.letters,
        attention_mask=(batch.letters != PADDING).long(),
        decoder_input_ids=batch.spelling,
        use_cache=False,
    ).logits
    return logits


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[PADDING] * (longest - len(row))] for row in rows])
