"""Function calls by ``sys.setprofile``: all there is up to Python 3.11.

It tells of every call, of Python and of C, so it is switched off wherever nothing of the notebook's can be
called: in modules, in operators, and in functions that are so busy with small calls that listening is what we
would measure.
"""

from __future__ import annotations

import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any

from gimlet_lab.capture.functions import FOREIGN, Functions
from gimlet_lab.capture.timeline import Lane, OpenSpan, Timeline

#: How often the price of listening is compared with the time it was paid in, in events.
CHECK_EVERY = 1 << 14

#: Listening may take this share of a function's time before it is switched off inside it, …
DEAF_SHARE = 0.1

#: … once it has cost this much.
DEAF_AFTER_S = 0.05

_WAKE = "__gimlet_wake__"


class Profile:
    """``sys.setprofile``, in the cell's thread and in those started while it runs."""

    def __init__(self, functions: Functions, timeline: Timeline) -> None:
        self.functions = functions
        self.timeline = timeline
        self._on = False
        self._asleep = False
        self._before: Any = None
        self._farewell: dict[int, Callable[[], object]] = {}
        #: Functions that ended while nobody listened, whose results the next event tells.
        self._unheard: list[_Unheard] = []
        self.hook, self._count = self._make()

    def install(self) -> str | None:
        """Listen, unless another profiler does: then say so."""
        if sys.getprofile() is not None:
            return "functions were not recorded: another profiler is at work (sys.setprofile)"
        event_cost_s()  # measured now: later, its thread would be listened to as well
        self._owner = threading.get_ident()
        self._on = True
        self._before = threading.getprofile()
        if self._before is None:
            threading.setprofile(self.hook)
        sys.setprofile(self.hook)
        return None

    def uninstall(self, farewell: dict[int, Callable[[], object]]) -> None:
        """Let go here; other threads let go, and do what is left to be undone there, at their next event."""
        if not self._on:
            return
        if sys.getprofile() is self.hook:
            sys.setprofile(None)
        elif threading.get_ident() == self._owner and not self._asleep:
            self.timeline.note("functions were not recorded to the end: the cell set a profiler of its own")
        self._farewell.update(farewell)
        self._on = False
        if threading.getprofile() is self.hook:
            threading.setprofile(self._before)

    def busy(self, lane: Lane, inside: bool) -> None:
        """Switch this thread's listening off in an outermost module call, and on again after it."""
        if inside:
            lane.listens = sys.getprofile() is self.hook
            if lane.listens:
                sys.setprofile(None)
        elif lane.listens:
            lane.listens = False
            if self._on and sys.getprofile() is None:
                sys.setprofile(self.hook)

    def cost_s(self) -> float:
        """Seconds that listening took, the work on the calls left out: events times the price of one."""
        events = self._count()
        return events * event_cost_s() if events else 0.0

    def _make(self) -> tuple[Callable[[types.FrameType, str, Any], None], Callable[[], int]]:
        functions, timeline = self.functions, self.timeline
        files, local, clock, unheard = functions.files, timeline.local, timeline.clock, self._unheard
        events = heard = seen = 0
        paid, checked = 0.0, clock()

        def check(frame: types.FrameType) -> None:
            nonlocal events, heard, seen, paid, checked
            now, cost = clock(), heard * event_cost_s()
            busy = functions.seen == seen and cost > DEAF_SHARE * (now - checked)
            paid = paid + cost if busy else 0.0
            if paid > DEAF_AFTER_S and self._sleep(frame):
                paid = 0.0
            events, heard, seen, checked = events + heard, 0, functions.seen, clock()

        def hook(frame: types.FrameType, event: str, value: Any) -> None:
            nonlocal heard
            heard += 1
            if not self._on:
                self._leave()
                return
            if heard >= CHECK_EVERY:
                check(frame)
            if unheard and unheard[-1].tell(functions, frame, event, value):
                unheard.pop()
            if event == "call":
                code = frame.f_code
                if files.get(code.co_filename) == FOREIGN or not functions.wanted(code):
                    return
                if not functions.exhausted(code):
                    functions.start(frame, local.lane or timeline.lane())
            elif event == "return":
                code = frame.f_code
                if files.get(code.co_filename) != FOREIGN and functions.wanted(code):
                    lane = local.lane or timeline.lane()
                    waits, raised = functions.waits_at(frame, value, lane)
                    functions.stop(frame, value, lane, raised, waits=waits)

        return hook, lambda: events + heard

    def _leave(self) -> None:
        sys.setprofile(None)
        farewell = self._farewell.pop(threading.get_ident(), None)
        if farewell is not None:
            farewell()

    def _sleep(self, frame: types.FrameType | None) -> bool:
        """Listen no more until the innermost function of the notebook has ended."""
        lane = self.timeline.lane()
        innermost = self.functions.innermost(lane)
        while frame is not None and id(frame) != innermost:
            frame = frame.f_back
        if frame is None or innermost is None:
            return False
        unheard, ident = _Unheard(frame), threading.get_ident()

        def wake() -> None:
            self._asleep = False
            if not self._on or threading.get_ident() != ident:
                return
            unheard.span = self.functions.ended_unheard(lane, innermost)
            if sys.getprofile() is None:
                self._unheard.append(unheard)
                sys.setprofile(self.hook)

        # Before 3.12 this mapping dies with its frame, and so tells us the moment the function ends.
        frame.f_locals[_WAKE] = _OnEnd(wake)
        name = frame.f_code.co_qualname
        self.timeline.note(f"{name}: busy with small calls; from then on, calls inside it were not recorded")
        self._asleep = True
        sys.setprofile(None)
        return True


class _Unheard:
    """A call whose end nobody heard: its result is found with its caller, at the next event there.

    Nothing but the result can have come to the caller in between: another call would have been heard.
    """

    def __init__(self, frame: types.FrameType) -> None:
        caller = frame.f_back
        self.span: OpenSpan | None = None
        self._caller = id(caller)
        self._before = {} if caller is None else {name: id(value) for name, value in caller.f_locals.items()}

    def tell(self, functions: Functions, frame: types.FrameType, event: str, value: object) -> bool:
        """Find the result in what the caller has, hands on or returns; False: no event of the caller's."""
        if self.span is None:
            return True
        # A frame whose end we hear of is not the caller's doing: it is our own, that woke us.
        caller = frame if id(frame) == self._caller else frame.f_back if event == "call" else None
        if caller is None or id(caller) != self._caller:
            return False
        have = caller.f_locals
        new = [value for name, value in have.items() if self._before.get(name) != id(value)]
        if event == "return" and caller is frame:
            new.append(value)
        elif event == "call" and caller is not frame:
            known = {id(value) for value in (*have.values(), *caller.f_code.co_consts)}
            new += [value for value in frame.f_locals.values() if id(value) not in known]
        functions.gave(new, self.span)
        return True


class _OnEnd:
    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def __del__(self) -> None:
        self.call()


_event_cost: list[float] = []


def event_cost_s() -> float:
    """Seconds that one event of no interest takes, measured once, in a thread of its own."""
    if not _event_cost:
        best = [float("inf"), float("inf")]
        files, heard = {__file__: FOREIGN}, 0

        def hook(frame: types.FrameType, event: str, _value: Any) -> None:
            nonlocal heard
            heard += 1
            if event == "call" and files.get(frame.f_code.co_filename) == FOREIGN:
                return

        def small() -> None:
            abs(1)

        def measure() -> None:
            for listening in (0, 1) * 5:
                sys.setprofile(hook if listening else None)
                started = time.perf_counter()
                for _ in range(200):
                    small()
                best[listening] = min(best[listening], time.perf_counter() - started)
                sys.setprofile(None)

        thread = threading.Thread(target=measure, name="gimlet-calibration", daemon=True)
        thread.start()
        thread.join()
        _event_cost.append(max(0.0, best[1] - best[0]) / 800)  # a call of Python and one of C are four events
    return _event_cost[0]
