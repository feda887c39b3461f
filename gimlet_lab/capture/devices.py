"""When accelerators worked for what was launched there: events that their streams pass, read afterwards.

The host only launches work: its clock says when a call was asked for, not how long it took. An event before
a call and one behind it cost the host two microseconds each, and the device stamps them as it comes by. They
are read when the cell has ended; nothing waits for the device before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from gimlet_lab.capture.intervals import Busy, Interval
from gimlet_lab.capture.timeline import OpenSpan
from gimlet_lab.model import Span

_NEVER = float("inf")


class Streams(Protocol):
    """The accelerators' own clocks."""

    def captured(self) -> bool:
        """Whether what is launched now does not run: a graph is being made of it."""

    def named(self, device: str) -> str:
        """The device by its number: ``cuda`` is the current one."""

    def stamp(self, device: str) -> Any:
        """An event that the device passes when it is done with all that was launched."""

    def elapsed_s(self, first: Any, second: Any) -> float:
        """Seconds between two events of one device that it has passed."""

    def wait(self, device: str) -> None:
        """Until the device is done."""


class TorchStreams:
    """The current streams of whatever accelerator torch has.

    Parameters
    ----------
    torch
        The module, imported by the user's code.
    """

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self._several = torch.accelerator.device_count() > 1
        self.captured: Callable[[], bool] = getattr(torch.cuda, "is_current_stream_capturing", bool)

    @staticmethod
    def of(torch: Any) -> TorchStreams | None:
        """Those of this torch; None where it has no accelerator."""
        accelerator = getattr(torch, "accelerator", None)
        return TorchStreams(torch) if accelerator is not None and accelerator.is_available() else None

    def named(self, device: str) -> str:
        """As torch prints a tensor's device."""
        return device if ":" in device else f"{device}:{self.torch.accelerator.current_device_index()}"

    def stamp(self, device: str) -> Any:
        """Record an event."""
        event = self.torch.Event(device, enable_timing=True)
        # The event's own record takes the current device's stream.
        event.record(self.torch.accelerator.current_stream(device)) if self._several else event.record()
        return event

    def elapsed_s(self, first: Any, second: Any) -> float:
        """By the device's clock."""
        return float(first.elapsed_time(second)) * 1e-3

    def wait(self, device: str) -> None:
        """Until all its streams are done."""
        self.torch.accelerator.synchronize(self.torch.device(device))


class Stamps(NamedTuple):
    """An event before some work of a device, and one behind it."""

    device: str
    begin: Any
    end: Any


class _Called(NamedTuple):
    span: OpenSpan
    stamps: Stamps
    launched_s: float


class _Clock(NamedTuple):
    """What ties a device's clock to ours: an event, when we saw it pass, and our seconds per second of it."""

    event: Any
    at_s: float
    rate: float = 1.0


def is_away(device: str) -> bool:
    """Whether what runs there runs beside the host, which goes on meanwhile.

    Examples
    --------
    >>> is_away("cuda:0"), is_away("cpu"), is_away("meta")
    (True, False, False)
    """
    return not device.startswith(("cpu", "meta"))


class Devices:
    """Accelerators of one recording.

    Parameters
    ----------
    streams : Streams
    now : callable
        Seconds since the start of the cell.

    Attributes
    ----------
    last : str
        torch's name of the accelerator that worked last; empty while none has.
    failed : str or None
        Why there are no times: what an accelerator raised. The cell's own next call hears of it as well.
    """

    def __init__(self, streams: Streams, now: Callable[[], float]) -> None:
        self.streams = streams
        self.now = now
        self.last = ""
        self.failed: str | None = None
        self._clocks: dict[str, _Clock] = {}
        self._calls: list[_Called] = []

    def stamp(self, device: str) -> Any:
        """An event before or behind some work of a device; None where it takes none now."""
        try:
            if self.failed is not None or self.streams.captured():
                return None
            if device not in self._clocks:
                self._clocks[device] = self._look(device)
            self.last = device
            return self.streams.stamp(device)
        except Exception as error:  # noqa: BLE001 - never the user's failure
            self._fail(error)
            return None

    def stamped(self, device: str) -> tuple[str, Any]:
        """Begin some work of a device that may be named without its number: its full name, and an event."""
        try:
            name = self.streams.named(device)
        except Exception as error:  # noqa: BLE001 - never the user's failure
            self._fail(error)
            return device, None
        return name, self.stamp(name)

    def called(self, span: OpenSpan, device: str, begin: Any) -> None:
        """End a call that began with an event; after a look at it wait for the device, on its own time."""
        end = None if begin is None else self.stamp(device)
        if end is None:
            return
        self._calls.append(_Called(span, Stamps(device, begin, end), self.now()))
        if span.looked:
            try:
                self.streams.wait(device)
            except Exception as error:  # noqa: BLE001 - never the user's failure
                self._fail(error)

    def wait(self) -> None:
        """Until the devices are done with what was launched; afterwards their times can be read."""
        try:
            for device, clock in self._clocks.items():
                last = self._look(device)
                took_s = self.streams.elapsed_s(clock.event, last.event)
                if took_s > 0:
                    self._clocks[device] = clock._replace(rate=(last.at_s - clock.at_s) / took_s)
        except Exception as error:  # noqa: BLE001 - never the user's failure
            self._fail(error)

    def interval(self, stamps: Stamps) -> Interval | None:
        """When a device worked, in seconds since the start of the cell; None where nobody knows."""
        if self.failed is not None:
            return None
        clock = self._clocks[stamps.device]
        start_s = clock.at_s + self.streams.elapsed_s(clock.event, stamps.begin) * clock.rate
        return start_s, start_s + self.streams.elapsed_s(stamps.begin, stamps.end) * clock.rate

    def place(self, spans: Sequence[Span]) -> tuple[Span, ...]:
        """Spans with their calls where the devices worked for them."""
        first = [_NEVER] * len(spans)
        launches: dict[int, list[Interval]] = defaultdict(list)
        for span, stamps, launched_s in self._calls:
            interval = self.interval(stamps)
            if interval is not None and 0 <= span.number < len(spans):
                first[span.number] = min(first[span.number], interval[0])
                launches[span.thread].append((launched_s, interval[1]))
        return moved(spans, first, launches)[0]

    def _look(self, device: str) -> _Clock:
        """Of an idle device: the event passes as it is recorded."""
        self.streams.wait(device)
        clock = _Clock(self.streams.stamp(device), self.now())
        self.streams.wait(device)
        return clock

    def _fail(self, error: Exception) -> None:
        reason = str(error).partition("\n")[0] or type(error).__name__
        self.failed = f"an accelerator's times are the host's, which are of launches: {reason}"


def moved(
    spans: Sequence[Span], first_s: Iterable[float], launches: dict[int, list[Interval]]
) -> tuple[tuple[Span, ...], set[int]]:
    """Move calls to where a device worked for them: from the end of the work before to the end of their own.

    Parameters
    ----------
    spans : sequence of Span
        Numbered by their place, parents before children.
    first_s : iterable of float
        When a device began to work for each; infinity where none did.
    launches : mapping of thread to intervals
        When each piece of work was launched, by the host's clock, and when it ended on the device.

    Returns
    -------
    spans : tuple of Span
    numbers : set of int
        Those with work on a device.
    """
    first = list(first_s)
    for number in range(len(spans) - 1, 0, -1):
        parent = spans[number].parent or 0
        first[parent] = min(first[parent], first[number])
    busy = {thread: Busy(found) for thread, found in launches.items()}
    placed, accelerated = list(spans), set()
    for number, span in enumerate(spans):
        if number == 0 or first[number] == _NEVER or span.thread not in busy:
            continue
        until = busy[span.thread].until
        start_s = min(max(first[number], span.start_s), until(span.start_s))
        end_s = max(until(span.end_s), start_s)
        placed[number] = replace(span, start_s=start_s, duration_s=end_s - start_s)
        accelerated.add(number)
    return tuple(placed), accelerated
