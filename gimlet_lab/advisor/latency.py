"""The exact model: placement, schedule, memory and limits in one CP-SAT program, for any one figure.

Only the solver's own process imports this module's ortools (``worker.py``).
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gimlet_lab.advisor.instance import TOLERANCE, Instance, Limits, at_most
from gimlet_lab.advisor.judge import Verdict, judge
from gimlet_lab.advisor.scale import Scale
from gimlet_lab.advisor.throughput import Load, forward
from gimlet_lab.advisor.when import When
from gimlet_lab.advisor.where import Where

#: Up to here the optimum itself is looked for; beyond, the search stops at the problem's gap.
EXACT_UNITS = 25

Report = Callable[[float | None, float | None], None]


@dataclass(frozen=True)
class Start:
    """A placement to begin from: its start times in seconds, and its objective."""

    assignment: Mapping[str, str]
    start_s: Mapping[str, float]
    makespan_s: float
    value: float = math.inf


@dataclass(frozen=True)
class Answer:
    """What the solver says; ``value`` is judged, ``bound`` proved, both in the unit of the figure."""

    status: str
    bound: float | None
    assignment: Mapping[str, str] | None = None
    order: tuple[str, ...] | None = None
    value: float | None = None


@dataclass
class Budget:
    """Time left, and a switch to stop before it is spent."""

    deadline_s: float
    clock: Callable[[], float] = time.monotonic
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def left_s(self) -> float:
        """Seconds left; 0 when stopped."""
        return 0.0 if self.stopped.is_set() else max(0.0, self.deadline_s - self.clock())


def minimise(
    instance: Instance,
    figure: str,
    budget: Budget,
    *,
    without: str | None = None,
    start: Start | None = None,
    report: Report = lambda _value, _bound: None,
    exclude: Sequence[Mapping[str, str]] = (),
) -> Answer:
    """Find the placement with the least of one figure.

    Parameters
    ----------
    figure : str
        ``latency_s``, ``load_s``, ``usd``, ``joules``, ``usd_per_hour``, ``paths[0]``,
        ``memory DEVICE`` or ``count DEVICE``.
    without : str, optional
        A figure whose limit is left out.
    start : Start, optional
        A placement that meets all limits.
    exclude : sequence of assignments
        Placements that are not wanted.
    """
    answer = _minimise(instance, figure, budget, without, start, report, exclude, tight=False)
    if answer.status not in ("optimal", "feasible") or answer.value is not None:
        return answer
    # Rounding let a limit slip by less than a tick's worth: keep the bound, look again on the safe side.
    safe = _minimise(instance, figure, budget, without, start, report, exclude, tight=True)
    if safe.value is None:
        return Answer("unknown", answer.bound)
    return replace(safe, status="feasible", bound=answer.bound)


def _minimise(
    instance: Instance,
    figure: str,
    budget: Budget,
    without: str | None,
    start: Start | None,
    report: Report,
    exclude: Sequence[Mapping[str, str]],
    *,
    tight: bool,
) -> Answer:
    from ortools.sat.python import cp_model

    if budget.left_s <= 0:
        return Answer("unknown", None)
    model = _Program(instance, figure, without, start, safe=tight)
    model.forbid(exclude)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = budget.left_s
    solver.parameters.relative_gap_limit = TOLERANCE if len(instance.units) <= EXACT_UNITS else instance.gap
    solver.parameters.random_seed = 0
    # It would take SIGINT over and never give it back.
    solver.parameters.catch_sigint_signal = False
    # Two strategies taking turns in small steps: one without the linear relaxation, one with all of it.
    # Either alone is slow on some graphs by a factor of ten; turns keep the answer the same on every run.
    solver.parameters.interleave_search = True
    solver.parameters.interleave_batch_size = 1
    if figure == "load_s" and len(instance.units) > EXACT_UNITS:
        # Loads are improved by neighbourhoods, which are among the default strategies.
        solver.parameters.num_workers = 8
    else:
        solver.parameters.num_workers = 2
        solver.parameters.subsolvers.extend(["no_lp", "max_lp"])
    unit = model.unit

    class Watch(cp_model.CpSolverSolutionCallback):
        def on_solution_callback(self) -> None:
            report(unit.value(self.objective_value), unit.value(self.best_objective_bound))
            if budget.stopped.is_set():
                self.stop_search()

    solver.best_bound_callback = lambda bound: report(None, unit.value(bound))
    done = threading.Event()

    def stop_when_told() -> None:
        while not done.wait(0.05):
            if budget.stopped.is_set():
                solver.stop_search()

    watcher = threading.Thread(target=stop_when_told, daemon=True)
    watcher.start()
    try:
        code = solver.solve(model.cp, Watch())
    finally:
        done.set()
        watcher.join()
    if code == cp_model.INFEASIBLE:
        return Answer("infeasible", None)
    if code not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Answer("unknown", None)
    bound = max(0.0, unit.value(solver.best_objective_bound))
    assignment, order = model.read(solver)
    verdict = judge(relaxed(instance, without), assignment, order)
    status = "optimal" if code == cp_model.OPTIMAL else "feasible"
    if not verdict.feasible:
        return Answer(status, bound)
    value = measure(instance, verdict, figure)
    if at_most(value, bound):
        bound = value
    return Answer(status, min(bound, value), assignment, order, value)


def relaxed(instance: Instance, without: str | None) -> Instance:
    """The instance without the limit on one figure."""
    if without is None:
        return instance
    if without.startswith(("memory ", "count ")):
        what, _, name = without.partition(" ")
        machine = instance.machines[name]
        machine = (
            replace(machine, memory_bytes=None) if what == "memory" else replace(machine, max_count=None)
        )
        return replace(instance, machines={**instance.machines, name: machine})
    limits = instance.limits
    if without.startswith("paths["):
        index = int(without[6:-1])
        paths = tuple(
            replace(path, seconds=1e300) if i == index else path for i, path in enumerate(limits.paths)
        )
        return replace(instance, limits=replace(limits, paths=paths))
    fields = {name: getattr(limits, name) for name in ("latency_s", "usd", "usd_per_hour")}
    return replace(instance, limits=Limits(**{**fields, without: None}, paths=limits.paths))


def measure(instance: Instance, verdict: Verdict, figure: str) -> float:
    """A figure of a judged placement."""
    if figure.startswith("memory "):
        return verdict.memory_bytes[figure.removeprefix("memory ")]
    if figure.startswith("count "):
        return verdict.count.get(figure.removeprefix("count "), 0)
    if figure.startswith("paths["):
        path = instance.limits.paths[int(figure[6:-1])]
        return verdict.end_s[path.dst] - verdict.start_s[path.src]
    if figure == "load_s":
        return max(verdict.load_s.values(), default=0.0)
    value = getattr(verdict, figure)
    assert value is not None
    return float(value)


class _Program:
    """The CP-SAT program of an instance; times, money, energy and bytes each on a scale of their own."""

    def __init__(
        self, instance: Instance, figure: str, without: str | None, start: Start | None, *, safe: bool
    ) -> None:
        from ortools.sat.python import cp_model

        self.cp: Any = cp_model.CpModel()
        self._instance = relaxed(instance, without)
        limits = self._instance.limits
        timed = figure == "latency_s" or limits.latency_s is not None or bool(limits.paths)
        self._where = Where(self.cp, self._instance, safe=safe, timed=timed)
        self._when: When | None = None
        figures = dict(self._where.figures)
        if self._instance.flows:
            forward(self._where)
        if figure == "load_s":
            load = Load(self._where)
            figures["load_s"] = (load.most, load.scale)
        if timed:
            # Nothing longer than what is in hand already; rounding down keeps that placement inside.
            most_s = start.makespan_s if start is not None and figure == "latency_s" and not safe else None
            self._when = When(self._where, most_s)
            figures["latency_s"] = (self._when.makespan, self._when.scale)
            for index, path in enumerate(limits.paths):
                took = self._when.end[path.dst] - self._when.start[path.src]
                figures[f"paths[{index}]"] = (took, self._when.scale)
        for name, place, limit in limit_figures(self._instance):
            if name != without and not name.startswith(("memory ", "count ")):
                expression, scale = figures[name]
                self.cp.add(expression <= scale.limit(limit) + self._leeway(place, safe=safe))
        if start is not None:
            self._hint(start)
        if figure.startswith("memory "):
            expression, self.unit = self._where.used[figure.removeprefix("memory ")], self._where.bytes
        elif figure.startswith("count "):
            # Where nothing can run there, none are needed.
            expression = self._where.count.get(figure.removeprefix("count "), 0)
            self.unit = Scale(1.0, exact=True)
        else:
            expression, self.unit = figures[figure]
        self.cp.minimize(expression)

    def forbid(self, placements: Sequence[Mapping[str, str]]) -> None:
        """None of these."""
        for places in placements:
            self.cp.add_bool_or(~self._where.x[unit, key] for unit, key in places.items())

    def _leeway(self, place: str, *, safe: bool) -> int:
        """A path is the difference of two rounded times: it may be off either way."""
        if self._when is None or "paths" not in place:
            return 0
        return -self._when.slack if safe else self._when.slack

    def _hint(self, start: Start) -> None:
        for (name, key), variable in self._where.x.items():
            self.cp.add_hint(variable, start.assignment[name] == key)
        if self._when is not None and start.start_s:
            for name, variable in self._when.start.items():
                self.cp.add_hint(variable, self._when.scale.down(start.start_s[name]))

    def read(self, solver: Any) -> tuple[dict[str, str], tuple[str, ...] | None]:
        """The placement and the order that a solution means; None where time plays no part."""
        assignment = {name: key for (name, key), x in self._where.x.items() if solver.value(x)}
        when = self._when
        if when is None:
            return assignment, None
        sent: dict[str, int] = {}
        for way, begin in when.transfers.items():
            if solver.value(self._where.crossings[way]):
                src, at = self._instance.tensors[way[0]].src, solver.value(begin)
                sent[src] = min(sent.get(src, at), at)
        keys = {
            name: (solver.value(when.end[name]), solver.value(when.start[name]), sent.get(name, 0), position)
            for position, name in enumerate(self._instance.order)
        }
        return assignment, _sorted_by(self._instance, keys)


def _sorted_by(instance: Instance, keys: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Units by key, producers first even where a key ties."""
    waiting = {unit: len(producers) for unit, producers in instance.producers.items()}
    ready: list[tuple[tuple[int, ...], str]] = [(keys[u], u) for u, count in waiting.items() if not count]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        _, unit = heapq.heappop(ready)
        order.append(unit)
        for reader in instance.readers[unit]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, (keys[reader], reader))
    return tuple(order)


def limit_figures(instance: Instance) -> Iterator[tuple[str, str, float]]:
    """Each limit that could give: the figure, its place in the problem and its value."""
    limits = instance.limits
    for name in ("latency_s", "usd", "usd_per_hour"):
        value = getattr(limits, name)
        if value is not None:
            yield name, f"limits.{name}", value
    for index, path in enumerate(limits.paths):
        yield f"paths[{index}]", f"limits.paths[{index}].seconds", path.seconds
    for device, machine in instance.machines.items():
        if machine.memory_bytes is not None:
            yield f"memory {device}", f"devices.{device}.memory_bytes", machine.memory_bytes
        if machine.max_count is not None and instance.counted:
            yield f"count {device}", f"devices.{device}.max_count", machine.max_count
