"""Contiguous latency by local search: each accelerator takes one span of an order, the rest stays on hosts.

Spans of an order with producers first are convex, so that data never flows in a circle between blocks. A good
answer, not a proof. The dice are the same on every run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from gimlet_lab.advisor.instance import Instance, Option, at_most
from gimlet_lab.advisor.judge import judge
from gimlet_lab.advisor.timing import blocks

#: Moves tried for each unit, and how much worse, of the whole, a move may make things at first and at last.
TRIES, HOT, COLD = 400, 0.03, 0.0001

#: Orders drawn.
ORDERS = 8


def spans(
    instance: Instance, go_on: Callable[[], bool], report: Callable[[float], None] = lambda _value: None
) -> dict[str, str] | None:
    """The best placement met; None where not even a start is allowed.

    Orders are drawn and cut as is best if blocks ran one after the other; then the cuts of the best order are
    annealed with blocks side by side.
    """
    dice = random.Random(0)  # noqa: S311 - no secret
    best, least = _Line(instance, instance.order), math.inf
    cuts = best.start()
    for number in range(ORDERS):
        line = best if not number else _Line(instance, _depth_first(instance, dice if number > 1 else None))
        found = line.start() if number else cuts
        value = line.value(found)
        if value < least and judge(instance, line.places(found)).feasible:
            best, cuts, least = line, found, value
            report(value)
        if not go_on():
            break
    now, value = cuts, best.value(cuts)
    tries = TRIES * len(instance.units)
    for turn in range(tries):
        if turn % 20 == 0 and not go_on():
            break
        other = best.moved(now, dice)
        found_s = best.value(other)
        heat = HOT * (COLD / HOT) ** (turn / tries)
        if found_s < value or found_s - value < -heat * value * math.log(1 - dice.random()):
            now, value = other, found_s
            # Hosts have rules too, which only the judge looks at.
            if value < least * (1 - 1e-9) and judge(instance, best.places(now)).feasible:
                cuts, least = now, value
                report(value)
    return None if math.isinf(least) else best.places(cuts)


class _Line:
    """An order, and what a choice of cuts in it means: two for each accelerator, rising."""

    def __init__(self, instance: Instance, order: Sequence[str]) -> None:
        self.instance = instance
        self.order = order
        self.slots = [name for name, machine in instance.machines.items() if not machine.host]
        self.there: list[dict[str, str]] = []
        for unit in (instance.units[name] for name in order):
            keys = sorted(unit.options, key=unit.work_s, reverse=True)
            self.there.append({unit.options[key].device: key for key in keys})
        self._place = {name: position for position, name in enumerate(order)}
        self._made: list[list[int]] = [[] for _ in order]
        self._read: list[list[int]] = [[] for _ in order]
        self._last: list[int] = []
        for index, tensor in enumerate(instance.tensors):
            self._made[self._place[tensor.src]].append(index)
            for reader in tensor.readers:
                self._read[self._place[reader]].append(index)
            self._last.append(max(self._place[reader] for reader in tensor.readers))
        self.home = [
            next((k for d, k in reversed(own.items()) if instance.machines[d].host), "") for own in self.there
        ]

    def start(self) -> list[int]:
        """The best cuts if one block ran after the other: exact by dynamic programming over prefixes."""
        count, units = len(self.order), self.instance.units
        alone = [units[u].work_s(k) if k else math.inf for u, k in zip(self.order, self.home, strict=True)]
        # After so many units, with so many accelerators used: the time, and the span that ends there.
        times = [[0.0]]
        for seconds in alone:
            times[0].append(times[0][-1] + seconds)
        spans: list[list[int | None]] = [[None] * (count + 1)]
        lengths: dict[object, list[list[float]]] = {}
        for slot in self.slots:
            # Accelerators that are alike have the same blocks.
            same = (
                self.instance.machines[slot].memory_bytes,
                *((o.seconds, o.memory_bytes) for o in (self._option(p, slot) for p in range(count)) if o),
            )
            if same not in lengths:
                lengths[same] = [self._lengths(slot, begin) for begin in range(count)]
            before = times[-1]
            now = list(before)
            taken: list[int | None] = [None] * (count + 1)
            for begin in range(count):
                for end, seconds in enumerate(lengths[same][begin], begin + 1):
                    if before[begin] + seconds < now[end] * (1 - 1e-12):
                        now[end], taken[end] = before[begin] + seconds, begin
            for end in range(1, count + 1):
                if now[end - 1] + alone[end - 1] < now[end]:
                    now[end], taken[end] = now[end - 1] + alone[end - 1], -1
            times.append(now)
            spans.append(taken)
        cuts: list[int] = []
        end = count
        for number in range(len(self.slots), 0, -1):
            while end and spans[number][end] == -1:
                end -= 1
            start = spans[number][end]
            cuts = [end if start is None else start, end, *cuts]
            end = end if start is None else start
        return cuts

    def _option(self, position: int, slot: str) -> Option | None:
        key = self.there[position].get(slot)
        return None if key is None else self.instance.units[self.order[position]].options[key]

    def _lengths(self, slot: str, begin: int) -> list[float]:
        """Seconds of the block from a position on, for each end it may have."""
        place, units, memory = self._place, self.instance.units, self.instance.machines[slot].memory_bytes
        lengths: list[float] = []
        work = used = 0.0
        held: set[str] = set()
        entered: set[int] = set()
        into = 0.0
        leaving: dict[int, float] = {}
        for end in range(begin, len(self.order)):
            key = self.there[end].get(slot)
            if key is None:
                break
            unit = units[self.order[end]]
            used += unit.options[key].memory_bytes
            used += sum(size for block, size in unit.weights.items() if block not in held)
            held.update(unit.weights)
            if memory is not None and not at_most(used, memory):
                break
            work += unit.work_s(key)
            for index in self._read[end]:
                tensor = self.instance.tensors[index]
                if place[tensor.src] < begin and index not in entered:
                    entered.add(index)
                    into += self.instance.in_s(tensor, slot)
                elif self._last[index] <= end:
                    leaving.pop(index, None)
            for index in self._made[end]:
                leaving[index] = self.instance.out_s(self.instance.tensors[index], slot)
            lengths.append(into + work + sum(leaving.values()))
        return lengths

    def moved(self, cuts: Sequence[int], dice: random.Random) -> list[int]:
        """Cuts with one or two of them elsewhere; those in the way are pushed along."""
        other = list(cuts)
        which = dice.randrange(len(other)) if other else 0
        if not other:
            return other
        far = dice.choice((1, 1, 2, 3, 5, 8, 16, len(self.order)))
        step = dice.randint(-far, far) or 1
        together = [which]
        if dice.random() < 0.4:
            # A span moves as a whole, or two that touch share another border.
            together.append(which ^ 1 if dice.random() < 0.5 else min(which + 1, len(other) - 1))
        for cut in dict.fromkeys(together):
            other[cut] = min(max(other[cut] + step, 0), len(self.order))
        low, high = min(together), max(together)
        for cut in range(low - 1, -1, -1):
            other[cut] = min(other[cut], other[cut + 1])
        for cut in range(high + 1, len(other)):
            other[cut] = max(other[cut], other[cut - 1])
        return sorted(other)

    def places(self, cuts: Sequence[int]) -> dict[str, str]:
        keys = list(self.home)
        for number, slot in enumerate(self.slots):
            for position in range(cuts[2 * number], cuts[2 * number + 1]):
                keys[position] = self.there[position].get(slot, "")
        return dict(zip(self.order, keys, strict=True))

    def value(self, cuts: Sequence[int]) -> float:
        """The makespan in seconds; infinite where a rule forbids the cuts."""
        for number, slot in enumerate(self.slots):
            if not self._fits(slot, cuts[2 * number], cuts[2 * number + 1]):
                return math.inf
        places = self.places(cuts)
        if "" in places.values():
            return math.inf
        units = self.instance.units
        device = {name: units[name].options[key].device for name, key in places.items()}
        for members in self.instance.groups.values():
            if len({device[member] for member in members}) > 1:
                return math.inf
        _, end, wrong = blocks(self.instance, places, device, None)
        return math.inf if wrong is not None else max(end.values(), default=0.0)

    def _fits(self, slot: str, begin: int, end: int) -> bool:
        capacity = self.instance.machines[slot].memory_bytes
        if capacity is None:
            return True
        held: dict[str, float] = {}
        used = 0.0
        for position in range(begin, end):
            unit = self.instance.units[self.order[position]]
            key = self.there[position].get(slot)
            used += unit.options[key].memory_bytes if key else 0.0
            held.update(unit.weights)
        return at_most(used + sum(held.values()), capacity)


def _depth_first(instance: Instance, dice: random.Random | None) -> tuple[str, ...]:
    """Producers first, and each chain to its end before the next one begins; dice choose among chains."""
    waiting = {name: len(producers) for name, producers in instance.producers.items()}
    pending = [name for name in reversed(list(instance.units)) if not waiting[name]]
    done: list[str] = []
    while pending:
        name = pending.pop()
        done.append(name)
        ready = []
        for reader in reversed(instance.readers[name]):
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
        if dice is not None:
            dice.shuffle(ready)
        pending += ready
        if dice is not None and dice.random() < 0.1:
            dice.shuffle(pending)
    return tuple(done)
