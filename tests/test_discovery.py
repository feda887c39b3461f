"""What this machine has, and fleets made of it and of the catalogue."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gimlet_lab.errors import UnknownNameError, UsageError
from gimlet_lab.hardware import (
    accelerators,
    calibration,
    catalogue,
    discovery,
    machine,
    measurement,
    theory,
)
from gimlet_lab.hardware.calibration import Bench, Beside, Calibration, Rung
from gimlet_lab.hardware.fleet import PCIE_EFFICIENCY, fleet, links, local_fleet, parse
from gimlet_lab.model import Device, Fleet, Quantity


@pytest.fixture
def four_cores(monkeypatch, tmp_path):
    """A machine of four cores that measures twice as much with twice the threads, at once."""
    made: list[Bench] = []

    def fake(bench: Bench, progress) -> Calibration:
        made.append(bench)
        progress(1.0, "done")
        ladder = (Rung("float32", 1, 1000, 1000, 1e-3), Rung("float32", 500, 500, 500, 1e-2 / bench.threads))
        return Calibration(bench.threads, 2e10, 2e10, 1e-6, ladder, "2026-01-01", 0.1)

    monkeypatch.setattr(machine, "cores", lambda: (0, 1, 2, 5))
    monkeypatch.setattr(machine, "memory_bytes", lambda: 8 * 2**30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(measurement, "measure", fake)
    monkeypatch.setattr(calibration, "_MEMORY", {})
    monkeypatch.setenv(machine.CACHE_VARIABLE, str(tmp_path))
    return made


def test_a_processor_and_two_slices_that_share_its_cores(four_cores):
    seen: list[float] = []
    whole, first, second = discovery.local_devices(progress=lambda fraction, _what: seen.append(fraction))
    assert [d.id for d in (whole, first, second)] == ["cpu", "cpu/0", "cpu/1"]
    assert (first.cores, second.cores) == ((0, 1), (2, 5))
    assert set(first.resources) | set(second.resources) == set(whole.resources)
    assert not set(first.resources) & set(second.resources)
    assert all(d.is_host and d.live and d.torch_device == "cpu" for d in (whole, first, second))
    assert first.memory_bytes.value + second.memory_bytes.value == whole.memory_bytes.value == 8 * 2**30
    assert whole.achieved_flops["float32"].value == 2 * first.achieved_flops["float32"].value
    assert whole.achieved_flops["float32"].tier == "measured"
    assert whole.usd_per_hour is None
    # Slices of one size are one measurement.
    assert [bench.threads for bench in four_cores] == [4, 2, 4, 2]
    assert whole.gemv_bytes_per_s["float32"].value == 4e9
    assert whole.achieved_bandwidth_bytes_per_s.value == 2e10
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_uneven_slices_are_measured_each_and_stay_in_the_time(four_cores):
    devices = discovery.local_devices(slices=3)
    assert [d.cores for d in devices[1:]] == [(0, 1), (2,), (5,)]
    assert [bench.threads for bench in four_cores] == [4, 2, 1, 4, 2, 1]
    assert sum(bench.budget_s for bench in four_cores) <= 10


def test_a_processor_is_never_slower_than_its_slices(four_cores, monkeypatch):
    def disturbed(bench: Bench, _progress) -> Calibration:
        seconds = {4: 1.0, 2: 0.1}[bench.threads]
        rung = Rung("float32", 500, 500, 500, seconds)
        return Calibration(bench.threads, 1e10 / seconds, 1e10 / seconds, 1e-6, (rung,), "2026-01-01", 0.1)

    monkeypatch.setattr(measurement, "measure", disturbed)
    whole, first, _ = discovery.local_devices()
    assert whole.achieved_flops["float32"].value == first.achieved_flops["float32"].value == 2 * 500**3 / 0.1
    assert whole.copy_bandwidth_bytes_per_s.value == 1e11
    assert discovery.host_device() == whole


def test_the_users_thread_count_is_theirs(four_cores, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    whole, first, _ = discovery.local_devices()
    assert [bench.threads for bench in four_cores] == [1, 2, 1, 2]
    # One thread was asked for: that two would be faster is no disturbance.
    assert 2 * whole.achieved_flops["float32"].value == first.achieved_flops["float32"].value


@pytest.mark.parametrize(("slices", "expected"), [(0, 1), (1, 1), (2, 3), (9, 5)])
def test_as_many_slices_as_asked_for_and_there_are_cores(four_cores, slices, expected):
    assert len(discovery.local_devices(slices=slices)) == expected


def test_a_second_look_measures_nothing_unless_asked(four_cores):
    once = discovery.local_devices()
    assert discovery.local_devices() == once
    assert discovery.host_device() == once[0]
    assert len(four_cores) == 4
    discovery.host_device(recalibrate=True)
    assert len(four_cores) == 8


def test_a_change_of_what_it_depends_on_measures_again(four_cores, monkeypatch):
    discovery.local_devices()
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1.5)
    discovery.local_devices()
    assert len(four_cores) == 8
    monkeypatch.setattr(machine, "clocks", lambda: {"governor": "powersave"})
    discovery.local_devices()
    assert len(four_cores) == 12
    discovery.local_devices()
    assert len(four_cores) == 12


def test_the_long_calibration_has_tiers_and_stays_below_a_minute(four_cores, monkeypatch):
    monkeypatch.setattr(machine, "caches", lambda: {"L1": 2**15, "L2": 2**20, "L3": 2**24})
    discovery.local_devices(long=True)
    assert sum(bench.budget_s for bench in four_cores) < 40
    whole, part = (dict(bench.tiers) for bench in four_cores[:2])
    assert (whole["L2"], whole["L3"]) == (2**21, 2**23)
    assert (part["L2"], part["L3"]) == (2**20, 2**22)
    assert whole["memory"] == four_cores[0].array_bytes
    discovery.local_devices()
    assert len(four_cores) == 4


def test_threads_that_do_not_keep_up_with_slices_get_a_second_try(four_cores, monkeypatch):
    """Threads of one operator wait for each other: on a core that is not free they lose nearly all."""
    monkeypatch.setattr(discovery, "_beside", lambda *_args: Beside(0.9, 0.5, "2026-11-25"))
    rates = {4: [1e9, 1e9, 3e11], 2: [2e11] * 9}

    def disturbed(bench: Bench, _progress) -> Calibration:
        four_cores.append(bench)
        seconds = 2 * 500**3 / rates[bench.threads].pop(0)
        rung = Rung("float32", 500, 500, 500, seconds)
        return Calibration(bench.threads, 1e10, 1e10, 1e-6, (rung,), "2026-01-01", 0.1)

    monkeypatch.setattr(measurement, "measure", disturbed)
    whole, first, second = discovery.local_devices()
    assert [bench.threads for bench in four_cores] == [4, 2, 4, 2, 4]
    assert whole.achieved_flops["float32"].value == pytest.approx(3e11)
    assert first.beside_bandwidth.value == second.beside_bandwidth.value == 0.5
    assert whole.beside_flops is None


def test_what_was_measured_under_load_says_so():
    rung = Rung("float32", 500, 500, 500, 0.01)
    loaded = Calibration(2, 1e10, 1e10, 1e-6, (rung,), "2026-11-25", 1.0, others=0.45)
    device = discovery.apply(catalogue.devices()["cpu"], loaded)
    assert device.launch_s.source == "measured here (2 threads), under load: others used 45% of the cores"


def test_one_core_has_no_slices(four_cores, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: (3,))
    assert [d.id for d in discovery.local_devices()] == ["cpu"]


def test_without_torch_there_is_a_processor_that_nobody_measured(four_cores, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "torch", None)
    device = discovery.host_device()
    assert device.name.endswith("not measured")
    assert device.achieved_flops == {}
    assert device.achieved_bandwidth_bytes_per_s is None
    assert device.memory_bytes.value > 0


def test_no_memory_to_measure_with_is_no_error(four_cores, monkeypatch):
    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(measurement, "measure", fail)
    assert discovery.host_device().name.endswith("not measured")


def test_the_real_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "ARRAY_BYTES", 2**20)
    monkeypatch.setattr(machine, "last_cache_bytes", lambda: None)
    monkeypatch.setattr(calibration, "BUDGET_S", 0.05)
    device = discovery.host_device(cache_dir=tmp_path)
    assert device.cores == machine.cores()
    assert device.name.startswith(machine.processor())
    assert device.achieved_flops["float32"].value > 1e8
    assert device.achieved_bandwidth_bytes_per_s.value > 1e8
    assert 1e8 < machine.available_bytes() <= machine.memory_bytes() <= device.memory_bytes.value


def test_cores_are_named_by_ranges():
    assert discovery._ranges((0, 1, 2, 5, 8, 9)) == "0-2,5,8-9"


class FakeCuda:
    """torch.cuda of a machine with one known and one unknown card."""

    names = ("NVIDIA H100 80GB HBM3", "NVIDIA Quark 9000")

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(name=self.names[index], total_memory=79 * 2**30)


def test_accelerators_are_matched_by_their_drivers_name_never_by_a_near_one(monkeypatch):
    monkeypatch.setattr(torch, "cuda", FakeCuda())
    known, unknown = accelerators.accelerators("2026-01-01")
    assert (known.id, known.torch_device, known.live) == ("cuda:0", "cuda:0", True)
    assert known.peak_flops["bfloat16"].value == 989e12
    assert known.memory_bytes.value == 79 * 2**30
    assert known.usd_per_hour is None
    assert known.resources == ("cuda:0",)
    assert (unknown.id, unknown.name, unknown.vendor) == ("cuda:1", "NVIDIA Quark 9000", "NVIDIA")
    assert unknown.peak_flops == {}
    assert unknown.bandwidth_bytes_per_s is None


def test_no_driver_no_card(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert accelerators.accelerators("2026-01-01") == ()


# Fleets


def test_cards_that_reach_each_other_directly_are_linked_so(four_cores):
    def card(name: str, other: str) -> Device:
        rate = Quantity(450e9, "NVSwitch, 18 links, by the driver", "2026-01-01", "vendor")
        found = accelerators.describe("NVIDIA H100 80GB HBM3", name, 2**30, "2026-01-01", "test")
        return replace(found, peers={other: rate})

    pair = (card("cuda:0", "cuda:1"), card("cuda:1", "cuda:0"))
    for one in links(pair):
        assert one.bytes_per_s == 450e9 * PCIE_EFFICIENCY
        assert one.source == "NVSwitch, 18 links, by the driver"
    assert fleet("cuda:1", local=pair).devices == (pair[1],)


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (("h100-sxm:2, cpu",), [("h100-sxm", 2), ("cpu", 1)]),
        (("h100-sxm:2", "cpu/0 cpu/1"), [("h100-sxm", 2), ("cpu/0", 1), ("cpu/1", 1)]),
        (("  t4 ,,l4:10 ",), [("t4", 1), ("l4", 10)]),
        (("cuda:0 cuda:0:1",), [("cuda:0", 1), ("cuda:0", 1)]),
        (("",), []),
    ],
)
def test_specs(specs, expected):
    assert parse(*specs) == expected


@given(st.lists(st.tuples(st.sampled_from(sorted(catalogue.devices())), st.integers(1, 99)), max_size=5))
def test_specs_read_back_as_they_were_written(items):
    for separator in (" ", ",", ", "):
        assert parse(separator.join(f"{name}:{count}" for name, count in items)) == items


@pytest.mark.parametrize(
    "spec", ["h100-sxm:0", "h100-sxm:-1", "h100-sxm:two", "h100-sxm:", "h100-sxm:1.5", "t4:²"]
)
def test_a_bad_count_is_one_line(spec):
    with pytest.raises(UsageError, match="a count is a whole number above 0"):
        fleet(spec, local=())


def test_an_unknown_device_is_named_with_near_ones():
    with pytest.raises(UnknownNameError, match="no device 'h100-smx'; did you mean 'h100-sxm'"):
        fleet("h100-smx:2 cpu", local=())


def test_no_device_is_no_fleet():
    with pytest.raises(UsageError, match="a fleet needs a device"):
        fleet(" ", local=())


def test_naming_a_device_again_adds_to_its_count():
    assert fleet(
        "t4:2", "Tesla", "t4", local=(replace(catalogue.find("t4"), aliases=("Tesla",)),)
    ).counts == {"t4": 4}


def test_a_live_device_goes_before_the_template_and_is_there_once(four_cores):
    local = discovery.local_devices()
    both = fleet("cpu", "h100-sxm:2", local=local)
    assert both["cpu"].live
    assert both.counts == {"cpu": 1, "h100-sxm": 2}
    with pytest.raises(UsageError, match="'cpu' is one device of this machine, not 2"):
        fleet("cpu:2", local=local)
    assert Fleet.from_json(both.to_json()) == both


def test_the_machine_is_looked_at_only_when_one_of_its_devices_is_named(four_cores):
    assert not fleet("cpu-less-t4:1".replace("cpu-less-", "")).devices[0].live
    assert four_cores == []
    assert fleet("cpu").devices[0].live
    assert [bench.threads for bench in four_cores] == [4, 2, 4, 2]


def test_links_are_what_lies_between(four_cores):
    whole, first, second = discovery.local_devices()
    h100, t4, xeon = (catalogue.find(name) for name in ("h100-sxm", "t4", "xeon-8480"))
    found = {(one.src, one.dst): one for one in links((whole, first, second, h100, t4, xeon), latency_s=7e-6)}
    assert len(found) == 6 * 5
    # Shared memory: half of what a copy reads and writes.
    assert found["cpu/0", "cpu/1"].bytes_per_s == 1e10
    assert found["cpu/0", "cpu/1"].latency_s == 7e-6
    assert found["cpu", "h100-sxm"].bytes_per_s == pytest.approx(
        h100.link_bytes_per_s.value * PCIE_EFFICIENCY
    )
    # Through the host: slower than the slower of both.
    through = found["h100-sxm", "t4"]
    assert through.bytes_per_s < found["cpu", "t4"].bytes_per_s
    assert through.latency_s == 2 * found["cpu", "t4"].latency_s
    assert found["cpu", "xeon-8480"].source.startswith("assumed")
    for (src, dst), one in found.items():
        assert found[dst, src].bytes_per_s == one.bytes_per_s


def test_a_device_of_unknown_rate_has_no_link(four_cores):
    (host,) = discovery.local_devices(slices=0)
    unknown = accelerators.describe("NVIDIA Quark 9000", "cuda:0", 2**30, "2026-01-01", "test")
    assert links((host, unknown)) == ()


def test_the_local_fleet_has_a_host_and_measured_links(four_cores):
    here = local_fleet()
    assert [device.id for device in here] == ["cpu", "cpu/0", "cpu/1"]
    assert any(device.is_host for device in here)
    assert {one.source for one in here.links} == {"measured"}
    assert all(isinstance(device.memory_bytes, Quantity) for device in here)


def test_a_processor_in_theory_by_its_datasheet_or_by_its_instructions(monkeypatch):
    monkeypatch.setattr(machine, "processor", lambda: "AMD EPYC 9654 96-Core Processor")
    found = theory.theory(tuple(range(10**6, 10**6 + 48)), "2026-11-25")
    assert found["peak_flops"]["float32"].value == pytest.approx(7.37e12 / 2)
    assert found["peak_flops"]["float32"].source.startswith("48 cores of it: ")
    assert found["bandwidth_bytes_per_s"].value == 460.8e9
    monkeypatch.setattr(machine, "processor", lambda: "AMD EPYC")
    monkeypatch.setattr(machine, "clocks", lambda: {"max_clock_khz": "3500000"})
    monkeypatch.setattr(theory, "_flags", lambda: frozenset({"fma", "avx2"}))
    peak = theory.theory((0,), "2026-11-25")["peak_flops"]["float32"]
    assert (peak.value, peak.tier) == (32 * 3.5e9, "derived")
    assert "the highest clock" in peak.source
    monkeypatch.setattr(theory, "_flags", frozenset)
    assert theory.theory((0,), "2026-11-25") == {}
