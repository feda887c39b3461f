"""A module's stages in stretches of its layers: nothing of it is lost or counted twice."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from small_llm import IDS, make_llm, torch

import gimlet_lab as gimlet
from gimlet_lab.analysis.layers import in_layers
from gimlet_lab.errors import UnknownNameError, UsageError
from gimlet_lab.model import Run


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    return {"llm": make_llm(num_hidden_layers=6), "ids": IDS, "net": torch.nn.Linear(4, 4)}


@pytest.fixture(scope="module")
def run(names: dict[str, Any]) -> Run:
    with gimlet.profile("layers", namespace=names) as recorder, torch.no_grad():
        names["llm"].generate(names["ids"], max_new_tokens=6, min_new_tokens=6, do_sample=False)
        names["net"](torch.ones(1, 4))
    assert recorder.run is not None
    return recorder.run


def total(run_or_graph: Any, what: str) -> float:
    return sum(getattr(stage, what) or 0.0 for stage in run_or_graph.stages)


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_stretches_add_up_to_the_whole(run: Run, count: int) -> None:
    graph = in_layers(run, {"llm": count})
    stretches = [stage for stage in graph.stages if "[" in stage.id]
    assert len(stretches) == count
    assert stretches[0].id.startswith("llm.model.layers[0:")
    assert stretches[-1].id.endswith(":6]")
    for what in ("total_s", "flops", "bytes_read", "bytes_written", "ops"):
        assert total(graph, what) == pytest.approx(total(run.graph, what), rel=1e-9), what
    weights = {name: size for stage in graph.stages for name, size in stage.weights.items()}
    assert weights == {name: size for stage in run.graph.stages for name, size in stage.weights.items()}
    assert sum(len(stage.weights) for stage in stretches) == 6, "each layer in one stretch"
    assert all(stage.calls == 6 for stage in stretches)
    assert all(stage.kind == "glue" for stage in graph.stages if stage.id in ("prefill", "decode"))
    assert sum(stage.state_bytes for stage in stretches) == pytest.approx(
        run.graph["decode"].state_bytes, abs=6
    )


def test_layers_hand_on_what_they_give(run: Run) -> None:
    graph = in_layers(run, {"llm": 3})
    chain = [edge for edge in graph.edges if edge.tensor == "hidden_states"]
    ends = ["prefill", *(f"llm.model.layers[{i}:{i + 2}]" for i in (0, 2, 4)), "decode"]
    assert [(edge.src, edge.dst) for edge in chain] == list(pairwise(ends))
    mean = 32 * 4 * 2 * (11 + 5) / 6  # two prompts of eleven tokens, then five times one
    assert all(edge.bytes == pytest.approx(mean) for edge in chain)
    assert all(edge.calls == 6 for edge in chain)


def test_a_plan_over_layers_is_proved_and_its_stages_can_be_pinned(run: Run) -> None:
    fleet = gimlet.fleet("cpu", "cpu/0", "cpu/1")
    pins = {"llm.model.layers[0:3]": "cpu/0", "llm.model.layers[3:6]": "cpu/1"}
    plan = gimlet.advise(run, fleet, layers={"llm": 2}, pin=pins)
    assert {stage: plan.assignment[stage] for stage in pins} == pins
    assert plan.status == "optimal"
    small = gimlet.advise(run, fleet, layers={"llm": 2})
    assert small.latency_s <= plan.latency_s


def test_a_device_map_has_every_layer(run: Run, names: dict[str, Any]) -> None:
    from accelerate.utils.modeling import check_device_map

    from gimlet_lab.export.device_map import device_map

    pins = {"llm.model.layers[0:3]": "cpu", "llm.model.layers[3:6]": "l4"}
    plan = gimlet.advise(run, gimlet.fleet("cpu", "l4"), layers={"llm": 2}, pin=pins)
    placed, notes = device_map(plan, "llm")
    assert placed == {
        "": "cpu",
        **{f"model.layers.{number}": "cpu" if number < 3 else 0 for number in range(6)},
    }
    check_device_map(names["llm"], placed)
    assert any("l4" in note for note in notes)
    assert not any("prefill" in note for note in notes), "its roles are in the map"


@pytest.mark.parametrize(
    ("counts", "error", "says"),
    [
        ({"llm": 7}, UsageError, "has 6 numbered layers"),
        ({"llm": 0}, UsageError, "has 6 numbered layers"),
        ({"net": 2}, UsageError, "no numbered layers"),
        ({"lm": 2}, UnknownNameError, "llm"),
    ],
)
def test_what_has_no_such_layers_is_said(run: Run, counts: dict[str, int], error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        gimlet.advise(run, gimlet.fleet("cpu"), layers=counts)


def test_a_graph_alone_has_no_layers(run: Run) -> None:
    with pytest.raises(UsageError, match="give the run"):
        gimlet.advise(run.graph, gimlet.fleet("cpu"), measured_on=run.device, layers={"llm": 2})
