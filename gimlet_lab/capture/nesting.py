"""Host events of a trace as they lie in each other: which operators are rows, and in which calls.

A row is what capture's own dispatch would see: the operators it is made of lie inside it, and an operator
that is only made of others (``aten::linear``) is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from gimlet_lab.capture.chakra import Execution
from gimlet_lab.capture.draft import Draft, Row
from gimlet_lab.capture.kineto import LAUNCH, MODULE, OPERATOR, Kineto
from gimlet_lab.model import Span

#: Annotations that torch numbers (``ProfilerStep#3``), and instances of a class (``Linear_3``).
_NUMBERED = re.compile(r"#\d+$")
_INSTANCE = re.compile(r"_\d+$")


@dataclass(slots=True)
class _Open:
    """Something on a thread's stack."""

    end_s: float
    span: int
    row: int
    path: str
    module: bool
    #: A composite operator: a row only while nothing else is found inside.
    doubtful: bool = False


def nest(trace: Kineto, execution: Execution | None, zero_s: float, draft: Draft) -> None:
    """Add a trace's operators and calls to a draft; times count from ``zero_s``."""
    _Nesting(trace, execution, zero_s, draft).sweep()


class _Nesting:
    def __init__(self, trace: Kineto, execution: Execution | None, zero_s: float, draft: Draft) -> None:
        self.trace = trace
        self.nodes = {} if execution is None else execution.nodes
        self.zero_s = zero_s
        self.draft = draft

    def sweep(self) -> None:
        host = self.trace.host
        start = np.asarray(host.start_s) - self.zero_s
        thread, kind = np.asarray(host.thread, dtype=np.int64), np.asarray(host.kind)
        end = start + np.asarray(host.duration_s)
        # The cell's thread is the one with the most events.
        rank = {int(number): place for place, number in enumerate(np.bincount(thread).argsort()[::-1])}
        # What follows directly may begin a rounding of the trace's clock before the end of the one before.
        rounding_s = 1e-9 + float(np.spacing(abs(self.zero_s) + float(start.max(initial=0.0))))
        order = np.lexsort((kind, -end, start, thread))
        stack: list[_Open] = []
        last = -1
        columns = (order, kind[order], start[order], end[order], thread[order])
        for index, what, at, until, number in zip(*(each.tolist() for each in columns), strict=True):
            if number != last:
                stack, last = [_Open(float("inf"), 0, -1, "", module=False)], number
            while stack[-1].end_s <= at + rounding_s:
                stack.pop()
            if what == OPERATOR:
                self._operator(index, at, until, rank[number], stack)
            elif what == LAUNCH:
                self._launch(index, at, stack[-1])
            else:
                self._call(index, at, until, rank[number], stack)

    def _operator(self, index: int, at: float, until: float, thread: int, stack: list[_Open]) -> None:
        host, above, draft = self.trace.host, stack[-1], self.draft
        if above.row >= 0 and not above.doubtful:
            draft.outer[host.ident[index]] = above.row
            return
        self._settle(above)
        rf_id = host.rf_id[index]
        node = self.nodes.get(rf_id)
        recorded = self.trace.recorded[host.what[index]] if node is None else node.recorded
        draft.backward = draft.backward or "Backward" in recorded.name
        if recorded.name.startswith("autograd::engine"):
            # Autograd's own wrapper around the operators of a backward step.
            stack.append(_Open(until, above.span, -1, above.path, above.module))
            return
        meaning = draft.signatures.meaning(recorded)
        row = draft.add_row(
            Row(meaning, above.span, thread, above.path, at, until - at, -1 if node is None else rf_id)
        )
        if row >= 0:
            draft.outer[host.ident[index]] = row
        doubtful = meaning.composite or "::" not in recorded.name
        stack.append(_Open(until, above.span, row, above.path, above.module, doubtful))

    def _launch(self, index: int, at: float, above: _Open) -> None:
        launches = self.draft.launches
        launches.correlation.append(self.trace.host.ident[index])
        launches.row.append(above.row)
        launches.span.append(above.span)
        launches.at_s.append(at)

    def _call(self, index: int, at: float, until: float, thread: int, stack: list[_Open]) -> None:
        """A module call or an annotation; what lies inside an operator is its own matter."""
        above, host = stack[-1], self.trace.host
        if above.row >= 0 and not above.doubtful:
            return
        self._settle(above)
        name, module = self.trace.names[host.what[index]], host.kind[index] == MODULE
        if module and above.module:
            path = f"{above.path}.{name}" if above.path else name
            stack.append(_Open(until, above.span, -1, path, module=True))
        elif self.draft.has_room():
            span = self._span(name, at, until, above, thread, module)
            stack.append(_Open(until, span, -1, above.path, module or above.module))

    def _settle(self, above: _Open) -> None:
        """What has something inside was no row of its own."""
        if above.doubtful and above.row >= 0:
            self.draft.rows[above.row].live = False
            above.row = -1

    def _span(self, name: str, at: float, until: float, above: _Open, thread: int, module: bool) -> int:
        spans = self.draft.spans
        number, attributes = len(spans), dict[str, Any]()
        plain = (_INSTANCE if module else _NUMBERED).sub("", name) or name
        if module:
            # All of its operators are here: it was looked at, and the looking is not ours.
            attributes = {"module": name, "class": plain, "look_overhead_s": 0.0}
        spans.append(
            Span(
                number,
                plain,
                "module" if module else "function",
                at,
                until - at,
                above.span,
                thread,
                role="forward" if module else None,
                looked=module,
                attributes=attributes,
            )
        )
        return number
