"""A problem's JSON ► the typed instance: the checks that a schema cannot make, and the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gimlet_lab.advisor.instance import Instance, Limits, Machine, Option, PathLimit, Tensor, Unit, Wire
from gimlet_lab.advisor.schema import JSON_SCHEMA, check, near
from gimlet_lab.advisor.timing import flows
from gimlet_lab.errors import UsageError


def parse(problem: Mapping[str, Any]) -> Instance:
    """Check a problem and read it into typed data, defaults filled in.

    Raises
    ------
    UsageError
        Names the first place that is wrong.
    """
    check(problem, JSON_SCHEMA)
    machines = _machines(problem["devices"])
    units = _units(problem["stages"], machines, robust=bool(problem.get("robust")))
    tensors = _tensors(problem.get("edges") or [], units)
    wires = _wires(problem.get("links") or [], machines)
    limits = _limits(problem.get("limits") or {}, units)
    _check_acyclic(units, tensors)
    through_host = problem.get("transfer", "direct") == "host"
    _check_times(tensors, wires, through_host=through_host)
    instance = Instance(
        objective=problem["objective"],
        machines=machines,
        units=units,
        tensors=tuple(tensors),
        wires=wires,
        through_host=through_host,
        contiguous=bool(problem.get("contiguous")),
        limits=limits,
        time_limit_s=_number(problem, "time_limit_s", 30.0),
        gap=_number(problem, "gap", 0.001),
    )
    return replace(instance, flows=flows(instance)) if instance.contiguous else instance


def _number(data: Mapping[str, Any], name: str, default: float = 0.0) -> float:
    value = data.get(name)
    return default if value is None else float(value)


def _machines(devices: list[dict[str, Any]]) -> dict[str, Machine]:
    machines: dict[str, Machine] = {}
    for index, device in enumerate(devices):
        name = device["id"]
        if name in machines:
            raise UsageError(f"devices[{index}].id: {name!r} is there twice")
        if "@" in name:
            raise UsageError(f"devices[{index}].id: {name!r} has an '@', which separates a variant")
        machines[name] = Machine(
            id=name,
            memory_bytes=None if device.get("memory_bytes") is None else float(device["memory_bytes"]),
            usd_per_hour=_number(device, "usd_per_hour"),
            max_count=device.get("max_count", 1),
            host=bool(device.get("host")),
            parallel=bool(device.get("parallel")),
            resources=frozenset(device.get("resources") or ()),
        )
    return machines


def _units(stages: list[dict[str, Any]], machines: Mapping[str, Machine], *, robust: bool) -> dict[str, Unit]:
    units: dict[str, Unit] = {}
    sizes: dict[str, tuple[float, int]] = {}
    for index, stage in enumerate(stages):
        place, name = f"stages[{index}]", stage["id"]
        if name in units:
            raise UsageError(f"{place}.id: {name!r} is there twice")
        options: dict[str, Option] = {}
        for key, data in stage["options"].items():
            device = key.partition("@")[0]
            if device not in machines:
                raise UsageError(f"{place}.options.{key}: no such device{near(device, machines)}")
            seconds = float(data["seconds"])
            options[key] = Option(
                key=key,
                device=device,
                seconds=_number(data, "seconds_high", seconds) if robust else seconds,
                memory_bytes=_number(data, "memory_bytes"),
                usd=_number(data, "usd"),
                joules=_number(data, "joules"),
                load=_number(data, "load"),
                devices_used=int(data.get("devices_used", 1)),
            )
        for rule in ("pin", "forbid"):
            for position, key in enumerate(stage.get(rule) or ()):
                if key not in options:
                    raise UsageError(
                        f"{place}.{rule}[{position}]: stage {name!r} has no option {key!r}"
                        f"{near(key, options)}"
                    )
        pinned = stage.get("pin") or options
        left = {
            key: options[key] for key in options if key in pinned and key not in (stage.get("forbid") or ())
        }
        if not left:
            raise UsageError(f"{place}: pin and forbid leave {name!r} no option")
        weights = {block: float(size or 0.0) for block, size in (stage.get("weights") or {}).items()}
        for block, size in weights.items():
            known, where = sizes.setdefault(block, (size, index))
            if known != size:
                raise UsageError(
                    f"{place}.weights.{block}: {size:g} bytes here, {known:g} in stages[{where}]"
                )
        units[name] = Unit(
            id=name,
            calls=_number(stage, "calls", 1.0),
            options=left,
            colocate=stage.get("colocate"),
            weights=weights,
            backward=bool(stage.get("backward")),
        )
    return units


def _tensors(edges: list[dict[str, Any]], units: Mapping[str, Unit]) -> list[Tensor]:
    found: dict[tuple[str, str | None], list[tuple[int, dict[str, Any]]]] = {}
    for index, edge in enumerate(edges):
        for end in ("from", "to"):
            if edge[end] not in units:
                hint = near(edge[end], units)
                raise UsageError(f"edges[{index}].{end}: no such stage {edge[end]!r}{hint}")
        if edge["from"] == edge["to"]:
            raise UsageError(f"edges[{index}]: {edge['from']!r} reads itself; a loop is written as calls")
        found.setdefault((edge["from"], edge.get("tensor")), []).append((index, edge))
    tensors = []
    for (src, name), carriers in found.items():
        first_index, first = carriers[0]
        for index, edge in carriers[1:]:
            for what in ("bytes", "seconds"):
                if _number(edge, what) != _number(first, what):
                    raise UsageError(
                        f"edges[{index}].{what}: {edge.get(what)} here and {first.get(what)} in "
                        f"edges[{first_index}], but both carry tensor {name!r} of {src!r}"
                    )
        seconds = first.get("seconds")
        tensors.append(
            Tensor(
                src=src,
                name=name,
                bytes=_number(first, "bytes"),
                seconds=None if seconds is None else float(seconds),
                calls=max(_number(edge, "calls", 1.0) for _, edge in carriers),
                readers=tuple(dict.fromkeys(edge["to"] for _, edge in carriers)),
            )
        )
    return tensors


def _wires(links: list[dict[str, Any]], machines: Mapping[str, Machine]) -> dict[tuple[str, str], Wire]:
    wires: dict[tuple[str, str], Wire] = {}
    for index, link in enumerate(links):
        for end in ("from", "to"):
            if link[end] not in machines:
                raise UsageError(f"links[{index}].{end}: no such device{near(link[end], machines)}")
        ends = (link["from"], link["to"])
        if ends in wires:
            raise UsageError(f"links[{index}]: a second link from {ends[0]!r} to {ends[1]!r}")
        wires[ends] = Wire(
            src=ends[0],
            dst=ends[1],
            bytes_per_s=link.get("bytes_per_s"),
            latency_s=_number(link, "latency_s"),
            seconds=link.get("seconds"),
            usd=_number(link, "usd"),
            exclusive=bool(link.get("exclusive")),
        )
    return wires


def _limits(limits: Mapping[str, Any], units: Mapping[str, Unit]) -> Limits:
    paths = limits.get("paths") or []
    for index, path in enumerate(paths):
        for end in ("from", "to"):
            if path[end] not in units:
                raise UsageError(f"limits.paths[{index}].{end}: no such stage{near(path[end], units)}")
    return Limits(
        latency_s=limits.get("latency_s"),
        usd=limits.get("usd"),
        usd_per_hour=limits.get("usd_per_hour"),
        paths=tuple(PathLimit(p["from"], p["to"], float(p["seconds"])) for p in paths),
    )


def _check_acyclic(units: Mapping[str, Unit], tensors: list[Tensor]) -> None:
    readers: dict[str, list[str]] = {unit: [] for unit in units}
    for tensor in tensors:
        readers[tensor.src].extend(tensor.readers)
    state: dict[str, int] = {}  # 1: on the way down, 2: done
    for root in units:
        if root in state:
            continue
        trail: list[str] = [root]
        pending = [iter(readers[root])]
        state[root] = 1
        while pending:
            below = next(pending[-1], None)
            if below is None:
                state[trail.pop()] = 2
                pending.pop()
            elif state.get(below) == 1:
                circle = " → ".join([*trail[trail.index(below) :], below])
                raise UsageError(f"edges: {circle} is a cycle; a loop is written as calls")
            elif below not in state:
                state[below] = 1
                trail.append(below)
                pending.append(iter(readers[below]))


def _check_times(tensors: list[Tensor], wires: Mapping[tuple[str, str], Wire], *, through_host: bool) -> None:
    untimed = next((t for t in tensors if t.seconds is None and t.bytes > 0), None)
    if untimed is None:
        return
    what = f"tensor {untimed.name!r} of {untimed.src!r}"
    if through_host:
        raise UsageError(f"edges: {what} has bytes but no seconds, which transfer 'host' needs")
    for index, wire in enumerate(wires.values()):
        if wire.seconds is None and not wire.bytes_per_s:
            raise UsageError(f"links[{index}].bytes_per_s: is missing, and {what} has bytes to carry")
