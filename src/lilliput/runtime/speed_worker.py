# SPDX-License-Identifier: Apache-2.0
"""The process that measures one row of `lilliput bench`: prints a `Timed` as JSON on stdout."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers import open_model
from lilliput.errors import LilliputError, RuntimeModelError
from lilliput.runtime.encoder_session import EncoderSession
from lilliput.runtime.session import EngineOptions, Session
from lilliput.runtime.speed import SpeedTest, Timed
from lilliput.runtime.speed_limits import measure_limits, token_work


def main() -> int:
    """Measure what the command line says. Exit code 1 with one line on stderr when that cannot be."""
    model, test = sys.argv[1], SpeedTest(**json.loads(sys.argv[2]))
    try:
        timed = measure(model, test)
    except LilliputError as failure:
        print(failure, file=sys.stderr)
        return 1
    print(json.dumps(asdict(timed)))
    return 0


def measure(model: str, test: SpeedTest) -> Timed:
    """Run the test once unmeasured, then `repeat` times. Token ids are random, as their values cost nothing."""
    source = open_model(model)
    context = test.depth + test.n
    if context > source.config.context_length:
        raise RuntimeModelError(
            f"{test.n} tokens at depth {test.depth} are longer than the model's context of "
            f"{source.config.context_length}"
        )
    if source.config.task != "next_token":
        return _measure_encoder(source, test)
    options = EngineOptions(
        threads=test.threads, context=context, kv_format=test.kv_format, repack=test.repack,
        instruction_set=test.instruction_set,
    )  # fmt: skip
    session = Session(source, options)
    tokens = np.random.default_rng(0).integers(0, session.vocab_size, test.depth + test.n, dtype=np.int32)
    ready_at = time.time()
    # Warms up: weights are repacked when they are first used.
    session.forward(tokens[: test.n if test.test == "prefill" else 1])
    first_token_at = time.time()
    session.truncate(0)
    session.forward(tokens[: test.depth], "none")
    seconds = []
    for _ in range(test.repeat):
        session.truncate(test.depth)
        start = time.perf_counter()
        if test.test == "prefill":
            session.forward(tokens[test.depth :])
        else:
            for first in range(test.depth, len(tokens), test.batch):
                session.forward(tokens[first : first + test.batch])
        seconds.append(time.perf_counter() - start)
    peak = peak_resident_bytes()  # before the probes take memory of their own
    limits = measure_limits(test.threads)
    work = token_work(source.architecture.program(source.config), lambda name: source.headers[name])
    cache = session.cache_bytes * (test.depth + test.n / 2) / context
    if test.test == "prefill":
        limit = work.prefill_limit(test.n, limits)
    else:
        limit = work.decode_limit(test.batch, cache, limits)
    return Timed(tuple(seconds), limit, ready_at, first_token_at, peak, session.instruction_set)


def _measure_encoder(source: ModelSource, test: SpeedTest) -> Timed:
    """One pass over `n` tokens, as often as asked: there is no cache to fill, and nothing to decode."""
    if test.test != "prefill" or test.depth or source.config.encoder is None:
        raise RuntimeModelError(
            f"{source.path.name}: of a model for {source.config.task.replace('_', ' ')} only a whole text's pass can "
            "be measured; give --decode 0 --depth 0, and no encoder-decoder"
        )
    options = EngineOptions(
        threads=test.threads, context=test.n, repack=test.repack, instruction_set=test.instruction_set
    )
    session = EncoderSession(source, options)
    tokens = np.random.default_rng(0).integers(0, source.config.vocab_size, test.n, dtype=np.int32)
    ready_at = time.time()
    session.run(tokens)
    first_token_at = time.time()
    seconds = []
    for _ in range(test.repeat):
        start = time.perf_counter()
        session.run(tokens)
        seconds.append(time.perf_counter() - start)
    peak = peak_resident_bytes()
    work = token_work(source.architecture.program(source.config), lambda name: source.headers[name])
    limit = work.prefill_limit(test.n, measure_limits(test.threads))
    return Timed(tuple(seconds), limit, ready_at, first_token_at, peak, session.instruction_set)


def peak_resident_bytes() -> int:
    """This process's highest resident size; getrusage would count the parent's at the time of exec."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
