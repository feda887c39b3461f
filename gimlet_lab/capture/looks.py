"""A closer look at one call: every operator inside it, from its beginning to its end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from gimlet_lab.capture.activities import ActivitySource, Heard
from gimlet_lab.capture.blocks import Blocks
from gimlet_lab.capture.intervals import Interval, seconds
from gimlet_lab.capture.operators import Operators, Row
from gimlet_lab.capture.timeline import Lane, OpenSpan
from gimlet_lab.model import Span

#: Looks whose kernels are kept as the profiler gave them: megabytes each.
MAX_UNHEARD = 16

#: Where a KV cache lies: storages and, of those that hold something else as well, offsets.
Places = dict[int, frozenset[int] | None]


class Look:
    """One call that is looked at, or deliberately not."""

    __slots__ = ("calls", "pushed", "since", "spent", "stamp")

    def __init__(self) -> None:
        #: Its first row, operators before it and their cost, whether the mode is there for it.
        self.since = 0
        self.calls = 0
        self.spent = 0.0
        self.pushed = False
        #: The accelerator it works on, and the event before it.
        self.stamp: tuple[str, Any] | None = None


class Looks:
    """All of one recording.

    Parameters
    ----------
    operators : Operators
        What is looked at.
    activities : ActivitySource, optional
        Listens to what an accelerator does during a look.
    """

    def __init__(self, operators: Operators, activities: ActivitySource | None = None) -> None:
        self.operators = operators
        self.activities = activities
        self._looked: list[tuple[OpenSpan, int]] = []
        self._listening: Lane | None = None
        self._unheard: list[tuple[list[Row | None], Heard]] = []

    def begin(
        self,
        lane: Lane,
        span: OpenSpan,
        paths: dict[int, str],
        held: Places,
        *,
        away: bool = False,
        blocks: Blocks | None = None,
    ) -> Look:
        """Look into this span from now on, or leave it alone, as it says itself.

        ``away``: it works on an accelerator. ``blocks``: those of its parts that may be alike.
        """
        look, operators = Look(), self.operators
        if not span.looked:
            operators.pop(lane)
            return look
        look.since, look.calls, look.spent = len(operators.rows), lane.calls, lane.spent
        look.pushed = operators.push(lane)
        if away:
            self._listen(lane)
        lane.born, lane.held = {}, held
        lane.path, lane.paths, lane.looking, lane.blocks = "", paths, True, blocks
        return look

    def end(self, lane: Lane, span: OpenSpan, look: Look) -> None:
        """Stop looking, and listen to loose operators again."""
        lane.looking, lane.blocks = False, None
        if lane.marked is not None:
            self._heard(lane)
        if lane.index == 0:
            self.operators.push(lane)
        elif look.pushed:
            self.operators.remove(lane)
        if span.looked:
            span.attributes["look_overhead_s"] = lane.spent - look.spent
            self._looked.append((span, lane.calls - look.calls))

    def _listen(self, lane: Lane) -> None:
        """Let the device's profiler tell when its kernels run; it can do so for one look at a time."""
        source, timeline = self.activities, self.operators.timeline
        began = timeline.now()
        if source is not None and self._listening is None and source.start():
            self._listening, lane.marked = lane, []
            self.operators.mark = source.mark
            timeline.spent("start of the device's profiler", began, timeline.now())

    def _heard(self, lane: Lane) -> None:
        timeline, marked = self.operators.timeline, lane.marked or []
        began = timeline.now()
        self._listening = lane.marked = None
        if self.activities is not None:
            self._unheard.append((marked, self.activities.stop()))
        if len(self._unheard) >= MAX_UNHEARD:
            self.hear()
        timeline.spent("end of the device's profiler", began, timeline.now())

    def settle(self, lane: Lane, span: OpenSpan, look: Look, cache: Places) -> None:
        """Say which bytes were KV cache, now that it is known where the cache lies after the call."""
        if span.looked:
            self.operators.settle(lane, span, look.since, cache)

    def finish(self, dispatch_cost_s: float) -> None:
        """Looks get their operators' price outside our own Python."""
        for span, count in self._looked:
            span.attributes["look_overhead_s"] += count * dispatch_cost_s

    def hear(self) -> None:
        """Give operators the times of their kernels."""
        for marked, heard in self._unheard:
            for number, intervals in heard().items():
                row = marked[number] if number < len(marked) else None
                if row is not None:
                    row.worked = [*(row.worked or ()), *intervals]
        self._unheard.clear()

    def concede(self, spans: Sequence[Span]) -> None:
        """Of the time in which a device worked for a call, looking took nothing."""
        worked: dict[int, list[Interval]] = defaultdict(list)
        for row in self.operators.rows:
            worked[row.span.number].extend(row.worked or ())
        for span in spans:
            looking_s = span.attributes.get("look_overhead_s")
            if looking_s and worked.get(span.id):
                idle_s = max(0.0, span.duration_s - seconds(worked[span.id]))
                span.attributes["look_overhead_s"] = min(looking_s, idle_s)  # type: ignore[index]
