"""Equal devices: which may swap names, and what a placement is called under all their names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from gimlet_lab.advisor.instance import Instance, Option


def renamed(instance: Instance, assignment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A placement under all names that equal devices may swap, itself first."""
    used = {unit.options[assignment[name]].device for name, unit in instance.units.items()}
    classes = [group for group in _alike(instance) if used & set(group) and len(group) > 1]
    seen: set[tuple[str, ...]] = set()
    for orders in itertools.product(*(itertools.permutations(group) for group in classes)):
        swap = {
            old: new
            for group, order in zip(classes, orders, strict=True)
            for old, new in zip(group, order, strict=True)
        }
        other = {name: _moved(key, swap) for name, key in assignment.items()}
        if tuple(other.values()) not in seen:
            seen.add(tuple(other.values()))
            yield other


def _moved(key: str, swap: Mapping[str, str]) -> str:
    device, at, variant = key.partition("@")
    return f"{swap.get(device, device)}{at}{variant}"


def _alike(instance: Instance) -> list[list[str]]:
    """Devices any two of which can swap names and nothing is another than before."""
    groups: list[list[str]] = []
    for name in instance.machines:
        home = next((group for group in groups if _swappable(instance, group[0], name)), None)
        if home is None:
            groups.append([name])
        else:
            home.append(name)
    return groups


def _swappable(instance: Instance, one: str, other: str) -> bool:
    a, b = instance.machines[one], instance.machines[other]
    figures = ("memory_bytes", "usd_per_hour", "max_count", "host", "parallel", "resources")
    if a.resources or any(getattr(a, figure) != getattr(b, figure) for figure in figures):
        return False
    for unit in instance.units.values():
        if _own(unit.options, one) != _own(unit.options, other):
            return False
    swap = {one: other, other: one}
    for (src, dst), wire in instance.wires.items():
        if {src, dst} & {one, other}:
            twin = instance.wires.get((swap.get(src, src), swap.get(dst, dst)))
            rest = ("bytes_per_s", "latency_s", "seconds", "usd", "exclusive")
            if twin is None or any(getattr(wire, figure) != getattr(twin, figure) for figure in rest):
                return False
    return True


def _own(options: Mapping[str, Option], device: str) -> list[tuple[Any, ...]]:
    return [
        (o.key.partition("@")[2], o.seconds, o.memory_bytes, o.usd, o.joules, o.load, o.devices_used)
        for o in options.values()
        if o.device == device
    ]
