# SPDX-License-Identifier: Apache-2.0
"""What a plan will cost: RAM, disk and time, from headers and the speeds of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lilliput.methods import METHODS
from lilliput.recipes.machine import MachineSpeeds
from lilliput.recipes.plan import Plan, weights_of
from lilliput.records import Role, TensorHeader, TensorPlan
from lilliput.transforms import TRANSFORMS

# Everything but tensors: 81 MB resident after the imports, 91 MB at the peak of runs on models of 9 and 49 million
# weights (2026-11, x86-64, CPython 3.11), rounded up.
PROCESS_BYTES = 95_000_000
# Weights of one slab of the quantize loop, and float32 arrays of that size alive at once in it.
SLAB_WEIGHTS = 1 << 22
SLAB_ARRAYS = 4
# JSON of one ledger entry: 443 bytes on average for Q4_K_M of stories260K, rounded up for longer names.
LEDGER_ENTRY_BYTES = 600
# torch loaded and used, over the rest of the process.
TORCH_BYTES = 150_000_000
FLOAT32_BYTES = 4
BLOCKS = "blk."
# Bytes for each number of a Hessian that is being factorized, and float32 operations for each columns^3 that take as
# long: measured at 8,192 columns.
FACTOR_BYTES, FACTOR_OPERATIONS = 20, 1.0
# The products of attention and its softmax take as long as so many times their operations in a linear layer.
ATTENTION_OPERATIONS = 4.0
# Until a command of ours begins to work, torch aside (Zen 4, 2026-11).
IMPORT_SECONDS = 1.2
# Of the linears that share an input, the one whose plan row stands for it.
FIRST_READERS = (
    Role.ATTENTION_Q,
    Role.ATTENTION_QKV,
    Role.ATTENTION_OUTPUT,
    Role.FFN_GATE,
    Role.FFN_DOWN,
    Role.OUTPUT,
)


@dataclass(frozen=True, slots=True)
class TextWork:
    """What a run does with its text.

    tokens: 0 when it does not calibrate.  chunk: tokens that see each other.  width: numbers of a hidden state.
    passes: of the text through the blocks.  sees_hessians: whether products of all pairs of inputs are summed.
    tuned_epochs: passes of end-to-end tuning.  tuned_bytes_per_weight: memory that this takes.
    """

    tokens: int = 0
    chunk: int = 512
    width: int = 0
    passes: int = 1
    sees_hessians: bool = False
    tuned_epochs: int = 0
    tuned_bytes_per_weight: int = 0


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """What a run will take.

    peak_ram_bytes: of the process, without pages of mapped files: the system takes those back when it needs them.
    disk_bytes: free space needed where the output goes.  seconds: by stage, in order.
    speeds_age: seconds since the oldest speed of the machine that these rest on was measured.  is_busy: one of them
    while the machine had other work.
    """

    peak_ram_bytes: int
    disk_bytes: int
    seconds: Mapping[str, float]
    speeds_age: float = 0.0
    is_busy: bool = False


def estimate(
    plan: Plan,
    headers: Mapping[str, TensorHeader],
    *,
    file_bytes: int,
    speeds: MachineSpeeds,
    text: TextWork | None = None,
) -> CostEstimate:
    """Predict what quantizing will take.

    headers: of the input.  file_bytes: of all output files.  text: None when the run does not calibrate.
    """
    weights = plan.weights
    text = text or TextWork()
    seconds: dict[str, float] = {}
    if text.tokens:
        seconds["start"] = IMPORT_SECONDS + speeds.seconds_to_start()
    seconds["read"] = sum(header.nbytes for header in headers.values()) / speeds.bytes_hashed_per_second()
    if text.tokens:
        seconds["calibrate"] = text_seconds(plan.rows, text, speeds)
    # Every slab is decoded once to float32, and its codes once more to measure their error.
    seconds["quantize"] = 2 * weights / speeds.weights_decoded_per_second()
    seconds["quantize"] += sum(method_seconds(row, headers[row.name], speeds) for row in plan.rows)
    if text.tuned_epochs:
        # The original forward, the quantized model forward and, twice as much, backward.
        seconds["tune"] = 8.0 * weights * text.tokens * text.tuned_epochs / speeds.flops()
    seconds["write"] = file_bytes / speeds.bytes_written_per_second()
    seconds["verify"] = weights / speeds.weights_decoded_per_second()
    tensor = max((_tensor_bytes(row, headers[row.name]) for row in plan.rows), default=0)
    ram = PROCESS_BYTES + max(tensor, _text_bytes(plan.rows, text, tensor) if text.tokens else 0)
    disk = file_bytes + LEDGER_ENTRY_BYTES * len(plan.rows)
    return CostEstimate(ram, disk, seconds, speeds.age_seconds(), speeds.was_busy)


def _text_bytes(rows: Sequence[TensorPlan], text: TextWork, tensor: int) -> int:
    """Memory of a run with text, torch included. tensor: of one tensor under way."""
    blocks = block_bytes(rows, sees_hessians=text.sees_hessians)
    if text.sees_hessians:
        # Slabs of a tensor beside its block; the head and the embedding after all blocks. States lie in a file.
        weights = sum(weights_of(row) for row in rows)
        slabs = min(SLAB_WEIGHTS, max(weights_of(row) for row in rows)) * FLOAT32_BYTES * SLAB_ARRAYS
        return TORCH_BYTES + max(blocks + slabs, tensor) + weights * text.tuned_bytes_per_weight
    return TORCH_BYTES + max(blocks + text.tokens * text.width * FLOAT32_BYTES, tensor)


def text_seconds(rows: Sequence[TensorPlan], text: TextWork, speeds: MachineSpeeds) -> float:
    """Of running the text through the blocks and summing what their linears see."""
    seconds = 0.0
    for row in rows:
        columns = row.shape[-1]
        if not row.name.startswith(BLOCKS) or len(row.shape) < 2:
            continue
        # A multiplication and an addition for each weight and token.
        work = 2.0 * weights_of(row) * text.passes
        if row.role is Role.ATTENTION_OUTPUT:
            # Queries with keys, and weights with values: each token with half of its chunk, on average.
            work += ATTENTION_OPERATIONS * 2.0 * columns * text.chunk * text.passes
        if text.sees_hessians and row.role in FIRST_READERS:
            work += 2.0 * columns**2
        seconds += work * text.tokens / speeds.flops(columns)
    return seconds


def method_seconds(row: TensorPlan, header: TensorHeader, speeds: MachineSpeeds) -> float:
    """Of choosing the codes of one tensor, and of the factorization where it is the first to need it."""
    columns = row.shape[-1]
    is_first = _sees_hessian(row) and row.role in FIRST_READERS
    shared = experts_of(row) * factor_seconds(columns, speeds) if is_first else 0.0
    return speeds.method_cost(row, header).seconds(weights_of(row) // columns, columns) + shared


def factor_seconds(columns: int, speeds: MachineSpeeds) -> float:
    """Of factorizing one Hessian."""
    return FACTOR_OPERATIONS * columns**3 / speeds.flops(columns)


def block_bytes(rows: Sequence[TensorPlan], *, sees_hessians: bool) -> int:
    """Memory of the block loop: the largest block in float32, its Hessians, and one factorization in float64."""
    blocks: dict[str, int] = {}
    hessians: dict[str, int] = {}
    for row in rows:
        block = row.name.rpartition(".weight")[0].rpartition(".")[0]
        blocks[block] = blocks.get(block, 0) + weights_of(row)
        if sees_hessians and row.role in FIRST_READERS:
            hessians[block] = hessians.get(block, 0) + experts_of(row) * row.shape[-1] ** 2
    floats = max((size for name, size in blocks.items() if name.startswith(BLOCKS)), default=0)
    # One Hessian for the methods and one held out; a factorization goes through float64.
    largest = max((row.shape[-1] ** 2 for row in rows if _sees_hessian(row)), default=0)
    return FLOAT32_BYTES * (floats + 2 * max(hessians.values(), default=0)) + FACTOR_BYTES * largest


def experts_of(row: TensorPlan) -> int:
    """Matrices of a stack, each with inputs and a Hessian of its own; 1 for other tensors."""
    return row.shape[0] if len(row.shape) > 2 else 1


def _sees_hessian(row: TensorPlan) -> bool:
    return METHODS[row.method].needs == "hessian"


def looks_before(plan: Plan) -> bool:
    """Whether a transform runs the text before the methods do."""
    return any(TRANSFORMS[item.name].needs == "statistics" for item in plan.transforms)


def _tensor_bytes(row: TensorPlan, header: TensorHeader) -> int:
    """Memory while one tensor is done: its slabs in float32, its finished blocks twice while slabs are joined."""
    if row.format.name == header.format.name:
        return header.nbytes
    shares_over_rows = row.format.row_step is None or header.format.row_step is None
    slab = weights_of(row) if shares_over_rows else min(weights_of(row), SLAB_WEIGHTS)
    # The input's pages are the file's own; the few tensors whose rows are reordered are far from the largest.
    return slab * FLOAT32_BYTES * SLAB_ARRAYS + 2 * row.nbytes
