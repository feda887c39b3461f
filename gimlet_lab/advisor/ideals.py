"""Contiguous throughput by dynamic programming over ideals: sets of units that hold all they read from.

A line of devices along which data only flows forward holds, up to any point of it, an ideal. The best way to
fill some devices with an ideal is the best way to fill one device less with a smaller ideal, and the rest on
one device (Tarnawski et al. 2020). Exact where transfers go through the host and the graph has few ideals.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gimlet_lab.advisor.contraction import limited
from gimlet_lab.advisor.instance import TOLERANCE, Instance, Option
from gimlet_lab.advisor.throughput import interchangeable

Floats = npt.NDArray[np.float64]

#: More ideals than this take longer than a person waits.
MOST_IDEALS = 40_000
#: Combinations of devices in use.
MOST_STATES = 256
#: Columns of the products that price a pair of ideals.
MOST_COLUMNS = 4_000
#: Numbers in a block of pairs: about what a cache holds.
BLOCK = 500_000

Continue = Callable[[], bool]


@dataclass(frozen=True)
class Partition:
    """A placement and its largest load; ``complete`` where none is better."""

    assignment: dict[str, str] | None
    value: float
    complete: bool


def partition(instance: Instance, go_on: Continue) -> Partition | None:
    """The best contiguous placement; None where this method does not apply.

    Parameters
    ----------
    go_on : callable
        False when time is up: then what the units' order as it is allows, and not complete.
    """
    kinds = interchangeable(instance)
    states = math.prod(len(kind) + 1 for kind in kinds)
    if not _applies(instance) or states > MOST_STATES:
        return None
    every = _ideals(instance)
    if every is None:
        return None
    line = [0]
    position = {unit: index for index, unit in enumerate(instance.units)}
    for unit in _forward_order(instance):
        line.append(line[-1] | 1 << position[unit])
    first = _search(_Prices(instance, kinds, line), math.inf, lambda: True)
    prices = _Prices(instance, kinds, every)
    if prices.columns > MOST_COLUMNS:
        return None
    best = _search(prices, first.value, go_on)
    return best if best.complete else first


def _applies(instance: Instance) -> bool:
    """Whether a device's load depends on nothing but which two ideals its units lie between."""
    return (
        not limited(instance)
        and instance.through_host
        and not any(machine.resources for machine in instance.machines.values())
        and all(
            len({option.device for option in unit.options.values()}) == len(unit.options)
            for unit in instance.units.values()
        )
        and all(len(members) == 1 for members in instance.groups.values())
    )


def _forward_order(instance: Instance) -> list[str]:
    """Units along the flow, depth first: what belongs together stays together."""
    waiting = dict.fromkeys(instance.units, 0)
    after: dict[str, list[str]] = {unit: [] for unit in instance.units}
    for src, dst in sorted(instance.flows):
        waiting[dst] += 1
        after[src].append(dst)
    ready = [unit for unit in reversed(list(instance.units)) if not waiting[unit]]
    order = []
    while ready:
        unit = ready.pop()
        order.append(unit)
        for reader in after[unit]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return order


def _ideals(instance: Instance) -> list[int] | None:
    """Every ideal as a set of bits; None where there are too many, or where data flows in a circle."""
    position = {unit: index for index, unit in enumerate(instance.units)}
    needs = [0] * len(position)
    after: list[list[int]] = [[] for _ in position]
    for src, dst in instance.flows:
        needs[position[dst]] |= 1 << position[src]
        after[position[src]].append(position[dst])
    if len(_forward_order(instance)) < len(position):
        return None
    ready_of = {0: tuple(index for index, need in enumerate(needs) if not need)}
    pending = [0]
    while pending:
        ideal = pending.pop()
        ready = ready_of[ideal]
        for index in ready:
            larger = ideal | 1 << index
            if larger in ready_of:
                continue
            if len(ready_of) >= MOST_IDEALS:
                return None
            new = (k for k in after[index] if not needs[k] & ~larger)
            ready_of[larger] = (*(k for k in ready if k != index), *new)
            pending.append(larger)
    return list(ready_of)


class _Prices:
    """What a device pays that holds the units between two ideals."""

    def __init__(self, instance: Instance, kinds: Sequence[Sequence[str]], ideals: Sequence[int]) -> None:
        self.instance = instance
        self.kinds = kinds
        units = list(instance.units)
        width = -(-len(units) // 64) * 8
        raw = np.frombuffer(b"".join(i.to_bytes(width, "little") for i in ideals), np.uint8)
        bits = raw.reshape(len(ideals), width)
        member = np.unpackbits(bits, axis=1, bitorder="little")[:, : len(units)].astype(np.float64)
        machines = [instance.machines[kind[0]] for kind in kinds]
        options = [[_option(instance, unit, machine.id) for unit in units] for machine in machines]
        work = [
            member
            @ np.array(
                [
                    0.0 if o is None else instance.units[u].work_s(o.key)
                    for u, o in zip(units, own, strict=True)
                ]
            )
            for own in options
        ]
        least = np.array(
            [min((u.work_s(k) for k in u.options), default=0.0) for u in instance.units.values()]
        )
        # Smaller ideals first, those alike in work near each other.
        order = np.lexsort((member.sum(axis=1), member @ least))
        self.member = member[order]
        self.words = np.ascontiguousarray(bits[order]).view(np.uint64)
        self.ideals = [ideals[index] for index in order]
        self.work = [column[order] for column in work]
        self.hosts = [machine.host for machine in machines]
        self.copies = [max(machine.max_count or 1, 1) for machine in machines]
        self.least = (member @ least)[order]
        self.speed = [self._speed(own, least) for own in options]
        self.usable = [machine.max_count != 0 for machine in machines]
        self.barred = [self.member @ np.array([o is None for o in own], float) for own in options]
        self.room = [
            math.inf if m.memory_bytes is None else m.memory_bytes * (1 + TOLERANCE) for m in machines
        ]
        self._position = {unit: index for index, unit in enumerate(units)}
        holders: dict[str, list[int]] = {}
        sizes: dict[str, float] = {}
        for unit in instance.units.values():
            for block, size in unit.weights.items():
                holders.setdefault(block, []).append(self._position[unit.id])
                sizes[block] = size
        own_weights = np.zeros(len(units))
        for block, on in holders.items():
            if len(on) == 1:
                own_weights[on[0]] += sizes[block]
        self.memory = [
            self.member @ (own_weights + [0.0 if o is None else o.memory_bytes for o in own])
            for own in options
        ]
        shared = [(tuple(on), sizes[block]) for block, on in holders.items() if len(on) > 1]
        self._shared_left, self._shared_right = self._patterns([(on, _held(size)) for on, size in shared])
        self._transfers()
        self.columns = self.pair.shape[1] + self._left.shape[1] + self._shared_left.shape[1]

    def _speed(self, options: Sequence[Option | None], least: Floats) -> float:
        """How much of the least work of units a device can do in a second at most."""
        units = self.instance.units.values()
        work = [(some, unit.work_s(o.key)) for some, unit, o in zip(least, units, options, strict=True) if o]
        return max((some / own for some, own in work if own), default=0.0)

    def _transfers(self) -> None:
        """A tensor between two units crosses where one ideal or the other cuts it, but not where both do.

        Tensors with more readers go by their patterns.
        """
        pairs: dict[tuple[int, int], float] = {}
        wide = []
        for tensor in self.instance.tensors:
            seconds = (tensor.seconds or 0.0) * tensor.calls
            src, readers = self._position[tensor.src], [self._position[r] for r in tensor.readers]
            if not seconds:
                continue
            if len(readers) == 1:
                ends = (min(src, readers[0]), max(src, readers[0]))
                pairs[ends] = pairs.get(ends, 0.0) + seconds
            else:
                wide.append(((src, *readers), _crossing(seconds, len(readers))))
        one, other = np.array(list(pairs), int).reshape(-1, 2).T
        self.pair = np.abs(self.member[:, one] - self.member[:, other])
        self._seconds = np.array(list(pairs.values()))
        self.cut = self.pair @ self._seconds
        self._left, self._right = self._patterns(wide)

    def _patterns(
        self, parts: Sequence[tuple[tuple[int, ...], Callable[[int], float]]]
    ) -> tuple[Floats, Floats]:
        """Two matrices whose product is the sum, over parts, of what the units between two ideals cost."""
        left, right = [np.zeros((len(self.ideals), 0))], [np.zeros((len(self.ideals), 0))]
        columns = 0
        for units, cost in parts:
            coded = self.member[:, units[:62]].astype(np.int64) @ (1 << np.arange(len(units[:62])))
            found, which = np.unique(coded, return_inverse=True)
            patterns = [int(code) for code in found]
            columns += len(patterns) if len(units) <= 62 else MOST_COLUMNS + 1
            if columns > MOST_COLUMNS:
                # Said by the count of columns; nothing is priced.
                return np.zeros((len(self.ideals), columns)), np.zeros((len(self.ideals), columns))
            table = np.array([[0.0 if p & ~q else cost(q & ~p) for q in patterns] for p in patterns])
            used = table.any(axis=1)
            left.append(np.eye(len(patterns))[:, used][which])
            right.append(table[used].T[which])
        return np.hstack(left), np.hstack(right)

    def block(self, larger: slice, smaller: slice, most: float) -> list[Floats]:
        """Loads of each kind of device, a row for each larger ideal; infinite where not allowed."""
        apart = np.zeros((larger.stop - larger.start, smaller.stop - smaller.start), bool)
        for word in range(self.words.shape[1]):
            apart |= (self.words[smaller, word][None, :] & ~self.words[larger, word][:, None]) != 0
        crossing = self.cut[larger][:, None] + self.cut[smaller][None, :]
        # Ideals near each other cut few tensors: the columns that neither cuts are zero.
        cut = np.flatnonzero(self.pair[larger].any(axis=0) & self.pair[smaller].any(axis=0))
        crossing -= (2 * self._seconds[cut] * self.pair[larger, cut]) @ self.pair[smaller, cut].T
        cut = np.flatnonzero(self._right[larger].any(axis=0) & self._left[smaller].any(axis=0))
        if cut.size:
            crossing += self._right[larger, cut] @ self._left[smaller, cut].T
        shared = None
        if self._shared_left.shape[1]:
            shared = self._shared_right[larger] @ self._shared_left[smaller].T
        loads = []
        for kind in range(len(self.kinds)):
            load = self.work[kind][larger][:, None] - self.work[kind][smaller][None, :]
            if not self.hosts[kind]:
                load += crossing
            load /= self.copies[kind]
            never = apart | (load > most)
            if self.barred[kind].any():
                never |= self.barred[kind][larger][:, None] > self.barred[kind][smaller][None, :]
            if self.room[kind] < math.inf:
                used = self.memory[kind][larger][:, None] - self.memory[kind][smaller][None, :]
                never |= (used if shared is None else used + shared) > self.room[kind]
            load[never] = np.inf
            loads.append(load)
        return loads


def _option(instance: Instance, unit: str, device: str) -> Option | None:
    return next((o for o in instance.units[unit].options.values() if o.device == device), None)


def _held(size: float) -> Callable[[int], float]:
    """Bytes of weights that a device holds which runs any of their units."""
    return lambda part: size if part else 0.0


def _crossing(seconds: float, readers: int) -> Callable[[int], float]:
    """Seconds that a set of a tensor's ends pays: bit 0 is the producer, the others are the readers."""
    everyone = (1 << readers) - 1

    def cost(part: int) -> float:
        inside = part >> 1
        if part & 1:
            return seconds if inside != everyone else 0.0
        return seconds if inside else 0.0

    return cost


def _search(prices: _Prices, most: float, go_on: Continue) -> Partition:
    """Fill ever more devices with ever larger ideals, none of them busier than ``most``."""
    most *= 1 + TOLERANCE
    total = len(prices.ideals)
    states = list(itertools.product(*(range(len(kind) + 1) for kind in prices.kinds)))
    number = {state: index for index, state in enumerate(states)}
    steps = [list(_steps(prices, state, number)) for state in states]
    reach = [_reach(prices, state, most) for state in states]
    slack = TOLERANCE * prices.least[-1]
    furthest = max(_capacity(prices, kind, most) for kind in range(len(prices.kinds)))
    best = np.full((len(states), total), np.inf)
    best[:, 0] = 0.0
    before = np.full((len(states), total), -1, np.int64)
    by = np.full((len(states), total), -1, np.int64)
    begin = 1
    while begin < total:
        if not go_on():
            return Partition(None, math.inf, complete=False)
        first = int(np.searchsorted(prices.least, prices.least[begin] - furthest - slack))
        end = min(total, begin + max(1, min(256, BLOCK // (begin + 256 - first))))
        larger, rows = slice(begin, end), np.arange(end - begin)
        loads: list[Floats] = []

        def keep(index: int, kind: int, value: Floats, origin: npt.NDArray[np.int64]) -> None:
            better = value < best[index, larger]  # noqa: B023 - called in this turn of the loop only
            best[index, larger][better] = value[better]  # noqa: B023
            before[index, larger][better] = origin[better]  # noqa: B023
            by[index, larger][better] = kind  # noqa: B023

        for index in range(1, len(states)):
            if reach[index].stop <= begin or reach[index].start >= end:
                continue
            loads = loads or prices.block(larger, slice(first, end), most)
            for kind, previous in steps[index]:
                # An idle device is allowed.
                keep(index, kind, best[previous, larger], rows + begin)
                low, high = max(first, reach[previous].start), min(end, reach[previous].stop)
                if low < high:
                    found = np.maximum(loads[kind][:, low - first : high - first], best[previous, low:high])
                    which = found.argmin(axis=1)
                    keep(index, kind, found[rows, which], which + low)
        begin = end
    value = float(best[-1, -1])
    if math.isinf(value):
        return Partition(None, math.inf, complete=True)
    return Partition(_assignment(prices, states, number, before, by), value, complete=True)


def _capacity(prices: _Prices, kind: int, most: float) -> float:
    """The most work, each unit where it takes least, that one device gets done."""
    return most * prices.copies[kind] * prices.speed[kind] if prices.speed[kind] else 0.0


def _reach(prices: _Prices, state: tuple[int, ...], most: float) -> slice:
    """Ideals that these devices can hold while the others can hold the rest."""
    room = [
        (count, len(of), _capacity(prices, k, most))
        for k, (count, of) in enumerate(zip(state, prices.kinds, strict=True))
    ]
    held = sum(count * capacity for count, _, capacity in room if count)
    slack = TOLERANCE * prices.least[-1]
    left = sum((all_of - count) * capacity for count, all_of, capacity in room if all_of > count)
    low = np.searchsorted(prices.least, prices.least[-1] - left - slack)
    high = np.searchsorted(prices.least, held + slack, side="right")
    return slice(int(low), int(high))


def _steps(
    prices: _Prices, state: tuple[int, ...], number: dict[tuple[int, ...], int]
) -> Iterator[tuple[int, int]]:
    for kind, count in enumerate(state):
        if count and prices.usable[kind]:
            yield kind, number[(*state[:kind], count - 1, *state[kind + 1 :])]


def _assignment(
    prices: _Prices,
    states: Sequence[tuple[int, ...]],
    number: dict[tuple[int, ...], int],
    before: npt.NDArray[np.int64],
    by: npt.NDArray[np.int64],
) -> dict[str, str]:
    units = list(prices.instance.units)
    assignment: dict[str, str] = {}
    state, ideal = states[-1], len(prices.ideals) - 1
    while ideal:
        index = number[state]
        kind, smaller = int(by[index, ideal]), int(before[index, ideal])
        device = prices.kinds[kind][state[kind] - 1]
        inside = prices.ideals[ideal] & ~prices.ideals[smaller]
        for position, unit in enumerate(units):
            if inside >> position & 1:
                option = _option(prices.instance, unit, device)
                assert option is not None
                assignment[unit] = option.key
        state = (*state[:kind], state[kind] - 1, *state[kind + 1 :])
        ideal = smaller
    return {unit: assignment[unit] for unit in units}
