# SPDX-License-Identifier: Apache-2.0
"""What generation_config.json says about the answers of an encoder-decoder; it goes before config.json."""

from __future__ import annotations

from pathlib import Path

from lilliput.architectures.architecture import Json
from lilliput.checkpoints.shards import read_json

KEYS = (
    "decoder_start_token_id",
    "bos_token_id",
    "eos_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "suppress_tokens",
)


def described_answers(folder: Path) -> dict[str, Json]:
    """Those fields of generation_config.json, null where it leaves them out; empty where there is no such file."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return {}
    described = read_json(file)
    return {key: described.get(key) for key in KEYS}  # type: ignore[misc]
