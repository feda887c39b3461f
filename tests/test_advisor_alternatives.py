"""The k best placements: by exhaustive search, up to the names of equal devices."""

from __future__ import annotations

from typing import Any

import pytest
from advisor_problems import assignments, in_process, links, problem, random_fleets, random_problems
from hypothesis import given, settings

from gimlet_lab.advisor import alternatives, solve
from gimlet_lab.advisor.judge import judge
from gimlet_lab.advisor.problem import parse
from gimlet_lab.advisor.symmetry import renamed


def test_placements_that_differ_in_names_only_count_once() -> None:
    twins = {"x": {"a": 1.0, "b": 1.0, "c": 3.0}, "y": {"a": 2.0, "b": 2.0, "c": 2.0}}
    data = problem(twins, ("a", "b", "c"), edges=[{"from": "x", "to": "y"}])
    data["links"] = links(*(f"{s}>{t}" for s in "abc" for t in "abc" if s != t), seconds=0.5)
    found = alternatives(data, 9, run=in_process)
    # Together on a (or b); x on a, y on b; x on a, y on c; both on c; x on c, y on a: five, not nine.
    assert [one["objective"] for one in found] == [3.0, 3.5, 3.5, 5.0, 5.5]


def test_a_link_of_its_own_tells_equal_devices_apart() -> None:
    data = problem({"x": {"a": 1.0, "b": 1.0}, "y": {"c": 1.0}}, ("a", "b", "c"))
    data["edges"] = [{"from": "x", "to": "y"}]
    data["links"] = [*links("a>c", seconds=1.0), *links("b>c", seconds=2.0)]
    assert [one["assignment"]["x"] for one in alternatives(data, 3, run=in_process)] == ["a", "b"]
    assert len(list(renamed(parse(data), {"x": "a", "y": "c"}))) == 1


@pytest.mark.parametrize("objective", ["latency", "throughput", "cost", "energy"])
def test_every_objective_has_a_second_best(objective: str) -> None:
    option = {"seconds": 1.0, "usd": 1.0, "joules": 1.0}
    worse = {"seconds": 2.0, "usd": 2.0, "joules": 2.0}
    data = problem({"x": {"a": option, "b": worse}}, objective=objective)
    assert [one["objective"] for one in alternatives(data, run=in_process)] == [1.0, 2.0]


@settings(max_examples=25, deadline=None)
@given(data=random_fleets() | random_problems((1, 4), (1, 3)))
def test_the_second_is_the_best_of_the_rest(data: dict[str, Any]) -> None:
    data["objective"] = "cost"
    # Whatever limits a schedule is left out: here every placement has one cost.
    data["limits"] = {n: v for n, v in data["limits"].items() if n in ("usd", "usd_per_hour")}
    first = solve(data, run=in_process, relax=False)
    if not first["assignment"]:
        return
    instance = parse(data)
    unwanted = list(renamed(instance, first["assignment"]))
    rest = [judge(instance, a) for a in assignments(instance) if a not in unwanted]
    values = [v.objective for v in rest if v.feasible and v.objective is not None]
    second = solve(data, run=in_process, exclude=[first["assignment"]], relax=False)
    assert second["assignment"] not in unwanted
    assert (second["objective"] is None) == (not values)
    if values:
        assert second["objective"] == pytest.approx(min(values), rel=1e-6, abs=1e-9)
