"""Function calls by ``sys.monitoring``, from Python 3.12: foreign code is heard of once, then never."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from gimlet_lab.capture.functions import Functions
from gimlet_lab.capture.timeline import Lane, Timeline


class Monitoring:
    """One of the interpreter's six monitoring tools, for the length of a cell."""

    #: No profile function: nothing to switch off while we run operators ourselves.
    hook: object = None

    def __init__(self, functions: Functions, timeline: Timeline) -> None:
        self.functions = functions
        self.timeline = timeline
        self._on = False
        self._tool: int | None = None
        self._codes: dict[int, types.CodeType] = {}
        self._farewell: dict[int, Callable[[], object]] = {}
        # Absent before 3.12, and so from the types of 3.11.
        self._sys: Any = getattr(sys, "monitoring", None)

    def install(self) -> str | None:
        """Listen, if a tool is free; else say so."""
        monitoring, events = self._sys, self._sys.events
        wanted = (monitoring.PROFILER_ID, 3, 4, monitoring.OPTIMIZER_ID)
        tool = next((i for i in wanted if monitoring.get_tool(i) is None), None)
        if tool is None:
            return "functions were not recorded: all tools of sys.monitoring are taken"
        monitoring.use_tool_id(tool, "gimlet_lab")
        self._tool, self._on = tool, True
        for event, callback in (
            (events.PY_START, self._started),
            (events.PY_RESUME, self._resumed),
            (events.PY_THROW, self._thrown),
            (events.PY_RETURN, self._returned),
            (events.PY_YIELD, self._yielded),
            (events.PY_UNWIND, self._unwound),
        ):
            monitoring.register_callback(tool, event, callback)
        # What an earlier cell did not want to hear of, this one may.
        monitoring.restart_events()
        monitoring.set_events(tool, events.PY_START | events.PY_THROW | events.PY_UNWIND)
        return None

    def uninstall(self, farewell: dict[int, Callable[[], object]]) -> None:
        """Let go, or as soon as other threads have done what is left to be undone there."""
        self._on = False
        if self._tool is None:
            return
        self._farewell.update(farewell)
        monitoring, events = self._sys, self._sys.events
        for code in self._codes.values():
            monitoring.set_local_events(self._tool, code, 0)
        self._codes.clear()
        for event in (events.PY_RESUME, events.PY_THROW, events.PY_RETURN, events.PY_YIELD, events.PY_UNWIND):
            monitoring.register_callback(self._tool, event, None)
        if self._farewell:
            monitoring.set_events(self._tool, events.PY_START)
            monitoring.restart_events()
        else:
            self._free()

    def busy(self, lane: Lane, inside: bool) -> None:
        """Nothing to switch: what starts inside a module call is left out as it starts."""

    def cost_s(self) -> float:
        """Nothing but the work on the calls themselves, which counts itself."""
        return 0.0

    def _free(self) -> None:
        if self._tool is not None:
            self._sys.set_events(self._tool, 0)
            self._sys.register_callback(self._tool, self._sys.events.PY_START, None)
            self._sys.free_tool_id(self._tool)
            self._tool = None

    def _started(self, code: types.CodeType, _offset: int) -> Any:
        functions = self.functions
        if not self._on:
            farewell = self._farewell.pop(threading.get_ident(), None)
            if farewell is not None:
                farewell()
            if not self._farewell:
                self._free()
            return None
        if not functions.wanted(code):
            return self._sys.DISABLE
        if functions.exhausted(code):
            self._sys.set_local_events(self._tool, code, 0)
            return self._sys.DISABLE
        if id(code) not in self._codes:
            self._codes[id(code)] = code
            events = self._sys.events
            self._sys.set_local_events(
                self._tool, code, events.PY_RETURN | events.PY_YIELD | events.PY_RESUME
            )
        lane = self.timeline.lane()
        if lane.module is None:
            functions.start(sys._getframe(1), lane)  # noqa: SLF001 - the frame that the event is of
        return None

    def _resumed(self, code: types.CodeType, _offset: int) -> Any:
        lane = self.timeline.lane()
        if self._on and lane.module is None and id(code) in self._codes:
            self.functions.resume(sys._getframe(1), lane)  # noqa: SLF001 - see _started

    def _thrown(self, code: types.CodeType, _offset: int, _error: BaseException) -> Any:
        lane = self.timeline.lane()
        if self._on and lane.module is None and id(code) in self._codes:
            self.functions.resume(sys._getframe(1), lane)  # noqa: SLF001 - see _started

    def _returned(self, _code: types.CodeType, _offset: int, value: object) -> Any:
        self._stop(sys._getframe(1), value, None, waits=False)  # noqa: SLF001 - see _started

    def _yielded(self, _code: types.CodeType, _offset: int, value: object) -> Any:
        self._stop(sys._getframe(1), value, None, waits=True)  # noqa: SLF001 - see _started

    def _unwound(self, code: types.CodeType, _offset: int, error: BaseException) -> Any:
        if id(code) in self._codes:
            self._stop(sys._getframe(1), None, type(error).__name__, waits=False)  # noqa: SLF001 - see _started

    def _stop(self, frame: types.FrameType, value: object, raised: str | None, *, waits: bool) -> None:
        lane = self.timeline.lane()
        if self._on and lane.module is None:
            self.functions.stop(frame, value, lane, raised, waits=waits)
