# SPDX-License-Identifier: Apache-2.0
"""Train Gulliver, the small language model that ships with lilliput, from nothing, on a CPU.

Every command, test and benchmark of lilliput needs some model that is really trained: random weights have no
outliers, no correlated inputs and no perplexity to lose. Gulliver is that model. It is a Llama in miniature (hidden
512, 3 layers, grouped-query attention, tied embeddings, 9.2 million parameters, 18.4 MB in bfloat16) with a byte-level
BPE tokenizer of 4,096 tokens, trained on technical English. Rows of 512 hold two super-blocks of the K-quants and
rows of 1,024 four, which a narrower model would leave untested. It is not meant to be a good writer.

    python tools/train_gulliver.py --data DIR --minutes 90     # everything: train, evaluate, sample, model card
    python tools/train_gulliver.py --data DIR --evaluate       # only measure the exported model and rewrite its card
    python tools/train_gulliver.py --data DIR --sample         # only write sample.txt from the exported model
    python tools/train_gulliver.py --data DIR --shape blefuscu --out DIR --minutes 90    # a second model, to test on

DIR holds train, valid and test as `<name>.jsonl.gz`, one JSON object with a `text` field a line. The length of the run
is given in minutes, not in steps: the learning rate follows the clock and reaches zero when the time is spent, so a
slow or shared machine gives a less trained model but never a half-cooled one. The price is that two runs differ in
their number of steps; the seed fixes the initial weights and the order of the text. A killed run continues from its
last checkpoint when started again with the same `--work`.

Optimizers: Muon (orthogonalized momentum: K. Jordan, 2024; step size matched to AdamW's: arXiv:2502.16982) for the
hidden matrices, because a run this short has few steps to spend, and AdamW for embedding and norms.

Speed, 2026-11, two virtual cores with AVX-512 BF16, shared: 1,350 tokens/s; idle and with --compile: 2,600. Set
OMP_WAIT_POLICY=PASSIVE on a shared machine: threads that spin while they wait brought the first figure down to 500.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

LOG = logging.getLogger("train_gulliver")
REPOSITORY = Path(__file__).resolve().parents[1]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT, IM_START, IM_END = range(3)
VOCABULARY_SIZE = 4096
CONTEXT = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

WARMUP_STEPS = 40
LOG_STEPS = 10
CHECKPOINT_SECONDS = 300.0
EXPORT_SECONDS = 600.0
VALIDATION_WINDOWS = 64
SAMPLE_BYTES = 65_536
OVERLAP_TOKENS = 50

MODEL_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
datasets:
- technical documentation under permissive licences (see "Training text")
---

# Gulliver

The demo and test model of lilliput: a Llama in miniature, trained from nothing by
`tools/train_gulliver.py` so that every command can be tried without a download. It exists to be quantized.

| | |
|---|---|
| architecture | `LlamaForCausalLM`: 3 layers, hidden 512, feed-forward 1024, 8 heads of 64, 4 key-value heads, rope theta 10000, tied embeddings |
| parameters | {parameters:,} in bfloat16 |
| tokenizer | byte-level BPE, {vocabulary_size:,} tokens, GPT-2's split pattern; no BOS is added. Texts were packed with `<|endoftext|>` (BOS and EOS) between |
| context | {context} tokens |
| training | {tokens_seen:,} tokens ({tokens_per_parameter} per parameter), {steps:,} steps, {minutes} minutes on a CPU; Muon and AdamW, cosine to zero |
| held-out text | perplexity {test_perplexity} per token, {test_bits_per_byte} bits per byte |

The held-out text is {test_tokens:,} tokens ({test_utf8_bytes:,} bytes) of documents that were not trained on, packed in the
same way and read in windows of {context} tokens that do not overlap; {test_nats_per_token} ± {test_standard_error} nats per token
(standard error over windows), bfloat16 weights computed in float32. `training.json` holds the same numbers.

## Training text

36 MB of technical English, split by document into train, valid and test:

| source | licence |
|---|---|
| [Rust RFCs](https://github.com/rust-lang/rfcs) and [The Rust Programming Language](https://github.com/rust-lang/book) | MIT or Apache-2.0 |
| [Python Enhancement Proposals](https://github.com/python/peps) | public domain or CC0-1.0 |
| [Ethereum Improvement Proposals](https://github.com/ethereum/EIPs) | CC0-1.0 |
| [React documentation](https://github.com/reactjs/react.dev), by Meta Platforms, Inc. and its contributors | [CC-BY-4.0](https://creativecommons.org/licenses/by/4.0/); text was tokenized, not otherwise changed |
| [Laravel documentation](https://github.com/laravel/docs) | MIT |

None of this text is redistributed. `sample.txt` was written by the model itself (temperature 1) and repeats no passage of
{overlap_tokens} tokens of its training text; the demo calibrates on it.

## Limits

A test model. It writes what looks like documentation and means nothing; it knows no facts and follows no instructions.
`<|im_start|>`, `<|im_end|>` and the ChatML template are there so that chat tools can be tried; no chat was trained.
It is far from fully trained ({tokens_per_parameter} tokens per parameter, where 20 are customary), and such models lose less when
quantized. What a method gains or loses here shows its direction, not what it does to a large model, whose weights and
activations have outliers that this one lacks.
"""  # noqa: E501 (Markdown tables)

TokenArray = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """What a person may choose; the architecture is fixed."""

    minutes: float
    batch_size: int
    muon_learning_rate: float
    adamw_learning_rate: float
    seed: int
    shape: str
    compiles: bool


@dataclass(slots=True)
class Progress:
    """How far a run has come; saved in each checkpoint."""

    step: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean loss in nats over all tokens of a text, its standard error over windows, and the size of the text."""

    nats_per_token: float
    standard_error: float
    tokens: int
    utf8_bytes: int

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers."""
        return self.nats_per_token * self.tokens / math.log(2) / self.utf8_bytes


def main() -> None:
    """Do what the command line asks: everything, or one of the last two stages."""
    arguments = parse_arguments()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    does_everything = not (arguments.evaluate or arguments.sample)
    if does_everything:
        options = TrainingOptions(
            minutes=arguments.minutes,
            batch_size=arguments.batch_size,
            muon_learning_rate=arguments.muon_learning_rate,
            adamw_learning_rate=arguments.adamw_learning_rate,
            seed=arguments.seed,
            shape=arguments.shape,
            compiles=arguments.compile,
        )
        train(arguments.data, arguments.work, arguments.out, options)
    if arguments.shape != "gulliver":
        return
    if does_everything or arguments.evaluate:
        evaluate_export(arguments.data, arguments.out)
    if does_everything or arguments.sample:
        write_sample(arguments.data, arguments.work, arguments.out, arguments.seed)


def parse_arguments() -> argparse.Namespace:
    """Exits with a message where the data are not there, before an hour is spent."""
    parser = argparse.ArgumentParser(description="Train the built-in demo model of lilliput.")
    parser.add_argument("--data", type=Path, required=True, help="folder of {train,valid,test}.jsonl.gz")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "src/lilliput/models/gulliver", help="exported folder")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build/gulliver", help="checkpoints and token cache")
    parser.add_argument("--minutes", type=float, default=90.0, help="training time; the learning rate follows it")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch-size", type=int, default=8, help=f"windows of {CONTEXT} tokens a step")
    parser.add_argument("--muon-learning-rate", type=float, default=4e-3, help="for the hidden matrices")
    parser.add_argument("--adamw-learning-rate", type=float, default=2e-3, help="for the embedding and the norms")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="gulliver", help="the architecture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile: a minute at the start, then faster")
    parser.add_argument("--evaluate", action="store_true", help="only evaluate the exported model")
    parser.add_argument("--sample", action="store_true", help="only write sample.txt from the exported model")
    arguments = parser.parse_args()
    for name in ("train", "valid", "test"):
        if not (arguments.data / f"{name}.jsonl.gz").is_file():
            parser.error(f"{arguments.data} has no {name}.jsonl.gz; --data must hold train, valid and test")
    return arguments


# Training


def train(data: Path, work: Path, out: Path, options: TrainingOptions) -> None:
    """Train until the minutes are spent, continuing from a checkpoint in `work` if there is one; export to `out`."""
    tokenizer = load_or_train_tokenizer(data, work)
    stream = load_or_encode_stream(data, work, tokenizer, "train")
    validation_stream = load_or_encode_stream(data, work, tokenizer, "valid")[: VALIDATION_WINDOWS * CONTEXT + 1]
    torch.manual_seed(options.seed)
    model = AutoModelForCausalLM.from_config(SHAPES[options.shape]())
    optimizers = build_optimizers(model, options)
    checkpoint_path = work / "checkpoint.pt"
    progress = load_checkpoint_(checkpoint_path, model, optimizers)
    LOG.info("%d parameters, %d training tokens", count_parameters(model), len(stream))

    step_loss = torch.compile(language_model_loss) if options.compiles else language_model_loss
    budget = options.minutes * 60
    started = time.monotonic() - progress.seconds
    last_checkpoint = last_export = progress.seconds
    speedometer = Speedometer(progress)
    for batch in iterate_batches(stream, options, first_step=progress.step):
        set_learning_rates_(optimizers, progress, budget)
        loss = step_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        progress.step += 1
        progress.tokens_seen += batch[:, 1:].numel()
        progress.seconds = time.monotonic() - started
        speedometer.record(progress, loss.item())
        is_finished = progress.seconds >= budget
        if is_finished or progress.seconds - last_checkpoint >= CHECKPOINT_SECONDS:
            save_checkpoint(checkpoint_path, model, optimizers, progress)
            last_checkpoint = progress.seconds
        if is_finished or progress.seconds - last_export >= EXPORT_SECONDS:
            validation = evaluate_stream(model, validation_stream, utf8_bytes=1)
            LOG.info("exporting; perplexity on the start of valid: %.2f", validation.perplexity)
            export_model(model, tokenizer, out, progress, options)
            last_export = progress.seconds
        if is_finished:
            return


class Speedometer:
    """Logs mean loss and tokens per second every LOG_STEPS steps."""

    def __init__(self, progress: Progress) -> None:
        self.losses: list[float] = []
        self.tokens_seen, self.seconds = progress.tokens_seen, progress.seconds

    def record(self, progress: Progress, loss: float) -> None:
        """Note one step's loss in nats per token; log when LOG_STEPS have come together."""
        self.losses.append(loss)
        if len(self.losses) < LOG_STEPS:
            return
        speed = (progress.tokens_seen - self.tokens_seen) / (progress.seconds - self.seconds)
        millions, minutes, mean_loss = progress.tokens_seen / 1e6, progress.seconds / 60, np.mean(self.losses)
        message = "step %d  %.3fM tokens  loss %.3f  %.0f tokens/s  %.1f min"
        LOG.info(message, progress.step, millions, mean_loss, speed, minutes)
        self.losses.clear()
        self.tokens_seen, self.seconds = progress.tokens_seen, progress.seconds


def gulliver_config() -> PretrainedConfig:
    """The fixed architecture."""
    return LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        attn_implementation="sdpa",
    )


def blefuscu_config() -> PretrainedConfig:
    """Across the channel from Gulliver's: Qwen3, deeper and narrower, embedding and output head apart."""
    return Qwen3Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        attn_implementation="sdpa",
    )


SHAPES: dict[str, Callable[[], PretrainedConfig]] = {"gulliver": gulliver_config, "blefuscu": blefuscu_config}


def language_model_loss(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """Mean nats per token of batch [windows, CONTEXT + 1], computed in bfloat16.

    Measured 2026-11 on AVX-512 BF16: matrix products of these shapes run at 200 GFLOP/s, in float32 at 75.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def build_optimizers(model: PreTrainedModel, options: TrainingOptions) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of the layers, AdamW for the tied embedding and the norms."""
    hidden = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    hidden_ids = {id(parameter) for parameter in hidden}
    others = [parameter for parameter in model.parameters() if id(parameter) not in hidden_ids]
    muon = torch.optim.Muon(
        hidden, lr=options.muon_learning_rate, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=options.adamw_learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return muon, adamw


def set_learning_rates_(
    optimizers: tuple[torch.optim.Optimizer, ...], progress: Progress, budget_seconds: float
) -> None:
    """Warm up by steps, then follow half a cosine of the clock down to zero."""
    spent = min(1.0, progress.seconds / budget_seconds)
    factor = min(1.0, (progress.step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * spent))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def iterate_batches(stream: TokenArray, options: TrainingOptions, *, first_step: int) -> Iterator[torch.Tensor]:
    """Yield [batch_size, CONTEXT + 1] int64 windows of the packed stream, each epoch in an order of its own."""
    steps_per_epoch = (len(stream) - 1) // CONTEXT // options.batch_size
    epoch, step_in_epoch = divmod(first_step, steps_per_epoch)
    while True:
        order = np.random.default_rng([options.seed, epoch]).permutation((len(stream) - 1) // CONTEXT)
        for step in range(step_in_epoch, steps_per_epoch):
            starts = order[step * options.batch_size : (step + 1) * options.batch_size] * CONTEXT
            windows = np.stack([stream[start : start + CONTEXT + 1] for start in starts])
            yield torch.from_numpy(windows.astype(np.int64))
        epoch, step_in_epoch = epoch + 1, 0


def save_checkpoint(
    path: Path, model: PreTrainedModel, optimizers: tuple[torch.optim.Optimizer, ...], progress: Progress
) -> None:
    """Write beside `path` and rename, so that a kill at any moment leaves a whole checkpoint."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(
            {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "progress": asdict(progress),
            },
            file,
        )
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint_(path: Path, model: PreTrainedModel, optimizers: tuple[torch.optim.Optimizer, ...]) -> Progress:
    """Restore model and optimizers in place; a run without a checkpoint starts at zero."""
    if not path.exists():
        return Progress()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(optimizer_state)
    progress = Progress(**state["progress"])
    LOG.info("continuing at step %d", progress.step)
    return progress


# Text and tokens


def read_documents(data: Path, name: str) -> list[str]:
    """The texts of `<name>.jsonl.gz`, in the order of the file."""
    with gzip.open(data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def load_or_train_tokenizer(data: Path, work: Path) -> Tokenizer:
    """Byte-level BPE with GPT-2's split pattern, which llama.cpp knows as pre-tokenizer `gpt-2`; no normalizer."""
    path = work / "tokenizer.json"
    if not path.exists():
        LOG.info("training the tokenizer")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(read_documents(data, "train"), trainer)
        tokenizer.save(str(path))
    return Tokenizer.from_file(str(path))


def load_or_encode_stream(data: Path, work: Path, tokenizer: Tokenizer, name: str) -> TokenArray:
    """The documents of one file as encode_documents packs them, kept in `work` for the next start."""
    path = work / f"{name}.npy"
    if not path.exists():
        LOG.info("encoding %s", name)
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.save(file, encode_documents(tokenizer, read_documents(data, name)))
        temporary.replace(path)
    stream: TokenArray = np.load(path)
    return stream


def encode_documents(tokenizer: Tokenizer, documents: list[str]) -> TokenArray:
    """One stream of ids with END_OF_TEXT before, between and after the documents."""
    ids = [END_OF_TEXT]
    for encoding in tokenizer.encode_batch(documents, add_special_tokens=False):
        ids += encoding.ids
        ids.append(END_OF_TEXT)
    return np.array(ids, dtype=np.uint16)


# Evaluation


@torch.no_grad()
def evaluate_stream(model: PreTrainedModel, stream: TokenArray, *, utf8_bytes: int) -> Evaluation:
    """Loss over a packed stream in windows of CONTEXT that do not overlap; every token but the first is predicted."""
    window_nats, window_tokens = [], []
    for start in range(0, len(stream) - 1, CONTEXT):
        window = torch.from_numpy(stream[start : start + CONTEXT + 1].astype(np.int64))
        logits = model(input_ids=window[None, :-1], use_cache=False).logits[0].float()
        window_nats.append(functional.cross_entropy(logits, window[1:], reduction="sum").item())
        window_tokens.append(len(window) - 1)
    tokens = sum(window_tokens)
    mean = sum(window_nats) / tokens
    residuals = np.array(window_nats) - mean * np.array(window_tokens)
    return Evaluation(
        nats_per_token=mean,
        standard_error=float(np.sqrt(np.sum(residuals**2))) / tokens,
        tokens=tokens,
        utf8_bytes=utf8_bytes,
    )


def evaluate_export(data: Path, out: Path) -> None:
    """Measure the exported bfloat16 weights on all of `test`, in float32; write training.json and the card."""
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    documents = read_documents(data, "test")
    result = evaluate_stream(
        model,
        encode_documents(tokenizer, documents),
        utf8_bytes=sum(len(document.encode()) for document in documents),
    )
    record = json.loads((out / "training.json").read_text(encoding="utf-8"))
    record["test"] = {
        "perplexity": round(result.perplexity, 3),
        "bits_per_byte": round(result.bits_per_byte, 4),
        "nats_per_token": round(result.nats_per_token, 5),
        "standard_error": round(result.standard_error, 5),
        "tokens": result.tokens,
        "utf8_bytes": result.utf8_bytes,
    }
    LOG.info("test: %s", record["test"])
    write_json(out / "training.json", record)
    (out / "README.md").write_text(model_card(record), encoding="utf-8")


# Sampling


def write_sample(data: Path, work: Path, out: Path, seed: int) -> None:
    """Write `sample.txt`: the model's own text, on which the demo calibrates, so that no one's text is redistributed.

    Ancestral sampling at temperature 1 from `<|endoftext|>`. A piece is dropped when it repeats OVERLAP_TOKENS tokens
    of the training text word for word, or when it holds broken UTF-8. The file has SAMPLE_BYTES bytes or a few less.
    """
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    training_stream = load_or_encode_stream(data, work, tokenizer, "train")
    pieces: list[str] = []
    while len("\n\n".join(pieces).encode()) < SAMPLE_BYTES:
        seed += 1
        candidates = generate_pieces(model, tokenizer, seed=seed)
        whole = [piece for piece in candidates if "\ufffd" not in piece]
        copied = find_copied(tokenizer, whole, training_stream)
        LOG.info("%d pieces: %d broken, %d copied", len(candidates), len(candidates) - len(whole), len(copied))
        pieces += [piece for index, piece in enumerate(whole) if index not in copied]
    text = "\n\n".join(pieces).encode()[:SAMPLE_BYTES].decode(errors="ignore")
    if find_copied(tokenizer, [text], training_stream):
        raise SystemExit("sample.txt: joining the pieces made a passage of the training text; use another --seed")
    (out / "sample.txt").write_text(text, encoding="utf-8")
    LOG.info("sample.txt: %d bytes", len(text.encode()))


def generate_pieces(model: PreTrainedModel, tokenizer: Tokenizer, *, seed: int, n_pieces: int = 32) -> list[str]:
    """Up to CONTEXT tokens each; shorter where the model ended its text."""
    torch.manual_seed(seed)
    prompt = torch.full((n_pieces, 1), END_OF_TEXT)
    generated = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_length=CONTEXT,
        pad_token_id=END_OF_TEXT,
        suppress_tokens=[IM_START, IM_END],
    )
    return tokenizer.decode_batch(generated.tolist(), skip_special_tokens=True)


def find_copied(tokenizer: Tokenizer, pieces: list[str], training_stream: TokenArray) -> set[int]:
    """Which pieces share a run of OVERLAP_TOKENS tokens with the training text."""
    owners: dict[bytes, set[int]] = {}
    run_bytes = OVERLAP_TOKENS * training_stream.itemsize
    for index, piece in enumerate(pieces):
        ids = np.array(tokenizer.encode(piece, add_special_tokens=False).ids, dtype=np.uint16).tobytes()
        for start in range(0, len(ids) - run_bytes + 1, training_stream.itemsize):
            owners.setdefault(ids[start : start + run_bytes], set()).add(index)
    haystack = training_stream.tobytes()
    copied: set[int] = set()
    for start in range(0, len(haystack) - run_bytes + 1, training_stream.itemsize):
        copied |= owners.get(haystack[start : start + run_bytes], frozenset())
    return copied


# Export


def export_model(
    model: PreTrainedModel, tokenizer: Tokenizer, out: Path, progress: Progress, options: TrainingOptions
) -> None:
    """Write the Hugging Face folder; each file appears whole, so that others may read it while training goes on."""
    copy = AutoModelForCausalLM.from_config(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16)
    copy.generation_config = GenerationConfig(bos_token_id=END_OF_TEXT, eos_token_id=END_OF_TEXT)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary_name:
        temporary = Path(temporary_name)
        copy.save_pretrained(temporary)
        write_config_for_old_readers(temporary / "config.json")
        tokenizer.save(str(temporary / "tokenizer.json"))
        write_json(temporary / "tokenizer_config.json", tokenizer_config())
        write_json(
            temporary / "special_tokens_map.json",
            {"bos_token": SPECIAL_TOKENS[END_OF_TEXT], "eos_token": SPECIAL_TOKENS[END_OF_TEXT]},
        )
        write_json(temporary / "training.json", training_record(model, progress, options))
        for file in temporary.iterdir():
            file.chmod(0o644)
            file.replace(out / file.name)


def write_config_for_old_readers(path: Path) -> None:
    """Repeat in `config.json` what transformers 5 renamed, under the names that earlier readers look for."""
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**config, "torch_dtype": "bfloat16", "rope_theta": 10000.0})


def tokenizer_config() -> dict[str, object]:
    """`tokenizer_config.json` by hand: save_pretrained names a class that only transformers 5 knows."""
    added = {
        str(index): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for index, token in enumerate(SPECIAL_TOKENS)
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": SPECIAL_TOKENS[END_OF_TEXT],
        "eos_token": SPECIAL_TOKENS[END_OF_TEXT],
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "chat_template": CHAT_TEMPLATE,
    }


def training_record(model: PreTrainedModel, progress: Progress, options: TrainingOptions) -> dict[str, object]:
    """The content of training.json; evaluate_export adds `test`."""
    parameters = count_parameters(model)
    return {
        "parameters": parameters,
        "tokens_seen": progress.tokens_seen,
        "tokens_per_parameter": round(progress.tokens_seen / parameters, 3),
        "steps": progress.step,
        "minutes": round(progress.seconds / 60, 1),
        "is_finished": progress.seconds >= options.minutes * 60,
        "options": asdict(options),
    }


def count_parameters(model: PreTrainedModel) -> int:
    """Tied weights count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def model_card(record: dict[str, Any]) -> str:
    """The README.md of the exported folder; `record` is the content of training.json."""
    test = {f"test_{name}": value for name, value in record["test"].items()}
    constants = {"context": CONTEXT, "vocabulary_size": VOCABULARY_SIZE, "overlap_tokens": OVERLAP_TOKENS}
    return MODEL_CARD.format(**record, **test, **constants)


def write_json(path: Path, value: object) -> None:
    """Indented, so that a diff shows what changed."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
