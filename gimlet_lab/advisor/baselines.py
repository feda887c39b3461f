"""What one would do without a solver: one device, a map by bytes, the fastest each, list scheduling."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gimlet_lab.advisor.instance import Instance, Tensor, at_most
from gimlet_lab.advisor.judge import Verdict, judge

#: m-ETF looks at every ready stage at every step.
MOST_FOR_ETF = 5_000

#: Beyond, only what takes seconds.
MOST_FOR_ALL = 10_000


@dataclass(frozen=True)
class Candidate:
    """A placement by a simple rule, judged; ``verdict`` None where the rule found no placement at all."""

    name: str
    assignment: Mapping[str, str] | None
    order: tuple[str, ...] | None
    verdict: Verdict | None
    why_not: str | None

    @property
    def feasible(self) -> bool:
        """Whether it may be used."""
        return self.verdict is not None and self.verdict.feasible


def candidates(instance: Instance, go_on: Callable[[], bool] = lambda: True) -> list[Candidate]:
    """All baselines of an instance, each judged; of the largest those there is time for, at least one."""
    if len(instance.units) > MOST_FOR_ALL:
        found = [automatic_map(instance)]
        found += [rule(instance) for rule in (heft, split_by_memory) if go_on()]
        return found
    found = [one_device(instance, name) for name in instance.machines]
    found.append(automatic_map(instance))
    found.append(fastest_each(instance))
    found.append(split_by_memory(instance))
    found.append(heft(instance))
    if len(instance.units) <= MOST_FOR_ETF:
        found.append(earliest_task_first(instance))
    return found


def best(found: Sequence[Candidate]) -> Candidate | None:
    """The best feasible one; of equals the first."""
    able = [
        (c.verdict.objective, c)
        for c in found
        if c.feasible and c.verdict and c.verdict.objective is not None
    ]
    return min(able, key=lambda pair: pair[0])[1] if able else None


def placed(
    instance: Instance, name: str, assignment: Mapping[str, str], order: tuple[str, ...] | None = None
) -> Candidate:
    """A placement under a name, judged."""
    verdict = judge(instance, assignment, order)
    return Candidate(name, dict(assignment), order, verdict, "; ".join(verdict.violations) or None)


def one_device(instance: Instance, device: str) -> Candidate:
    """Everything on one device; what cannot run there stays on the first host that takes it."""
    assignment: dict[str, str] = {}
    elsewhere: list[str] = []
    hosts = [name for name, machine in instance.machines.items() if machine.host and name != device]
    for name in instance.units:
        options = _on(instance, name, device)
        if not options:
            elsewhere.append(name)
            options = [key for host in hosts for key in _on(instance, name, host)][:1]
        if not options:
            return Candidate(f"all on {device}", None, None, None, f"{name} cannot run on {device}")
        assignment[name] = min(options, key=instance.units[name].work_s)
    if len(elsewhere) == len(instance.units) and elsewhere:
        return Candidate(f"all on {device}", None, None, None, f"no stage can run on {device}")
    return placed(instance, f"all on {device}", assignment)


def automatic_map(instance: Instance) -> Candidate:
    """What a framework's ``device_map="auto"`` does: fill accelerators by bytes of weights, then hosts.

    Times and transfers play no part (accelerate's ``infer_auto_device_map``). A stage whose weights lie
    somewhere already goes there; one without weights stays on a host.
    """
    name = "automatic map"
    machines = sorted(instance.machines.values(), key=lambda machine: machine.host)
    used = dict.fromkeys(instance.machines, 0.0)
    lies: dict[str, str] = {}
    assignment: dict[str, str] = {}
    for unit_name in instance.order:
        unit = instance.units[unit_name]
        ordered = machines if unit.weights else sorted(machines, key=lambda machine: not machine.host)
        known = next((lies[block] for block in unit.weights if block in lies), None)
        if known is not None:
            ordered = sorted(ordered, key=lambda machine: machine.id != known)
        for machine in ordered:
            options = _on(instance, unit_name, machine.id)
            fresh = sum(size for block, size in unit.weights.items() if lies.get(block) != machine.id)
            room = machine.memory_bytes is None or at_most(used[machine.id] + fresh, machine.memory_bytes)
            if options and room:
                break
        else:
            return Candidate(name, None, None, None, f"the weights of {unit_name} fit nowhere")
        used[machine.id] += fresh
        lies.update(dict.fromkeys(unit.weights, machine.id))
        assignment[unit_name] = min(options, key=unit.work_s)
    return placed(instance, name, assignment)


def fastest_each(instance: Instance) -> Candidate:
    """Each stage (or group) where it alone is fastest, whatever the transfers and the memory."""
    assignment: dict[str, str] = {}
    for members in instance.groups.values():
        devices = _common_devices(instance, members)
        if not devices:
            return Candidate("fastest each", None, None, None, f"no device takes all of {', '.join(members)}")
        place = min(devices, key=lambda d: sum(_fastest(instance, m, d)[0] for m in members))
        assignment.update({member: _fastest(instance, member, place)[1] for member in members})
    return placed(instance, "fastest each", assignment)


def heft(instance: Instance) -> Candidate:
    """Heterogeneous earliest finish time (Topcuoglu et al. 2002), with insertion, memory and groups."""
    name = "HEFT"
    rank = _upward_rank(instance)
    position = {unit: index for index, unit in enumerate(instance.order)}
    machines = instance.machines
    group_of = {member: members for members in instance.groups.values() for member in members}
    rivals = {one: [other for other in machines if instance.conflict(one, other)] for one in machines}
    reads: dict[str, list[int]] = {unit: [] for unit in instance.units}
    for index, tensor in enumerate(instance.tensors):
        for reader in tensor.readers:
            reads[reader].append(index)
    busy: dict[str, list[tuple[float, float]]] = {device: [] for device in machines}
    room = _Room(instance)
    place: dict[str, str] = {}
    end: dict[str, float] = {}
    start: dict[str, float] = {}

    for unit_name in sorted(instance.units, key=lambda u: (-rank[u], position[u])):
        unit, members = instance.units[unit_name], group_of[unit_name]
        choice: tuple[float, float, str] | None = None
        for device in room.devices(members):
            ready: float | None = 0.0
            for index in reads[unit_name]:
                tensor = instance.tensors[index]
                source = instance.units[tensor.src].options[place[tensor.src]].device
                delay = instance.crossing_s(tensor, source, device)
                if delay is None or ready is None:
                    ready = None
                    break
                ready = max(ready, end[tensor.src] + delay)
            if ready is None:
                continue
            seconds, key = _fastest(instance, unit_name, device)
            begin = _gap([busy[rival] for rival in rivals[device]], ready, seconds)
            if choice is None or begin + seconds < choice[0]:
                choice = (begin + seconds, begin, key)
        if choice is None:
            return Candidate(name, None, None, None, f"list scheduling finds no room for {unit_name}")
        end[unit_name], start[unit_name], place[unit_name] = choice
        device = unit.options[place[unit_name]].device
        room.take(members, device)
        bisect.insort(busy[device], (start[unit_name], end[unit_name]))
    order = tuple(sorted(instance.units, key=lambda u: (end[u], start[u], position[u])))
    return placed(instance, name, place, order)


def earliest_task_first(instance: Instance) -> Candidate:
    """Always the stage and the device that can start first, where memory is left (m-ETF, Baechi 2020)."""
    name = "m-ETF"
    group_of = {member: members for members in instance.groups.values() for member in members}
    rivals = {d: [o for o in instance.machines if instance.conflict(d, o)] for d in instance.machines}
    waiting = {unit: len(producers) for unit, producers in instance.producers.items()}
    arrival: dict[str, dict[str, float]] = {unit: dict.fromkeys(instance.machines, 0.0) for unit in waiting}
    made: dict[str, list[Tensor]] = {unit: [] for unit in waiting}
    for tensor in instance.tensors:
        made[tensor.src].append(tensor)
    free = dict.fromkeys(instance.machines, 0.0)
    room = _Room(instance)
    place: dict[str, str] = {}
    ready = {unit: None for unit in instance.units if not waiting[unit]}
    while ready:
        able = [
            (max(arrival[unit][device], *(free[rival] for rival in rivals[device]), 0.0), order, unit, device)
            for order, unit in enumerate(ready)
            for device in room.devices(group_of[unit])
        ]
        begin, _, unit, device = min(able, default=(math.inf, 0, next(iter(ready)), ""))
        if math.isinf(begin):
            return Candidate(name, None, None, None, f"m-ETF finds no room for {unit}")
        del ready[unit]
        seconds, place[unit] = _fastest(instance, unit, device)
        room.take(group_of[unit], device)
        free[device] = begin + seconds
        for tensor in made[unit]:
            for reader in tensor.readers:
                for other, known in arrival[reader].items():
                    delay = instance.crossing_s(tensor, device, other)
                    arrival[reader][other] = max(
                        known, math.inf if delay is None else begin + seconds + delay
                    )
        for reader in instance.readers[unit]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready[reader] = None
    return placed(instance, name, {unit: place[unit] for unit in instance.units}, tuple(place))


def split_by_memory(instance: Instance) -> Candidate:
    """Stages in order, each device getting bytes in proportion to its memory, whatever the times."""
    name = "split by memory"
    unknown = next((m.id for m in instance.machines.values() if m.memory_bytes is None), None)
    if unknown is not None:
        return Candidate(name, None, None, None, f"the memory of {unknown} is not known")
    sizes: dict[str, float] = {}
    seen: set[str] = set()
    for unit in (instance.units[u] for u in instance.order):
        sizes[unit.id] = min(option.memory_bytes for option in unit.options.values())
        sizes[unit.id] += sum(size for block, size in unit.weights.items() if block not in seen)
        seen.update(unit.weights)
    total, capacity = sum(sizes.values()), sum(m.memory_bytes or 0.0 for m in instance.machines.values())
    assignment: dict[str, str] = {}
    group_of = {member: members for members in instance.groups.values() for member in members}
    placed_bytes = 0.0
    for unit_name in instance.order:
        middle = placed_bytes + sizes[unit_name] / 2
        placed_bytes += sizes[unit_name]
        if unit_name in assignment:
            continue
        devices = _common_devices(instance, group_of[unit_name])
        if not devices:
            return Candidate(name, None, None, None, f"no device takes the whole group of {unit_name}")
        end, wanted = 0.0, ""
        for machine in instance.machines.values():
            end += (machine.memory_bytes or 0.0) / capacity * total if capacity else 0.0
            if middle <= end:
                wanted = machine.id
                break
        device = wanted if wanted in devices else devices[0]
        assignment.update({m: _fastest(instance, m, device)[1] for m in group_of[unit_name]})
    return placed(instance, name, assignment)


class _Room:
    """Memory that list scheduling has left; a group is taken in whole with its first unit."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._used = dict.fromkeys(instance.machines, 0.0)
        self._blocks: set[tuple[str, str]] = set()
        self._home: dict[tuple[str, ...], str] = {}
        self._common: dict[tuple[str, ...], list[str]] = {}

    def devices(self, members: tuple[str, ...]) -> list[str]:
        """Where the group is, or may still go."""
        if members in self._home:
            return [self._home[members]]
        if members not in self._common:
            self._common[members] = _common_devices(self._instance, members)
        return [device for device in self._common[members] if self._fits(members, device)]

    def take(self, members: tuple[str, ...], device: str) -> None:
        """Place the group."""
        if members not in self._home:
            self._home[members] = device
            self._used[device] += self._needed(members, device)
            units = self._instance.units
            self._blocks.update((device, block) for member in members for block in units[member].weights)

    def _fits(self, members: tuple[str, ...], device: str) -> bool:
        capacity = self._instance.machines[device].memory_bytes
        return capacity is None or at_most(self._used[device] + self._needed(members, device), capacity)

    def _needed(self, members: tuple[str, ...], device: str) -> float:
        fresh: dict[str, float] = {}
        least = 0.0
        for member in members:
            unit = self._instance.units[member]
            least += min(unit.options[key].memory_bytes for key in _on(self._instance, member, device))
            fresh.update({b: size for b, size in unit.weights.items() if (device, b) not in self._blocks})
        return least + sum(fresh.values())


def _on(instance: Instance, unit: str, device: str) -> list[str]:
    return [key for key, option in instance.units[unit].options.items() if option.device == device]


def _fastest(instance: Instance, unit: str, device: str) -> tuple[float, str]:
    return min((instance.units[unit].work_s(key), key) for key in _on(instance, unit, device))


def _common_devices(instance: Instance, members: Sequence[str]) -> list[str]:
    return [d for d in instance.machines if all(_on(instance, member, d) for member in members)]


def _gap(rivals: Sequence[Sequence[tuple[float, float]]], ready: float, seconds: float) -> float:
    """The earliest time from ``ready`` on when all rivals are idle for so long."""
    begin, settled = ready, False
    while not settled:
        settled = True
        for spans in rivals:
            # The last span that starts before may still run; those after it may come too soon.
            position = max(0, bisect.bisect_right(spans, (begin, begin)) - 1)
            while position < len(spans) and spans[position][0] < begin + seconds:
                if spans[position][1] > begin:
                    begin, settled = spans[position][1], False
                position += 1
    return begin


def _upward_rank(instance: Instance) -> dict[str, float]:
    """Mean work plus the longest mean way to the end, in seconds."""
    devices = list(instance.machines)
    pairs = [(a, b) for a in devices for b in devices]
    rank = dict.fromkeys(instance.units, 0.0)
    by_source: dict[str, list[tuple[float, tuple[str, ...]]]] = {unit: [] for unit in instance.units}
    for tensor in instance.tensors:
        delays = [d for a, b in pairs if (d := instance.crossing_s(tensor, a, b)) is not None]
        by_source[tensor.src].append((sum(delays) / max(len(delays), 1), tensor.readers))
    for name in reversed(instance.order):
        unit = instance.units[name]
        mean = sum(unit.work_s(key) for key in unit.options) / len(unit.options)
        ways = [delay + rank[r] for delay, readers in by_source[name] for r in readers]
        rank[name] = mean + max(ways, default=0.0)
    return rank
