# SPDX-License-Identifier: Apache-2.0
"""Every tensor of a file beside its original, and pictures of the few that tell most."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from lilliput.checkpoints.model_source import ModelSource
from lilliput.evaluation.weight_views import picture, relative_error
from lilliput.recipes.ledger import Ledger, LedgerEntry
from lilliput.reports.records import TensorRow, WeightPicture

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
EMBEDDING = "token_embd.weight"
# An error so many times the recorded one is against other weights; sampling alone moves it by a few percent.
REWRITTEN_RATIO = 1.5


def tensor_rows(
    original: ModelSource, quantized: ModelSource, ledger: Ledger | None, sensitivity: Mapping[str, float]
) -> tuple[TensorRow, ...]:
    """One row a tensor of `quantized`, in file order.

    Errors are those of the ledger; where it has none, the relative error of a matrix is computed.
    sensitivity: KL that single tensors add, by canonical name.
    """
    entries = {entry.name: entry for entry in ledger.entries} if ledger is not None else {}
    rows = []
    for name, header in quantized.headers.items():
        found = _BLOCK.fullmatch(name)
        row = TensorRow(
            name=name,
            layer=int(found[1]) if found else None,
            part=(found[2] if found else name).removesuffix(".weight"),
            shape=header.shape,
            format=header.format.name.upper(),
            bits_per_weight=8 * header.nbytes / max(header.rows * header.columns, 1),
            bytes=header.nbytes,
            method="",
            sensitivity=sensitivity.get(name),
        )
        rows.append(_with_errors(row, entries.get(name), original, quantized))
    return tuple(rows)


def _with_errors(row: TensorRow, entry: LedgerEntry | None, original: ModelSource, quantized: ModelSource) -> TensorRow:
    error = entry.relative_error if entry is not None else None
    if error is None and row.is_matrix and _is_same_shape(row, original):
        error = relative_error(original.tensor(row.name), quantized.tensor(row.name))
        original.release(row.name)
        quantized.release(row.name)
    if entry is None:
        return replace(row, relative_error=error)
    return replace(row, method=entry.method, relative_error=error, weighted_error=entry.weighted_error)


def pictures(
    original: ModelSource, quantized: ModelSource, rows: tuple[TensorRow, ...], *, is_rewritten: bool = False
) -> tuple[WeightPicture, ...]:
    """The matrix of largest error, the one of median error, and the token embedding.

    is_rewritten: transforms changed weights before they were rounded; those cannot be laid over the original's.
    """
    known = [row for row in rows if row.is_matrix and row.relative_error is not None and _is_same_shape(row, original)]
    if is_rewritten:
        known = [row for row in known if _is_as_recorded(row, original, quantized)]
    ranked = sorted(known, key=lambda row: row.relative_error or 0.0)
    if not ranked:
        return ()
    in_layers = [row for row in ranked if row.layer is not None] or ranked
    chosen = {
        ranked[-1].name: ("largest error", ranked[-1]),
        in_layers[(len(in_layers) - 1) // 2].name: ("typical", in_layers[(len(in_layers) - 1) // 2]),
    }
    embedding = next((row for row in known if row.name == EMBEDDING), None)
    if embedding is not None:
        chosen.setdefault(EMBEDDING, ("token embedding", embedding))
    found = []
    for name, (why, row) in chosen.items():
        error = row.relative_error or 0.0
        found.append(picture(original.tensor(name), quantized.tensor(name), why=why, error=error))
        original.release(name)
        quantized.release(name)
    return tuple(found)


def _is_as_recorded(row: TensorRow, original: ModelSource, quantized: ModelSource) -> bool:
    """Whether stored values are as near to the original's weights as the ledger says they are to what was rounded."""
    error = relative_error(original.tensor(row.name), quantized.tensor(row.name))
    original.release(row.name)
    quantized.release(row.name)
    return error <= REWRITTEN_RATIO * (row.relative_error or 0.0) + 1e-9


def _is_same_shape(row: TensorRow, original: ModelSource) -> bool:
    header = original.headers.get(row.name)
    return header is not None and header.shape == row.shape
