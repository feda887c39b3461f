"""A smaller instance with the same optimum: what must or may as well lie together becomes one unit.

Only for throughput, where no schedule tells the members of a unit apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gimlet_lab.advisor.instance import Instance, Option, Tensor, Unit, at_most


@dataclass(frozen=True)
class Contraction:
    """An instance of merged units.

    Attributes
    ----------
    instance : Instance
        Its optimum is that of the original.
    members : mapping of unit to tuple of str
        The original units.
    """

    instance: Instance
    members: Mapping[str, tuple[str, ...]]
    original: Instance

    def expand(self, assignment: Mapping[str, str]) -> dict[str, str]:
        """A placement of the original units."""
        found = {}
        for name, members in self.members.items():
            key = assignment[name]
            device = self.instance.units[name].options[key].device
            for member in members:
                options = self.original.units[member].options
                found[member] = key if len(members) == 1 else _only(options, device)
        return {name: found[name] for name in self.original.units}

    def shrink(self, assignment: Mapping[str, str]) -> dict[str, str] | None:
        """The same placement of the merged units; None where it tears one apart."""
        found = {}
        for name, members in self.members.items():
            places = {self.original.units[m].options[assignment[m]].device for m in members}
            if len(places) > 1:
                return None
            found[name] = assignment[members[0]] if len(members) == 1 else places.pop()
        return found


def contract(instance: Instance) -> Contraction:
    """Merge groups, circles of contiguous data flow, and units without work into their only neighbour.

    Where a merged unit would have a choice of variants, or a limit looks at times, nothing is merged.
    """
    limits = instance.limits
    clusters = _Clusters(instance.units)
    for members in instance.groups.values():
        clusters.join(members)
    if limits.latency_s is None and not limits.paths:
        for circle in _circles(instance, clusters):
            clusters.join(circle)
        if not limited(instance) and _roomy(instance):
            _join_idle(instance, clusters)
        found = _merged(instance, clusters)
        if found is not None:
            return found
    return Contraction(instance, {name: (name,) for name in instance.units}, instance)


def limited(instance: Instance) -> bool:
    """Whether there is any limit but memory."""
    limits = instance.limits
    return bool(limits.paths) or not (limits.latency_s is limits.usd is limits.usd_per_hour is None)


class _Clusters:
    """Disjoint sets of units, each known by one of them."""

    def __init__(self, units: Iterable[str]) -> None:
        self.of = {unit: unit for unit in units}
        self.members = {unit: [unit] for unit in self.of}

    def join(self, units: Sequence[str]) -> None:
        home = self.of[units[0]]
        for unit in units[1:]:
            other = self.of[unit]
            if other != home:
                moved = self.members.pop(other)
                self.members[home] += moved
                self.of.update(dict.fromkeys(moved, home))


def _circles(instance: Instance, clusters: _Clusters) -> list[list[str]]:
    """Clusters whose data flows in a circle (Tarjan): they can only be contiguous on one device."""
    after: dict[str, list[str]] = {name: [] for name in clusters.members}
    for a, b in instance.flows:
        after[clusters.of[a]].append(clusters.of[b])
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    found: list[list[str]] = []
    for root in after:
        if root in index:
            continue
        work = [(root, iter(after[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, below = work[-1]
            child = next(below, None)
            if child is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    circle = stack[stack.index(node) :]
                    del stack[-len(circle) :]
                    on_stack -= set(circle)
                    found.append(circle)
            elif child not in index:
                index[child] = low[child] = len(index)
                stack.append(child)
                on_stack.add(child)
                work.append((child, iter(after[child])))
            elif child in on_stack:
                low[node] = min(low[node], index[child])
    return [circle for circle in found if len(circle) > 1]


def _roomy(instance: Instance) -> bool:
    """Whether memory can never run out: everything fits on each device."""
    blocks: dict[str, float] = {}
    for unit in instance.units.values():
        blocks.update(unit.weights)
    total = sum(max(o.memory_bytes for o in unit.options.values()) for unit in instance.units.values())
    total += sum(blocks.values())
    return all(m.memory_bytes is None or at_most(total, m.memory_bytes) for m in instance.machines.values())


def _join_idle(instance: Instance, clusters: _Clusters) -> None:
    """A cluster that takes no time and talks to one other only is best off with it."""
    near: dict[str, set[str]] = {name: set() for name in clusters.members}
    for a, b in [(t.src, r) for t in instance.tensors for r in t.readers] + list(instance.flows):
        one, other = clusters.of[a], clusters.of[b]
        if one != other:
            near[one].add(other)
            near[other].add(one)
    devices = {name: _devices(instance, members) for name, members in clusters.members.items()}
    idle = {
        name
        for name, members in clusters.members.items()
        if all(o.seconds == 0 for m in members for o in instance.units[m].options.values())
    }
    pending = list(near)
    while pending:
        name = pending.pop()
        if name not in idle or name not in clusters.members or len(near[name]) != 1:
            continue
        (other,) = near[name]
        if devices[other] <= devices[name]:
            clusters.join([other, name])
            near[other].discard(name)
            pending.append(other)


def _devices(instance: Instance, members: Sequence[str]) -> set[str]:
    """Where all of them can run."""
    return set.intersection(*({o.device for o in instance.units[m].options.values()} for m in members))


def _only(options: Mapping[str, Option], device: str) -> str:
    return next(key for key, option in options.items() if option.device == device)


def _merged(instance: Instance, clusters: _Clusters) -> Contraction | None:
    rank = {unit: position for position, unit in enumerate(instance.order)}
    name_of: dict[str, str] = {}
    members: dict[str, tuple[str, ...]] = {}
    for cluster in clusters.members.values():
        ordered = tuple(sorted(cluster, key=rank.__getitem__))
        members[ordered[0]] = ordered
        name_of.update(dict.fromkeys(ordered, ordered[0]))
    members = dict(sorted(members.items(), key=lambda item: rank[item[0]]))
    units: dict[str, Unit] = {}
    for name, together in members.items():
        if len(together) == 1:
            units[name] = replace(instance.units[name], colocate=None, backward=False)
            continue
        options = {}
        shared = _devices(instance, together)
        if not shared or any(
            len({o.device for o in instance.units[m].options.values()}) < len(instance.units[m].options)
            for m in together
        ):
            return None
        for device in instance.machines:
            if device in shared:
                parts = [
                    (u, u.options[_only(u.options, device)]) for u in (instance.units[m] for m in together)
                ]
                options[device] = Option(
                    key=device,
                    device=device,
                    seconds=sum(u.calls * o.seconds for u, o in parts),
                    memory_bytes=sum(o.memory_bytes for _, o in parts),
                    usd=sum(u.calls * o.usd for u, o in parts),
                    joules=sum(u.calls * o.joules for u, o in parts),
                )
        weights = {block: size for m in together for block, size in instance.units[m].weights.items()}
        units[name] = Unit(name, 1.0, options, weights=weights)
    flows = {(name_of[a], name_of[b]) for a, b in instance.flows if name_of[a] != name_of[b]}
    tensors = _tensors(instance, name_of)
    smaller = replace(instance, units=units, tensors=tensors, flows=frozenset(flows))
    return Contraction(smaller, members, instance)


def _tensors(instance: Instance, name_of: Mapping[str, str]) -> tuple[Tensor, ...]:
    """Tensors between merged units; through the host those with the same ends add up to one."""
    found: dict[object, Tensor] = {}
    for index, tensor in enumerate(instance.tensors):
        src = name_of[tensor.src]
        readers = tuple(dict.fromkeys(name_of[r] for r in tensor.readers if name_of[r] != src))
        if not readers:
            continue
        moved = replace(tensor, src=src, name=f"{index}", readers=readers)
        if not instance.through_host:
            found[index] = moved
            continue
        took = (tensor.seconds or 0.0) * tensor.calls
        ends = (src, frozenset(readers))
        known = found.get(ends)
        added = took + ((known.seconds or 0.0) if known else 0.0)
        found[ends] = replace(known or moved, seconds=added, calls=1.0)
    return tuple(found.values())
