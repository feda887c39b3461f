"""Small problems for the advisor's tests: worked ones, random ones, and exhaustive search over them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from gimlet_lab.advisor import worker
from gimlet_lab.advisor.instance import Instance
from gimlet_lab.advisor.judge import Verdict, judge
from gimlet_lab.advisor.latency import Budget, Start
from gimlet_lab.advisor.problem import parse
from gimlet_lab.progress import Progress


def in_process(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The solver without its process: hundreds of small problems would spend their time starting Python."""
    start = Start(**request["start"]) if request["start"] else None
    budget = Budget(time.monotonic() + request["seconds"])
    rules = {"exclude": request["exclude"], "help_out": request["relax"]}
    return worker.work(parse(request["problem"]), start, budget, lambda _value, _bound: None, **rules)


def problem(stages: dict[str, dict[str, Any]], devices: Any = ("a", "b"), **rest: Any) -> dict[str, Any]:
    """A latency problem; a stage is option → seconds, or a full entry."""
    entries = []
    for name, stage in stages.items():
        entry = stage if "options" in stage else {"options": stage}
        options = {k: v if isinstance(v, dict) else {"seconds": v} for k, v in entry["options"].items()}
        entries.append({"id": name, **entry, "options": options})
    return {
        "schema": "gimlet.problem/1",
        "objective": "latency",
        "devices": [{"id": d} if isinstance(d, str) else d for d in devices],
        "stages": entries,
        **rest,
    }


def links(*pairs: str, **rest: Any) -> list[dict[str, Any]]:
    """One-way links: ``"a>b"``."""
    return [{"from": pair.split(">")[0], "to": pair.split(">")[1], **rest} for pair in pairs]


def table_3(latency_s: float | None) -> dict[str, Any]:
    """The paper's Table 3: prefill of 1,000 tokens and decode of 500 on HP or CO, in dollars and seconds."""
    return problem(
        {
            "prefill": {"HP": {"seconds": 0.08, "usd": 0.08}, "CO": {"seconds": 0.13, "usd": 0.05}},
            "decode": {"HP": {"seconds": 0.025, "usd": 0.03}, "CO": {"seconds": 0.03, "usd": 0.01}},
        },
        ("HP", "CO"),
        objective="cost",
        edges=[{"from": "prefill", "to": "decode", "tensor": "kv"}],
        links=links("HP>CO", "CO>HP", seconds=0.01, usd=0.005),
        limits={"latency_s": latency_s},
    )


def exhaustive(data: dict[str, Any], figure: Callable[[Verdict], float] | None = None) -> float | None:
    """The least objective (or figure) over every assignment and order; None where nothing is allowed."""
    instance = parse(data)
    best: float | None = None
    for assignment in assignments(instance):
        for order in orders(instance, assignment) if figure or timed(instance) else (None,):
            verdict = judge(instance, assignment, order)
            if verdict.feasible:
                value = figure(verdict) if figure else verdict.objective
                best = value if best is None or (value is not None and value < best) else best
    return best


def timed(instance: Instance) -> bool:
    """Whether the order of units plays a part."""
    limits = instance.limits
    return instance.objective != "throughput" or limits.latency_s is not None or bool(limits.paths)


def exhaustive_relax(data: dict[str, Any]) -> dict[str, float | None]:
    """What ``relax`` must say, by exhaustive search without each limit in turn."""
    amounts: dict[str, float | None] = {}

    def least(place: str, limit: float, without: dict[str, Any], figure: Callable[[Verdict], float]) -> None:
        value = exhaustive(without, figure)
        amounts[place] = None if value is None else max(0.0, value - limit)

    limits = data.get("limits") or {}
    if limits.get("latency_s") is not None:
        without = {**data, "limits": {**limits, "latency_s": None}}
        least("limits.latency_s", limits["latency_s"], without, lambda v: v.latency_s or 0.0)
    if limits.get("usd") is not None:
        without = {**data, "limits": {**limits, "usd": None}}
        least("limits.usd", limits["usd"], without, lambda v: v.usd)
    if limits.get("usd_per_hour") is not None:
        without = {**data, "limits": {**limits, "usd_per_hour": None}}
        least("limits.usd_per_hour", limits["usd_per_hour"], without, lambda v: v.usd_per_hour or 0.0)
    for i, path in enumerate(limits.get("paths") or []):
        others = [p for p in limits["paths"] if p is not path]
        without = {**data, "limits": {**limits, "paths": others}}

        def taken_s(verdict: Verdict, src: str = path["from"], dst: str = path["to"]) -> float:
            return verdict.end_s[dst] - verdict.start_s[src]

        least(f"limits.paths[{i}].seconds", path["seconds"], without, taken_s)
    for device in data["devices"]:
        if parse(data).counted and device.get("max_count", 1) is not None:
            others = [d if d is not device else {**d, "max_count": None} for d in data["devices"]]

            def copies(verdict: Verdict, name: str = device["id"]) -> float:
                return verdict.count.get(name, 0)

            place = f"devices.{device['id']}.max_count"
            least(place, device.get("max_count", 1), {**data, "devices": others}, copies)
        if device.get("memory_bytes") is not None:
            others = [d if d is not device else {**d, "memory_bytes": None} for d in data["devices"]]
            place = f"devices.{device['id']}.memory_bytes"

            def used_bytes(verdict: Verdict, name: str = device["id"]) -> float:
                return verdict.memory_bytes[name]

            least(place, device["memory_bytes"], {**data, "devices": others}, used_bytes)
    return amounts


def assignments(instance: Instance) -> Iterator[dict[str, str]]:
    """Every choice of options."""
    for keys in itertools.product(*(unit.options for unit in instance.units.values())):
        yield dict(zip(instance.units, keys, strict=True))


def orders(instance: Instance, assignment: dict[str, str]) -> Iterator[tuple[str, ...]]:
    """Every order with producers first that differs where it can matter."""
    device = {name: unit.options[assignment[name]].device for name, unit in instance.units.items()}
    all_matter = any(wire.exclusive for wire in instance.wires.values())
    seen = set()
    for order in itertools.permutations(instance.units):
        position = {name: index for index, name in enumerate(order)}
        if any(position[p] > position[name] for name, ps in instance.producers.items() for p in ps):
            continue
        key = frozenset(
            pair
            for pair in itertools.combinations(order, 2)
            if all_matter or instance.conflict(device[pair[0]], device[pair[1]])
        )
        if key not in seen:
            seen.add(key)
            yield order


@st.composite
def random_problems(
    draw: st.DrawFn, stages: tuple[int, int] = (1, 5), devices: tuple[int, int] = (1, 3), busy: bool = False
) -> dict[str, Any]:
    """Problems across the rules: whole and fractional times, loops, groups, weights, memory, limits."""
    names = [f"s{i}" for i in range(draw(st.integers(*stages)))]
    places = [f"d{i}" for i in range(draw(st.integers(*devices)))]
    grid = draw(st.sampled_from([1.0, 0.25, 1 / 3, 0.0017]))
    rarely = st.integers(0, 7).map(lambda n: n == 7)
    sometimes = st.booleans() if busy else rarely

    def amount(low: int = 0, high: int = 9) -> float:
        return draw(st.integers(low + busy, high)) * grid

    entries = []
    for name in names:
        where = draw(st.lists(st.sampled_from(places), min_size=min(1 + busy, len(places)), unique=True))
        options = {
            d: {
                "seconds": amount(),
                "memory_bytes": draw(st.integers(0, 4)),
                "usd": amount(),
                "joules": amount(),
            }
            for d in where
        }
        if draw(rarely):
            options[f"{where[0]}@fast"] = {"seconds": amount(), "memory_bytes": 5, "usd": amount()}
        entry: dict[str, Any] = {"id": name, "options": options, "calls": draw(st.sampled_from([1, 1, 3]))}
        if draw(rarely):
            entry["colocate"] = "group"
        if draw(sometimes):
            entry["weights"] = {draw(st.sampled_from(["w", "v"])): 3}
        if draw(rarely):
            entry["forbid"] = [where[0]] if len(options) > 1 else []
        entries.append(entry)
    edges = []
    for i, j in itertools.combinations(range(len(names)), 2):
        if draw(st.sampled_from([False, False, True])):
            # Half of a stage's readers share one tensor.
            shared = draw(st.booleans())
            size = i + 1.0 if shared else float(draw(st.integers(0, 4)))
            edge: dict[str, Any] = {"from": names[i], "to": names[j], "bytes": size}
            edge["tensor"] = "shared" if shared else f"to {names[j]}"
            edge["calls"] = draw(st.sampled_from([1, 1, 2]))
            edges.append(edge)
    through_host = draw(rarely)
    if through_host:
        edges = [{**edge, "seconds": edge["bytes"] * grid} for edge in edges]
    wires = []
    for a, b in itertools.permutations(places, 2):
        if not draw(rarely):
            wire: dict[str, Any] = {"from": a, "to": b, "bytes_per_s": 1 / grid, "latency_s": amount(0, 2)}
            wire["exclusive"], wire["usd"] = draw(sometimes), amount(0, 3)
            wires.append(wire)
    limits: dict[str, Any] = {}
    if draw(rarely):
        limits["latency_s"] = amount(4, 30)
    if draw(rarely):
        limits["usd"] = amount(4, 30)
    if draw(sometimes) and len(names) > 1:
        limits["paths"] = [{"from": names[0], "to": names[-1], "seconds": amount(4, 30)}]
    return {
        "schema": "gimlet.problem/1",
        "objective": draw(st.sampled_from(["latency", "latency", "cost", "energy"])),
        "devices": [
            {
                "id": d,
                "memory_bytes": draw(st.sampled_from([None, None, 8, 16])),
                "host": draw(sometimes),
                "parallel": draw(sometimes),
                "resources": draw(st.sampled_from([[], [], ["core0"], ["core0", "core1"]])),
            }
            for d in places
        ],
        "stages": entries,
        "edges": edges,
        "links": wires,
        "transfer": "host" if through_host else "direct",
        "limits": limits,
        "gap": 0,
    }


@st.composite
def random_pipelines(
    draw: st.DrawFn,
    stages: tuple[int, int] = (1, 6),
    devices: tuple[int, int] = (1, 3),
    contiguous: bool | None = None,
    alike: bool | None = None,
) -> dict[str, Any]:
    """Throughput problems: copies, shared cores, both ways of transfer, contiguous or not, training."""
    data = draw(random_problems(stages, devices, busy=draw(st.booleans())))
    data["objective"] = "throughput"
    data["contiguous"] = draw(st.booleans()) if contiguous is None else contiguous
    for device in data["devices"]:
        device["max_count"] = draw(st.sampled_from([1, 1, 1, 2, 3]))
        device["resources"] = draw(st.sampled_from([[], [], [], ["core0"]]))
    if draw(st.booleans()) if alike is None else alike:
        # The case of the dynamic program: equal devices, transfers through the host.
        data["transfer"], data["links"], data["limits"] = "host", [], {}
        per_byte_s = draw(st.sampled_from([0.25, 2.0]))
        if draw(st.booleans()):
            size = {stage["id"]: float(draw(st.integers(0, 4))) for stage in data["stages"]}
            names = list(size)
            data["edges"] = [
                {"from": a, "to": b, "bytes": size[a]}
                for a, b in itertools.combinations(names, 2)
                if draw(st.booleans())
            ]
        data["edges"] = [{**edge, "seconds": edge["bytes"] * per_byte_s} for edge in data["edges"]]
        first = {**data["devices"][0], "memory_bytes": draw(st.sampled_from([None, 6, 9, 12]))}
        data["devices"] = [{**first, "id": d["id"], "resources": []} for d in data["devices"]]
        names = [d["id"] for d in data["devices"]]
        for stage in data["stages"]:
            option = next(iter(stage["options"].values()))
            stage["options"] = {name: dict(option) for name in names}
            stage.pop("forbid", None)
        if draw(st.booleans()) and len(names) > 1:
            slow = data["devices"][-1]
            slow["host"], slow["memory_bytes"] = True, None
            for stage in data["stages"]:
                stage["options"][slow["id"]]["seconds"] *= 4
    if data["contiguous"]:
        data["limits"] = {name: value for name, value in data["limits"].items() if name == "usd"}
        if draw(st.booleans()):
            for stage in data["stages"]:
                stage["backward"] = draw(st.booleans())
                if draw(st.booleans()):
                    stage["colocate"] = draw(st.sampled_from(["group", "other"]))
    return data


@st.composite
def random_fleets(draw: st.DrawFn) -> dict[str, Any]:
    """Cost problems where options keep a share of a device busy, or take several together."""
    data = draw(random_problems((1, 5), (1, 3)))
    data["objective"] = "cost"
    shares = st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.4, 1 / 3])
    for device in data["devices"]:
        device["usd_per_hour"] = draw(st.sampled_from([0.0, 1.0, 2.5, 4.0]))
        device["max_count"] = draw(st.sampled_from([None, 0, 1, 2, 3]))
    for stage in data["stages"]:
        for option in stage["options"].values():
            option["load"] = draw(shares)
            option["devices_used"] = draw(st.sampled_from([1, 1, 1, 2]))
    if draw(st.booleans()):
        data["limits"]["usd_per_hour"] = draw(st.sampled_from([3.0, 6.0]))
    return data
