"""The judge: is a placement allowed, and what does it take? It knows the contract and no solver."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gimlet_lab.advisor.instance import TOLERANCE, Instance, at_most
from gimlet_lab.advisor.problem import parse
from gimlet_lab.advisor.timing import blocks, destinations, loads, simulate, work
from gimlet_lab.errors import UsageError


@dataclass(frozen=True)
class Verdict:
    """What the judge found.

    Attributes
    ----------
    violations : tuple of str
        Rules that do not hold, one line each; empty when the placement is allowed.
    objective : float or None
        In the unit of the problem's objective; None where it cannot be told.
    latency_s, usd, usd_per_hour, joules : float or None
    start_s, end_s : mapping of unit to float
    memory_bytes, load_s : mapping of device to float
    count : mapping of device to int
    """

    violations: tuple[str, ...]
    objective: float | None
    latency_s: float | None
    usd: float
    usd_per_hour: float | None
    joules: float
    start_s: Mapping[str, float] = field(default_factory=dict)
    end_s: Mapping[str, float] = field(default_factory=dict)
    memory_bytes: Mapping[str, float] = field(default_factory=dict)
    load_s: Mapping[str, float] = field(default_factory=dict)
    count: Mapping[str, int] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """Whether every rule holds."""
        return not self.violations


def evaluate(
    problem: Mapping[str, Any],
    assignment: Mapping[str, str],
    schedule: Sequence[Mapping[str, Any] | str] | None = None,
) -> dict[str, Any]:
    """Judge a placement by the rules of the contract (section 4), whatever solver it comes from.

    Parameters
    ----------
    problem : mapping
        ``gimlet.problem/1``.
    assignment : mapping of stage to option
        A device id, or ``id@variant``.
    schedule : sequence, optional
        The order in which stages take their devices: entries of a solution's ``schedule``, or stage ids.
        Left out: first come, first served. Start times in it are not believed but computed.

    Returns
    -------
    dict
        ``feasible``, ``violations`` (sentences), ``objective``, ``latency_s``, ``usd``, ``usd_per_hour``,
        ``joules``, ``count``, ``memory_bytes``, ``load_s`` (seconds by device), ``schedule``.

    Raises
    ------
    UsageError
        If the problem is malformed.

    Examples
    --------
    >>> problem = {
    ...     "schema": "gimlet.problem/1", "objective": "latency", "devices": [{"id": "cpu"}],
    ...     "stages": [{"id": "decode", "calls": 64, "options": {"cpu": {"seconds": 0.5}}}],
    ... }
    >>> evaluate(problem, {"decode": "cpu"})["latency_s"]
    32.0
    """
    instance = parse(problem)
    order = None
    if schedule is not None:
        order = [entry if isinstance(entry, str) else str(entry.get("stage")) for entry in schedule]
    verdict = judge(instance, assignment, order)
    return {
        "feasible": verdict.feasible,
        "violations": list(verdict.violations),
        "objective": verdict.objective,
        "latency_s": verdict.latency_s,
        "usd": verdict.usd,
        "usd_per_hour": verdict.usd_per_hour,
        "joules": verdict.joules,
        "count": dict(verdict.count),
        "memory_bytes": dict(verdict.memory_bytes),
        "load_s": dict(verdict.load_s),
        "schedule": timetable(instance, assignment, verdict),
    }


def timetable(instance: Instance, assignment: Mapping[str, str], verdict: Verdict) -> list[dict[str, Any]]:
    """A solution's ``schedule``, in the order things end: producers before readers."""
    rank = {unit: position for position, unit in enumerate(instance.order)}
    units = sorted(verdict.end_s, key=lambda u: (verdict.end_s[u], verdict.start_s[u], rank[u]))
    return [
        {
            "stage": unit,
            "device": instance.units[unit].options[assignment[unit]].device,
            "start_s": verdict.start_s[unit],
            "end_s": verdict.end_s[unit],
        }
        for unit in units
    ]


def judge(instance: Instance, assignment: Mapping[str, str], order: Sequence[str] | None = None) -> Verdict:
    """:func:`evaluate` on an instance that is checked already."""
    violations = list(_misplaced(instance, assignment))
    if violations:
        return Verdict(tuple(violations), None, None, 0.0, None, 0.0)
    device = {name: unit.options[assignment[name]].device for name, unit in instance.units.items()}
    violations += _apart(instance, device)
    violations += _missing_links(instance, device)
    memory = _memory(instance, assignment, device)
    for name, used in memory.items():
        capacity = instance.machines[name].memory_bytes
        if capacity is not None and not at_most(used, capacity):
            violations.append(f"memory of {name}: {used:.6g} bytes needed, {capacity:.6g} there")
    options = [(unit, unit.options[assignment[unit.id]]) for unit in instance.units.values()]
    usd = sum(unit.calls * option.usd for unit, option in options) + _link_usd(instance, device)
    joules = sum(unit.calls * option.joules for unit, option in options)
    count, count_violations = _count(instance, assignment, device)
    violations += count_violations
    per_hour = sum(count[name] * instance.machines[name].usd_per_hour for name in count)

    start: dict[str, float] = {}
    end: dict[str, float] = {}
    load: dict[str, float] = {}
    latency: float | None = None
    linked = not any("no link" in violation for violation in violations)
    if instance.objective == "throughput":
        load, throughput_violations = loads(instance, assignment, device, count)
        violations += throughput_violations
    elif linked:
        load = work(instance, assignment, device)
    limits = instance.limits
    # Contiguous blocks are timed where somebody asks; merged units may read in a circle and have no schedule.
    timed = limits.latency_s is not None or limits.paths or instance.objective != "throughput"
    if linked and (timed or (not instance.contiguous and len(instance.order) == len(instance.units))):
        complaint = _wrong_order(instance, order)
        if complaint is None:
            clock = blocks if instance.contiguous else simulate
            start, end, complaint = clock(instance, assignment, device, order)
        if complaint is not None:
            violations.append(complaint)
            start, end = {}, {}
        else:
            latency = max(end.values(), default=0.0)
    violations += _broken_limits(instance, latency, usd, per_hour, start, end)

    objective: float | None
    if instance.objective == "latency":
        objective = latency
    elif instance.objective == "throughput":
        objective = max(load.values(), default=0.0) if linked else None
    elif instance.objective == "energy":
        objective = joules
    else:
        objective = per_hour if instance.sized else usd
    return Verdict(
        tuple(violations), objective, latency, usd, per_hour, joules, start, end, memory, load, count
    )


def _misplaced(instance: Instance, assignment: Mapping[str, str]) -> Iterable[str]:
    for name, unit in instance.units.items():
        if name not in assignment:
            yield f"stage {name} is placed nowhere"
        elif assignment[name] not in unit.options:
            yield f"stage {name} may not run on {assignment[name]}: it may on {', '.join(unit.options)}"
    for name in assignment:
        if name not in instance.units:
            yield f"there is no stage {name}"


def _apart(instance: Instance, device: Mapping[str, str]) -> Iterable[str]:
    for group, members in instance.groups.items():
        places = dict.fromkeys(device[member] for member in members)
        if len(places) > 1:
            yield f"{group} must lie together, but {', '.join(members)} lie on {', '.join(places)}"


def _missing_links(instance: Instance, device: Mapping[str, str]) -> Iterable[str]:
    for tensor in instance.tensors:
        src = device[tensor.src]
        for dst in destinations(tensor, device):
            if instance.crossing_s(tensor, src, dst) is None:
                yield f"no link from {src} to {dst}, which {tensor.src} needs"


def _memory(instance: Instance, assignment: Mapping[str, str], device: Mapping[str, str]) -> dict[str, float]:
    used = dict.fromkeys(instance.machines, 0.0)
    blocks: dict[tuple[str, str], float] = {}
    for name, unit in instance.units.items():
        used[device[name]] += unit.options[assignment[name]].memory_bytes
        blocks.update({(device[name], block): size for block, size in unit.weights.items()})
    for (place, _), size in blocks.items():
        used[place] += size
    return used


def _link_usd(instance: Instance, device: Mapping[str, str]) -> float:
    if instance.through_host:
        return 0.0
    return sum(
        instance.wires[device[tensor.src], dst].usd
        for tensor in instance.tensors
        for dst in destinations(tensor, device)
        if (device[tensor.src], dst) in instance.wires
    )


def _count(
    instance: Instance, assignment: Mapping[str, str], device: Mapping[str, str]
) -> tuple[dict[str, int], list[str]]:
    busy: dict[str, float] = dict.fromkeys(device.values(), 0.0)
    together = dict.fromkeys(busy, 1)
    for name, unit in instance.units.items():
        option = unit.options[assignment[name]]
        busy[device[name]] += option.load
        together[device[name]] = max(together[device[name]], option.devices_used)
    if instance.objective == "throughput" and any(copies > 1 for copies in together.values()):
        raise UsageError("throughput of options that take several devices together is not supported yet")
    count, violations = {}, []
    for name, share in busy.items():
        machine = instance.machines[name]
        if instance.sized:
            count[name] = max(math.ceil(share * (1 - TOLERANCE)), together[name] if together[name] > 1 else 0)
        elif instance.objective == "throughput":
            count[name] = 1 if machine.max_count is None else machine.max_count
        else:
            count[name] = together[name]
        if machine.max_count is not None and max(count[name], 1) > machine.max_count:
            violations.append(f"count of {name}: {max(count[name], 1)} needed, {machine.max_count} there")
    return count, violations


def _broken_limits(
    instance: Instance,
    latency: float | None,
    usd: float,
    per_hour: float,
    start: Mapping[str, float],
    end: Mapping[str, float],
) -> Iterable[str]:
    limits = instance.limits
    figures = (("latency_s", latency, limits.latency_s), ("usd", usd, limits.usd))
    for name, value, limit in (*figures, ("usd_per_hour", per_hour, limits.usd_per_hour)):
        if limit is not None and value is not None and not at_most(value, limit):
            yield f"limits.{name}: {value:.6g}, allowed {limit:.6g}"
    for index, path in enumerate(limits.paths):
        if path.src in start and not at_most(end[path.dst] - start[path.src], path.seconds):
            took, ends = end[path.dst] - start[path.src], f"{path.src} to {path.dst}"
            yield f"limits.paths[{index}]: {ends} takes {took:.6g} s, allowed {path.seconds:.6g}"


def _wrong_order(instance: Instance, order: Sequence[str] | None) -> str | None:
    if order is None:
        return None
    listed = set(order)
    missing = [name for name in instance.units if name not in listed]
    if missing:
        return f"the schedule leaves out {missing[0]}"
    if len(order) != len(instance.units):
        return "the schedule has stages twice, or of another problem"
    return None
