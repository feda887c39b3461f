"""Measuring one device with torch: GEMM ladder, memory bandwidth out of cache, cost of one operator.

Every figure is the best of several tries, because what disturbs a measurement on a shared machine only ever
slows it down.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable
from typing import Any

from gimlet_lab.hardware import machine
from gimlet_lab.hardware.calibration import Bench, Calibration, Rung
from gimlet_lab.model.device import MemoryTier
from gimlet_lab.progress import Progress, silent

#: Tried in this order; a dtype that torch cannot multiply here is left out.
DTYPES = ("float32", "bfloat16", "float16")

#: Up to this side a GEMM takes about a millisecond on a single core.
SHORT = 512

#: float32 values of one line of cache: what a random read fetches.
LINE = 16

#: Bytes copied to an accelerator at a time.
LINK_BYTES = 2**26


def measure(
    bench: Bench, progress: Progress = silent, *, clock: Callable[[], float] = time.perf_counter
) -> Calibration:
    """Measure one device. torch's thread count and matmul precision are as before afterwards.

    The budget bounds what is begun: a GEMM is tried only if, at the rate of the one before, it fits.

    Raises
    ------
    ImportError
        Without torch.
    RuntimeError
        Where torch cannot have the arrays.
    """
    import torch

    started = clock()
    threads_before, precision_before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(bench.threads)
        # At "high" and below, a float32 product may be computed in TF32 or bfloat16.
        if precision_before != "highest":
            torch.set_float32_matmul_precision("highest")
        with torch.inference_mode():
            return _measure(torch, bench, clock, started, progress)
    finally:
        torch.set_num_threads(threads_before)
        if precision_before != "highest":
            torch.set_float32_matmul_precision(precision_before)


def _measure(
    lib: Any, bench: Bench, clock: Callable[[], float], started: float, progress: Progress
) -> Calibration:
    timer = _Timer(lib, bench.device, clock)
    ends = started + bench.budget_s
    load = machine.Load() if bench.device == "cpu" else None
    progress(0.0, "memory bandwidth")
    elements = max(bench.array_bytes // 4, 1)
    copy_s, read_s = _bandwidth(lib, timer, elements, bench.device)
    progress(0.2, "operator overhead")
    one = lib.ones(1, dtype=lib.float32, device=bench.device)
    launch_s = timer.best(lambda: lib.add(one, one), 7, repeat=500)
    tiers = _tiers(lib, timer, bench, launch_s) if bench.tiers else ()
    ladder: list[Rung] = []
    for index, dtype in enumerate(DTYPES):
        progress(0.3 + 0.7 * index / len(DTYPES), f"{dtype} GEMM")
        # What is left is shared evenly among the dtypes still to come.
        share_ends = clock() + max(ends - clock(), 0.0) / (len(DTYPES) - index)
        ladder += _climb(lib, timer, bench, dtype, share_ends)
    progress(1.0, "calibrated")
    return Calibration(
        threads=bench.threads,
        read_bytes_per_s=4.0 * elements / read_s,
        copy_bytes_per_s=8.0 * elements / copy_s,
        launch_s=launch_s,
        ladder=tuple(ladder),
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        seconds_spent=round(clock() - started, 3),
        tiers=tiers,
        link_bytes_per_s=None if bench.device == "cpu" else _link(lib, timer, bench.device),
        others=load.others() if load else None,
    )


def _bandwidth(lib: Any, timer: _Timer, elements: int, device: str) -> tuple[float, float]:
    """Seconds to copy and to read an array of float32."""
    source = lib.ones(elements, dtype=lib.float32, device=device)
    target = lib.zeros(elements, dtype=lib.float32, device=device)
    copy_s = timer.best(lambda: target.copy_(source), 4)
    # Which reduction reaches the memory's rate differs by machine and thread count.
    return copy_s, min(timer.best(read, 3) for read in (source.sum, source.max, lambda: source.dot(source)))


def _tiers(lib: Any, timer: _Timer, bench: Bench, launch_s: float) -> tuple[MemoryTier, ...]:
    """Read, copy and read at random in working sets that fit into each tier; a launch is no part of it."""
    found = []
    for name, size in bench.tiers:
        elements = max(size // 4 // LINE, 1) * LINE
        half = elements // 2 // LINE * LINE or LINE
        source = lib.ones(elements, dtype=lib.float32, device=bench.device)
        # A copy has two arrays in the tier; a random read a table, and as many rows as it has.
        left, right = source[:half], lib.empty(half, dtype=lib.float32, device=bench.device)
        table = source.view(-1, LINE)
        rows = lib.randperm(len(table), generator=lib.Generator().manual_seed(0)).to(bench.device)
        picked = lib.empty_like(table)
        # A small working set is read so often that the calls take about a millisecond together.
        repeat = max(1, min(200, 2**24 // (elements * 4)))
        read_s, copy_s, random_s = (
            max(timer.best(call, 5, repeat=repeat) - launch_s, 1e-9)
            for call in (
                source.sum,
                lambda left=left, right=right: right.copy_(left),
                lambda table=table, rows=rows, picked=picked: lib.index_select(table, 0, rows, out=picked),
            )
        )
        found.append(
            MemoryTier(
                name, elements * 4, 4.0 * elements / read_s, 8.0 * half / copy_s, 4.0 * elements / random_s
            )
        )
    return tuple(found)


def _link(lib: Any, timer: _Timer, device: str) -> float | None:
    """From pinned host memory to an accelerator; None where it cannot be pinned."""
    try:
        source = lib.empty(LINK_BYTES, dtype=lib.uint8).pin_memory()
        target = lib.empty(LINK_BYTES, dtype=lib.uint8, device=device)
        return LINK_BYTES / timer.best(lambda: target.copy_(source, non_blocking=True), 3)
    except (RuntimeError, AssertionError, NotImplementedError):
        return None


def _gemm(
    lib: Any, timer: _Timer, bench: Bench, name: str, shape: tuple[int, int, int], tries: int, until: float
) -> Rung:
    (m, n, k), dtype = shape, getattr(lib, name)
    left = lib.ones(m, k, dtype=dtype, device=bench.device)
    weight = lib.ones(n, k, dtype=dtype, device=bench.device)
    if bench.device != "cpu":
        # Equal bits switch few transistors: an H100 at its power cap multiplies ones a sixth faster.
        random = lib.Generator(bench.device).manual_seed(0)
        left.normal_(generator=random)
        weight.normal_(generator=random)
    return Rung(name, m, n, k, timer.best(lambda: lib.nn.functional.linear(left, weight), tries, until=until))


def _climb(lib: Any, timer: _Timer, bench: Bench, name: str, ends: float) -> list[Rung]:
    """Measure the GEMMs of one dtype: few rows on weights out of cache, then squares of growing size."""
    rungs: list[Rung] = []
    try:
        width = 2 ** int(math.log2(max(bench.array_bytes / getattr(lib, name).itemsize, 4)) / 2)
        for rows in bench.few_rows:
            if rungs and timer.clock() + 3 * timer.repeat * rows * rungs[0].seconds > ends:
                break
            rungs.append(_gemm(lib, timer, bench, name, (rows, width, width), 3, ends))
        rate = 0.0
        for size in bench.ladder:
            work = 2.0 * size**3
            if rate and timer.clock() + 2 * timer.repeat * work / rate > ends:
                break
            # A short one is tried often: all threads must find their cores free at the same moment once.
            tries = 50 if size <= SHORT else 5
            rungs.append(_gemm(lib, timer, bench, name, (size, size, size), tries, ends))
            rate = work / rungs[-1].seconds
    except (RuntimeError, TypeError):
        # "not implemented for 'Half'" or out of memory: the dtype ends here.
        return rungs
    return rungs


class _Timer:
    """Best-of-several timing of a call on one device."""

    def __init__(self, lib: Any, device: str, clock: Callable[[], float]) -> None:
        self.clock = clock
        kind = device.split(":", maxsplit=1)[0]
        self._wait: Callable[[], object] | None = None if kind == "cpu" else getattr(lib, kind).synchronize
        # On an accelerator, one launch and one wait must not count as work.
        self.repeat = 1 if kind == "cpu" else 10

    def best(
        self, call: Callable[[], object], tries: int, *, repeat: int | None = None, until: float = math.inf
    ) -> float:
        """Seconds of one call, the best of ``tries``; stops trying at ``until``, never before the second."""
        calls = repeat or self.repeat
        best = math.inf
        for attempt in range(tries + 1):
            started = self.clock()
            for _ in range(calls):
                call()
            if self._wait:
                self._wait()
            ended = self.clock()
            # The first try pays for page faults, thread pools and code paths.
            if attempt:
                best = min(best, (ended - started) / calls)
                if ended >= until:
                    break
        return max(best, 1e-9)
