"""The vendors' own Python bindings, unmodified, over libraries that stand in for their drivers."""

from __future__ import annotations

import json

import meter_faults
import pytest
from fake_drivers import NO_AMDSMI, NO_COMPILER, compiler, environment, has_amdsmi, run, watch

from gimlet_lab.model import MeterSeries

pytestmark = pytest.mark.skipif(compiler() is None, reason=NO_COMPILER)
amd = pytest.mark.skipif(not has_amdsmi(), reason=NO_AMDSMI)


@pytest.mark.parametrize("fault", meter_faults.NVIDIA, ids=lambda fault: fault.name)
def test_nvidia_on_a_bad_day(fault: meter_faults.Fault) -> None:
    fault.passes()


@amd
@pytest.mark.parametrize("fault", meter_faults.AMD, ids=lambda fault: fault.name)
def test_amd_on_a_bad_day(fault: meter_faults.Fault) -> None:
    fault.passes()


def test_a_good_day_of_a_dozen_cards() -> None:
    seen = watch(environment("devices=12 nvlink=1"))
    assert seen["notes"] == []
    for index in range(12):
        series = seen["series"][f"nvidia:{index}"]
        power_w = 100.0 * (index + 1)
        last = {name: values[-1] for name, values in series["readings"].items()}
        expected = {
            "utilization": 0.5 + index / 100,
            "memory_busy": 0.3,
            "memory_used_bytes": 2**30,
            "memory_total_bytes": 80 * 2**30,
            "power_w": power_w,
            "sm_clock_hz": 1.98e9,
            "temperature_c": 40.0 + index,
            "tensor_utilization": 0.4,
            # 61.5% of 5120 bits at 2619 MHz, twice a cycle.
            "dram_bytes_per_s": 0.615 * 2 * 5120 / 8 * 2.619e9,
            "pcie_rx_bytes_per_s": 1000 * 2**20,
            "nvlink_tx_bytes_per_s": 2000 * 2**20,
            "throttle_reasons": "",
            "processes": 1.0,
        }
        assert {name: last[name] for name in expected} == pytest.approx(expected)
        spent_s = series["time_s"][-1] - series["time_s"][0]
        # The counter is read within the call whose middle the time is.
        assert last["energy_j"] == pytest.approx(power_w * spent_s, rel=0.2)
        assert series["energy_source"] == "counter"
        assert series["time_s"][0] <= 0


@amd
def test_a_good_day_of_amd() -> None:
    seen = watch(environment(amd="devices=3 throttle=1"), seconds=1.7)
    assert seen["notes"] == []
    for index in range(3):
        readings = seen["series"][f"amd:{index}"]["readings"]
        last = {name: values[-1] for name, values in readings.items()}
        assert last["utilization"] == pytest.approx(0.6 + index / 100)
        assert last["power_w"] == 150.0 * (index + 1)
        assert last["memory_total_bytes"] == 192 * 2**30
        assert last["sm_clock_hz"] == 2.1e9
        # Seven links of 1e6 KiB/s; over all readings, because one of them may have waited for a core.
        series = MeterSeries.from_json(seen["series"][f"amd:{index}"])
        rate = series.mean("xgmi_read_bytes_per_s", series.time_s[0], series.time_s[-1])
        assert rate == pytest.approx(7 * 1.024e9, rel=0.2)
        # What held it back is by counters that go on: unknown the first time.
        assert readings["throttle_reasons"][0] is None
        assert last["throttle_reasons"] == "power cap"


#: A binding without its library breaks whatever imports it: nothing of ours may, and nothing may be printed.
UNTOUCHED = """
import sys
import gimlet_lab
from gimlet_lab.cli import main
from gimlet_lab.hardware import topology
from gimlet_lab.hardware.meters import shared
shared().look(0.02)
assert topology.cards() == ()
assert "amdsmi" not in sys.modules
print("fine")
"""


@amd
def test_amdsmi_without_rocm_is_never_imported() -> None:
    own = environment(amd="", LD_LIBRARY_PATH="")
    broken = run("import amdsmi", own)
    assert broken.returncode != 0
    assert "libamd_smi" in broken.stdout + broken.stderr
    done = run(UNTOUCHED, own)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


MUTED = """
import sys, threading
from gimlet_lab.hardware.meters.amd import muted
mine, theirs = threading.Event(), threading.Event()
def other():
    mine.wait(10)
    print("heard")
    theirs.set()
threading.Thread(target=other).start()
with muted():
    print("not heard")
    mine.set()
    theirs.wait(10)
print("heard again")
"""


def test_only_the_library_is_muted_not_the_user() -> None:
    assert run(MUTED, environment()).stdout == "heard\nheard again\n"


OWN_METER = """
import importlib.metadata, json
from gimlet_lab.hardware.meters import Sampler
from gimlet_lab.hardware.meters.meter import GROUP

class Probe:
    devices = ("npu:0",)
    def read(self, now_s):
        return {"npu:0": {"power_w": 7.0, "utilization": "N/A", "temperature_c": -400}}

class Meter:
    name = "npu"
    def open(self):
        return [Probe()], ["npu: firmware is old"]

def broken():
    raise RuntimeError("no")

class Entry:
    def __init__(self, what): self.what = what
    def load(self): return self.what

importlib.metadata.entry_points = lambda group: [Entry(broken), Entry(Meter)] if group == GROUP else []
sampler = Sampler()
print(json.dumps([dict(sampler.look(0.01)["npu:0"].readings), sampler.notes]))
"""


def test_a_meter_of_another_package() -> None:
    readings, notes = json.loads(run(OWN_METER, environment()).stdout)
    assert readings == {"power_w": 7.0, "utilization": None, "temperature_c": None}
    assert notes == ["npu: firmware is old"]


PROFILED = """
import json, sys, time
import gimlet_lab as gimlet
with gimlet.profile("x") as recorder:
    until = time.perf_counter() + 3.0
    while time.perf_counter() < until:
        pass
run = recorder.run
table = run.meters
card = table[table.device == "cuda:0"]
assert gimlet.Run.load(run.save(sys.argv[1])) == run
print(json.dumps({
    "devices": sorted(set(table.device)),
    "joules": {one.device: one.joules(0.0, run.duration_s) for one in run.meter_list},
    "duration_s": run.duration_s,
    "rows": len(card),
    "columns": sorted(table.columns),
    "edges": [card.time_s.iloc[0], card.time_s.iloc[-1]],
    "powers": sorted(set(card.power_w)),
    "unknown": bool(table[table.device == "cpu"].power_w.isna().all()),
}))
"""


def test_a_run_has_the_meters_of_the_cards_that_its_process_sees(tmp_path) -> None:
    own = environment("devices=3", CUDA_VISIBLE_DEVICES="1")
    done = run(PROFILED, own, str(tmp_path / "r.gimlet"), timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    # Card 1 is all that CUDA sees, and it is the first one there.
    assert [name for name in seen["devices"] if name.startswith(("cuda", "nvidia"))] == ["cuda:0"]
    assert "cpu" in seen["devices"]
    assert seen["powers"] == [200.0]
    assert seen["unknown"]
    assert {"time_s", "device", "utilization", "energy_j", "dram_bytes_per_s"} <= set(seen["columns"])
    assert seen["edges"][0] <= 0.0
    assert seen["edges"][1] >= seen["duration_s"]
    assert seen["joules"]["cuda:0"] == pytest.approx(200.0 * seen["duration_s"], rel=0.1)
    assert seen["joules"]["core:0"] is None
    assert seen["rows"] >= 4
