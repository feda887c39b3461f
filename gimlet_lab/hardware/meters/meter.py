"""What a meter is: the one interface of all vendors. Other packages add theirs by entry point.

An entry point of the group ``gimlet_lab.meters`` names a callable that makes a :class:`Meter`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gimlet_lab.model.meters import Value

GROUP = "gimlet_lab.meters"

#: Readings of one device by name.
Readings = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Card:
    """An accelerator as its driver knows it: a whole one, or a part that is a device of its own.

    Attributes
    ----------
    id : str
        ``nvidia:0`` or ``amd:0``, by the driver's order; ``nvidia:0/1`` is a MIG instance.
    handle : object
        The driver's.
    name : str
    uuid : str or None
    pci : str or None
        ``0000:3b:00.0``.
    parent : Card or None
        The whole one of a part.
    """

    id: str
    handle: Any
    name: str
    uuid: str | None = None
    pci: str | None = None
    parent: Card | None = None


class Probe(Protocol):
    """What can be read by itself: it may fail or hang, and the others go on.

    One that never hangs may say so by an attribute ``prompt`` that is true: it has no thread of its own.
    """

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices it reads."""

    @property
    def cards(self) -> tuple[Card, ...]:
        """Those that torch may know by another name."""

    def read(self, now_s: float) -> Mapping[str, Readings]:
        """Read each device. What is unknown is None or left out; an exception is one line that says why.

        Parameters
        ----------
        now_s : float
            On the sampler's clock: rates are by difference to the reading before.
        """


class Meter(Protocol):
    """One vendor's devices."""

    name: str

    def open(self) -> tuple[Sequence[Probe], Sequence[str]]:
        """Find the devices, and say in a line each what cannot be read.

        Without a library, a driver or a device there are none, and nothing is said.
        """


class UnreadableError(Exception):
    """A device that cannot be read any more; the message is one line that says why."""


def installed() -> list[Meter]:
    """Our meters, then those of installed packages; one that cannot be made is left out."""
    from gimlet_lab.hardware.meters.amd import AmdMeter
    from gimlet_lab.hardware.meters.cpu import CpuMeter
    from gimlet_lab.hardware.meters.nvidia import NvidiaMeter

    found: list[Meter] = [CpuMeter(), NvidiaMeter(), AmdMeter()]
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            found.append(entry.load()())
        except Exception:  # noqa: BLE001, S112 - somebody else's code; the other meters stay usable
            continue
    return found


#: Lowest and highest believable value by the end of a name.
_BELIEVABLE = {
    "utilization": (0.0, 1.0),
    "occupancy": (0.0, 1.0),
    "_busy": (0.0, 1.0),
    "_bytes": (0.0, 1e16),
    "_bytes_per_s": (0.0, 1e15),
    # Nothing that answers draws nothing: 0 W is how some drivers say that they do not know.
    "_w": (1e-3, 2e4),
    "_j": (0.0, 1e15),
    "_hz": (0.0, 1e11),
    "_c": (-60.0, 250.0),
}
#: Percentages are rounded and windows differ: this much above the highest is the highest.
_TOLERANCE = 1.05


def believable(name: str, value: Any) -> Value:
    """The value, or None where it is no number or cannot be.

    Examples
    --------
    >>> believable("power_w", 4294967295), believable("utilization", 1.02), believable("sm_clock_hz", "N/A")
    (None, 1.0, None)
    """
    if name == "throttle_reasons":
        return value if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    low, high = _bounds(name)
    return min(float(value), high) if low <= value <= high * _TOLERANCE else None


@functools.cache
def _bounds(name: str) -> tuple[float, float]:
    return next((bounds for end, bounds in _BELIEVABLE.items() if name.endswith(end)), (0.0, math.inf))


def clean(readings: Mapping[str, Any]) -> dict[str, Value]:
    """Readings of one device, what cannot be taken out."""
    found = {name: believable(name, value) for name, value in readings.items()}
    used, total = found.get("memory_used_bytes"), found.get("memory_total_bytes")
    if not total:
        found.pop("memory_total_bytes", None)
    elif isinstance(used, float) and isinstance(total, float) and used > total:
        found["memory_used_bytes"] = None
    return found


class Rates:
    """Rates of counters by the difference to the reading before.

    Examples
    --------
    >>> rates = Rates()
    >>> rates.of("bytes", 1000.0, 1.0), rates.of("bytes", 3000.0, 2.0), rates.of("bytes", 10.0, 3.0)
    (None, 2000.0, None)
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}

    def of(self, name: str, count: float | None, now_s: float) -> float | None:
        """Give the counts per second since the last reading; None for the first, and after a reset."""
        if count is None:
            return None
        last = self._last.get(name)
        self._last[name] = (count, now_s)
        if last is None or now_s <= last[1] or count < last[0]:
            return None
        return (count - last[0]) / (now_s - last[1])


class CardProbe:
    """What every probe of one card has: the card, and the rates of its counters."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._rates = Rates()

    @property
    def devices(self) -> tuple[str, ...]:
        """The one device."""
        return (self._card.id,)

    @property
    def cards(self) -> tuple[Card, ...]:
        """The one device."""
        return (self._card,)


class Seldom:
    """A call of the time that is made at most once in so many seconds; between, its last answer holds."""

    def __init__(self, call: Callable[[float], Any], every_s: float) -> None:
        self._call = call
        self._every_s = every_s
        self._next_s = -math.inf
        self._answer: Any = None

    def __call__(self, now_s: float) -> Any:
        """The answer."""
        if now_s >= self._next_s:
            self._next_s = now_s + self._every_s
            self._answer = None
            self._answer = self._call(now_s)
        return self._answer
