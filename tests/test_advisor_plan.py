"""From a graph and a fleet to a plan: the problem that is asked, ties, baselines, reasons."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from advisor_problems import in_process, problem

from gimlet_lab.advisor import advise, baselines, evaluate
from gimlet_lab.advisor.build import build
from gimlet_lab.advisor.problem import parse
from gimlet_lab.advisor.words import seconds
from gimlet_lab.errors import InfeasibleError, UnknownNameError, UsageError
from gimlet_lab.model import Device, Edge, Estimate, Fleet, Graph, Link, Plan, Quantity, Stage


def known(value: float) -> Quantity:
    return Quantity(value, "a test", "2026-11-01", "measured")


def device(
    name: str, kind: str = "cpu", memory: float = 2e10, usd: float | None = None, **rest: Any
) -> Device:
    price = None if usd is None else known(usd)
    return Device(name, name, "x", kind, memory_bytes=known(memory), usd_per_hour=price, **rest)


CPU = device("cpu", resources=("core0", "core1"), live=True, usd=1.0)
SLICES = tuple(device(f"cpu/{i}", resources=(f"core{i}",), live=True) for i in range(2))
L4 = device("l4", "gpu", memory=2.4e10, usd=0.8)
LINKS = tuple(
    Link(a, b, 1e10, 1e-5)
    for a in ("cpu", "cpu/0", "cpu/1", "l4")
    for b in ("cpu", "cpu/0", "cpu/1", "l4")
    if a != b
)


def stage(name: str, kind: str, call_s: float, calls: int = 1, **rest: Any) -> Stage:
    role = name if name in ("prefill", "decode", "embed") else None
    return Stage(name, kind, name, role, calls, call_s, call_s * calls, "bandwidth", **rest)


AGENT = Graph(
    (
        stage("embed", "module", 0.02, 2, weights={"minilm": 90_000_000}),
        stage("search", "function", 0.004, 2),
        stage("calculate", "function", 0.001, 2),
        stage("build_prompt", "glue", 0.002, 2),
        stage("prefill", "module", 0.3, 2, weights={"llm": 540_000_000}),
        stage("decode", "module", 0.04, 64, weights={"llm": 540_000_000}, state_bytes=10_000_000),
    ),
    (
        Edge("embed", "search", "vector", 1536, 2, "tensor"),
        Edge("search", "calculate", "passages", None, 2, "object"),
        Edge("calculate", "build_prompt", "result", 100, 2, "def-use"),
        Edge("build_prompt", "prefill", "ids", 1000, 2, "tensor"),
        Edge("prefill", "decode", "kv", 5e6, 2, "tensor"),
        Edge("decode", "embed", "text", 100, 1, "def-use", back=True),
    ),
)

Speeds = Mapping[str, float]


def estimates(speeds: Speeds, spread: float = 0.2) -> Callable[[Stage, Device, Device], Estimate | None]:
    """Each device is a factor slower than the measured one; Python runs on hosts only."""

    def estimate(stage: Stage, device: Device, measured_on: Device) -> Estimate | None:
        if device.kind != "cpu" and stage.kind != "module":
            return None
        value = stage.call_s * speeds[device.id]
        source = "measured" if device == measured_on else "model"
        return Estimate(value, value * (1 - spread), value * (1 + spread), stage.bound, source)

    return estimate


def fleet(*devices: Device, links: tuple[Link, ...] = LINKS, **counts: int | None) -> Fleet:
    return Fleet(devices, counts, tuple(x for x in links if {x.src, x.dst} <= {d.id for d in devices}))


def plan(
    chosen: Fleet,
    speeds: Speeds,
    *,
    graph: Graph = AGENT,
    spread: float = 0.2,
    on: Device = CPU,
    **options: Any,
) -> Plan:
    return advise(
        graph, chosen, name="r", measured_on=on, estimate=estimates(speeds, spread), run=in_process, **options
    )


FAST = {"cpu": 1.0, "l4": 0.1}


# -- the problem that is asked ---------------------------------------------------------------------------


def ask(chosen: Fleet, graph: Graph = AGENT, on: Device = CPU, **options: Any) -> Any:
    speeds = dict.fromkeys((d.id for d in chosen), 1.0)
    options = {"objective": "latency", "estimate": estimates(speeds), **options}
    return build(graph, chosen, measured_on=on, **options)


def test_loops_are_calls_and_back_edges_are_left_out() -> None:
    asked = ask(fleet(CPU, L4)).problem
    parse(asked)
    assert {s["id"]: s["calls"] for s in asked["stages"]}["decode"] == 64
    assert {(e["from"], e["to"]): (e["bytes"], e["calls"]) for e in asked["edges"]} == {
        ("embed", "search"): (1536, 2),
        ("search", "calculate"): (0, 2),
        ("calculate", "build_prompt"): (100, 2),
        ("build_prompt", "prefill"): (1000, 2),
        ("prefill", "decode"): (5e6, 2),
    }


def test_unknown_bytes_are_noted() -> None:
    assert ask(fleet(CPU, L4)).notes == ("search → calculate: bytes unknown, planned as 0",)


def test_glue_stays_with_the_notebook_and_python_on_hosts() -> None:
    asked = ask(fleet(CPU, SLICES[0], L4)).problem
    options = {s["id"]: set(s["options"]) for s in asked["stages"]}
    assert options["build_prompt"] == {"cpu"}
    assert options["search"] == {"cpu", "cpu/0"}
    assert options["decode"] == {"cpu", "cpu/0", "l4"}


def test_shared_weights_state_memory_and_cores_are_passed_on() -> None:
    asked = ask(fleet(CPU, *SLICES)).problem
    entries = {s["id"]: s for s in asked["stages"]}
    assert entries["prefill"]["weights"] == entries["decode"]["weights"] == {"llm": 5.4e8}
    assert entries["decode"]["options"]["cpu"]["memory_bytes"] == 1e7
    assert {d["id"]: d["resources"] for d in asked["devices"]}["cpu"] == ["core0", "core1"]


def test_a_second_copy_is_a_device_of_its_own_linked_through_the_host() -> None:
    links = (Link("l4", "cpu", 1e10, 1e-5), Link("cpu", "l4", 1e10, 1e-5))
    asked = ask(fleet(CPU, L4, links=links, l4=2)).problem
    assert [d["id"] for d in asked["devices"]] == ["cpu", "l4", "l4#2"]
    between = {(x["from"], x["to"]): (x["bytes_per_s"], x["latency_s"]) for x in asked["links"]}
    assert between["l4", "l4#2"] == (pytest.approx(5e9), pytest.approx(2e-5))
    assert between["cpu", "l4#2"] == (1e10, 1e-5)


def test_one_name_for_tensors_of_two_sizes_is_told_apart() -> None:
    graph = Graph(
        (stage("x", "module", 1.0), stage("y", "module", 1.0), stage("z", "module", 1.0)),
        (Edge("x", "y", "out", 10, 1, "tensor"), Edge("x", "z", "out", 20, 1, "tensor")),
    )
    asked = ask(fleet(CPU), graph).problem
    parse(asked)
    assert [e["tensor"] for e in asked["edges"]] == ["out", "out~2"]


def test_service_levels_become_limits() -> None:
    slo = {"latency_s": 9.0, "ttft_s": 2.0, "tpot_s": 0.05}
    limits = ask(fleet(CPU), slo=slo).problem["limits"]
    assert limits["latency_s"] == 9.0
    assert limits["paths"] == [
        {"from": "embed", "to": "prefill", "seconds": 2.0},
        {"from": "decode", "to": "decode", "seconds": pytest.approx(64 * 0.05)},
    ]


def test_bad_input_is_one_line_with_the_nearest_names() -> None:
    cases: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (UsageError, "Python functions have nowhere to run on l4", lambda: ask(fleet(L4))),
        (
            UnknownNameError,
            "no stage 'decod'; did you mean 'decode'",
            lambda: ask(fleet(CPU), pin={"decod": "cpu"}),
        ),
        (UnknownNameError, "no device 'l40'", lambda: ask(fleet(CPU, L4), forbid={"decode": ["l40"]})),
        (UsageError, "stage 'search' cannot run on l4", lambda: ask(fleet(CPU, L4), pin={"search": "l4"})),
        (UnknownNameError, "no objective 'speed'", lambda: ask(fleet(CPU), objective="speed")),
        (UnknownNameError, "no slo 'ttft'; did you mean 'ttft_s'", lambda: ask(fleet(CPU), slo={"ttft": 1})),
        (UsageError, "no price for cpu/0", lambda: ask(fleet(CPU, SLICES[0]), objective="cost")),
        (UsageError, "no energy figure", lambda: ask(fleet(CPU), objective="energy")),
        (UsageError, "the fleet has no devices", lambda: ask(Fleet(()))),
        (
            UsageError,
            "this run has no decode stage",
            lambda: ask(fleet(CPU), Graph(AGENT.stages[:2]), slo={"tpot_s": 1}),
        ),
        (
            UsageError,
            "stage 'search' can run on none of cpu",
            lambda: ask(
                fleet(CPU),
                estimate=lambda s, d, m: None if s.id == "search" else Estimate(1, 1, 1, None, "model"),
            ),
        ),
    ]
    for kind, message, act in cases:
        with pytest.raises(kind, match=r".") as caught:
            act()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


# -- plans -----------------------------------------------------------------------------------------------


def test_models_go_where_they_are_fast_and_python_stays() -> None:
    made = plan(fleet(CPU, L4), FAST)
    assert {k: v for k, v in made.assignment.items() if v == "l4"}.keys() == {"embed", "prefill", "decode"}
    assert (made.status, made.gap <= 1e-8) == ("optimal", True)
    verdict = evaluate(made.problem, made.assignment, made.solution["schedule"])
    assert verdict["feasible"]
    assert verdict["latency_s"] == made.latency_s
    assert made.interval_s[0] < made.latency_s < made.interval_s[1]
    assert made.baselines["stay"]["latency_s"] == pytest.approx(3.214)
    assert made.usd == pytest.approx((0.334 - 0.014) * 0.8 / 3600 + 0.014 / 3600)
    assert made.joules is None


def test_a_plan_is_plain_data_and_its_id_is_stable() -> None:
    made, again = plan(fleet(CPU, L4), FAST), plan(fleet(CPU, L4), FAST, time_limit_s=20)
    assert made.id == again.id
    assert made.id != plan(fleet(CPU, L4), {**FAST, "l4": 0.2}).id
    assert Plan.from_json(json.loads(json.dumps(made.to_json()))).assignment == dict(made.assignment)


def test_closer_than_the_interval_is_a_tie_and_staying_is_simpler() -> None:
    made = plan(fleet(CPU, L4), {"cpu": 1.0, "l4": 0.97})
    assert set(made.assignment.values()) == {"cpu"}
    assert set(made.solution["assignment"].values()) == {"cpu", "l4"}
    assert made.bound == made.solution["bound"] <= made.solution["objective"] < made.latency_s
    assert made.gap == pytest.approx(1 - made.bound / made.latency_s)
    assert made.status == "feasible"
    tie = next(line for line in made.why if line.startswith("A tie"))
    assert seconds(made.solution["objective"]) in tie
    assert seconds(made.latency_s) in tie
    assert made.why[0] == "Stay: everything stays on cpu."


def test_the_same_difference_is_no_tie_where_it_is_known_well_enough() -> None:
    made = plan(fleet(CPU, L4), {"cpu": 1.0, "l4": 0.97}, spread=0.001)
    assert "l4" in made.assignment.values()
    assert not any(line.startswith("A tie") for line in made.why)


def test_a_tie_that_would_give_much_away_is_said_and_the_optimum_taken() -> None:
    made = plan(fleet(CPU, L4), {"cpu": 1.0, "l4": 0.75}, spread=0.5, forbid={"embed": "l4"})
    assert "l4" in made.assignment.values()
    assert made.status == "optimal"
    tie = next(line for line in made.why if line.startswith("A tie"))
    assert "a simpler plan" in tie
    assert seconds(made.latency_s) in tie


def test_nothing_to_place_is_said() -> None:
    with pytest.raises(UsageError, match="nothing to place"):
        plan(fleet(CPU), FAST, graph=Graph())


def test_moves_that_gain_nothing_to_speak_of_are_taken_back_one_by_one() -> None:
    speeds = {"cpu": 1.0, "cpu/0": 0.99, "l4": 0.1}
    made = plan(fleet(CPU, SLICES[0], L4), speeds, spread=0.02)
    assert made.solution["assignment"]["search"] == "cpu/0"
    assert {made.assignment[s] for s in ("search", "calculate")} == {"cpu"}
    assert {made.assignment[s] for s in ("embed", "prefill", "decode")} == {"l4"}


def test_kv_is_paid_once_per_crossing_of_its_edge() -> None:
    slow = tuple(dataclasses.replace(link, bytes_per_s=1e7, latency_s=0.0) for link in LINKS)
    made = plan(
        fleet(CPU, L4, links=slow), FAST, pin={"prefill": "cpu", "decode": "l4", "embed": "cpu"}, spread=0.0
    )
    # 2 × 5 MB at 10 MB/s is a second; prefill 0.6, decode 0.256, the rest 0.054.
    assert made.latency_s == pytest.approx(1.0 + 0.6 + 0.256 + 0.054)
    assert any("kv of prefill (2 × 5 MB) crosses from cpu to l4: 1 s" in line for line in made.why)


def test_pin_and_forbid_are_kept() -> None:
    made = plan(fleet(CPU, L4), FAST, pin={"decode": "cpu"}, forbid={"embed": "l4"})
    assert (made.assignment["decode"], made.assignment["embed"]) == ("cpu", "cpu")
    assert made.assignment["prefill"] == "l4"
    assert any(line.startswith("decode") and "you pinned it there" in line for line in made.why)
    # "All on l4" means all that may be there: what is pinned or forbidden stays on the host.
    assert made.baselines["all on l4"]["assignment"] == made.assignment


def test_copies_are_used_in_order() -> None:
    small = dataclasses.replace(L4, memory_bytes=known(6e8))
    made = plan(fleet(CPU, small, l4=3), FAST)
    places = {name: place for name, place in made.assignment.items() if place != "cpu"}
    assert places == {"embed": "l4", "prefill": "l4#2", "decode": "l4#2"}


def test_without_the_device_it_was_measured_on_there_is_no_staying() -> None:
    made = plan(fleet(CPU, L4), {**FAST, "old": 1.0}, on=device("old"))
    assert "stay" not in made.baselines
    assert "l4" in made.assignment.values()


def test_cost_is_planned_in_dollars() -> None:
    made = plan(fleet(CPU, L4), FAST, objective="cost")
    assert made.objective == "cost"
    assert made.usd == pytest.approx(made.solution["objective"])
    assert any(line.startswith("Proved: no placement is below $") for line in made.why)


def test_throughput_names_the_busiest_and_its_rate() -> None:
    made = plan(fleet(CPU, L4), FAST, objective="throughput")
    assert made.solution["objective"] == pytest.approx(2 * 0.03 + 64 * 0.004)
    assert made.latency_s > made.solution["objective"]
    assert "Busiest is l4, 316 ms a request: 3.16 requests a second at most." in made.why


def test_robust_plans_with_the_high_end() -> None:
    mean, robust = plan(fleet(CPU, L4), FAST), plan(fleet(CPU, L4), FAST, robust=True)
    assert robust.assignment == mean.assignment
    assert robust.latency_s == pytest.approx(mean.interval_s[1])
    assert robust.interval_s == pytest.approx(mean.interval_s)
    assert robust.usd == pytest.approx(mean.usd)
    assert "Robust: every estimate is taken at its high end." in robust.why
    with pytest.raises(InfeasibleError):
        plan(fleet(CPU, L4), FAST, robust=True, slo={"latency_s": (mean.latency_s + robust.latency_s) / 2})


def test_an_infeasible_goal_says_by_how_much() -> None:
    with pytest.raises(InfeasibleError, match=r"limits\.latency_s \+ 0\.23") as caught:
        plan(fleet(CPU, L4), FAST, slo={"latency_s": 0.1})
    assert caught.value.solution["relax"]["limits.latency_s"] == pytest.approx(0.234, abs=1e-3)


def test_every_stage_is_explained_with_its_numbers() -> None:
    made = plan(fleet(CPU, L4), FAST)
    for entry in AGENT.stages:
        line = next(line for line in made.why if line.startswith(f"{entry.id} runs on"))
        assert made.assignment[entry.id] in line
        assert "memory bandwidth" in line
    decode = next(line for line in made.why if line.startswith("decode runs"))
    assert "64 × 4 ms (3.2 ms to 4.8 ms, model)" in decode
    assert "on cpu, the next best, 40 ms (32 ms to 48 ms, measured): the whole would take 2.64 s" in decode
    assert "search → calculate: bytes unknown, planned as 0" in made.why


# -- baselines -------------------------------------------------------------------------------------------


def test_the_automatic_map_fills_accelerators_by_bytes_alone() -> None:
    stages = {
        "big": {"weights": {"big": 80}, "options": {"cpu": 1.0, "gpu": 9.0}},
        "small": {"weights": {"small": 30}, "options": {"cpu": 1.0, "gpu": 1.0}},
        "again": {"weights": {"big": 80}, "options": {"cpu": 1.0, "gpu": 9.0}},
        "python": {"cpu": 1.0},
    }
    data = problem(stages, [{"id": "cpu", "host": True}, {"id": "gpu", "memory_bytes": 100}])
    found = baselines.automatic_map(parse(data))
    assert found.assignment == {"big": "gpu", "small": "cpu", "again": "gpu", "python": "cpu"}
    assert found.feasible


def test_rules_that_fail_say_why() -> None:
    stages = {"x": {"weights": {"w": 80}, "options": {"cpu": 2.0, "gpu": 1.0}}, "y": {"cpu": 1.0}}
    data = problem(stages, [{"id": "cpu", "host": True}, {"id": "gpu", "memory_bytes": 50}])
    found = {c.name: c for c in baselines.candidates(parse(data))}
    assert "memory of gpu" in str(found["all on gpu"].why_not)
    assert "memory of gpu" in str(found["fastest each"].why_not)
    assert found["HEFT"].feasible
    assert found["automatic map"].assignment == {"x": "cpu", "y": "cpu"}


def test_heft_uses_gaps_and_both_devices() -> None:
    # x (4) then y (1) on another device; z (3) fits beside them.
    data = problem({"x": {"a": 4.0, "b": 9.0}, "y": {"a": 9.0, "b": 1.0}, "z": {"a": 9.0, "b": 3.0}})
    data["edges"] = [{"from": "x", "to": "y"}]
    data["links"] = [{"from": "a", "to": "b", "seconds": 0}]
    found = baselines.heft(parse(data))
    assert found.assignment == {"x": "a", "y": "b", "z": "b"}
    assert found.verdict is not None
    assert found.verdict.latency_s == 5.0


def test_m_etf_starts_what_can_start_first_and_minds_memory() -> None:
    stages = {
        "x": {"a": {"seconds": 4.0, "memory_bytes": 6}, "b": {"seconds": 5.0, "memory_bytes": 6}},
        "y": {"a": {"seconds": 1.0, "memory_bytes": 6}, "b": {"seconds": 9.0, "memory_bytes": 6}},
        "z": {"a": 1.0, "b": 1.0},
    }
    data = problem(stages, [{"id": "a", "memory_bytes": 10}, {"id": "b", "memory_bytes": 10}])
    data["edges"], data["links"] = [{"from": "x", "to": "z", "seconds": 2}], [{"from": "a", "to": "b"}]
    found = baselines.earliest_task_first(parse(data))
    # x takes a, so y has no room but on b; z is there first where x is.
    assert found.assignment == {"x": "a", "y": "b", "z": "a"}
    assert found.feasible


def test_a_split_by_memory_gives_bytes_in_proportion() -> None:
    stages = {f"s{i}": {"weights": {f"w{i}": 10}, "options": {"a": 1.0, "b": 1.0}} for i in range(4)}
    data = problem(stages, [{"id": "a", "memory_bytes": 30}, {"id": "b", "memory_bytes": 90}])
    found = baselines.split_by_memory(parse(data))
    assert list((found.assignment or {}).values()) == ["a", "b", "b", "b"]
    assert "not known" in str(baselines.split_by_memory(parse(problem(stages))).why_not)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (300.0, "300 s"),
        (1.5, "1.5 s"),
        (0.3, "300 ms"),
        (0.0123, "12.3 ms"),
        (3e-5, "30 µs"),
        (0, "0 s"),
        (4321, "4,321 s"),
    ],
)
def test_times_are_said_as_a_person_says_them(value: float, text: str) -> None:
    assert seconds(value) == text
