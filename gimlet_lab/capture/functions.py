"""Functions of the notebook that the cell calls: seen from outside, never replaced.

Up to Python 3.11 we hear of them by ``sys.setprofile``, from 3.12 by ``sys.monitoring``. Either one only says
which frame starts, waits, goes on or ends; what that means is worked out here.
"""

from __future__ import annotations

import inspect
import linecache
import opcode
import types
from collections.abc import Callable, Mapping
from typing import Any

from gimlet_lab import boundary
from gimlet_lab.capture.dataflow import Dataflow
from gimlet_lab.capture.names import find_compiled, find_function, find_method
from gimlet_lab.capture.timeline import Lane, OpenSpan, Timeline

#: Calls of one function that become spans; a helper called a million times must not fill the run.
MAX_CALLS = 2000

#: What a file is to us: somebody's library, a cell, or where torch.compile's functions begin.
FOREIGN, CELL, COMPILED = 0, 1, 2

_FUNCTION = inspect.CO_OPTIMIZED | inspect.CO_NEWLOCALS
_WAITS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_ANONYMOUS = frozenset(("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>", "<lambda>", "<module>"))
_RESUME = opcode.opmap.get("RESUME", -1)
_YIELD = opcode.opmap.get("YIELD_VALUE", -1)
_RETURNS = frozenset(opcode.opmap.get(name, -1) for name in ("RETURN_VALUE", "RETURN_CONST"))


class Code:
    """What we know of one function's code. The code is held, so that its identity stays its own."""

    __slots__ = ("calls", "code", "function", "looked_for", "target")

    def __init__(self, code: types.CodeType) -> None:
        self.code = code
        self.calls = 0
        self.looked_for = False
        self.target: str | None = None
        self.function: Any = None


#: Ends what a compiled call began: its result, and the name of what it raised.
Leave = Callable[[object, str | None], None]


class Running:
    """One call under way."""

    __slots__ = ("compiled", "frame", "given", "leave", "original", "resumed_at", "span")

    def __init__(self, frame: int, span: OpenSpan | None) -> None:
        self.frame = frame
        #: None: a compiled function that is not the notebook's.
        self.span = span
        self.given: list[tuple[object, int]] = []
        self.resumed_at = -1
        self.compiled = False
        #: Of a module's call that a library compiled: what ends it, given its result and the error it raised.
        self.leave: Leave | None = None
        #: Of a function that a backend redirected: its own code, should it run here all the same.
        self.original: types.CodeType | None = None


class Functions:
    """Calls of the notebook's functions in one recording.

    Parameters
    ----------
    timeline, flow
        Where spans and writers are kept.
    namespace : mapping
        The notebook's.
    is_cell_file : callable
        Whether a file name is a cell of the notebook.
    compiled : callable
        Called with the lane and True as a function made by torch.compile begins, with False when it has
        ended.
    module : callable
        Called with the lane and the frame as a compiled function begins that is not the notebook's. Of a
        module's call it gives what to call when that has ended.
    edge : callable
        Called with the lane where a span begins or ends.
    """

    def __init__(
        self,
        timeline: Timeline,
        flow: Dataflow,
        namespace: Mapping[str, Any],
        is_cell_file: Callable[[str], bool],
        *,
        compiled: Callable[[Lane, bool], None],
        region: Callable[[OpenSpan, Mapping[str, Any]], None],
        module: Callable[[Lane, types.FrameType], Leave | None],
        edge: Callable[[Lane], None],
    ) -> None:
        self.timeline = timeline
        self.flow = flow
        self.namespace = namespace
        self.frames: dict[int, tuple[str, int]] = {}
        self.functions: dict[int, tuple[str, int]] = {}
        self.declared: dict[str, Mapping[str, Any]] = {}
        self.files: dict[str, int] = {}
        self.spent = 0.0
        #: Calls that became spans.
        self.seen = 0
        self._is_cell_file = is_cell_file
        self._compiled = compiled
        self._region = region
        self._module = module
        self._edge = edge
        self._codes: dict[int, Code] = {}
        self._running: dict[int, list[Running]] = {}
        self._waiting: dict[int, Running] = {}

    # -- what a file and a code are --------------------------------------------------------------------------

    def classify(self, filename: str) -> int:
        """Say what a file is to us, once for each name."""
        kind = self.files.get(filename)
        if kind is None:
            if filename.replace("\\", "/").endswith("torch/_dynamo/eval_frame.py"):
                kind = COMPILED
            else:
                kind = CELL if self._is_cell_file(filename) else FOREIGN
            self.files[filename] = kind
        return kind

    def wanted(self, code: types.CodeType) -> bool:
        """Whether a code is a function of the notebook, or the door to a compiled one."""
        kind = self.classify(code.co_filename)
        if kind == CELL:
            return code.co_flags & _FUNCTION == _FUNCTION and code.co_name not in _ANONYMOUS
        # What torch.compile was kept off (an optimizer's step, a checkpoint) has a wrapper there as well.
        disabled = code.co_qualname.startswith("DisableContext.")
        return kind == COMPILED and code.co_name in ("compile_wrapper", "_fn") and not disabled

    def exhausted(self, code: types.CodeType) -> bool:
        """Whether this code has had all the spans it gets."""
        known = self._codes.get(id(code))
        return known is not None and known.calls > MAX_CALLS

    def innermost(self, lane: Lane) -> int | None:
        """Which frame the thread's innermost function of the notebook runs in."""
        stack = self._running.get(lane.index)
        return stack[-1].frame if stack else None

    # -- events ----------------------------------------------------------------------------------------------

    def start(self, frame: types.FrameType, lane: Lane) -> None:
        """A frame begins, or goes on after it waited."""
        entered = self.timeline.clock()
        try:
            if frame.f_code.co_flags & _WAITS and not _fresh(frame):
                self._resume(frame, lane)
            else:
                self._begin(frame, lane)
        except Exception as error:  # noqa: BLE001 - never the user's failure
            self._failed(frame, error)
        self.spent += self.timeline.clock() - entered

    def resume(self, frame: types.FrameType, lane: Lane) -> None:
        """A frame that waited goes on."""
        entered = self.timeline.clock()
        self._resume(frame, lane)
        self.spent += self.timeline.clock() - entered

    def stop(
        self, frame: types.FrameType, value: object, lane: Lane, raised: str | None, *, waits: bool
    ) -> None:
        """A frame ends, or waits for something."""
        stack, identity = self._running.get(lane.index), id(frame)
        if not stack or not any(call.frame == identity for call in stack):
            return
        entered = self.timeline.clock()
        try:
            while stack[-1].frame != identity:  # ends that nobody told us of
                self._finish(stack.pop(), lane, None, None)
            call = stack.pop()
            if waits:
                self._wait(call, lane)
            else:
                self._finish(call, lane, value, raised)
        except Exception as error:  # noqa: BLE001 - never the user's failure
            self._failed(frame, error)
        self.spent += self.timeline.clock() - entered

    def ended_unheard(self, lane: Lane, frame: int) -> OpenSpan | None:
        """End the span of a frame that has ended while nobody listened."""
        stack, span = self._running.get(lane.index, []), None
        while any(call.frame == frame for call in stack):
            call = stack.pop()
            self._finish(call, lane, None, None)
            span = call.span
        return span

    def gave(self, values: list[Any], span: OpenSpan) -> None:
        """What a call returned whose end nobody heard."""
        try:
            for value in values:
                self.flow.made(value, span)
        except Exception as error:  # noqa: BLE001 - never the user's failure
            self.timeline.note(f"what {span.name} returned was not recorded: {type(error).__name__}: {error}")

    def waits_at(self, frame: types.FrameType, value: object, lane: Lane) -> tuple[bool, str | None]:
        """From a bare "return" event: whether the frame only waits, and whether it raised."""
        at, code = frame.f_lasti, frame.f_code
        waits = bool(code.co_flags & _WAITS)
        if at < 0 or (value is not None and not waits):
            return False, None
        operation = code.co_code[at]
        if not waits or operation != _YIELD:
            return False, None if operation in _RETURNS else "raised"
        # Thrown into where it waited, and left from there: it has ended.
        running = reversed(self._running.get(lane.index, []))
        call = next((call for call in running if call.frame == id(frame)), None)
        thrown = call is not None and call.resumed_at == at and value is None
        return not thrown, "raised" if thrown else None

    def finish(self) -> Mapping[str, str]:
        """Source text of every file that took part; nothing of the user's is held any more."""
        self._running.clear()
        self._waiting.clear()
        for known in self._codes.values():
            if known.calls > MAX_CALLS:
                name = known.code.co_qualname
                self.timeline.note(f"{name}: only the first {MAX_CALLS:,} of its calls were recorded")
        names = {name for name, _ in (*self.frames.values(), *self.functions.values())}
        return {name: source for name in sorted(names) if (source := "".join(linecache.getlines(name)))}

    # -- one call --------------------------------------------------------------------------------

    def _begin(self, frame: types.FrameType, lane: Lane) -> None:
        stack = self._running.setdefault(lane.index, [])
        inside = stack[-1] if stack else None
        if inside is not None and (inside.compiled or inside.original is frame.f_code):
            return
        given: Mapping[str, Any] = frame.f_locals
        code: types.CodeType | None = frame.f_code
        compiled = self.classify(frame.f_code.co_filename) == COMPILED
        if compiled:
            if lane.module is not None:
                return
            code = getattr(given.get("fn"), "__code__", None)
            if not isinstance(code, types.CodeType) or self.classify(code.co_filename) != CELL:
                code = None
        call = Running(id(frame), None)
        if code is not None:
            known = self._codes.get(id(code)) or self._codes.setdefault(id(code), Code(code))
            known.calls += 1
            if known.calls <= MAX_CALLS:
                call.span = self._open(frame, known, given, call, lane, compiled=compiled)
        if call.span is None and not compiled:
            return
        stack.append(call)
        if compiled:
            call.compiled = True
            call.leave = self._module(lane, frame) if call.span is None else None
            if call.leave is None:
                self._compiled(lane, True)

    def _open(
        self,
        frame: types.FrameType,
        known: Code,
        given: Mapping[str, Any],
        call: Running,
        lane: Lane,
        *,
        compiled: bool,
    ) -> OpenSpan:
        self.seen += 1
        code = known.code
        self._edge(lane)
        span = self.timeline.open(code.co_qualname, "function", lane)
        self._name(known)
        span.target = known.target
        if known.target is None and code.co_argcount:
            span.target = find_method(code, given.get(code.co_varnames[0]), self.namespace)
        placed = getattr(known.function, "__dict__", {}).get("__gimlet_placed__")
        if isinstance(placed, Mapping):
            span.attributes.update(placed.get("*") or {})
            call.original = getattr(getattr(placed, "original", None), "__code__", None)
        if compiled:
            span.attributes["compiled"] = True
            span.target = find_compiled(given.get("fn"), self.namespace) or span.target
            self._region(span, given)
            values = [
                ("argument", value) for value in (*given.get("args", ()), *given.get("kwargs", {}).values())
            ]
        else:
            values = [(name, given.get(name)) for name in _parameters(code)]
        for name, value in values:
            self.flow.read(value, span, name)
            if isinstance(value, list | dict | set):
                call.given.append((value, len(value)))
        self.functions[span.number] = (code.co_filename, code.co_firstlineno)
        caller = self._caller(frame)
        if caller is not None:
            self.frames[span.number] = caller
        return span

    def _finish(self, call: Running, lane: Lane, value: object, raised: str | None) -> None:
        if call.leave is not None:
            call.leave(value, raised)
        elif call.compiled:
            self._compiled(lane, False)
        span = call.span
        if span is None:
            return
        self.timeline.close(span, lane)
        self._edge(lane)
        if raised is not None:
            span.attributes["error"] = raised
        for given, length in call.given:
            self.flow.grew(given, length, span)
        call.given = []
        self.flow.made(value, span)

    def _wait(self, call: Running, lane: Lane) -> None:
        if call.span in lane.stack:
            lane.stack.remove(call.span)
        self._waiting[call.frame] = call

    def _resume(self, frame: types.FrameType, lane: Lane) -> None:
        call = self._waiting.pop(id(frame), None)
        if call is None or call.span is None or call.span.name != frame.f_code.co_qualname:
            return
        call.resumed_at = frame.f_lasti
        lane.stack.append(call.span)
        self._running.setdefault(lane.index, []).append(call)

    def _caller(self, frame: types.FrameType) -> tuple[str, int] | None:
        caller = frame.f_back
        for _ in range(64):
            if caller is None:
                return None
            if self.classify(caller.f_code.co_filename) == CELL:
                return caller.f_code.co_filename, caller.f_lineno
            caller = caller.f_back
        return None

    def _name(self, known: Code) -> None:
        if known.looked_for:
            return
        known.looked_for = True
        found = find_function(known.code, self.namespace)
        if found is None:
            return
        known.target, known.function = found
        declared = boundary.declaration(known.function)
        if declared is None:  # the decorator may stand above another one
            declared = boundary.declaration(self.namespace.get(known.target.partition(".")[0]))
        if declared is not None:
            self.declared[known.target] = declared

    def _failed(self, frame: types.FrameType, error: Exception) -> None:
        name = frame.f_code.co_qualname
        self.timeline.note(f"a call of {name} was not recorded: {type(error).__name__}: {error}")


def _parameters(code: types.CodeType) -> tuple[str, ...]:
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return code.co_varnames[:count]


def _fresh(frame: types.FrameType) -> bool:
    """Whether a generator's or coroutine's frame runs for the first time."""
    at, code = frame.f_lasti, frame.f_code.co_code
    if at < 0 or code[at] not in (_RESUME, _YIELD):
        return True
    # RESUME says in its argument whether it follows the start (0), a yield or an await.
    return code[at] == _RESUME and code[at + 1] & 3 == 0
