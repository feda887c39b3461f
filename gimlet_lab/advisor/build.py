"""Graph, fleet and estimates ► problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gimlet_lab.advisor.schema import PROBLEM
from gimlet_lab.errors import UnknownNameError, UsageError
from gimlet_lab.model import Device, Edge, Estimate, Fleet, Graph, Link, Stage

#: One call of a stage on a device; None where it cannot run there.
StageEstimate = Callable[[Stage, Device, Device | None], Estimate | None]

OBJECTIVES = ("latency", "cost", "energy", "throughput")
SLOS = ("latency_s", "ttft_s", "tpot_s")


@dataclass(frozen=True)
class Question:
    """A problem with what it was made from.

    Attributes
    ----------
    problem : dict
        ``gimlet.problem/1``.
    estimates : mapping of stage to mapping of device to Estimate
    notes : tuple of str
        What had to be assumed.
    host : str
        The device where the notebook's Python runs.
    home : mapping of stage to device
        Where each stage is now; empty where the fleet lacks the device the run was measured on, and of a dry
        run, which is nowhere.
    rate_per_s : float or None
        Requests that a fleet is sized for.
    prompts : mapping of (str, str) to int
        Of a sized fleet: the prefill and decode stages of each served model, and the tokens of a prompt.
    """

    problem: dict[str, Any]
    estimates: Mapping[str, Mapping[str, Estimate]]
    notes: tuple[str, ...]
    host: str
    home: Mapping[str, str]
    rate_per_s: float | None = None
    prompts: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The prefill and decode stages of each served model."""
        return tuple(self.prompts)


def build(
    graph: Graph,
    fleet: Fleet,
    *,
    measured_on: Device | None,
    objective: str,
    estimate: StageEstimate,
    slo: Mapping[str, float] | None = None,
    pin: Mapping[str, str] | None = None,
    forbid: Mapping[str, Sequence[str] | str] | None = None,
    robust: bool = False,
    max_usd_per_hour: float | None = None,
    time_limit_s: float = 30.0,
) -> Question:
    """Ask where each stage of a graph should run.

    Loops are ``calls`` of their stages and edges: back edges are left out. Glue stays where the notebook's
    Python runs. Devices without a link of their own reach each other through a host.

    Raises
    ------
    UsageError
        Where the fleet has no host, a stage has nowhere to run, or an option of the caller is wrong.
    """
    if objective not in OBJECTIVES:
        raise UnknownNameError("objective", objective, OBJECTIVES)
    if not graph.stages:
        raise UsageError("nothing to place: the run has no stages (its cell called no function and no model)")
    copies = _copies(fleet)
    host = _host(fleet, measured_on)
    forbid = {
        stage: (devices,) if isinstance(devices, str) else tuple(devices)
        for stage, devices in (forbid or {}).items()
    }
    _check_rules(graph, copies, pin or {}, forbid)
    notes: list[str] = []
    estimates: dict[str, dict[str, Estimate]] = {}
    stages = []
    for stage in graph.stages:
        by_device = {d.id: estimate(stage, d, measured_on) for d in fleet.devices}
        estimates[stage.id] = {
            name: found
            for name, device in copies.items()
            if (found := by_device[device.id]) is not None and not (stage.kind == "glue" and name != host)
        }
        if not estimates[stage.id]:
            raise UsageError(f"stage {stage.id!r} can run on none of {', '.join(copies)}: {_why_not(stage)}")
        entry = _stage(stage, estimates[stage.id], copies, objective)
        if pin and stage.id in pin:
            entry["pin"] = [pin[stage.id]]
        if forbid.get(stage.id):
            entry["forbid"] = [name for name in forbid[stage.id] if name in entry["options"]]
        for rule in entry.get("pin", ()):
            if rule not in entry["options"]:
                raise UsageError(f"pin: stage {stage.id!r} cannot run on {rule}: {_why_not(stage)}")
        stages.append(entry)
    edges, unknown = edges_of(graph)
    notes += [f"{edge}: bytes unknown, planned as 0" for edge in unknown]
    if robust:
        notes.append("Robust: every estimate is taken at its high end.")
    limits = limits_of(graph, slo or {})
    if max_usd_per_hour is not None:
        limits["usd_per_hour"] = max_usd_per_hour
    problem: dict[str, Any] = {
        "schema": PROBLEM,
        "objective": objective,
        "devices": [_device(name, device) for name, device in copies.items()],
        "stages": stages,
        "edges": edges,
        "links": _links(fleet, copies),
        "transfer": "direct",
        "robust": robust,
        "limits": limits,
        "time_limit_s": time_limit_s,
    }
    here = "" if measured_on is None else measured_on.id
    home = {stage.id: here for stage in graph.stages if here in estimates[stage.id]}
    return Question(problem, estimates, tuple(notes), host, home if len(home) == len(graph.stages) else {})


def _copies(fleet: Fleet) -> dict[str, Device]:
    """Devices by name; a second H100 is ``h100-sxm#2``: a latency plan runs one thing at a time on each."""
    copies = {}
    for device in fleet.devices:
        if "@" in device.id:
            raise UsageError(f"device {device.id!r}: an '@' separates a variant, give it another name")
        count = fleet.counts.get(device.id, 1)
        # More copies than stages that could use them only make the search longer.
        for number in range(1, 1 + min(8, 1 if count is None else count)):
            copies[device.id if number == 1 else f"{device.id}#{number}"] = device
    if not copies:
        raise UsageError("the fleet has no devices")
    return copies


def _host(fleet: Fleet, measured_on: Device | None) -> str:
    hosts = [device.id for device in fleet.devices if device.is_host]
    if not hosts:
        names = ", ".join(device.id for device in fleet.devices)
        raise UsageError(f"Python functions have nowhere to run on {names}: add a host, for example cpu")
    if measured_on is not None and measured_on.id in hosts:
        return measured_on.id
    return next((name for name in hosts if "/" not in name), hosts[0])


def _check_rules(
    graph: Graph, copies: Mapping[str, Device], pin: Mapping[str, str], forbid: Mapping[str, Sequence[str]]
) -> None:
    names = [stage.id for stage in graph.stages]
    for rules in ({stage: (device,) for stage, device in pin.items()}, forbid):
        for stage, devices in rules.items():
            if stage not in names:
                raise UnknownNameError("stage", stage, names)
            for device in devices:
                if device not in copies:
                    raise UnknownNameError("device", device, copies)


def _why_not(stage: Stage) -> str:
    if stage.kind == "glue":
        return "it is Python between the others and stays on the host"
    return "Python functions run on a host" if stage.kind == "function" else "no estimate for it there"


def _stage(
    stage: Stage, estimates: Mapping[str, Estimate], copies: Mapping[str, Device], objective: str
) -> dict[str, Any]:
    options = {}
    for name, found in estimates.items():
        option: dict[str, Any] = {
            "seconds": found.seconds,
            "seconds_high": max(found.high, found.seconds),
            "memory_bytes": float(max(stage.state_bytes, stage.peak_bytes or 0)),
        }
        usd, joules = usd_of(found, copies[name]), found.joules
        if usd is not None:
            option["usd"] = usd
        elif objective == "cost":
            raise UsageError(f"no price for {name}: cost needs one (usd_per_hour of the device)")
        if joules is not None:
            option["joules"] = joules
        elif objective == "energy":
            raise UsageError(f"no energy figure for stage {stage.id!r} on {name}: energy needs one")
        options[name] = option
    return {
        "id": stage.id,
        "calls": stage.calls,
        "weights": {block: float(size) for block, size in stage.weights.items()},
        "options": options,
    }


def usd_of(estimate: Estimate, device: Device) -> float | None:
    """Dollars of one call: the estimate's, else its seconds at the device's hourly price; None is unknown."""
    if estimate.usd is not None:
        return estimate.usd
    if device.usd_per_hour is None:
        return None
    return estimate.seconds * device.usd_per_hour.value / 3600


def _device(name: str, device: Device) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": name, "host": device.is_host, "resources": list(device.resources)}
    if device.memory_bytes is not None:
        entry["memory_bytes"] = device.memory_bytes.value
    if device.usd_per_hour is not None:
        entry["usd_per_hour"] = device.usd_per_hour.value
    return entry


def edges_of(graph: Graph) -> tuple[list[dict[str, Any]], list[str]]:
    """Forward edges; a name that stands for tensors of different sizes is told apart by a number."""
    edges, unknown = [], []
    sizes: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for edge in graph.edges:
        if edge.back or edge.src == edge.dst:
            continue
        if edge.bytes is None:
            unknown.append(f"{edge.src} → {edge.dst}")
        size = (edge.bytes or 0.0, max(edge.calls, 1))
        known = sizes.setdefault((edge.src, edge.tensor), [])
        if size not in known:
            known.append(size)
        edges.append(
            {
                "from": edge.src,
                "to": edge.dst,
                "tensor": _numbered(edge, known.index(size)),
                "bytes": size[0],
                "calls": size[1],
            }
        )
    return edges, unknown


def _numbered(edge: Edge, position: int) -> str:
    return edge.tensor if position == 0 else f"{edge.tensor}~{position + 1}"


def _links(fleet: Fleet, copies: Mapping[str, Device]) -> list[dict[str, Any]]:
    direct = {(link.src, link.dst): link for link in fleet.links}
    links = []
    for src, one in copies.items():
        for dst, other in copies.items():
            if src == dst:
                continue
            link = direct.get((one.id, other.id)) or _by_host(one, other, copies, direct)
            if link is not None:
                links.append(
                    {"from": src, "to": dst, "bytes_per_s": link.bytes_per_s, "latency_s": link.latency_s}
                )
    return links


def _by_host(
    one: Device, other: Device, copies: Mapping[str, Device], direct: Mapping[tuple[str, str], Link]
) -> Link | None:
    """Two hops through a host's memory, one after the other; the fastest host."""
    ways = []
    for host in copies.values():
        into, out = direct.get((one.id, host.id)), direct.get((host.id, other.id))
        if host.is_host and into is not None and out is not None:
            rate = 1 / (1 / into.bytes_per_s + 1 / out.bytes_per_s)
            ways.append(Link(one.id, other.id, rate, into.latency_s + out.latency_s, "through the host"))
    return max(ways, key=lambda link: link.bytes_per_s, default=None)


def limits_of(graph: Graph, slo: Mapping[str, float]) -> dict[str, Any]:
    """Service levels as limits: on the whole, and on the ways to prefill and through decode."""
    for name in slo:
        if name not in SLOS:
            raise UnknownNameError("slo", name, SLOS)
    limits: dict[str, Any] = {}
    if "latency_s" in slo:
        limits["latency_s"] = slo["latency_s"]
    paths = []
    read = {edge.dst for edge in graph.edges if not edge.back}
    sources = [stage.id for stage in graph.stages if stage.id not in read]
    if "ttft_s" in slo:
        paths += [
            {"from": source, "to": stage.id, "seconds": slo["ttft_s"]}
            for stage in _in_role(graph, "prefill", "ttft_s")
            for source in sources
            if _reaches(graph, source, stage.id)
        ]
    if "tpot_s" in slo:
        paths += [
            {"from": stage.id, "to": stage.id, "seconds": slo["tpot_s"] * stage.calls}
            for stage in _in_role(graph, "decode", "tpot_s")
        ]
    return {**limits, "paths": paths} if paths else limits


def _in_role(graph: Graph, role: str, slo: str) -> list[Stage]:
    found = [stage for stage in graph.stages if stage.role == role]
    if not found:
        raise UsageError(f"slo {slo}: this run has no {role} stage to hold to it")
    return found


def _reaches(graph: Graph, src: str, dst: str) -> bool:
    seen, pending = {src}, [src]
    while pending:
        stage = pending.pop()
        pending += [e.dst for e in graph.edges if e.src == stage and not e.back and e.dst not in seen]
        seen.update(pending)
    return dst in seen
