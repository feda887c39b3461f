"""What would make an infeasible problem feasible: for each limit alone, the smallest amount."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from gimlet_lab.advisor.instance import Instance
from gimlet_lab.advisor.latency import Answer, Budget, limit_figures, minimise
from gimlet_lab.advisor.words import seconds

Minimise = Callable[..., Answer]


def relax(instance: Instance, budget: Budget, find: Minimise = minimise) -> dict[str, float | None]:
    """For each limit (and each device's memory): by how much it alone would have to give.

    Returns
    -------
    dict
        Place in the problem to amount; None where no amount makes the problem feasible. What time was too
        short to tell is left out.
    """
    amounts: dict[str, float | None] = {}
    for figure, place, limit in limit_figures(instance):
        answer = find(instance, figure, budget, without=figure)
        if answer.value is not None:
            amounts[place] = max(0.0, answer.value - limit)
        elif answer.status == "infeasible":
            amounts[place] = None
    return amounts


def sentence(
    relax: Mapping[str, float | None],
    problem: Mapping[str, Any] | None = None,
    decodes: Collection[str] = (),
) -> str:
    """Say in one line why nothing fits and what would help.

    Given the problem and its decode stages, limits on ways are called by their service levels too.
    """
    levels = {} if problem is None else _levels(problem, decodes)
    helps = []
    for place, amount in relax.items():
        if amount is not None:
            name, calls = levels.get(place, ("", 1.0))
            level = f" ({name} + {seconds(amount / calls)})" if name else ""
            helps.append(f"{place} + {amount:.6g}{level}")
    if helps:
        return "no placement meets all limits; it would with any one of: " + ", ".join(helps)
    if relax:
        return (
            "no placement is allowed, and more of any one limit or memory alone does not help: "
            "look at links, pins and groups"
        )
    return "no placement is allowed: look at links, pins and groups"


def _levels(problem: Mapping[str, Any], decodes: Collection[str]) -> dict[str, tuple[str, float]]:
    """Which service level a limit on a way stands for, and of how many calls it is the sum."""
    calls = {stage["id"]: float(stage.get("calls") or 1) for stage in problem["stages"]}
    found = {}
    for index, path in enumerate((problem.get("limits") or {}).get("paths") or ()):
        turns = path["from"] == path["to"] and path["to"] in decodes
        level = ("tpot", calls[path["to"]]) if turns else ("ttft", 1.0)
        found[f"limits.paths[{index}].seconds"] = level
    return found
