"""A run as a Chrome trace: what https://ui.perfetto.dev, chrome://tracing and HTA read.

Four processes of tracks: threads (spans, operators inside them), stages (their calls, with the data between
them as flows), phases, and what the phases reached as counters. A path that ends in ``.gz`` is compressed.
"""

from __future__ import annotations

import gzip
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gimlet_lab.export.tracks import ROUNDING_S, Slice, inferred, is_placed, tracks, walk
from gimlet_lab.model.columns import dumps, plain
from gimlet_lab.model.recording import Op, Span
from gimlet_lab.model.run import Run
from gimlet_lab.model.store import write_atomic, writer

THREADS, STAGES, PHASES, REACHED = 1, 2, 3, 4

_PROCESSES = {THREADS: "threads", STAGES: "stages", PHASES: "phases", REACHED: "reached"}

Event = dict[str, Any]


def write(run: Run, path: Path, _options: Mapping[str, Any]) -> Path:
    """Write the trace."""
    data = dumps(plain(trace(run), not_finite=lambda _: None))
    return write_atomic(path, gzip.compress(data, 6, mtime=0) if path.suffix == ".gz" else data)


def trace(run: Run) -> dict[str, Any]:
    """The trace as plain data: the JSON object format of the trace event format.

    Times are microseconds since the start of the cell. Unknown is left out.

    Examples
    --------
    >>> from gimlet_lab.model import Device, Run, Span
    >>> spans = (Span(0, "cell", "cell", 0.0, 2.0),)
    >>> run = Run("r", "ok", None, "", 2.0, 0.0, Device("cpu", "CPU", "", "cpu"), {}, span_list=spans)
    >>> [event["dur"] for event in trace(run)["traceEvents"] if event["ph"] == "X"]
    [2000000.0]
    """
    rows, seconds = inferred(run)
    return {
        "displayTimeUnit": "ms",
        "otherData": {
            "writer": writer(),
            "run": run.name,
            "started": run.started,
            "status": run.status,
            "device": f"{run.device.id} ({run.device.name})",
            "overhead_s": run.overhead_s,
            "inferred": f"{rows} rows of operators, {seconds:.6g} s in all, were inferred and have no moment",
            "notes": list(run.notes),
        },
        "traceEvents": [*_names(run), *_threads(run), *_stages(run), *_phases(run)],
    }


def _names(run: Run) -> Iterator[Event]:
    for pid, name in _PROCESSES.items():
        yield {
            "ph": "M",
            "name": "process_name",
            "pid": pid,
            "tid": 0,
            "args": {"name": f"{run.name}: {name}"},
        }
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    yield _track(PHASES, 1, "phases")


def _track(pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}


def _threads(run: Run) -> Iterator[Event]:
    for tid, track in enumerate(tracks(run), 1):
        thread = "cell" if track.thread == 0 else f"thread {track.thread}"
        yield _track(THREADS, tid, thread if track.number == 0 else f"{thread} ({track.number + 1})")
        for entry, begins in walk(track.slices):
            if begins:
                yield _complete(run, entry, tid)


def _complete(run: Run, entry: Slice, tid: int) -> Event:
    of = entry.of
    if isinstance(of, Op):
        category = "operator"
        said = {
            "module": of.module or None,
            "device": of.device,
            "dtype": of.dtype,
            "count": of.count,
            "flops": of.flops,
            "bytes_read": of.bytes_read,
            "bytes_written": of.bytes_written,
        }
    else:
        category = of.kind
        said = {
            "stage": run.span_stage.get(of.id),
            "role": of.role,
            "target": of.target,
            "looked": of.looked,
            **of.attributes,
        }
    return _event(entry.name, category, THREADS, tid, entry.start_s, entry.end_s - entry.start_s, said)


def _event(
    name: str, category: str, pid: int, tid: int, start_s: float, seconds: float, said: Mapping[str, Any]
) -> Event:
    return {
        "ph": "X",
        "name": name or "(no name)",
        "cat": category,
        "pid": pid,
        "tid": tid,
        "ts": start_s * 1e6,
        "dur": seconds * 1e6,
        "args": {key: value for key, value in said.items() if _is_known(value)},
    }


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _stages(run: Run) -> Iterator[Event]:
    """The outermost calls of each stage on its track, and an arrow for each datum that one gave another."""
    calls: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(run.span_list, key=lambda span: (span.start_s, span.id)):
        own = run.span_stage.get(span.id)
        parent = None if span.parent is None else run.span_stage.get(span.parent)
        if own is None or own == parent or not is_placed(span.start_s, span.duration_s):
            continue
        # Of calls at the same time the first stands for all: slices of one track must not cross.
        if not calls[own] or span.start_s >= calls[own][-1].end_s:
            calls[own].append(span)
    place: dict[str, int] = {}
    for stage in run.graph.stages:
        tid = place[stage.id] = len(place) + 1
        yield _track(STAGES, tid, stage.id)
        said = {"bound": stage.bound, "kind": stage.kind, "role": stage.role, "device": stage.device}
        for span in calls[stage.id]:
            yield _event(
                stage.id, "stage", STAGES, tid, span.start_s, span.duration_s, {**said, **span.attributes}
            )
    number = 0
    for edge in run.graph.edges:
        if edge.known == "order" or edge.src not in place or edge.dst not in place:
            continue
        ends = [span.end_s for span in calls[edge.src]]
        for reader in calls[edge.dst]:
            before = bisect_right(ends, reader.start_s) - 1
            if before < 0:
                continue
            number += 1
            flow = {"name": edge.tensor or "data", "cat": f"edge,{edge.known}", "id": number}
            args = {"known": edge.known, **({"bytes": edge.bytes} if _is_known(edge.bytes) else {})}
            giver = calls[edge.src][before]
            # Bound to the slices that enclose these moments: just inside both.
            left_s = giver.start_s + 0.999 * giver.duration_s
            given = {"ph": "s", "pid": STAGES, "tid": place[edge.src], "ts": left_s * 1e6}
            taken = {"ph": "f", "bp": "e", "pid": STAGES, "tid": place[edge.dst], "ts": reader.start_s * 1e6}
            yield {**flow, **given, "args": args}
            yield {**flow, **taken, "args": args}


def _phases(run: Run) -> Iterator[Event]:
    last_s = -math.inf
    for phase in run.phase_list:
        if not is_placed(phase.start_s, phase.duration_s) or phase.start_s < last_s - ROUNDING_S:
            continue
        last_s = phase.start_s + phase.duration_s
        said = {
            "stage": phase.stage,
            "role": phase.role,
            "flops": phase.flops,
            "bytes": phase.bytes,
            "intensity": phase.intensity,
            "warmup": phase.warmup,
        }
        yield _event(phase.bound, "phase", PHASES, 1, phase.start_s, phase.duration_s, said)
        for name, amount in (("FLOP/s", phase.flops), ("bytes/s", phase.bytes)):
            if amount is not None and math.isfinite(amount) and phase.duration_s > 0:
                yield _count(name, phase.start_s, amount / phase.duration_s)
                yield _count(name, phase.start_s + phase.duration_s, 0.0)


def _count(name: str, at_s: float, value: float) -> Event:
    return {"ph": "C", "name": name, "pid": REACHED, "tid": 0, "ts": at_s * 1e6, "args": {"value": value}}
