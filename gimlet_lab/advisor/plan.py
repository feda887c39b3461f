"""The road's step: graph, fleet and goal in, plan out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gimlet_lab.advisor import baselines
from gimlet_lab.advisor.build import Question, StageEstimate, build
from gimlet_lab.advisor.choice import Choice, choose, interval_s
from gimlet_lab.advisor.explain import explain
from gimlet_lab.advisor.infeasible import sentence
from gimlet_lab.advisor.instance import TOLERANCE, Instance
from gimlet_lab.advisor.pairs import on_one_kind
from gimlet_lab.advisor.problem import parse
from gimlet_lab.advisor.solver import Runner, solve
from gimlet_lab.errors import GimletError, InfeasibleError, UsageError
from gimlet_lab.model import Device, Fleet, Graph, Plan
from gimlet_lab.progress import Progress, silent


def advise(
    graph: Graph,
    fleet: Fleet,
    *,
    name: str,
    measured_on: Device | None,
    objective: str = "latency",
    slo: Mapping[str, float] | None = None,
    pin: Mapping[str, str] | None = None,
    forbid: Mapping[str, Sequence[str] | str] | None = None,
    robust: bool = False,
    rate_per_s: float | None = None,
    max_usd_per_hour: float | None = None,
    serving: Mapping[str, Any] | None = None,
    estimate: StageEstimate | None = None,
    progress: Progress = silent,
    time_limit_s: float = 30.0,
    run: Runner | None = None,
) -> Plan:
    """Where each stage should run, with a proof, baselines and reasons.

    Of plans that are closer than their intervals the simplest is taken: the fewest stages moved, then
    the fewest devices. ``plan.solution`` is the solver's optimum all the same; ``plan.gap`` is the
    distance of the plan itself to the proved bound.

    Parameters
    ----------
    name : str
        Of the run.
    measured_on : Device or None
        Where the run was measured; None: it ran dry.
    slo : mapping, optional
        ``latency_s``, ``ttft_s``, ``tpot_s``, in seconds.
    pin, forbid : mapping, optional
        Stage to the device it must run on, or to devices it must not run on.
    robust : bool
        Plan with the high end of every estimate.
    rate_per_s : float, optional
        Requests a second to size a fleet for, under cost or energy (:func:`~gimlet_lab.advisor.sizing.size`).
    max_usd_per_hour : float, optional
        What the devices in use may cost together.
    serving : mapping, optional
        ``model``, ``dtype``, ``isl``, ``osl``: what is served in place of what ran.
    estimate : callable, optional
        ``(stage, device, measured_on)`` to the Estimate of one call, or None; ``costs.stage_estimate``.

    Raises
    ------
    InfeasibleError
        No placement meets the limits; its ``solution`` says by how much each would have to give.
    UsageError
        Bad input.
    """
    if estimate is None:
        from gimlet_lab import costs

        estimate = costs.stage_estimate
    goal: dict[str, Any] = {
        "measured_on": measured_on,
        "objective": objective,
        "estimate": estimate,
        "slo": slo,
        "pin": pin,
        "forbid": forbid,
        "robust": robust,
        "max_usd_per_hour": max_usd_per_hour,
        "time_limit_s": time_limit_s,
    }
    again = None
    if rate_per_s is None:
        if serving:
            raise UsageError(f"{next(iter(serving))} is of a fleet that serves requests: give a rate too")
        question = build(graph, fleet, **goal)
    else:
        from gimlet_lab.advisor.sizing import size

        goal |= {"rate_per_s": rate_per_s, **(serving or {})}
        question = size(graph, fleet, **goal)

        def again(**changed: Any) -> Question:
            return size(graph, fleet, **{**goal, **changed})

    solution = solve(question.problem, progress, run=run)
    if solution["status"] == "infeasible":
        decodes = {stage.id for stage in graph.stages if stage.role == "decode"}
        raise InfeasibleError(sentence(solution["relax"], question.problem, decodes), solution)
    if solution["status"] == "unknown":
        raise GimletError(
            f"no plan found in {solution['seconds_spent']:.0f} s ({solution['method']}); give it more time"
        )
    instance = parse(question.problem)
    found = _baselines(instance, question)
    choice = choose(instance, question, solution, found)
    verdict = choice.verdict
    assert verdict.latency_s is not None
    assert verdict.objective is not None
    gap = (
        0.0 if not verdict.objective else max(0.0, verdict.objective - solution["bound"]) / verdict.objective
    )
    interval = interval_s(instance, question, choice)
    return Plan(
        id=plan_id(question.problem, choice.assignment),
        name=name,
        assignment=choice.assignment,
        latency_s=verdict.latency_s,
        interval_s=interval,
        usd=_usd(question, choice),
        joules=verdict.joules if _known(question, choice, "joules") else None,
        bound=solution["bound"],
        gap=gap,
        status="optimal" if gap <= instance.gap + TOLERANCE else "feasible",
        objective=objective,
        baselines={
            c.name: {
                "latency_s": c.verdict.latency_s if c.verdict is not None else None,
                "objective": c.verdict.objective if c.verdict is not None else None,
                "assignment": None if c.assignment is None else dict(c.assignment),
                "why_not": c.why_not,
            }
            for c in found
        },
        estimates=question.estimates,
        why=explain(instance, question, graph, solution, choice, found, interval, again),
        problem=question.problem,
        solution=solution,
        graph=graph,
        fleet=fleet,
    )


def plan_id(problem: Mapping[str, Any], assignment: Mapping[str, str]) -> str:
    """A short hash: the same question with the same answer has the same id, whatever time it had."""
    asked = {name: value for name, value in problem.items() if name != "time_limit_s"}
    text = json.dumps([asked, dict(assignment)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _baselines(instance: Instance, question: Question) -> list[baselines.Candidate]:
    found = baselines.candidates(instance)
    if question.rate_per_s is not None:
        # "All on" one pool means nothing to anybody; on one kind of device it does.
        return [*on_one_kind(instance, question), *(c for c in found if not c.name.startswith("all on "))]
    if not question.home:
        return found
    stay = baselines.placed(instance, "stay", question.home)
    same = next((c for c in found if c.assignment == question.home and c.name.startswith("all on")), None)
    return [stay, *(c for c in found if c is not same)]


def _usd(question: Question, choice: Choice) -> float | None:
    """Dollars of one request: what it keeps busy, or its share of what is rented."""
    if question.rate_per_s is not None and choice.verdict.usd_per_hour is not None:
        return choice.verdict.usd_per_hour / 3600 / question.rate_per_s
    return choice.verdict.usd if _known(question, choice, "usd") else None


def _known(question: Question, choice: Choice, figure: str) -> bool:
    stages = question.problem["stages"]
    return all(figure in stage["options"][choice.assignment[stage["id"]]] for stage in stages)
