# SPDX-License-Identifier: Apache-2.0
"""What an encoder-decoder's encoder computes for a runtime that has no use for the decoder."""

from __future__ import annotations

from dataclasses import replace

from lilliput.architectures.architecture import Architecture, EncoderDecoder, ModelConfig
from lilliput.architectures.program import Add, Attention, Glu, Operation, Program, Rope


def program_of_fixed_graphs(architecture: Architecture, config: ModelConfig) -> Program:
    """The program; of an encoder-decoder the encoder's, without what it makes for the decoder."""
    if config.task == "sequence_to_sequence" and isinstance(architecture, EncoderDecoder):
        return without_unread(architecture.encoder_program(config))
    return architecture.program(config)


def without_unread(program: Program) -> Program:
    """The same output, without operations that it does not depend on."""
    needed, kept = {program.output}, list[Operation]()
    for operation in reversed(program.operations):
        made = operation.x if isinstance(operation, Rope) else getattr(operation, "out", None)
        if made not in needed:
            continue
        kept.append(operation)
        match operation:
            case Attention():
                needed |= {operation.q, operation.k, operation.v}
            case Glu():
                needed |= {operation.gate, operation.up}
            case Add():
                needed |= {operation.a, operation.b}
            case _:
                needed.add(getattr(operation, "x", program.output))
    return replace(program, operations=tuple(reversed(kept)), shared_states=())


def place(number: int, operation: Operation, part: str = "out") -> str:
    """The name that ranges of an operation's results have: its number in the program, its buffer, and which result."""
    buffer = operation.x if isinstance(operation, Rope) else getattr(operation, "out", "")
    return f"{number}.{buffer}.{part}"
