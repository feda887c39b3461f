"""What a library does between the module calls of its own loop: looked at a few times, then left alone.

Between two decode steps ``generate`` runs some forty small operators and a thousand small calls. Watching all
of them costs more than the steps' own clock; they are the same each time. So in a loop that runs in a library
they are looked at the first times and then as often as their number doubles. In between nobody listens, until
the next module call, or until the loop's function ends: the notebook's own code is never left alone.
"""

from __future__ import annotations

import inspect
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import replace

from gimlet_lab.capture.functions import CELL, Functions
from gimlet_lab.capture.operators import Operators, Row
from gimlet_lab.capture.timeline import Lane, Timeline
from gimlet_lab.model import Op

#: Gaps after calls of one kind that are all looked at, before it is only every doubling.
FIRST = 4

#: What comes before a gap: a module and its signature.
Key = tuple[int, str]

_WAITS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_END = "__gimlet_end__"


class _Kind:
    """Gaps after calls of one kind in one loop."""

    __slots__ = ("count", "noisy", "rows", "seconds", "skipped", "start")

    def __init__(self) -> None:
        self.count = 0
        #: Something of the notebook's, or something compiled, ran in one of them: always listen.
        self.noisy = False
        #: Rows of the last one that was looked at.
        self.rows: list[Row] = []
        #: Since then: how many were not, where the first began, their seconds.
        self.skipped = 0
        self.start = 0.0
        self.seconds = 0.0


class _Loop:
    """One run of a library's function that calls modules."""

    __slots__ = ("alive", "entry", "kinds")

    def __init__(self, entry: int) -> None:
        self.entry = entry
        self.alive = True
        self.kinds: dict[Key, _Kind] = {}


class _Ending:
    """Lies among the loop's local variables and dies with them."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def __del__(self) -> None:
        self.call()


class Gaps:
    """Gaps between the module calls of libraries' loops, in the cell's thread.

    Parameters
    ----------
    timeline, operators, functions
        What is silenced, and what says whose code a file is.
    """

    def __init__(self, timeline: Timeline, operators: Operators, functions: Functions) -> None:
        self.timeline = timeline
        self.operators = operators
        self.functions = functions
        self._owner = threading.get_ident()
        self._loop: _Loop | None = None
        self._open: _Kind | None = None
        self._quiet = False
        self._listened = False
        self._since = 0
        self._seen = 0
        self._began = 0.0
        #: What was not looked at: rows before and after, how many gaps, when the first began, their seconds.
        self._skipped: list[tuple[list[Row], list[Row], int, float, float]] = []

    def begin(self, lane: Lane, key: Key, caller: types.FrameType | None) -> None:
        """A module call has ended, made by this frame; function events are still off."""
        if lane.index != 0:
            return
        entry = self._entry(caller)
        if entry is None:
            return
        loop = self._loop
        if loop is None or not loop.alive or loop.entry != id(entry):
            loop = self._start(entry, lane)
        kind = loop.kinds.get(key) or loop.kinds.setdefault(key, _Kind())
        kind.count += 1
        self._open, self._began = kind, self.timeline.now()
        often = kind.count <= FIRST or not kind.count & (kind.count - 1)
        if often or kind.noisy:
            self._since, self._seen = len(self.operators.rows), self.functions.seen
            self.operators.apart = self._since
        else:
            self._hush(lane)

    def end(self, lane: Lane) -> None:
        """The next module call is about to begin, or the loop has ended."""
        kind = self._open
        if kind is None or lane.index != 0:
            return
        self._open = None
        if self._quiet:
            kind.start = kind.start if kind.skipped else self._began
            kind.skipped += 1
            kind.seconds += self.timeline.now() - self._began
            self._wake(lane)
            return
        kind.noisy = kind.noisy or self.functions.seen != self._seen
        rows = self.operators.rows[self._since :]
        self._infer(kind, rows)
        kind.rows = rows
        self.operators.apart = len(self.operators.rows)

    def disturbed(self) -> None:
        """Something runs in this gap that must be heard every time."""
        if self._open is not None:
            self._open.noisy = True

    def goes_on(self, caller: types.FrameType | None) -> bool:
        """Whether this frame has called modules before: it is in the loop under way, or is the notebook's."""
        entry, loop = self._entry(caller), self._loop
        return entry is None or (loop is not None and loop.alive and loop.entry == id(entry))

    def finish(self) -> tuple[Op, ...]:
        """Operators of all gaps that were not looked at."""
        return tuple(op for skipped in self._skipped for op in _inferred(*skipped))

    # -- the loop -----------------------------------------------------------------------------------------

    def _entry(self, frame: types.FrameType | None) -> types.FrameType | None:
        """The outermost frame of library code that this call runs in; None where that may come and go."""
        entry: types.FrameType | None = None
        classify = self.functions.classify
        while frame is not None and classify(frame.f_code.co_filename) != CELL:
            if frame.f_code.co_flags & (_WAITS | inspect.CO_OPTIMIZED) != inspect.CO_OPTIMIZED:
                return None
            entry, frame = frame, frame.f_back
        return None if frame is None else entry

    def _start(self, entry: types.FrameType, lane: Lane) -> _Loop:
        self.leave(lane)
        loop = self._loop = _Loop(id(entry))

        def ended() -> None:
            loop.alive = False
            if self._loop is loop:
                self.leave(lane)

        names = entry.f_locals
        names[_END] = _Ending(ended)
        if type(names) is dict:  # up to Python 3.12 a copy, which would keep what the function lets go
            for name in [name for name in names if name != _END]:
                del names[name]
        return loop

    def leave(self, lane: Lane) -> None:
        """The loop under way has ended."""
        self.end(lane)
        loop, self._loop = self._loop, None
        for kind in loop.kinds.values() if loop is not None else ():
            self._infer(kind, None)
            kind.rows = []

    # -- silence ------------------------------------------------------------------------------------------

    def _hush(self, lane: Lane) -> None:
        self._quiet = self.operators.pop(lane)
        self._listened = self._quiet and lane.listens
        if self._listened:
            lane.listens = False

    def _wake(self, lane: Lane) -> None:
        self._quiet = False
        if threading.get_ident() != self._owner:
            return
        self.operators.push(lane)
        if self._listened and self.operators.awake and sys.getprofile() is None:
            sys.setprofile(self.operators.hook)

    # -- what was not looked at ---------------------------------------------------------------------------

    def _infer(self, kind: _Kind, after: list[Row] | None) -> None:
        """Rows for the gaps skipped since the last look: what lies between that one and this one."""
        count, seconds = kind.skipped, kind.seconds
        kind.skipped, kind.seconds = 0, 0.0
        if not count or not kind.rows:
            return
        same = after is not None and [(row.kind.name, row.count) for row in after] == [
            (row.kind.name, row.count) for row in kind.rows
        ]
        self._skipped.append((kind.rows, after if after and same else kind.rows, count, kind.start, seconds))


def _inferred(
    before: list[Row], after: list[Row], count: int, start_s: float, seconds: float
) -> Iterator[Op]:
    """Rows of gaps in a row: each the mean of what was seen before them and after."""
    pairs = [(a.frozen(), b.frozen()) for a, b in zip(before, after, strict=True)]
    busy_s = sum(a.duration_s + b.duration_s for a, b in pairs) / 2
    part = min(1.0, seconds / (busy_s * count)) if busy_s else 1.0
    for a, b in pairs:
        yield replace(
            a,
            start_s=start_s,
            duration_s=count * part * (a.duration_s + b.duration_s) / 2,
            flops=_mean(a.flops, b.flops, count),
            bytes_read=_mean(a.bytes_read, b.bytes_read, count),
            bytes_written=_mean(a.bytes_written, b.bytes_written, count),
            count=a.count * count,
            weight_bytes=count * (a.weight_bytes + b.weight_bytes) / 2,
            gradient_bytes=count * (a.gradient_bytes + b.gradient_bytes) / 2,
            state_bytes=count * (a.state_bytes + b.state_bytes) / 2,
        )


def _mean(a: float | None, b: float | None, count: int) -> float | None:
    return None if a is None or b is None else count * (a + b) / 2
