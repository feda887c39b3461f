"""Latency by local search: stretches of the graph move while the makespan falls; for graphs no program takes.

A good start for the exact program, not a proof. The dice are the same on every run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

from gimlet_lab.advisor.instance import Instance, at_most

#: Moves tried for each unit, and in all.
TRIES, MOST_TRIES = 3_000, 3_000_000
#: Units that move together at most.
STRETCH = 20
#: Moves between two looks at the clock, and between two looks at the order.
PAUSE, REORDER = 50, 400
#: How much worse, of the whole, a move may make things at first and at last.
HOT, COLD = 0.007, 0.00005
#: Units between two snapshots of a schedule.
SNAPSHOT = 32

#: One tensor as its reader sees it: producer, what is paid by message, what by byte, and both by way.
_Read = tuple[int, float, float, list[list[float]], list[list[float]]]


def searchable(instance: Instance) -> bool:
    """Whether a schedule is just an order of units: nothing shared, no queues, no limits but memory."""
    limits = instance.limits
    limited = bool(limits.paths) or not (limits.latency_s is limits.usd is limits.usd_per_hour is None)
    return not (
        limited
        or instance.contiguous
        or instance.counted
        or any(m.parallel or m.resources for m in instance.machines.values())
        or any(wire.exclusive for wire in instance.wires.values())
    )


def search(
    instance: Instance, begin: Mapping[str, str], order: Sequence[str], go_on: Callable[[], bool]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The best placement and order met by annealing from an allowed one of a :func:`searchable` instance.

    Parameters
    ----------
    begin : mapping of unit to option
    order : sequence of unit
        Producers before readers.
    go_on : callable
        Whether there is time left.
    """
    state = _Schedule(instance, begin, order)
    dice = random.Random(0)  # noqa: S311 - no secret
    tries = min(MOST_TRIES, TRIES * len(instance.units))
    best = state.snapshot()
    for turn in range(tries):
        if turn % PAUSE == 0 and not go_on():
            break
        if turn % REORDER == 0:
            state.reorder()
        if state.makespan < best[0] * (1 - 1e-9):
            best = state.snapshot()
        heat = HOT * (COLD / HOT) ** (turn / tries)
        unit = state.critical(dice) if dice.random() < 0.7 else dice.randrange(len(state.names))
        device = state.target(unit, dice)
        if device == state.place[unit]:
            continue
        threshold = state.makespan * (1 - heat * math.log(1 - dice.random()))
        state.move(state.stretch(unit, dice), device, threshold)
    state.reorder()
    if state.makespan < best[0] * (1 - 1e-9):
        best = state.snapshot()
    _, place, ordered = best
    keys = {name: state.key[i][place[i]] for i, name in enumerate(state.names)}
    return keys, tuple(state.names[i] for i in ordered)


class _Schedule:
    """A placement, an order and the times they make; units and devices by number."""

    def __init__(self, instance: Instance, begin: Mapping[str, str], order: Sequence[str]) -> None:
        self.names = list(instance.units)
        number = {name: i for i, name in enumerate(self.names)}
        devices = list(instance.machines)
        at = {name: d for d, name in enumerate(devices)}
        self.work = [[math.inf] * len(devices) for _ in self.names]
        self.key = [[""] * len(devices) for _ in self.names]
        self._bytes = [[0.0] * len(devices) for _ in self.names]
        for i, unit in enumerate(instance.units.values()):
            for key, option in unit.options.items():
                d, seconds = at[option.device], unit.work_s(key)
                if seconds < self.work[i][d]:
                    self.work[i][d], self.key[i][d] = seconds, key
                    self._bytes[i][d] = option.memory_bytes
        self._weights = [list(unit.weights.items()) for unit in instance.units.values()]
        self._room = [machine.memory_bytes for machine in instance.machines.values()]
        self._friends = [[i] for i in range(len(self.names))]
        for members in instance.groups.values():
            for member in members:
                self._friends[number[member]] = [number[m] for m in members]
        self.reads, self.near = _reads(instance, number, devices)
        self.readers: list[list[tuple[int, _Read]]] = [[] for _ in self.names]
        for i, reads in enumerate(self.reads):
            for read in reads:
                self.readers[read[0]].append((i, read))
        self.place = [at[instance.units[name].options[begin[name]].device] for name in self.names]
        self._used = [0.0] * len(devices)
        self._holders: dict[tuple[int, str], int] = {}
        for i, d in enumerate(self.place):
            self._hold(i, d, 1)
        least = [min(row) for row in self.work]
        self._tail = [0.0] * len(self.names)
        topological = [number[name] for name in instance.order]
        for i in reversed(topological):
            self._tail[i] = max((least[j] + self._tail[j] for j, _ in self.readers[i]), default=0.0)
        self._topological = topological
        self.end = [0.0] * len(self.names)
        self.why = [-1] * len(self.names)
        self.makespan = math.inf
        self._arrange([number[name] for name in order])

    def snapshot(self) -> tuple[float, list[int], list[int]]:
        return self.makespan, list(self.place), list(self.order)

    def critical(self, dice: random.Random) -> int:
        """A unit that the makespan hangs on."""
        if not self._chain:
            unit = max(range(len(self.end)), key=self.end.__getitem__)
            while unit >= 0:
                self._chain.append(unit)
                unit = self.why[unit]
        return dice.choice(self._chain)

    def target(self, unit: int, dice: random.Random) -> int:
        """Where a neighbour runs, or anywhere."""
        if self.near[unit] and dice.random() < 0.6:
            return self.place[dice.choice(self.near[unit])]
        return dice.randrange(len(self._room))

    def stretch(self, unit: int, dice: random.Random) -> list[int]:
        """A unit and, more often than not, some around it on the same device; groups whole."""
        found, known = list(self._friends[unit]), set(self._friends[unit])
        most = 1 if dice.random() < 0.35 else dice.randint(2, STRETCH)
        here = self.place[unit]
        for member in found:
            if len(found) >= most:
                break
            for other in self.near[member]:
                if len(found) < most and other not in known and self.place[other] == here:
                    more = [friend for friend in self._friends[other] if friend not in known]
                    known.update(more)
                    found += more
        return found

    def move(self, units: Sequence[int], device: int, threshold: float) -> bool:
        """Place units elsewhere where memory allows and the makespan stays below a threshold."""
        moved = [(i, self.place[i]) for i in units if self.place[i] != device]
        if any(self.work[i][device] == math.inf for i, _ in moved):
            return False
        for i, before in moved:
            self._hold(i, before, -1)
            self._hold(i, device, 1)
            self.place[i] = device
        room = self._room[device]
        fits = room is None or at_most(self._used[device], room)
        if moved and fits and self._simulate(min(self._position[i] for i, _ in moved), threshold):
            return True
        for i, before in moved:
            self._hold(i, device, -1)
            self._hold(i, before, 1)
            self.place[i] = before
        return False

    def reorder(self) -> None:
        """Order by the longest way to the end where that is better."""
        rank = [0.0] * len(self.names)
        place = self.place
        for i in reversed(self._topological):
            a = place[i]
            longest = 0.0
            for j, (_, once, by_byte, delay, pace) in self.readers[i]:
                b = place[j]
                way = rank[j] + (once * delay[a][b] + by_byte * pace[a][b] if a != b else 0.0)
                longest = max(longest, way)
            rank[i] = longest + self.work[i][a]
        position = {unit: p for p, unit in enumerate(self._topological)}
        self._arrange(sorted(self._topological, key=lambda i: (-rank[i], position[i])), self.makespan)

    def _arrange(self, order: list[int], threshold: float = math.inf) -> None:
        known = getattr(self, "order", None), getattr(self, "_position", None), getattr(self, "_marks", None)
        self.order = order
        self._position = [0] * len(order)
        for position, unit in enumerate(order):
            self._position[unit] = position
        self._marks: list[tuple[list[float], list[int]]] = [([0.0] * len(self._room), [-1] * len(self._room))]
        if not self._simulate(0, threshold):
            self.order, self._position, self._marks = known  # type: ignore[assignment]

    def _simulate(self, begin: int, threshold: float) -> bool:
        """Times from a position on; nothing is changed, and False, where the threshold cannot be kept."""
        mark = begin // SNAPSHOT
        first = mark * SNAPSHOT
        free, last = list(self._marks[mark][0]), list(self._marks[mark][1])
        marks = self._marks[: mark + 1]
        end, why = list(self.end), list(self.why)
        place, work, tail, reads, order = self.place, self.work, self._tail, self.reads, self.order
        for position in range(first, len(order)):
            if position % SNAPSHOT == 0 and position > first:
                marks.append((list(free), list(last)))
            i = order[position]
            b = place[i]
            start, cause = free[b], last[b]
            for j, once, by_byte, delay, pace in reads[i]:
                there = end[j]
                a = place[j]
                if a != b:
                    there += once * delay[a][b] + by_byte * pace[a][b]
                if there > start:
                    start, cause = there, j
            done = start + work[i][b]
            if done + tail[i] > threshold:
                return False
            end[i], why[i] = done, cause
            free[b], last[b] = done, i
        self.end, self.why, self._marks = end, why, marks
        self.makespan = max(free)
        self._chain: list[int] = []
        return True

    def _hold(self, unit: int, device: int, sign: int) -> None:
        self._used[device] += sign * self._bytes[unit][device]
        for block, size in self._weights[unit]:
            known = self._holders.get((device, block), 0)
            self._holders[device, block] = known + sign
            if known == 0 or known + sign == 0:
                self._used[device] += sign * size


def _reads(
    instance: Instance, number: Mapping[str, int], devices: Sequence[str]
) -> tuple[list[list[_Read]], list[list[int]]]:
    """What each unit reads, and its neighbours."""
    n = len(devices)
    linked, pace = [[0.0] * n for _ in devices], [[0.0] * n for _ in devices]
    fixed = [[0.0] * n for _ in devices]
    for a, src in enumerate(devices):
        for b, dst in enumerate(devices):
            if a == b:
                continue
            if instance.through_host:
                fixed[a][b] = float((not instance.machines[src].host) + (not instance.machines[dst].host))
                linked[a][b] = fixed[a][b]
                continue
            wire = instance.wires.get((src, dst))
            if wire is None:
                fixed[a][b] = linked[a][b] = math.inf
                continue
            fixed[a][b] = 1.0
            linked[a][b] = wire.latency_s if wire.seconds is None else wire.seconds
            if wire.seconds is None and wire.bytes_per_s:
                pace[a][b] = 1 / wire.bytes_per_s
    nothing = [[0.0] * n for _ in devices]
    reads: list[list[_Read]] = [[] for _ in number]
    near: list[dict[int, None]] = [{} for _ in number]
    for tensor in instance.tensors:
        producer = number[tensor.src]
        if tensor.seconds is not None or instance.through_host:
            read: _Read = (producer, max((tensor.seconds or 0.0) * tensor.calls, 1e-300), 0.0, fixed, nothing)
        else:
            read = (producer, tensor.calls, tensor.bytes * tensor.calls, linked, pace)
        for reader in tensor.readers:
            mine = number[reader]
            reads[mine].append(read)
            near[producer][mine] = near[mine][producer] = None
    return reads, [list(ends) for ends in near]
