"""One sampler for all readers of the meters of a process: it runs while somebody reads.

Every probe is read in a thread of its own. One that hangs is waited for by nobody: the others go on, and its
readings are missing until it answers again.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from gimlet_lab.hardware.meters.meter import Meter, Readings, clean, installed
from gimlet_lab.hardware.meters.naming import torch_names
from gimlet_lab.hardware.meters.workers import Opened, Worker

INTERVAL_S = 0.1

#: How long a first reader waits for libraries to be opened, and every reader for its first and last reading.
OPEN_S = 2.0
READ_S = 0.25

#: A call that takes longer is said to hang.
DEADLINE_S = 1.0

#: Readings of each device that are kept for whoever asks what is going on.
RECENT = 600

Sink = Callable[[str, float, Readings], None]


@dataclass(frozen=True, slots=True)
class Row:
    """Readings of one device at one moment of the sampler's clock."""

    at_s: float
    readings: Readings


class Subscription:
    """One reader's wish: every ``interval_s`` its sink gets every device's readings, until it is closed."""

    def __init__(self, sampler: Sampler, interval_s: float, sink: Sink | None) -> None:
        self.interval_s = interval_s
        self._sampler = sampler
        self._sink = sink
        self._given: dict[str, float] = {}
        self._all = False

    def close(self) -> None:
        """Take a last reading and let go; a second time it does nothing."""
        self._sampler._leave(self)  # noqa: SLF001 - they are one

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _give(self, device: str, row: Row) -> None:
        if self._sink is None:
            return
        # Threads wake a little early or late: a tenth of the interval is no miss.
        if self._all or row.at_s - self._given.get(device, -math.inf) >= 0.9 * self.interval_s:
            self._given[device] = row.at_s
            self._sink(device, row.at_s, row.readings)


class Sampler:
    """Reads all meters while somebody is subscribed.

    Parameters
    ----------
    meters : callable
        Makes the meters; called when there is a first reader.
    clock : callable
        Seconds, monotonic.
    deadline_s : float
        When a call is said to hang.
    open_s : float
        How long a first reader waits for libraries to be opened.

    Examples
    --------
    >>> shared().look(0.01)["cpu"].readings["memory_used_bytes"] > 0
    True
    """

    def __init__(
        self,
        meters: Callable[[], Sequence[Meter]] = installed,
        clock: Callable[[], float] = time.perf_counter,
        deadline_s: float = DEADLINE_S,
        open_s: float = OPEN_S,
    ) -> None:
        self.clock = clock
        self.notes: list[str] = []
        self.cpu_s = 0.0
        self._make = meters
        self._deadline_s = deadline_s
        self._open_s = open_s
        self._meters: list[Opened] = []
        self._subscriptions: list[Subscription] = []
        self._recent: dict[str, deque[Row]] = {}
        self._lock = threading.RLock()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def subscribe(self, interval_s: float = INTERVAL_S, sink: Sink | None = None) -> Subscription:
        """Read every ``interval_s`` from now on; the first reading is taken before this returns.

        Parameters
        ----------
        interval_s : float
        sink : callable, optional
            ``sink(device, at_s, readings)``, called from the sampler's threads; where left out, the reader
            asks :meth:`latest`.
        """
        subscription = Subscription(self, interval_s, sink)
        with self._lock:
            subscription._all = True  # noqa: SLF001
            if not self._subscriptions:
                self.notes.clear()
            self._subscriptions.append(subscription)
        try:
            opening = self._open()
            until = self.clock() + self._open_s
            for worker in opening:
                worker.wait(until - self.clock())
            self._read_now()
        except BaseException:  # the user's interrupt: nothing of it is left
            self._drop(subscription)
            raise
        with self._lock:
            subscription._all = False  # noqa: SLF001
            if self._thread is None:
                self._changed = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._changed,), name="gimlet-meters", daemon=True
                )
                self._thread.start()
            self._changed.set()
        return subscription

    def latest(self) -> dict[str, Row]:
        """The last reading of every device that is answering now; see :meth:`look` to take one."""
        now = self.clock()
        with self._lock:
            step_s = min((one.interval_s for one in self._subscriptions), default=0.0)
            fresh_s = self._deadline_s + 2 * step_s
            return {
                device: rows[-1]
                for device, rows in self._recent.items()
                if rows and now - rows[-1].at_s <= fresh_s
            }

    def recent(self, device: str) -> tuple[Row, ...]:
        """The last readings of one device, the newest last."""
        with self._lock:
            return tuple(self._recent.get(device, ()))

    def names(self) -> dict[str, str]:
        """Names by which torch knows the drivers' cards, as far as that is certain now."""
        with self._lock:
            opened = list(self._meters)
        return torch_names([card for one in opened for probe in one.probes for card in probe.cards])

    def look(self, over_s: float = INTERVAL_S) -> dict[str, Row]:
        """Read everything over a short time, so that rates are known, and give the last readings."""
        with self.subscribe(over_s):
            time.sleep(over_s)
        return self.latest()

    def publish(self, device: str, at_s: float, readings: Mapping[str, object]) -> None:
        """Take in one reading of one device; one that is not later than the last is left out."""
        row = Row(at_s, clean(readings))
        with self._lock:
            rows = self._recent.setdefault(device, deque(maxlen=RECENT))
            if rows and at_s <= rows[-1].at_s:
                return  # a clock that was set back, or a call that came back late
            rows.append(row)
            for subscription in self._subscriptions:
                subscription._give(device, row)  # noqa: SLF001

    # --- what goes on ---

    def _open(self) -> list[Worker]:
        """Have the meters look for devices where that is due; give those who are at it and do not hang."""
        with self._lock:
            if not self._meters:
                self._meters = [Opened(meter, self) for meter in self._make()]
            for opened in self._meters:
                opened.start()
            now = self.clock()
            return [one.opening for one in self._meters if not one.opening.hangs(now, self._open_s)]

    def _read_now(self) -> None:
        """Read every probe once and wait for them, but not for one that hangs already."""
        now = self.clock()
        until = now + READ_S
        workers = [worker for worker in self._workers() if not worker.hangs(now, self._deadline_s)]
        # One that is being read just now is read again: what it reads may be of before.
        for worker in [worker for worker in workers if not worker.wake()]:
            worker.wait(until - self.clock())
            worker.wake()
        for worker in workers:
            worker.wait(until - self.clock())

    def _leave(self, subscription: Subscription) -> None:
        with self._lock:
            if subscription not in self._subscriptions:
                return
            subscription._all = True  # noqa: SLF001
        try:
            self._read_now()
        finally:
            self._drop(subscription)

    def _drop(self, subscription: Subscription) -> None:
        with self._lock:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
            if self._subscriptions:
                return
            thread, self._thread = self._thread, None
            self._changed.set()
            for opened in self._meters:
                opened.stop()
        if thread is not None:
            thread.join(timeout=1.0)

    def _run(self, changed: threading.Event) -> None:
        sys.setprofile(None)  # threads started during a cell are listened to; this one is ours
        me = threading.current_thread()
        while True:
            with self._lock:
                if self._thread is not me:
                    return
                changed.clear()
                interval_s = min(one.interval_s for one in self._subscriptions)
            # A new reader may want to read more often, and the last one gone ends this thread.
            if changed.wait(interval_s):
                continue
            with self._lock:
                if self._thread is not me:
                    return  # nobody may be woken who has been told to end
                for worker in self._workers():
                    if worker.rests(self.clock()):
                        continue
                    if not worker.wake() and worker.hangs(self.clock(), self._deadline_s):
                        line = f"its meter did not answer for {self._deadline_s:g} s or longer"
                        self.note(f"{worker.name}: {line}")

    def _workers(self) -> list[Worker]:
        with self._lock:
            return [worker for opened in self._meters for worker in opened.workers]

    def spend(self, seconds: float) -> None:
        """Count CPU time of ours."""
        with self._lock:
            self.cpu_s += seconds

    def note(self, line: str) -> None:
        """Say something once."""
        with self._lock:
            if line not in self.notes:
                self.notes.append(line)


_shared: Sampler | None = None
_shared_lock = threading.Lock()


def shared() -> Sampler:
    """The sampler of this process."""
    global _shared  # one per process, as the devices it reads
    with _shared_lock:
        if _shared is None:
            _shared = Sampler()
        return _shared


def _after_fork() -> None:
    # The threads and the vendors' handles are the parent's.
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
