"""Malformed problems: a ``ValueError`` of one line that names the place."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
from advisor_problems import links, problem, random_problems
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from gimlet_lab.advisor import evaluate, solve
from gimlet_lab.advisor.problem import parse
from gimlet_lab.advisor.schema import JSON_SCHEMA


def sound() -> dict[str, Any]:
    """A problem with a bit of everything."""
    stages = {
        "s1": {"calls": 2, "weights": {"block": 1e9}, "options": {"gpu0": 0.1, "gpu1": 0.2}},
        "s2": {"pin": ["gpu0"], "options": {"gpu0": 0.1, "gpu1": 0.2}},
        "s3": {"forbid": ["gpu0"], "weights": {"block": 1e9}, "options": {"gpu0": 0.1, "gpu1": 0.2}},
    }
    edges = [{"from": a, "to": b, "tensor": f"{a}{b}", "bytes": 1e6} for a, b in (("s1", "s2"), ("s2", "s3"))]
    limits = {"latency_s": None, "paths": [{"from": "s1", "to": "s3", "seconds": 9}]}
    wires = links("gpu0>gpu1", "gpu1>gpu0", bytes_per_s=1e9)
    return problem(stages, ("gpu0", "gpu1"), edges=edges, links=wires, limits=limits, time_limit_s=None)


def change(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set what a path like ``stages.0.calls`` leads to."""
    data = copy.deepcopy(data)
    *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
    target: Any = data
    for step in way:
        target = target[step]
    target[last] = value
    return data


def test_left_out_is_what_the_contract_says() -> None:
    instance = parse(problem({"s": {"gpu0": 1.0}}, ("gpu0",)))
    machine, unit = instance.machines["gpu0"], instance.units["s"]
    assert (machine.memory_bytes, machine.max_count, machine.host, machine.parallel) == (
        None,
        1,
        False,
        False,
    )
    assert (unit.calls, instance.time_limit_s, instance.gap, instance.limits.paths) == (1, 30, 0.001, ())
    assert not instance.through_host
    assert parse(problem({"s": {"g": 1.0}}, [{"id": "g", "max_count": None}])).machines["g"].max_count is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stages.2.options", {"gpu9": {"seconds": 1}}, "stages[2].options.gpu9: no such device"),
        ("stages.2.options", {}, "stages[2].options: no option: the stage can run nowhere"),
        (
            "stages.0.options.gpu0.seconds",
            math.nan,
            "stages[0].options.gpu0.seconds: nan is not a finite number",
        ),
        (
            "stages.0.options.gpu0.seconds",
            math.inf,
            "stages[0].options.gpu0.seconds: inf is not a finite number",
        ),
        ("stages.0.options.gpu0.seconds", -1.0, "stages[0].options.gpu0.seconds: -1.0 is below 0"),
        ("stages.0.options.gpu0.seconds", "fast", "stages[0].options.gpu0.seconds: 'fast' is not a number"),
        ("stages.0.options.gpu0.seconds", None, "stages[0].options.gpu0.seconds: None is not a number"),
        (
            "stages.0.options.gpu0",
            {"second": 1},
            "stages[0].options.gpu0: seconds is missing; did you mean 'second'?",
        ),
        ("stages.0.call", 3, "stages[0].call: no such field; did you mean 'calls'?"),
        ("stages.0.calls", True, "stages[0].calls: True is not a number"),
        ("stages.1.id", "s1", "stages[1].id: 's1' is there twice"),
        ("stages.1.id", "", "stages[1].id: is empty"),
        ("stages.1.pin", ["gpu7"], "stages[1].pin[0]: stage 's2' has no option 'gpu7'; did you mean"),
        ("stages.1.forbid", ["gpu0"], "stages[1]: pin and forbid leave 's2' no option"),
        ("stages.2.weights", {"block": 2e9}, "stages[2].weights.block: 2e+09 bytes here, 1e+09 in stages[0]"),
        ("edges.1.to", "s9", "edges[1].to: no such stage 's9'"),
        ("edges.1.to", "s1", "edges: s1 → s2 → s1 is a cycle; a loop is written as calls"),
        ("edges.1.to", "s2", "edges[1]: 's2' reads itself"),
        ("edges.1.bytes", -5, "edges[1].bytes: -5 is below 0"),
        ("devices.1.id", "gpu0", "devices[1].id: 'gpu0' is there twice"),
        ("devices.1.id", "gpu1@tp2", "devices[1].id: 'gpu1@tp2' has an '@'"),
        ("devices.0.max_count", 1.5, "devices[0].max_count: 1.5 is not an integer"),
        ("devices.0.memory_byte", 1e9, "devices[0].memory_byte: no such field; did you mean 'memory_bytes'?"),
        ("devices.0", "gpu0", "devices[0]: 'gpu0' is not an object"),
        ("links.1.from", "gpu9", "links[1].from: no such device"),
        ("links.1", {"from": "gpu0", "to": "gpu1"}, "links[1]: a second link from 'gpu0' to 'gpu1'"),
        ("links.0.bytes_per_s", 0, "links[0].bytes_per_s: is missing, and tensor"),
        ("limits.paths.0.to", "s9", "limits.paths[0].to: no such stage"),
        ("transfer", "host", "has bytes but no seconds, which transfer 'host' needs"),
        ("transfer", "pigeon", "transfer: 'pigeon' is none of direct, host"),
        ("objective", "speed", "objective: 'speed' is none of latency, throughput, cost, energy"),
        ("schema", "gimlet.problem/2", "schema: 'gimlet.problem/2' is not 'gimlet.problem/1'"),
        ("gap", math.nan, "gap: nan is not a finite number"),
    ],
)
def test_the_place_is_named(path: str, value: Any, message: str) -> None:
    parse(sound())
    data = change(sound(), path, value)
    with pytest.raises(ValueError, match=r".") as caught:
        evaluate(data, {})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"."):
        solve(data)


@pytest.mark.parametrize("field", ["objective", "devices", "stages"])
def test_what_is_missing_is_named(field: str) -> None:
    data = {name: value for name, value in sound().items() if name != field}
    with pytest.raises(ValueError, match=f"problem: {field} is missing"):
        parse(data)


def test_one_tensor_has_one_size() -> None:
    data = problem({s: {"gpu0": 1.0} for s in ("s1", "s2", "s3")}, ("gpu0",))
    data["edges"] = [{"from": "s1", "to": "s2", "bytes": 1}, {"from": "s1", "to": "s3", "bytes": 2}]
    with pytest.raises(ValueError, match=r"edges\[1\]\.bytes: 2 here and 1 in edges\[0\]"):
        parse(data)


def test_not_a_problem_at_all() -> None:
    with pytest.raises(ValueError, match="problem: 'nonsense' is not an object"):
        parse("nonsense")  # type: ignore[arg-type]


def test_names_of_others_are_welcome() -> None:
    data = sound()
    data["comment"] = data["stages"][0]["drawn_at"] = {"anything": [1, None]}
    parse(data)


def test_a_long_chain_is_no_recursion() -> None:
    names = [f"s{i}" for i in range(5000)]
    data = problem({name: {"gpu0": 1.0} for name in names}, ("gpu0",))
    data["edges"] = [{"from": a, "to": b} for a, b in itertools.pairwise(names)]
    assert evaluate(data, dict.fromkeys(names, "gpu0"))["latency_s"] == 5000
    data["edges"].append({"from": names[-1], "to": names[0], "tensor": "back"})
    with pytest.raises(ValueError, match="is a cycle"):
        parse(data)


_JUNK = st.sampled_from([None, -1, 0, 2.5, "", "x", True, [], {}, ["x"], {"seconds": 1}])


@settings(max_examples=300, deadline=None)
@given(random_problems(), st.data())
def test_the_checker_agrees_with_a_full_json_schema_validator(
    data: dict[str, Any], draw: st.DataObject
) -> None:
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(data)
    owner, key = draw.draw(st.sampled_from(places))
    owner[key] = draw.draw(_JUNK)
    formal = Draft202012Validator(JSON_SCHEMA).is_valid(data)
    refused = None
    try:
        parse(data)
    except ValueError as error:
        refused = str(error)
    assert formal if refused is None else "\n" not in refused
