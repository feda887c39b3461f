"""What a solution says of itself, held against the judge's word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gimlet_lab.advisor.judge import evaluate
from gimlet_lab.advisor.schema import SOLUTION
from gimlet_lab.errors import UsageError

#: Relative slack for figures that somebody else computed and wrote down.
_SLACK = 1e-6

_FIGURES = ("objective", "latency_s", "usd", "usd_per_hour", "joules")


def complaints(problem: Mapping[str, Any], solution: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """What is wrong with a solution, one line each, and the judge's verdict.

    Parameters
    ----------
    problem : mapping
        ``gimlet.problem/1``.
    solution : mapping
        ``gimlet.solution/1``, or just its ``assignment``.

    Raises
    ------
    UsageError
        Where there is no placement to judge, or the problem is malformed.
    """
    if solution.get("schema", SOLUTION) != SOLUTION:
        raise UsageError(f"schema: {solution['schema']!r} is not {SOLUTION!r}")
    assignment = solution.get("assignment")
    if not isinstance(assignment, Mapping) or (not assignment and problem.get("stages")):
        status = f" (status {solution['status']})" if "status" in solution else ""
        raise UsageError(f"assignment: there is no placement to judge{status}")
    verdict = evaluate(problem, assignment, solution.get("schedule") or None)
    return [*verdict["violations"], *_claims(solution, verdict)], verdict


def _claims(solution: Mapping[str, Any], verdict: Mapping[str, Any]) -> Iterator[str]:
    for name in _FIGURES:
        said, found = solution.get(name), verdict[name]
        if said is not None and found is not None and abs(said - found) > _SLACK * max(abs(said), abs(found)):
            yield f"{name}: the solution says {said:.9g}, the judge {found:.9g}"
    bound, value = solution.get("bound"), verdict["objective"]
    if bound is not None and value is not None and bound > value * (1 + _SLACK):
        yield f"bound: {bound:.9g} is above the placement's own {value:.9g}"
