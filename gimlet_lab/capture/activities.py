"""What an accelerator did during a looked-at call, kernel by kernel, by its own clock.

An event before and behind each operator would also measure how long the host takes to launch it, which for
short kernels is most. A source of activities is told which operator is being launched and says afterwards
when the device worked for it: ``torch.profiler``, with the activities of whatever accelerator torch has.
"""

from __future__ import annotations

import sys
import warnings
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from gimlet_lab.capture.intervals import Interval

_MARK = "gimlet_lab operator "

#: A device's intervals by operator, by the clock of the source's caller.
Heard = Callable[[], Mapping[int, list[Interval]]]

_warm = False


class ActivitySource(Protocol):
    """Tells when a device worked for the operators of one looked-at call."""

    def start(self) -> bool:
        """Begin to listen; False where that cannot be now."""

    def mark(self, number: int) -> AbstractContextManager[object]:
        """While this is open, an operator is being launched; its number is the caller's."""

    def stop(self) -> Heard:
        """Stop listening; what was heard is worked out when it is asked for."""


class TorchActivities:
    """``torch.profiler`` as a source.

    Parameters
    ----------
    torch
        The module, imported by the user's code.
    now : callable
        The clock that times are wanted by.

    Examples
    --------
    >>> import time, torch
    >>> source = TorchActivities(torch, time.perf_counter)
    >>> source.start()
    True
    >>> with source.mark(0):
    ...     made = torch.ones(3) + 1
    >>> source.stop()()  # a CPU has no activities of its own
    {}
    """

    def __init__(self, torch: Any, now: Callable[[], float]) -> None:
        self.torch = torch
        self.now = now
        self._profiler: Any = None
        self._marked_s: float | None = None

    @staticmethod
    def of(torch: Any, now: Callable[[], float]) -> TorchActivities | None:
        """The source of this torch; None where its profiler knows no device but the CPU."""
        known = torch.profiler.supported_activities()
        return TorchActivities(torch, now) if any(not str(one).endswith("CPU") for one in known) else None

    def start(self) -> bool:
        """Begin to listen; not while a profiler of the user's does."""
        if self.torch._C._autograd._profiler_enabled():  # noqa: SLF001 - torch has no other word for it
            return False
        profiler = self.torch.profiler
        self._marked_s = None
        try:
            with warnings.catch_warnings():
                # It says that it begins anew each time.
                warnings.simplefilter("ignore", UserWarning)
                held = profiler.profile(activities=sorted(profiler.supported_activities(), key=str))
                held.start()
        except RuntimeError:  # another tool has the device's counters
            return False
        self._profiler = held
        return True

    def mark(self, number: int) -> AbstractContextManager[object]:
        """While this is open, an operator is being launched."""
        mark: AbstractContextManager[object] = self.torch.profiler.record_function(f"{_MARK}{number}")
        if self._marked_s is None:
            self._marked_s = self.now()
        return mark

    def stop(self) -> Heard:
        """Wait until the device is done, which the profiler does before it stops."""
        held, self._profiler = self._profiler, None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            held.stop()
        # Reading thousands of events takes longer than all else: not while the cell waits.
        results, marked_s = held.profiler.kineto_results, self._marked_s or 0.0
        return lambda: read(results.events(), marked_s)


def warm_up(torch: Any) -> bool:
    """Start the device's profiler for the first time in this process, which takes seconds; whether it did.

    A cell that uses an accelerator from its first call would pay for it in its first look.
    """
    global _warm
    if _warm or torch is None or not _in_use():
        return False
    _warm = True
    source = TorchActivities.of(torch, float)
    if source is None or not source.start():
        return False
    source.stop()
    return True


def _in_use() -> bool:
    """Whether the process works with an accelerator already: asking must not start one."""
    modules = (sys.modules.get(f"torch.{kind}") for kind in ("cuda", "xpu"))
    return any(getattr(module, "is_initialized", bool)() for module in modules)


def read(events: Iterable[Any], marked_s: float) -> dict[int, list[Interval]]:
    """Intervals by operator, from the profiler's raw events.

    An event of the device names the operator of the host that launched it (its linked correlation); that one
    ran while a mark was open.

    Parameters
    ----------
    events : iterable of torch's ``_KinetoEvent``
    marked_s : float
        When the first mark was made, by the clock that times are wanted by.
    """
    host: dict[int, int] = {}
    marks: list[tuple[int, int, int]] = []
    worked: list[tuple[int, int, int]] = []
    for event in events:
        start_ns = event.start_ns()
        if not str(event.device_type()).endswith("CPU"):
            # Annotations have a shadow on the device, from their first kernel to their last.
            if not event.is_user_annotation():
                worked.append((event.linked_correlation_id(), start_ns, event.duration_ns()))
        elif not event.linked_correlation_id():  # else a call of the driver, which counts by itself
            name = event.name()
            if name.startswith(_MARK):
                marks.append((start_ns, start_ns + event.duration_ns(), int(name.removeprefix(_MARK))))
            host[event.correlation_id()] = start_ns
    marks.sort()
    found: dict[int, list[Interval]] = defaultdict(list)
    for linked, start_ns, duration_ns in worked:
        launched_ns = host.get(linked)
        at = -1 if launched_ns is None else bisect_right(marks, (launched_ns, sys.maxsize, 0)) - 1
        if launched_ns is not None and at >= 0 and launched_ns <= marks[at][1]:
            start_s = marked_s + (start_ns - marks[0][0]) * 1e-9
            found[marks[at][2]].append((start_s, start_s + duration_ns * 1e-9))
    return dict(found)
