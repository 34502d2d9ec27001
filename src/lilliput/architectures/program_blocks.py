# SPDX-License-Identifier: Apache-2.0
"""A Program cut at its blocks: what comes before the first, each block, and what comes after the last."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from lilliput.architectures.program import Experts, Linear, Operation, Program
from lilliput.errors import UnsupportedModelError

_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Operations between two places where one buffer alone is alive: `reads` before them, `gives` after."""

    operations: tuple[Operation, ...]
    reads: str
    gives: str


@dataclass(frozen=True, slots=True)
class ProgramBlocks:
    """first: makes the stream from tokens.  last: from the stream to the input of the head.

    head: the linear that makes the logits, and what follows it; nothing for encoders without one.
    """

    first: tuple[Operation, ...]
    stream: str
    blocks: tuple[Stretch, ...]
    last: Stretch
    head: tuple[Operation, ...]


def program_blocks(program: Program) -> ProgramBlocks:
    """Cut where the first tensor of a block is named; operations without tensors stay where the one before them is.

    Raises UnsupportedModelError where more than one buffer crosses a cut.
    """
    stretches: list[list[Operation]] = [[]]
    block = -1
    for operation in program.operations:
        name = getattr(operation, "weight", None)
        found = _BLOCK.match(name) if name is not None else None
        if found and int(found[1]) == block + 1:
            block += 1
            stretches.append([])
        elif name is not None and found is None and block >= 0 and len(stretches) == block + 2:
            stretches.append([])
        stretches[-1].append(operation)
    first, middle = stretches[0], stretches[1 : block + 2]
    # An encoder may end with its last block.
    end = stretches[-1] if len(stretches) > block + 2 else []
    # What the head reads ends the last stretch, so that it can be looked at.
    place = max((index for index, each in enumerate(end) if isinstance(each, Linear)), default=len(end))
    last, head = end[:place], end[place:]
    names = [_sole_input(operations, program) for operations in middle]
    result = _sole_input(head[:1], program) if head else program.output
    # An empty last stretch passes the stream on.
    names += [_sole_input(last, program) if last else result, result]
    blocks = tuple(
        Stretch(tuple(operations), reads, gives)
        for operations, reads, gives in zip(middle, names, names[1:], strict=False)
    )
    return ProgramBlocks(tuple(first), names[0], blocks, Stretch(tuple(last), names[-2], names[-1]), tuple(head))


def named_tensors(operations: Iterable[Operation]) -> tuple[str, ...]:
    """Weights and biases, each once, in the order of their first use."""
    names: dict[str, None] = {}
    for operation in operations:
        parts = ("gate", "up", "down") if isinstance(operation, Experts) else ("weight", "bias")
        names |= dict.fromkeys(name for part in parts if (name := getattr(operation, part, None)) is not None)
    return tuple(names)


def _sole_input(operations: Sequence[Operation], program: Program) -> str:
    """The one buffer that these operations read before they write it."""
    written: set[str] = set()
    read: dict[str, None] = {}
    for operation in operations:
        for part in fields(operation):
            word = getattr(operation, part.name)
            if part.name != "out" and isinstance(word, str) and word in program.buffers and word not in written:
                read[word] = None
        written.add(str(getattr(operation, "out", "")))
    if len(read) != 1:
        raise UnsupportedModelError(
            f"the model's blocks are not a chain: {', '.join(read)} reach {operations[0]} together; "
            "it can be quantized without input statistics only"
        )
    return next(iter(read))
