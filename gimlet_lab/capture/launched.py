"""Device activities of a trace: which call launched each, and what that makes of the host's times.

A row takes the time of the kernels that it launched; a call lasts until the last of its kernels ends, and
begins when those launched before it have. Tried on traces of an H100; of other makers only by the documented
format.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gimlet_lab.capture.devices import moved
from gimlet_lab.capture.draft import Draft, Row
from gimlet_lab.capture.intervals import Interval, seconds, union, without
from gimlet_lab.capture.kineto import TO_DEVICE, TO_HOST, Kineto
from gimlet_lab.model import Span

_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class _Owner:
    """Who launched an activity, and when; −1 is unknown."""

    row: int
    span: int
    at_s: float


def tie(trace: Kineto, zero_s: float, draft: Draft) -> None:
    """Give rows and calls of a draft the time of their device activities."""
    if trace.activities.kind:
        _Ties(trace, zero_s, draft).tie()


class _Ties:
    def __init__(self, trace: Kineto, zero_s: float, draft: Draft) -> None:
        self.trace = trace
        self.draft = draft
        rows = trace.activities
        start = np.asarray(rows.start_s) - zero_s
        end = start + np.asarray(rows.duration_s)
        self.interval: list[Interval] = list(zip(start.tolist(), end.tolist(), strict=True))
        self.device = [f"{trace.runtime}:{number}" for number in rows.device]
        self.crosses = [kind in (TO_DEVICE, TO_HOST) for kind in rows.kind]

    def tie(self) -> None:
        draft, interval = self.draft, self.interval
        of_row: dict[int, list[int]] = defaultdict(list)
        launches: dict[int, list[Interval]] = defaultdict(list)
        first = [_NEVER] * len(draft.spans)
        owners = self._owners()
        for index, owner in enumerate(owners):
            row = owner.row
            if row < 0 or not draft.rows[row].live:
                row = self._orphan(index, owner.span)
            if row >= 0:
                of_row[row].append(index)
            if owner.at_s >= 0:
                thread = draft.rows[row].thread if row >= 0 else draft.spans[owner.span].thread
                launches[thread].append((owner.at_s, interval[index][1]))
            first[owner.span] = min(first[owner.span], interval[index][0])
        for number, held in of_row.items():
            self._time(draft.rows[number], held)
        spans, accelerated = moved(draft.spans, first, launches)
        draft.spans[:] = spans
        draft.accelerated |= accelerated
        kernels: dict[str, list[Interval]] = defaultdict(list)
        for index, crosses in enumerate(self.crosses):
            if not crosses:
                kernels[self.device[index]].append(interval[index])
        self._copies(owners, {name: union(found) for name, found in kernels.items()})
        self._place_views()
        self._say(kernels)

    def _owners(self) -> list[_Owner]:
        """By correlation with a launch; in older traces by the launching operator's External id."""
        draft, activities, launches = self.draft, self.trace.activities, self.draft.launches
        launch_of = {ident: at for at, ident in enumerate(launches.correlation) if ident >= 0}
        found: list[_Owner] = []
        lost = 0
        for correlation, external in zip(activities.correlation, activities.external, strict=True):
            at = launch_of.get(correlation, -1)
            owner = (
                _Owner(launches.row[at], launches.span[at], launches.at_s[at])
                if at >= 0
                else _Owner(-1, 0, -1.0)
            )
            row = draft.outer.get(external, -1) if external >= 0 else -1
            if owner.row < 0 and row >= 0:
                launched_s = owner.at_s if owner.at_s >= 0 else draft.rows[row].start_s
                owner = _Owner(row, draft.rows[row].span, launched_s)
            lost += owner.at_s < 0
            found.append(owner)
        if lost:
            draft.notes.append(
                f"{lost:,} kernels and copies name no call that launched them: they belong to the cell"
            )
        return found

    def _orphan(self, index: int, span: int) -> int:
        """A row for a kernel that no operator launched: a graph's, a compiled one's, another library's."""
        draft, activities = self.draft, self.trace.activities
        meaning = draft.signatures.kernel(self.trace.names[activities.name[index]])
        return draft.add_row(Row(meaning, span, draft.spans[span].thread, "", self.interval[index][0], 0.0))

    def _time(self, row: Row, held: Sequence[int]) -> None:
        nbytes = self.trace.activities.nbytes
        row.start_s = min(self.interval[at][0] for at in held)
        row.duration_s = seconds(self.interval[at] for at in held)
        row.device, row.on_device = self.device[held[0]], True
        if all(self.crosses[at] and nbytes[at] >= 0 for at in held):
            row.moved = float(sum(nbytes[at] for at in held))

    def _copies(self, owners: Sequence[_Owner], kernels: dict[str, list[Interval]]) -> None:
        """Spans for copies between host and device, where no kernel ran: a hidden one costs nothing."""
        draft, activities = self.draft, self.trace.activities
        for index, owner in enumerate(owners):
            if not self.crosses[index]:
                continue
            name, nbytes = self.trace.names[activities.name[index]], activities.nbytes[index]
            said = {"bytes": nbytes} if nbytes >= 0 else {}
            thread = draft.spans[owner.span].thread
            for begins, ends in without(*self.interval[index], kernels.get(self.device[index], [])):
                if draft.has_room():
                    number = len(draft.spans)
                    draft.spans.append(
                        Span(
                            number,
                            name,
                            "transfer",
                            begins,
                            ends - begins,
                            owner.span,
                            thread,
                            attributes=said,
                        )
                    )

    def _place_views(self) -> None:
        """In a call on an accelerator, what only looks at memory takes no time there."""
        draft = self.draft
        for row in draft.rows:
            if row.live and not row.on_device and row.meaning.kind.view and row.span in draft.accelerated:
                row.device, row.on_device, row.duration_s = self.device[0], True, 0.0
                row.start_s = max(row.start_s, draft.spans[row.span].start_s)

    def _say(self, kernels: dict[str, list[Interval]]) -> None:
        activities = self.trace.activities
        busy_s = sum(seconds(found) for found in kernels.values())
        total_s = sum(end - start for found in kernels.values() for start, end in found)
        streams = len(set(zip(activities.device, activities.stream, strict=True)))
        self.draft.notes.append(
            f"accelerator: kernels on {streams} stream{'s' * (streams != 1)} kept it busy for {busy_s:.6g} s "
            f"({total_s:.6g} s of kernels: what overlaps counts once)"
        )
