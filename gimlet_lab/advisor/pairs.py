"""Prefill::decode pairs: for each two kinds of device the cheapest way to serve a model on them.

Both roles choose their variant by themselves, so few combinations have to be judged: the cheapest that is
allowed. It answers a sized problem by other means than the solver, and prices what the solver did not take.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from gimlet_lab.advisor.baselines import Candidate, placed
from gimlet_lab.advisor.build import Question
from gimlet_lab.advisor.instance import Instance
from gimlet_lab.advisor.judge import judge
from gimlet_lab.advisor.problem import parse
from gimlet_lab.errors import UsageError
from gimlet_lab.model import Plan

#: Combinations of a pair that are judged at most: where the cheapest ones all fail, something else is wrong.
MOST_TRIED = 12


def kind(key: str) -> str:
    """The kind of device of an option of a sized problem.

    Examples
    --------
    >>> kind("h100-sxm/prefill@tp2-b1"), kind("h100-sxm/prefill+decode-tp1-b8"), kind("l4"), kind("cpu/0")
    ('h100-sxm', 'h100-sxm', 'l4', 'cpu/0')
    """
    pool = key.partition("@")[0]
    before, _, after = pool.rpartition("/")
    return before if before and not after.isdecimal() else pool


def pairs(plan: Plan) -> list[dict[str, Any]]:
    """What each prefill::decode pair of kinds would cost a plan's largest model, the cheapest first.

    Parameters
    ----------
    plan : Plan
        Made with a rate.

    Returns
    -------
    list of dict
        ``pair`` (``h100-sxm::mi300x``), ``usd_per_hour`` with ``low`` and ``high`` (every estimate at that
        end), ``latency_s``, ``count``, ``assignment``, and ``why_not`` where no way is allowed.

    Raises
    ------
    UsageError
        Where the plan has no served model.
    """
    instance = parse(plan.problem)
    found = [name for name, unit in instance.units.items() if any("+" in key for key in unit.options)]
    if len(found) < 2:
        raise UsageError("pairs are of a plan that serves a model at a rate (rate_per_s)")
    rows = []
    for way in by_pair(instance, (found[0], found[1]), plan.assignment).values():
        verdict, assignment = way.verdict, dict(way.assignment or {})
        assert verdict is not None
        low, high = (_rent_at(instance, plan, assignment, end) for end in ("low", "high"))
        rows.append(
            {
                "pair": way.name,
                "usd_per_hour": verdict.usd_per_hour,
                "low": low,
                "high": high,
                "latency_s": verdict.latency_s,
                "count": {pool: copies for pool, copies in verdict.count.items() if copies},
                "assignment": assignment,
                "why_not": way.why_not,
            }
        )
    return sorted(rows, key=lambda row: (row["why_not"] is not None, row["usd_per_hour"]))


def _rent_at(instance: Instance, plan: Plan, assignment: Mapping[str, str], end: str) -> float:
    """Dollars an hour with loads as one end of the estimates makes them, in shares of devices."""
    total = 0.0
    for name, key in assignment.items():
        option, estimate = instance.units[name].options[key], plan.estimates[name][key]
        ratio = getattr(estimate, end) / estimate.seconds if estimate.seconds else 1.0
        total += option.load * ratio * instance.machines[option.device].usd_per_hour
    return total


def name_of(assignment: Mapping[str, str], pair: tuple[str, str]) -> str:
    """``h100-sxm::mi300x``, in the field's notation."""
    return f"{kind(assignment[pair[0]])}::{kind(assignment[pair[1]])}"


def by_pair(
    instance: Instance, pair: tuple[str, str], rest: Mapping[str, str]
) -> dict[tuple[str, str], Candidate]:
    """The cheapest allowed placement of a model on each two kinds, the other stages as they are.

    Where none is allowed, the one that was tried last, with what is wrong with it.
    """
    best: dict[tuple[str, str], Candidate] = {}
    tried: dict[tuple[str, str], int] = {}
    for kinds, first, later in _combinations(instance, pair):
        if tried.get(kinds, 0) < MOST_TRIED:
            found = placed(instance, "::".join(kinds), {**rest, pair[0]: first, pair[1]: later})
            best[kinds] = found
            tried[kinds] = MOST_TRIED if found.feasible else tried.get(kinds, 0) + 1
    return best


def cheapest(instance: Instance, pair: tuple[str, str], rest: Mapping[str, str]) -> tuple[str, ...]:
    """The pairs of kinds that are as cheap as any; empty where none is allowed."""
    names: dict[str, None] = {}
    least: float | None = None
    for tried, (kinds, first, later) in enumerate(_combinations(instance, pair)):
        name = "::".join(kinds)
        if name in names:
            continue
        worth = _worth(instance, first, pair[0]) + _worth(instance, later, pair[1])
        if (least is not None and worth > least * (1 + 1e-9)) or tried > MOST_TRIED * 4:
            break
        if judge(instance, {**rest, pair[0]: first, pair[1]: later}).feasible:
            least = worth if least is None else least
            names[name] = None
    return tuple(names)


def _combinations(instance: Instance, pair: tuple[str, str]) -> list[tuple[tuple[str, str], str, str]]:
    """Kinds and options of both roles, the cheapest first; last those that break a service level alone."""
    found = []
    most = {name: _most_s(instance, name) for name in pair}
    sides = [
        [
            (key, option.device, kind(key), _worth(instance, key, name), unit.work_s(key) > most[name])
            for key, option in unit.options.items()
        ]
        for name, unit in ((name, instance.units[name]) for name in pair)
    ]
    for (first, one, kind_one, worth_one, late_one), (
        later,
        other,
        kind_other,
        worth_other,
        late_other,
    ) in itertools.product(*sides):
        # Engines that do both roles are taken for both.
        if one != other and ("+" in one or "+" in other or (one, other) not in instance.wires):
            continue
        late = late_one or late_other
        found.append((late, worth_one + worth_other, first, later, (kind_one, kind_other)))
    found.sort()
    served = {kinds for late, *_, kinds in found if not late}
    return [
        (kinds, first, later)
        for late, _, first, later, kinds in found
        # Where some are on time, those that cannot be are not looked at.
        if not late or kinds not in served
    ]


def _most_s(instance: Instance, unit: str) -> float:
    """What a stage may take at most for the limits on ways that it is on, whatever else is on them."""
    ends = [path.seconds for path in instance.limits.paths if unit in (path.src, path.dst)]
    return min(ends, default=float("inf")) * (1 + 1e-6)


def on_one_kind(instance: Instance, question: Question) -> list[Candidate]:
    """``all on h100-sxm``: every stage that can, on that kind, at its cheapest."""
    kinds = dict.fromkeys(kind(key) for name, _ in question.pairs for key in instance.units[name].options)
    found = []
    for one in kinds:
        rest = {
            name: min(
                unit.options,
                key=lambda key, name=name: (kind(key) != one, _worth(instance, key, name), key),  # type: ignore[misc]
            )
            for name, unit in instance.units.items()
        }
        for pair in question.pairs:
            ways = by_pair(instance, pair, rest)
            if (one, one) in ways:
                rest = dict(ways[one, one].assignment or rest)
        if all(kind(rest[name]) == one for pair in question.pairs for name in pair):
            found.append(placed(instance, f"all on {one}", rest))
    return found


def _worth(instance: Instance, key: str, unit: str) -> float:
    """What an option adds to the objective, as far as it can be told alone."""
    option = instance.units[unit].options[key]
    if instance.objective == "energy":
        return instance.units[unit].calls * option.joules
    return option.load * instance.machines[option.device].usd_per_hour
