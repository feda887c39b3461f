"""Recording → :class:`Run`: analyse it on the device it ran on, and put the display form inside."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gimlet_lab.hardware.calibration import BUSY
from gimlet_lab.model import Device, Graph, Recording, Run
from gimlet_lab.progress import Progress

#: Whose versions a run names, where they are loaded.
_VERSIONED = ("torch", "transformers", "numpy", "IPython")


def assemble(
    recording: Recording,
    *,
    name: str,
    started: str,
    text: str | None,
    progress: Progress,
    dry: bool = False,
    device: Device | None = None,
    made_in: Mapping[str, Any] | None = None,
    others: float | None = None,
) -> Run:
    """Compute the run from what was recorded. A step of ours that fails is a note in it, not an error.

    Parameters
    ----------
    dry : bool
        It gets its times here, those of ``device``.
    device : Device, optional
        What it ran on; found by its operators where left out: of this machine.
    made_in : mapping, optional
        The environment of a recording that was not made on this machine.
    others : float, optional
        The share of the cores' time that other programs used meanwhile.
    """
    from gimlet_lab.analysis import analyse
    from gimlet_lab.costs.dry import foresee, imagined
    from gimlet_lab.render.display import display_form

    notes = recording.notes
    disturbed = others is not None and others > BUSY
    if disturbed:
        notes += (f"other programs used {others:.0%} of the cores meanwhile: times are longer for it",)
    try:
        device = device or _device(recording, progress)
    except (Exception, KeyboardInterrupt) as failure:  # noqa: BLE001 - without a roofline the times are still worth having
        device = Device("cpu", platform.processor() or "cpu", "unknown", "cpu", live=True)
        notes += (f"device not calibrated: {failure!r}",)
    if dry:
        device = imagined(device)
        recording = foresee(recording, device)
        notes = (*recording.notes, *(note for note in notes if note not in recording.notes))
    run = Run(
        name=name,
        status=recording.status,
        error=recording.error,
        started=started,
        duration_s=recording.spans[0].duration_s,
        overhead_s=recording.overhead_s,
        device=device,
        environment=environment(recording.threads) if made_in is None else made_in,
        operators=recording.ops,
        inferred=(False,) * len(recording.ops),
        stage_of=(None,) * len(recording.ops),
        span_list=recording.spans,
        modules=recording.modules,
        notes=notes,
        text=text,
        dry=dry,
        meter_list=recording.meters,
    )
    try:
        found = analyse(recording, device)
        run = replace(
            run,
            overhead_s=found.overhead_s,
            operators=found.operators,
            inferred=found.inferred,
            stage_of=found.stage_of,
            span_stage=found.span_stage,
            phase_list=found.phases,
            graph=_nowhere(found.graph) if dry else found.graph,
            min_phase_s=found.min_phase_s,
            sampled=found.stacks,
            # How well times were measured is no matter where none was.
            notes=notes if dry else tuple(dict.fromkeys((*notes, *found.notes))),
        )
        if not dry and made_in is None:
            run = _compared(run, learn=not disturbed)
        return replace(run, display=display_form(run))
    except (Exception, KeyboardInterrupt) as failure:  # noqa: BLE001 - the recording itself is still worth having
        return replace(run, notes=(*run.notes, f"analysis failed: {failure!r}"))


def _nowhere(graph: Graph) -> Graph:
    """A graph whose stages ran on no device."""
    return replace(graph, stages=tuple(replace(stage, device=None) for stage in graph.stages))


def _compared(run: Run, *, learn: bool = True) -> Run:
    """The run with what was expected of its stages; afterwards the device's store knows it too.

    A run that others disturbed says nothing of the model.
    """
    from gimlet_lab.costs import measured, prediction

    try:
        run = replace(run, predicted=prediction.predict(run, measured.corrections(run.device)))
        if learn:
            prediction.remember(run, run.predicted)
    except Exception as failure:  # noqa: BLE001 - the run is worth having without a comparison
        return replace(run, notes=(*run.notes, f"not compared with the model: {failure!r}"))
    return run


def environment(threads: int) -> dict[str, Any]:
    """Versions of what is loaded, the platform and its cores."""
    import gimlet_lab

    affinity = getattr(os, "sched_getaffinity", None)
    loaded = {name: sys.modules[name] for name in _VERSIONED if name in sys.modules}
    return {
        "gimlet_lab": gimlet_lab.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": threads,
        **{name: str(getattr(module, "__version__", "unknown")) for name, module in loaded.items()},
    }


def _device(recording: Recording, progress: Progress) -> Device:
    """The live device on which most of the operators' time was spent."""
    from gimlet_lab.hardware.discovery import host_device, local_devices

    seconds: dict[str, float] = {}
    for op in recording.ops:
        seconds[op.device] = seconds.get(op.device, 0.0) + op.duration_s
    busiest = max(seconds, key=lambda name: seconds[name], default="cpu")
    if not busiest.startswith("cpu"):
        for device in local_devices(progress=progress):
            if device.torch_device == busiest:
                return device
    return host_device(progress=progress)
