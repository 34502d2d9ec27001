# SPDX-License-Identifier: Apache-2.0
"""Recognize a pre-tokenizer by what it does, so that a fine-tune is never refused.

A tokenizer.json spells its split rules out; a GGUF only names them. Comparing a hash of some encoding finds the name
for the original model alone, since one added token or a pruned vocabulary changes it. Here every known set of rules is
run on probing texts with the model's own tokens and merges, and the name whose encodings are the same is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import pre_tokenizers

from lilliput.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from lilliput.text.probes import PROBES

Pieces = list[tuple[str, tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Recognition:
    """name: what to write as `tokenizer.ggml.pre`.  probes: texts tried.

    different_encodings: probes whose token ids differ from the model's own.
    different_splits: probes cut differently, whether or not the ids show it.
    """

    name: str
    probes: int
    different_encodings: int
    different_splits: int

    @property
    def is_exact(self) -> bool:
        """Whether every probe is encoded as by the model's own tokenizer."""
        return self.different_encodings == 0


def recognize(
    huggingface: RustTokenizer, core: RustTokenizer, *, ignores_merges: bool, probes: Sequence[str] = PROBES
) -> Recognition:
    """Find the known rules that behave like `huggingface`'s; the nearest ones where none behave alike.

    core: the same tokens and merges without rules (`byte_level_bpe.build_core`); its rules are replaced as we go.
    ignores_merges: as the tokenizer.json's model says; decides between rules that behave alike.
    """
    # The model's own rules on the same core: added tokens and normalizers, which act before any rule, stay out of it.
    _set_rules(core, huggingface.pre_tokenizer, ignores_merges=ignores_merges)
    encodings = [_ids(core, text) for text in probes]
    splits = [_pieces(huggingface, text) for text in probes]

    def judge(rules: PreTokenizer) -> tuple[int, int, bool]:
        _set_rules(core, rules.build(), ignores_merges=rules.ignores_merges)
        wrong_ids = sum(_ids(core, text) != ids for text, ids in zip(probes, encodings, strict=True))
        wrong_splits = sum(_pieces(core, text) != pieces for text, pieces in zip(probes, splits, strict=True))
        return wrong_ids, wrong_splits, rules.ignores_merges != ignores_merges

    judged = [(judge(rules), rules) for rules in PRE_TOKENIZERS]
    (wrong_ids, wrong_splits, _), rules = min(judged, key=lambda entry: entry[0])
    return Recognition(rules.name, len(probes), wrong_ids, wrong_splits)


def _set_rules(core: RustTokenizer, rules: pre_tokenizers.PreTokenizer | None, *, ignores_merges: bool) -> None:
    core.pre_tokenizer = rules
    core.model.ignore_merges = ignores_merges
    # Remembered words were merged under the other setting.
    core.model._clear_cache()


def _ids(tokenizer: RustTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _pieces(tokenizer: RustTokenizer, text: str) -> Pieces:
    if tokenizer.pre_tokenizer is None:
        return [(text, (0, len(text)))]
    pieces: Pieces = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return pieces
