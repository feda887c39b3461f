"""How many of which devices for each role at a rate: the problem that is asked, and its answers."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
from advisor_problems import in_process, problem

from gimlet_lab.advisor import advise, evaluate, flips, pairs
from gimlet_lab.advisor.front import pareto
from gimlet_lab.advisor.instance import Instance
from gimlet_lab.advisor.pairs import by_pair, cheapest, kind, name_of
from gimlet_lab.advisor.problem import parse
from gimlet_lab.advisor.sizing import size
from gimlet_lab.costs import estimate_serving
from gimlet_lab.errors import InfeasibleError, UnknownNameError, UsageError
from gimlet_lab.hardware.fleet import fleet
from gimlet_lab.model import Device, Edge, Estimate, Fleet, Graph, Plan, Stage, Work

HOST = Device("cpu", "cpu", "x", "cpu", live=True, cores=(0, 1))
SLO = {"ttft_s": 0.25, "tpot_s": 0.02}


@pytest.fixture(autouse=True)
def no_flips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flip points ask the question many times over: only where a test is about them."""
    if "flip" not in request.node.name:
        monkeypatch.setattr(flips, "BUDGET_S", 0.0)


def llama(calls: int, tokens: int) -> tuple[Work, ...]:
    """What a Llama 3.1 8B shows in a run."""
    attention = "attention_prefill" if tokens > 1 else "attention_decode"
    return (
        Work.of("embedding", "bfloat16", calls, rows=tokens, cols=4096),
        Work.of("gemm", "bfloat16", 32 * calls, m=tokens, n=6144, k=4096),
        Work.of(
            attention,
            "bfloat16",
            32 * calls,
            batch=1,
            q_len=tokens,
            kv_len=1024,
            heads=32,
            kv_heads=8,
            head_dim=128,
        ),
        Work.of("gemm", "bfloat16", 32 * calls, m=tokens, n=4096, k=14336),
        Work.of("gemm", "bfloat16", calls, m=1, n=128256, k=4096),
    )


def module(name: str, calls: int, tokens: int) -> Stage:
    works = llama(calls, tokens)
    return Stage(name, "module", "llm", name, calls, 0.1, 0.1 * calls, "bandwidth", works, dtype="bfloat16")


AGENT = Graph(
    (
        Stage("search", "function", "search", None, 2, 0.004, 0.008, "overhead"),
        Stage("browse", "function", "browse", None, 1, 0.05, 0.05, "wait"),
        module("prefill", 2, 1024),
        module("decode", 254, 1),
    ),
    (
        Edge("search", "prefill", "text", 1000, 2, "object"),
        Edge("browse", "prefill", "text", 1000, 1, "object"),
        Edge("prefill", "decode", "past_key_values", 1e6, 2, "tensor"),
    ),
)


def here(stage: Stage, device: Device, _on: Device | None) -> Estimate | None:
    return Estimate(stage.call_s, 0.9 * stage.call_s, 1.2 * stage.call_s, stage.bound, "measured")


def with_host(*specs: str) -> Fleet:
    found = fleet(*specs, local=())
    return Fleet((*found.devices, HOST), {**found.counts, "cpu": 1}, found.links)


def ask(*specs: str, graph: Graph = AGENT, **goal: Any) -> dict[str, Any]:
    goal = {"objective": "cost", "rate_per_s": 10.0, "estimate": here, "measured_on": HOST, **goal}
    return size(graph, with_host(*specs), **goal).problem


def plan(*specs: str, graph: Graph = AGENT, **goal: Any) -> Plan:
    goal = {"objective": "cost", "rate_per_s": 10.0, "slo": SLO, "estimate": here, **goal}
    return advise(graph, with_host(*specs), name="r", measured_on=HOST, run=in_process, **goal)


def test_a_fleet_is_sized_for_a_rate_and_the_judge_agrees() -> None:
    made = plan("h100-sxm", "mi300x", "l4")
    assert made.status == "optimal"
    verdict = evaluate(made.problem, made.assignment, made.solution["schedule"])
    assert verdict["feasible"]
    assert verdict["usd_per_hour"] == made.solution["objective"]
    assert made.usd == pytest.approx(made.solution["objective"] / 3600 / 10)
    assert {made.assignment["search"], made.assignment["browse"]} == {"cpu"}
    assert "cpu: no price is known, so what runs there is not in the sum" in made.why


def test_what_is_rented_can_serve_the_rate_by_the_serving_model_too() -> None:
    apart = {"prefill": "h100-sxm/prefill", "decode": "h100-sxm/decode"}
    made = plan("h100-sxm", rate_per_s=40.0, forbid=apart)
    pool, count = max(made.solution["count"].items(), key=lambda entry: entry[1])
    tp, batch = map(int, pool.removeprefix("h100-sxm/prefill+decode-tp").split("-b"))
    one = estimate_serving("llama-3.1-8b", "h100-sxm", tp, batch=batch, isl=1024, osl=128, dtype="bf16")
    # 80 calls a second (two an agent's request) keep the engines no more than 80% busy, and not one less.
    engines = count / tp
    assert (engines - 1) * 0.8 * one.requests_per_s < 80 <= engines * 0.8 * one.requests_per_s * 1.02


def test_more_requests_cost_more_and_tighter_levels_too() -> None:
    rates = [plan("h100-sxm", "l4", rate_per_s=rate).solution["objective"] for rate in (1.0, 10.0, 100.0)]
    assert rates[0] <= rates[1] < rates[2]
    loose, tight = (
        plan("h100-sxm", rate_per_s=100.0, slo={"tpot_s": tpot}).solution["objective"]
        for tpot in (0.03, 0.006)
    )
    assert loose < tight


def test_roles_may_lie_on_two_vendors_and_the_cache_moves_over_the_network() -> None:
    made = plan("h100-sxm", "mi300x", pin={"prefill": "h100-sxm", "decode": "mi300x"})
    prefill, decode = made.assignment["prefill"], made.assignment["decode"]
    assert prefill.startswith("h100-sxm/prefill@tp")
    assert decode.startswith("mi300x/decode@tp")
    edge = next(e for e in made.problem["edges"] if e["from"] == "prefill")
    assert edge["bytes"] == 131072 * 1024  # 32 layers × 2 × 8 heads × 128 × 2 bytes, a token
    assert set(made.solution["count"]) >= {"h100-sxm/prefill", "mi300x/decode"}


def test_engines_that_do_both_roles_are_chosen_for_both_or_for_none() -> None:
    asked = ask("h100-sxm")
    parse(asked)
    both = next(d["id"] for d in asked["devices"] if "+" in d["id"])
    split = next(o for s in asked["stages"] if s["id"] == "decode" for o in s["options"] if "@" in o)
    placed = {"search": "cpu", "browse": "cpu", "prefill": both, "decode": split}
    assert "no link" in evaluate(asked, placed)["violations"][0]


def test_roles_are_tied_by_their_cache_even_where_the_run_shows_none() -> None:
    loose = Graph(AGENT.stages, AGENT.edges[:2])
    made = plan("h100-sxm", "mi300x", "b200-sxm", graph=loose, rate_per_s=100.0)
    assert (
        made.solution["objective"]
        == plan("h100-sxm", "mi300x", "b200-sxm", rate_per_s=100.0).solution["objective"]
    )
    shared = [name for name in ("prefill", "decode") if "+" in made.assignment[name]]
    assert shared in ([], ["prefill", "decode"])
    assert made.solution["objective"] == pytest.approx(pairs(made)[0]["usd_per_hour"])


def test_counted_devices_are_never_rented_twice() -> None:
    asked = ask("h100-sxm:2")
    assert {d["max_count"] for d in asked["devices"] if d["id"].startswith("h100")} == {2}
    assert not [x for x in asked["links"] if {x["from"], x["to"]} == {"h100-sxm/prefill", "h100-sxm/decode"}]
    with pytest.raises(InfeasibleError, match="max_count"):
        plan("h100-sxm:2", rate_per_s=500.0)


def test_python_keeps_its_share_of_cores_busy_and_waiting_none() -> None:
    options = {s["id"]: s["options"] for s in ask("h100-sxm")["stages"]}
    # 10 a second, twice 4 ms on one of two cores, planned for 80% busy.
    assert options["search"]["cpu"]["load"] == pytest.approx(10 * 2 * 0.004 / 2 / 0.8)
    assert options["browse"]["cpu"]["load"] == 0.0


def test_a_price_limit_and_service_levels_that_nobody_meets_are_infeasible_by_how_much() -> None:
    cheapest = plan("h100-sxm").solution["objective"]
    with pytest.raises(InfeasibleError) as caught:
        plan("h100-sxm", max_usd_per_hour=cheapest / 2)
    assert caught.value.solution["relax"]["limits.usd_per_hour"] == pytest.approx(cheapest / 2)
    with pytest.raises(
        InfeasibleError, match=r"limits\.paths\[0\]\.seconds \+ .* \(tpot \+ .* ms\)"
    ) as caught:
        plan("l4", slo={"tpot_s": 0.001})
    missing_s = caught.value.solution["relax"]["limits.paths[0].seconds"] / 254
    assert plan("l4", slo={"tpot_s": 0.001 + missing_s * 1.001}).status == "optimal"
    with pytest.raises(InfeasibleError, match=r"\(ttft \+ "):
        plan("l4", slo={"ttft_s": 0.001}, graph=Graph(AGENT.stages[2:], AGENT.edges[2:]))


def test_another_model_is_served_in_place_of_the_runs() -> None:
    small, large = plan("h100-sxm"), plan("h100-sxm", serving={"model": "llama-3.1-70b", "dtype": "fp8"})
    assert large.solution["objective"] > small.solution["objective"]
    longer = ask("h100-sxm", isl=8192, osl=11)
    assert {s["id"]: s["calls"] for s in longer["stages"]}["decode"] == 2 * 10
    assert next(e for e in longer["edges"] if e["from"] == "prefill")["bytes"] == 131072 * 8192


def test_dollars_and_joules_of_a_request_are_its_share_of_what_is_rented() -> None:
    made = plan("h100-sxm", slo={})
    verdict = evaluate(made.problem, made.assignment)
    assert verdict["usd"] == pytest.approx(verdict["usd_per_hour"] / 3600 / 10)
    assert made.usd == pytest.approx(verdict["usd"])
    devices = sum(n for pool, n in made.solution["count"].items() if pool.startswith("h100"))
    assert verdict["joules"] == pytest.approx(devices * 700 / 10)
    least = plan("h100-sxm", "l4", slo={}, objective="energy")
    assert (least.solution["objective"] or 0.0) <= verdict["joules"]


def test_robust_rents_for_the_slow_end() -> None:
    assert (
        plan("h100-sxm", rate_per_s=40.0, robust=True, slo={}).solution["objective"]
        > plan("h100-sxm", rate_per_s=40.0, slo={}).solution["objective"]
    )


def test_the_solver_and_a_search_by_pairs_agree() -> None:
    made = plan("h100-sxm", "mi300x", "l4", "a100-sxm-80gb", rate_per_s=60.0)
    instance = parse(made.problem)
    ways = by_pair(instance, ("prefill", "decode"), made.assignment)
    values = [c.verdict.objective for c in ways.values() if c.verdict is not None and c.feasible]
    assert min(v for v in values if v is not None) == pytest.approx(made.solution["objective"])
    assert cheapest(instance, ("prefill", "decode"), made.assignment)[0] == name_of(
        made.solution["assignment"], ("prefill", "decode")
    )


def test_flip_points_name_the_price_and_there_the_choice_does_change() -> None:
    made = plan("h100-sxm", "mi300x", rate_per_s=60.0)
    line = next(x for x in made.why if x.startswith("With h100-sxm at $"))
    at = float(line.split("$")[1].split()[0])
    for factor, changes in ((1.02, False), (0.98, True)):
        cheaper = with_price(parse(made.problem), at * factor)
        names = cheapest(cheaper, ("prefill", "decode"), made.assignment)
        assert (name_of(made.assignment, ("prefill", "decode")) not in names) is changes


def with_price(instance: Instance, usd: float) -> Instance:
    machines = {
        name: dataclasses.replace(m, usd_per_hour=usd) if kind(name) == "h100-sxm" else m
        for name, m in instance.machines.items()
    }
    return dataclasses.replace(instance, machines=machines)


def test_a_flip_is_found_on_both_sides_and_none_is_made_up() -> None:
    def choice(factor: float) -> str:
        return "low" if factor < 0.3 else "high" if factor > 5 else "middle"

    found = {name: factor for factor, name in flips.flip(choice, "middle", lambda: True)}
    assert 5 < found["high"] < 5 * flips.FINE
    assert 0.3 / flips.FINE < found["low"] < 0.3
    assert flips.flip(lambda _factor: "always", "always", lambda: True) == []
    assert flips.flip(choice, "middle", lambda: False) == []


def test_a_front_trades_latency_for_money_and_ends_where_nothing_is_faster() -> None:
    points = pareto(ask("h100-sxm", "l4", slo={"tpot_s": 0.05}), points=4, run=in_process)
    assert len(points) == 4
    for slower, faster in itertools.pairwise(points):
        assert faster["latency_s"] < slower["latency_s"]
        assert faster["usd_per_hour"] >= slower["usd_per_hour"]
    two = problem({"x": {"a": {"seconds": 2, "usd": 1}, "b": {"seconds": 1, "usd": 3}}}, objective="cost")
    found = pareto(two, run=in_process)
    assert [(p["latency_s"], p["usd"]) for p in found] == [(2, 1), (1, 3)]


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({"objective": "latency"}, "a rate is planned for under cost or energy, not latency"),
        ({"rate_per_s": math.nan}, "rate_per_s must be above 0"),
        ({"rate_per_s": -1.0}, "rate_per_s must be above 0"),
        ({"graph": Graph()}, "nothing to place"),
        ({"dtype": "fp9"}, "no dtype to serve in 'fp9'"),
        ({"model": "lama-3.1-8b"}, "no model 'lama-3.1-8b'; did you mean 'llama-3.1-8b'"),
        ({"pin": {"decode": "h200"}}, "no device for decode 'h200'"),
        ({"pin": {"dekode": "h100-sxm"}}, "no stage 'dekode'; did you mean 'decode'"),
        (
            {"graph": Graph((dataclasses.replace(module("decode", 9, 1), works=()),), ())},
            "stage 'decode' can run on",
        ),
        (
            {"graph": Graph(tuple(dataclasses.replace(s, works=()) for s in AGENT.stages), AGENT.edges)},
            "do not show a decoder; say which model it serves",
        ),
    ],
)
def test_bad_input_is_one_line(goal: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, UnknownNameError)) as caught:
        ask(
            "l4" if "graph" in goal else "h100-sxm",
            **{"estimate": lambda *_: None, **goal} if "graph" in goal else goal,
        )
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
