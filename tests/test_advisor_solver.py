"""The solver: exhaustive search agrees, the proof is honest, and its process behaves."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from advisor_problems import (
    exhaustive,
    exhaustive_relax,
    in_process,
    links,
    problem,
    random_fleets,
    random_pipelines,
    random_problems,
    table_3,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gimlet_lab.advisor import baselines, evaluate, solve, solver
from gimlet_lab.advisor.balance import balance
from gimlet_lab.advisor.contraction import contract
from gimlet_lab.advisor.judge import judge
from gimlet_lab.advisor.problem import parse
from gimlet_lab.advisor.scale import Scale
from gimlet_lab.errors import UsageError


def hard(units: int = 120, seed: int = 0, **rest: Any) -> dict[str, Any]:
    """A problem that no solver finishes while a test waits: a random layered graph on four devices."""
    dice = random.Random(seed)
    stages, edges = {}, []
    for i in range(units):
        # Each unit has a device of its own that suits it: no rule of thumb gets this right.
        work = dice.uniform(5, 50)
        stages[f"s{i}"] = {
            f"d{d}": work * speed * dice.uniform(0.7, 1.3) for d, speed in enumerate((1, 1.2, 1.5, 2))
        }
        edges += [
            {"from": f"s{j}", "to": f"s{i}", "tensor": f"t{i}", "bytes": dice.uniform(1, 30)}
            for j in dice.sample(range(max(0, i - 5), i), min(i, 2))
        ]
    names = [f"d{d}" for d in range(4)]
    wires = links(*(f"{a}>{b}" for a in names for b in names if a != b), bytes_per_s=4.0)
    return problem(stages, names, edges=edges, links=wires, **rest)


def check(data: dict[str, Any], solution: dict[str, Any]) -> None:
    """A solution is what it says it is: by the judge, and by exhaustive search."""
    best = exhaustive(data)
    if best is None:
        assert solution["status"] == "infeasible"
        relax = exhaustive_relax(data)
        assert solution["relax"].keys() == relax.keys()
        for place, amount in relax.items():
            assert solution["relax"][place] == (None if amount is None else pytest.approx(amount, abs=1e-6))
        return
    assert solution["status"] == "optimal"
    assert solution["objective"] == pytest.approx(best, rel=1e-8, abs=1e-12)
    assert solution["bound"] <= best * (1 + 1e-12)
    verdict = evaluate(data, solution["assignment"], solution["schedule"])
    assert verdict["feasible"], verdict["violations"]
    for figure in ("objective", "latency_s", "usd", "joules", "count", "schedule"):
        assert verdict[figure] == solution[figure]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_problems((1, 5), (1, 3)))
def test_exhaustive_search_agrees(data: dict[str, Any]) -> None:
    check(data, solve(data, run=in_process))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_problems((4, 4), (2, 3), busy=True))
def test_exhaustive_search_agrees_where_every_rule_is_at_work(data: dict[str, Any]) -> None:
    check(data, solve(data, run=in_process))


@pytest.mark.slow
# The same ones every time: of six stages one in a hundred takes exhaustive search minutes.
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(random_problems((5, 5), (2, 3), busy=True))
def test_exhaustive_search_agrees_on_larger_ones(data: dict[str, Any]) -> None:
    check(data, solve(data, run=in_process))


@settings(max_examples=70, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_pipelines())
def test_exhaustive_search_agrees_on_throughput(data: dict[str, Any]) -> None:
    check(data, solve(data, run=in_process))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_pipelines((4, 6), (3, 3), contiguous=True, alike=True))
def test_exhaustive_search_agrees_on_pipelines_of_equal_devices(data: dict[str, Any]) -> None:
    check(data, solve(data, run=in_process))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_pipelines((4, 6), (2, 3), contiguous=False))
def test_local_search_keeps_the_rules_and_loses_nothing(data: dict[str, Any]) -> None:
    instance = parse({**data, "limits": {}})
    start = baselines.best(baselines.candidates(instance))
    if start is None or start.assignment is None or start.verdict is None:
        return
    smaller = contract(instance)
    begin = smaller.shrink(start.assignment)
    assume(begin is not None)  # else it tears apart what is one unit there
    assert begin is not None
    looks = iter([True, True])
    found = balance(smaller.instance, begin, lambda: next(looks, False))
    verdict = judge(instance, smaller.expand(found))
    assert verdict.feasible, verdict.violations
    assert (verdict.objective or 0.0) <= (start.verdict.objective or 0.0) * (1 + 1e-9)


def test_a_tensor_that_passes_over_a_device_costs_it_nothing() -> None:
    edges = [{"from": "x", "to": "z", "seconds": 3}, {"from": "x", "to": "y", "tensor": "t", "seconds": 0}]
    edges.append({"from": "y", "to": "z", "seconds": 0})
    stages = {name: dict.fromkeys("abc", work) for name, work in (("x", 1.0), ("y", 10.0), ("z", 1.0))}
    data = problem(stages, "abc", edges=edges, transfer="host", objective="throughput", contiguous=True)
    solution = solve(data, run=in_process)
    assert (solution["objective"], solution["status"]) == (10, "optimal")
    assert "dynamic program" in solution["method"]


def test_backward_stages_follow_their_group_and_orphans_count_the_other_way_round() -> None:
    def stage(**rest: Any) -> dict[str, Any]:
        return {"options": dict.fromkeys("ab", 1.0), **rest}

    stages = {
        "x": stage(colocate="x"),
        "y": stage(colocate="y"),
        "y back": stage(colocate="y", backward=True),
        "orphan": stage(backward=True),
        "x back": stage(colocate="x", backward=True),
    }
    names = list(stages)
    edges = [{"from": s, "to": t} for s, t in itertools.pairwise(names)]
    data = problem(stages, "ab", edges=edges, transfer="host", objective="throughput", contiguous=True)
    # The orphan lies between y and x on the way back: forward it is between x and y.
    with_x = {"x": "a", "x back": "a", "orphan": "a", "y": "b", "y back": "b"}
    assert evaluate(data, with_x)["feasible"]
    apart = {"x": "a", "x back": "a", "orphan": "b", "y": "a", "y back": "a"}
    assert "circle" in evaluate(data, apart)["violations"][0]
    assert solve(data, run=in_process)["objective"] == exhaustive(data)


# -- fleet sizing ----------------------------------------------------------------------------------------


@settings(max_examples=70, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_fleets())
def test_exhaustive_search_agrees_on_fleets(data: dict[str, Any]) -> None:
    check(data, solve(data, run=in_process))


def test_a_fleet_shares_devices_between_stages_and_copies() -> None:
    def on(load: float, **rest: Any) -> dict[str, Any]:
        return {"seconds": 0.01, "load": load, **rest}

    stages = {
        "prefill": {"big": on(0.7), "small": on(2.2)},
        "decode": {"big": on(0.5), "big@tp2": on(0.8, devices_used=2), "small": on(1.7)},
    }
    devices = [{"id": "big", "usd_per_hour": 4, "max_count": None}, {"id": "small", "usd_per_hour": 1}]
    devices[1]["max_count"] = 4
    solution = solve(problem(stages, devices, objective="cost"), run=in_process)
    assert (solution["assignment"], solution["count"]) == (dict.fromkeys(stages, "small"), {"small": 4})
    devices[1]["max_count"] = 3
    solution = solve(problem(stages, devices, objective="cost"), run=in_process)
    assert (solution["objective"], solution["count"]) == (6, {"big": 1, "small": 2})
    assert solution["status"] == "optimal"
    devices[0]["max_count"] = devices[1]["max_count"] = 1
    solution = solve(problem(stages, devices, objective="cost"), run=in_process)
    assert solution["status"] == "infeasible"
    # Small alone: one big takes prefill, two small take decode; big alone: two of them take both.
    assert solution["relax"] == {"devices.big.max_count": 1, "devices.small.max_count": 1}


# -- the paper's example ---------------------------------------------------------------------------------


def test_table_3_is_option_b() -> None:
    solution = solve(table_3(0.12))
    assert solution["assignment"] == {"prefill": "HP", "decode": "CO"}
    assert (solution["status"], solution["gap"]) == ("optimal", 0)
    assert (solution["objective"], solution["latency_s"]) == (pytest.approx(0.095), pytest.approx(0.12))


@pytest.mark.parametrize(
    ("limit", "prefill", "decode", "usd"),
    [(0.119, "HP", "HP", 0.11), (0.16, "CO", "CO", 0.06), (None, "CO", "CO", 0.06)],
)
def test_table_3_with_other_limits(limit: float | None, prefill: str, decode: str, usd: float) -> None:
    solution = solve(table_3(limit), run=in_process)
    assert solution["assignment"] == {"prefill": prefill, "decode": decode}
    assert solution["objective"] == pytest.approx(usd)


def test_table_3_below_every_option_says_what_would_help() -> None:
    data = table_3(0.104)
    data["limits"]["usd"] = 0.08
    solution = solve(data, run=in_process)
    assert (solution["status"], solution["objective"], solution["assignment"]) == ("infeasible", None, {})
    # Neither alone: 0.08 needs option C (160 ms), 104 ms needs nothing there is.
    assert solution["relax"] == {"limits.latency_s": pytest.approx(0.056), "limits.usd": None}
    del data["limits"]["usd"]
    assert solve(data, run=in_process)["relax"] == {"limits.latency_s": pytest.approx(0.001)}


def test_relax_names_memory_too() -> None:
    stages = {
        "x": {"weights": {"w": 70}, "options": {"a": {"seconds": 1, "memory_bytes": 10}}},
        "y": {"b": 1.0},
    }
    data = problem(stages, [{"id": "a", "memory_bytes": 64}, {"id": "b", "memory_bytes": 5}])
    solution = solve(data, run=in_process)
    assert solution["relax"] == {"devices.a.memory_bytes": 16, "devices.b.memory_bytes": None}


# -- edges of the format ---------------------------------------------------------------------------------


def test_nothing_to_place() -> None:
    solution = solve(problem({}))
    assert (solution["status"], solution["objective"], solution["schedule"]) == ("optimal", 0, [])


def test_work_of_no_time_at_all_is_no_division_by_zero() -> None:
    solution = solve(problem({"x": {"a": 0.0}, "y": {"a": 0.0}}), run=in_process)
    assert (solution["status"], solution["objective"], solution["gap"]) == ("optimal", 0, 0)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"contiguous": True}, "contiguous"),
        ({"objective": "throughput"}, "devices_used"),
    ],
)
def test_what_cannot_be_solved_yet_is_said(change: dict[str, Any], what: str) -> None:
    data = problem({"x": {"a": {"seconds": 1, "devices_used": 2}}}) | change
    with pytest.raises(UsageError, match=f"{what}.*not supported"):
        solve(data)


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=12))
def test_rounded_numbers_bound_the_real_ones(values: list[float]) -> None:
    scale = Scale.fit(values, sum(values))
    total = sum(values)
    low, high = (sum(rounding(v) for v in values) for rounding in (scale.down, scale.up))
    assert scale.value(low) <= total * (1 + 1e-9)
    assert scale.value(high) >= total * (1 - 1e-9)
    assert scale.value(high - low) <= 12e-11 * max(total, max(values)) * (1 + 1e-9) + 12e-18
    if scale.exact:
        assert scale.value(low) == pytest.approx(total, rel=1e-11)


def test_decimal_times_are_solved_exactly() -> None:
    scale = Scale.fit([0.08, 0.13, 0.025, 3 * 0.1], 1)
    assert scale.exact
    assert [scale.down(v) for v in (0.08, 0.025, 3 * 0.1)] == [80, 25, 300]


# -- its process -----------------------------------------------------------------------------------------


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_the_process_and_the_plain_call_agree_and_leave_nothing() -> None:
    data = hard(12)
    before = children()
    first, second = solve(data), solve(data)
    assert children() == before
    for solution in (first, second, solve(data, run=in_process)):
        assert solution["status"] == "optimal"
        assert solution["assignment"] == first["assignment"]
        assert solution["schedule"] == first["schedule"]


def test_the_time_limit_is_kept_and_the_answer_is_honest() -> None:
    data = hard(400, time_limit_s=2)
    solution = solve(data)
    assert solution["seconds_spent"] < 2 + solver.GRACE_S + 5
    assert solution["status"] == "feasible"
    assert 0 < solution["bound"] < solution["objective"]
    assert solution["gap"] == pytest.approx(1 - solution["bound"] / solution["objective"])
    assert evaluate(data, solution["assignment"], solution["schedule"])["objective"] == solution["objective"]
    assert children() == []


def test_no_time_at_all_gives_list_scheduling() -> None:
    solution = solve(hard(time_limit_s=0))
    assert (solution["status"], solution["relax"]) == ("feasible", {})
    assert "HEFT" in solution["method"]
    assert solution["bound"] > 0


def test_ctrl_c_returns_the_best_so_far() -> None:
    told = []

    def interrupt(_fraction: float, what: str) -> None:
        if what.startswith("best") and not told:
            told.append(what)
            signal.raise_signal(signal.SIGINT)

    data = hard(time_limit_s=600)
    solution = solve(data, interrupt)
    assert told
    assert (solution["status"], "interrupted" in solution["method"]) == ("feasible", True)
    assert evaluate(data, solution["assignment"], solution["schedule"])["feasible"]
    assert children() == []


def test_an_error_of_the_progress_display_leaves_no_process() -> None:
    def broken(fraction: float, _what: str) -> None:
        if fraction > 0:
            raise RuntimeError("display gone")

    with pytest.raises(RuntimeError, match="display gone"):
        solve(hard(), broken)
    assert children() == []


def test_the_process_does_not_outlive_a_killed_parent() -> None:
    program = (
        "import json, sys, psutil\nfrom gimlet_lab.advisor import solve\n"
        "def tell(fraction, what):\n"
        "    if what.startswith('best'): print([p.pid for p in psutil.Process().children()], flush=True)\n"
        "solve(json.load(sys.stdin), tell)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        json.dump(hard(time_limit_s=600), parent.stdin)
        parent.stdin.close()
        solvers = [psutil.Process(pid) for pid in json.loads(parent.stdout.readline())]
        assert solvers
        parent.kill()
    _, alive = psutil.wait_procs(solvers, timeout=60)
    assert not alive


def test_without_ortools_list_scheduling_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ortools").mkdir()
    (tmp_path / "ortools" / "__init__.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    solution = solve(hard(12))
    assert "ortools is not installed" in solution["method"]
    assert solution["status"] == "feasible"
    assert 0 < solution["bound"] <= solution["objective"]


def test_a_solver_that_dies_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ortools").mkdir()
    (tmp_path / "ortools" / "__init__.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    solution = solve(hard(12))
    assert "the solver's process failed" in solution["method"]
    assert solution["status"] == "feasible"


def test_files_of_the_users_folder_do_not_shadow_the_solver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ortools", "json", "queue", "gimlet_lab"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    assert "CP-SAT" in solve(table_3(None))["method"]


def test_importing_the_advisor_does_not_import_a_solver() -> None:
    solvers = "('ortools', 'numpy', 'torch', 'jsonschema')"
    code = f"import sys, gimlet_lab.advisor; print([m for m in {solvers} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"
