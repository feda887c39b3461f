"""The threads that read: one for each meter's opening and for each probe, which nobody has to wait for.

What only reads the kernel's files does not hang, and is read by whoever asks: waking a thread costs more.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gimlet_lab.hardware.meters.meter import Meter, Probe

if TYPE_CHECKING:
    from gimlet_lab.hardware.meters.sampler import Sampler

#: Devices that were not found, or lost, are looked for again after this long at the earliest.
AGAIN_S = 10.0

#: A probe rests for so many times as long as it took: drivers answer slowly while a device works hard (NVML
#: on a loaded H100 takes 4 to 36 ms a call), and asking them takes from what they should be doing.
REST = 9.0


class Opened:
    """A meter with its probes' threads."""

    def __init__(self, meter: Meter, sampler: Sampler) -> None:
        self.workers: list[Worker] = []
        self.probes: tuple[Probe, ...] = ()
        self.opening = Worker(meter.name, self._open, sampler)
        self._meter = meter
        self._sampler = sampler
        self._failed: set[str] = set()
        self._again_s = -math.inf

    def start(self) -> None:
        """Look for devices, the first time, and again where none was found or one was lost."""
        lost = not self.workers or (self._failed and not any(worker.busy for worker in self.workers))
        if lost and not self.opening.busy and self._sampler.clock() >= self._again_s:
            self._again_s = self._sampler.clock() + AGAIN_S
            self.opening.wake()

    def stop(self) -> None:
        """End the threads; one that hangs ends when its call comes back, if nobody needs it then."""
        for worker in (self.opening, *self.workers):
            worker.end()

    def _open(self) -> None:
        probes, notes = self._meter.open()
        for line in notes:
            self._sampler.note(line)
        for worker in self.workers:
            worker.end()
        self._failed = set()
        self.probes = tuple(probes)
        self.workers = [
            Worker(name_of(probe), self._reading(probe), self._sampler, here=getattr(probe, "prompt", False))
            for probe in probes
        ]

    def _reading(self, probe: Probe) -> Callable[[], None]:
        def read() -> None:
            sampler = self._sampler
            before = sampler.clock()
            try:
                found = probe.read(before)
            except Exception as error:  # noqa: BLE001 - a vendor's library: each failure is a device less
                self._failed.add(name_of(probe))
                sampler.note(f"{name_of(probe)}: {_line(error)}")
                found = {device: {} for device in probe.devices}
            else:
                self._failed.discard(name_of(probe))
            at_s = (before + sampler.clock()) / 2
            for device, readings in found.items():
                sampler.publish(device, at_s, readings)

        return read


class Worker:
    """A thread that does one job whenever it is woken, and is waited for by nobody who does not want to.

    ``here``: no thread, the job is done by the one who wakes it.
    """

    def __init__(self, name: str, job: Callable[[], None], sampler: Sampler, *, here: bool = False) -> None:
        self.name = name
        self.busy_since: float | None = None
        self._rests_until_s = -math.inf
        self._job = job
        self._sampler = sampler
        self._here = here
        self._lock = threading.Lock()
        self._go = threading.Semaphore(0)
        self._done = threading.Event()
        self._ending = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether the job was begun and has not ended."""
        return self.busy_since is not None

    def wake(self) -> bool:
        """Have the job done; False while it still is."""
        with self._lock:
            self._ending = False
            if self.busy:
                return False
            self.busy_since = self._sampler.clock()
            self._done.clear()
            if not self._here:
                if self._thread is None:
                    name = f"gimlet-{self.name}"
                    self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
                    self._thread.start()
                self._go.release()
        if self._here:
            self._work()
        return True

    def hangs(self, now_s: float, deadline_s: float) -> bool:
        """Whether the job has been going on for longer."""
        since = self.busy_since
        return since is not None and now_s - since > deadline_s

    def rests(self, now_s: float) -> bool:
        """Whether its last job took so long that it is to be left alone."""
        return now_s < self._rests_until_s

    def wait(self, seconds: float) -> None:
        """Wait for the job that was begun, if one was."""
        if self.busy:
            self._done.wait(max(seconds, 0.0))

    def end(self) -> None:
        """End the thread when it is idle."""
        with self._lock:
            self._ending = True
            self._go.release()

    def _loop(self) -> None:
        sys.setprofile(None)
        while True:
            self._go.acquire()
            if self.busy:
                self._work()
            with self._lock:
                if self._ending and not self.busy:
                    self._thread = None
                    return

    def _work(self) -> None:
        before = time.thread_time()
        try:
            self._job()
        except Exception as error:  # noqa: BLE001 - nothing of ours may end in the user's terminal
            self._sampler.note(f"{self.name}: {_line(error)}")
        finally:
            self._sampler.spend(time.thread_time() - before)
            with self._lock:
                now_s = self._sampler.clock()
                self._rests_until_s = now_s + REST * (now_s - (self.busy_since or now_s))
                self.busy_since = None
                self._done.set()


def name_of(probe: Probe) -> str:
    """What a probe is called in notes: by its first device."""
    return probe.devices[0] if probe.devices else type(probe).__name__


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
