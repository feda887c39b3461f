"""The Pareto front of latency against cost: what less time costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gimlet_lab.advisor.solver import Runner, solve
from gimlet_lab.errors import UsageError
from gimlet_lab.model import Plan
from gimlet_lab.progress import Progress, silent

#: How much faster the next point must be.
STEP = 0.1


def pareto(
    problem: Mapping[str, Any] | Plan,
    points: int = 8,
    *,
    step: float = STEP,
    progress: Progress = silent,
    run: Runner | None = None,
) -> list[dict[str, Any]]:
    """The cheapest placement, then the cheapest of those a step faster, until none is.

    Parameters
    ----------
    problem : mapping or Plan
        ``gimlet.problem/1`` with objective ``cost`` or ``energy``, or a plan for such a problem; its limits
        hold at each point.
    points : int
        How many at most.
    step : float
        Each point takes at least this share of latency less than the one before.

    Returns
    -------
    list of dict
        ``gimlet.solution/1``, the cheapest first. No placement is both faster and cheaper than a point whose
        status is ``optimal``.

    Raises
    ------
    UsageError
        For another objective, or a malformed problem.

    Examples
    --------
    >>> found = pareto({
    ...     "schema": "gimlet.problem/1", "objective": "cost", "devices": [{"id": "a"}, {"id": "b"}],
    ...     "stages": [{"id": "s", "options": {
    ...         "a": {"seconds": 2, "usd": 1}, "b": {"seconds": 1, "usd": 3}}}],
    ... }, points=2)
    >>> [(point["latency_s"], point["usd"]) for point in found]
    [(2.0, 1.0), (1.0, 3.0)]
    """
    asked = problem.problem if isinstance(problem, Plan) else problem
    if asked.get("objective") not in ("cost", "energy"):
        raise UsageError(f"objective: a front is of cost or energy, not {asked.get('objective')!r}")
    limits = dict(asked.get("limits") or {})
    found: list[dict[str, Any]] = []
    for number in range(points):
        progress(number / points, f"point {number + 1}")
        solution = solve({**asked, "limits": limits}, run=run, relax=False)
        if solution["latency_s"] is None:
            break
        found.append(solution)
        limits["latency_s"] = solution["latency_s"] * (1 - step)
    return found
