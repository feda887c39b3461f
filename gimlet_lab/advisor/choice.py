"""Which of the plans that cannot be told apart to take: the simplest."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gimlet_lab.advisor.baselines import Candidate
from gimlet_lab.advisor.build import Question
from gimlet_lab.advisor.instance import Instance, Unit
from gimlet_lab.advisor.judge import Verdict, judge

#: A simpler plan may cost this much more than the optimum. Beyond that the optimum is taken, however wide
#: the intervals: its gain is uncertain, and still what is to be expected.
SIMPLER_IS_WORTH = 0.05


@dataclass(frozen=True)
class Choice:
    """The plan that is taken.

    Attributes
    ----------
    tied_with : Choice or None
        The plan that it cannot be told apart from: the optimum where a simpler one was taken, and the
        simplest such plan where the optimum was.
    margin : float
        By how much the two may differ by chance, in the unit of the objective.
    """

    assignment: Mapping[str, str]
    order: tuple[str, ...] | None
    verdict: Verdict
    tied_with: Choice | None = None
    margin: float = 0.0


def choose(
    instance: Instance, question: Question, solution: Mapping[str, Any], found: Sequence[Candidate]
) -> Choice:
    """Take the optimum, or the simplest plan that it cannot be told apart from and that costs little more.

    Two plans cannot be told apart where their difference is within its interval: stages that are in the same
    place in both do not count, the errors of the others are taken as independent.
    """
    assignment = dict(solution["assignment"])
    order = tuple(entry["stage"] for entry in solution["schedule"])
    best = _by_first_use(instance, Choice(assignment, order, judge(instance, assignment, order)))
    rivals = [best, *_reverted(instance, question, best)]
    rivals += [
        Choice(c.assignment, c.order, c.verdict)
        for c in found
        if c.feasible and c.assignment is not None and c.verdict is not None
    ]
    simpler = [rival for rival in rivals if _simplicity(question, rival) < _simplicity(question, best)]
    ties = []
    for rival in sorted(simpler, key=lambda rival: _simplicity(question, rival)):
        margin = difference_margin(instance, question, best, rival)
        if _objective(rival) - _objective(best) <= margin:
            ties.append((rival, margin))
    for rival, margin in ties:
        if _objective(rival) <= (1 + SIMPLER_IS_WORTH) * _objective(best):
            return replace(rival, tied_with=best, margin=margin)
    return replace(best, tied_with=ties[0][0], margin=ties[0][1]) if ties else best


def _by_first_use(instance: Instance, choice: Choice) -> Choice:
    """The same plan with the copies of a device (``l4``, ``l4#2``) taken in the order of the stages."""
    renamed: dict[str, str] = {}
    used: dict[str, int] = {}
    for place in choice.assignment.values():
        base = place.partition("#")[0]
        if place not in renamed:
            used[base] = used.get(base, 0) + 1
            renamed[place] = base if used[base] == 1 else f"{base}#{used[base]}"
    assignment = {stage: renamed[place] for stage, place in choice.assignment.items()}
    verdict = judge(instance, assignment, choice.order)
    # Where pins or links tell copies apart the names stay.
    same = verdict.feasible and verdict.objective == choice.verdict.objective
    return Choice(assignment, choice.order, verdict) if same else choice


def _objective(choice: Choice) -> float:
    assert choice.verdict.objective is not None
    return choice.verdict.objective


def _simplicity(question: Question, choice: Choice) -> tuple[float, ...]:
    moved = sum(choice.assignment[stage] != place for stage, place in question.home.items())
    return moved, len(set(choice.assignment.values())), _objective(choice)


def _reverted(instance: Instance, question: Question, best: Choice) -> list[Choice]:
    """The optimum with moves taken back, one after another, the one that costs least first."""
    chain: list[Choice] = []
    current = best
    while True:
        steps = []
        for members in instance.groups.values():
            moved = {
                m: question.home[m]
                for m in members
                if current.assignment[m] != question.home.get(m, current.assignment[m])
            }
            if not moved or any(place not in instance.units[m].options for m, place in moved.items()):
                continue
            assignment = {**current.assignment, **moved}
            verdict = judge(instance, assignment)
            if verdict.feasible:
                steps.append(Choice(assignment, None, verdict))
        if not steps:
            return chain
        current = min(steps, key=_objective)
        chain.append(current)


def difference_margin(instance: Instance, question: Question, one: Choice, other: Choice) -> float:
    """How far apart two plans may be by the errors of the stages that differ, in the objective's unit."""
    differ = [stage for stage in instance.units if one.assignment[stage] != other.assignment[stage]]
    slower = judge(with_bounds(instance, question, "high", differ), one.assignment, one.order)
    faster = judge(with_bounds(instance, question, "low", differ), other.assignment, other.order)
    up = (slower.objective or 0.0) - _objective(one)
    down = _objective(other) - (faster.objective or 0.0)
    return math.hypot(max(0.0, up), max(0.0, down))


def with_bounds(
    instance: Instance, question: Question, end: str, stages: Collection[str] | None = None
) -> Instance:
    """The instance with every estimate (or that of some stages) at its ``low`` or ``high``.

    Dollars, joules and load of a call go with its seconds.
    """
    units: dict[str, Unit] = {}
    for name, unit in instance.units.items():
        if stages is not None and name not in stages:
            units[name] = unit
            continue
        options = {}
        for key, option in unit.options.items():
            estimate = question.estimates[name][key]
            seconds = float(getattr(estimate, end))
            # Money and energy are of the estimate itself, also where the plan is for its high end.
            ratio = seconds / estimate.seconds if estimate.seconds else 1.0
            options[key] = replace(
                option,
                seconds=seconds,
                usd=option.usd * ratio,
                joules=option.joules * ratio,
                load=option.load * ratio,
            )
        units[name] = replace(unit, options=options)
    return replace(instance, units=units)


def interval_s(instance: Instance, question: Question, choice: Choice) -> tuple[float, float]:
    """Latency with every estimate at its low end, and with every one at its high end.

    Wider than a 90% interval of the whole where errors are independent; right where they go together.
    """
    low, high = (
        judge(with_bounds(instance, question, end), choice.assignment, choice.order).latency_s or 0.0
        for end in ("low", "high")
    )
    return low, high
