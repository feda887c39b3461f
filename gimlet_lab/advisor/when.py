"""When: the part of the CP-SAT program that knows order, transfers and the makespan."""

from __future__ import annotations

from typing import Any

from gimlet_lab.advisor.scale import Scale
from gimlet_lab.advisor.where import Where


class When:
    """Variables and rules of time, in ticks of ``scale``.

    Parameters
    ----------
    most_s : float, optional
        No schedule longer than this is of interest.

    Attributes
    ----------
    start, end : mapping of unit to expression
    transfers : mapping of (tensor, device, device) to variable
        When a transfer over an exclusive link begins.
    makespan : variable
    slack : int
        By how many ticks the difference of two rounded times may be off.
    """

    def __init__(self, where: Where, most_s: float | None) -> None:
        self._where = where
        self.instance = where.instance
        self.cp = where.cp
        units, tensors = self.instance.units, self.instance.tensors
        work = {(name, key): unit.work_s(key) for name, unit in units.items() for key in unit.options}
        delays = {
            (index, a, b): delay
            for index, tensor in enumerate(tensors)
            for a, b in where.ways(tensor)
            if (delay := self.instance.crossing_s(tensor, a, b)) is not None
        }
        longest = sum(max(work[name, key] for key in unit.options) for name, unit in units.items())
        for index, tensor in enumerate(tensors):
            into = [d for (i, _, _), d in delays.items() if i == index]
            longest += max(into, default=0.0) * len(tensor.readers)
        self.scale = Scale.fit([*work.values(), *delays.values()], longest)
        self.slack = 0 if self.scale.exact else len(units) + len(tensors) + 1
        horizon = self.scale.up(longest if most_s is None else min(longest, most_s)) + self.slack
        size = where.size(self.scale)
        self._work = {pair: size(seconds) for pair, seconds in work.items()}
        self._delay = {way: size(seconds) for way, seconds in delays.items()}
        self.start = {name: self.cp.new_int_var(0, horizon, f"start {name}") for name in units}
        self.end = {
            name: self.start[name] + sum(self._work[name, key] * where.x[name, key] for key in unit.options)
            for name, unit in units.items()
        }
        self.transfers: dict[tuple[int, str, str], Any] = {}
        self._move(horizon)
        self._take_turns()
        self.makespan = self.cp.new_int_var(0, horizon, "makespan")
        for name in units:
            self.cp.add(self.makespan >= self.end[name])
        self._at_least()
        by_parallel = any(self.instance.machines[a].parallel for _, a, _ in self.transfers)
        if self.instance.limits.paths or by_parallel:
            self._no_dallying()

    def _move(self, horizon: int) -> None:
        """A unit starts when what it reads is there."""
        cp, wires = self.cp, self.instance.wires
        for index, a, b in self._where.crossings:
            if wires[a, b].exclusive:
                begin = cp.new_int_var(0, horizon, f"transfer {index} {a} {b}")
                cp.add(begin >= self.end[self.instance.tensors[index].src])
                self.transfers[index, a, b] = begin
        for (src, dst), pair in self._where.pairs.items():
            for (a, b), variable in pair.items():
                for index in self._where.carried[src, dst]:
                    if (index, a, b) in self.transfers:
                        arrival = self.transfers[index, a, b] + self._delay[index, a, b]
                        cp.add(self.start[dst] >= arrival).only_enforce_if(variable)
            cp.add(self.start[dst] >= self.end[src] + self._waiting(src, dst))
        by_wire: dict[tuple[str, str], list[int]] = {}
        for index, a, b in self.transfers:
            by_wire.setdefault((a, b), []).append(index)
        for (a, b), indices in by_wire.items():
            for position, one in enumerate(indices):
                for other in indices[position + 1 :]:
                    self._queue(one, other, a, b)

    def _waiting(self, src: str, dst: str) -> Any:
        """Ticks between a producer's end and its reader's start, by where they are."""
        return sum(
            max((self._delay[index, a, b] for index in self._where.carried[src, dst]), default=0) * variable
            for (a, b), variable in self._where.pairs[src, dst].items()
            if a != b
        )

    def _queue(self, one: int, other: int, a: str, b: str) -> None:
        """Two transfers over an exclusive link: the one whose producer ends first goes first."""
        cp, tensors = self.cp, self.instance.tensors
        both = [self._where.crossings[one, a, b], self._where.crossings[other, a, b]]
        begin_one, begin_other = self.transfers[one, a, b], self.transfers[other, a, b]
        if tensors[one].src == tensors[other].src:
            cp.add(begin_other >= begin_one + self._delay[one, a, b]).only_enforce_if(both)
            return
        first = cp.new_bool_var(f"transfer {one} before {other}")
        end_one, end_other = self.end[tensors[one].src], self.end[tensors[other].src]
        for way, earlier, later, begin, after, index in (
            (first, end_one, end_other, begin_one, begin_other, one),
            (~first, end_other, end_one, begin_other, begin_one, other),
        ):
            cp.add(after >= begin + self._delay[index, a, b]).only_enforce_if([*both, way])
            cp.add(earlier <= later + self.slack).only_enforce_if([*both, way])

    def _take_turns(self) -> None:
        """One unit at a time on a device, and on devices that share a resource."""
        cp, machines = self.cp, self.instance.machines
        spans: dict[str, list[Any]] = {device: [] for device in machines}
        for name, unit in self.instance.units.items():
            for key, option in unit.options.items():
                span = cp.new_optional_fixed_size_interval_var(
                    self.start[name], self._work[name, key], self._where.x[name, key], f"{name} {key}"
                )
                spans[option.device].append(span)
        for device, machine in machines.items():
            if not machine.parallel and len(spans[device]) > 1:
                cp.add_no_overlap(spans[device])
        resources = dict.fromkeys(r for m in machines.values() for r in sorted(m.resources))
        for resource in resources:
            sharing = [m for m in machines.values() if resource in m.resources]
            alone = [span for m in sharing if not m.parallel for span in spans[m.id]]
            if len(sharing) > 1 and len(alone) > 1:
                cp.add_no_overlap(alone)
        for one in machines.values():
            for other in machines.values():
                # Units of a parallel device overlap each other but not those of a device it shares with.
                if one.parallel and one.id != other.id and one.resources & other.resources:
                    if other.parallel and other.id < one.id:
                        continue
                    self._apart(one.id, other.id)

    def _apart(self, one: str, other: str) -> None:
        for a in self.instance.units:
            for b in self.instance.units:
                if a == b or one not in self._where.devices[a] or other not in self._where.devices[b]:
                    continue
                first = self.cp.new_bool_var(f"{a} before {b}")
                both = [self._where.on[a, one], self._where.on[b, other]]
                self.cp.add(self.start[b] >= self.end[a]).only_enforce_if([*both, first])
                self.cp.add(self.start[a] >= self.end[b]).only_enforce_if([*both, ~first])

    def _at_least(self) -> None:
        """Redundant but strong: the makespan is at least the work of any set of units that take turns."""
        machines = self.instance.machines
        turns = [[device] for device, machine in machines.items() if not machine.parallel]
        turns += [
            [d for d, m in machines.items() if resource in m.resources and not m.parallel]
            for resource in dict.fromkeys(r for m in machines.values() for r in sorted(m.resources))
        ]
        for devices in turns:
            self.cp.add(
                self.makespan
                >= sum(
                    self._work[name, key] * self._where.x[name, key]
                    for name, unit in self.instance.units.items()
                    for key, option in unit.options.items()
                    if option.device in devices
                )
            )

    def _no_dallying(self) -> None:
        """Each unit starts as soon as its order allows: what a path limit measures must not be put off."""
        cp, instance = self.cp, self.instance
        reasons: dict[str, list[Any]] = {name: [] for name in instance.units}

        def reason(unit: str, *conditions: Any) -> Any:
            literal = cp.new_bool_var("")
            reasons[unit].append(literal)
            for condition in conditions:
                cp.add(condition).only_enforce_if(literal)
            return literal

        for name, start in self.start.items():
            reason(name, start <= 0)
        for src, dst in self._where.pairs:
            reason(dst, self.start[dst] <= self.end[src] + self._waiting(src, dst))
        for (index, a, b), begin in self.transfers.items():
            tensor = instance.tensors[index]
            for reader in tensor.readers:
                variable = self._where.pairs[tensor.src, reader].get((a, b))
                if variable is not None:
                    arrival = begin + self._delay[index, a, b]
                    literal = reason(reader, self.start[reader] <= arrival)
                    cp.add_implication(literal, variable)
        for one in instance.units:
            for other in instance.units:
                if one != other:
                    rivals = self._rivals(one, other)
                    if rivals:
                        literal = reason(one, self.start[one] == self.end[other])
                        cp.add_bool_or([*rivals, ~literal])
        for literals in reasons.values():
            cp.add_bool_or(literals)
        for (index, a, b), begin in self.transfers.items():
            own = cp.new_bool_var("")
            cp.add(begin <= self.end[instance.tensors[index].src]).only_enforce_if(own)
            causes = [own, ~self._where.crossings[index, a, b]]
            for (rival, x, y), before in self.transfers.items():
                if (x, y) == (a, b) and rival != index:
                    literal = cp.new_bool_var("")
                    cp.add(begin == before + self._delay[rival, a, b]).only_enforce_if(literal)
                    cp.add_implication(literal, self._where.crossings[rival, a, b])
                    causes.append(literal)
            cp.add_bool_or(causes)

    def _rivals(self, one: str, other: str) -> list[Any]:
        literals = []
        for a in self._where.devices[one]:
            for b in self._where.devices[other]:
                if self.instance.conflict(a, b):
                    literal = self.cp.new_bool_var("")
                    self.cp.add_implication(literal, self._where.on[one, a])
                    self.cp.add_implication(literal, self._where.on[other, b])
                    literals.append(literal)
        return literals
