"""Points and roofs of the roofline: plain data in FLOP per byte and FLOP/s."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gimlet_lab.model.device import Device
from gimlet_lab.model.phase import Phase
from gimlet_lab.model.run import Run
from gimlet_lab.render.units import finite, label, maybe, ratio

#: Operators that took less of all operators' time together are not drawn.
GROUP_SHARE = 0.02


def read_roof(device: Device) -> float | None:
    """Bytes per second that the device reads: as measured, else by its datasheet."""
    quantity = device.achieved_bandwidth_bytes_per_s or device.bandwidth_bytes_per_s
    return finite(quantity.value) if quantity else None


def _compute_roof(device: Device, dtype: str | None) -> float | None:
    """FLOP/s that the device reaches in a dtype: as measured, else by its datasheet."""
    quantity = device.achieved_flops.get(dtype or "") or device.peak_flops.get(dtype or "")
    return finite(quantity.value) if quantity else None


def of_roof(
    flops: float | None, moved: float | None, seconds: float | None, dtype: str | None, device: Device
) -> tuple[float | None, str | None]:
    """Which share of the roof above it some work reached, and which roof that is.

    The time by the roofline model, max(FLOPs / peak, bytes / bandwidth), over the time it took
    (Williams, Waterman and Patterson, 2009).
    """
    at_peak = ratio(flops, _compute_roof(device, dtype))
    at_bandwidth = ratio(moved, read_roof(device))
    if at_bandwidth is not None and (at_peak is None or at_bandwidth >= at_peak):
        return ratio(at_bandwidth, seconds), "bandwidth"
    return ratio(at_peak, seconds), None if at_peak is None else "compute"


def roofline(run: Run, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Points by stage, warm-up apart, the roofs of the device, and the decades that hold them all."""
    points = [
        {
            **{key: stage[key] for key in ("role", "bound", "dtype", "device", "intensity", "flops_per_s")},
            **{key: stage[key] for key in ("bytes_per_s", "share", "of_roof", "roof")},
            "stage": stage["id"],
            "warmup": False,
            "seconds": stage["steady_s"],
            "interval_flops_per_s": _interval(run, raw.id, ratio(raw.flops, raw.calls)),
        }
        for raw, stage in zip(run.graph.stages, stages, strict=True)
    ] + _warm_points(run, {raw.id: stage for raw, stage in zip(run.graph.stages, stages, strict=True)})
    drawn = [point for point in points if point["intensity"] and point["flops_per_s"]]
    groups = _groups(run)
    placed = {point["stage"] for point in drawn}
    roofs = _roofs(run.device, [point["dtype"] for point in drawn])
    return {
        "points": drawn,
        "groups": groups,
        "roofs": roofs,
        **_domain([*drawn, *groups], roofs),
        "left_out": [
            {"stage": stage["id"], "why": "FLOPs unknown" if stage["flops"] is None else
             "no arithmetic" if not stage["flops"] else "bytes unknown"}
            for stage in stages if stage["id"] not in placed
        ],
    }  # fmt: skip


def _warm_points(run: Run, stages: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One more point for each stage whose first calls were set apart."""
    warm: dict[str, list[Phase]] = defaultdict(list)
    for phase in run.phase_list:
        if phase.warmup and phase.stage in stages and phase.flops is not None and phase.bytes is not None:
            warm[str(phase.stage)].append(phase)
    points = []
    for stage, phases in warm.items():
        flops = sum(phase.flops or 0.0 for phase in phases)
        moved = sum(phase.bytes or 0.0 for phase in phases)
        seconds = sum(phase.duration_s for phase in phases)
        reached, roof = of_roof(flops, moved, seconds, stages[stage]["dtype"], run.device)
        at_home = stages[stage]["at_home"]
        points.append(
            {
                "stage": label(stage),
                "role": maybe(phases[0].role),
                "bound": label(max(phases, key=lambda phase: phase.duration_s).bound),
                "dtype": stages[stage]["dtype"],
                "device": stages[stage]["device"],
                "intensity": ratio(flops, moved),
                "flops_per_s": ratio(flops, seconds),
                "bytes_per_s": ratio(moved, seconds),
                "share": ratio(seconds, run.net_s),
                "of_roof": reached if at_home else None,
                "roof": roof if at_home else None,
                "warmup": True,
                "seconds": finite(seconds),
                "interval_flops_per_s": None,
            }
        )
    return points


def _groups(run: Run) -> list[dict[str, Any]]:
    """Operators of one kind and dtype together: those that took long enough to be seen, the longest first."""
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
    here = run.device.torch_device or run.device.id
    for op in run.operators:
        moved = (
            None if op.bytes_read is None or op.bytes_written is None else op.bytes_read + op.bytes_written
        )
        if op.work is not None and op.flops and moved and op.duration_s > 0 and op.device == here:
            rows[op.work.op, op.dtype].append((op.flops, moved, op.duration_s))
    total = sum(seconds for one in rows.values() for _, _, seconds in one)
    found = []
    for (name, dtype), one in rows.items():
        flops, moved, seconds = (sum(values) for values in zip(*one, strict=True))
        if seconds < GROUP_SHARE * total:
            continue
        reached, roof = of_roof(flops, moved, seconds, dtype, run.device)
        found.append(
            {
                "op": label(name),
                "dtype": label(dtype),
                "seconds": finite(seconds),
                "share": ratio(seconds, run.net_s),
                "intensity": ratio(flops, moved),
                "flops_per_s": ratio(flops, seconds),
                "bytes_per_s": ratio(moved, seconds),
                "of_roof": reached,
                "roof": roof,
                "interval_flops_per_s": _spread(one),
            }
        )
    return sorted(found, key=lambda group: -(group["seconds"] or 0.0))


def _spread(rows: Sequence[tuple[float, float, float]]) -> list[float] | None:
    """FLOP/s between which 90% of a group's time was spent; None of a single row."""
    if len(rows) < 2:
        return None
    rates = sorted((flops / seconds, seconds) for flops, _, seconds in rows)
    total, passed, edges = sum(seconds for _, seconds in rates), 0.0, [rates[0][0], rates[-1][0]]
    for rate, seconds in rates:
        if passed <= 0.05 * total:
            edges[0] = rate
        if passed < 0.95 * total:
            edges[1] = rate
        passed += seconds
    return edges


def _interval(run: Run, stage: str, flops_per_call: float | None) -> list[float] | None:
    """FLOP/s of the slowest and the fastest twentieth of its undisturbed calls; needs ten of them."""
    if not flops_per_call:
        return None
    calls = [
        span
        for span in run.span_list
        if span.kind == "module" and not span.looked and span.duration_s > 0
        and run.span_stage.get(span.id) == stage
    ]  # fmt: skip
    # Calls of different shapes do different work: their times say nothing of one rate.
    if len(calls) < 10 or len({span.signature for span in calls}) > 1:
        return None
    times = sorted(span.duration_s for span in calls)
    edge = len(times) // 20
    return [flops_per_call / times[-1 - edge], flops_per_call / times[edge]]


def _roofs(device: Device, dtypes: Iterable[str | None]) -> list[dict[str, Any]]:
    wanted = list(dict.fromkeys(dtype for dtype in dtypes if dtype))
    found = [
        ("bandwidth", "calibrated", None, device.achieved_bandwidth_bytes_per_s),
        ("bandwidth", "datasheet", None, device.bandwidth_bytes_per_s),
        *(("compute", "calibrated", dtype, device.achieved_flops.get(dtype)) for dtype in wanted),
        *(("compute", "datasheet", dtype, device.peak_flops.get(dtype)) for dtype in wanted),
    ]
    return [
        {
            "kind": kind,
            "tier": tier,
            "dtype": dtype,
            "value": quantity.value,
            "source": label(quantity.source),
            "date": quantity.date,
        }
        for kind, tier, dtype, quantity in found
        if quantity is not None and finite(quantity.value) and quantity.value > 0
    ]


def _domain(points: Sequence[Mapping[str, Any]], roofs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Decades that the chart spans: every point, every ridge, and room around them."""
    bandwidths = [roof["value"] for roof in roofs if roof["kind"] == "bandwidth"]
    peaks = [roof["value"] for roof in roofs if roof["kind"] == "compute"]
    xs = [point["intensity"] for point in points] + [p / b for p in peaks for b in bandwidths]
    ys = [point["flops_per_s"] for point in points] + peaks
    x = _decades(xs or [1.0])
    if bandwidths:
        ys += [min([10 ** (x[0] + 1) * max(bandwidths), *peaks])]
    return {"x_decades": x, "y_decades": _decades(ys or [1e9])}


def _decades(values: Sequence[float]) -> list[int]:
    low = math.floor(math.log10(min(values)) - 0.3)
    high = math.ceil(math.log10(max(values)) + 0.3)
    return [low, max(high, low + 2)]
