"""A solution with its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gimlet_lab.model.device import Fleet
from gimlet_lab.model.estimate import Estimate
from gimlet_lab.model.graph import Graph

SCHEMA = "gimlet.plan/1"


@dataclass(frozen=True, slots=True)
class Plan:
    """Which stage runs where, what that is predicted to do, and why.

    Attributes
    ----------
    id : str
        Short hash of the problem and the assignment.
    name : str
        Of the run it was made from.
    assignment : mapping of stage id to device id
    latency_s : float
        Predicted makespan of one request (the cell's work), in seconds.
    interval_s : tuple of float
        Its 90% interval.
    usd, joules : float or None
        Per request.
    bound, gap : float
        The solver's proof: no plan is better than ``bound``.
    status : str
        ``optimal`` or ``feasible``; an infeasible problem makes no plan.
    baselines : mapping of str to mapping
        By name: ``{"latency_s": float | None, "assignment": {...} | None, "why_not": str | None}``.
    estimates : mapping of stage id to mapping of device id to Estimate
        What one call of each stage is estimated to take on each device it was considered for.
    why : tuple of str
        Sentences.
    problem, solution : mapping
        As of the JSON contract.
    graph : Graph
    fleet : Fleet
    """

    id: str
    name: str
    assignment: Mapping[str, str]
    latency_s: float
    interval_s: tuple[float, float]
    usd: float | None
    joules: float | None
    bound: float
    gap: float
    status: str
    objective: str
    baselines: Mapping[str, Mapping[str, Any]]
    estimates: Mapping[str, Mapping[str, Estimate]]
    why: tuple[str, ...]
    problem: Mapping[str, Any]
    solution: Mapping[str, Any]
    graph: Graph = field(default_factory=Graph)
    fleet: Fleet = field(default_factory=lambda: Fleet(()))

    def explain(self) -> str:
        """The plan's reasons, in sentences."""
        return "\n".join(self.why)

    def diff(self, other: Plan | Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
        """Stages that run elsewhere in ``other``: stage id to (here, there)."""
        theirs = other.assignment if isinstance(other, Plan) else other
        names = [*self.assignment, *(name for name in theirs if name not in self.assignment)]
        return {
            name: (self.assignment.get(name), theirs.get(name))
            for name in names
            if self.assignment.get(name) != theirs.get(name)
        }

    def to_json(self) -> dict[str, Any]:
        """A plain dict, the form of an exported plan."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "name": self.name,
            "assignment": dict(self.assignment),
            "latency_s": self.latency_s,
            "interval_s": list(self.interval_s),
            "usd": self.usd,
            "joules": self.joules,
            "bound": self.bound,
            "gap": self.gap,
            "status": self.status,
            "objective": self.objective,
            "baselines": {name: dict(entry) for name, entry in self.baselines.items()},
            "estimates": {
                stage: {device: estimate.to_json() for device, estimate in by_device.items()}
                for stage, by_device in self.estimates.items()
            },
            "why": list(self.why),
            "problem": dict(self.problem),
            "solution": dict(self.solution),
            "graph": self.graph.to_json(),
            "fleet": self.fleet.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of :meth:`to_json`.

        Raises
        ------
        ValueError
            If ``data`` is not a plan, or of a newer version.
        """
        if data.get("schema") != SCHEMA:
            raise ValueError(
                f"not a plan this version reads: schema {data.get('schema')!r}, wanted {SCHEMA!r}"
            )
        values = {key: value for key, value in data.items() if key != "schema"}
        values["interval_s"] = (float(data["interval_s"][0]), float(data["interval_s"][1]))
        values["why"] = tuple(data["why"])
        values["estimates"] = {
            stage: {device: Estimate.from_json(e) for device, e in by_device.items()}
            for stage, by_device in data["estimates"].items()
        }
        values["graph"] = Graph.from_json(data["graph"])
        values["fleet"] = Fleet.from_json(data["fleet"])
        return cls(**values)
