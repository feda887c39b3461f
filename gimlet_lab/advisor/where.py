"""Where: the part of the CP-SAT program that knows placement, memory, crossings, money and energy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from gimlet_lab.advisor.instance import Instance, Tensor
from gimlet_lab.advisor.scale import Scale

#: Ticks of one device kept busy.
_BUSY = 10**9


class Where:
    """Variables and rules of placement.

    Attributes
    ----------
    x : mapping of (unit, option) to variable
        The unit runs so.
    on : mapping of (unit, device) to variable
        The unit is there, by any option.
    pairs : mapping of (producer, reader) to mapping of (device, device) to variable
        Which pair of devices the two are on; pairs without a link are not there.
    crossings : mapping of (tensor, device, device) to variable
        The tensor crosses, once however many read it; only where a link's money, turns or load matter.
    count : mapping of device to variable
        Copies that are paid for.
    figures : mapping of str to (expression, Scale)
        ``usd``, ``joules``, ``usd_per_hour``.
    """

    def __init__(self, cp: Any, instance: Instance, *, safe: bool, timed: bool = True) -> None:
        self.cp = cp
        self.instance = instance
        self._safe = safe
        self.x: dict[tuple[str, str], Any] = {}
        self.on: dict[tuple[str, str], Any] = {}
        self.devices: dict[str, list[str]] = {}
        self.crossings: dict[tuple[int, str, str], Any] = {}
        self.count: dict[str, Any] = {}
        self.figures: dict[str, tuple[Any, Scale]] = {}
        self.pairs: dict[tuple[str, str], dict[tuple[str, str], Any]] = {}
        self._place()
        self._memory()
        if timed or not instance.through_host:
            self._cross()
        self._count()
        self._money()

    def _place(self) -> None:
        for name, unit in self.instance.units.items():
            for key in unit.options:
                self.x[name, key] = self.cp.new_bool_var(f"{name} on {key}")
            self.cp.add_exactly_one(self.x[name, key] for key in unit.options)
            by_device: dict[str, list[Any]] = {}
            for key, option in unit.options.items():
                by_device.setdefault(option.device, []).append(self.x[name, key])
            self.devices[name] = list(by_device)
            for device, variables in by_device.items():
                if len(variables) == 1:
                    self.on[name, device] = variables[0]
                else:
                    self.on[name, device] = self.cp.new_bool_var(f"{name} at {device}")
                    self.cp.add(sum(variables) == self.on[name, device])
        for first, *others in self.instance.groups.values():
            for other in others:
                for device in dict.fromkeys([*self.devices[first], *self.devices[other]]):
                    self.cp.add(self.is_on(first, device) == self.is_on(other, device))

    def is_on(self, unit: str, device: str) -> Any:
        """1 where the unit is there; the number 0 where it never can be."""
        return self.on.get((unit, device), 0)

    def _memory(self) -> None:
        units = self.instance.units
        sizes = [option.memory_bytes for unit in units.values() for option in unit.options.values()]
        blocks: dict[str, float] = {}
        for unit in units.values():
            blocks.update(unit.weights)
        biggest = sum(max(o.memory_bytes for o in unit.options.values()) for unit in units.values())
        self.bytes = Scale.fit([*sizes, *blocks.values()], biggest + sum(blocks.values()))
        size = self.size(self.bytes)
        self.used: dict[str, Any] = {}
        for device, machine in self.instance.machines.items():
            terms = [
                size(option.memory_bytes) * self.x[name, key]
                for name, unit in units.items()
                for key, option in unit.options.items()
                if option.device == device and option.memory_bytes
            ]
            holders: dict[str, list[Any]] = {}
            for name, unit in units.items():
                if device in self.devices[name]:
                    for block in unit.weights:
                        holders.setdefault(block, []).append(self.on[name, device])
            for block, on in holders.items():
                held = on[0]
                if len(on) > 1:
                    held = self.cp.new_bool_var(f"{block} on {device}")
                    self.cp.add_max_equality(held, on)
                terms.append(size(blocks[block]) * held)
            self.used[device] = sum(terms)
            if machine.memory_bytes is not None:
                self.cp.add(self.used[device] <= self.bytes.limit(machine.memory_bytes))

    def size(self, scale: Scale) -> Callable[[float], int]:
        """How numbers are rounded: down for a bound, up for a placement that is safe."""
        return scale.up if self._safe else scale.down

    # -- crossings -----------------------------------------------------------------------------------------

    def _cross(self) -> None:
        """For each pair of producer and reader, which pair of devices they are on."""
        self.carried: dict[tuple[str, str], list[int]] = {}
        for index, tensor in enumerate(self.instance.tensors):
            for reader in tensor.readers:
                self.carried.setdefault((tensor.src, reader), []).append(index)
        for (src, dst), carried in self.carried.items():
            tensor = self.instance.tensors[carried[0]]
            pair: dict[tuple[str, str], Any] = {}
            for a in self.devices[src]:
                for b in self.devices[dst]:
                    if self.instance.crossing_s(tensor, a, b) is not None:
                        pair[a, b] = self.cp.new_bool_var(f"{src} at {a}, {dst} at {b}")
            for a in self.devices[src]:
                self.cp.add(sum(v for (x, _), v in pair.items() if x == a) == self.on[src, a])
            for b in self.devices[dst]:
                self.cp.add(sum(v for (_, y), v in pair.items() if y == b) == self.on[dst, b])
            self.pairs[src, dst] = pair
        for index, tensor in enumerate(self.instance.tensors):
            for (a, b), readers in self.ways(tensor).items():
                wire = None if self.instance.through_host else self.instance.wires.get((a, b))
                loaded = self.instance.objective == "throughput"
                if wire is not None and (wire.exclusive or wire.usd or loaded):
                    crossing = self.cp.new_bool_var(f"tensor {index} from {a} to {b}")
                    self.cp.add_max_equality(crossing, readers)
                    self.crossings[index, a, b] = crossing

    def ways(self, tensor: Tensor) -> dict[tuple[str, str], list[Any]]:
        """For each pair of devices, which readers make a tensor cross between them."""
        ways: dict[tuple[str, str], list[Any]] = {}
        for reader in tensor.readers:
            for (a, b), variable in self.pairs[tensor.src, reader].items():
                if a != b:
                    ways.setdefault((a, b), []).append(variable)
        return ways

    # -- money and energy ----------------------------------------------------------------------------------

    def _money(self) -> None:
        units, wires = self.instance.units, self.instance.wires
        for figure in ("usd", "joules"):
            costs = [
                (unit.calls * getattr(option, figure), self.x[name, key])
                for name, unit in units.items()
                for key, option in unit.options.items()
            ]
            if figure == "usd":
                costs += [(wires[a, b].usd, crossing) for (_, a, b), crossing in self.crossings.items()]
            self.figures[figure] = self._sum(costs)
        machines = self.instance.machines
        most = {device: self._most(device) for device in self.count}
        scale = Scale.fit(
            (machines[device].usd_per_hour for device in self.count),
            sum(most[device] * machines[device].usd_per_hour for device in self.count),
        )
        size = self.size(scale)
        hourly = sum(size(machines[device].usd_per_hour) * copies for device, copies in self.count.items())
        self.figures["usd_per_hour"] = (hourly, scale)

    def _count(self) -> None:
        """How many copies of a device: what its options take together, or what their load keeps busy."""
        units, sized = self.instance.units, self.instance.sized
        for device, machine in self.instance.machines.items():
            options = [
                (option, self.x[name, key])
                for name, unit in units.items()
                for key, option in unit.options.items()
                if option.device == device
            ]
            if not options:
                continue
            copies = self.cp.new_int_var(0, self._most(device), f"copies of {device}")
            for option, variable in options:
                if option.devices_used > 1 or not sized:
                    self.cp.add(copies >= option.devices_used * variable)
            if sized:
                rounded = math.ceil if self._safe else math.floor
                busy = sum(rounded(option.load * _BUSY) * variable for option, variable in options)
                self.cp.add(busy <= (_BUSY + 1) * copies)
            if machine.max_count is not None:
                if machine.max_count == 0:
                    self.cp.add(sum(variable for _, variable in options) == 0)
                self.cp.add(copies <= machine.max_count)
            self.count[device] = copies

    def _most(self, device: str) -> int:
        """Copies that would do for everything."""
        options = [
            [option for option in unit.options.values() if option.device == device]
            for unit in self.instance.units.values()
        ]
        load = sum(max((option.load for option in own), default=0.0) for own in options)
        return max(math.ceil(load) + 1, *(option.devices_used for own in options for option in own), 1)

    def _sum(self, costs: Sequence[tuple[float, Any]]) -> tuple[Any, Scale]:
        scale = Scale.fit((cost for cost, _ in costs), sum(cost for cost, _ in costs))
        size = self.size(scale)
        return sum(size(cost) * variable for cost, variable in costs if cost), scale
