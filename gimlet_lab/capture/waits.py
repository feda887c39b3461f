"""What the cell's thread did by the scheduler's own account: ran, wanted a core, or slept."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gimlet_lab.model import Sample

INTERVAL_S = 0.01

#: Where spans begin and end often, readings are taken there: our thread then sleeps up to so long, once
#: the shortest phase is no longer 2 ms. Waking it costs 0.1 ms of CPU on a busy machine, 1% of it at 10 ms.
LONGEST_S = 0.1
FINE_UNTIL_S = 0.4

#: Readings beyond these are thinned by half, and the interval doubles.
MAX_READINGS = 60_000


class Reading(NamedTuple):
    """Totals at one moment: of the cell's thread, and CPU time of the whole process less our own."""

    at_s: float
    running_s: float
    runnable_s: float
    process_s: float


class Sampler:
    """Readings of one thread's scheduler account: every 10 ms, and wherever a span begins or ends.

    Made and started in the thread it watches.

    Parameters
    ----------
    clock : callable
        Seconds since the start of the cell.
    tick : callable, optional
        Called with every reading of the thread.
    """

    def __init__(self, clock: Callable[[], float], tick: Callable[[], None] | None = None) -> None:
        self.cpu_s = 0.0
        self.notes: list[str] = []
        self._clock = clock
        self._tick = tick
        self._readings: list[Reading] = []
        self._stopping = threading.Lock()  # held until it is time to stop
        self._thread: threading.Thread | None = None
        self.interval_s = INTERVAL_S
        self._cpu_clock: int | None = None
        self._account: int | None = None

    def start(self) -> None:
        """Begin with a reading of now."""
        self._owner = threading.get_ident()
        if hasattr(time, "pthread_getcpuclockid"):
            # Asked for once, here: of a thread that has ended, the C library may crash.
            self._cpu_clock = time.pthread_getcpuclockid(self._owner)
        path = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        try:
            self._account = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._runnable_s()
        except (OSError, ValueError, IndexError):
            self._forget_account()
            where = "no /proc/self/task/*/schedstat" if sys.platform == "linux" else f"on {sys.platform}"
            self.notes.append(f"time spent wanting a core is not told from sleep ({where})")
        self._thread = threading.Thread(target=self._watch, name="gimlet-sampler", daemon=True)
        self._stopping.acquire()
        self.mark()
        self._thread.start()

    def mark(self) -> None:
        """Take a reading now."""
        try:
            running_s = self._running_s()
            reading = Reading(self._clock(), running_s, self._runnable_s(), time.process_time() - self.cpu_s)
        except OSError:  # the thread has ended: it does nothing any more
            if not self._readings:
                return
            last = self._readings[-1]
            reading = last._replace(at_s=self._clock(), process_s=time.process_time() - self.cpu_s)
        self._readings.append(reading)

    def stop(self) -> tuple[Sample, ...]:
        """End with a reading of now; nothing is left running."""
        if self._thread is not None:
            self.mark()
            self._stopping.release()
            self._thread.join(timeout=2.0)
            self._thread = None
            self._forget_account()
        return samples(self._readings)

    def abandon(self) -> None:
        """Let go without a word: in a forked child there is no thread to stop."""
        self._thread = None
        self._forget_account()

    def _watch(self) -> None:
        sys.setprofile(None)  # threads started during the cell are listened to; this one is ours
        wait_s, seen = self.interval_s, len(self._readings)
        while not self._stopping.acquire(timeout=wait_s):
            edges = len(self._readings) > seen
            now = self._clock()
            # No finer than half the shortest phase of so long a cell.
            least_s = max(self.interval_s, min(0.0025 * now, LONGEST_S))
            fine = not edges or now < FINE_UNTIL_S
            wait_s = least_s if fine else max(least_s, min(2 * wait_s, LONGEST_S))
            self.mark()
            if self._tick is not None:
                self._tick()
            self.cpu_s = time.thread_time()
            seen = len(self._readings)
            if len(self._readings) > MAX_READINGS:
                del self._readings[1:-1:2]
                self.interval_s *= 2
                seen = len(self._readings)

    def _running_s(self) -> float:
        if self._cpu_clock is not None:
            return time.clock_gettime(self._cpu_clock)
        if threading.get_ident() == self._owner:
            return time.thread_time()
        raise OSError("no CPU clock of another thread here")

    def _runnable_s(self) -> float:
        if self._account is None:
            return 0.0
        return int(os.pread(self._account, 80, 0).split()[1]) * 1e-9

    def _forget_account(self) -> None:
        if self._account is not None:
            os.close(self._account)
            self._account = None


def samples(readings: list[Reading]) -> tuple[Sample, ...]:
    """Contiguous samples between readings, ordered by time.

    Readings are taken by two threads; where one overtook the other, a total that seems to run backwards
    is held at its highest. What a clock tick smears over the edge of an interval goes to the next one.

    Examples
    --------
    >>> samples([Reading(0.0, 0.0, 0.0, 0.0), Reading(1.0, 0.25, 0.0, 0.75)])[0].blocked_s
    0.75
    """
    found: list[Sample] = []
    before: Reading | None = None
    for now in sorted(readings):
        if before is None:
            before = now
            continue
        took = now.at_s - before.at_s
        if took <= 0.0:
            continue
        ran = max(0.0, now.running_s - before.running_s)
        running = min(ran, took)
        runnable = min(max(0.0, now.runnable_s - before.runnable_s), took - running)
        others = max(0.0, now.process_s - before.process_s - ran)
        found.append(Sample(before.at_s, took, running, runnable, took - running - runnable, others))
        before = Reading(
            now.at_s,
            max(now.running_s, before.running_s),
            max(now.runnable_s, before.runnable_s),
            max(now.process_s, before.process_s),
        )
    return tuple(found)
