"""Calibration: measured once, kept safely, and it leaves the process as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gimlet_lab.hardware import calibration, link, machine, measurement
from gimlet_lab.hardware.beside import measure_beside
from gimlet_lab.hardware.calibration import (
    ROUNDS,
    Bench,
    Beside,
    Calibration,
    Rung,
    calibrations,
    read,
    write,
)
from gimlet_lab.hardware.measurement import measure

TINY = Bench(threads=1, array_bytes=2**16, ladder=(8, 16), budget_s=60.0)
FACTS = {"name": "a processor", "cores": 2, "torch": "2"}


class Clock:
    """Every look at it costs a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def result(**changes) -> Calibration:
    rung = Rung("float32", 64, 64, 64, 0.5)
    base = Calibration(1, 2e10, 2e10, 1e-6, (rung,), "2026-01-01", 0.5)
    return replace(base, **changes)


def test_a_real_measurement_gives_rates_of_every_kind():
    found = measure(TINY)
    assert {"float32", "bfloat16"} <= set(found.flops)
    assert all(rate > 0 for rate in (*found.flops.values(), found.read_bytes_per_s, found.copy_bytes_per_s))
    assert 0 < found.launch_s < 1e-2
    shapes = [(rung.m, rung.n) for rung in found.ladder if rung.dtype == "float32"]
    # 64 KiB of float32 weights are 128 × 128; decode meets them with one row.
    assert shapes == [(1, 128), (16, 128), (8, 8), (16, 16)]
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_rates_follow_from_the_clock():
    # Each try lasts one tick: 500 additions, or one copy of 2 × 64 KiB, a second.
    found = measure(replace(TINY, budget_s=1e6), clock=Clock())
    assert found.launch_s == pytest.approx(1 / 500)
    assert found.copy_bytes_per_s == pytest.approx(2 * 2**16)
    assert found.flops["float32"] == pytest.approx(2 * 16 * 128 * 128)


def test_what_does_not_fit_the_budget_is_not_begun():
    found = measure(replace(TINY, budget_s=0.0), clock=Clock())
    # One GEMM per dtype is the least; the 16 × 16 would have taken more than was left.
    assert [(rung.m, rung.n) for rung in found.ladder if rung.dtype == "float32"] == [(1, 128), (8, 8)]


def test_the_process_is_left_as_it_was():
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    random = torch.get_rng_state()
    try:
        torch.set_float32_matmul_precision("medium")
        measure(replace(TINY, threads=2 if threads == 1 else 1))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert cores is None or os.sched_getaffinity(0) == cores


def test_the_process_is_left_as_it_was_when_measuring_fails(monkeypatch):
    threads = torch.get_num_threads()

    def fail(*_args: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(measurement, "_bandwidth", fail)
    with pytest.raises(RuntimeError):
        measure(replace(TINY, threads=threads + 1))
    assert torch.get_num_threads() == threads


def test_progress_is_reported_from_start_to_end():
    seen: list[float] = []
    measure(TINY, progress=lambda fraction, _what: seen.append(fraction))
    assert seen[0] == 0.0
    assert seen[-1] == 1.0
    assert seen == sorted(seen)


def test_the_long_calibration_measures_tiers_and_more_rungs():
    found = measure(replace(TINY, few_rows=(1, 2, 4), tiers=(("L2", 2**14), ("memory", 2**18))))
    assert [(tier.name, tier.working_set_bytes) for tier in found.tiers] == [("L2", 2**14), ("memory", 2**18)]
    for tier in found.tiers:
        assert min(tier.read_bytes_per_s, tier.copy_bytes_per_s, tier.random_bytes_per_s) > 0
    assert [rung.m for rung in found.ladder if rung.dtype == "float32"] == [1, 2, 4, 8, 16]
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found
    better = replace(found.tiers[0], read_bytes_per_s=1e15, copy_bytes_per_s=1.0)
    merged = found.merged(replace(found, tiers=(better, found.tiers[1])))
    assert merged.tiers[0].read_bytes_per_s == 1e15
    assert merged.tiers[0].copy_bytes_per_s == found.tiers[0].copy_bytes_per_s


def test_what_others_use_of_the_cores_is_counted(monkeypatch):
    """Ten seconds of two cores: we had five of them and others eight."""
    counted = iter([(100.0, 40.0, 10.0), (120.0, 53.0, 15.0)])
    monkeypatch.setattr(machine.Load, "_counted", lambda _self: next(counted))
    load = machine.Load()
    assert load.others() == pytest.approx(8 / 20)


def test_one_that_others_disturbed_is_measured_again_when_it_is_quiet(tmp_path, measurements, monkeypatch):
    made, fake = measurements
    busy = [0.6]
    monkeypatch.setattr(machine.Load, "others", lambda _self: busy[0])
    monkeypatch.setattr(calibration, "QUIET_S", 0.0)

    def loaded(bench: Bench, progress: object) -> Calibration:
        return replace(fake(bench, progress), others=busy[0])

    first = one(TINY, FACTS, loaded, directory=tmp_path)
    assert first.disturbed
    monkeypatch.setattr(calibration, "_MEMORY", {})
    assert one(TINY, FACTS, loaded, directory=tmp_path) == first  # still as busy: kept
    busy[0] = 0.0
    monkeypatch.setattr(calibration, "_MEMORY", {})
    second = one(TINY, FACTS, loaded, directory=tmp_path)
    assert not second.disturbed
    assert second.launch_s == first.launch_s  # the best of both
    assert len(made) == 2 * ROUNDS


def test_once_more_keeps_the_best_of_both(tmp_path, measurements):
    made, fake = measurements
    first = one(TINY, FACTS, fake, directory=tmp_path)
    again = one(TINY, FACTS, fake, directory=tmp_path, once_more=True)
    assert len(made) == ROUNDS + 1
    assert again.launch_s == first.launch_s
    assert again.seconds_spent > first.seconds_spent


def test_slices_beside_each_other_keep_a_share():
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    found = measure_beside([(core,) for core in cores[:2]], 2**20, window_s=0.01)
    if len(cores) < 2:
        assert found is None
        return
    assert 0 < found.flops_share <= 1
    assert 0 < found.bandwidth_share <= 1
    assert os.sched_getaffinity(0) == set(cores)
    assert measure_beside([(10**6,), (10**6 + 1,)], 2**20) is None
    assert measure_beside([(0,)], 2**20) is None


def test_beside_is_measured_once_for_each_machine(tmp_path):
    made = []

    def measure_once() -> Beside:
        made.append(1)
        return Beside(0.9, 0.5, "2026-11-25")

    for facts in (FACTS, FACTS, {**FACTS, "quota": 2.0}):
        assert calibration.beside(facts, measure_once, directory=tmp_path).bandwidth_share == 0.5
    assert len(made) == 2
    for path in tmp_path.glob("*.json"):
        path.write_text(path.read_text().replace("0.5", "5.0"))
    calibration.beside(FACTS, measure_once, directory=tmp_path)
    assert len(made) == 3
    assert calibration.beside({"other": 1}, lambda: None, directory=tmp_path) is None


def test_beside_others_is_measured_again_when_it_is_quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "QUIET_S", 0.0)
    busy = [0.6]
    monkeypatch.setattr(machine.Load, "others", lambda _self: busy[0])

    def look() -> Beside:
        return calibration.beside(FACTS, lambda: Beside(0.9, 0.5, "2026-11-25", busy[0]), directory=tmp_path)

    assert look().disturbed
    assert look().disturbed
    busy[0] = 0.0
    assert not look().disturbed
    busy[0] = 0.6
    assert not look().disturbed


@pytest.fixture
def measurements(monkeypatch):
    """Notes what is measured, each with a longer launch than the last; memory is empty at the start."""
    monkeypatch.setattr(calibration, "_MEMORY", {})
    made: list[Bench] = []

    def fake(bench: Bench, _progress: object) -> Calibration:
        made.append(bench)
        return result(launch_s=1e-6 * len(made))

    return made, fake


def one(bench: Bench, facts: dict, fake, **options) -> Calibration | None:
    (found,) = calibrations([(bench, facts)], fake, **options)
    return found


def test_measured_once_per_machine_and_again_when_asked(tmp_path, measurements, monkeypatch):
    made, fake = measurements
    first = one(TINY, FACTS, fake, directory=tmp_path)
    monkeypatch.setattr(calibration, "_MEMORY", {})  # as in another process
    assert one(TINY, FACTS, fake, directory=tmp_path) == first
    assert len(made) == ROUNDS
    assert one(TINY, FACTS, fake, directory=tmp_path, recalibrate=True) != first
    assert len(made) == 2 * ROUNDS
    one(replace(TINY, threads=2), FACTS, fake, directory=tmp_path)
    one(TINY, {**FACTS, "torch": "3"}, fake, directory=tmp_path)
    assert len(made) == 4 * ROUNDS
    assert list(tmp_path.glob("*.tmp")) == []


def test_devices_take_turns_and_the_best_of_all_rounds_counts(tmp_path, measurements):
    made, fake = measurements
    two = replace(TINY, threads=2)
    asked = [(TINY, FACTS), (two, FACTS), (TINY, FACTS)]
    first, second, again = calibrations(asked, fake, directory=tmp_path)
    assert [bench.threads for bench in made] == [1, 2] * ROUNDS
    assert sum(bench.budget_s for bench in made) == pytest.approx(TINY.budget_s + two.budget_s)
    assert (first.launch_s, second.launch_s) == pytest.approx((1e-6, 2e-6))
    assert again == first


def test_merging_keeps_the_best_of_each_figure():
    slow = Rung("float32", 1, 64, 64, 2.0)
    quick, other = replace(slow, seconds=1.0), Rung("bfloat16", 8, 8, 8, 1.0)
    mine = result(read_bytes_per_s=3.0, copy_bytes_per_s=1.0, launch_s=2.0, ladder=(slow,))
    theirs = result(read_bytes_per_s=2.0, copy_bytes_per_s=4.0, launch_s=1.0, ladder=(quick, other))
    for both in (mine.merged(theirs), theirs.merged(mine)):
        assert (both.read_bytes_per_s, both.copy_bytes_per_s, both.launch_s) == (3.0, 4.0, 1.0)
        assert set(both.ladder) == {quick, other}
        assert both.flops == {"float32": 2 * 64 * 64, "bfloat16": 2 * 8**3}
        assert both.gemv_bytes_per_s == {"float32": 4 * 64 * 64}


def test_what_cannot_be_measured_is_none_beside_what_can(tmp_path, measurements):
    def fails(bench: Bench, progress: object) -> Calibration:
        if bench.device == "cuda:0":
            raise RuntimeError("out of memory")
        return measurements[1](bench, progress)

    asked = [(TINY, FACTS), (replace(TINY, device="cuda:0"), FACTS)]
    here, there = calibrations(asked, fails, directory=tmp_path)
    assert here is not None
    assert there is None
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_progress_goes_from_start_to_end_over_all_devices(tmp_path, measurements):
    def reports(bench: Bench, progress) -> Calibration:
        progress(0.0, "begins")
        progress(1.0, "ends")
        return measurements[1](bench, progress)

    seen: list[tuple[float, str]] = []
    asked = [(replace(TINY, name="cpu"), FACTS), (replace(TINY, threads=2, name="cpu/0"), FACTS)]
    calibrations(asked, reports, directory=tmp_path, progress=lambda *report: seen.append(report))
    assert seen[0] == (0.0, "cpu: begins")
    assert seen[-1] == (1.0, "cpu/0: ends")
    assert seen == sorted(seen, key=lambda report: report[0])


DAMAGE = {
    "torn": lambda text: text[: len(text) // 2],
    "empty": lambda _text: "",
    "not an object": lambda _text: "[1, 2]",
    "foreign": lambda text: text.replace("a processor", "another"),
    "old": lambda text: text.replace("calibration/1", "calibration/0"),
    "impossible": lambda text: text.replace('"copy_bytes_per_s": 2', '"copy_bytes_per_s": -2'),
    "not a number": lambda text: text.replace('"copy_bytes_per_s": 20000000000.0', '"copy_bytes_per_s": NaN'),
    "a text": lambda text: text.replace('"copy_bytes_per_s": 20000000000.0', '"copy_bytes_per_s": "2e10"'),
    "no time at all": lambda text: text.replace('"seconds": 0.5', '"seconds": 0'),
    "another dtype": lambda text: text.replace('"float32"', '"posit16"'),
    "lacking": lambda text: text.replace('"launch_s"', '"lunch_s"'),
    "binary": lambda _text: "\udcff\udcfe",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_bad_file_is_measured_again(tmp_path, damage, measurements, monkeypatch):
    made, fake = measurements
    one(TINY, FACTS, fake, directory=tmp_path)
    (path,) = tmp_path.glob("*.json")
    damaged = damage(path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged, errors="surrogateescape")
    monkeypatch.setattr(calibration, "_MEMORY", {})
    one(TINY, FACTS, fake, directory=tmp_path)
    assert len(made) == 2 * ROUNDS
    assert read(path, json.loads(path.read_text())["key"]) is not None


def test_a_folder_that_cannot_be_written_works_in_memory(tmp_path, measurements):
    made, fake = measurements
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "cache"
    first = one(TINY, FACTS, fake, directory=folder)
    assert one(TINY, FACTS, fake, directory=folder) is first
    assert len(made) == ROUNDS
    assert not write(folder / "x.json", FACTS, first)


def test_the_environment_chooses_the_folder(tmp_path, monkeypatch, measurements):
    monkeypatch.setenv("GIMLET_LAB_CACHE", str(tmp_path / "mine"))
    one(TINY, FACTS, measurements[1])
    assert list((tmp_path / "mine").glob("calibration-*.json"))


RACE = """
import sys
from pathlib import Path
from gimlet_lab.hardware.calibration import Bench, calibrations
from gimlet_lab.hardware.measurement import measure
bench = Bench(threads=1, array_bytes=2**16, ladder=(8,), budget_s=60.0)
print(calibrations([(bench, {"name": "race"})], measure, directory=Path(sys.argv[1]))[0].launch_s)
"""


def test_two_processes_at_once_leave_one_whole_file_and_agree(tmp_path):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    (path,) = tmp_path.glob("*.json")
    found = read(path, {"name": "race", "device": "cpu", "threads": 1})
    assert found is not None
    # The second waited for the first or came after it: it has the same figures.
    assert {float(out) for out, _ in answers} == {found.launch_s}
    assert not list(tmp_path.glob("*.tmp"))


def test_a_writer_killed_half_way_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "calibration.json"
    assert write(path, FACTS, result())

    def full(*_args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert not write(path, FACTS, result(launch_s=1.0))
    assert read(path, FACTS) == result()
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_byte_reaches_another_process():
    taken = link.pipe_s(rounds=5)
    assert taken is not None
    assert 0 < taken < 1


def test_no_process_no_latency(monkeypatch):
    monkeypatch.setattr(sys, "executable", str(Path("/does/not/exist")))
    assert link.pipe_s() is None


def test_our_own_work_and_our_childrens_is_not_others():
    if machine.Load()._counted() is None:
        pytest.skip("this system does not count the time of single cores")
    before = machine._own_s()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    assert machine._own_s() > before
