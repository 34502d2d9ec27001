# SPDX-License-Identifier: Apache-2.0
"""What quantization costs encoders and encoder-decoders, and how large their files become.

    python benchmarks/sequence_quality.py vectors MODEL --text FILE [--calibrate FILE] [--to Q8_0,INT8_CHANNEL,Q4_K_M]
    python benchmarks/sequence_quality.py spelling FOLDER [--to INT8_CHANNEL,INT6_G32,INT5_G32,INT4_G32] [--words 200]
    python benchmarks/sequence_quality.py sizes [--to INT8_CHANNEL,Q8_0]

`vectors` takes a folder of sentence-transformers (MiniLM, say): mean cosine to the float model's vectors and Spearman's
correlation of the similarities of all pairs, on one sentence in eight of the text; --calibrate makes a second file of
each kind, its codes chosen with feedback on another text.  `spelling` takes Misaki's G2P BART, which writes words as
phonemes, with its lexicon: exact words, and KL per token along the float model's answers; calibrated on other words.
`sizes` makes a random BERT of base shape and tells the bytes of the file over its float32 bytes.
A line of JSON for each file is printed and, with --out, appended.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import quality_results

import lilliput
from lilliput import workflows
from lilliput.calibration.pair_inputs import Pair
from lilliput.checkpoints.model_source import ModelSource
from lilliput.evaluation.sequences import AnswerScores, Measured, Sample, VectorScores, measure
from lilliput.pipeline.quantize_pairs import quantize_pairs
from lilliput.recipes.plan import resolve
from lilliput.records import QuantizedTensor
from lilliput.runtime.session import EngineOptions
from lilliput.text.tokenizer import Tokenizer

EXACT = EngineOptions(threads=1, activations="f32", kv_format="f32")
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n\n+")
CALIBRATION_WORDS = 600


def run_vectors(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Subcommand `vectors`."""
    with workflows.opened(options.model) as source, tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer(source.vocabulary())
        sentences = [s.strip() for s in SENTENCE.split(options.text.read_text()) if 30 < len(s) < 400]
        samples = [Sample(tokenizer.encode(s, add_special=True)) for s in sentences[: 8 * options.sentences : 8]]
        base = measure(source, samples, EXACT)
        texts = [None] if options.calibrate is None else [None, options.calibrate]
        for kind, text in product(options.to.split(","), texts):
            file = _quantized(options.model, kind, Path(folder), text, options.tokens)
            for arithmetic in (EXACT, EngineOptions(threads=1)):
                scores = _compared(base, file, samples, arithmetic)
                assert isinstance(scores, VectorScores)
                yield _line(
                    "vectors", options.model.name, kind, file, activations=arithmetic.activations, texts=len(samples),
                    method="searched_scales" if text is None else "feedback", mean_cosine=scores.cosine.value,
                    mean_cosine_stderr=scores.cosine.stderr, lowest_cosine=scores.lowest_cosine,
                    spearman=scores.spearman,
                )  # fmt: skip


def run_spelling(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Subcommand `spelling`. Words are drawn with seed 1: the 5,000th and on are measured, the first calibrate."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "misaki"
        folder.mkdir()
        (folder / "model.safetensors").symlink_to((options.folder / "us_bart.safetensors").resolve())
        (folder / "config.json").symlink_to((options.folder / "us_bart_config.json").resolve())
        words = _spelled_words(options.folder)
        samples = [Sample(text, wanted=wanted) for text, wanted in words[5000 : 5000 + options.words]]
        pairs = [Pair(text, wanted) for text, wanted in words[:CALIBRATION_WORDS]]
        with workflows.opened(folder) as source:
            base = measure(source, samples, EXACT)
            own = base.compared(base)
            assert isinstance(own, AnswerScores)
            yield _line("spelling", options.folder.name, "F32", folder / "model.safetensors", **_answers(own, samples))
            for kind in options.to.split(","):
                file = _quantized(folder, kind, Path(name), None, None)
                yield _line(
                    "spelling", options.folder.name, kind, file, method="searched_scales",
                    **_answers(_compared(base, file, samples, EXACT), samples),
                )  # fmt: skip
                fitted = _Fitted(source, kind, pairs)
                scores = base.compared(measure(fitted, samples, EXACT, base))  # type: ignore[arg-type]
                yield _line("spelling", options.folder.name, kind, file, method="feedback", **_answers(scores, samples))


def run_sizes(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Subcommand `sizes`. The tokenizer counts: 30,522 words of seven letters on the average."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bert-base"
        torch.manual_seed(0)
        transformers.BertModel(transformers.BertConfig()).save_pretrained(folder)
        _write_vocabulary(folder, 30522)
        floats = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        for kind in options.to.split(","):
            file = _quantized(folder, kind, Path(name), None, None)
            size = file.stat().st_size
            yield _line("sizes", "BERT base, random", kind, file, float32_bytes=floats, share=size / floats)


class _Fitted:
    """The model with its linear layers fitted to pairs of texts and answers."""

    def __init__(self, source: ModelSource, kind: str, pairs: list[Pair]) -> None:
        plan = resolve(source, kind, statistics_present=True, method="feedback")
        self._done: dict[str, QuantizedTensor] = {
            name: tensor for name, (tensor, _) in quantize_pairs(source, plan, pairs, threads=1).items()
        }
        self._source = source
        self.path, self.config, self.architecture = source.path, source.config, source.architecture
        self.weight_files: tuple[Path, ...] = ()

    def tensor(self, name: str) -> QuantizedTensor:
        """One tensor."""
        return self._done[name] if name in self._done else self._source.tensor(name)


def _quantized(model: Path, kind: str, folder: Path, text: Path | None, tokens: int | None) -> Path:
    """A GGUF where the type has a place there and the model too, otherwise our own layout."""
    base = model.name if text is None else f"{model.name}-calibrated"
    guidance = workflows.Guidance(text=(text,)) if text is not None else None
    options = workflows.QuantizeOptions(threads=1, tokens=tokens, force=True)
    for suffix in (".gguf", ".safetensors"):
        target = folder / f"{base}-{kind}{suffix}"
        try:
            workflows.quantize(model, kind, target, guidance=guidance, options=options)
        except lilliput.errors.LilliputError:
            if suffix == ".safetensors":
                raise
            continue
        return target
    raise AssertionError


def _compared(base: Measured, file: Path, samples: list[Sample], engine: EngineOptions) -> object:
    with workflows.opened(file) as source:
        return base.compared(measure(source, samples, engine, base))


def _answers(scores: object, samples: list[Sample]) -> dict[str, object]:
    assert isinstance(scores, AnswerScores)
    return {
        "words": len(samples),
        "exact_words": round((scores.wanted or 0.0) * len(samples)),
        "as_float": round(scores.exact * len(samples)),
        "mean_kld": scores.kld.value,
        "mean_kld_stderr": scores.kld.stderr,
        "same_top": scores.same_top,
    }


def _spelled_words(folder: Path) -> list[tuple[list[int], list[int]]]:
    """Tokens of words and of their phonemes: begin, letters, end; an answer starts with the begin token twice."""
    described = json.loads((folder / "us_bart_config.json").read_text())
    letters = {letter: index for index, letter in enumerate(described["grapheme_chars"])}
    phonemes = {sound: index for index, sound in enumerate(described["phoneme_chars"])}
    lexicon = json.loads((folder / "us_gold.json").read_text())
    words = [
        (word, sounds)
        for word, sounds in lexicon.items()
        if isinstance(sounds, str) and word.isascii() and word.isalpha() and len(word) > 2
        and all(sound in phonemes for sound in sounds)
    ]  # fmt: skip
    random.Random(1).shuffle(words)
    return [
        ([1, *(letters.get(letter, 3) for letter in word), 2], [1, 1, *(phonemes[sound] for sound in sounds), 2])
        for word, sounds in words
    ]


def _write_vocabulary(folder: Path, size: int) -> None:
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import models, normalizers, pre_tokenizers, processors

    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    while len(vocabulary) < size:
        vocabulary.setdefault("".join(rng.choice(letters, rng.integers(3, 12))), len(vocabulary))
    tokenizer = RustTokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def _line(what: str, model: str, kind: str, file: Path, **more: object) -> dict[str, object]:
    rounded = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in more.items()}
    return {
        "what": what, "model": model, "type": kind, "container": file.suffix.removeprefix("."),
        "bytes": file.stat().st_size, **rounded, "version": lilliput.__version__, "commit": quality_results.commit(),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    vectors = commands.add_parser("vectors")
    vectors.add_argument("model", type=Path)
    vectors.add_argument("--text", type=Path, required=True)
    vectors.add_argument("--calibrate", type=Path)
    vectors.add_argument("--tokens", type=int, default=8192)
    vectors.add_argument("--sentences", type=int, default=150)
    vectors.add_argument("--to", default="Q8_0,INT8_CHANNEL,Q6_K,Q4_K_M,INT4_G32")
    vectors.set_defaults(run=run_vectors)
    spelling = commands.add_parser("spelling")
    spelling.add_argument("folder", type=Path)
    spelling.add_argument("--words", type=int, default=200)
    spelling.add_argument("--to", default="Q8_0,INT8_CHANNEL,INT6_G32,INT5_G32,INT4_G32")
    spelling.set_defaults(run=run_spelling)
    sizes = commands.add_parser("sizes")
    sizes.add_argument("--to", default="INT8_CHANNEL,Q8_0")
    sizes.set_defaults(run=run_sizes)
    for command in (vectors, spelling, sizes):
        command.add_argument("--out", type=Path, help="file of JSON lines to append to")
    options = parser.parse_args()
    for line in options.run(options):
        print(json.dumps(line), flush=True)
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
