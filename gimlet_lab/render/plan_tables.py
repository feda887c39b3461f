"""The tables of plans and devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gimlet_lab.model.device import Device, Quantity
from gimlet_lab.model.plan import Plan
from gimlet_lab.render import units
from gimlet_lab.render.tables import Table, bound, cell
from gimlet_lab.render.units import UNKNOWN


def placement(plan: Plan) -> Table:
    """Which stage goes where, and what a call is estimated to take there."""
    rows = []
    dry = all(stage.device is None for stage in plan.graph.stages)  # nothing ran anywhere yet
    for stage_id, device in plan.assignment.items():
        stage = next((stage for stage in plan.graph.stages if stage.id == stage_id), None)
        estimates = plan.estimates.get(stage_id, {})
        there = estimates.get(device) or estimates.get(device.partition("@")[0])
        before = stage.device if stage else None
        rows.append(
            (
                cell(stage_id, 32),
                cell(before, 24),
                cell(device, 24) + (" *" if before is not None and before != device else ""),
                units.count(stage.calls) if stage else UNKNOWN,
                units.seconds(stage.call_s) if stage and not dry else UNKNOWN,
                units.seconds(there.seconds) if there else UNKNOWN,
                units.interval(there.low, there.high) if there else UNKNOWN,
                bound(there.bound) if there else UNKNOWN,
                cell(there.source, 20) if there else UNKNOWN,
            )
        )
    return Table(
        "Placement",
        (
            "stage", "ran on", "goes to", ">calls", ">per call now", ">then", ">90% interval", "bound then",
            "source",
        ),
        tuple(rows),
        "" if dry else "* moves",
    )  # fmt: skip


def objective(plan: Plan, value: float | None) -> str:
    """A value of what the plan minimises, with its unit."""
    if value is None:
        return UNKNOWN
    if plan.objective == "cost":
        sized = any(o.get("load") for s in plan.problem.get("stages", ()) for o in s["options"].values())
        return units.dollars(value) + (" an hour" if sized else "")
    return f"{units.figures(value)} J" if plan.objective == "energy" else units.seconds(value)


def baselines(plan: Plan) -> Table:
    """The plan beside the other ways to do it."""
    priced = plan.objective != "latency"
    rows = []
    ways = {"this plan": {"latency_s": plan.latency_s, "objective": _worth(plan)}, **plan.baselines}
    for number, (name, entry) in enumerate(ways.items()):
        latency = units.finite(entry.get("latency_s"))
        times = units.ratio(latency, plan.latency_s)
        ratio = UNKNOWN if times is None else f"{units.figures(times)}×"
        rows.append(
            (
                cell(name, 40),
                units.seconds(latency),
                ratio if number else "",
                *([objective(plan, units.finite(entry.get("objective")))] if priced else []),
                units.clip(entry.get("why_not") or "", 90),
            )
        )
    more = (f">{plan.objective}",) if priced else ()
    return Table(
        "Beside the baselines",
        ("way", ">latency", ">of the plan's", *more, "not possible because"),
        tuple(rows),
    )


def _worth(plan: Plan) -> float | None:
    """What the plan itself comes to: its bound, and its distance from there."""
    return plan.bound / (1 - plan.gap) if plan.gap < 1 else None


def links(found: Iterable[Device]) -> Table:
    """How accelerators reach each other without a host in between."""
    rows = [
        (cell(device.id, 24), cell(peer, 24), units.bandwidth(rate.value), cell(rate.source, 60))
        for device in found
        for peer, rate in device.peers.items()
    ]
    return Table("Links", ("from", "to", ">bytes/s", "over"), tuple(rows))


def readings(now: Mapping[str, Mapping[str, Any]]) -> Table:
    """What the meters of each device say now; cores are left to JSON."""
    rows = []
    for device, row in now.items():
        if device.startswith("core:"):
            continue
        clock = next((row[name] for name in ("sm_clock_hz", "clock_hz") if row.get(name) is not None), None)
        held = row.get("throttle_reasons")
        rows.append(
            (
                cell(device, 24),
                units.percent(row.get("utilization")),
                units.size(row.get("memory_used_bytes")),
                units.size(row.get("memory_total_bytes")),
                units.bandwidth(row.get("dram_bytes_per_s")),
                units.power(row.get("power_w")),
                units.frequency(clock),
                UNKNOWN if row.get("temperature_c") is None else f"{row['temperature_c']:.0f} °C",
                UNKNOWN if held is None else cell(held or "no", 40),
            )
        )
    return Table(
        "Now",
        (
            "device",
            ">use",
            ">memory used",
            ">of",
            ">memory moves",
            ">power",
            ">clock",
            ">temperature",
            "throttled",
        ),
        tuple(sorted(rows)),
    )


def devices(found: Iterable[Device]) -> Table:
    """Devices with what they do and who says so."""

    def best(*candidates: Quantity | None) -> float | None:
        return next((quantity.value for quantity in candidates if quantity is not None), None)

    found = tuple(found)
    rows = []
    for device in found:
        speeds = []
        for dtype in ("float32", "bfloat16", "float16"):
            speed = best(device.achieved_flops.get(dtype), device.peak_flops.get(dtype))
            speeds.append(units.flop_rate(speed))
        tiers = {
            quantity.tier
            for quantity in (device.achieved_bandwidth_bytes_per_s, device.bandwidth_bytes_per_s)
            if quantity is not None
        }
        rows.append(
            (
                cell(device.id, 24),
                cell(device.name, 40),
                cell(device.kind, 8),
                units.size(best(device.memory_bytes)),
                units.bandwidth(best(device.achieved_bandwidth_bytes_per_s, device.bandwidth_bytes_per_s)),
                *speeds,
                units.seconds(best(device.launch_s)),
                units.dollars(best(device.usd_per_hour)),
                "measured" if "measured" in tiers else ", ".join(sorted(tiers)) or UNKNOWN,
                "yes" if device.live else "no",
            )
        )
    return Table(
        "Devices",
        (
            "id", "name", "kind", ">memory", ">reads", ">float32", ">bfloat16", ">float16", ">launch",
            ">per hour", "source", "here",
        ),
        tuple(rows),
        note="\n".join(f"{cell(d.id, 24)}: {text}" for d in found for text in (_known(d), _price(d)) if text),
    )  # fmt: skip


def _known(device: Device) -> str | None:
    """How a live device was measured, what it keeps beside others, and its caches."""
    reached = device.achieved_bandwidth_bytes_per_s
    if reached is None or not device.live:
        return None
    parts = [f"{cell(reached.source, 120)}, {reached.date}"]
    flops, bandwidth = device.beside_flops, device.beside_bandwidth
    if flops is not None and bandwidth is not None:
        parts.append(
            f"beside busy slices it keeps {units.percent(flops.value)} of its FLOP/s "
            f"and {units.percent(bandwidth.value)} of its reads"
        )
    parts += [
        f"{tier.name} reads {units.bandwidth(tier.read_bytes_per_s)}, copies "
        f"{units.bandwidth(tier.copy_bytes_per_s)}, at random {units.bandwidth(tier.random_bytes_per_s)}"
        for tier in device.tiers
    ]
    return "; ".join(parts)


def _price(device: Device) -> str | None:
    """Whose price an hour is."""
    usd = device.usd_per_hour
    if usd is None:
        return None
    return f"{units.dollars(usd.value)} an hour, {cell(usd.source, 200)} ({usd.date}, {usd.tier})"
