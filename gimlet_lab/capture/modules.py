"""Module calls: the outermost one of each thread is a span, and some of them are looked into."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import FrameType
from typing import Any

from gimlet_lab import boundary
from gimlet_lab.capture import calls
from gimlet_lab.capture.blocks import Blocks, members
from gimlet_lab.capture.dataflow import Dataflow, Made
from gimlet_lab.capture.devices import is_away
from gimlet_lab.capture.fakes import Memory
from gimlet_lab.capture.functions import Leave
from gimlet_lab.capture.gaps import Gaps
from gimlet_lab.capture.looks import Look, Looks
from gimlet_lab.capture.operators import Operators
from gimlet_lab.capture.regions import Regions
from gimlet_lab.capture.takeover import Takeover
from gimlet_lab.capture.timeline import Lane, OpenSpan, Timeline
from gimlet_lab.capture.weights import is_compiled, module_info
from gimlet_lab.model import ModuleInfo

#: A growing signature is looked at again when its past is this many times the last one looked at.
GROWTH = 2


class _Known:
    """What we keep of one outermost module: nothing that keeps it alive."""

    __slots__ = ("blocks", "info", "leaf", "looks", "module", "paths", "real", "target")

    def __init__(self, module: Any, target: str | None, info: ModuleInfo) -> None:
        self.module = weakref.ref(module)
        self.target = target
        self.info = info
        self.paths = {id(child): name for name, child in module.named_modules() if name}
        self.blocks = members(module)
        self.real = all(type(weight).__name__ != "FakeTensor" for weight in module.parameters())
        #: A parameter whose gradient tells whether a backward pass adds to what is there.
        first = next((p for p in module.parameters() if p.requires_grad), None)
        self.leaf = None if first is None else weakref.ref(first)
        #: Signature to the longest past that was looked at.
        self.looks: dict[str, int] = {}


class _Entered:
    """One outermost call under way."""

    __slots__ = ("call", "device", "guessed", "held", "incoming", "known", "look", "placed", "span", "stamp")

    def __init__(self, span: OpenSpan, call: calls.Call, known: _Known) -> None:
        self.span = span
        self.call = call
        self.known = known
        self.guessed = False
        self.placed: Mapping[str, Mapping[str, Any]] | None = None
        #: Storages that came in, and how often each had been written to.
        self.incoming: dict[int, int] = {}
        self.look: Look | None = None
        #: The accelerator that it runs on, and the event before it.
        self.device = ""
        self.stamp: Any = None
        #: Of a dry run: bytes that operators had made before, less the cache's, which is the call's own.
        self.held = 0


class Modules:
    """Outermost module calls of one recording.

    Parameters
    ----------
    timeline, flow, operators, takeover, gaps, looks
        Where spans, writers and operators are kept, where module calls come from, what lies between them and
        what is inside them.
    namespace : mapping
        The notebook's.
    exact : bool
        Look at every call.
    around : callable
        Called with the lane and True as an outermost call begins, and with False when it has ended.
    memory : Memory, optional
        Of a dry run: what its operators hold.
    regions : Regions, optional
        Where compiled calls are counted.
    """

    def __init__(
        self,
        timeline: Timeline,
        flow: Dataflow,
        operators: Operators,
        takeover: Takeover,
        gaps: Gaps,
        looks: Looks,
        namespace: Mapping[str, Any],
        *,
        exact: bool,
        around: Callable[[Lane, bool], None],
        memory: Memory | None = None,
        regions: Regions | None = None,
    ) -> None:
        self.timeline = timeline
        self.flow = flow
        self.operators = operators
        self.takeover = takeover
        self.gaps = gaps
        self.looks = looks
        self.namespace = namespace
        self.exact = exact
        self.around = around
        self.memory = memory
        self.regions = regions
        self.spent = 0.0
        self._tensor: type = operators.torch.Tensor
        self._grad_enabled: Callable[[], bool] = operators.torch.is_grad_enabled
        self._known: dict[int, _Known] = {}
        self._order: list[_Known] = []
        self._caches: dict[int, Made] = {}
        #: The outermost call that was looked at last.
        self.last: OpenSpan | None = None
        #: Caches of which guessed tokens were verified.
        self._verified: set[int] = set()

    # -- one call ----------------------------------------------------------------------------------------

    def inner(self, lane: Lane, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a submodule during a look: operators inside it are known by its path."""
        blocks, before = lane.blocks, lane.path
        lane.path = lane.paths.get(id(module)) or before
        try:
            if blocks is not None and id(module) in blocks.members:
                return blocks.run(lane, self.takeover.original, module, args, kwargs)
            return self.takeover.original(module, *args, **kwargs)
        finally:
            lane.path = before

    def outermost(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an outermost module call inside a span of its own."""
        timeline = self.timeline
        began = timeline.clock()
        # Two frames up: past the takeover's.
        caller = sys._getframe(2)  # noqa: SLF001 - the caller
        lane, devices = timeline.lane(), self.operators.devices
        entered: _Entered | None = None
        output: Any = None
        returned = False
        ended = began
        self.gaps.end(lane)
        self.around(lane, True)
        try:
            entered = self._try_begin(lane, module, args, kwargs, caller)
            if entered is not None:
                if entered.stamp is not None and devices is not None:
                    entered.stamp = devices.stamp(entered.device)
                entered.span.start = timeline.now()
            self.spent += timeline.clock() - began
            output = self.takeover.original(module, *args, **kwargs)
            returned = True
            return output
        finally:
            if entered is not None and devices is not None:
                devices.called(entered.span, entered.device, entered.stamp)
            ended = timeline.clock()
            if entered is not None:
                entered.span.end = ended - timeline.zero
                if not returned:
                    # What was seen of it is not the whole: the next of its kind is looked at again.
                    entered.known.looks.pop(entered.call.signature, None)
                    entered.span.attributes["error"] = getattr(sys.exc_info()[0], "__name__", "unknown")
                self._try_end(lane, entered, output)
            lane.module, lane.looking, lane.path, lane.real = None, False, "", False
            if entered is not None and returned and not self.exact:
                self.gaps.begin(lane, (id(entered.known), entered.call.signature), caller)
            self.around(lane, False)
            self.spent += timeline.clock() - ended

    def compiled(
        self,
        lane: Lane,
        module: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        caller: FrameType | None,
    ) -> Leave | None:
        """A compiled form of a module's call begins, in a library's frame; give what ends it."""
        timeline = self.timeline
        self.gaps.disturbed()
        self.gaps.end(lane)
        entered = self._try_begin(lane, module, args, kwargs, caller, compiled=True)
        if entered is None:
            return None
        entered.span.start = timeline.now()

        def leave(output: object, raised: str | None) -> None:
            entered.span.end = timeline.now()
            if raised is not None:
                entered.span.attributes["error"] = raised
            self._try_end(lane, entered, output)
            lane.module, lane.real = None, False
            if raised is None and not self.exact:
                self.gaps.begin(lane, (id(entered.known), entered.call.signature), caller)

        return leave

    def _try_begin(
        self,
        lane: Lane,
        module: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        caller: FrameType | None,
        *,
        compiled: bool = False,
    ) -> _Entered | None:
        try:
            return self._begin(lane, module, args, kwargs, caller, compiled=compiled)
        except Exception as error:  # noqa: BLE001 - never the user's failure
            name = type(module).__name__
            self.timeline.note(f"a call of {name} was not recorded: {type(error).__name__}: {error}")
            return None

    def _try_end(self, lane: Lane, entered: _Entered, output: Any) -> None:
        try:
            self._end(lane, entered, output)
        except Exception as error:  # noqa: BLE001 - never the user's failure
            name = entered.span.name
            self.timeline.note(f"the end of {name} was not recorded: {type(error).__name__}: {error}")

    def _begin(
        self,
        lane: Lane,
        module: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        caller: FrameType | None,
        *,
        compiled: bool,
    ) -> _Entered:
        flow = self.flow
        known = self._module(module)
        compiled = compiled or known.info.compiled
        call = calls.read_call(module, args, kwargs, self._tensor)
        for around in lane.stack:
            around.holds = True
        span = self.timeline.open(type(module).__name__, "module", lane)
        span.target, span.signature = known.target, call.signature
        span.attributes.update(module=known.info.target, **{"class": known.info.class_name})
        entered = _Entered(span, call, known)
        lane.module, lane.real = span, known.real
        for name, value in call.named.items():
            if value is not call.cache:
                flow.read(value, span, name)
                entered.incoming.update(flow.versions(value))
        if call.past_len and call.q_len != 1:
            entered.guessed = self._guessed(call, caller)
        self._read_cache(call, span)
        entered.placed = _placed(module)
        devices = self.operators.devices
        if devices is not None and entered.placed is None and is_away(known.info.device):
            entered.device = known.info.device
            entered.stamp = devices.stamp(entered.device)
        span.looked = not compiled and entered.placed is None and self._look(known, call)
        if compiled:
            if self.regions is not None and entered.placed is None:
                again = self._grown(known, call)
                self.regions.called(span, module, args, kwargs, known.info.device, again=again)
            self.takeover.enter_compiled(lane)
        else:
            places = {}
            if span.looked:
                self._weigh(module)
                places = calls.cache_places(call.cache, flow)
            blocks = None
            if span.looked and known.blocks and entered.stamp is None and not self.exact:
                blocks = Blocks(self.operators, known.blocks)
                lane.kept = [flow.weakly(tensor) for tensor in calls.cache_tensors(call.cache, flow)]
            away = entered.stamp is not None
            entered.look = self.looks.begin(lane, span, known.paths, places, away=away, blocks=blocks)
        if self.memory is not None:
            entered.held = self.memory.mark() - _size(calls.cache_tensors(call.cache, flow))
        return entered

    def _end(self, lane: Lane, entered: _Entered, output: Any) -> None:
        flow, span, call, look = self.flow, entered.span, entered.call, entered.look
        attributes = span.attributes
        if self.memory is not None:
            attributes["peak_bytes"] = float(self.memory.peak - entered.held)
        if look is None:
            self.takeover.leave_compiled(lane)
        else:
            self.looks.end(lane, span, look)
            self.last = span if span.looked else self.last
        self.timeline.close(span, lane)
        span.role = calls.role_of(call, output, self._tensor)
        # A backend sends guesses where it sends prompts.
        if entered.guessed and span.role == "prefill" and entered.placed is None:
            span.role = "verify"
        if call.q_len is not None:
            attributes.update(batch=call.batch, q_len=call.q_len, past_len=call.past_len)
        if entered.placed:
            attributes.update(entered.placed.get(span.role) or entered.placed.get("*") or {})
        cache = calls.output_cache(call, output)
        if look is not None and span.looked:
            self.looks.settle(lane, span, look, calls.cache_places(cache, flow))
        if self._grad_enabled():
            lane.history = hash((lane.history, id(entered.known), call.signature))
            lane.leaf = entered.known.leaf
        if cache is not None:
            attributes["kv_bytes"] = float(_size(calls.cache_tensors(cache, flow)))
            self._wrote_cache(cache, span, attributes["kv_bytes"])
        for _, tensor in flow.tensors(_without(output, cache)):
            flow.gave(tensor, span, entered.incoming)

    def _guessed(self, call: calls.Call, caller: FrameType | None) -> bool:
        """Whether tokens after the past are guesses to be verified, or more of the prompt.

        Guesses hang on what the model gave before, in the same loop; a prompt was there from the start. Where
        nobody listened, what was verified once is verified again.
        """
        if not self.gaps.goes_on(caller):
            self._verified.discard(id(call.cache))
            return False
        made = self.flow.writer(self.flow.address(call.tokens))
        sources = () if made is None else made.sources
        if any(source.span.role in ("prefill", "decode", "verify") for source, _ in sources):
            self._verified.add(id(call.cache))
        return id(call.cache) in self._verified

    def _look(self, known: _Known, call: calls.Call) -> bool:
        return self._grown(known, call) or self.exact

    def _grown(self, known: _Known, call: calls.Call) -> bool:
        """Whether a call is the first of its kind, or its past has doubled since the last seen closely."""
        past = call.past_len or 0
        last = known.looks.get(call.signature)
        if last is None or (past > 0 and past >= GROWTH * max(last, 1)):
            known.looks[call.signature] = past
            return True
        return False

    # -- caches ------------------------------------------------------------------------------------------

    def _wrote_cache(self, cache: Any, span: OpenSpan, nbytes: float) -> None:
        try:
            made = self._caches[id(cache)] = self.flow.watched(cache, span)
        except TypeError:  # a tuple of tensors: they speak for themselves
            for tensor in calls.cache_tensors(cache, self.flow):
                self.flow.wrote(tensor, span)
        else:
            made.nbytes = nbytes

    def _read_cache(self, call: calls.Call, span: OpenSpan) -> None:
        cache = call.cache
        if cache is None:
            return
        made = self._caches.get(id(cache))
        if made is None:
            for tensor in calls.cache_tensors(cache, self.flow):
                self.flow.read(tensor, span, "past_key_values", "kv")
        elif made.alive():
            self.flow.transfer(made, span, "past_key_values", "kv", made.nbytes)

    # -- what is known of modules ----------------------------------------------------------------------------

    def _module(self, module: Any) -> _Known:
        known = self._known.get(id(module))
        if known is not None and known.module() is module:
            if not known.info.compiled and getattr(module, "_compiled_call_impl", None) is not None:
                known.info = replace(known.info, compiled=is_compiled(module))
            return known
        target = boundary.locate(module, self.namespace)
        if target is None and hasattr(module, "_orig_mod"):
            target = boundary.locate(module._orig_mod, self.namespace)  # noqa: SLF001 - how torch.compile wraps a module
        plain = label = target or f"<{type(module).__name__}>"
        taken, number = {other.info.target for other in self._order}, 2
        while label in taken:
            label, number = f"{plain}#{number}", number + 1
        known = _Known(module, target, module_info(module, label))
        self._known[id(module)] = known
        self._order.append(known)
        self._weigh(module)
        return known

    def _weigh(self, module: Any) -> None:
        """Know the module's weights when an operator reads them."""
        self.operators.know((*module.parameters(), *module.buffers()), self.operators.weights)

    def finish(self) -> tuple[ModuleInfo, ...]:
        """Every outermost module that was called."""
        return tuple(known.info for known in self._order)


def _placed(module: Any) -> Mapping[str, Mapping[str, Any]] | None:
    """Where a backend sends this module's calls, if it does."""
    placed = getattr(getattr(module, "__dict__", {}).get("forward"), "__gimlet_placed__", None)
    return placed if isinstance(placed, Mapping) else None


def _size(tensors: Iterable[Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _without(output: Any, cache: object) -> Any:
    if isinstance(output, Mapping):
        return [value for value in output.values() if value is not cache]
    if isinstance(output, tuple):
        return [value for value in output if value is not cache]
    return output
