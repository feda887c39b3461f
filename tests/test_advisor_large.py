"""Graphs too large to prove: local search, priced bounds, spans; each held to the judge and the optimum."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from advisor_problems import exhaustive, in_process, problem, random_problems
from hypothesis import given, settings
from hypothesis import strategies as st

from gimlet_lab.advisor import baselines, evaluate, solve, solver
from gimlet_lab.advisor.judge import judge
from gimlet_lab.advisor.pricing import priced_bound_s
from gimlet_lab.advisor.problem import parse
from gimlet_lab.advisor.search import search, searchable
from gimlet_lab.advisor.spans import spans

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from graphs import KINDS


def plain(data: dict[str, Any]) -> dict[str, Any]:
    """The same problem without what local search leaves to the program."""
    devices = [{**d, "parallel": False, "resources": []} for d in data["devices"]]
    wires = [{**link, "exclusive": False} for link in data["links"]]
    return {**data, "objective": "latency", "devices": devices, "links": wires, "limits": {}}


@settings(max_examples=40, deadline=None)
@given(data=random_problems((1, 5), (1, 3), busy=True))
def test_search_is_judged_alike_and_never_worse_than_its_start(data: dict[str, Any]) -> None:
    instance = parse(plain(data))
    assert searchable(instance)
    start = baselines.best(baselines.candidates(instance))
    if start is None or start.assignment is None or start.verdict is None:
        return
    begins = start.verdict.start_s
    rank = {name: position for position, name in enumerate(instance.order)}
    order = sorted(instance.units, key=lambda name: (begins[name], rank[name]))
    places, order_found = search(instance, start.assignment, order, lambda: True)
    verdict = judge(instance, places, order_found)
    assert verdict.feasible
    assert (verdict.latency_s or 0.0) <= (start.verdict.latency_s or 0.0) * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(data=random_problems((1, 4), (1, 3), busy=True))
def test_a_priced_bound_is_below_every_placement(data: dict[str, Any]) -> None:
    asked = {**data, "objective": "latency", "limits": {}}
    best = exhaustive(asked)
    if best is not None:
        assert priced_bound_s(parse(asked)) <= best * (1 + 1e-9)


def test_a_priced_bound_sees_memory_that_the_longest_way_does_not() -> None:
    units = {f"s{i}": {"options": {"fast": 1.0, "slow": 3.0}, "weights": {f"w{i}": 1}} for i in range(4)}
    data = problem(units, [{"id": "fast", "memory_bytes": 2}, {"id": "slow"}])
    data["edges"] = [{"from": f"s{i}", "to": f"s{i + 1}"} for i in range(3)]
    data["links"] = [{"from": a, "to": b, "seconds": 0} for a, b in (("fast", "slow"), ("slow", "fast"))]
    # Two of four fit on the fast one: 2 × 1 + 2 × 3, where the longest way alone is 4.
    assert priced_bound_s(parse(data)) == pytest.approx(8.0, rel=0.03)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_larger_graphs_beat_the_simple_rules_within_their_bound(kind: str) -> None:
    data = KINDS[kind](70, 4, 1, 2.0)
    found = baselines.best(baselines.candidates(parse(data)))
    solution = solve(data, run=in_process)
    verdict = evaluate(data, solution["assignment"], solution["schedule"])
    assert verdict["feasible"]
    assert verdict["latency_s"] == pytest.approx(solution["objective"])
    assert found is not None
    assert found.verdict is not None
    assert 0.5 * solution["objective"] < solution["bound"] < solution["objective"]
    assert solution["objective"] < (found.verdict.latency_s or 0.0)


def test_the_largest_are_placed_here_by_list_scheduling_with_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "LARGE_UNITS", 300)

    def never(*_: Any) -> dict[str, Any]:
        raise AssertionError("another process was asked")

    solution = solve(KINDS["layered"](300, 8), run=never)
    assert solution["status"] == "feasible"
    assert 0.4 < solution["bound"] / solution["objective"] < 1


def test_a_large_graph_in_a_hurry_gets_one_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MOST_FOR_ALL", 100)
    instance = parse(KINDS["layered"](120, 4))
    assert [c.name for c in baselines.candidates(instance, lambda: False)] == ["automatic map"]
    assert {c.name for c in baselines.candidates(instance)} == {"automatic map", "HEFT", "split by memory"}


@settings(max_examples=40, deadline=None)
@given(data=random_problems((1, 5), (1, 3), busy=True), host=st.booleans())
def test_spans_are_allowed_and_no_better_than_possible(data: dict[str, Any], host: bool) -> None:
    asked = plain(data)
    asked |= {"transfer": "host", "links": [], "contiguous": True}
    asked["edges"] = [{**edge, "seconds": edge["bytes"]} for edge in asked["edges"]]
    asked["devices"] = [{**d, "host": host and i == 0} for i, d in enumerate(asked["devices"])]
    instance = parse(asked)
    best = exhaustive(asked)
    places = spans(instance, lambda: True)
    if places is not None:
        verdict = judge(instance, places)
        assert verdict.feasible, verdict.violations
        assert best is not None
        assert (verdict.latency_s or 0.0) >= best * (1 - 1e-9)


def test_a_chain_is_cut_where_little_crosses() -> None:
    units = {f"s{i}": {"cpu": 4.0, "gpu": {"seconds": 1.0, "memory_bytes": 1}} for i in range(6)}
    data = problem(units, [{"id": "cpu", "host": True, "parallel": True}, {"id": "gpu", "memory_bytes": 3}])
    data |= {"transfer": "host", "contiguous": True}
    sizes = (5.0, 0.5, 5.0, 5.0, 0.5)
    data["edges"] = [{"from": f"s{i}", "to": f"s{i + 1}", "seconds": s} for i, s in enumerate(sizes)]
    solution = solve(data, run=in_process)
    assert [name for name, place in solution["assignment"].items() if place == "gpu"] == ["s2", "s3", "s4"]
    assert solution["objective"] == 3 * 4 + 3 * 1 + 0.5 + 0.5
