"""The next best placements, which differ in more than names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gimlet_lab.advisor.solver import Runner, solve
from gimlet_lab.model import Plan
from gimlet_lab.progress import Progress, silent


def alternatives(
    problem: Mapping[str, Any] | Plan,
    k: int = 3,
    *,
    progress: Progress = silent,
    run: Runner | None = None,
) -> list[dict[str, Any]]:
    """The ``k`` best placements, the best first; fewer where there are no more.

    Placements that are the same but for the names of equal devices count as one.

    Parameters
    ----------
    problem : mapping or Plan
        ``gimlet.problem/1``, or a plan, whose problem is taken.

    Returns
    -------
    list of dict
        ``gimlet.solution/1``; ``bound`` is that of the placements that are not in the list before it.

    Raises
    ------
    UsageError
        Where the problem is malformed.

    Examples
    --------
    >>> found = alternatives({
    ...     "schema": "gimlet.problem/1", "objective": "latency", "devices": [{"id": "a"}, {"id": "b"}],
    ...     "stages": [{"id": "s", "options": {"a": {"seconds": 2}, "b": {"seconds": 1}}}],
    ... }, k=2)
    >>> [(one["assignment"]["s"], one["objective"]) for one in found]
    [('b', 1.0), ('a', 2.0)]
    """
    asked = problem.problem if isinstance(problem, Plan) else problem
    found: list[dict[str, Any]] = []
    for number in range(k):
        progress(number / k, f"placement {number + 1}")
        known = [one["assignment"] for one in found]
        solution = solve(asked, run=run, exclude=known, relax=False)
        if not solution["assignment"]:
            break
        found.append(solution)
    return found
