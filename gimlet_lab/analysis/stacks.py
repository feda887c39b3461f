"""Sampled stacks, placed: which stage and phase each stretch belongs to, and how much of it was on a core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from gimlet_lab.model import Phase, Span
from gimlet_lab.model.stacks import StackRecording, Stacks, StackSample

#: Stretches that are kept; a longer run is cut into coarser ones.
MAX_SAMPLES = 200_000

Numbers = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.float64]


def place(
    recording: StackRecording,
    cell_s: float,
    spans: Sequence[Span],
    span_stage: Mapping[int, str],
    phases: Sequence[Phase],
) -> Stacks:
    """Cut what was seen where stages and phases meet, to the length of a look.

    Parameters
    ----------
    recording : StackRecording
    cell_s : float
        What was seen later is not the cell's.
    spans, span_stage, phases
        Of the run.
    """
    rows = [
        (one.thread, one.node, max(0.0, one.start_s), min(cell_s, one.end_s))
        for one in recording.seen
        if max(0.0, one.start_s) < min(cell_s, one.end_s)
    ]
    if not rows:
        return Stacks(rate_hz=recording.rate_hz, source=recording.source)
    start, end = np.array([row[2:] for row in rows]).T
    step = max(1.0 / recording.rate_hz, float((end - start).sum()) / MAX_SAMPLES)
    row, start, end = _cut(start, end, step)
    thread, node = np.array([row[:2] for row in rows], dtype=np.int64)[row].T
    middle = 0.5 * (start + end)
    phase = np.searchsorted([one.start_s for one in phases], middle, side="right") - 1
    names: list[str | None] = [None]
    stage = np.zeros(len(thread), dtype=np.int64)
    ran = np.full(len(thread), np.nan)
    for number, each in enumerate(recording.threads):
        mine = thread == number
        if not mine.any():
            continue
        if each.lane is not None:
            stage[mine] = _stages(spans, span_stage, each.lane, middle[mine], names)
        if each.lane == 0 or each.device is not None:
            default = np.array([_number(names, one.stage) for one in phases] or [0])
            where = mine & (stage == 0) & (phase >= 0)
            stage[where] = default[phase[where]]
        if number in recording.accounts:
            at, total = recording.accounts[number]
            ran[mine] = np.interp(end[mine], at, total) - np.interp(start[mine], at, total)
    ran = np.clip(ran, 0.0, end - start)
    return Stacks(
        recording.frames,
        recording.nodes,
        recording.threads,
        tuple(_merged(thread, node, stage, phase, start, end, ran, names)),
        recording.rate_hz,
        recording.source,
    )


def _cut(start: Seconds, end: Seconds, step: float) -> tuple[Numbers, Seconds, Seconds]:
    """Pieces on one grid for all: the row each comes from, and its ends."""
    first = np.floor(start / step).astype(np.int64)
    count = np.maximum(1, np.ceil(end / step).astype(np.int64) - first)
    row = np.repeat(np.arange(len(start)), count)
    index = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) + first[row]
    low = np.maximum(start[row], index * step)
    high = np.minimum(end[row], (index + 1) * step)
    some = high > low
    return row[some], low[some], high[some]


def _stages(
    spans: Sequence[Span], span_stage: Mapping[int, str], lane: int, at_s: Seconds, names: list[str | None]
) -> Numbers:
    """The stage of the innermost span of a lane at each time, by its number in ``names``; 0 is none."""
    mine = [span for span in spans if span.thread == lane and span.id in span_stage]
    mine.sort(key=lambda span: (span.start_s, -span.duration_s))
    edges: list[float] = []
    inside: list[int] = []
    open_spans: list[Span] = []

    def close(before_s: float) -> None:
        while open_spans and open_spans[-1].end_s <= before_s:
            edges.append(open_spans.pop().end_s)
            inside.append(_number(names, span_stage[open_spans[-1].id]) if open_spans else 0)

    for span in mine:
        close(span.start_s)
        edges.append(span.start_s)
        inside.append(_number(names, span_stage[span.id]))
        open_spans.append(span)
    close(float("inf"))
    if not edges:
        return np.zeros(len(at_s), dtype=np.int64)
    steps = np.maximum.accumulate(np.array(edges))
    return np.array([0, *inside])[np.searchsorted(steps, at_s, side="right")]


def _number(names: list[str | None], name: str | None) -> int:
    if name not in names:
        names.append(name)
    return names.index(name)


def _merged(
    thread: Numbers,
    node: Numbers,
    stage: Numbers,
    phase: Numbers,
    start: Seconds,
    end: Seconds,
    ran: Seconds,
    names: Sequence[str | None],
) -> list[StackSample]:
    """Neighbours that differ in nothing as one."""
    key = np.stack([thread, node, stage, phase])
    new = np.ones(len(thread), dtype=bool)
    new[1:] = (key[:, 1:] != key[:, :-1]).any(axis=0) | (start[1:] > end[:-1] + 1e-9)
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(thread)) - 1
    ran = np.add.reduceat(ran, first)
    columns = zip(
        start[first].tolist(),
        (end[last] - start[first]).tolist(),
        [None if np.isnan(one) else one for one in ran.tolist()],
        thread[first].tolist(),
        node[first].tolist(),
        [names[one] for one in stage[first].tolist()],
        [one if one >= 0 else None for one in phase[first].tolist()],
        strict=True,
    )
    return [StackSample(*row) for row in columns]
