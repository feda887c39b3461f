"""Somebody else's trace as a recording: what our own capture would have seen, as far as the trace tells."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gimlet_lab.capture.chakra import Execution, timeless
from gimlet_lab.capture.draft import Draft
from gimlet_lab.capture.kineto import Kineto
from gimlet_lab.capture.launched import tie
from gimlet_lab.capture.nesting import nest
from gimlet_lab.capture.recorded_calls import Calls
from gimlet_lab.capture.signatures import Signatures
from gimlet_lab.model import Op, Recording, Transfer


def recording_of(trace: Kineto, execution: Execution | None, torch: Any) -> Recording:
    """Make the recording of a Kineto trace, with the execution trace of the same run where there is one."""
    starts = [min(column) for column in (trace.host.start_s, trace.activities.start_s) if column]
    zero_s = min(starts, default=0.0)
    draft = Draft(
        Signatures(torch), notes=[*trace.notes, *(execution.notes if execution is not None else ())]
    )
    nest(trace, execution, zero_s, draft)
    tie(trace, zero_s, draft)
    ends = [span.end_s for span in draft.spans] + [
        row.start_s + row.duration_s for row in draft.rows if row.live
    ]
    draft.spans[0] = replace(draft.spans[0], duration_s=max(ends))
    transfers = () if execution is None else _flow(draft, execution)
    calls = Calls(draft.accelerated)
    for row in draft.rows:
        if row.live:
            calls.add(_call_of(draft, row.span), row.meaning)
    spans = calls.named(draft.spans)
    modules = calls.modules(spans, weighed=not draft.backward)
    if any(info.weights for info in modules):
        draft.notes.append(
            "weights are guessed: the right-hand sides of one call's matrix products, and its tables"
        )
    return Recording(
        spans=tuple(spans),
        ops=draft.ops(),
        transfers=transfers,
        modules=modules,
        notes=tuple(draft.said()),
    )


def recording_without_times(
    execution: Execution, torch: Any, device: str, seconds_of: Callable[[Op], float]
) -> Recording:
    """Make the recording of an execution trace alone.

    Parameters
    ----------
    device : str
        Where its operators are to have run, and
    seconds_of : callable
        how long each of them takes there.
    """
    recording = recording_of(timeless(execution), execution, torch)
    at_s = 0.0
    moments: list[float] = []
    clock, ops = [0.0], list[Op]()
    for op in recording.ops:
        took = max(0.0, seconds_of(op))
        ops.append(replace(op, start_s=at_s, duration_s=took, device=device, device_timed=device != "cpu"))
        moments.append(op.start_s)
        at_s += took
        clock.append(at_s)

    def moment(before: float) -> float:
        return clock[bisect_left(moments, before)]

    spans = [
        replace(span, start_s=moment(span.start_s), duration_s=moment(span.end_s) - moment(span.start_s))
        for span in recording.spans
    ]
    return replace(recording, ops=tuple(ops), spans=tuple(spans))


def _call_of(draft: Draft, span: int) -> int:
    """The module call that a span is in, or the span itself."""
    number = span
    while number:
        if draft.spans[number].kind == "module":
            return number
        number = draft.spans[number].parent or 0
    return span


def _flow(draft: Draft, execution: Execution) -> tuple[Transfer, ...]:
    """Tensors that one span made and another read: by storage, the last writer in time.

    What the cell itself makes is nobody's to hand on, as in our own capture.
    """
    made: dict[int, tuple[int, float, int]] = {}
    found: dict[tuple[int, int, str], Transfer] = {}
    for number, row in enumerate(draft.live()):
        node = execution.nodes.get(row.rf_id)
        if node is None:
            continue
        if node.device and not row.on_device:
            row.device = node.device
        for storage, nbytes in node.reads:
            writer, size, version = made.get(storage, (row.span, 0.0, 0))
            # An id is given out again when its memory is: what is larger than what was made is another's.
            if writer in (0, row.span) or row.span == 0 or nbytes > size:
                continue
            key = f"{storage}:{version}"
            transfer = Transfer(writer, row.span, "tensor", "activation", "tensor", nbytes, key)
            found.setdefault((writer, row.span, key), transfer)
        if not row.meaning.kind.view:
            for storage, nbytes in node.writes:
                made[storage] = (row.span, nbytes, number)
    return tuple(found.values())
