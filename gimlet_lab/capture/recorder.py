"""The face of capture: start before the cell, stop after it, get everything it did."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gimlet_lab.boundary import Ledger
from gimlet_lab.capture import price
from gimlet_lab.capture.activities import TorchActivities, warm_up
from gimlet_lab.capture.arrival import Arrival
from gimlet_lab.capture.dataflow import Dataflow
from gimlet_lab.capture.devices import Devices, TorchStreams
from gimlet_lab.capture.fakes import FakeWorld
from gimlet_lab.capture.functions import Functions, Leave
from gimlet_lab.capture.gaps import Gaps
from gimlet_lab.capture.looks import Looks
from gimlet_lab.capture.metering import Metering
from gimlet_lab.capture.modules import Modules
from gimlet_lab.capture.monitoring import Monitoring
from gimlet_lab.capture.operators import Operators
from gimlet_lab.capture.profile import Profile
from gimlet_lab.capture.regions import Regions
from gimlet_lab.capture.stacks import StackOptions, StackSampler
from gimlet_lab.capture.takeover import Takeover
from gimlet_lab.capture.timeline import Lane, OpenSpan, Timeline
from gimlet_lab.capture.training import Training
from gimlet_lab.capture.waits import Sampler
from gimlet_lab.capture.workers import Workers
from gimlet_lab.hardware.meters import Sampler as MeterSampler
from gimlet_lab.model import Recording
from gimlet_lab.model.stacks import StackRecording

_current: Recorder | None = None


class Recorder:
    """Watches the calling thread (and what it starts) from :meth:`start` to :meth:`stop`.

    Parameters
    ----------
    namespace : mapping
        The notebook's: where modules and functions get their names from.
    is_cell_file : callable
        Whether a file name is a cell of the notebook.
    exact : bool
        Look at every module call, not only at the first of each kind.
    stacks : StackOptions, optional
        How call stacks are sampled; they are not, where left out.
    clock : callable
        Seconds on a monotonic clock.
    world : FakeWorld, optional
        Run the cell dry, on fake tensors: it is entered and left with the recorder.
    meters : Sampler, optional
        Of the devices' meters; none are read where left out.
    processes : collection of int
        Children that have their own place in the run: what they take needs no other word.

    Examples
    --------
    >>> recorder = Recorder({}, lambda filename: filename.startswith("<cell"))
    >>> recorder.start()
    >>> total = sum(range(10))
    >>> recording = recorder.stop()
    >>> recording.status, recording.spans[0].kind, Recorder.current()
    ('ok', 'cell', None)
    """

    def __init__(
        self,
        namespace: Mapping[str, Any],
        is_cell_file: Callable[[str], bool],
        *,
        exact: bool = False,
        stacks: StackOptions | None = None,
        clock: Callable[[], float] = time.perf_counter,
        world: FakeWorld | None = None,
        meters: MeterSampler | None = None,
        processes: Collection[int] = (),
    ) -> None:
        self.namespace = namespace
        self.is_cell_file = is_cell_file
        self.exact = exact
        self.world = world
        self._timeline = timeline = Timeline(clock)
        self._flow = Dataflow()
        self._functions = Functions(
            timeline,
            self._flow,
            namespace,
            is_cell_file,
            compiled=self._compiled,
            region=self._region,
            module=self._compiled_module,
            edge=self._edge,
        )
        self._events = (Monitoring if hasattr(sys, "monitoring") else Profile)(self._functions, timeline)
        self._stacks = None if stacks is None else StackSampler(timeline.now, is_cell_file, stacks)
        self._sampler = Sampler(timeline.now, self._stacks.tick if self._stacks is not None else None)
        self._metering = None if meters is None else Metering(meters)
        self._operators: Operators | None = None
        self._modules: Modules | None = None
        self._gaps: Gaps | None = None
        self._looks: Looks | None = None
        self._training: Training | None = None
        self._takeover: Takeover | None = None
        self._regions: Regions | None = None
        self._processes = processes
        self._workers: Workers | None = None
        self._lane: Lane | None = None
        self._ledger = Ledger()
        self._lock = threading.Lock()
        self._recording: Recording | None = None

    @staticmethod
    def current() -> Recorder | None:
        """The recorder that is at work, if one is."""
        return _current

    def start(self) -> None:
        """Begin; if anything fails, nothing of it is left.

        Raises
        ------
        RuntimeError
            If a recorder is at work, or this one was.
        """
        global _current
        if _current is not None or self._lane is not None:
            raise RuntimeError("a recorder is at work already, or this one was used before")
        _current = self
        try:
            self._begin()
        except BaseException:
            self._undo()
            if self._metering is not None:
                self._metering.stop()
            raise

    @contextmanager
    def unseen(self, *, stands_for: int) -> Iterator[None]:
        """Record none of this thread's modules; the last outermost call stands for so many like it."""
        operators, modules, lane = self._operators, self._modules, self._timeline.lane()
        if operators is None or modules is None or modules.last is None:
            yield
            return
        modules.last.attributes["stands_for"] = stands_for
        watched = operators.pop(lane)
        lane.module = modules.last
        try:
            yield
        finally:
            lane.module = None
            if watched:
                operators.push(lane)

    def glimpse(self, most: int) -> tuple[float, list[tuple[str, float, float, int]]]:
        """How long it has been at work, and what ran last: see :meth:`Timeline.stretches`."""
        return self._timeline.now(), self._timeline.stretches(most)

    def stop(self, error: BaseException | None = None) -> Recording:
        """End, put everything back, and give what was seen. Called again: the same recording.

        Parameters
        ----------
        error : BaseException, optional
            What ended the cell.

        Raises
        ------
        RuntimeError
            If it was never started.
        """
        with self._lock:
            if self._recording is None:
                self._recording = self._end(error)
            return self._recording

    def _begin(self) -> None:
        self._owner = threading.get_ident()
        began = self._timeline.clock()
        if self.world is None and warm_up(sys.modules.get("torch")):
            took_s = self._timeline.clock() - began
            self._timeline.note(f"once, before the cell: {took_s:.1f} s to start the accelerator's profiler")
        self._lane = self._timeline.lane()
        if self.world is not None:
            self.world.enter()
            self._ledger.add("fake tensors", self.world.leave)
        if self._metering is not None:
            self._metering.start()
        if "torch" in sys.modules:
            self._watch_torch()
        else:
            arrival = Arrival("torch", self._watch_torch)
            arrival.install()
            self._ledger.add("sys.meta_path", arrival.uninstall)
        # First what undoes it: torch is watched already.
        self._ledger.add("function events", self._let_go)
        refused = self._events.install()
        if refused is not None:
            self._timeline.note(refused)
        self._workers = Workers(self._processes)
        self._timeline.zero = self._timeline.clock()
        if self._stacks is not None:
            self._ledger.add("stacks", self._stacks.abandon)
            self._stacks.start()
        if self._metering is not None:
            self._metering.zero()
        self._ledger.add("sampler", self._sampler.stop)
        self._sampler.start()

    def _watch_torch(self) -> None:
        torch: Any = sys.modules.get("torch")
        if self is not _current or not hasattr(torch, "nn"):
            return
        self._flow.watch_torch(torch)
        operators = self._operators = Operators(self._timeline, self._flow, torch)
        operators.hook = self._events.hook
        takeover = self._takeover = Takeover(torch, self._timeline, operators)
        gaps = self._gaps = Gaps(self._timeline, operators, self._functions)
        streams = TorchStreams.of(torch) if self.world is None else None
        operators.devices = None if streams is None else Devices(streams, self._timeline.now)
        activities = None if streams is None else TorchActivities.of(torch, self._timeline.now)
        looks = self._looks = Looks(operators, activities)
        if self.world is None and hasattr(getattr(torch, "compiler", None), "set_stance"):
            self._regions = Regions(torch, self._timeline, self.namespace, self.is_cell_file)
        training = self._training = Training(
            self._timeline, looks, exact=self.exact, around=self._around, regions=self._regions
        )
        modules = self._modules = Modules(
            self._timeline,
            self._flow,
            operators,
            takeover,
            gaps,
            looks,
            self.namespace,
            exact=self.exact,
            around=self._around,
            memory=None if self.world is None else self.world.memory,
            regions=self._regions,
        )
        takeover.install(self._ledger, modules.outermost, modules.inner)
        training.install(torch, self._ledger)
        if self._lane is not None and threading.get_ident() == self._owner:
            operators.push(self._lane)

    def _around(self, lane: Lane, inside: bool) -> None:
        # Our own calls are not listened to.
        if inside:
            self._events.busy(lane, True)
        self._edge(lane)
        if not inside:
            self._events.busy(lane, False)

    def _edge(self, lane: Lane) -> None:
        if lane.index == 0:
            self._sampler.mark()

    def _compiled(self, lane: Lane, inside: bool) -> None:
        if self._gaps is not None and inside:
            self._gaps.disturbed()
        if self._takeover is not None:
            (self._takeover.enter_compiled if inside else self._takeover.leave_compiled)(lane)

    def _region(self, span: OpenSpan, given: Mapping[str, Any]) -> None:
        function, operators = given.get("fn"), self._operators
        if self._regions is None or operators is None or not callable(function):
            return
        device = operators.devices.last if operators.devices is not None else ""
        args, kwargs = given.get("args", ()), given.get("kwargs", {})
        self._regions.called(span, function, args, kwargs, device or "cpu")

    def _compiled_module(self, lane: Lane, frame: FrameType) -> Leave | None:
        """A library calls a module that it had compiled (transformers' ``generate``, with a static cache)."""
        given, modules, operators = frame.f_locals, self._modules, self._operators
        module = getattr(given.get("fn"), "__self__", None)
        if modules is None or operators is None or not isinstance(module, operators.torch.nn.Module):
            return None
        return modules.compiled(lane, module, given.get("args", ()), given.get("kwargs", {}), frame.f_back)

    def _let_go(self) -> None:
        farewell: dict[int, Callable[[], object]] = {}
        operators, lane = self._operators, self._lane
        if operators is not None and lane is not None:
            operators.awake = False
            if threading.get_ident() == self._owner:
                operators.remove(lane)
            else:
                farewell[self._owner] = lambda: operators.remove(lane)
        self._events.uninstall(farewell)

    def _undo(self) -> None:
        global _current
        if _current is self:
            _current = None
        for failure in self._ledger.undo():
            self._timeline.note(f"not put back: {type(failure).__name__}: {failure}")

    def _end(self, error: BaseException | None) -> Recording:
        if self._lane is None:
            raise RuntimeError("a recorder must be started before it is stopped")
        timeline, functions = self._timeline, self._functions
        devices = None if self._operators is None else self._operators.devices
        if devices is not None:  # what the cell launched is the cell's
            devices.wait()
        end = timeline.now()
        samples = self._sampler.stop()
        if self._gaps is not None:
            self._gaps.leave(self._lane)
        try:
            stacks, lines = self._sampled()
        finally:
            self._undo()
        readings = () if self._metering is None else self._metering.stop()
        operators, takeover = self._operators, self._takeover
        if operators is not None and self._looks is not None:
            self._looks.hear()
            operators.place()
        inferred = () if self._gaps is None else self._gaps.finish()
        dispatch_s = 0.0 if operators is None else price.dispatch_s(operators)
        modules = () if self._modules is None else self._modules.finish()
        if self._looks is not None:
            self._looks.finish(dispatch_s)
        sources = functions.finish()
        if takeover is not None and takeover.compiles:
            timeline.note(f"torch.compile took {takeover.compile_s:.1f} s of this cell")
        worked = None if self._workers is None else self._workers.note()
        if worked is not None:
            timeline.note(worked)
        metered = [] if self._metering is None else self._metering.notes
        faked = [] if self.world is None else self.world.notes
        for line in (*self._sampler.notes, *lines, *metered, *faked):
            timeline.note(line)
        if devices is not None and devices.failed is not None:
            timeline.note(devices.failed)
        spans = timeline.finish(end)
        if devices is not None and self._looks is not None:
            spans = devices.place(spans)
            self._looks.concede(spans)
        ops = () if operators is None else operators.finish(dispatch_s)
        if self._regions is not None:
            ops += tuple(self._regions.count(spans, ops))
        return Recording(
            spans=spans,
            ops=ops,
            inferred=inferred,
            transfers=self._flow.finish(),
            samples=samples,
            stacks=stacks,
            modules=modules,
            sources=sources,
            frames=functions.frames,
            functions=functions.functions,
            declared=functions.declared,
            status=_status(error),
            error=None if error is None else type(error).__name__,
            overhead_s=self._overhead_s(dispatch_s),
            notes=tuple(timeline.notes),
            meters=readings,
            threads=1 if operators is None else int(operators.torch.get_num_threads()),
        )

    def _overhead_s(self, dispatch_s: float) -> float:
        listening = self._functions.spent + self._events.cost_s()
        modules = 0.0 if self._modules is None else self._modules.spent
        operators = sum(lane.spent + lane.calls * dispatch_s for lane in self._timeline.lanes)
        metering = 0.0 if self._metering is None else self._metering.cpu_s
        training = 0.0 if self._training is None else self._training.spent
        return self._sampler.cpu_s + metering + listening + modules + training + operators

    def _sampled(self) -> tuple[StackRecording, list[str]]:
        if self._stacks is None:
            return StackRecording(), []
        try:
            found = self._stacks.stop({lane.ident: lane.index for lane in self._timeline.lanes})
        except Exception as error:  # noqa: BLE001 - the rest of the recording is worth having without them
            return StackRecording(), [f"stacks were not kept: {type(error).__name__}: {error}"]
        return found, self._stacks.notes

    def _abandon(self) -> None:
        """In a forked child nothing of ours goes on, and nothing is said."""
        self._sampler.abandon()
        if self._stacks is not None:
            self._stacks.abandon()
        self._undo()


def _status(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"


def _after_fork() -> None:
    if _current is not None:
        _current._abandon()  # noqa: SLF001 - our own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
