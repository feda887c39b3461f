"""Spans and operators of a run as tracks: on each, what runs lies inside what called it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gimlet_lab.model.recording import Op, Span
from gimlet_lab.model.run import Run

#: A span may seem to end this much after the one around it: start and duration are rounded apart.
ROUNDING_S = 1e-9


@dataclass(frozen=True, slots=True)
class Slice:
    """Something that ran from one moment to another, and what ran inside it."""

    start_s: float
    end_s: float
    of: Span | Op
    inside: list[Slice] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is called."""
        return self.of.op if isinstance(self.of, Op) else self.of.name


@dataclass(frozen=True, slots=True)
class Track:
    """Slices that follow each other; several tracks of one thread where its spans crossed (coroutines)."""

    thread: int
    number: int
    slices: list[Slice]


def tracks(run: Run) -> list[Track]:
    """Lay out a run's spans by thread, with the operators that were timed inside them.

    Operators that were inferred for calls nobody looked at have a duration but no moment: they are left out
    (:func:`inferred`). Rows that stand for several calls are as long as these took together.
    """
    operators: dict[int, list[Op]] = defaultdict(list)
    for op, inferred in zip(run.operators, run.inferred, strict=True):
        if not inferred and is_placed(op.start_s, op.duration_s):
            operators[op.span].append(op)
    threads: dict[int, list[tuple[float, float, Span]]] = defaultdict(list)
    for span in run.span_list:
        if is_placed(span.start_s, span.duration_s):
            threads[span.thread].append((span.start_s, span.end_s, span))
    found: list[Track] = []
    for thread, spans in sorted(threads.items()):
        spans.sort(key=lambda entry: (entry[0], -entry[1], entry[2].id))
        for number, slices in enumerate(_nested(spans)):
            for outer in slices:
                _fill(outer, operators)
            found.append(Track(thread, number, slices))
    return found


def inferred(run: Run) -> tuple[int, float]:
    """How many rows of operators have no moment, and their seconds together."""
    rows = [op.duration_s for op, guess in zip(run.operators, run.inferred, strict=True) if guess]
    return len(rows), math.fsum(seconds for seconds in rows if math.isfinite(seconds))


def walk(slices: Iterable[Slice]) -> Iterator[tuple[Slice, bool]]:
    """Each slice as it begins (True) and as it ends (False), in the order of time, properly nested."""
    pending: list[tuple[Slice, bool]] = [(entry, True) for entry in reversed(list(slices))]
    while pending:
        entry, begins = pending.pop()
        yield entry, begins
        if begins:
            pending.append((entry, False))
            pending.extend((child, True) for child in reversed(entry.inside))


def is_placed(start_s: float, duration_s: float) -> bool:
    """Whether there is such a stretch of time."""
    return math.isfinite(start_s) and math.isfinite(duration_s) and duration_s >= 0


def _nested(spans: Iterable[tuple[float, float, Span]]) -> list[list[Slice]]:
    """Spans by start, each inside the one it lies in; one that crosses another goes to a track of its own."""
    lanes: list[tuple[list[Slice], list[Slice]]] = []
    for start_s, end_s, span in spans:
        entry = Slice(start_s, end_s, span)
        for roots, stack in lanes:
            while stack and stack[-1].end_s <= start_s:
                stack.pop()
            if not stack or end_s <= stack[-1].end_s + ROUNDING_S:
                if stack and end_s > stack[-1].end_s:
                    entry = Slice(start_s, stack[-1].end_s, span)
                (stack[-1].inside if stack else roots).append(entry)
                stack.append(entry)
                break
        else:
            lanes.append(([entry], [entry]))
    return [roots for roots, _ in lanes]


def _fill(outer: Slice, operators: dict[int, list[Op]]) -> None:
    """Put operators between the spans that lie in theirs; they are cut where the next thing begins."""
    pending = [outer]
    while pending:
        entry = pending.pop()
        pending.extend(entry.inside)
        own = operators.get(entry.of.id, []) if isinstance(entry.of, Span) else []
        if not own:
            continue
        children = sorted(
            [*entry.inside, *(Slice(op.start_s, op.start_s + op.duration_s, op) for op in own)],
            key=lambda child: (child.start_s, isinstance(child.of, Op)),
        )
        entry.inside.clear()
        now = entry.start_s
        for child, after in zip(children, [*children[1:], None], strict=True):
            if not isinstance(child.of, Op):
                entry.inside.append(child)
                now = max(now, child.end_s)
                continue
            last = entry.end_s if after is None else min(after.start_s, entry.end_s)
            start_s = max(child.start_s, now)
            end_s = min(child.end_s, max(last, start_s))
            if start_s <= end_s <= entry.end_s:
                entry.inside.append(Slice(start_s, end_s, child.of))
                now = end_s
