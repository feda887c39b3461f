"""A placement problem as typed data: what the judge and the solvers read once the JSON has been checked."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

#: Relative slack of every comparison (contract, section 4).
TOLERANCE = 1e-9


def at_most(value: float, limit: float) -> bool:
    """Whether ``value`` ≤ ``limit``, with the contract's relative slack."""
    return value <= limit + TOLERANCE * max(abs(value), abs(limit))


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run a unit: on a device, or on a variant of it (``id@variant``).

    Numbers are of one call, in seconds, bytes, dollars and joules; ``load`` is the share of one device.
    """

    key: str
    device: str
    seconds: float
    memory_bytes: float = 0.0
    usd: float = 0.0
    joules: float = 0.0
    load: float = 0.0
    devices_used: int = 1


@dataclass(frozen=True, slots=True)
class Machine:
    """A device of the problem; ``max_count`` None is any number, ``memory_bytes`` None no limit."""

    id: str
    memory_bytes: float | None = None
    usd_per_hour: float = 0.0
    max_count: int | None = 1
    host: bool = False
    parallel: bool = False
    resources: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Unit:
    """A stage of the problem; ``options`` holds only what ``pin`` and ``forbid`` leave."""

    id: str
    calls: float
    options: Mapping[str, Option]
    colocate: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    backward: bool = False

    def work_s(self, option: str) -> float:
        """Seconds of all calls, one block."""
        return self.calls * self.options[option].seconds


@dataclass(frozen=True, slots=True)
class Tensor:
    """What one unit makes and others read; it crosses to each device that reads it once.

    ``calls`` is the largest of the edges that carry it.
    """

    src: str
    name: str | None
    bytes: float
    seconds: float | None
    calls: float
    readers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wire:
    """A one-way link of the problem."""

    src: str
    dst: str
    bytes_per_s: float | None = None
    latency_s: float = 0.0
    seconds: float | None = None
    usd: float = 0.0
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class PathLimit:
    """Seconds allowed from the start of ``src`` to the end of ``dst``."""

    src: str
    dst: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What must hold under every objective; None is no limit."""

    latency_s: float | None = None
    usd: float | None = None
    usd_per_hour: float | None = None
    paths: tuple[PathLimit, ...] = ()


@dataclass(frozen=True)
class Instance:
    """A checked problem.

    Attributes
    ----------
    flows : set of (unit, unit)
        Between which units data must flow forward; empty where it need not (``contiguous``).
    """

    objective: str
    machines: Mapping[str, Machine]
    units: Mapping[str, Unit]
    tensors: tuple[Tensor, ...]
    wires: Mapping[tuple[str, str], Wire]
    through_host: bool
    contiguous: bool
    limits: Limits
    time_limit_s: float
    gap: float
    flows: frozenset[tuple[str, str]] = frozenset()

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Units so that producers come first; otherwise as the problem lists them."""
        rank = {unit: position for position, unit in enumerate(self.units)}
        waiting = {unit: len(producers) for unit, producers in self.producers.items()}
        ready = [rank[unit] for unit, count in waiting.items() if not count]
        names = list(self.units)
        done: list[str] = []
        while ready:
            unit = names[heapq.heappop(ready)]
            done.append(unit)
            for reader in self.readers[unit]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    heapq.heappush(ready, rank[reader])
        return tuple(done)

    @cached_property
    def producers(self) -> Mapping[str, tuple[str, ...]]:
        """Whom each unit reads from."""
        found: dict[str, dict[str, None]] = {unit: {} for unit in self.units}
        for tensor in self.tensors:
            for reader in tensor.readers:
                found[reader][tensor.src] = None
        return {unit: tuple(names) for unit, names in found.items()}

    @cached_property
    def readers(self) -> Mapping[str, tuple[str, ...]]:
        """Who reads from each unit."""
        found: dict[str, dict[str, None]] = {unit: {} for unit in self.units}
        for tensor in self.tensors:
            for reader in tensor.readers:
                found[tensor.src][reader] = None
        return {unit: tuple(names) for unit, names in found.items()}

    @cached_property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Units by ``colocate`` group; a unit without one is its own group, named by itself."""
        found: dict[str, list[str]] = {}
        for unit in self.units.values():
            name = f"group {unit.colocate}" if unit.colocate is not None else f"unit {unit.id}"
            found.setdefault(name, []).append(unit.id)
        return {name: tuple(members) for name, members in found.items()}

    @property
    def has_load(self) -> bool:
        """Whether options say what share of a device they keep busy."""
        return any(option.load > 0 for unit in self.units.values() for option in unit.options.values())

    @property
    def sized(self) -> bool:
        """Whether the answer says how many copies of a device are rented: its cost is theirs."""
        return self.objective == "cost" and self.has_load

    @property
    def counted(self) -> bool:
        """Whether ``max_count`` can stand in the way."""
        return (
            self.sized
            or any(machine.max_count == 0 for machine in self.machines.values())
            or any(
                option.devices_used > 1 for unit in self.units.values() for option in unit.options.values()
            )
        )

    def out_s(self, tensor: Tensor, src: str) -> float:
        """Seconds a tensor takes from ``src`` to the host's memory (``"host"`` transfers)."""
        return 0.0 if self.machines[src].host else (tensor.seconds or 0.0) * tensor.calls

    def in_s(self, tensor: Tensor, dst: str) -> float:
        """Seconds a tensor takes from the host's memory to ``dst`` (``"host"`` transfers)."""
        return 0.0 if self.machines[dst].host else (tensor.seconds or 0.0) * tensor.calls

    def crossing_s(self, tensor: Tensor, src: str, dst: str) -> float | None:
        """Seconds from the end of the producer on ``src`` to the tensor's being on ``dst``, alone on its way.

        None where there is no link: not allowed.
        """
        if src == dst:
            return 0.0
        if self.through_host:
            return self.out_s(tensor, src) + self.in_s(tensor, dst)
        wire = self.wires.get((src, dst))
        if wire is None:
            return None
        if tensor.seconds is not None:
            seconds = tensor.seconds
        elif wire.seconds is not None:
            seconds = wire.seconds
        else:
            seconds = wire.latency_s + (tensor.bytes / wire.bytes_per_s if wire.bytes_per_s else 0.0)
        return seconds * tensor.calls

    def conflict(self, one: str, other: str) -> bool:
        """Whether two units on these devices may not run at the same time."""
        if one == other:
            return not self.machines[one].parallel
        return bool(self.machines[one].resources & self.machines[other].resources)
