"""Spans as they open and close, one lane a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from gimlet_lab.model import Span

#: More spans than these are counted, not kept.
MAX_SPANS = 200_000


class OpenSpan:
    """A span that is being written; ``end`` is None while it runs, ``holds`` says that it calls modules."""

    __slots__ = (
        "attributes", "end", "holds", "kind", "looked", "name", "number", "parent", "role", "signature",
        "start", "target", "thread",
    )  # fmt: skip

    def __init__(
        self, number: int, name: str, kind: str, start: float, parent: OpenSpan | None, thread: int
    ) -> None:
        self.number = number
        self.name = name
        self.kind = kind
        self.start = start
        self.end: float | None = None
        self.parent = parent
        self.thread = thread
        self.role: str | None = None
        self.target: str | None = None
        self.signature: str | None = None
        self.looked = False
        self.holds = False
        self.attributes: dict[str, Any] = {}

    def inside(self, other: OpenSpan) -> bool:
        """Whether this span runs, however deep, inside another one."""
        span = self.parent
        while span is not None:
            if span is other:
                return True
            span = span.parent
        return False

    def frozen(self) -> Span:
        """The noun; a span that never ended has no duration."""
        return Span(
            id=self.number,
            name=self.name,
            kind=self.kind,
            start_s=self.start,
            duration_s=max(0.0, (self.start if self.end is None else self.end) - self.start),
            parent=None if self.parent is None else max(self.parent.number, 0),
            thread=self.thread,
            role=self.role,
            target=self.target,
            signature=self.signature,
            looked=self.looked,
            attributes=self.attributes,
        )


class Lane:
    """What one thread is doing.

    Attributes
    ----------
    index : int
        0 is the cell's thread.
    ident : int
        Python's number of the thread.
    stack : list of OpenSpan
        The innermost span last; never empty.
    module : OpenSpan or None
        The outermost module call it is in.
    looking : bool
        Every operator of that call is being recorded.
    path, paths
        During a look: where below the outermost module it is, and the paths of its parts by identity.
    born, held
        During a look: storages to the operator that made them; where the cache lay before the call.
    kept : list or None
        During a look that leaves blocks out: what keeps those storages' addresses from being given out again.
    blocks : Blocks or None
        During a look, outside of them: the model's blocks that may be alike.
    real : bool
        The module call it is in is of real weights: fake tensors there are nobody's work.
    marked : list or None
        During a look that a device's profiler listens to: its operators' rows, by the number of their mark.
    calls, spent, learning
        Operators recorded here, the seconds that took, and those of them that went into what was new.
    listens : bool
        Function events go on after this module call.
    history, leaf
        Since the last backward pass: what was called, None for nothing, and a parameter of the last module.
    way_back : bool
        The backward pass it is in runs compiled code, which is counted afterwards and not looked into.
    top_k : int
        How many the last choice of the largest took: a router's, before a grouped product.
    """

    __slots__ = (
        "blocks", "born", "calls", "held", "history", "ident", "index", "kept", "leaf", "learning", "listens",
        "looking", "marked", "module", "path", "paths", "real", "spent", "stack", "top_k", "way_back",
    )  # fmt: skip

    def __init__(self, index: int, root: OpenSpan) -> None:
        self.index = index
        self.ident = threading.get_ident()  # a lane is made in its own thread
        self.stack = [root]
        self.module: OpenSpan | None = None
        self.looking = False
        self.path = ""
        self.paths: dict[int, str] = {}
        self.born: dict[int, int] = {}
        self.held: dict[int, frozenset[int] | None] = {}
        self.kept: list[object] | None = None
        self.blocks: Any = None
        self.marked: list[Any] | None = None
        self.real = False
        self.calls = 0
        self.spent = self.learning = 0.0
        self.listens = False
        self.top_k = 1
        self.way_back = False
        self.history: int | None = None
        self.leaf: Callable[[], Any] | None = None


class _Local(threading.local):
    lane: Lane | None = None


class Timeline:
    """The clock, the spans and the notes of one recording.

    Parameters
    ----------
    clock : callable
        Seconds on a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.zero = clock()
        self.spans = [OpenSpan(0, "cell", "cell", 0.0, None, 0)]
        self.notes: dict[str, None] = {}
        self.lanes: list[Lane] = []
        self.local = _Local()
        self._lock = threading.Lock()
        self._dropped = 0

    def lane(self) -> Lane:
        """The calling thread's lane; a thread seen for the first time gets one."""
        lane = self.local.lane
        if lane is None:
            with self._lock:
                lane = Lane(len(self.lanes), self.spans[0])
                self.lanes.append(lane)
            self.local.lane = lane
        return lane

    def now(self) -> float:
        """Seconds since the start of the cell."""
        return self.clock() - self.zero

    def open(self, name: str, kind: str, lane: Lane) -> OpenSpan:
        """Begin a span inside the lane's innermost one."""
        span = OpenSpan(-1, name, kind, self.clock() - self.zero, lane.stack[-1], lane.index)
        with self._lock:
            if len(self.spans) < MAX_SPANS:
                span.number = len(self.spans)
                self.spans.append(span)
            else:
                self._dropped += 1
        lane.stack.append(span)
        return span

    def close(self, span: OpenSpan, lane: Lane) -> None:
        """End a span, and whatever was left open inside it."""
        end = self.clock() - self.zero
        stack = lane.stack
        if span in stack:
            while stack[-1] is not span:
                inner = stack.pop()
                inner.end = end if inner.end is None else inner.end
            stack.pop()
        span.end = end if span.end is None else span.end

    def spent(self, name: str, start: float, end: float) -> None:
        """A stretch, in seconds since the start, in which the cell only waited for us."""
        with self._lock:
            if len(self.spans) < MAX_SPANS:
                span = OpenSpan(len(self.spans), name, "profiling", start, self.spans[0], 0)
                span.end = end
                self.spans.append(span)

    def note(self, line: str) -> None:
        """Say once what was not seen, and why."""
        self.notes.setdefault(line)

    def stretches(self, most: int) -> list[tuple[str, float, float, int]]:
        """What has run so far: calls of one kind in a row, from when to when, and how many; the last ones.

        Read while spans are being written: what is half written shows at the next look.
        """
        found: list[tuple[str, float, float, int]] = []
        now = self.now()
        for span in self.spans[1:]:
            if span.kind == "profiling" or span.holds:
                continue
            name, end = span.role or span.name, now if span.end is None else span.end
            if found and found[-1][0] == name:
                found[-1] = (name, found[-1][1], end, found[-1][3] + 1)
            else:
                found.append((name, span.start, end, 1))
        return found[-most:]

    def finish(self, end: float) -> tuple[Span, ...]:
        """End at ``end`` what is still open, and give all spans as the noun."""
        if self._dropped:
            self.note(f"truncated: {self._dropped:,} spans after the first {MAX_SPANS:,} were not kept")
        for span in self.spans:
            span.end = end if span.end is None else span.end
        return tuple(span.frozen() for span in self.spans)
