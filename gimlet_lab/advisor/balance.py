"""Throughput by local search: units move one at a time while the busiest resource gets less to do.

A good start for the exact program, not a proof. The dice are the same on every run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

from gimlet_lab.advisor.instance import Instance, Tensor, at_most

#: Moves tried for each unit, and for each pair of units where there are many.
TRIES, TRIES_A_PAIR = 1_200, 25
MOST_TRIES = 800_000
#: Units that move together at most.
STRETCH = 12
#: Moves between two looks at the clock.
PAUSE = 500
#: The sum of loads to this power stands for the largest one, and sees the others too.
POWER = 20
#: How much worse, of the whole, a move may make things at first and at last.
HOT, COLD = 0.0003, 0.00002


def balance(instance: Instance, begin: Mapping[str, str], go_on: Callable[[], bool]) -> dict[str, str]:
    """The best placement met by annealing from an allowed one; knows loads, links and memory, no limits."""
    if not begin:
        return {}
    state = _State(instance, dict(begin))
    dice = random.Random(0)  # noqa: S311 - no secret
    movable = [name for name, unit in instance.units.items() if len(unit.options) > 1]
    if not movable:
        return dict(begin)
    best, best_value = dict(begin), state.largest()
    tries = min(MOST_TRIES, max(TRIES, TRIES_A_PAIR * len(movable)) * len(movable))
    energy = state.energy(best_value)
    scale = best_value
    for turn in range(tries):
        if turn % PAUSE == 0:
            if not go_on():
                break
            heat = HOT * (COLD / HOT) ** (turn / tries)
            scale = best_value
            energy = state.energy(scale)
        if not scale:
            break
        unit = dice.choice(movable)
        new = state.beside(unit, dice) or dice.choice(state.keys[unit])
        if new == state.place[unit]:
            continue
        # Along a chain only a stretch of it can move without cutting it once more.
        changed = state.move_all(state.stretch(unit, dice), new)
        if not changed:
            continue
        moved = state.energy(scale)
        if moved <= energy or dice.random() < math.exp((energy ** (1 / POWER) - moved ** (1 / POWER)) / heat):
            energy = moved
            value = state.largest()
            if value < best_value * (1 - 1e-9):
                best, best_value = dict(state.place), value
        else:
            state.restore(changed)
    return best


class _State:
    """A placement with its loads, kept up to date."""

    def __init__(self, instance: Instance, place: dict[str, str]) -> None:
        self.instance = instance
        self.place = place
        self.keys = {name: list(unit.options) for name, unit in instance.units.items()}
        self._device = {n: {k: o.device for k, o in u.options.items()} for n, u in instance.units.items()}
        self._number: dict[object, int] = {name: index for index, name in enumerate(instance.machines)}
        self._copies = {name: max(m.max_count or 1, 1) for name, m in instance.machines.items()}
        for machine in instance.machines.values():
            for resource in sorted(machine.resources):
                self._number.setdefault(("shared", resource), len(self._number))
        for ends in instance.wires:
            self._number.setdefault(("link", ends), len(self._number))
        self._busies = {
            name: [self._number[name], *(self._number["shared", r] for r in machine.resources)]
            for name, machine in instance.machines.items()
        }
        self._tensors: dict[str, list[Tensor]] = {name: [] for name in instance.units}
        for tensor in instance.tensors:
            for name in (tensor.src, *tensor.readers):
                self._tensors[name].append(tensor)
        self._near = {
            name: [
                other
                for other in dict.fromkeys(end for t in found for end in (t.src, *t.readers))
                if other != name
            ]
            for name, found in self._tensors.items()
        }
        self.load = [0.0] * len(self._number)
        self._memory = dict.fromkeys(instance.machines, 0.0)
        self._holders: dict[tuple[str, str], int] = {}
        for name, key in self.place.items():
            self._run(name, key, 1)
        for tensor in instance.tensors:
            self._send(tensor, 1)

    def largest(self) -> float:
        return max(self.load)

    def energy(self, scale: float) -> float:
        return sum((load / scale) ** POWER for load in self.load) if scale else 0.0

    def beside(self, unit: str, dice: random.Random) -> str | None:
        """Where a neighbour runs, half of the time."""
        near = self._near[unit]
        if not near or dice.random() < 0.5:
            return None
        key = self.place[dice.choice(near)]
        return key if key in self.instance.units[unit].options else None

    def stretch(self, unit: str, dice: random.Random) -> list[str]:
        """A unit and, half of the time, some around it on the same device."""
        found = [unit]
        if dice.random() < 0.5:
            return found
        most, here, known = dice.randint(2, STRETCH), self._on(unit), {unit}
        for member in found:
            for other in self._near[member]:
                if len(found) < most and other not in known and self._on(other) == here:
                    known.add(other)
                    found.append(other)
        return found

    def move_all(self, units: list[str], key: str) -> list[tuple[str, str]]:
        """Move what may run there; what moved and from where, nothing where a rule forbids any of it."""
        changed: list[tuple[str, str]] = []
        for unit in units:
            before = self.place[unit]
            if key == before or key not in self.instance.units[unit].options:
                continue
            if not self.move(unit, key):
                self.restore(changed)
                return []
            changed.append((unit, before))
        return changed

    def restore(self, changed: list[tuple[str, str]]) -> None:
        """Take moves back."""
        for unit, before in reversed(changed):
            self._replace(unit, before)

    def _on(self, unit: str) -> str:
        return self._device[unit][self.place[unit]]

    def move(self, unit: str, key: str) -> bool:
        """Place a unit elsewhere; False, and nothing changed, where a rule forbids it."""
        before = self.place[unit]
        machine = self.instance.machines[self._device[unit][key]]
        if machine.max_count == 0 or not self._linked(unit, key):
            return False
        self._replace(unit, key)
        if machine.memory_bytes is not None and not at_most(self._memory[machine.id], machine.memory_bytes):
            self._replace(unit, before)
            return False
        return True

    def _replace(self, unit: str, key: str) -> None:
        for tensor in self._tensors[unit]:
            self._send(tensor, -1)
        self._run(unit, self.place[unit], -1)
        self.place[unit] = key
        self._run(unit, key, 1)
        for tensor in self._tensors[unit]:
            self._send(tensor, 1)

    def _linked(self, unit: str, key: str) -> bool:
        if self.instance.through_host:
            return True
        here = self._device[unit][key]
        for tensor in self._tensors[unit]:
            src = here if tensor.src == unit else self._device[tensor.src][self.place[tensor.src]]
            for reader in tensor.readers:
                dst = here if reader == unit else self._device[reader][self.place[reader]]
                if src != dst and (src, dst) not in self.instance.wires:
                    return False
        return True

    def _run(self, name: str, key: str, sign: int) -> None:
        unit = self.instance.units[name]
        device = self._device[name][key]
        self._busy(device, sign * unit.work_s(key))
        self._memory[device] += sign * unit.options[key].memory_bytes
        for block, size in unit.weights.items():
            known = self._holders.get((device, block), 0)
            self._holders[device, block] = known + sign
            if known == 0 or known + sign == 0:
                self._memory[device] += sign * size

    def _send(self, tensor: Tensor, sign: int) -> None:
        src = self._device[tensor.src][self.place[tensor.src]]
        elsewhere = {self._device[reader][self.place[reader]] for reader in tensor.readers} - {src}
        if not elsewhere:
            return
        if self.instance.through_host:
            self._busy(src, sign * self.instance.out_s(tensor, src))
            for dst in elsewhere:
                self._busy(dst, sign * self.instance.in_s(tensor, dst))
            return
        for dst in elsewhere:
            seconds = self.instance.crossing_s(tensor, src, dst) or 0.0
            self.load[self._number["link", (src, dst)]] += sign * seconds

    def _busy(self, device: str, seconds: float) -> None:
        share = seconds / self._copies[device]
        for index in self._busies[device]:
            self.load[index] += share
