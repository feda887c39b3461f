"""Graph, fleet and a rate ► problem: how many of which devices to rent for each role.

A device of the problem is a *pool*: copies of one kind for one purpose. ``h100-sxm/prefill`` reads prompts,
``mi300x/decode`` makes tokens, ``h100-sxm/prefill+decode-tp2-b16`` does both on the same engines (one pool a
configuration, since both roles must agree on it), ``l4`` runs the agent's other modules, ``cpu`` its Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gimlet_lab.advisor.build import Question, StageEstimate, edges_of, limits_of
from gimlet_lab.advisor.pairs import kind
from gimlet_lab.advisor.schema import PROBLEM
from gimlet_lab.advisor.served import Served, resized, retime, served_models, turns_of
from gimlet_lab.costs import roles
from gimlet_lab.costs.roles import Way
from gimlet_lab.errors import UnknownNameError, UsageError
from gimlet_lab.model import Device, Estimate, Fleet, Graph, Stage

#: Rates and delays between pools: by the network, since copies need not share a box.
NETWORK_BYTES_PER_S, NETWORK_LATENCY_S = 1.25e9, 50e-6

OBJECTIVES = ("cost", "energy")


@dataclass
class _Draft:
    """The problem in the making."""

    pools: dict[str, dict[str, Any]] = field(default_factory=dict)
    kind_of: dict[str, Device] = field(default_factory=dict)
    options: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    estimates: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def pool(self, name: str, device: Device, most: int | None) -> None:
        if name in self.pools:
            return
        entry: dict[str, Any] = {"id": name, "parallel": True, "host": device.is_host, "max_count": most}
        usable = roles.usable_bytes(device)
        if usable is not None:
            entry["memory_bytes"] = usable
        if device.usd_per_hour is not None:
            entry["usd_per_hour"] = device.usd_per_hour.value
        self.pools[name] = entry
        self.kind_of[name] = device

    def option(
        self, stage: str, key: str, estimate: Estimate, load: float, calls_per_s: float, **rest: float
    ) -> None:
        """A way to run a stage that keeps ``load`` devices busy with so many calls a second."""
        device = self.kind_of[key.partition("@")[0]]
        entry: dict[str, Any] = {
            "seconds": estimate.seconds,
            "seconds_high": max(estimate.high, estimate.seconds),
            "load": load,
            **rest,
        }
        if device.usd_per_hour is not None:
            entry["usd"] = load * device.usd_per_hour.value / 3600 / calls_per_s
        if device.max_w is not None:
            entry["joules"] = load * device.max_w.value / calls_per_s
        self.options.setdefault(stage, {})[key] = entry
        self.estimates.setdefault(stage, {})[key] = estimate


def size(
    graph: Graph,
    fleet: Fleet,
    *,
    rate_per_s: float,
    measured_on: Device | None,
    objective: str,
    estimate: StageEstimate,
    slo: Mapping[str, float] | None = None,
    max_usd_per_hour: float | None = None,
    pin: Mapping[str, str] | None = None,
    forbid: Mapping[str, Sequence[str] | str] | None = None,
    robust: bool = False,
    time_limit_s: float = 30.0,
    model: str | Path | Mapping[str, Any] | None = None,
    dtype: str | None = None,
    isl: int | None = None,
    osl: int | None = None,
) -> Question:
    """Ask how many devices of which kind each part of an agent should be given at a rate of requests.

    Prefill and decode are sized with their batch and tensor parallelism, apart (any pair of kinds, the KV
    cache moving over the network) or together. Other modules and Python take the share of a device that they
    keep busy. A catalogue device without a count may be rented in any number.

    Parameters
    ----------
    rate_per_s : float
        Requests of the agent (the cell's work) a second.
    model : str, Path or mapping, optional
        The model served in place of the one that the run shows.
    dtype : str, optional
        What it is served in; what it ran in where left out.
    isl, osl : int, optional
        Tokens in and out of one call of the model; those of the run where left out.

    Raises
    ------
    UsageError
        Where something has nowhere to run, or a figure is missing.
    """
    if objective not in OBJECTIVES:
        raise UsageError(f"a rate is planned for under cost or energy, not {objective}")
    if not rate_per_s > 0:
        raise UsageError(f"rate_per_s must be above 0, not {rate_per_s!r}")
    if not graph.stages:
        raise UsageError("nothing to place: the run has no stages (its cell called no function and no model)")
    hosts = [device for device in fleet.devices if device.is_host]
    served = served_models(graph, rate_per_s, model=model, dtype=dtype, isl=isl, osl=osl)
    draft = _Draft()
    kinds = _kinds(fleet, objective, draft.notes)
    limited = {device.id for device, most in kinds if most is not None}
    for position, one in enumerate(served):
        # Copies that are counted are given to one model, so that its pools cannot take more than there are.
        open_kinds = [(d, most) for d, most in kinds if position == 0 or d.id not in limited]
        _serve(draft, one, open_kinds, rate_per_s, robust=robust)
    in_roles = {stage.id for one in served for stage in (one.prefill, one.decode)}
    for stage in graph.stages:
        if stage.id not in in_roles:
            _run(draft, stage, hosts, kinds, measured_on, estimate, rate_per_s, bool(served), robust=robust)
        if stage.id not in draft.options:
            names = ", ".join(device.id for device in fleet.devices)
            raise UsageError(f"stage {stage.id!r} can run on none of {names}{_why_not(stage, in_roles)}")
    _check_rules(graph, draft, pin or {}, forbid or {})
    edges, unknown = edges_of(resized(graph, served))
    draft.notes += [f"{edge}: bytes unknown, planned as 0" for edge in unknown]
    if robust:
        draft.notes.append("Robust: every estimate is taken at its high end.")
    limits = limits_of(graph, slo or {})
    for one in served:
        retime(limits, one, (slo or {}).get("tpot_s"))
    if max_usd_per_hour is not None:
        limits["usd_per_hour"] = max_usd_per_hour
    stages = []
    for stage in graph.stages:
        calls = next((turns_of(one) for one in served if one.decode.id == stage.id), stage.calls)
        entry: dict[str, Any] = {"id": stage.id, "calls": calls, "options": draft.options[stage.id]}
        if pin and stage.id in pin:
            entry["pin"] = _matching(pin[stage.id], draft.options[stage.id])
        if forbid and forbid.get(stage.id):
            entry["forbid"] = [
                key for rule in _rules(forbid[stage.id]) for key in _matching(rule, draft.options[stage.id])
            ]
        stages.append(entry)
    problem = {
        "schema": PROBLEM,
        "objective": objective,
        "devices": list(draft.pools.values()),
        "stages": stages,
        "edges": edges,
        "links": _links(draft, served, limited),
        "transfer": "direct",
        "robust": robust,
        "limits": limits,
        "time_limit_s": time_limit_s,
    }
    host = hosts[0].id if hosts else ""
    prompts = {(one.prefill.id, one.decode.id): one.traffic.isl for one in served}
    return Question(problem, draft.estimates, tuple(draft.notes), host, {}, rate_per_s, prompts)


def _kinds(fleet: Fleet, objective: str, notes: list[str]) -> list[tuple[Device, int | None]]:
    """Devices to rent and how many at most; what has no price (or power) cannot be planned with."""
    found = []
    for device in fleet.devices:
        count = fleet.counts.get(device.id, 1)
        most = count if device.live or (count is not None and count > 1) else None
        missing = device.usd_per_hour if objective == "cost" else device.max_w
        if missing is None:
            what = "price" if objective == "cost" else "power"
            if device.is_host:
                notes.append(f"{device.id}: no {what} is known, so what runs there is not in the sum")
            else:
                notes.append(f"{device.id} is left out: no {what} of it is known")
            continue
        found.append((device, most))
    return found


def _serve(
    draft: _Draft, one: Served, kinds: Sequence[tuple[Device, int | None]], rate: float, *, robust: bool
) -> None:
    first, later = one.prefill.id, one.decode.id
    rates = {first: rate * max(one.prefill.calls, 1), later: rate * turns_of(one)}
    for device, most in kinds:
        try:
            ways = (
                roles.prefills(one.model, device, one.dtype, one.traffic, slow=robust),
                roles.decodes(one.model, device, one.dtype, one.traffic, slow=robust),
                roles.together(one.model, device, one.dtype, one.traffic, slow=robust),
            )
        except UsageError as error:
            draft.notes.append(f"{one.model.name} is not served on {device.id}: {error}")
            continue
        if not any(ways):
            draft.notes.append(f"{one.model.name} is not served on {device.id}: it does not fit")
        for stage, role_ways in ((first, ways[0]), (later, ways[1])):
            for way in role_ways:
                pool = f"{device.id}/{stage}"
                draft.pool(pool, device, most)
                found = _of_role(way)
                draft.option(stage, f"{pool}@{way.variant}", found, way.devices, rates[stage], **_held(way))
        for way in ways[2]:
            pool = f"{device.id}/{first}+{later}-{way.variant}"
            draft.pool(pool, device, most)
            assert way.ttft is not None
            assert way.tpot is not None
            # Both roles share the engines: they are counted once, with decode.
            draft.option(first, pool, way.ttft, 0.0, rates[first], devices_used=way.tp)
            draft.option(later, pool, way.tpot, way.devices, rates[later], **_held(way))


def _of_role(way: Way) -> Estimate:
    found = way.ttft or way.tpot
    assert found is not None
    return found


def _held(way: Way) -> dict[str, Any]:
    return {"memory_bytes": way.memory_bytes, "devices_used": way.tp}


def _run(
    draft: _Draft,
    stage: Stage,
    hosts: Sequence[Device],
    kinds: Sequence[tuple[Device, int | None]],
    measured_on: Device | None,
    estimate: StageEstimate,
    rate: float,
    serves: bool,
    *,
    robust: bool,
) -> None:
    """A stage that is not served by an engine: the share of a device that it keeps busy."""
    unlimited = [(d, most) for d, most in kinds if not d.is_host and (most is None or not serves)]
    for device, most in [*((host, None) for host in hosts), *unlimited]:
        if stage.kind != "module" and not device.is_host:
            continue
        found = estimate(stage, device, measured_on)
        if found is None:
            continue
        draft.pool(device.id, device, most)
        busy_s = 0.0 if stage.bound == "wait" else stage.calls * (found.high if robust else found.seconds)
        # Python keeps one core busy, a module all of them; waiting keeps none.
        cores = len(device.cores) or (device.compute_units.value if device.compute_units else 1)
        share = 1.0 if stage.kind == "module" else 1.0 / cores
        memory = float(stage.weight_bytes + max(stage.state_bytes, stage.peak_bytes or 0))
        load = rate * busy_s * share / roles.BUSY
        draft.option(stage.id, device.id, found, load, rate * max(stage.calls, 1), memory_bytes=memory)


def _why_not(stage: Stage, in_roles: set[str]) -> str:
    if stage.id in in_roles:
        return ": the model fits on none of them, or none has a price"
    return ": Python functions need a host, for example cpu" if stage.kind != "module" else ""


def _rules(said: Sequence[str] | str) -> Sequence[str]:
    return (said,) if isinstance(said, str) else said


def _matching(rule: str, options: Mapping[str, Any]) -> list[str]:
    """Options on a kind of device, in a pool, or one option itself."""
    return [key for key in options if key == rule or key.partition("@")[0] == rule or kind(key) == rule]


def _check_rules(
    graph: Graph, draft: _Draft, pin: Mapping[str, str], forbid: Mapping[str, Sequence[str] | str]
) -> None:
    names = [stage.id for stage in graph.stages]
    for rules in (pin, forbid):
        for stage, said in rules.items():
            if stage not in names:
                raise UnknownNameError("stage", stage, names)
            for rule in _rules(said):
                options = draft.options[stage]
                if not _matching(rule, options):
                    known = dict.fromkeys([*map(kind, options), *(k.partition("@")[0] for k in options)])
                    raise UnknownNameError(f"device for {stage}", rule, known)


def _links(draft: _Draft, served: Sequence[Served], limited: set[str]) -> list[dict[str, Any]]:
    """From everywhere to everywhere, but not in or out of engines that do both roles halfway."""
    whole = {
        name: one
        for one in served
        for name in draft.pools
        if name.rpartition("/")[2].startswith(f"{one.prefill.id}+{one.decode.id}-")
    }
    split = {f"{kind}/{s.id}" for kind in limited for one in served for s in (one.prefill, one.decode)}
    in_role = {
        name
        for one in served
        for name in draft.pools
        if name in whole or name.rpartition("/")[2] in (one.prefill.id, one.decode.id)
    }
    links = []
    for src, one in draft.kind_of.items():
        for dst, other in draft.kind_of.items():
            halfway = src in in_role and dst in in_role and (src in whole or dst in whole)
            counted = src in split and dst in split and one.id == other.id
            if src != dst and not halfway and not counted:
                known = [
                    rate.value
                    for rate in (d.network_bytes_per_s or d.link_bytes_per_s for d in (one, other))
                    if rate is not None
                ]
                rate = min(known) if len(known) == 2 else NETWORK_BYTES_PER_S
                links.append({"from": src, "to": dst, "bytes_per_s": rate, "latency_s": NETWORK_LATENCY_S})
    return links
