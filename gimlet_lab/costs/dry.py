"""The times of a dry run: nothing was timed, so the cost model says what everything takes on a device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from gimlet_lab.costs import roofline
from gimlet_lab.costs.stages import PYTHON_PER_OP_S, foreseen_interval
from gimlet_lab.costs.tiers import price
from gimlet_lab.model.device import Device
from gimlet_lab.model.recording import Op, Recording, Span
from gimlet_lab.model.work import Work
from gimlet_lab.work import aten
from gimlet_lab.work.operand import RANDOM

#: Of a span's attributes, what the faking took and what one call stood for.
_OF_THE_FAKING = ("look_overhead_s", "stands_for")


def foresee(recording: Recording, device: Device) -> Recording:
    """Give a dry recording the times it would have had on a device.

    Operators take what the roofline says, and the Python between them what launching them takes. Calls that
    one call stands for become calls of their own, on a line between it and the next one that ran. What runs
    no operator (a tool, a search in plain Python) ran as it is: it keeps its time on this machine's clock.

    Parameters
    ----------
    recording : Recording
        Of a run on fake tensors.
    device : Device
        Where it is to be imagined: all of it.
    """
    # Fake tensors ask for their device by an operator, real ones do not.
    ops = [op for op in recording.ops if not op.op.startswith("prim::")]
    layout = _Layout(recording.spans, ops, device)
    spans, timed = layout.lay()
    low, high = foreseen_interval(device)
    return replace(
        recording,
        spans=spans,
        ops=tuple(sorted(timed, key=lambda op: op.start_s)),
        modules=tuple(replace(module, device=device.id) for module in recording.modules),
        samples=(),
        overhead_s=0.0,
        notes=(
            f"dry run: no time was measured; {device.name} by the cost model (90%: {low:g} to {high:g} ×)",
            *_python_note(layout),
            *_unknown_note(ops),
            *recording.notes,
        ),
    )


def imagined(device: Device) -> Device:
    """A device as a dry run sees it: with the launch cost that its operators were priced with."""
    return replace(device, launch_s=device.launch_s or roofline.LAUNCH)


def _python_note(layout: _Layout) -> Iterable[str]:
    kept = sorted(
        {span.name for span in layout.spans if span.kind == "function" and not layout.busy[span.id]}
    )
    if kept:
        yield f"dry run: {', '.join(kept[:8])} ran as Python on this machine and took what its clock says"


def _unknown_note(ops: Sequence[Op]) -> Iterable[str]:
    unknown = sorted({op.op for op in ops if op.work is None and aten.base_name(op.op) not in RANDOM})
    if unknown:
        yield f"dry run: nobody knows what {', '.join(unknown[:8])} computes: only bytes and launches count"


class _Layout:
    """Spans and operators of a recording, one after another in their order, each as long as foreseen."""

    def __init__(self, spans: Sequence[Span], ops: Sequence[Op], device: Device) -> None:
        self.device = device
        self.seconds = _seconds(ops, device)
        self.rows: dict[int, list[int]] = defaultdict(list)
        for index, op in enumerate(ops):
            self.rows[op.span].append(index)
        self.ops = list(ops)
        self.fixed: dict[int, float] = {}
        self.spans = self._expanded(spans)
        self.children: dict[int, list[Span]] = defaultdict(list)
        for span in self.spans:
            if span.parent is not None:
                self.children[span.parent].append(span)
        self.busy: dict[int, bool] = {}
        self._mark_busy(self.spans[0])

    def lay(self) -> tuple[tuple[Span, ...], list[Op]]:
        """Place everything from 0 on."""
        self.placed: dict[int, Span] = {}
        self.timed: list[Op] = []
        self._lay(self.spans[0], 0.0)
        return tuple(self.placed[span.id] for span in self.spans), self.timed

    def _mark_busy(self, span: Span) -> bool:
        """Whether operators ran in it, however deep."""
        inside = [self._mark_busy(child) for child in self.children[span.id]]
        self.busy[span.id] = bool(self.rows[span.id]) or span.id in self.fixed or any(inside)
        return self.busy[span.id]

    def _lay(self, span: Span, start_s: float) -> float:
        if not self.busy[span.id]:
            self._shift(span, start_s - span.start_s)
            return start_s + span.duration_s
        fixed_s = self.fixed.get(span.id)
        end_s = self._lay_inside(span, start_s) if fixed_s is None else start_s + fixed_s
        attributes = {name: value for name, value in span.attributes.items() if name not in _OF_THE_FAKING}
        self.placed[span.id] = replace(
            span, start_s=start_s, duration_s=end_s - start_s, attributes=attributes
        )
        return end_s

    def _lay_inside(self, span: Span, start_s: float) -> float:
        rows = self.rows[span.id]
        gap_s = self._gap_s(rows)
        items: list[tuple[float, int | Span]] = [(self.ops[row].start_s, row) for row in rows]
        items += [(child.start_s, child) for child in self.children[span.id]]
        now = {span.thread: start_s}
        for _, item in sorted(items, key=lambda item: item[0]):
            if isinstance(item, Span):
                # What other threads do goes on beside.
                begun = now.get(item.thread, now[span.thread])
                now[item.thread] = self._lay(item, begun)
                continue
            op, at = self.ops[item], now[span.thread]
            self.timed.append(replace(op, start_s=at, duration_s=self.seconds[item], device=self.device.id))
            now[span.thread] = at + self.seconds[item] + op.count * gap_s
        return max(now.values())

    def _gap_s(self, rows: Sequence[int]) -> float:
        """Python between operators; an accelerator waits for it only where it is the slower of both."""
        calls = sum(self.ops[row].count for row in rows)
        if self.device.is_host or not calls:
            return PYTHON_PER_OP_S
        issue_s = calls * (PYTHON_PER_OP_S + roofline.launch_s(self.device))
        return max(0.0, issue_s - sum(self.seconds[row] for row in rows)) / calls

    def _shift(self, span: Span, by_s: float) -> None:
        self.placed[span.id] = replace(span, start_s=span.start_s + by_s)
        for child in self.children[span.id]:
            self._shift(child, by_s)

    # -- calls that others stand for ---------------------------------------------------------------------

    def _expanded(self, spans: Sequence[Span]) -> list[Span]:
        found = list(spans)
        calls = [span for span in spans if span.kind == "module"]
        following = {first.id: second for first, second in pairwise(calls)}
        for span in calls:
            many = int(span.attributes.get("stands_for", 0))
            after = following.get(span.id, span)
            if after.signature != span.signature or after.target != span.target:
                after = span
            for step in range(1, many + 1):
                found.append(self._between(span, after, step / (many + 1), len(found), step))
        return found

    def _between(self, first: Span, last: Span, weight: float, number: int, step: int) -> Span:
        """A call that did not run, so far on the way from one that did to the next."""
        at = {
            name: float(value) + weight * (float(last.attributes[name]) - float(value))
            for name, value in first.attributes.items()
            if name in ("kv_bytes", "peak_bytes") and name in last.attributes
        }
        past = int(first.attributes.get("past_len") or 0) + step
        low_s, high_s = self._call_s(first), self._call_s(last)
        self.fixed[number] = low_s + weight * (high_s - low_s)
        attributes = {**first.attributes, **at, "past_len": past}
        # It starts where the first one ended: after it, and before all that came later.
        return replace(
            first, id=number, start_s=first.end_s, duration_s=0.0, looked=False, attributes=attributes
        )

    def _call_s(self, span: Span) -> float:
        rows = self.rows[span.id]
        calls = sum(self.ops[row].count for row in rows)
        return sum(self.seconds[row] for row in rows) + calls * self._gap_s(rows)


def _seconds(ops: Sequence[Op], device: Device) -> Mapping[int, float]:
    """What each row of equal calls takes; those that nobody can price, their launches."""
    seconds = {index: op.count * roofline.launch_s(device) for index, op in enumerate(ops)}
    works = {index: work for index, op in enumerate(ops) if (work := _work(op)) is not None}
    if works:
        priced = price(list(works.values()), device, "model").seconds
        seconds.update(
            (index, float(one)) for index, one in zip(works, priced, strict=True) if not np.isnan(one)
        )
    return seconds


def _work(op: Op) -> Work | None:
    """All calls of a row as one work; where nobody knows what it computes, by its bytes alone."""
    if op.work is not None:
        return replace(op.work, count=op.count)
    if op.bytes_read is None or op.bytes_written is None:
        return None
    read, written = int(op.bytes_read / op.count), int(op.bytes_written / op.count)
    return Work.of("other", op.dtype, op.count, bytes_read=read, bytes_written=written)
