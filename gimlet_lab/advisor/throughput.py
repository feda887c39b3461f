"""How busy: the part of the CP-SAT program that knows loads, and the line that data flows along."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from gimlet_lab.advisor.instance import Instance, Machine
from gimlet_lab.advisor.scale import Scale
from gimlet_lab.advisor.where import Where


class Load:
    """Variables and rules of load, in ticks of ``scale``.

    Attributes
    ----------
    most : variable
        The largest load of a device, of what devices share, and of a link.
    """

    def __init__(self, where: Where) -> None:
        self._where = where
        self.instance = where.instance
        self.cp = where.cp
        terms = {name: list(self._terms(machine)) for name, machine in self.instance.machines.items()}
        wires: dict[tuple[str, str], list[tuple[float, Any]]] = {}
        if not self.instance.through_host:
            for (index, a, b), crossing in where.crossings.items():
                seconds = self.instance.crossing_s(self.instance.tensors[index], a, b) or 0.0
                wires.setdefault((a, b), []).append((seconds, crossing))
        every = [seconds for part in (*terms.values(), *wires.values()) for seconds, _ in part]
        self.scale = Scale.fit(every, sum(every))
        size = where.size(self.scale)
        loads = {
            name: sum(size(seconds) * variable for seconds, variable in part if seconds)
            for name, part in terms.items()
        }
        self.most = self.cp.new_int_var(0, self.scale.up(sum(every)) + len(every), "largest load")
        for load in loads.values():
            self.cp.add(self.most >= load)
        for resource in dict.fromkeys(
            r for m in self.instance.machines.values() for r in sorted(m.resources)
        ):
            sharing = [loads[m.id] for m in self.instance.machines.values() if resource in m.resources]
            if len(sharing) > 1:
                self.cp.add(self.most >= sum(sharing))
        for part in wires.values():
            self.cp.add(self.most >= sum(size(seconds) * crossing for seconds, crossing in part))

    def _terms(self, machine: Machine) -> Iterator[tuple[float, Any]]:
        """What may keep a device busy, with seconds a copy of it."""
        where, copies = self._where, max(machine.max_count or 1, 1)
        for name, unit in self.instance.units.items():
            for key, option in unit.options.items():
                if option.device == machine.id:
                    yield unit.work_s(key) / copies, where.x[name, key]
        if not self.instance.through_host or machine.host:
            return
        for tensor in self.instance.tensors:
            if not tensor.seconds:
                continue
            here = where.is_on(tensor.src, machine.id)
            readers = [where.is_on(reader, machine.id) for reader in tensor.readers]
            leaves = self.cp.new_bool_var(f"{tensor.src} leaves {machine.id}")
            enters = self.cp.new_bool_var(f"{tensor.src} enters {machine.id}")
            for reader in readers:
                self.cp.add(leaves >= here - reader)
                self.cp.add(enters >= reader - here)
            yield self.instance.out_s(tensor, machine.id) / copies, leaves
            yield self.instance.in_s(tensor, machine.id) / copies, enters


def forward(where: Where) -> None:
    """Devices have a place in a line, and data only flows along it."""
    cp, instance = where.cp, where.instance
    last = len(instance.machines) - 1
    place = {name: cp.new_int_var(0, last, f"place of {name}") for name in instance.machines}
    cp.add_all_different(place.values())
    for alike in interchangeable(instance):
        for one, other in itertools.pairwise(alike):
            cp.add(place[one] < place[other])
    rank = {}
    for unit in dict.fromkeys(unit for flow in instance.flows for unit in flow):
        rank[unit] = cp.new_int_var(0, last, f"place of {unit}")
        for device in where.devices[unit]:
            cp.add(rank[unit] == place[device]).only_enforce_if(where.on[unit, device])
    for src, dst in sorted(instance.flows):
        cp.add(rank[src] <= rank[dst])


def interchangeable(instance: Instance) -> list[list[str]]:
    """Devices that differ in nothing but their names, together; those with links of their own are alone."""
    found: dict[object, list[str]] = {}
    for name, machine in instance.machines.items():
        same: object = name
        if not machine.resources and not any(name in ends for ends in instance.wires):
            options = tuple(
                tuple(
                    (
                        o.key.partition("@")[2],
                        o.seconds,
                        o.memory_bytes,
                        o.usd,
                        o.joules,
                        o.load,
                        o.devices_used,
                    )
                    for o in unit.options.values()
                    if o.device == name
                )
                for unit in instance.units.values()
            )
            figures = (machine.memory_bytes, machine.usd_per_hour, machine.max_count)
            same = (figures, machine.host, machine.parallel, options)
        found.setdefault(same, []).append(name)
    return list(found.values())
