"""How slices of one processor slow each other: each at work alone, then all at once.

Threads of this process stand in for the slices' own processes: torch holds no lock of Python's while it
computes, and each thread keeps to its slice's cores. Cores, caches and memory are the same.
"""

from __future__ import annotations

import datetime
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from gimlet_lab.hardware.calibration import ARRAY_BYTES, Beside
from gimlet_lab.hardware.machine import Load

#: Seconds that each kind of work is counted for.
WINDOW_S = 0.15

#: Tries, of which the best counts: what disturbs a shared machine only ever slows it down.
TRIES = 2

#: Side of the GEMM: its three matrices fit into the cache of a core.
SIDE = 192

#: Largest array that a slice reads.
MOST_BYTES = ARRAY_BYTES // 4


def measure_beside(
    slices: Sequence[tuple[int, ...]],
    array_bytes: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    window_s: float = WINDOW_S,
) -> Beside | None:
    """Measure what each slice keeps of its rate while all are busy; the mean over the slices.

    Parameters
    ----------
    slices : sequence of tuple of int
        Cores of each.
    array_bytes : int
        Out of cache for one slice.

    Returns
    -------
    Beside or None
        None where threads cannot be pinned, or a slice has no cores of this process.
    """
    if not hasattr(os, "sched_setaffinity") or len(slices) < 2:
        return None
    if not {core for part in slices for core in part} <= os.sched_getaffinity(0):
        return None
    import torch

    threads, load = torch.get_num_threads(), Load()
    try:
        works = [_work(torch, part, min(array_bytes, MOST_BYTES)) for part in slices]
        shares = []
        for kind in (0, 1):
            calls = [work[kind] for work in works]
            alone = [
                max(_rates([(cores, call)], clock, window_s)[0] for _ in range(TRIES))
                for cores, call in zip(slices, calls, strict=True)
            ]
            together = [_rates(list(zip(slices, calls, strict=True)), clock, window_s) for _ in range(TRIES)]
            best = [max(one) for one in zip(*together, strict=True)]
            shares.append(sum(b / a for b, a in zip(best, alone, strict=True)) / len(slices))
    finally:
        torch.set_num_threads(threads)
    flops, bandwidth = (min(max(share, 0.01), 1.0) for share in shares)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return Beside(flops, bandwidth, today, load.others())


def _work(
    lib: Any, part: tuple[int, ...], array_bytes: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """What a slice does: a GEMM in cache for each of its cores, and a read out of it."""
    matrices = lib.ones(len(part), SIDE, SIDE)
    array = lib.ones(max(array_bytes // 4, 1))
    return (lambda: lib.matmul(matrices, matrices), array.sum)


def _rates(
    jobs: Sequence[tuple[tuple[int, ...], Callable[[], object]]], clock: Callable[[], float], window_s: float
) -> list[float]:
    """Calls per second of each job, all begun together, each on its own cores."""
    import torch

    rates = [0.0] * len(jobs)
    ready = threading.Barrier(len(jobs))

    def run(index: int, cores: tuple[int, ...], call: Callable[[], object]) -> None:
        os.sched_setaffinity(0, cores)  # of this thread only
        torch.set_num_threads(len(cores))
        with torch.inference_mode():
            call()
            ready.wait()
            started, count = clock(), 0
            while (now := clock()) < started + window_s:
                call()
                count += 1
            rates[index] = count / max(now - started, 1e-9)

    threads = [
        threading.Thread(target=run, args=(index, *job), daemon=True) for index, job in enumerate(jobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rates
