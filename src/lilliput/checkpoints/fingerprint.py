# SPDX-License-Identifier: Apache-2.0
"""One hash that says whether two opened models are the same, whatever they travelled in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import numpy as np

from lilliput.arrays import Array
from lilliput.checkpoints.mapped_file import update_digest
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import TokenizerError
from lilliput.records import QuantizedTensor


def model_fingerprint(source: ModelSource) -> str:
    """sha256 hex over config, vocabulary, tensor headers and every stored byte. Reads all tensors once."""
    digest = hashlib.sha256(json.dumps(asdict(source.config), sort_keys=True, default=list).encode())
    try:
        digest.update(json.dumps(asdict(source.vocabulary()), sort_keys=True).encode())
    except TokenizerError:
        digest.update(b"no vocabulary")
    for name, header in source.headers.items():
        digest.update(f"{name} {header.format.name} {list(header.shape)}\n".encode())
        update_tensor_digest(digest, source.tensor(name))
        source.release(name)
    return digest.hexdigest()


def tensor_digest(tensor: QuantizedTensor) -> str:
    """sha256 hex of a tensor's stored bytes, planes then sidecars, each by name."""
    digest = hashlib.sha256()
    update_tensor_digest(digest, tensor)
    return digest.hexdigest()


def update_tensor_digest(digest: hashlib._Hash, tensor: QuantizedTensor) -> None:
    """Feed every plane and sidecar, with its name and dtype, to a hash."""
    for arrays in (tensor.planes, tensor.sidecars):
        for name in sorted(arrays):
            array = np.asarray(arrays[name])
            digest.update(f"{name} {array.dtype.str} {list(array.shape)}\n".encode())
            update_digest(digest, bytes_of(array))


def bytes_of(array: Array) -> Array:
    """An array's bytes in C order: uint8 [n]; a view where it already lies so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
