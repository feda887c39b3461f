"""When things happen, by the rules of the contract, once it is said where they run and in which order."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from gimlet_lab.advisor.instance import Instance, Tensor
from gimlet_lab.errors import UsageError


def destinations(tensor: Tensor, device: Mapping[str, str]) -> tuple[str, ...]:
    """Other devices that read a tensor: it crosses to each of them once."""
    return tuple(dict.fromkeys(device[r] for r in tensor.readers if device[r] != device[tensor.src]))


def work(instance: Instance, assignment: Mapping[str, str], device: Mapping[str, str]) -> dict[str, float]:
    """Seconds of work of each device."""
    load = dict.fromkeys(instance.machines, 0.0)
    for name, unit in instance.units.items():
        load[device[name]] += unit.work_s(assignment[name])
    return load


def _first_come(instance: Instance, assignment: Mapping[str, str], device: Mapping[str, str]) -> list[str]:
    """First come, first served: always the unit that can start first; of equals, the one listed first."""
    rank = {unit: position for position, unit in enumerate(instance.units)}
    waiting = {unit: len(producers) for unit, producers in instance.producers.items()}
    feeds: dict[str, list[tuple[str, float]]] = {unit: [] for unit in instance.units}
    for tensor in instance.tensors:
        for reader in tensor.readers:
            delay = instance.crossing_s(tensor, device[tensor.src], device[reader]) or 0.0
            feeds[tensor.src].append((reader, delay))
    used = tuple(dict.fromkeys(device.values()))
    rivals = {one: [other for other in used if instance.conflict(one, other)] for one in used}
    free = dict.fromkeys(used, 0.0)
    arrival = dict.fromkeys(instance.units, 0.0)
    ready = [(0.0, rank[unit], unit) for unit, count in waiting.items() if not count]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        known_s, position, unit = heapq.heappop(ready)
        start = max(arrival[unit], free[device[unit]])
        if start > known_s:
            heapq.heappush(ready, (start, position, unit))
            continue
        order.append(unit)
        end = start + instance.units[unit].work_s(assignment[unit])
        for rival in rivals[device[unit]]:
            free[rival] = max(free[rival], end)
        for reader, delay in feeds[unit]:
            arrival[reader] = max(arrival[reader], end + delay)
        for reader in instance.readers[unit]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, (arrival[reader], rank[reader], reader))
    return order


def _rivals_before(
    instance: Instance, device: Mapping[str, str], order: Sequence[str]
) -> dict[str, list[str]]:
    """For each unit, those that must have ended before it because they take its device first."""
    before: dict[str, list[str]] = {}
    on: dict[str, list[str]] = {}
    used = tuple(dict.fromkeys(device.values()))
    for unit in order:
        place = device[unit]
        before[unit] = []
        for other in used:
            if instance.conflict(place, other):
                earlier = on.get(other, [])
                # One at a time: behind the last one of them, all are done.
                alone = instance.conflict(other, other)
                before[unit] += earlier[-1:] if alone else earlier
        on.setdefault(place, []).append(unit)
    return before


def simulate(
    instance: Instance,
    assignment: Mapping[str, str],
    device: Mapping[str, str],
    order: Sequence[str] | None,
) -> tuple[dict[str, float], dict[str, float], str | None]:
    """Run the placement, event by event.

    Ends are visited in time, so that transfers over an exclusive link go in the order in which their
    producers end; of equals, in the order of the schedule, then of the edges.
    """
    order = _first_come(instance, assignment, device) if order is None else order
    before = _rivals_before(instance, device, order)
    rank = {unit: position for position, unit in enumerate(order)}
    made: dict[str, list[Tensor]] = {unit: [] for unit in instance.units}
    waiting = {unit: len(rivals) for unit, rivals in before.items()}
    followers: dict[str, list[str]] = {unit: [] for unit in instance.units}
    for tensor in instance.tensors:
        made[tensor.src].append(tensor)
        for reader in tensor.readers:
            waiting[reader] += 1
    for unit, rivals in before.items():
        for rival in rivals:
            followers[rival].append(unit)

    earliest = dict.fromkeys(instance.units, 0.0)
    start: dict[str, float] = {}
    end: dict[str, float] = {}
    ends: list[tuple[float, int, str]] = []
    link_free: dict[tuple[str, str], float] = {}

    def release(unit: str, at_s: float) -> None:
        earliest[unit] = max(earliest[unit], at_s)
        waiting[unit] -= 1
        if waiting[unit] == 0:
            begin(unit)

    def begin(unit: str) -> None:
        start[unit] = earliest[unit]
        end[unit] = earliest[unit] + instance.units[unit].work_s(assignment[unit])
        heapq.heappush(ends, (end[unit], rank[unit], unit))

    for unit, count in list(waiting.items()):
        if not count:
            begin(unit)
    while ends:
        now, _, unit = heapq.heappop(ends)
        for follower in followers[unit]:
            release(follower, now)
        for tensor in made[unit]:
            arrival = {device[unit]: now}
            for dst in destinations(tensor, device):
                seconds = instance.crossing_s(tensor, device[unit], dst) or 0.0
                ends_of = (device[unit], dst)
                wire = None if instance.through_host else instance.wires.get(ends_of)
                begins = now
                if wire is not None and wire.exclusive:
                    begins = max(now, link_free.get(ends_of, 0.0))
                    link_free[ends_of] = begins + seconds
                arrival[dst] = begins + seconds
            for reader in tensor.readers:
                release(reader, arrival[device[reader]])
    if len(end) < len(instance.units):
        stuck = ", ".join(unit for unit in order if unit not in end)
        return {}, {}, f"the schedule contradicts the edges: {stuck} wait for each other"
    return start, end, None


def blocks(
    instance: Instance,
    assignment: Mapping[str, str],
    device: Mapping[str, str],
    order: Sequence[str] | None,
) -> tuple[dict[str, float], dict[str, float], str | None]:
    """Timing where each device that is not a host runs all its units as one block.

    Blocks that may not run at the same time take turns in the order in which their first units do.
    """
    if not instance.through_host:
        raise UsageError("contiguous latency over direct links is not supported yet; transfer 'host' is")
    block = {u: f"unit {u}" if instance.machines[d].host else f"device {d}" for u, d in device.items()}
    members: dict[str, list[str]] = {}
    for unit in order or instance.order:
        members.setdefault(block[unit], []).append(unit)
    length = {b: sum(instance.units[u].work_s(assignment[u]) for u in units) for b, units in members.items()}
    needs: dict[str, set[str]] = {name: set() for name in members}
    for tensor in instance.tensors:
        elsewhere = destinations(tensor, device)
        for reader in tensor.readers:
            if block[reader] != block[tensor.src]:
                needs[block[reader]].add(block[tensor.src])
        if elsewhere:
            length[block[tensor.src]] += instance.out_s(tensor, device[tensor.src])
        for dst in elsewhere:
            if not instance.machines[dst].host:
                length[f"device {dst}"] += instance.in_s(tensor, dst)
    turns = layers(needs)
    place = {name: device[units[0]] for name, units in members.items()}
    if turns is not None:
        taken: list[str] = []
        for name in members if order is not None else turns:
            needs[name] |= {other for other in taken if instance.conflict(place[name], place[other])}
            taken.append(name)
        turns = layers(needs)
    if turns is None:
        among = ", ".join(dict.fromkeys(place.values()))
        return {}, {}, f"contiguous: data flows in a circle among the blocks of {among}"
    begin: dict[str, float] = {}
    done: dict[str, float] = {}
    for name in turns:
        begin[name] = max((done[other] for other in needs[name]), default=0.0)
        done[name] = begin[name] + length[name]
    return {u: begin[block[u]] for u in device}, {u: done[block[u]] for u in device}, None


def layers(needs: Mapping[str, set[str]]) -> list[str] | None:
    """Names so that what each needs comes first; None where that cannot be."""
    placed: dict[str, None] = {}
    left = list(needs)
    while left:
        ready = [name for name in left if needs[name] <= placed.keys()]
        if not ready:
            return None
        placed.update(dict.fromkeys(ready))
        left = [name for name in left if name not in placed]
    return list(placed)


def loads(
    instance: Instance, assignment: Mapping[str, str], device: Mapping[str, str], count: Mapping[str, int]
) -> tuple[dict[str, float], list[str]]:
    """Seconds of each device, each shared resource and each direct link, per request."""
    unbounded = [name for name in count if instance.machines[name].max_count is None]
    if unbounded:
        raise UsageError(
            f"throughput with any number of {unbounded[0]} (max_count null) is not supported yet"
        )
    busy = work(instance, assignment, device)
    links: dict[str, float] = {}
    for tensor in instance.tensors:
        src = device[tensor.src]
        elsewhere = destinations(tensor, device)
        if instance.through_host:
            if elsewhere:
                busy[src] += instance.out_s(tensor, src)
            for dst in elsewhere:
                busy[dst] += instance.in_s(tensor, dst)
            continue
        for dst in elsewhere:
            name = f"{src} → {dst}"
            links[name] = links.get(name, 0.0) + (instance.crossing_s(tensor, src, dst) or 0.0)
    load = {name: seconds / max(count.get(name, 1), 1) for name, seconds in busy.items()}
    shared: dict[str, float] = {}
    for name, seconds in load.items():
        for resource in instance.machines[name].resources:
            shared[resource] = shared.get(resource, 0.0) + seconds
    violations = []
    if instance.contiguous:
        circle = _device_circle(instance, device)
        if circle:
            violations.append(f"contiguous: data flows in a circle among {', '.join(circle)}")
    return load | {f"resource {name}": s for name, s in shared.items()} | links, violations


def flows(instance: Instance) -> frozenset[tuple[str, str]]:
    """Between which units data must flow forward where the problem is contiguous.

    Backward units follow their group; one whose group has no forward unit counts as a forward unit, and what
    flows between it and other backward units counts the other way round.
    """
    follows = {
        member
        for members in instance.groups.values()
        for member in members
        if instance.units[member].backward and not all(instance.units[m].backward for m in members)
    }
    found = set()
    for tensor in instance.tensors:
        for reader in tensor.readers:
            backward = instance.units[tensor.src].backward, instance.units[reader].backward
            if backward == (False, False):
                found.add((tensor.src, reader))
            elif backward == (True, True) and not (tensor.src in follows and reader in follows):
                found.add((reader, tensor.src))
    return frozenset(found)


def _device_circle(instance: Instance, device: Mapping[str, str]) -> list[str]:
    needs: dict[str, set[str]] = {name: set() for name in instance.machines}
    for src, dst in instance.flows:
        if device[src] != device[dst]:
            needs[device[dst]].add(device[src])
    return [] if layers(needs) is not None else sorted(name for name in needs if needs[name])
