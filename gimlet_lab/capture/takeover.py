"""``torch.nn.Module.__call__`` while a cell runs: one place that every module call goes through.

Global forward hooks would do the same by the book, but: they send every call of every submodule down torch's
slow path (2 µs a module, 2 to 3 % of a decode step); they are not run for a KeyboardInterrupt, so the clock
of an interrupted call never stops; they add frames of torch's to the user's traceback; ``torch.compile``
warns of them at every call, compiles them into whatever it meets first inside the cell, and compiles that
once more afterwards. The takeover's Python frame takes the place of one of torch's, ends in ``finally``, is
in no traceback, and steps aside while something is compiled or compiled code runs.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

from gimlet_lab.boundary import Ledger
from gimlet_lab.capture.arrival import Arrival
from gimlet_lab.capture.hiding import forget_frames, hide_from_dynamo
from gimlet_lab.capture.operators import Operators
from gimlet_lab.capture.timeline import Lane, Timeline

#: Runs a module call: the lane where it has one, the module, its arguments.
Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

_KEPT_BY = (
    ("torch._dynamo.utils", "unpatched_nn_module_call"),
    ("torch.fx._symbolic_trace", "_orig_module_call"),
)


class Takeover:
    """Every module call of every thread, to whoever wants it.

    Parameters
    ----------
    torch
        The module, imported by the user's code.
    timeline, operators
        Which thread is doing what, and the mode to lift while code is compiled.
    """

    def __init__(self, torch: Any, timeline: Timeline, operators: Operators) -> None:
        self.torch = torch
        self.timeline = timeline
        self.operators = operators
        self.original: Any = None
        self._call: Any = None
        self._aside = 0
        self._lifted: dict[int, list[bool]] = {}
        self._lock = threading.Lock()
        self._compiling_since = 0.0
        self.compiles = 0
        self.compile_s = 0.0

    def install(self, ledger: Ledger, outermost: Run, inner: Callable[..., Any]) -> None:
        """Send outermost calls to ``outermost``, those below a looked-at one to ``inner``, the rest on."""
        module_class = self.torch.nn.Module
        original = self.original = module_class.__call__
        local, taken = self.timeline.local, self
        # What torch does in a Python frame of its own, a quarter of a microsecond a call, is done in ours.
        plain = original is getattr(module_class, "_wrapped_call_impl", None)

        @functools.wraps(original)
        def __call__(self: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N807 - it is one
            lane = local.lane
            try:
                if lane is not None and lane.module is not None:
                    if lane.looking:
                        return inner(lane, self, args, kwargs)
                    if plain and self._compiled_call_impl is None:
                        return self._call_impl(*args, **kwargs)
                    return original(self, *args, **kwargs)
                if taken._call is None:
                    return original(self, *args, **kwargs)
                return outermost(self, args, kwargs)
            except BaseException as error:
                forget_frames(error)
                raise

        hide_from_dynamo(self.torch, __call__, deep=False)
        self._call = __call__
        module_class.__call__ = __call__
        ledger.add("torch.nn.Module.__call__", self.uninstall)
        arrival = Arrival("torch._dynamo.callback", lambda: self._hear_of_compiles(ledger))
        if arrival.name in sys.modules:
            self._hear_of_compiles(ledger)
        else:
            arrival.install()
            ledger.add("sys.meta_path", arrival.uninstall)

    def uninstall(self) -> None:
        """Give it back, also to libraries that took ours for torch's own when the cell imported them."""
        call, self._call = self._call, None
        if call is None:
            return
        if self.torch.nn.Module.__call__ is call:
            self.torch.nn.Module.__call__ = self.original
        for name, attribute in _KEPT_BY:
            library = sys.modules.get(name)
            if library is not None and getattr(library, attribute, None) is call:
                setattr(library, attribute, self.original)

    def enter_compiled(self, lane: Lane) -> None:
        """Leave torch as it is, no mode and no takeover: dynamo compiles what it finds and guards it.

        Other threads' module calls go unseen meanwhile.
        """
        lifted = self.operators.pop(lane)
        with self._lock:
            self._lifted.setdefault(lane.index, []).append(lifted)
            self._aside += 1
            if self._call is not None and self.torch.nn.Module.__call__ is self._call:
                self.torch.nn.Module.__call__ = self.original

    def leave_compiled(self, lane: Lane) -> None:
        """Take over again."""
        with self._lock:
            stack = self._lifted.get(lane.index)
            if not stack:
                return
            lifted = stack.pop()
            self._aside -= 1
            back = self._aside == 0 and self._call is not None
            if back and self.torch.nn.Module.__call__ is self.original:
                self.torch.nn.Module.__call__ = self._call
        if lifted and self._call is not None:
            self.operators.push(lane)

    def _hear_of_compiles(self, ledger: Ledger) -> None:
        """Step aside whenever dynamo compiles, also for a library that does so where we cannot see it."""
        if self._call is None:
            return
        handler = getattr(sys.modules.get("torch._dynamo.callback"), "callback_handler", None)
        if handler is None or not hasattr(handler, "register_start_callback"):
            return

        def started(_about: Any = None) -> None:
            self.enter_compiled(self.timeline.lane())
            self.compiles += 1
            self._compiling_since = self.timeline.clock()

        def ended(_about: Any = None) -> None:
            self.compile_s += self.timeline.clock() - self._compiling_since
            self.leave_compiled(self.timeline.lane())

        def undo() -> None:
            # torch._dynamo.reset() forgets callbacks, ours too.
            if started in handler.start_callbacks:
                handler.remove_start_callback(started)
            if ended in handler.end_callbacks:
                handler.remove_end_callback(ended)

        handler.register_start_callback(started)
        handler.register_end_callback(ended)
        ledger.add("torch._dynamo callbacks", undo)
