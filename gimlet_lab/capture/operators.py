"""Operators as torch dispatches them: what each computed, moved and took.

A dispatch mode sees every operator of its thread. It ignores what ``torch.compile`` compiled (so that a
compiled function stays compiled) and is away during module calls that are not looked at. What an operator
computes is worked out once for every (operator, input signature); after that a call costs a key, a look-up
and a row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from typing import Any, Protocol

from gimlet_lab.capture.dataflow import Dataflow, Weak, storage_address
from gimlet_lab.capture.devices import Devices, Stamps, is_away
from gimlet_lab.capture.intervals import Interval, seconds
from gimlet_lab.capture.kinds import Kind, is_composite, kind_of, sign, tensors_in, unknown_kind
from gimlet_lab.capture.mode import Stack, mode_class
from gimlet_lab.capture.regions import is_way_back
from gimlet_lab.capture.timeline import Lane, OpenSpan, Timeline
from gimlet_lab.capture.weights import stored
from gimlet_lab.model import Op

#: Rows and loose operators beyond these are not recorded.
MAX_ROWS = 400_000
MAX_LOOSE = 200_000

#: Signatures remembered; an endless stream of new shapes must not fill the memory.
MAX_KINDS = 20_000

#: Those of torch's own operators, which live as long as the process: the next cell has mostly the same.
_TORCHS: dict[object, Kind] = {}


class Row:
    """Equal calls back to back, while they are being recorded."""

    __slots__ = (
        "count", "gradients", "inputs", "kind", "kv", "path", "span", "stamps", "start", "states", "timed",
        "took", "weights", "worked",
    )  # fmt: skip

    def __init__(self, kind: Kind, span: OpenSpan, path: str, start: float, took: float) -> None:
        self.kind = kind
        self.span = span
        self.path = path
        self.start = start
        self.took = took
        self.count = 1
        self.weights = self.gradients = self.states = 0.0
        self.kv = 0.0
        #: During a look: storage and offset, bytes read, number of the call, whether this look made it.
        self.inputs: list[tuple[int, int, float, int, bool]] | None = None
        #: On an accelerator: the events around it; during a look that its profiler listened to, its kernels.
        self.stamps: Stamps | None = None
        self.worked: list[Interval] | None = None
        self.timed = False

    def stamped(self, stamps: Stamps) -> None:
        """One more call, between these events."""
        self.stamps = stamps if self.stamps is None else stamps._replace(begin=self.stamps.begin)

    def place(self, devices: Devices) -> None:
        """Take the device's time in place of the host's, which only saw the launch."""
        if self.worked:
            self.start, self.took = min(start for start, _ in self.worked), seconds(self.worked)
        elif self.worked is not None and is_away(self.kind.device):
            self.took = 0.0  # nothing ran there for it
        elif self.stamps is not None:
            interval = devices.interval(self.stamps)
            if interval is None:
                return
            self.start, self.took = interval[0], interval[1] - interval[0]
        else:
            return
        self.timed = True

    def frozen(self) -> Op:
        """The noun."""
        return self.elsewhere(self.path, self.start, self.took)

    def elsewhere(self, path: str, start: float, took: float) -> Op:
        """The noun, of the same at another place and time."""
        kind, count = self.kind, self.count
        return Op(
            op=kind.name,
            span=self.span.number,
            module=path,
            work=kind.work,
            start_s=start,
            duration_s=took,
            flops=None if kind.flops is None else kind.flops * count,
            bytes_read=None if kind.read is None else kind.read * count,
            bytes_written=None if kind.written is None else kind.written * count,
            dtype=kind.dtype,
            device=kind.device,
            count=count,
            weight_bytes=self.weights,
            kv_bytes=self.kv,
            gradient_bytes=self.gradients,
            state_bytes=self.states,
            device_timed=self.timed,
        )


class Repeated(Protocol):
    """What was not watched because it was known."""

    def __len__(self) -> int:
        """How many operators, as rows."""

    def ops(self, dispatch_s: float) -> Iterator[Op]:
        """Its operators; watching one takes so long outside our own clock."""


class Operators:
    """All operators of one recording.

    Parameters
    ----------
    timeline, flow
        Where spans and writers are kept.
    torch
        The module, imported by the user's code.
    """

    def __init__(self, timeline: Timeline, flow: Dataflow, torch: Any) -> None:
        self.timeline = timeline
        self.flow = flow
        self.torch = torch
        self.rows: list[Row] = []
        #: What looks left out because it had just been seen.
        self._repeats: list[Repeated] = []
        self._repeated = 0
        #: Storages of parameters and buffers, of gradients and of optimizers' state, held weakly.
        self.weights: dict[int, Weak] = {}
        self.gradients: dict[int, Weak] = {}
        self.states: dict[int, Weak] = {}
        self.awake = True
        #: Rows before this one are closed: what follows is a row of its own, equal or not.
        self.apart = 0
        #: The profile function that hears of calls in the cell's thread, if there is one.
        self.hook: Any = None
        #: The accelerators' clocks, where there are accelerators; and what marks a launch for their profiler.
        self.devices: Devices | None = None
        self.mark: Callable[[int], AbstractContextManager[object]] = nullcontext
        self._unmarked: AbstractContextManager[object] = nullcontext()
        self._tensor: type = torch.Tensor
        self._parameter: type = torch.nn.Parameter
        self._address = storage_address(torch)
        self._stack = Stack(torch)
        self._mode_class = mode_class(torch)
        #: One mode a lane, kept: while a backward pass runs, the stack is the one of the forward pass.
        self._modes: dict[int, Any] = {}
        self._kinds: dict[object, Kind] = {}
        self._views: dict[int, Kind] = {}
        #: Operators that are only a name for others, and have no formula of their own: seen from inside.
        self._composites: dict[int, bool] = {}
        self._root = timeline.spans[0]
        self._loose = 0
        self._full = False
        self._dropped = 0

    def know(self, tensors: Iterable[Any], among: dict[int, Weak]) -> None:
        """Know these tensors when an operator reads them."""
        for tensor in (part for whole in tensors for part in stored(whole)):
            address = self._where(tensor)
            # Held weakly: keeps the address from being given out again, not the memory.
            weak = None if not address or address in among else self.flow.weakly(tensor)
            if weak is not None:
                among[address] = weak
        if len(among) > MAX_KINDS:
            for address in [address for address, weak in among.items() if weak.expired()]:
                del among[address]

    # -- the mode on its thread's stack ------------------------------------------------------------------

    def push(self, lane: Lane) -> bool:
        """Watch the calling thread; False where that is so already."""
        mode = self._modes.get(lane.index)
        if mode is None:
            mode = self._modes[lane.index] = self._mode_class(self.dispatch, lane)
        if not self.awake or mode in self._stack:
            return False
        self._stack.push(mode)
        return True

    def pop(self, lane: Lane) -> bool:
        """Stop watching the calling thread; False where a mode of the user's lies above ours."""
        mode = self._modes.get(lane.index)
        if mode is None or self._stack.top() is not mode:
            return False
        self._stack.pop()
        return True

    def remove(self, lane: Lane) -> None:
        """Take our mode from wherever it lies on the calling thread's stack."""
        mode = self._modes.get(lane.index)
        if mode is not None:
            self._stack.remove(mode)

    # -- one operator ------------------------------------------------------------

    def dispatch(self, lane: Lane, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator and record it, while nobody listens to the calls that recording makes."""
        if not self.awake or not (lane.looking or (lane.module is None and not self._full)):
            return func(*args, **kwargs)
        if lane.way_back and is_way_back(sys._getframe()):  # noqa: SLF001 - whose call this is
            return func(*args, **kwargs)
        composite = self._composites.get(id(func))
        if composite is None:
            composite = self._composites[id(func)] = is_composite(func)
        if composite:
            return self._inside(lane, func, args, kwargs)
        hook = self.hook
        listens = hook is not None and sys.getprofile() is hook
        if listens:
            sys.setprofile(None)
        try:
            clock = self.timeline.clock
            entered = clock()
            kind = self._views.get(id(func))
            key: tuple[Any, ...] = ()
            tensors: list[Any] = []
            if kind is None:
                parts: list[Any] = [id(func)]
                sign(args, parts, tensors, self._tensor)
                if kwargs:
                    parts.extend(kwargs)
                    sign(kwargs.values(), parts, tensors, self._tensor)
                if tensors:
                    parts += (tensors[0].device, lane.top_k)
                key = tuple(parts)
            # Weights that are fetched for each call (accelerate's offloading) are no module's before it.
            for tensor in tensors or args[:1]:
                if tensor.__class__ is self._parameter and self._where(tensor) not in self.weights:
                    self.know((tensor,), self.weights)
            marked = lane.marked if kind is None else None
            began = self._stamp(tensors, kwargs) if self.devices is not None and lane.marked is None else None
            row = None
            with self._unmarked if marked is None else self.mark(len(marked)):
                started = clock()
                out = func(*args, **kwargs)
                ended = clock()
            try:
                kind = kind or self._kind(lane, key, func, args, kwargs, out)
                row = self._record(lane, kind, tensors, out, started, ended)
                if row is not None and self.devices is not None:
                    self._time(lane, row, began)
            except Exception as error:  # noqa: BLE001 - never the user's failure
                self.timeline.note(f"operator {func} was not recorded: {type(error).__name__}: {error}")
            if marked is not None:
                marked.append(row)
            lane.calls += 1
            lane.spent += clock() - ended + started - entered
            return out
        finally:
            if listens:
                sys.setprofile(hook)

    def _stamp(self, tensors: list[Any], kwargs: dict[str, Any]) -> tuple[str, Any] | None:
        """An event before an operator of an accelerator."""
        where = next((str(tensor.device) for tensor in tensors if is_away(tensor.device.type)), None)
        if where is None and kwargs.get("device") is not None:
            where = str(kwargs["device"])
        if where is None or self.devices is None or not is_away(where):
            return None
        return self.devices.stamped(where)

    def _time(self, lane: Lane, row: Row, began: tuple[str, Any] | None) -> None:
        if lane.marked is not None:
            row.worked = row.worked or []
        elif began is not None and began[1] is not None and self.devices is not None:
            end = self.devices.stamp(began[0])
            if end is not None:
                row.stamped(Stamps(*began, end))

    def _inside(self, lane: Lane, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run what a composite operator is made of, and record that: autograd would have taken it apart."""
        pushed = self.push(lane)
        try:
            return func.decompose(*args, **kwargs)
        finally:
            if pushed:
                self.remove(lane)

    def _kind(
        self,
        lane: Lane,
        key: tuple[Any, ...],
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
    ) -> Kind:
        try:
            kind = _TORCHS.get(key) or self._kinds.get(key)
        except TypeError:  # an argument that does not hash
            key, kind = (), None
        if kind is None:
            kept = self._kinds
            began = self.timeline.clock()
            try:
                kind = kind_of(func, args, kwargs, out, self._tensor, lane.top_k)
                kept = _TORCHS if kind.name.startswith("aten::") else kept
            except Exception:  # noqa: BLE001 - shapes that are symbols, tensors that are not there yet
                kind = unknown_kind(func)
            lane.learning += self.timeline.clock() - began
            # torch's own operators live for ever, and so do their identities.
            if kind.view and hasattr(func, "_schema"):
                self._views[id(func)] = kind
            elif key and len(kept) < MAX_KINDS:
                kept[key] = kind
        if kind.name == "aten::topk":
            lane.top_k = int(args[1])
        return kind

    def _record(
        self, lane: Lane, kind: Kind, tensors: list[Any], out: Any, started: float, ended: float
    ) -> Row | None:
        addresses = [self._where(tensor) for tensor in tensors]
        row = self._row(lane, kind, started, ended)
        if row is not None:
            for address, nbytes in zip(addresses, kind.reads, strict=False):
                if address in self.weights:
                    row.weights += nbytes
                elif address in self.gradients:
                    row.gradients += nbytes
                elif address in self.states:
                    row.states += nbytes
        if lane.looking:
            if row is not None and not kind.view:
                self._remember(lane, row, kind, tensors, addresses, out)
            return row
        span, flow = lane.stack[-1], self.flow
        if span is not self._root:
            for address, tensor in zip(addresses, tensors, strict=False):
                made = flow.writer(address)
                if made is not None and made.span is not span:
                    flow.transfer(made, span, "tensor", "activation", float(tensor.nbytes))
        if kind.writes:
            self._wrote(kind, span, addresses, tensors, out)
        return row

    def _wrote(self, kind: Kind, span: OpenSpan, addresses: list[int], tensors: list[Any], out: Any) -> None:
        """Results of a loose operator: of its function's making, or only passed on by the cell."""
        flow = self.flow
        # What is overwritten as a whole is no part of the result.
        read = [
            (address, tensor)
            for address, tensor, nbytes in zip(addresses, tensors, kind.reads, strict=False)
            if nbytes or tensor.nbytes < tensor.untyped_storage().nbytes()
        ]
        sources = flow.sources([address for address, _ in read], [tensor for _, tensor in read])
        for tensor in tensors_in(out, self._tensor):
            if span is not self._root or sources:
                flow.wrote_in_passing(tensor, span, sources, in_place=self._where(tensor) in addresses)
            else:
                flow.lost(tensor)

    def _remember(
        self, lane: Lane, row: Row, kind: Kind, tensors: list[Any], addresses: list[int], out: Any
    ) -> None:
        """Keep which storages a looked-at operator read, until it is known which of them are the cache's."""
        born, at = lane.born, lane.calls
        if row.inputs is None:
            row.inputs = []
        for address, nbytes, tensor in zip(addresses, kind.reads, tensors, strict=False):
            if nbytes and address:
                row.inputs.append((address, tensor.storage_offset(), nbytes, at, address in born))
        for tensor in tensors_in(out, self._tensor):
            address = self._where(tensor)
            if address not in addresses:
                born[address] = at
                if lane.kept is not None:  # what runs unseen must not be given this address
                    lane.kept.append(self.flow.weakly(tensor))

    def _row(self, lane: Lane, kind: Kind, started: float, ended: float) -> Row | None:
        rows, span, path = self.rows, lane.stack[-1], lane.path
        if not lane.looking:
            if lane.history is not None:
                lane.history = hash((lane.history, id(kind)))
            self._loose += 1
            self._full = self._loose >= MAX_LOOSE
        if len(rows) > self.apart:
            last = rows[-1]
            if last.kind is kind and last.span is span and last.path == path:
                last.count += 1
                last.took += ended - started
                return last
        if len(rows) + self._repeated >= MAX_ROWS:
            self._dropped += 1
            return None
        row = Row(kind, span, path, started - self.timeline.zero, ended - started)
        rows.append(row)
        return row

    def repeat(self, repeated: Repeated) -> None:
        """Keep what stands for operators that were not watched."""
        if len(self.rows) + self._repeated + len(repeated) > MAX_ROWS:
            self._dropped += len(repeated)
            return
        self._repeats.append(repeated)
        self._repeated += len(repeated)

    def _where(self, tensor: Any) -> int:
        try:
            return self._address(tensor)
        except Exception:  # noqa: BLE001 - torch raises what it likes for tensors without a storage
            return 0

    # -- afterwards ----------------------------------------------------------------------------------------

    def place(self) -> None:
        """Give rows of accelerators their devices' times, once those are done."""
        if self.devices is None:
            return
        for row in self.rows:
            row.place(self.devices)
        late = sum(1 for row in self.rows if not row.timed and not row.kind.view and is_away(row.kind.device))
        if late:
            self.timeline.note(
                f"{late:,} rows of an accelerator's operators have the host's time, which is of their launch"
            )

    def settle(self, lane: Lane, span: OpenSpan, since: int, cache: dict[int, frozenset[int] | None]) -> None:
        """Say which bytes of a look were KV cache, now that it is known where the cache lies after the call.

        An address may have been an activation's before it was the cache's, or the other way round: what
        counts is what an operator made there last, before it was read.
        """
        for row in self.rows[since:]:
            if row.span is not span:
                continue
            for address, offset, nbytes, at, fresh in row.inputs or ():
                where = cache if fresh else lane.held
                if address not in where or (fresh and lane.born[address] >= at):
                    continue
                places = where[address]
                row.kv += nbytes if places is None or offset in places else 0.0
            row.inputs = None
        lane.born, lane.held, lane.kept = {}, {}, None

    def finish(self, dispatch_s: float) -> tuple[Op, ...]:
        """All rows as the noun, by start; watching an operator takes so long outside our own clock."""
        if self._dropped:
            self.timeline.note(f"truncated: {self._dropped:,} operators after the first {MAX_ROWS:,} rows")
        if self._full:
            self.timeline.note(
                f"truncated: only the first {MAX_LOOSE:,} operators outside modules were recorded"
            )
        ops = [row.frozen() for row in self.rows if row.span.number >= 0]
        for repeat in self._repeats:
            ops.extend(repeat.ops(dispatch_s))
        return tuple(sorted(ops, key=attrgetter("start_s")))
