"""Why a plan is what it is, in sentences with numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gimlet_lab.advisor.baselines import Candidate, best
from gimlet_lab.advisor.build import Question
from gimlet_lab.advisor.choice import Choice
from gimlet_lab.advisor.flips import Again, fleet_flips, plan_flips
from gimlet_lab.advisor.instance import Instance
from gimlet_lab.advisor.judge import judge
from gimlet_lab.advisor.rent import explain_fleet, price_flips
from gimlet_lab.advisor.words import interval, quantity, seconds, size
from gimlet_lab.model import Graph

_HELD = {
    "compute": "arithmetic",
    "bandwidth": "memory bandwidth",
    "overhead": "overhead (launches and Python)",
    "transfer": "transfers",
    "wait": "waiting",
    "idle": "nothing",
}


def explain(
    instance: Instance,
    question: Question,
    graph: Graph,
    solution: Mapping[str, Any],
    choice: Choice,
    found: Sequence[Candidate],
    interval_s: tuple[float, float],
    again: Again | None = None,
) -> tuple[str, ...]:
    """The plan's reasons: the whole, each stage, what moves, the baselines, the proof, what was assumed."""
    if question.rate_per_s is not None:
        tie = [] if choice.tied_with is None else [_tie(choice, choice.tied_with, instance.objective)]
        flips = [line for pair in question.pairs for line in price_flips(instance, choice, pair)]
        if again is not None:
            flips += fleet_flips(instance, question, choice, again)
        return (
            *explain_fleet(instance, question, choice),
            *tie,
            _predicted(choice, interval_s),
            *_moves(instance, choice),
            *flips,
            *_baselines(instance, choice, found),
            _proof(instance, solution, choice),
            *question.notes,
        )
    return (
        *_whole(instance, question, choice),
        *_busiest(instance, choice),
        _predicted(choice, interval_s),
        *(_stage(instance, question, graph, choice, stage) for stage in instance.units),
        *_moves(instance, choice),
        *plan_flips(instance, choice, found),
        *_baselines(instance, choice, found),
        _proof(instance, solution, choice),
        *question.notes,
    )


def _whole(instance: Instance, question: Question, choice: Choice) -> list[str]:
    assert choice.verdict.objective is not None
    moved = [s for s, place in question.home.items() if choice.assignment[s] != place]
    places = ", ".join(dict.fromkeys(choice.assignment.values()))
    if question.home and not moved:
        lines = [f"Stay: everything stays on {places}."]
    elif question.home:
        lines = [f"Move {', '.join(f'{s} to {choice.assignment[s]}' for s in moved)}; the rest stays."]
    else:
        lines = [f"Run on {places}."]
    if choice.tied_with is not None:
        lines.append(_tie(choice, choice.tied_with, instance.objective))
    return lines


def _tie(choice: Choice, other: Choice, objective: str) -> str:
    mine, theirs = choice.verdict.objective or 0.0, other.verdict.objective or 0.0
    differ = ", ".join(f"{s} on {p}" for s, p in other.assignment.items() if p != choice.assignment[s])
    if theirs <= mine:
        one, two, so = "the solver's optimum", "this plan", "so the simpler plan is taken"
    else:
        one, two, so = "a simpler plan", "this one", "so the gain is not sure"
    return (
        f"A tie: {one} ({differ}) is predicted at {quantity(theirs, objective)}, {two} at "
        f"{quantity(mine, objective)}; they differ by {quantity(abs(mine - theirs), objective)}, "
        f"which is within the ±{quantity(choice.margin, objective)} of these estimates, {so}."
    )


def _busiest(instance: Instance, choice: Choice) -> list[str]:
    if instance.objective != "throughput":
        return []
    load = choice.verdict.load_s
    name = max(load, key=lambda place: load[place])
    rate = f"{1 / load[name]:.3g} requests a second" if load[name] else "any rate"
    return [f"Busiest is {name}, {seconds(load[name])} a request: {rate} at most."]


def _predicted(choice: Choice, interval_s: tuple[float, float]) -> str:
    low, high = interval_s
    between = (
        f"{seconds(low)} with every estimate at its low end, {seconds(high)} with every one at its high end"
    )
    return f"Predicted: {seconds(choice.verdict.latency_s or 0.0)} ({between})."


def _stage(instance: Instance, question: Question, graph: Graph, choice: Choice, name: str) -> str:
    stage, place = graph[name], choice.assignment[name]
    estimates = question.estimates[name]
    here = estimates[place]
    times = f"{stage.calls} × " if stage.calls != 1 else ""
    held = _HELD.get(here.bound or stage.bound, here.bound or stage.bound)
    pinned = any(s["id"] == name and s.get("pin") for s in question.problem["stages"])
    text = f"{name} runs on {place}: {times}{interval(here)}, held back by {held}"
    others = [key for key in instance.units[name].options if key != place]
    if not others:
        return f"{text}; {'you pinned it there' if pinned else 'it may run nowhere else'}."
    group = next(members for members in instance.groups.values() if name in members)
    tried = []
    for other in others:
        if any(other not in instance.units[m].options for m in group):
            continue
        verdict = judge(instance, {**choice.assignment, **dict.fromkeys(group, other)})
        value = float("inf") if verdict.objective is None else verdict.objective
        tried.append((not verdict.feasible, value, other, verdict))
    if not tried:
        return f"{text}."
    refused, value, other, verdict = min(tried, key=lambda entry: entry[:3])
    if refused:
        return f"{text}; on {other} the plan would break a rule ({verdict.violations[0]})."
    change = value - (choice.verdict.objective or 0.0)
    sign = "more" if change >= 0 else "less"
    would = "the largest load would be" if instance.objective == "throughput" else "the whole would take"
    return (
        f"{text}; on {other}, the next best, {interval(estimates[other])}: {would} "
        f"{quantity(value, instance.objective)}, {quantity(abs(change), instance.objective)} {sign}."
    )


def _moves(instance: Instance, choice: Choice) -> list[str]:
    lines = []
    device = {name: unit.options[choice.assignment[name]].device for name, unit in instance.units.items()}
    for tensor in instance.tensors:
        src = device[tensor.src]
        for dst in dict.fromkeys(device[reader] for reader in tensor.readers if device[reader] != src):
            taken = instance.crossing_s(tensor, src, dst) or 0.0
            if tensor.bytes:
                times = f"{tensor.calls:.0f} × " if tensor.calls != 1 else ""
                what = f"{tensor.name} of {tensor.src} ({times}{size(tensor.bytes)})"
                lines.append(f"{what} crosses from {src} to {dst}: {seconds(taken)}.")
    return lines


def _baselines(instance: Instance, choice: Choice, found: Sequence[Candidate]) -> list[str]:
    top = best(found)
    value = choice.verdict.objective
    if top is None or top.verdict is None or top.verdict.objective is None or value is None:
        return ["None of the simple rules finds a placement that is allowed."]
    theirs, objective = top.verdict.objective, instance.objective
    if dict(top.assignment or {}) == dict(choice.assignment):
        return [f"The best simple rule, '{top.name}', gives the same placement."]
    gain = (theirs - value) / theirs if theirs else 0.0
    if abs(gain) < 5e-4:
        return [f"The best simple rule, '{top.name}' ({quantity(theirs, objective)}), is as good."]
    verb = "better than" if gain >= 0 else "worse than"
    rule = f"the best simple rule, '{top.name}' ({quantity(theirs, objective)})"
    return [f"{quantity(value, objective)} is {abs(gain):.1%} {verb} {rule}."]


def _proof(instance: Instance, solution: Mapping[str, Any], choice: Choice) -> str:
    bound, objective = solution["bound"], instance.objective
    value = choice.verdict.objective or 0.0
    gap = max(0.0, value - bound) / value if value else 0.0
    proved = f"Proved: no placement is below {quantity(bound, objective)} by these estimates"
    # What rounding to the solver's integers costs is no news to anybody.
    within = f"; this plan is within {gap:.2%} of that" if gap > 1e-6 else ", and this plan is there"
    return f"{proved}{within} ({solution['method']})."
