"""The measured tier: how this machine's own runs correct the model, one small file a device.

For each kind of operator (op, dtype, what bounds it, how long one takes) the last runs' predicted and
measured seconds are kept; their ratio corrects later estimates, its spread from run to run is their interval.
A file belongs to one calibration: once the device is measured again, what the runs said of the old one is no
longer used. One that is torn, foreign or old is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gimlet_lab.hardware import machine
from gimlet_lab.hardware.files import write_json
from gimlet_lab.model.device import Device
from gimlet_lab.model.work import Work

SCHEMA = "gimlet.measured/1"

#: Runs that count: what a machine did longer ago says less of what it does now.
MOST_RUNS = 20

#: Kinds of operators, and of stages' own Python, in one file; files in the folder.
MOST_KINDS = 512
MOST_FILES = 32

#: Half of a 90% interval's width, as a logarithm: at least so much, and where runs are too few to tell.
LEAST_SPREAD = 0.1
FEW_SPREAD = 0.3

#: Beyond this factor between a run and its prediction, the device is not what it was.
DRIFT = 1.25

#: What has no operator: Python between a module's operators, and what a function does itself, by its name.
PYTHON, OWN = "python", "own"

#: A module in a role, all its operators and its Python together: where it ran before, that says the most.
STAGE = "stage"

#: What this process met for the first time, and in which run: it was cold then (code paths, pages, caches),
#: and counts only until there is a warm run.
_COLD: dict[tuple[str, str], str] = {}


@dataclass(frozen=True, slots=True)
class Factor:
    """What a prediction is multiplied by, with its 90% interval; from ``runs`` runs."""

    value: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True, slots=True)
class Observation:
    """One run's seconds for one kind: as the model has it, and as they were."""

    kind: str
    predicted_s: float
    measured_s: float


@dataclass(frozen=True)
class Corrections:
    """What the last runs on a device said, by kind.

    Attributes
    ----------
    entries : mapping of kind to its runs, each (date, predicted seconds, measured seconds)
    runs : tuple of (date, ratio)
        Of each run: what it took over what was predicted of it with the corrections of its time.
    """

    entries: Mapping[str, tuple[tuple[str, float, float], ...]] = field(default_factory=dict)
    runs: tuple[tuple[str, float], ...] = ()
    _found: dict[str, Factor | None] = field(default_factory=dict, compare=False, repr=False)

    def factor(self, kind: str) -> Factor | None:
        """The factor of a kind, or of its nearest relatives: of any length, then of any bound."""
        if kind not in self._found:
            self._found[kind] = self._nearest(kind)
        return self._found[kind]

    def _nearest(self, kind: str) -> Factor | None:
        parts = kind.split("/")
        for depth in range(len(parts), 1, -1):
            found = _factor(self._like("/".join(parts[:depth])))
            if found is not None:
                return found
        return _factor(self._like(kind)) if len(parts) == 1 else None

    def factors(
        self, works: Sequence[Work], bounds: Sequence[str], seconds: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Factors of works' estimates: value, low, high, and whether there is one; 1 where not."""
        found = [
            self.factor(kind_of(work, bound, float(one))) if np.isfinite(one) else None
            for work, bound, one in zip(works, bounds, seconds, strict=True)
        ]
        value, low, high = (
            np.array([1.0 if f is None else getattr(f, name) for f in found])
            for name in ("value", "low", "high")
        )
        return value, low, high, np.array([f is not None for f in found], dtype=bool)

    @property
    def drift(self) -> float | None:
        """How far the last run was from its prediction, as a factor above 1; None before the second run."""
        if len(self.runs) < 2:
            return None
        ratio = self.runs[-1][1]
        return max(ratio, 1 / ratio)

    def learned(self, date: str, seen: Iterable[Observation], ratio: float | None) -> Corrections:
        """With one more run; the oldest ones make room."""
        entries = dict(self.entries)
        for one in _summed(seen):
            row = (date, one.predicted_s, one.measured_s)
            # Moved to the end: the kinds that no run has met for longest are the first to go.
            entries[one.kind] = (*entries.pop(one.kind, ()), row)[-MOST_RUNS:]
        kept = dict(list(entries.items())[-MOST_KINDS:])
        runs = self.runs if ratio is None else (*self.runs, (date, ratio))[-MOST_RUNS:]
        return Corrections(kept, runs)

    def without(self, rows: Mapping[str, str | None]) -> Corrections:
        """Less one run of some kinds: the one of that date."""
        entries = {
            kind: tuple(row for row in kept if row[0] != rows.get(kind))
            for kind, kept in self.entries.items()
        }
        return Corrections({kind: kept for kind, kept in entries.items() if kept}, self.runs)

    def _like(self, prefix: str) -> list[tuple[float, float]]:
        """Predicted and measured seconds of each run, of all kinds that begin so."""
        found = [
            rows for kind, rows in self.entries.items() if kind == prefix or kind.startswith(prefix + "/")
        ]
        if len(found) == 1:
            return [(predicted, measured) for _, predicted, measured in found[0]]
        by_date: dict[str, tuple[float, float]] = {}
        for rows in found:
            for date, predicted, measured in rows:
                before = by_date.get(date, (0.0, 0.0))
                by_date[date] = (before[0] + predicted, before[1] + measured)
        return list(by_date.values())


def kind_of(work: Work, bound: str, seconds: float) -> str:
    """The kind that a work is corrected with: op, dtype, bound, and how long one call takes.

    Examples
    --------
    >>> kind_of(Work.of("gemm", m=1, n=8, k=8, count=100), "bandwidth", 1e-3)
    'gemm/float32/bandwidth/-8'
    """
    each = max(seconds / max(work.count, 1), 1e-9)
    return f"{work.op}/{work.dtype}/{bound}/{round(math.log(each, 4)) if each < 1 else 0}"


def corrections(device: Device, directory: Path | None = None) -> Corrections:
    """What runs on a live device said since it was calibrated; empty for any other."""
    path = path_of(device, directory)
    if path is None:
        return Corrections()
    try:
        return _read(str(path), path.stat().st_mtime_ns)
    except OSError:
        return Corrections()


def learn(
    device: Device, date: str, seen: Iterable[Observation], ratio: float | None, directory: Path | None = None
) -> bool:
    """Keep what a run said; whether it could be written."""
    path = path_of(device, directory)
    if path is None:
        return False
    seen = _summed(seen)
    before = corrections(device, directory)
    warm = {one.kind: _COLD.get((str(path), one.kind)) for one in seen}
    after = before.without(warm).learned(date, seen, ratio)
    for one in seen:
        _COLD[str(path), one.kind] = date if warm[one.kind] is None else ""
    content = {"schema": SCHEMA, "device": device.name, "entries": after.entries, "runs": after.runs}
    return write_json(path, content, most=("measured-*.json", MOST_FILES))


def describe(device: Device, directory: Path | None = None) -> str | None:
    """What runs have said of a device, in a line; None where there were none since its calibration."""
    known = corrections(device, directory)
    if not known.runs:
        return None
    count, ratio = len(known.runs), known.runs[-1][1]
    line = f"{device.id}: the model is corrected by {count} run{'s' if count > 1 else ''} here"
    if known.drift is None:
        return line
    line += f"; the last took {ratio:.2f} times what was expected"
    if known.drift > DRIFT:
        line += ": it has drifted, or was not alone; %gimlet devices --calibrate measures it again"
    return line


def path_of(device: Device, directory: Path | None = None) -> Path | None:
    """Where a device's file is; None for a device that is not here or was never measured."""
    measured = [*device.achieved_flops.values(), device.achieved_bandwidth_bytes_per_s, device.launch_s]
    rates = [f"{quantity.value:.3g}" for quantity in measured if quantity and quantity.tier == "measured"]
    if not device.live or not rates:
        return None
    digest = hashlib.sha256(json.dumps([device.name, *rates]).encode()).hexdigest()[:16]
    return (machine.cache_dir() if directory is None else directory) / f"measured-{digest}.json"


@cache
def _read(path: str, _changed: int) -> Corrections:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            return Corrections()
        entries = {str(kind): tuple(_row(row) for row in rows) for kind, rows in data["entries"].items()}
        return Corrections(entries, tuple((str(date), _positive(ratio)) for date, ratio in data["runs"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Corrections()


def _row(row: Any) -> tuple[str, float, float]:
    date, predicted, measured = row
    return str(date), _positive(predicted), _positive(measured)


def _positive(value: Any) -> float:
    if not isinstance(value, float | int) or not math.isfinite(value) or value <= 0:
        raise ValueError("seconds are a positive number")
    return float(value)


def _summed(seen: Iterable[Observation]) -> list[Observation]:
    sums: dict[str, tuple[float, float]] = {}
    for one in seen:
        predicted, measured = sums.get(one.kind, (0.0, 0.0))
        sums[one.kind] = (predicted + one.predicted_s, measured + one.measured_s)
    return [Observation(kind, *both) for kind, both in sums.items() if both[0] > 0 and both[1] > 0]


def _factor(runs: Sequence[tuple[float, float]]) -> Factor | None:
    if not runs:
        return None
    ratios = [math.log(measured / predicted) for predicted, measured in runs]
    middle = statistics.median(ratios)
    spread = FEW_SPREAD
    if len(ratios) > 2:
        spread = max(LEAST_SPREAD, 1.645 * statistics.stdev(ratios))
    return Factor(math.exp(middle), math.exp(middle - spread), math.exp(middle + spread), len(ratios))
