"""What one call of a stage takes on another device than the one it was measured on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gimlet_lab.costs import measured, roofline
from gimlet_lab.costs.measured import PYTHON, Corrections
from gimlet_lab.costs.tiers import price
from gimlet_lab.model.device import Device
from gimlet_lab.model.estimate import Estimate
from gimlet_lab.model.graph import Stage
from gimlet_lab.model.phase import BOUNDS
from gimlet_lab.model.work import Work

#: Seconds of Python around one operator of a module, besides the operator's own launch: a Llama of 30
#: layers and 16 channels, where nothing is computed to speak of, takes 4.0 µs for each of a decode step's
#: operators on one core of an EPYC (Genoa), of which an operator alone takes 1.6. Eager torch on an
#: accelerator waits for it too.
PYTHON_PER_OP_S = 2.4e-6

#: Half width of a measured call's interval where the calls do not say more.
MEASURED_SPREAD = 0.1

#: Bounds of the 90% interval as multiples of the estimate, by how it was reached.
SAME_MACHINE = (0.75, 1.4)  # two calibrations of one machine, one measurement
OTHER_HOST = (0.5, 2.0)  # the same code on another processor, by its datasheet
CARRIED = (0.4, 2.5)  # another processor, and nothing known of what the code does
#: An accelerator, by its roofline alone. Measured over estimated: 0.8–1.0 for whole fp32 models (BERT, GPT-2,
#: OPT, NeuSight's labels) on A100 PCIe and V100, 0.9–1.1 for the prefill of fp16 Llama layers (Helix) on A100
#: and V100, but 1.5–2.0 on L4 and T4, whose 70 W do not sustain their datasheet.
MODELLED = (0.6, 2.2)

#: The least that is ever claimed of a stage that was priced kernel by kernel.
LEAST = (0.75, 1.4)

#: How far a measurement on one accelerator may correct the model's answer for another.
BIAS = 2.0


@dataclass(frozen=True, slots=True)
class _Modelled:
    """One call by the model of its operators: seconds, what bounds it, and its interval as multiples."""

    seconds: float
    bound: str
    low: float
    high: float


def foreseen_interval(device: Device) -> tuple[float, float]:
    """Bounds of the 90% interval, as multiples, of what nobody measured anywhere."""
    return CARRIED if device.is_host else MODELLED


def stage_estimate(stage: Stage, device: Device, measured_on: Device | None) -> Estimate | None:
    """Estimate one call of a stage on a device.

    Where it was measured there, the measurement is the estimate. On another processor the measured time is
    scaled by the ratio of both rooflines, each with its own calibration; of a Python function only the part
    that its operators explain is scaled, the rest is carried over. Waiting takes as long anywhere. On an
    accelerator a module takes the longer of its operators' rooflines and of the host's time to launch them,
    which is what bounds eager torch. Of a dry run nothing was measured: its operators' rooflines are all.

    Parameters
    ----------
    stage : Stage
    device : Device
        Where it would run.
    measured_on : Device or None
        Where its times were measured; None: nowhere, it ran dry.

    Returns
    -------
    Estimate or None
        None where it cannot run (Python on an accelerator) or where nothing is known to estimate it by.
        ``joules`` is an upper estimate: the power cap over the whole time; ``usd`` is rent for the time.
    """
    if stage.calls <= 0:
        return None
    if measured_on is None:
        return _foreseen(stage, device)
    # A run may come from another machine, whose processor is "cpu" too.
    same_machine = device.live and measured_on.live and _machine(device) == _machine(measured_on)
    if device.id == measured_on.id and (same_machine or device.name == measured_on.name):
        spread = _spread(stage)
        return _finish(stage.call_s, (1 - spread, 1 + spread), stage.bound, "measured", device)
    if not device.is_host and stage.kind != "module":
        return None
    if stage.bound == "wait":
        # The other side of the wire does not know which processor waits for it.
        return _finish(stage.call_s, SAME_MACHINE, "wait", "measured" if same_machine else "model", device)
    # What earlier runs said of this processor weighs the operators of both sides alike.
    hosts = device.is_host and measured_on.is_host
    known = measured.corrections(measured_on if hosts else device)
    there = _model(stage, device, known)
    if hosts:
        here = _model(stage, measured_on, known)
        if there is None or here is None or not here.seconds:
            if stage.kind == "module" and not same_machine:
                return None
            return _finish(
                stage.call_s, SAME_MACHINE if same_machine else CARRIED, stage.bound, "model", device
            )
        if stage.kind == "module":
            seconds = stage.call_s * there.seconds / here.seconds
        else:
            scaled = min(here.seconds, stage.call_s)
            seconds = stage.call_s - scaled + scaled * there.seconds / here.seconds
        return _finish(seconds, SAME_MACHINE if same_machine else OTHER_HOST, there.bound, "model", device)
    if there is not None and not device.is_host and not measured_on.is_host:
        # The model's own bias towards this stage shows where it was measured; it is the same kernels there.
        here = _model(stage, measured_on, measured.corrections(measured_on))
        if here is not None and here.seconds:
            bias = min(max(stage.call_s / here.seconds, 1 / BIAS), BIAS)
            return _finish(there.seconds * bias, _modelled(there), there.bound, "model", device)
    if there is None:
        # From an accelerator, plain Python can only be carried over to a host.
        carried = device.is_host and stage.kind != "module"
        return _finish(stage.call_s, CARRIED, stage.bound, "model", device) if carried else None
    return _finish(there.seconds, _modelled(there), there.bound, "model", device)


def _foreseen(stage: Stage, device: Device) -> Estimate | None:
    """One call of a stage of a dry run: by its operators, or as Python took here where it has none."""
    if not device.is_host and stage.kind != "module":
        return None
    there = _model(stage, device, measured.corrections(device))
    if there is not None:
        interval = CARRIED if device.is_host else _modelled(there)
        return _finish(there.seconds, interval, there.bound, "model", device)
    return None if stage.kind == "module" else _finish(stage.call_s, CARRIED, stage.bound, "model", device)


def _modelled(there: _Modelled) -> tuple[float, float]:
    """The interval of a stage on an accelerator: its kernels', and of launching at least :data:`LEAST`."""
    return min(there.low, LEAST[0]), max(there.high, LEAST[1])


def _model(stage: Stage, device: Device, corrections: Corrections) -> _Modelled | None:
    """One call by the roofline; None where the stage or the device does not say enough.

    On a host, launches and operators take turns; on an accelerator, the host launches ahead, so the longer
    of both counts.
    """
    works = list(stage.works) or _whole(stage)
    if not works:
        return None
    # Kernels of the stage's operators one by one: what a graph captures is not asked of tables that serve
    # engines.
    priced = price(works, device, "model")
    seconds, known = priced.seconds, ~np.isnan(priced.seconds)
    if not known.any():
        return None
    seconds = seconds * corrections.factors(works, [str(one) for one in priced.bound], seconds)[0]
    python = corrections.factor(PYTHON)
    calls, launch_s = stage.calls, roofline.launch_s(device)
    counted = sum(work.count for work in stage.works)
    ops = max(stage.ops, counted)
    # Operators without a price still have to be launched.
    unpriced = ops - sum(work.count for work, has_price in zip(works, known, strict=True) if has_price)
    unpriced = max(unpriced, 0) if stage.works else 0
    operators_s = float(seconds[known].sum()) + unpriced * launch_s
    python_s = ops * PYTHON_PER_OP_S * (python.value if python else 1.0)
    by_bound = {name: float(seconds[known & (priced.bound == name)].sum()) for name in BOUNDS}
    by_bound["overhead"] += unpriced * launch_s
    if device.is_host:
        total = operators_s + python_s
        by_bound["overhead"] += python_s
    else:
        issue_s = python_s + ops * launch_s
        total = max(operators_s, issue_s)
        if issue_s >= operators_s:
            by_bound = {"overhead": issue_s}
    spent = float(seconds[known].sum()) or 1e-12
    missing = 1 + unpriced / max(ops, 1)
    low = float(priced.low[known].sum()) / spent
    high = float(priced.high[known].sum()) / spent * missing
    return _Modelled(total / calls, max(by_bound, key=lambda name: by_bound[name]), low, high)


def _whole(stage: Stage) -> list[Work]:
    """The stage as one work, where its operators are not known but its sums are."""
    sums = {"flops": stage.flops, "bytes_read": stage.bytes_read, "bytes_written": stage.bytes_written}
    dims = {name: int(value) for name, value in sums.items() if value is not None}
    return [Work("other", tuple(sorted(dims.items())), stage.dtype or "float32")] if dims else []


def _machine(device: Device) -> str:
    """What a processor and its slices have in common: the name before the cores."""
    return device.name.split(" (")[0]


def _spread(stage: Stage) -> float:
    """Half width of a measured call's interval: how far the mean is from the median, at least 10%."""
    if stage.calls < 2 or stage.call_s <= 0:
        return MEASURED_SPREAD
    mean = max(stage.total_s - stage.warmup_s, 0.0) / stage.calls
    return min(max(MEASURED_SPREAD, abs(mean / stage.call_s - 1)), 0.9)


def _finish(
    seconds: float, interval: tuple[float, float], bound: str | None, source: str, device: Device
) -> Estimate:
    low, high = interval
    # What a slice keeps while the others are at work too: the plan may well keep them so.
    beside = {"compute": device.beside_flops, "bandwidth": device.beside_bandwidth}.get(bound or "")
    if beside is not None:
        high /= beside.value
    return Estimate(
        seconds,
        seconds * low,
        seconds * high,
        bound,
        source,
        seconds * device.max_w.value if device.max_w else None,
        seconds * device.usd_per_hour.value / 3600 if device.usd_per_hour else None,
    )
