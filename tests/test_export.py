from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import hostile_plan, sample_device, sample_fleet, sample_plan, sample_run

from gimlet_lab import export
from gimlet_lab.errors import GimletError, UnknownNameError, UsageError
from gimlet_lab.export import device_map
from gimlet_lab.model import Device, Fleet, Plan


def test_the_targets_say_what_they_take() -> None:
    assert {name: target.takes for name, target in export.targets().items()} == {
        "plan": "plan",
        "device-map": "plan",
        "ray-serve": "plan",
        "kuberay": "plan",
        "perfetto": "run",
        "speedscope": "run",
        "csv": "run",
        "parquet": "run",
        "folded": "run",
        "speedscope-stacks": "run",
    }


@pytest.mark.parametrize(("wrong", "near"), [("device_map", "device-map"), ("plam", "plan")])
def test_an_unknown_target_names_the_nearest(tmp_path: Path, wrong: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"no target '{wrong}'; did you mean '{near}'"):
        export.export(sample_plan(), wrong, tmp_path / "x")


def test_wrong_nouns_and_options_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="target 'plan' takes a plan, not a run"):
        export.export(sample_run(), "plan", tmp_path / "x")
    with pytest.raises(UsageError, match=r"no option 'modle' \(it takes: model\); did you mean 'model'\?"):
        export.export(sample_plan(), "device-map", tmp_path / "x", modle="llm")
    with pytest.raises(UsageError, match=r"target 'plan' has no option 'model' \(it takes: none\)"):
        export.export(sample_plan(), "plan", tmp_path / "x", model="llm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["plan", "device-map"])
def test_places_that_cannot_be_written_are_one_line(tmp_path: Path, target: str) -> None:
    for path in (tmp_path, tmp_path / "none" / "x.json"):
        with pytest.raises(GimletError, match="cannot write") as caught:
            export.export(sample_plan(), target, path)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Entry:
    """An entry point of another package."""

    def __init__(self, name: str, target: export.Target | None) -> None:
        self.name = name
        self._target = target

    def load(self) -> export.Target:
        if self._target is None:
            raise ImportError("no module named\n'other'")
        return self._target


def test_other_packages_add_targets_and_a_broken_one_harms_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(run: Any, path: Path, options: Any) -> Path:
        path.write_text(run.name)
        return path

    entries = [
        Entry("names", export.Target("run", "the name of a run", write)),
        Entry("broken", None),
        Entry("plan", None),  # ours stay ours
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: entries)
    assert export.export(sample_run(), "names", tmp_path / "n").read_text() == "agent"
    assert "ImportError: no module named 'other'" in export.targets()["broken"].summary
    with pytest.raises(GimletError, match="target 'broken' cannot be loaded: ImportError") as caught:
        export.export(sample_plan(), "broken", tmp_path / "b")
    assert "\n" not in str(caught.value)
    assert export.export(sample_plan(), "plan", tmp_path / "p").exists()


# --- plan ---


@pytest.mark.parametrize("plan", [sample_plan(), hostile_plan()], ids=["sample", "hostile"])
def test_a_plan_goes_out_and_comes_back(tmp_path: Path, plan: Plan) -> None:
    path = export.export(plan, "plan", tmp_path / "plan.json")
    assert repr(export.load_plan(path)) == repr(plan)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    data = json.loads(path.read_text("ascii"), parse_constant=refuse)
    assert data["schema"] == "gimlet.plan/1"


def test_a_plan_carries_its_id_predictions_and_intervals(tmp_path: Path) -> None:
    data = json.loads(export.export(sample_plan(), "plan", tmp_path / "p").read_text())
    assert data["id"] == "3f9c1d20"
    low, high = data["interval_s"]
    assert low < data["latency_s"] < high
    decode = data["estimates"]["decode"]["l4"]
    assert decode["low"] < decode["seconds"] < decode["high"]
    assert decode["source"] == "model"
    assert data["problem"]["schema"] == "gimlet.problem/1"
    assert data["solution"]["schema"] == "gimlet.solution/1"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cut short or not JSON"),
        (b'{"schema": "gimlet.plan/1"', "cut short or not JSON"),
        (b"\xff\xfe", "cut short or not JSON"),
        (b"[" * 100_000, "cut short or not JSON"),
        (b"[1, 2]", "is not a plan: it names no schema"),
        (b'{"schema": "gimlet.problem/1"}', "is not a plan: it is 'gimlet.problem/1'"),
        (b'{"schema": "gimlet.plan/9"}', "is a plan of version 9; this is gimlet_lab .* up to version 1"),
        (b'{"schema": "gimlet.plan/1"}', "is not a whole plan"),
        (b'{"schema": "gimlet.plan/1", "interval_s": [1, 2], "why": 3}', "is not a whole plan"),
    ],
)
def test_files_that_are_not_plans_say_so_in_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(data)
    with pytest.raises(export.PlanFileError, match=said) as caught:
        export.load_plan(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(export.PlanFileError, match="there is no such file"):
        export.load_plan(tmp_path / "none.json")
    with pytest.raises(export.PlanFileError, match="cannot be read"):
        export.load_plan(tmp_path)


def test_a_plan_opens_where_torch_is_missing(tmp_path: Path) -> None:
    path = export.export(sample_plan(), "plan", tmp_path / "p.json")
    code = f"""
import sys
for name in ("torch", "matplotlib", "pandas", "ray", "ortools", "IPython", "numpy", "transformers"):
    sys.modules[name] = None
from gimlet_lab.export import load_plan
print(load_plan({str(path)!r}).assignment["decode"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("l4", "")


# --- device_map ---


def moved(plan: Plan, **assignment: str) -> Plan:
    return replace(plan, assignment={**plan.assignment, **assignment})


def exported(plan: Plan, tmp_path: Path, **options: str) -> tuple[dict[str, int | str], str]:
    path = export.export(plan, "device-map", tmp_path / "map.json", **options)
    return json.loads(path.read_text()), "\n".join(export.notes(path))


def test_the_map_of_the_largest_model_and_of_another(tmp_path: Path) -> None:
    placed, said = exported(sample_plan(), tmp_path)
    assert placed == {"": 0}
    assert "l4 (NVIDIA L4) is taken to be accelerator 0" in said
    assert "other models of the plan, each its own map (option model): embedder" in said
    assert "not models, not in a device_map: search, calculate, build_prompt" in said
    placed, said = exported(sample_plan(), tmp_path, model="embedder")
    assert placed == {"": "cpu"}
    assert "computed on the CPU" in said
    assert "other models of the plan, each its own map (option model): llm" in said


def test_the_notes_lie_beside_the_map_with_the_plan(tmp_path: Path) -> None:
    exported(sample_plan(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.json", "map.notes.json"]
    beside = json.loads((tmp_path / "map.notes.json").read_text())
    assert beside["schema"] == "gimlet.device-map/1"
    assert beside["plan"]["id"] == "3f9c1d20"
    assert beside["plan"]["interval_s"][0] < beside["plan"]["latency_s"]
    assert beside["model"] == "llm"
    assert export.notes(tmp_path / "another.json") == ()


def test_roles_on_different_devices_cannot_be_expressed_and_it_says_so(tmp_path: Path) -> None:
    placed, said = exported(moved(sample_plan(), prefill="cpu"), tmp_path)
    # 48 decode calls on the l4 take 451 ms, two prefills on the CPU 1.42 s.
    assert placed == {"": "cpu"}
    assert "written for prefill on cpu, which takes the most time; not expressed: decode on l4" in said


def test_devices_as_torch_knows_them() -> None:
    def where(device: Device, *before: Device) -> tuple[int | str, list[str]]:
        fleet = Fleet((sample_device(), *before, device))
        plan = replace(moved(sample_plan(), prefill=device.id, decode=device.id), fleet=fleet)
        placed, notes = device_map.device_map(plan, "llm")
        return placed[""], notes

    l4 = sample_fleet()["l4"]
    live = replace(l4, id="cuda:1", live=True, torch_device="cuda:1")
    assert where(live)[0] == 1
    assert where(replace(live, torch_device="cuda"))[0] == 0
    assert where(replace(live, torch_device="mps"))[0] == "mps"
    assert where(replace(l4, id="h100-sxm"), l4)[0] == 1
    placed, notes = where(replace(sample_device(), id="cpu/1"))
    assert placed == "cpu"
    assert "cpu/1 is a part of the CPU's cores; a device_map knows only the whole cpu" in notes


def test_a_model_that_is_not_in_the_plan_and_a_plan_without_models(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no model in this plan 'embeder'; did you mean 'embedder'"):
        exported(sample_plan(), tmp_path, model="embeder")
    plan = sample_plan()
    functions = replace(plan.graph, stages=tuple(s for s in plan.graph.stages if s.kind != "module"))
    with pytest.raises(UsageError, match="places no model"):
        exported(replace(plan, graph=functions), tmp_path)
    with pytest.raises(UsageError, match="fleet has no device 'tpu'"):
        exported(moved(plan, prefill="tpu", decode="tpu"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_from_pretrained_takes_the_map_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch
    from accelerate import init_empty_weights
    from accelerate.utils.modeling import check_device_map
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    with init_empty_weights():
        empty = LlamaForCausalLM(config)

    on_gpu = export.export(sample_plan(), "device-map", tmp_path / "gpu.json")
    check_device_map(empty, json.loads(on_gpu.read_text()))

    stay = moved(sample_plan(), prefill="cpu", decode="cpu")
    on_cpu = export.export(stay, "device-map", tmp_path / "cpu.json")
    placed = json.loads(on_cpu.read_text())
    check_device_map(empty, placed)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", device_map=placed)
    tokens = torch.arange(7)[None]
    assert {str(tensor.device) for tensor in (*loaded.parameters(), *loaded.buffers())} == {"cpu"}
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
