"""The measured tier: runs correct the model of the device they ran on; the file is safe and bounded."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from samples import sample_run

from gimlet_lab.assembly import _compared
from gimlet_lab.costs import estimate, measured, prediction, stage_estimate
from gimlet_lab.costs.measured import Corrections, Observation
from gimlet_lab.hardware import machine
from gimlet_lab.model import Device, Op, Quantity, Stage, Work

GEMM = Work.of("gemm", m=64, n=512, k=512)


def q(value: float) -> Quantity:
    return Quantity(value, "measured here", "2026-11-25", "measured")


CPU = Device(
    "cpu",
    "A processor (2 cores)",
    "V",
    "cpu",
    achieved_flops={"float32": q(1e11)},
    achieved_bandwidth_bytes_per_s=q(1e10),
    launch_s=q(1e-6),
    live=True,
    torch_device="cpu",
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "_COLD", {})
    monkeypatch.setenv(machine.CACHE_VARIABLE, str(tmp_path))
    return tmp_path


def seen(kind: str, measured_s: float, predicted_s: float = 1.0) -> list[Observation]:
    return [Observation(kind, predicted_s, measured_s)]


def run_of(
    *, gemm_s: float, python_s: float, own_s: float = 0.5, calls: int = 4, date: str = "2026-11-25T10"
):
    """A module of one GEMM a call and a function that only computes in Python."""
    total = calls * (gemm_s + python_s)
    works = (replace(GEMM, count=calls),)
    module = Stage("embed", "module", "model", None, calls, gemm_s + python_s, total, "compute", works, calls)
    plan = Stage("plan", "function", "plan", None, 1, own_s, own_s, "overhead")
    op = Op("aten::mm", 0, "", GEMM, 0.0, calls * gemm_s, 1.0, 1.0, 1.0, "float32", "cpu", calls)
    base = sample_run(tokens=2)
    return replace(
        base,
        started=date,
        device=CPU,
        deployment={},
        operators=(op,),
        inferred=(False,),
        stage_of=("embed",),
        graph=replace(base.graph, stages=(module, plan), edges=()),
    )


def test_a_ratio_of_runs_corrects_and_its_spread_is_the_interval():
    known = Corrections()
    for day, ratio in enumerate((1.5, 1.6, 1.4)):
        known = known.learned(f"2026-11-{day}", seen("gemm/float32/compute/-5", ratio), 1.0)
    factor = known.factor("gemm/float32/compute/-5")
    assert factor.value == 1.5
    assert factor.low < 1.4 < 1.6 < factor.high
    assert factor.runs == 3


def test_what_no_run_met_goes_by_its_nearest_kind():
    known = Corrections().learned("d", seen("gemm/float32/compute/-5", 2.0), None)
    known = known.learned("d", seen("gemm/float32/bandwidth/-7", 8.0), None)
    assert known.factor("gemm/float32/compute/-3").value == pytest.approx(2)
    assert known.factor("gemm/float32/overhead/-9").value == pytest.approx(5)  # of all its GEMMs: 10 s for 2
    assert known.factor("gemm/bfloat16/compute/-5") is None
    assert known.factor("softmax/float32/compute/-5") is None
    assert known.factor("own/plan") is None


def test_old_runs_and_forgotten_kinds_make_room():
    known = Corrections()
    for day in range(measured.MOST_RUNS + 5):
        known = known.learned(f"day {day:02}", seen("gemm/float32/compute/-5", 1.0 + day), 1.0)
    rows = known.entries["gemm/float32/compute/-5"]
    assert (len(rows), rows[0][0], rows[-1][0]) == (measured.MOST_RUNS, "day 05", "day 24")
    assert len(known.runs) == measured.MOST_RUNS
    many = [Observation(f"own/f{n}", 1.0, 1.0) for n in range(measured.MOST_KINDS + 9)]
    known = known.learned("later", many, None)
    assert len(known.entries) == measured.MOST_KINDS
    assert "gemm/float32/compute/-5" not in known.entries


def test_the_first_run_is_the_models_the_second_is_known():
    first = run_of(gemm_s=0.003, python_s=0.001)
    alone = _compared(first)
    assert alone.predicted["embed"].source == "model"
    assert alone.predicted["embed"].seconds == pytest.approx(2 * 64 * 512**2 / 0.86e11 + 3.4e-6, rel=0.01)
    assert "plan" not in alone.predicted  # its own Python: nothing to know it from
    again = _compared(replace(first, started="2026-11-25T11"))
    for stage in first.graph.stages:
        assert again.predicted[stage.id].seconds == pytest.approx(stage.call_s)
        assert again.predicted[stage.id].source == "measured"
        assert again.predicted[stage.id].low < stage.call_s < again.predicted[stage.id].high
    assert prediction.error(again, again.predicted) == pytest.approx({"embed": 0, "plan": 0})


def test_corrections_carry_to_other_shapes_and_stages():
    _compared(run_of(gemm_s=0.003, python_s=0.001))
    (kept,) = [f for kind, f in _factors().items() if kind.startswith("gemm")]
    wider = Work.of("gemm", m=64, n=768, k=512)
    model, corrected = (estimate(wider, CPU, tier=tier) for tier in ("model", None))
    assert corrected.seconds == pytest.approx(model.seconds * kept)
    assert (model.source, corrected.source) == ("model", "measured")
    assert corrected.low < corrected.seconds < corrected.high
    assert estimate(wider, CPU, tier="measured") == corrected
    assert estimate(Work.of("softmax", rows=9, cols=9), CPU, tier="measured") is None
    # Of a processor's halves, operators that were slower than the model weigh more.
    half = replace(CPU, id="cpu/0", achieved_flops={"float32": q(0.5e11)})
    stage = replace(run_of(gemm_s=0.003, python_s=0.001).graph.stages[0], calls=1)
    assert stage_estimate(stage, half, CPU).seconds == pytest.approx(2 * stage.call_s - 0.001, rel=0.05)


def _factors() -> dict[str, float]:
    known = measured.corrections(CPU)
    return {kind: known.factor(kind).value for kind in known.entries}


@pytest.mark.parametrize(
    "changes",
    [{"status": "failed"}, {"deployment": {"embed": "cpu/0"}}],
)
def test_a_run_that_failed_or_ran_elsewhere_teaches_nothing(changes, cache):
    _compared(replace(run_of(gemm_s=0.003, python_s=0.001), **changes))
    assert not list(cache.glob("measured-*"))


def test_waiting_is_not_predicted():
    run = run_of(gemm_s=0.003, python_s=0.001)
    stages = tuple(replace(stage, bound="wait") for stage in run.graph.stages)
    assert _compared(replace(run, graph=replace(run.graph, stages=stages))).predicted == {}


def test_another_calibration_begins_anew():
    _compared(run_of(gemm_s=0.003, python_s=0.001))
    assert measured.corrections(CPU).runs
    assert not measured.corrections(replace(CPU, launch_s=q(2e-6))).entries
    assert not measured.corrections(replace(CPU, live=False)).entries
    assert measured.path_of(Device("cpu", "not measured", "V", "cpu", live=True)) is None


def test_drift_is_seen():
    for hour, slower in enumerate((1.0, 1.0, 1.0, 2.0)):
        _compared(run_of(gemm_s=0.003 * slower, python_s=0.001 * slower, own_s=0.5 * slower, date=f"T{hour}"))
    assert measured.corrections(CPU).drift == pytest.approx(2, rel=0.01)
    line = measured.describe(CPU)
    assert line.startswith("cpu: the model is corrected by 4 runs here; the last took 2.00 times")
    assert "--calibrate" in line
    assert measured.describe(replace(CPU, launch_s=q(9e-6))) is None


DAMAGE = {
    "torn": lambda text: text[: len(text) // 2],
    "of another version": lambda text: text.replace("measured/1", "measured/0"),
    "negative": lambda text: text.replace("0.012", "-0.012"),
    "not a number": lambda text: text.replace("0.012", "NaN"),
    "a list": lambda _text: "[]",
    "foreign": lambda _text: '{"schema": "gimlet.measured/1", "entries": {"gemm": [[1]]}, "runs": []}',
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_bad_file_is_as_good_as_none(damage, cache):
    _compared(run_of(gemm_s=0.003, python_s=0.001))
    (path,) = cache.glob("measured-*.json")
    text = path.read_text()
    assert json.loads(text)["runs"]
    assert damage(text) != text
    path.write_text(damage(text))
    assert measured.corrections(CPU) == Corrections()
    _compared(run_of(gemm_s=0.003, python_s=0.001))
    assert measured.corrections(CPU).runs
    assert not list(cache.glob("*.tmp"))


def test_files_of_old_calibrations_make_room(cache):
    for step in range(measured.MOST_FILES + 3):
        device = replace(CPU, launch_s=q(1e-6 * (step + 1)))
        assert measured.learn(device, "d", seen("own/f", 1.0), 1.0)
    assert len(list(cache.glob("measured-*.json"))) == measured.MOST_FILES


def test_a_folder_that_cannot_be_written_costs_nothing_else(cache, monkeypatch):
    (cache / "file").write_text("")
    monkeypatch.setenv(machine.CACHE_VARIABLE, str(cache / "file" / "cache"))
    run = _compared(run_of(gemm_s=0.003, python_s=0.001))
    assert run.predicted
    assert not any("not compared" in note for note in run.notes)


@pytest.mark.parametrize(("bound", "share"), [("compute", 0.8), ("bandwidth", 0.5), ("overhead", 1.0)])
def test_a_slice_may_not_be_alone(bound, share):
    stage = Stage("f", "function", "f", None, 1, 0.1, 0.1, bound)
    half = replace(CPU, id="cpu/0")
    busy = replace(half, beside_flops=q(0.8), beside_bandwidth=q(0.5))
    alone, beside = (stage_estimate(stage, device, CPU) for device in (half, busy))
    assert (beside.seconds, beside.low) == (alone.seconds, alone.low)
    assert beside.high == pytest.approx(alone.high / share)


def test_a_run_that_others_disturbed_says_so_and_teaches_nothing(cache, monkeypatch):
    from gimlet_lab import assembly
    from gimlet_lab.model import Recording, Span
    from gimlet_lab.progress import silent

    monkeypatch.setattr(assembly, "_device", lambda *_args: CPU)
    recording = Recording((Span(0, "cell", "cell", 0.0, 1.0),))
    common = {"name": "r", "started": "T0", "text": None, "progress": silent}
    disturbed = assembly.assemble(recording, **common, others=0.7)
    assert "other programs used 70% of the cores meanwhile: times are longer for it" in disturbed.notes
    assert not list(cache.glob("measured-*"))
    alone = assembly.assemble(recording, **common, others=0.01)
    assert not any("other programs" in note for note in alone.notes)


def test_a_processs_first_run_is_cold_and_gives_way_to_a_warm_one():
    cold = run_of(gemm_s=0.003, python_s=0.001, own_s=5.0)
    warm = replace(run_of(gemm_s=0.003, python_s=0.001, own_s=0.1), started="T1")
    _compared(cold)
    assert _compared(warm).predicted["plan"].seconds == pytest.approx(5.0)  # nothing better is known yet
    assert _compared(replace(warm, started="T2")).predicted["plan"].seconds == pytest.approx(0.1)


def test_a_module_goes_by_what_it_took_itself_before():
    """Another stage of the same operators takes longer than the model has it: that is not this one's."""
    run = run_of(gemm_s=0.003, python_s=0.001)
    slow = replace(run.graph.stages[0], id="decode", target="llm", call_s=0.02, total_s=0.08)
    both = replace(run, graph=replace(run.graph, stages=(*run.graph.stages, slow)))
    for date in ("T0", "T1"):
        _compared(replace(both, started=date))
    found = _compared(replace(both, started="T2")).predicted
    assert found["embed"].seconds == pytest.approx(0.004)
    assert found["decode"].seconds == pytest.approx(0.02)
