"""What the devices' meters said over a run's time: strips below its timeline, however long the run was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from gimlet_lab.model.meters import MeterSeries, Value
from gimlet_lab.model.run import Run
from gimlet_lab.render.units import finite, label

#: Strips that are drawn, and points of each: neighbours are drawn as their mean.
MAX_STRIPS = 6
MAX_POINTS = 240

#: Fewer readings than these say nothing over time.
_LEAST = 4

#: Readings worth a strip, how they are called and in which unit; a share is of 1.
_READINGS = (("utilization", "use", ""), ("power_w", "power", "W"), ("memory_used_bytes", "memory", "B"))


def strips(run: Run, end_s: float) -> list[dict[str, Any]]:
    """A strip for each reading of each device that has enough of them, use before power before memory.

    Returns
    -------
    list of dict
        ``device``, ``reading`` and ``unit``; ``most``, the value at the strip's top; ``time_s`` and
        ``value``, which is null where nothing was read.
    """
    found = [
        strip
        for name, called, unit in _READINGS
        for series in run.meter_list
        # The host's memory is everybody's, and a core is a part of it.
        if not series.device.startswith("core:") and (name, series.device) != ("memory_used_bytes", "cpu")
        for strip in _strip(series, name, called, unit, end_s)
    ]
    return found[:MAX_STRIPS]


def _strip(series: MeterSeries, name: str, called: str, unit: str, end_s: float) -> Iterator[dict[str, Any]]:
    values = series.readings.get(name, ())
    # The first reading is from before the cell.
    pairs = [(t, _number(v)) for t, v in zip(series.time_s, values, strict=False) if 0 <= t <= end_s]
    known = [value for _, value in pairs if value is not None]
    if len(known) < _LEAST:
        return
    top = 1.0 if not unit else max(max(known), _total(series, name))
    points = list(_thinned(pairs, end_s))
    yield {
        "device": label(series.device),
        "reading": called,
        "unit": unit,
        "most": float(f"{top:.4g}"),
        "time_s": [float(f"{t:.5g}") for t, _ in points],
        "value": [None if value is None else float(f"{value:.4g}") for _, value in points],
    }


def _total(series: MeterSeries, name: str) -> float:
    totals = series.readings.get("memory_total_bytes", ()) if name == "memory_used_bytes" else ()
    return max((value for total in totals if (value := _number(total)) is not None), default=0.0)


def _number(value: Value) -> float | None:
    return finite(value) if isinstance(value, float | int) else None


def _thinned(
    pairs: Sequence[tuple[float, float | None]], end_s: float
) -> Iterator[tuple[float, float | None]]:
    if len(pairs) <= MAX_POINTS:
        yield from pairs
        return
    for _, group in groupby(pairs, key=lambda pair: int(pair[0] / end_s * MAX_POINTS)):
        rows = list(group)
        known = [value for _, value in rows if value is not None]
        yield rows[0][0], sum(known) / len(known) if known else None
