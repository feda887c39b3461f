"""Readings of a cell kept in little memory: long runs are averaged, energy is summed before they are."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence

from gimlet_lab.hardware.meters.meter import Readings
from gimlet_lab.model.meters import Gap, MeterSeries, Value

#: Rows kept of a device, and of one core of a processor, of which there may be hundreds.
POINTS = 2000
CORE_POINTS = 200

#: Longer without a reading, and power is not integrated: a suspended machine, a call that hangs.
GAP_S = 2.0

#: No device draws more: a counter that runs faster was reset or is broken.
MAX_W = 2e4

MAX_GAPS = 256


class Record:
    """What the meters said, device by device; give :meth:`add` to a subscription.

    Parameters
    ----------
    points, core_points : int
        Rows to keep of a device, and of a core.
    gap_s : float
        Longer without a reading, and its energy is not known.
    """

    def __init__(self, points: int = POINTS, core_points: int = CORE_POINTS, gap_s: float = GAP_S) -> None:
        self._points = points
        self._core_points = core_points
        self._gap_s = gap_s
        self._devices: dict[str, _Rows] = {}
        self._lock = threading.Lock()

    def add(self, device: str, at_s: float, readings: Readings) -> None:
        """One more reading."""
        with self._lock:
            rows = self._devices.get(device)
            if rows is None:
                limit = self._core_points if device.startswith("core:") else self._points
                rows = self._devices[device] = _Rows(limit, self._gap_s)
            rows.add(at_s, readings)

    def series(self, zero_s: float = 0.0, names: Mapping[str, str] | None = None) -> tuple[MeterSeries, ...]:
        """What was kept, with times since ``zero_s`` and devices by the names others know them by."""
        called = names or {}
        with self._lock:
            return tuple(
                rows.series(called.get(device, device), zero_s) for device, rows in self._devices.items()
            )


class _Rows:
    """Rows of one device: when there are too many, neighbours are averaged, and so are later ones."""

    def __init__(self, limit: int, gap_s: float) -> None:
        self._limit = max(limit, 4)
        self._times: list[float] = []
        self._columns: dict[str, list[Value]] = {}
        self._energy = _Energy(gap_s)
        self._stride = 1
        self._pending: list[tuple[float, dict[str, Value]]] = []

    def add(self, at_s: float, readings: Readings) -> None:
        row = dict(readings)
        energy_j = self._energy.spent(at_s, _number(row.get("energy_j")), _number(row.get("power_w")))
        if self._energy.source is not None:
            row["energy_j"] = energy_j
        self._pending.append((at_s, row))
        # The first row is the beginning: its energy is where all differences start.
        if len(self._pending) >= self._stride or not self._times:
            self._flush()

    def series(self, device: str, zero_s: float) -> MeterSeries:
        self._flush()
        gaps = tuple(Gap(gap.start_s - zero_s, gap.end_s - zero_s, gap.bridged) for gap in self._energy.gaps)
        return MeterSeries(
            device,
            tuple(round(time - zero_s, 6) for time in self._times),
            {
                name: tuple(_rounded(name, value) for value in values)
                for name, values in self._columns.items()
                if any(value is not None for value in values)
            },
            self._energy.source,
            gaps,
        )

    def _flush(self) -> None:
        if not self._pending:
            return
        at_s, row = self._pending[-1][0], _merged([row for _, row in self._pending])
        self._pending = []
        before = len(self._times)
        self._times.append(at_s)
        for name in row.keys() - self._columns.keys():
            self._columns[name] = [None] * before
        for name, values in self._columns.items():
            values.append(row.get(name))
        if len(self._times) > self._limit:
            self._halve()

    def _halve(self) -> None:
        edges = [0, *range(1, len(self._times), 2), len(self._times)]
        cuts = list(itertools.pairwise(edges))
        self._times = [self._times[end - 1] for _, end in cuts]
        for name, values in self._columns.items():
            self._columns[name] = [_mean(name, values[start:end]) for start, end in cuts]
        self._stride *= 2


def _merged(rows: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
    if len(rows) == 1:
        return dict(rows[0])
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _mean(name, [row.get(name) for row in rows]) for name in names}


def _mean(name: str, values: Sequence[Value]) -> Value:
    """One value for several rows: the last of what is counted up, the mean of a number, all of texts."""
    known = [value for value in values if value is not None]
    if len(values) == 1 or not known:
        return values[0]
    if name == "energy_j":
        return known[-1]
    if any(isinstance(value, str) for value in known):
        return ", ".join(sorted({part for value in known for part in str(value).split(", ") if part}))
    numbers = [float(value) for value in known]
    return sum(numbers) / len(numbers)


class _Energy:
    """Energy since the first reading: by the device's counter, else by its power.

    The first reading that has either decides which. A counter that falls, or runs faster than any device
    can draw, was reset: what was spent meanwhile is not known.
    """

    def __init__(self, gap_s: float) -> None:
        self.source: str | None = None
        self.gaps: list[Gap] = []
        self._gap_s = gap_s
        self._sum_j = 0.0
        self._last: tuple[float, float] | None = None

    def spent(self, at_s: float, counter_j: float | None, power_w: float | None) -> float | None:
        if self.source is None:
            self.source = "counter" if counter_j is not None else "power" if power_w is not None else None
        value = counter_j if self.source == "counter" else power_w
        if value is None:
            return None
        last, self._last = self._last, (at_s, value)
        if last is None:
            return self._sum_j
        took_s = at_s - last[0]
        if self.source == "counter":
            spent_j = value - last[1]
            # Counters are written every 20 to 100 ms: as much may come at once.
            if not 0.0 <= spent_j <= MAX_W * (took_s + 0.1):
                self._gap(last[0], at_s, bridged=False)
                return self._sum_j
            if took_s > self._gap_s:
                self._gap(last[0], at_s, bridged=True)
            self._sum_j += spent_j
        elif took_s > self._gap_s:
            self._gap(last[0], at_s, bridged=False)
        else:
            self._sum_j += took_s * (value + last[1]) / 2
        return self._sum_j

    def _gap(self, start_s: float, end_s: float, *, bridged: bool) -> None:
        self.gaps.append(Gap(start_s, end_s, bridged))
        if len(self.gaps) > MAX_GAPS:
            # Less is known then, but memory stays flat.
            *rest, before, last = self.gaps
            self.gaps = [*rest, Gap(before.start_s, last.end_s, before.bridged and last.bridged)]


def _rounded(name: str, value: Value) -> Value:
    """No more figures than a meter has: a file holds thousands of them."""
    if not isinstance(value, float):
        return value
    return round(value, 6) if name == "energy_j" else float(f"{value:.12g}")


def _number(value: Value) -> float | None:
    return value if isinstance(value, float) else None
