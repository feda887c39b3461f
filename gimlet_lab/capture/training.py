"""Backward passes and optimizer steps: spans of their own, looked at once for each kind, like module calls.

Which kind a backward pass is, the calls and operators since the one before say: all that it goes back over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from gimlet_lab.boundary import Ledger
from gimlet_lab.capture.hiding import forget_frames, hide_from_dynamo
from gimlet_lab.capture.looks import Look, Looks
from gimlet_lab.capture.regions import Regions
from gimlet_lab.capture.timeline import Lane, OpenSpan, Timeline


class Training:
    """Backward passes and optimizer steps of one recording.

    Parameters
    ----------
    timeline, looks
        Where spans and operators are kept.
    exact : bool
        Look at every one.
    around : callable
        Called with the lane and True as one begins, and with False when it has ended.
    regions : Regions, optional
        Where compiled calls are counted.
    """

    def __init__(
        self,
        timeline: Timeline,
        looks: Looks,
        *,
        exact: bool,
        around: Callable[[Lane, bool], None],
        regions: Regions | None = None,
    ) -> None:
        self.timeline = timeline
        self.looks = looks
        self.exact = exact
        self.around = around
        self.regions = regions
        self.spent = 0.0
        self._seen: set[str] = set()
        self._steps: dict[int, tuple[int, OpenSpan, Look]] = {}

    def install(self, torch: Any, ledger: Ledger) -> None:
        """Stand before autograd's engine, and hear of optimizer steps by torch's own hooks."""
        autograd = torch.autograd
        engine = getattr(autograd, "_engine_run_backward", None)
        if engine is not None:

            def run(*args: Any, **kwargs: Any) -> Any:
                try:
                    return self._backward(engine, args, kwargs)
                except BaseException as error:
                    forget_frames(error)
                    raise

            hide_from_dynamo(torch, run, deep=True)
            ledger.set(autograd, "_engine_run_backward", run)
        optimizer = sys.modules.get("torch.optim.optimizer")
        for kind, hook in (("pre", self._step), ("post", self._stepped)):
            register = getattr(optimizer, f"register_optimizer_step_{kind}_hook", None)
            if register is not None:
                ledger.add("optimizer step hook", register(hook).remove)

    # -- backward -----------------------------------------------------------------------------------------

    def _backward(self, engine: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        lane = self.timeline.lane()
        if lane.module is not None or not self.looks.operators.awake:
            return engine(*args, **kwargs)
        entered = self.timeline.clock()
        roots = args[0] if args else ()
        shapes = " ".join(str(tuple(getattr(root, "shape", ()))) for root in roots)
        leaf = None if lane.leaf is None else lane.leaf()
        adds = leaf is not None and leaf.grad is not None
        known = lane.history is not None
        signature = f"after {lane.history} of {shapes}{' adding' if adds else ''}" if known else None
        lane.history = lane.leaf = None
        span, look = self._open("backward", signature, lane)
        if self.regions is not None:
            lane.way_back = self.regions.went_back(lane, span, roots)
        self.spent += self.timeline.clock() - entered
        try:
            return engine(*args, **kwargs)
        except BaseException as error:
            self._failed(span, type(error).__name__)
            raise
        finally:
            self._close(lane, span, look)

    # -- optimizers ---------------------------------------------------------------------------------------

    def _step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        lane = self.timeline.lane()
        left = self._steps.pop(lane.index, None)
        if left is not None:  # it raised
            self._failed(left[1], "raised")
            self._close(lane, *left[1:])
        # A closure calls the model again: its calls are seen as they are.
        if lane.module is not None or any(callable(value) for value in (*args[1:], *kwargs.values())):
            return
        entered = self.timeline.clock()
        name = type(optimizer).__name__
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        signature = f"{id(optimizer)} {count} parameters{'' if optimizer.state else ' first'}"
        span, look = self._open(f"{name}.step", signature, lane)
        if span.looked:
            self._know(optimizer)
        self._steps[lane.index] = (id(optimizer), span, look)
        self.spent += self.timeline.clock() - entered

    def _stepped(self, optimizer: Any, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        lane = self.timeline.lane()
        entered = self._steps.get(lane.index)
        if entered is not None and entered[0] == id(optimizer):
            del self._steps[lane.index]
            self._close(lane, *entered[1:])

    def _know(self, optimizer: Any) -> None:
        """Know the gradients and the state when an operator reads them."""
        operators = self.looks.operators
        held = [p for group in optimizer.param_groups for p in group["params"]]
        operators.know(held, operators.weights)
        operators.know((p.grad for p in held if p.grad is not None), operators.gradients)
        states = [value for state in optimizer.state.values() for value in getattr(state, "values", tuple)()]
        operators.know((v for v in states if isinstance(v, operators.torch.Tensor)), operators.states)

    # -- either -------------------------------------------------------------------------------------------

    def _open(self, name: str, signature: str | None, lane: Lane) -> tuple[OpenSpan, Look]:
        self.around(lane, True)
        span = self.timeline.open(name, "function", lane)
        span.signature = signature
        where = f"{name} {signature}"
        span.looked = self.exact or signature is None or where not in self._seen
        self._seen.add(where)
        lane.module = span
        devices = self.looks.operators.devices
        where = "" if devices is None else devices.last
        stamp = devices.stamp(where) if devices is not None and where else None
        look = self.looks.begin(lane, span, {}, {}, away=stamp is not None)
        if devices is not None and stamp is not None:
            look.stamp = where, devices.stamp(where)
        return span, look

    def _failed(self, span: OpenSpan, error: str) -> None:
        """What was seen of it is not the whole: the next of its kind is looked at again."""
        span.attributes["error"] = error
        self._seen.discard(f"{span.name} {span.signature}")

    def _close(self, lane: Lane, span: OpenSpan, look: Look) -> None:
        entered = self.timeline.clock()
        devices = self.looks.operators.devices
        if devices is not None and look.stamp is not None:
            devices.called(span, *look.stamp)
        span.end = self.timeline.now()
        self.looks.end(lane, span, look)
        self.looks.settle(lane, span, look, {})
        self.timeline.close(span, lane)
        lane.module, lane.path, lane.way_back = None, "", False
        self.around(lane, False)
        self.spent += self.timeline.clock() - entered
