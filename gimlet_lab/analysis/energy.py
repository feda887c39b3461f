"""Energy of phases and stages by the devices' meters, throttling, and bandwidth beside the counted bytes.

Energy is what the devices that the run used spent meanwhile, whoever made them: a counter knows no process.
Between two readings it is spread evenly, so a phase shorter than that is as good as the one around it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gimlet_lab.analysis.atom import Atom
from gimlet_lab.model import Graph, MeterSeries, Phase, Recording, Stage
from gimlet_lab.model.meters import EnergyCurve

#: Meter and count differ by more: worth a line.
WORTH_SAYING = 0.2

#: A meter's mean over fewer readings says nothing of a stage.
MIN_READINGS = 5


@dataclass(frozen=True, slots=True)
class Metered:
    """What the meters add to a run."""

    phases: tuple[Phase, ...]
    graph: Graph
    notes: tuple[str, ...]


def meter(recording: Recording, phases: Sequence[Phase], graph: Graph, atoms: Sequence[Atom]) -> Metered:
    """Put energy and throttling beside phases and stages; say where meters and counts disagree.

    Parameters
    ----------
    recording : Recording
    phases : sequence of Phase
    graph : Graph
    atoms : sequence of Atom
        The whole cell, each with its stage.
    """
    used = {"cpu", *(op.device for op in recording.ops)}
    mine = [series for series in recording.meters if series.device in used]
    curves = [EnergyCurve(series) for series in mine if series.energy_source is not None]
    spent: dict[str, float | None] = defaultdict(float)
    for stage, start_s, end_s in _stretches(atoms):
        joules, so_far = _joules(curves, start_s, end_s), spent[stage]
        # Unknown in one stretch is unknown in the sum.
        spent[stage] = None if joules is None or so_far is None else so_far + joules
    return Metered(
        tuple(
            replace(
                phase,
                joules=_joules(curves, phase.start_s, phase.start_s + phase.duration_s),
                throttled=_throttled(mine, phase.start_s, phase.start_s + phase.duration_s),
            )
            for phase in phases
        ),
        replace(graph, stages=tuple(replace(stage, joules=spent.get(stage.id)) for stage in graph.stages)),
        (*_energy_notes(mine, used), *_throttle_notes(mine), *_bandwidth_notes(mine, phases, graph.stages)),
    )


def _stretches(atoms: Sequence[Atom]) -> Iterator[tuple[str, float, float]]:
    """Stretches of one stage without a gap: atoms are far shorter than what a meter resolves."""
    stage: str | None = None
    start_s = end_s = 0.0
    for atom in atoms:
        if atom.stage != stage or atom.start_s > end_s + 1e-9:
            if stage is not None:
                yield stage, start_s, end_s
            stage, start_s = atom.stage, atom.start_s
        end_s = atom.start_s + atom.duration_s
    if stage is not None:
        yield stage, start_s, end_s


def _joules(curves: Sequence[EnergyCurve], start_s: float, end_s: float) -> float | None:
    spent = [curve.joules(start_s, end_s) for curve in curves]
    known = [joules for joules in spent if joules is not None]
    return sum(known) if known and len(known) == len(spent) else None


def _throttled(meters: Sequence[MeterSeries], start_s: float, end_s: float) -> bool | None:
    said = [series.throttled(start_s, end_s) for series in meters]
    known = [reasons for reasons in said if reasons is not None]
    return any(known) if known else None


def _energy_notes(meters: Sequence[MeterSeries], used: set[str]) -> Iterator[str]:
    known = {series.device: series.energy_source for series in meters if series.energy_source}
    if not known:
        return
    how = {"counter": "its own counter", "power": "its power over time"}
    counted = ", ".join(f"{device} ({how[str(source)]})" for device, source in known.items())
    without = ", ".join(sorted(used - known.keys()))
    yield f"energy is of {counted}" + (f"; that of {without} is not known" if without else "")


def _throttle_notes(meters: Sequence[MeterSeries]) -> Iterator[str]:
    for series in meters:
        said = [value for value in series.readings.get("throttle_reasons", ()) if isinstance(value, str)]
        held = [value for value in said if value]
        if held:
            reasons = ", ".join(sorted({reason for value in held for reason in value.split(", ")}))
            share = len(held) / len(said)
            yield f"{series.device} was held back in {share:.0%} of its readings: {reasons}"


def _bandwidth_notes(
    meters: Sequence[MeterSeries], phases: Sequence[Phase], stages: Sequence[Stage]
) -> Iterator[str]:
    """Stages whose device moved far more or fewer bytes than its operators account for."""
    by_device = {series.device: series for series in meters if "dram_bytes_per_s" in series.readings}
    for stage in stages:
        series = by_device.get(stage.device or "cpu")
        if series is None:
            continue
        seconds = counted = moved = 0.0
        readings = 0
        for phase in phases:
            end_s = phase.start_s + phase.duration_s
            if phase.stage != stage.id or phase.bytes is None:
                continue
            rate = series.mean("dram_bytes_per_s", phase.start_s, end_s)
            if rate is None:
                continue
            seconds += phase.duration_s
            counted += phase.bytes
            moved += rate * phase.duration_s
            readings += sum(phase.start_s < time <= end_s for time in series.time_s)
        if readings >= MIN_READINGS and counted > 0 and abs(moved / counted - 1) > WORTH_SAYING:
            by_meter, by_count = (f"{total / seconds / 1e9:.3g} GB/s" for total in (moved, counted))
            yield (
                f"{stage.id}: the memory of {series.device} moved {by_meter} by its meter, "
                f"{by_count} by the operators' count"
            )
