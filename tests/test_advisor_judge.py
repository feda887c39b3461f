"""The judge: every rule of the contract (section 4) on an instance small enough to work by hand."""

from __future__ import annotations

from typing import Any

import pytest
from advisor_problems import links, problem, table_3

from gimlet_lab.advisor import evaluate
from gimlet_lab.errors import UsageError


def latency(data: dict[str, Any], assignment: dict[str, str], order: list[str] | None = None) -> float | None:
    verdict = evaluate(data, assignment, order)
    assert verdict["feasible"], verdict["violations"]
    return verdict["latency_s"]


def violation(data: dict[str, Any], assignment: dict[str, str], order: list[str] | None = None) -> str:
    verdict = evaluate(data, assignment, order)
    assert not verdict["feasible"]
    return str(verdict["violations"][0])


def test_work_is_calls_times_seconds_and_a_device_runs_one_stage_at_a_time() -> None:
    data = problem({"x": {"calls": 3, "options": {"a": 2.0}}, "y": {"a": 5.0}})
    assert latency(data, {"x": "a", "y": "a"}) == 11.0


def test_devices_run_at_the_same_time() -> None:
    data = problem({"x": {"a": 6.0}, "y": {"b": 5.0}})
    assert latency(data, {"x": "a", "y": "b"}) == 6.0


def test_a_parallel_device_runs_any_number() -> None:
    data = problem({"x": {"a": 6.0}, "y": {"a": 5.0}}, [{"id": "a", "parallel": True}])
    assert latency(data, {"x": "a", "y": "a"}) == 6.0


def test_devices_that_share_a_resource_never_run_at_the_same_time() -> None:
    shared = [{"id": d, "resources": ["core0"]} for d in "ab"]
    data = problem({"x": {"a": 6.0}, "y": {"b": 5.0}}, shared)
    assert latency(data, {"x": "a", "y": "b"}) == 11.0


def test_a_parallel_device_shares_its_resource_with_others_all_the_same() -> None:
    shared = [{"id": "a", "resources": ["c"], "parallel": True}, {"id": "b", "resources": ["c", "d"]}]
    data = problem({"x": {"a": 6.0}, "y": {"a": 4.0}, "z": {"b": 5.0}}, shared)
    # x and y overlap, z waits for the longer of them.
    assert latency(data, {"x": "a", "y": "a", "z": "b"}, ["x", "y", "z"]) == 11.0


def test_a_transfer_takes_latency_plus_bytes_over_rate_times_calls_of_the_edge() -> None:
    edges = [{"from": "x", "to": "y", "bytes": 100, "calls": 4}]
    data = problem({"x": {"a": 1.0}, "y": {"b": 1.0}}, edges=edges)
    data["links"] = links("a>b", bytes_per_s=50, latency_s=0.5)
    assert latency(data, {"x": "a", "y": "b"}) == 1 + 4 * (0.5 + 2) + 1


@pytest.mark.parametrize(
    ("edge", "link", "seconds"),
    [
        ({"seconds": 3}, {"seconds": 7, "bytes_per_s": 1}, 3),
        ({"bytes": 9}, {"seconds": 7, "bytes_per_s": 1}, 7),
        ({"bytes": 9, "seconds": None}, {"seconds": None, "bytes_per_s": 1}, 9),
        ({}, {"latency_s": 2}, 2),
    ],
)
def test_seconds_of_the_edge_go_before_those_of_the_link_and_those_before_bytes(
    edge: dict[str, Any], link: dict[str, Any], seconds: float
) -> None:
    data = problem({"x": {"a": 1.0}, "y": {"b": 1.0}}, edges=[{"from": "x", "to": "y", **edge}])
    assert latency({**data, "links": links("a>b", **link)}, {"x": "a", "y": "b"}) == 2 + seconds


def test_without_a_link_a_tensor_may_not_cross_and_links_are_one_way() -> None:
    edges = [{"from": "x", "to": "y", "seconds": 1}]
    data = problem({"x": {"a": 1.0}, "y": {"b": 1.0}}, edges=edges, links=links("b>a"))
    assert "no link from a to b" in violation(data, {"x": "a", "y": "b"})


def test_a_tensor_crosses_once_to_each_device_that_reads_it() -> None:
    edges = [{"from": "x", "to": to, "tensor": "t", "calls": calls} for to, calls in (("y", 1), ("z", 2))]
    stages = {"x": {"a": 1.0}, "y": {"b": 1.0}, "z": {"b": 1.0}}
    data = problem(stages, edges=edges, links=links("a>b", seconds=5, usd=0.25), objective="cost")
    verdict = evaluate(data, {"x": "a", "y": "b", "z": "b"})
    # The tensor's calls are the larger of its edges': 1 + 2 × 5, then y and z.
    assert (verdict["latency_s"], verdict["usd"]) == (13.0, 0.25)


def test_edges_without_a_tensor_are_one_tensor_of_their_stage() -> None:
    edges = [{"from": "x", "to": to} for to in "yz"]
    stages = {"x": {"a": 1.0}, "y": {"b": 1.0}, "z": {"b": 1.0}}
    data = problem(stages, edges=edges, links=links("a>b", usd=1))
    assert evaluate(data, {"x": "a", "y": "b", "z": "b"})["usd"] == 1


def test_through_the_host_each_side_that_is_no_host_pays_out_then_in() -> None:
    edges = [{"from": "x", "to": to, "seconds": 3, "calls": 2} for to in "yz"]
    devices = [{"id": "a"}, {"id": "b"}, {"id": "h", "host": True}]
    stages = {"x": {"a": 1.0, "h": 1.0}, "y": {"b": 1.0, "h": 1.0}, "z": {"h": 1.0, "b": 1.0}}
    data = problem(stages, devices, edges=edges, transfer="host")
    assert latency(data, {"x": "a", "y": "b", "z": "h"}) == 1 + 6 + 6 + 1
    assert latency(data, {"x": "a", "y": "h", "z": "h"}) == 1 + 6 + 2
    assert latency(data, {"x": "h", "y": "b", "z": "b"}) == 1 + 6 + 2
    assert latency(data, {"x": "h", "y": "h", "z": "h"}) == 3


def test_transfers_overlap_unless_their_link_is_exclusive() -> None:
    edges = [{"from": s, "to": t, "seconds": 4} for s, t in (("x", "u"), ("y", "v"))]
    stages = {"x": {"a": 1.0}, "y": {"a": 1.0}, "u": {"b": 1.0}, "v": {"b": 1.0}}
    data = problem(stages, edges=edges, links=links("a>b"))
    where = {"x": "a", "y": "a", "u": "b", "v": "b"}
    assert latency(data, where) == 2 + 4 + 1
    data["links"] = links("a>b", exclusive=True)
    # The second transfer waits from 2 to 5, the time the first one ends.
    assert latency(data, where) == 5 + 4 + 1


def test_on_an_exclusive_link_the_producer_that_ends_first_goes_first() -> None:
    edges = [{"from": s, "to": t, "seconds": 10} for s, t in (("x", "u"), ("y", "v"))]
    stages = {"x": {"a": 5.0}, "y": {"a": 1.0}, "u": {"b": 1.0}, "v": {"b": 1.0}}
    data = problem(stages, [{"id": "a", "parallel": True}, "b"], edges=edges)
    data["links"] = links("a>b", exclusive=True)
    schedule = evaluate(data, {"x": "a", "y": "a", "u": "b", "v": "b"}, ["x", "y", "v", "u"])["schedule"]
    assert {row["stage"]: row["start_s"] for row in schedule} == {"x": 0, "y": 0, "v": 11, "u": 21}


def test_the_schedule_says_who_goes_first_and_may_leave_a_device_idle() -> None:
    edges = [{"from": "x", "to": "y", "seconds": 0}]
    data = problem({"x": {"a": 2.0}, "y": {"b": 1.0}, "z": {"b": 5.0}}, edges=edges, links=links("a>b"))
    where = {"x": "a", "y": "b", "z": "b"}
    assert latency(data, where, ["z", "x", "y"]) == 6.0
    assert latency(data, where, ["x", "y", "z"]) == 8.0
    assert latency(data, where) == 6.0


def test_a_schedule_that_contradicts_the_edges_or_is_not_whole_is_refused() -> None:
    data = problem({"x": {"a": 2.0}, "y": {"a": 1.0}}, edges=[{"from": "x", "to": "y"}])
    where = {"x": "a", "y": "a"}
    assert "wait for each other" in violation(data, where, ["y", "x"])
    assert "leaves out y" in violation(data, where, ["x"])
    assert "twice" in violation(data, where, ["x", "y", "y"])


def test_every_stage_is_on_one_of_its_options() -> None:
    data = problem({"x": {"a": 1.0}, "y": {"a": 1.0, "b": 1.0}})
    assert "placed nowhere" in violation(data, {"x": "a"})
    assert "may not run on b" in violation(data, {"x": "b", "y": "b"})
    assert "no stage w" in violation(data, {"x": "a", "y": "b", "w": "a"})


def test_pin_and_forbid_list_options() -> None:
    stages = {"x": {"pin": ["b"], "options": {"a": 1.0, "b": 2.0}}}
    assert "may not run on a" in violation(problem(stages), {"x": "a"})
    stages = {"x": {"forbid": ["a"], "options": {"a": 1.0, "a@fast": 0.5, "b": 2.0}}}
    assert "may not run on a" in violation(problem(stages), {"x": "a"})
    assert latency(problem(stages), {"x": "a@fast"}) == 0.5


def test_a_group_lies_on_one_device_whatever_the_variant() -> None:
    stages = {
        "x": {"colocate": "g", "options": {"a": 1.0, "b": 1.0}},
        "y": {"colocate": "g", "options": {"a": 1.0, "a@fast": 0.5, "b": 1.0}},
    }
    assert "must lie together" in violation(problem(stages), {"x": "a", "y": "b"})
    assert latency(problem(stages), {"x": "a", "y": "a@fast"}) == 1.5


def test_weights_of_one_name_are_held_once_on_each_device() -> None:
    stages = {
        "prefill": {"weights": {"block": 60}, "options": {"a": {"seconds": 1, "memory_bytes": 10}, "b": 1.0}},
        "decode": {"weights": {"block": 60}, "options": {"a": {"seconds": 1, "memory_bytes": 30}, "b": 1.0}},
    }
    data = problem(stages, [{"id": "a", "memory_bytes": 100}, {"id": "b", "memory_bytes": 59}])
    assert evaluate(data, {"prefill": "a", "decode": "a"})["memory_bytes"]["a"] == 100
    assert latency(data, {"prefill": "a", "decode": "a"}) == 2.0
    assert "memory of b: 60 bytes needed, 59 there" in violation(data, {"prefill": "a", "decode": "b"})


def test_comparisons_allow_a_relative_1e_9() -> None:
    data = problem(
        {"x": {"a": {"seconds": 1.0, "memory_bytes": 1e12}}}, [{"id": "a", "memory_bytes": 1e12 - 500}]
    )
    assert evaluate(data, {"x": "a"})["feasible"]
    data["devices"][0]["memory_bytes"] = 1e12 - 5000
    assert not evaluate(data, {"x": "a"})["feasible"]


@pytest.mark.parametrize(
    ("limits", "place"),
    [
        ({"latency_s": 2.9}, "limits.latency_s"),
        ({"usd": 6.9}, "limits.usd"),
        ({"usd_per_hour": 39}, "limits.usd_per_hour"),
        (
            {"paths": [{"from": "x", "to": "x", "seconds": 5}, {"from": "x", "to": "y", "seconds": 2.9}]},
            "paths[1]",
        ),
    ],
)
@pytest.mark.parametrize("objective", ["latency", "cost", "energy"])
def test_limits_hold_under_every_objective(limits: dict[str, Any], place: str, objective: str) -> None:
    stages = {"x": {"a": {"seconds": 1, "usd": 3}}, "y": {"b": {"seconds": 2, "usd": 4}}}
    devices = [{"id": d, "usd_per_hour": 20} for d in "ab"]
    data = problem(stages, devices, edges=[{"from": "x", "to": "y"}], links=links("a>b"), objective=objective)
    assert evaluate(data, {"x": "a", "y": "b"})["feasible"]
    assert place in violation({**data, "limits": limits}, {"x": "a", "y": "b"})


def test_a_path_is_from_the_start_of_one_stage_to_the_end_of_another() -> None:
    stages = {"w": {"a": 10.0}, "x": {"a": 1.0}, "y": {"a": 2.0}}
    edges = [{"from": "w", "to": "x"}, {"from": "x", "to": "y"}]
    limits = {"paths": [{"from": "x", "to": "y", "seconds": 3}, {"from": "y", "to": "y", "seconds": 2}]}
    assert latency(problem(stages, edges=edges, limits=limits), dict.fromkeys("wxy", "a")) == 13


def test_robust_takes_the_high_end() -> None:
    data = problem({"x": {"a": {"seconds": 1, "seconds_high": 1.5}}, "y": {"a": 1.0}}, robust=True)
    assert latency(data, {"x": "a", "y": "a"}) == 2.5


def test_cost_is_calls_times_usd_plus_links_and_energy_is_calls_times_joules() -> None:
    stages = {
        "x": {"calls": 2, "options": {"a": {"seconds": 1, "usd": 3, "joules": 5}}},
        "y": {"b": {"seconds": 1, "usd": 4, "joules": 7}},
    }
    data = problem(stages, edges=[{"from": "x", "to": "y"}], links=links("a>b", usd=0.5), objective="cost")
    verdict = evaluate(data, {"x": "a", "y": "b"})
    assert (verdict["objective"], verdict["usd"], verdict["joules"]) == (10.5, 10.5, 17)
    assert evaluate({**data, "objective": "energy"}, {"x": "a", "y": "b"})["objective"] == 17


def test_with_loads_cost_is_devices_times_their_price() -> None:
    stages = {"x": {"a": {"seconds": 1, "load": 1.4}}, "y": {"a": {"seconds": 1, "load": 0.8}}}
    data = problem(stages, [{"id": "a", "usd_per_hour": 2, "max_count": 3}], objective="cost")
    verdict = evaluate(data, {"x": "a", "y": "a"})
    assert (verdict["objective"], verdict["count"]) == (6, {"a": 3})
    data["devices"][0]["max_count"] = 2
    assert "count of a: 3 needed, 2 there" in violation(data, {"x": "a", "y": "a"})


def test_table_3_of_the_paper() -> None:
    figures = {}
    for name, prefill, decode in (("A", "HP", "HP"), ("B", "HP", "CO"), ("C", "CO", "CO"), ("D", "CO", "HP")):
        verdict = evaluate(table_3(None), {"prefill": prefill, "decode": decode})
        figures[name] = (round(verdict["latency_s"], 9), round(verdict["usd"], 9))
    # The paper prints 0.07 for C; 1000 × 0.00005 + 500 × 0.00002 is 0.06.
    assert figures == {"A": (0.105, 0.11), "B": (0.12, 0.095), "C": (0.16, 0.06), "D": (0.165, 0.085)}


# -- throughput and contiguous blocks --------------------------------------------------------------------


def test_throughput_is_the_largest_load_with_links_as_resources_of_their_own() -> None:
    stages = {"x": {"a": 3.0}, "y": {"b": 4.0}, "z": {"b": 1.0}}
    edges = [{"from": "x", "to": t, "tensor": t, "seconds": 4} for t in "yz"]
    data = problem(stages, edges=edges, links=links("a>b"), objective="throughput")
    verdict = evaluate(data, {"x": "a", "y": "b", "z": "b"})
    assert verdict["load_s"] == {"a": 3, "b": 5, "a → b": 8}
    assert verdict["objective"] == 8


def test_throughput_through_the_host_is_paid_by_the_devices_and_shared_by_copies() -> None:
    stages = {"x": {"a": 3.0}, "y": {"b": 4.0}}
    devices = [{"id": "a", "max_count": 2}, {"id": "b"}]
    edges = [{"from": "x", "to": "y", "seconds": 1}]
    data = problem(stages, devices, edges=edges, transfer="host", objective="throughput")
    assert evaluate(data, {"x": "a", "y": "b"})["load_s"] == {"a": 2, "b": 5}


def test_throughput_adds_up_what_shares_a_resource() -> None:
    shared = [{"id": d, "resources": ["core0"]} for d in "ab"]
    data = problem({"x": {"a": 3.0}, "y": {"b": 4.0}}, shared, objective="throughput")
    assert evaluate(data, {"x": "a", "y": "b"})["objective"] == 7


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_contiguous_data_flows_forward_only(objective: str) -> None:
    edges = [{"from": s, "to": t, "seconds": 1} for s, t in (("x", "y"), ("y", "z"))]
    stages = {s: {"a": 1.0, "b": 1.0} for s in "xyz"}
    data = problem(stages, edges=edges, transfer="host", contiguous=True, objective=objective)
    assert "circle" in violation(data, {"x": "a", "y": "b", "z": "a"})
    assert evaluate(data, {"x": "a", "y": "a", "z": "b"})["feasible"]


def test_contiguous_latency_runs_each_device_as_one_block() -> None:
    # h1 (host) → x, y on a; y → z on b; x → h2 (host). Tensors take 2 in or out of a and b.
    edges = [{"from": s, "to": t, "seconds": 2} for s, t in (("h1", "x"), ("x", "y"), ("y", "z"))]
    edges += [{"from": "x", "to": "h2", "seconds": 2}]
    stages = {"h1": {"h": 1.0}, "x": {"a": 3.0}, "y": {"a": 4.0}, "z": {"b": 5.0}, "h2": {"h": 1.0}}
    data = problem(
        stages, ["a", "b", {"id": "h", "host": True}], edges=edges, transfer="host", contiguous=True
    )
    verdict = evaluate(data, {"h1": "h", "x": "a", "y": "a", "z": "b", "h2": "h"})
    times = {row["stage"]: (row["start_s"], row["end_s"]) for row in verdict["schedule"]}
    # a: in 2, work 7, out 2 (x) + 2 (y) = 13 from 1 to 14; b: in 2, work 5; h2 waits for a's block.
    assert times == {"h1": (0, 1), "x": (1, 14), "y": (1, 14), "z": (14, 21), "h2": (14, 15)}


def test_options_take_their_copies_together() -> None:
    option = {"seconds": 1, "devices_used": 2, "load": 0.4}
    data = problem({"x": {"a@tp2": option}}, [{"id": "a", "max_count": 2, "usd_per_hour": 3}])
    assert evaluate(data, {"x": "a@tp2"})["usd_per_hour"] == 6
    assert evaluate({**data, "objective": "cost"}, {"x": "a@tp2"})["objective"] == 6
    data["devices"][0]["max_count"] = 1
    assert "count of a: 2 needed, 1 there" in violation(data, {"x": "a@tp2"})


def test_what_the_judge_cannot_judge_yet_it_says() -> None:
    option = {"seconds": 1, "devices_used": 2}
    data = problem({"x": {"a@tp2": option}}, [{"id": "a", "max_count": 2}], objective="throughput")
    with pytest.raises(UsageError, match="several devices together"):
        evaluate(data, {"x": "a@tp2"})
