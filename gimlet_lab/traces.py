"""Traces of other tools as runs: profile on a GPU server with ``torch.profiler``, look here.

Road: :mod:`gimlet_lab.capture.imported` → :func:`~gimlet_lab.analysis.analyse` → ``Run``, as for a cell. No
trace of an accelerator was recorded where this was written: theirs are read by the documented format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gimlet_lab.assembly import assemble
from gimlet_lab.errors import GimletError, UsageError
from gimlet_lab.model import Device, Op, Quantity, Recording, Run
from gimlet_lab.progress import Progress, silent


def import_trace(
    path: str | Path | Sequence[str | Path],
    device: str | Device | None = None,
    *,
    name: str | None = None,
    progress: Progress = silent,
) -> Run:
    """Make a run of a trace that ``torch.profiler`` wrote, here or elsewhere.

    Parameters
    ----------
    path : str, Path or several
        A Kineto trace (``export_chrome_trace``), an execution trace (``ExecutionTraceObserver``), or one of
        each of the same run: JSON, compressed or not.
    device : str or Device, optional
        What it ran on: an id or alias of the catalogue, or ``cpu`` for the CPU of this machine. Left out: the
        accelerator that the trace names. A trace of a CPU names none.
    name : str, optional
        What the run is called; the file's name where left out.

    Returns
    -------
    Run
        What the trace does not tell is unknown, and its ``notes`` say so.

    Raises
    ------
    GimletError
        If a file cannot be read or is no such trace, or the device is unknown.
    """
    from gimlet_lab.capture import chakra, imported, kineto
    from gimlet_lab.capture.tracefile import TraceFile

    paths = [Path(each) for each in ([path] if isinstance(path, str | Path) else path)]
    chosen = _named(device, progress)
    trace: kineto.Kineto | None = None
    execution: chakra.Execution | None = None
    for place in paths:
        progress(0.1, f"reading {place.name}")
        if _holds_nodes(place):
            if execution is not None:
                raise UsageError(f"import: {place} is a second execution trace; one of each kind, of one run")
            execution = chakra.read(TraceFile(place))
        else:
            if trace is not None:
                raise UsageError(f"import: {place} is a second Kineto trace; one of each kind, of one run")
            trace = kineto.read(TraceFile(place))
    import torch

    progress(0.5, "counting")
    if trace is not None:
        recording = imported.recording_of(trace, execution, torch)
        said = "imported: times are as the trace has them, with its profiler's own cost in them"
        recording = replace(recording, notes=(said, *recording.notes))
        chosen = chosen or _traced(trace)
        started = _started(trace, paths[0])
    else:
        assert execution is not None
        recording, started = _estimated(execution, chosen, paths[0], torch), _written(paths[0])
    recording = replace(recording, notes=(*recording.notes, *_unnamed(chosen, recording)))
    progress(0.8, "analysing")
    run = assemble(
        recording,
        name=name or paths[0].name.removesuffix(".gz").removesuffix(".json"),
        started=started,
        text=None,
        progress=progress,
        device=chosen or _unknown_cpu(trace),
        made_in=_environment(paths, trace),
    )
    failed = next((note for note in run.notes if note.startswith("analysis failed")), None)
    if failed is not None:
        raise GimletError(f"{paths[0]}: could not be made a run: {' '.join(failed.split())[:200]}")
    return run if trace is not None else replace(run, inferred=(True,) * len(run.operators))


def _holds_nodes(path: Path) -> bool:
    """Whether it is an execution trace, by which list comes first."""
    from gimlet_lab.capture.tracefile import TraceFile, TraceFileError

    lists = frozenset({"traceEvents", "nodes"})
    for key, _ in TraceFile(path).entries(lists):
        if key in lists:
            return key == "nodes"
    raise TraceFileError(
        f"{path}: is no trace: it has neither the traceEvents of a Kineto trace "
        "nor the nodes of an execution trace"
    )


def _named(device: str | Device | None, progress: Progress) -> Device | None:
    if device is None or isinstance(device, Device):
        return device
    if device == "cpu":
        from gimlet_lab.hardware.discovery import host_device

        return host_device(progress=progress)
    from gimlet_lab.hardware.catalogue import find

    return find(device)


def _traced(trace: Any) -> Device | None:
    """The accelerator that most of the trace's kernels ran on; None where there is none."""
    from gimlet_lab.hardware.accelerators import lookup

    seconds: dict[int, float] = {}
    for number, took in zip(trace.activities.device, trace.activities.duration_s, strict=True):
        seconds[number] = seconds.get(number, 0.0) + took
    if not seconds:
        return None
    number = max(seconds, key=lambda each: seconds[each])
    said, where = trace.devices.get(number, {}), f"{trace.runtime}:{number}"
    name = " ".join(str(said.get("name") or "").split())[:80]
    known = lookup(name) if name else None
    if known is not None:
        return replace(known, torch_device=where)
    memory = said.get("totalGlobalMem")
    held = isinstance(memory, int) and memory > 0
    return Device(
        where,
        name or f"accelerator {number}",
        name.split()[0] if name else "unknown",
        "gpu",
        memory_bytes=Quantity(float(memory), "deviceProperties of the trace", "", "vendor") if held else None,
        torch_device=where,
    )


def _unknown_cpu(trace: Any) -> Device:
    host = f" of {trace.host_name}" if trace is not None and trace.host_name else ""
    return Device("cpu", f"the CPU{host}", "unknown", "cpu", torch_device="cpu")


def _unnamed(device: Device | None, recording: Recording) -> list[str]:
    """What to do where the roofs are unknown."""
    if device is None:
        return [
            "the trace does not name its CPU: --device cpu if it is this machine's, or an id of the catalogue"
        ]
    if not device.peak_flops and not device.achieved_flops:
        return [f"{device.name!r} is not in the catalogue: --device ID names one that is like it"]
    others = sorted({op.device for op in recording.ops if op.device_timed} - {device.torch_device})
    if others and device.torch_device:
        return [
            f"held against the roofs of {device.torch_device} alone, though it used {', '.join(others)} too"
        ]
    return []


def _estimated(execution: Any, device: Device | None, path: Path, torch: Any) -> Recording:
    from gimlet_lab.analysis.bounds import Roofs
    from gimlet_lab.capture import imported

    if device is None:
        raise UsageError(
            f"import {path}: an execution trace has no times: name the Kineto trace of the same run "
            "beside it, or --device ID to estimate them"
        )
    roofs = Roofs.of(device)

    def seconds_of(op: Op) -> float:
        if op.flops == op.bytes_read == op.bytes_written == 0.0:
            return 0.0  # another look at the same memory
        compute_s, memory_s = (
            roofs.compute_s(op.flops, op.dtype),
            roofs.memory_s(op.bytes_read, op.bytes_written),
        )
        return op.count * roofs.launch_s + max(compute_s or 0.0, memory_s or 0.0)

    where = "cpu" if device.kind == "cpu" else device.torch_device or device.id
    recording = imported.recording_without_times(execution, torch, where, seconds_of)
    said = f"an execution trace has no times: these are what the roofline of {device.id} allows at best"
    return replace(recording, notes=(said, *recording.notes))


def _started(trace: Any, path: Path) -> str:
    starts = [min(column) for column in (trace.host.start_s, trace.activities.start_s) if column]
    since_1970_s = min(starts) + (trace.base_ns or 0.0) * 1e-9
    # Older versions count from the machine's start and do not say when that was.
    return _iso(since_1970_s) if 1e9 < since_1970_s < 1e10 else _written(path)


def _written(path: Path) -> str:
    return _iso(path.stat().st_mtime)


def _iso(since_1970_s: float) -> str:
    return datetime.fromtimestamp(since_1970_s, UTC).isoformat(timespec="milliseconds")


def _environment(paths: Sequence[Path], trace: Any) -> dict[str, Any]:
    import gimlet_lab

    host = {"host_name": trace.host_name} if trace is not None and trace.host_name else {}
    return {"gimlet_lab": gimlet_lab.__version__, "imported": ", ".join(path.name for path in paths), **host}
