"""A Kineto trace (``torch.profiler``'s Chrome trace) as columns: what of its events a recording is made of.

Host events: operators, annotations, module calls, and the runtime calls that launch work. Device activities:
kernels, copies and fills, each with the correlation id of the call that launched it. Written by the format of
``libkineto`` (schema version 1); traces with CUDA, ROCm, XPU and MTIA activities share it. Only CPU traces
could be recorded where this was written: those with device activities are tested as hand-made events.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gimlet_lab.capture.signatures import Recorded, recorded_value
from gimlet_lab.capture.tracefile import TraceFile, TraceFileError

#: In the order in which those that begin and end together lie in each other.
SPAN, MODULE, OPERATOR, LAUNCH = range(4)
KERNEL, TO_DEVICE, TO_HOST, ON_DEVICE = range(4)

#: Host events kept; the rest of a longer trace is left out, and said so.
MAX_EVENTS = 5_000_000

_MODULE_NAME = "nn.Module: "
_OWN_NAME = "## gimlet:"
_ACTIVITIES = frozenset(
    {"kernel", "gpu_memcpy", "gpu_memset", "Kernel", "Memcpy", "Memset", "mtia_workloads"}
)
_SPANS = frozenset({"user_annotation", "cpu_instant_event"})
_OPERATORS = frozenset({"cpu_op", "Operator", "hpu_op"})

#: What of a trace must be there for it to be Kineto's, and not another tool's in the same format.
_OURS = frozenset({*_OPERATORS, *_ACTIVITIES})


@dataclass(slots=True)
class Host:
    """Host events, by column."""

    kind: array[int] = field(default_factory=lambda: array("b"))
    start_s: array[float] = field(default_factory=lambda: array("d"))
    duration_s: array[float] = field(default_factory=lambda: array("d"))
    thread: array[int] = field(default_factory=lambda: array("i"))
    #: Number in ``recorded`` (operators) or ``names``.
    what: array[int] = field(default_factory=lambda: array("i"))
    #: Operators: External id; launches: correlation.
    ident: array[int] = field(default_factory=lambda: array("q"))
    #: Operators: Record function id, which execution traces share.
    rf_id: array[int] = field(default_factory=lambda: array("q"))


@dataclass(slots=True)
class Activities:
    """Device activities, by column."""

    kind: array[int] = field(default_factory=lambda: array("b"))
    start_s: array[float] = field(default_factory=lambda: array("d"))
    duration_s: array[float] = field(default_factory=lambda: array("d"))
    device: array[int] = field(default_factory=lambda: array("i"))
    stream: array[int] = field(default_factory=lambda: array("q"))
    correlation: array[int] = field(default_factory=lambda: array("q"))
    external: array[int] = field(default_factory=lambda: array("q"))
    name: array[int] = field(default_factory=lambda: array("i"))
    #: Of copies; −1 is unknown.
    nbytes: array[int] = field(default_factory=lambda: array("q"))


@dataclass(slots=True)
class Kineto:
    """A trace in memory.

    Attributes
    ----------
    host, activities
        Events in the order of the file.
    recorded : list of Recorded
        Operators' signatures, each once.
    names : list of str
        Names of everything else, each once.
    devices : mapping of int to mapping
        ``deviceProperties`` by device number.
    runtime : str
        How torch calls such devices: ``cuda``, ``xpu``, ….
    base_ns : float or None
        What the trace's clock counts from, since 1970.
    shapes : bool
        Whether any operator came with its shapes.
    host_name : str
    notes : list of str
        What was left out, and why.
    """

    host: Host = field(default_factory=Host)
    activities: Activities = field(default_factory=Activities)
    recorded: list[Recorded] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    devices: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    runtime: str = "cuda"
    base_ns: float | None = None
    shapes: bool = False
    host_name: str = ""
    notes: list[str] = field(default_factory=list)


def read(file: TraceFile) -> Kineto:
    """Read a trace; what is damaged in it is left out and counted.

    Raises
    ------
    TraceFileError
        If it cannot be read, or holds nothing of Kineto's.
    """
    reader = _Reader(file.path)
    for key, value in file.entries(frozenset({"traceEvents", "deviceProperties"})):
        if key == "traceEvents":
            reader.event(value)
        else:
            reader.entry(key, value)
    return reader.finish(file)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.trace = Kineto()
        self._signatures: dict[str, int] = {}
        self._names: dict[str, int] = {}
        self._threads: dict[tuple[Any, Any], int] = {}
        self._bad = 0
        self._bad_shapes = 0
        self._more = 0
        self._others: dict[str, int] = {}
        self._python = 0

    def entry(self, key: str, value: Any) -> None:
        trace = self.trace
        if key == "deviceProperties" and isinstance(value, dict) and isinstance(value.get("id"), int):
            trace.devices[value["id"]] = value
        elif key == "baseTimeNanoseconds" and _is_time(value):
            trace.base_ns = float(value)
        elif key == "host_name":
            trace.host_name = str(value)[:200]
        elif key == "nodes" and not trace.host.kind:
            raise TraceFileError(f"{self.path}: is an execution trace, not a Kineto trace")

    def event(self, event: Any) -> None:
        if not isinstance(event, dict) or event.get("ph") != "X":
            return
        category, name, args = event.get("cat"), event.get("name"), event.get("args")
        start: Any = event.get("ts")
        duration: Any = event.get("dur", 0.0)
        if not isinstance(category, str) or not isinstance(name, str):
            self._bad += 1
            return
        if not _is_time(start) or not _is_time(duration) or duration < 0:
            self._bad += category in _OURS or category in _SPANS
            return
        args = args if isinstance(args, dict) else {}
        where = (event.get("pid"), event.get("tid"))
        if category in _OPERATORS:
            self._host(OPERATOR, where, start, duration, self._signature(name, args), args)
        elif category in _ACTIVITIES:
            self._activity(category, name, start, duration, event, args)
        elif category in _SPANS:
            if name.startswith(_OWN_NAME):
                name = name.removeprefix(_OWN_NAME)
                self._host(MODULE, where, start, duration, self._name(name), args)
            else:
                self._host(SPAN, where, start, duration, self._name(name), args)
        elif category in ("python_function", "Python"):
            if name.startswith(_MODULE_NAME):
                name = name.removeprefix(_MODULE_NAME)
                self._host(MODULE, where, start, duration, self._name(name), args)
            else:
                self._python += 1
        elif category.endswith(("_runtime", "_driver")) or category == "Runtime":
            if isinstance(args.get("correlation"), int):
                self.trace.runtime = _runtime(category, self.trace.runtime)
                self._host(LAUNCH, where, start, duration, self._name(name), args)
        elif category not in (
            "Trace",
            "overhead",
            "gpu_user_annotation",
            "ac2g",
            "async_cpu_to_gpu",
            "fwdbwd",
        ):
            self._others[category] = self._others.get(category, 0) + 1

    def finish(self, file: TraceFile) -> Kineto:
        trace, notes = self.trace, self.trace.notes
        if not any(kind == OPERATOR for kind in trace.host.kind) and not trace.activities.kind:
            found = ", ".join(sorted(self._others)[:5])
            raise TraceFileError(
                f"{self.path}: has no operator and no kernel of torch.profiler's"
                + (f" (it has events of: {found})" if found else "")
                + "; export one with torch.profiler.profile(record_shapes=True).export_chrome_trace(path)"
            )
        if file.cut_short:
            notes.append("the trace is cut short: what stands before the cut was read")
        if file.skipped:
            notes.append(f"{file.skipped:,} damaged events were left out")
        if self._bad:
            notes.append(f"{self._bad:,} events without a name, a time or a duration were left out")
        if self._bad_shapes:
            notes.append(
                f"{self._bad_shapes:,} operators have shapes that cannot be: their FLOPs are unknown"
            )
        if self._more:
            notes.append(f"truncated: {self._more:,} events after the first {MAX_EVENTS:,} were left out")
        if self._others:
            notes.append("events of other tools were left out: " + ", ".join(sorted(self._others)[:8]))
        if not trace.shapes:
            notes.append("recorded without record_shapes=True: FLOPs and bytes are unknown")
        return trace

    # -- rows --------------------------------------------------------------------------------------------

    def _host(
        self,
        kind: int,
        where: tuple[Any, Any],
        start: float,
        duration: float,
        what: int,
        args: Mapping[str, Any],
    ) -> None:
        host = self.trace.host
        if len(host.kind) >= MAX_EVENTS:
            self._more += 1
            return
        host.kind.append(kind)
        host.start_s.append(start * 1e-6)
        host.duration_s.append(duration * 1e-6)
        host.thread.append(self._threads.setdefault(where, len(self._threads)))
        host.what.append(what)
        host.ident.append(_integer(args.get("correlation" if kind == LAUNCH else "External id")))
        host.rf_id.append(_integer(args.get("Record function id")))

    def _activity(
        self, category: str, name: str, start: float, duration: float, event: Any, args: Mapping[str, Any]
    ) -> None:
        rows = self.trace.activities
        if len(rows.kind) >= MAX_EVENTS:
            self._more += 1
            return
        rows.kind.append(_copy_kind(name) if category.lower().endswith("memcpy") else KERNEL)
        rows.start_s.append(start * 1e-6)
        rows.duration_s.append(duration * 1e-6)
        device = args.get("device", event.get("pid"))
        rows.device.append(device if isinstance(device, int) and 0 <= device < 4096 else 0)
        rows.stream.append(_integer(args.get("stream", event.get("tid"))))
        rows.correlation.append(_integer(args.get("correlation")))
        rows.external.append(_integer(args.get("External id", args.get("external id"))))
        rows.name.append(self._name(name))
        rows.nbytes.append(_integer(args.get("bytes")))

    def _name(self, name: str) -> int:
        return _number(name, self._names, self.trace.names)

    def _signature(self, name: str, args: Mapping[str, Any]) -> int:
        dims, types = args.get("Input Dims"), args.get("Input type")
        strides, concrete = args.get("Input Strides"), args.get("Concrete Inputs")
        key = f"{name}|{dims}|{types}|{strides}|{concrete}"
        number = self._signatures.get(key)
        if number is None:
            number = self._signatures[key] = len(self.trace.recorded)
            inputs = self._inputs(dims, types, strides, concrete)
            self.trace.recorded.append(Recorded(name, inputs))
        return number

    def _inputs(self, dims: Any, types: Any, strides: Any, concrete: Any) -> tuple[Any, ...] | None:
        if not isinstance(dims, list) or not isinstance(types, list) or len(dims) != len(types):
            return None
        self.trace.shapes = True
        count = len(dims)
        strides = strides if isinstance(strides, list) and len(strides) == count else [None] * count
        concrete = concrete if isinstance(concrete, list) and len(concrete) == count else [None] * count
        try:
            return tuple(map(recorded_value, types, dims, strides, concrete))
        except (TypeError, ValueError):
            self._bad_shapes += 1
            return None


def _number(key: str, known: dict[str, int], values: list[str]) -> int:
    number = known.get(key)
    if number is None:
        number = known[key] = len(values)
        values.append(key)
    return number


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer(value: Any) -> int:
    """An id; −1 where there is none."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and -1 <= value < 2**62 else -1


def _copy_kind(name: str) -> int:
    if "HtoD" in name or "M2D" in name:
        return TO_DEVICE
    if "DtoH" in name or "D2M" in name:
        return TO_HOST
    return ON_DEVICE


def _runtime(category: str, before: str) -> str:
    made = category.partition("_")[0]
    return made if made in ("xpu", "mtia", "privateuse1") else before
