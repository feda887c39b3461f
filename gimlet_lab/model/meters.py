"""What the devices' meters said during a run, and energy out of it: data and pure functions."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: What one reading is: a number in the unit its name ends with, a text, or None where nobody knows.
Value = float | str | None


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch in which energy is not known.

    Attributes
    ----------
    start_s, end_s : float
        The readings around it.
    bridged : bool
        A counter went on meanwhile: what was spent in all of it is known, not when.
    """

    start_s: float
    end_s: float
    bridged: bool


@dataclass(frozen=True, slots=True)
class MeterSeries:
    """Readings of one device during a run.

    Attributes
    ----------
    device : str
        ``cpu``, ``core:0``, ``cuda:0``; or ``nvidia:0``, ``amd:0`` where torch's name for it is not known.
    time_s : tuple of float
        Since the start of the cell; the first is from just before it, the last from just after its end.
    readings : mapping of name to tuple
        Beside ``time_s``; names end with their unit. ``energy_j`` is what was spent since the first reading.
        Readings of a long run are means over the time since the row before.
    energy_source : str or None
        ``counter`` (the device counts itself), ``power`` (integrated), or None where neither is known.
    gaps : tuple of Gap
    """

    device: str
    time_s: tuple[float, ...]
    readings: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    energy_source: str | None = None
    gaps: tuple[Gap, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MeterSeries:
        """The inverse of :meth:`to_json`."""
        return cls(
            data["device"],
            tuple(data["time_s"]),
            {name: tuple(values) for name, values in data["readings"].items()},
            data["energy_source"],
            tuple(Gap(**gap) for gap in data["gaps"]),
        )

    def joules(self, start_s: float, end_s: float) -> float | None:
        """Energy spent between two moments; None where a meter did not cover them.

        Examples
        --------
        >>> series = MeterSeries("cuda:0", (0.0, 1.0, 2.0), {"energy_j": (0.0, 300.0, 500.0)}, "counter")
        >>> series.joules(0.5, 2.0), series.joules(0.5, 2.5)
        (350.0, None)
        """
        return EnergyCurve(self).joules(start_s, end_s)

    def mean(self, name: str, start_s: float, end_s: float) -> float | None:
        """Mean of a reading that is of the time since the one before it; None where it is unknown."""
        values = self.readings.get(name, ())
        total = weight = 0.0
        first = max(bisect_right(self.time_s, start_s), 1)
        for index in range(first, len(self.time_s)):
            low, high = self.time_s[index - 1], self.time_s[index]
            if low >= end_s:
                break
            value = values[index] if values else None
            if isinstance(value, int | float):
                share = min(high, end_s) - max(low, start_s)
                total += value * share
                weight += share
        # What covers less than half of the time says nothing of the whole.
        return total / weight if weight > 0.5 * (end_s - start_s) else None

    def throttled(self, start_s: float, end_s: float) -> str | None:
        """Why the device was held back at a reading in that time: ``""`` not at all, None unknown.

        A reading stands for the time since the one before it.
        """
        values = self.readings.get("throttle_reasons", ())
        first = max(bisect_right(self.time_s, start_s), 1)
        last = bisect_left(self.time_s, end_s)
        seen = [value for value in values[first : last + 1] if isinstance(value, str)]
        if not seen:
            return None
        return ", ".join(sorted({reason for value in seen for reason in value.split(", ") if reason}))


class EnergyCurve:
    """The energy of one device over time, for many questions; between two readings it is spent evenly.

    Parameters
    ----------
    series : MeterSeries
    """

    def __init__(self, series: MeterSeries) -> None:
        known = [
            (time, value)
            for time, value in zip(series.time_s, series.readings.get("energy_j", ()), strict=False)
            if isinstance(value, int | float)
        ]
        self._times = [time for time, _ in known]
        self._joules = [value for _, value in known]
        self._gaps = series.gaps

    def joules(self, start_s: float, end_s: float) -> float | None:
        """Energy spent between two moments; None where a meter did not cover them."""
        for gap in self._gaps:
            if gap.start_s < start_s < gap.end_s or gap.start_s < end_s < gap.end_s:
                return None
            if not gap.bridged and start_s <= gap.start_s and gap.end_s <= end_s:
                return None
        before, after = self._at(start_s), self._at(end_s)
        return None if before is None or after is None else after - before

    def _at(self, moment: float) -> float | None:
        times, joules = self._times, self._joules
        if not times or not times[0] <= moment <= times[-1]:
            return None
        after = bisect_left(times, moment)
        if times[after] == moment:
            return joules[after]
        low, high = times[after - 1], times[after]
        return joules[after - 1] + (joules[after] - joules[after - 1]) * (moment - low) / (high - low)
