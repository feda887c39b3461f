"""Phases as rows and as marks of the timeline: plain data, however many there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from gimlet_lab.model.phase import BOUNDS, Phase
from gimlet_lab.model.run import Run
from gimlet_lab.render.telemetry import strips
from gimlet_lab.render.units import finite, label, maybe, ratio

#: Marks of the timeline; more phases than that are drawn together.
MAX_MARKS = 2000
MAX_LANES = 24
MAX_ROWS = 200
OTHER = "other Python"
_MORE = "other stages"


def phases(run: Run, lines: Mapping[int, str]) -> dict[str, Any]:
    """The longest phases in the order they ran, the line of each by its number, the time under each bound."""
    seconds: dict[str, float] = defaultdict(float)
    for phase in run.phase_list:
        seconds[label(phase.bound)] += finite(phase.duration_s) or 0.0
    numbered = list(enumerate(run.phase_list))
    longest = sorted(numbered, key=lambda item: -(finite(item[1].duration_s) or 0.0))
    left_out = longest[MAX_ROWS:]
    shown = sorted(longest[:MAX_ROWS], key=lambda item: finite(item[1].start_s) or 0.0)
    return {
        "min_phase_s": finite(run.min_phase_s),
        "count": len(run.phase_list),
        "by_bound": [
            {"bound": bound, "seconds": seconds[bound], "share": ratio(seconds[bound], run.duration_s)}
            for bound in sorted(seconds, key=lambda bound: -seconds[bound])
        ],
        "rows": [
            {
                "start_s": finite(phase.start_s),
                "duration_s": finite(phase.duration_s),
                "bound": label(phase.bound),
                "stage": maybe(phase.stage),
                "role": maybe(phase.role),
                "flops": finite(phase.flops),
                "bytes": finite(phase.bytes),
                "intensity": finite(phase.intensity),
                "warmup": phase.warmup,
                "joules": finite(phase.joules),
                "throttled": phase.throttled,
                "line": lines.get(number),
            }
            for number, phase in shown
        ],
        "left_out": {
            "count": len(left_out),
            "seconds": sum(finite(phase.duration_s) or 0.0 for _, phase in left_out),
        },
    }


def timeline(run: Run) -> dict[str, Any]:
    """Marks by lane, one per stage in the order of first appearance, short neighbours merged; and meters."""
    found = [
        phase
        for phase in sorted(run.phase_list, key=lambda phase: finite(phase.start_s) or 0.0)
        if finite(phase.start_s) is not None and (finite(phase.duration_s) or 0.0) > 0
    ]
    time: dict[str | None, float] = defaultdict(float)
    for phase in found:
        time[phase.stage] += phase.duration_s
    kept = set(sorted(time, key=lambda stage: -time[stage])[: MAX_LANES - (len(time) > MAX_LANES)])
    ids: dict[str, int] = {}
    lane_of: dict[str | None, int] = {}
    for phase in found:
        if phase.stage not in lane_of:
            lane = (OTHER if phase.stage is None else label(phase.stage)) if phase.stage in kept else _MORE
            lane_of[phase.stage] = ids.setdefault(lane, len(ids))
    end = max([finite(run.duration_s) or 0.0, *(phase.start_s + phase.duration_s for phase in found)])
    marks = _merged([(lane_of[phase.stage], phase) for phase in found], end, max(1, len(ids)))
    bounds = list(dict.fromkeys([*BOUNDS, *(label(mark[2].bound) for mark in marks)]))
    return {
        "end_s": end,
        "strips": strips(run, end),
        "lanes": list(ids),
        "bounds": bounds,
        "marks": {
            "lane": [lane for lane, _, _, _ in marks],
            "start_s": [_micro(phase.start_s) for _, _, phase, _ in marks],
            "duration_s": [_micro(seconds) for _, seconds, _, _ in marks],
            "bound": [bounds.index(label(phase.bound)) for _, _, phase, _ in marks],
            "warmup": [int(phase.warmup) for _, _, phase, _ in marks],
            "merged": [number for _, _, _, number in marks],
        },
    }


def _micro(seconds: float) -> float:
    """Six figures are more than a screen has pixels, and keep the file small."""
    return float(f"{seconds:.6g}")


def _merged(
    phases: Sequence[tuple[int, Phase]], end: float, lanes: int
) -> list[tuple[int, float, Phase, int]]:
    """(lane, seconds, phase, how many): where there are too many, one mark per slice of time and lane.

    The phase that lends its bound to a mark is the one that takes most of it.
    """
    if len(phases) <= MAX_MARKS:
        return [(lane, phase.duration_s, phase, 1) for lane, phase in phases]
    slices = MAX_MARKS // lanes
    groups: dict[tuple[int, int], list[Phase]] = defaultdict(list)
    for lane, phase in phases:
        groups[lane, min(slices - 1, int(phase.start_s / end * slices))].append(phase)
    marks: list[tuple[int, float, Phase, int]] = []
    for (lane, _), group in groups.items():
        seconds: dict[str, float] = defaultdict(float)
        for phase in group:
            seconds[phase.bound] += phase.duration_s
        bound = max(seconds, key=lambda bound: seconds[bound])
        last = max(phase.start_s + phase.duration_s for phase in group)
        warm = all(phase.warmup for phase in group)
        head = Phase(group[0].start_s, 0.0, bound, group[0].stage, None, None, None, warm)
        marks.append((lane, last - head.start_s, head, len(group)))
    return sorted(marks, key=lambda mark: mark[2].start_s)
