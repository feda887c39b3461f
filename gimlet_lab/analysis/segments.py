"""Stretches of the cell between changes of stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gimlet_lab.analysis.stages import Membership
from gimlet_lab.model import Recording, Span
from gimlet_lab.model.phase import BOUNDS


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch in one call of a stage, or in glue.

    Attributes
    ----------
    start_s, end_s : float
    call : int or None
        Span id of the stage's call; None is glue.
    bound : int or None
        As the span itself says: a wait, a transfer, a call on another device.
    ours : bool
        The cell only waited for its profiler.
    """

    start_s: float
    end_s: float
    call: int | None
    bound: int | None
    ours: bool = False


def segments(recording: Recording, membership: Membership) -> Iterator[Segment]:
    """Cut the cell where the stage changes.

    The innermost call of the cell's own thread names the stage. While that thread is in glue (it waits for a
    pool it made), a call that another thread is in does.
    """
    cell = recording.spans[0]
    watched = [
        span
        for span in recording.spans
        if span.id != 0
        and (membership.call_of.get(span.id) == span.id or span.kind in ("wait", "transfer", "profiling"))
        and span.duration_s > 0
    ]
    events = sorted(
        [(min(max(span.start_s, 0.0), cell.duration_s), 1, span.id, span) for span in watched]
        + [(min(max(span.end_s, 0.0), cell.duration_s), 0, span.id, span) for span in watched],
        key=lambda event: event[:3],
    )
    active: dict[int, Span] = {}
    now = 0.0
    for at, begins, _, span in events:
        if at > now:
            yield _segment(now, at, active, membership)
            now = at
        if begins:
            active[span.id] = span
        else:
            active.pop(span.id, None)
    if cell.duration_s > now:
        yield _segment(now, cell.duration_s, active, membership)


def _segment(start_s: float, end_s: float, active: Mapping[int, Span], membership: Membership) -> Segment:
    own = membership.call_of
    span = max(
        active.values(),
        key=lambda span: (
            span.kind == "profiling",
            span.thread == 0 and span.id in own,
            span.thread,
            span.start_s,
            span.id,
        ),
        default=None,
    )
    if span is None:
        return Segment(start_s, end_s, None, None)
    bound = None
    if span.kind in ("wait", "transfer"):
        bound = BOUNDS.index(span.kind)
    elif span.attributes.get("device") and span.attributes.get("bound") in BOUNDS:
        bound = BOUNDS.index(str(span.attributes["bound"]))
    return Segment(start_s, end_s, membership.call_of.get(span.id), bound, span.kind == "profiling")
