"""Cards by their drivers: the vendors' own bindings over libraries that stand in for them, and no torch."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_drivers import NO_AMDSMI, NO_COMPILER, compiler, environment, has_amdsmi, run

pytestmark = pytest.mark.skipif(compiler() is None, reason=NO_COMPILER)
amd = pytest.mark.skipif(not has_amdsmi(), reason=NO_AMDSMI)

DISCOVER = """
import json, sys
sys.modules["torch"] = None
from gimlet_lab.hardware import topology
from gimlet_lab.hardware.accelerators import accelerators
from gimlet_lab.model import Device
topology.cards.__defaults__ = (0.5,)
found = accelerators("2026-01-01")
data = json.loads(json.dumps([device.to_json() for device in found]))
assert tuple(map(Device.from_json, data)) == found
print(json.dumps(data))
"""


def discover(own: dict[str, str]) -> dict[str, dict[str, Any]]:
    done = run(DISCOVER, own)
    assert (done.returncode, done.stderr) == (0, "")
    return {device["id"]: device for device in json.loads(done.stdout)}


def peers(device: dict[str, Any]) -> dict[str, tuple[float, str]]:
    return {name: (rate["value"], rate["source"]) for name, rate in device["peers"].items()}


def test_cards_on_a_switch() -> None:
    found = discover(environment("devices=3 nvlink=1"))
    assert list(found) == ["nvidia:0", "nvidia:1", "nvidia:2"]
    first = found["nvidia:0"]
    assert first["torch_device"] is None
    assert first["live"]
    assert first["peak_flops"]["bfloat16"]["value"] == 989e12
    assert (first["memory_bytes"]["value"], first["memory_bytes"]["tier"]) == (80 * 2**30, "measured")
    assert first["details"] == {
        "uuid": "GPU-0000abc0-0000-4000-8000-000000000000",
        "pci": "0000:10:00.0",
        "card": "nvidia:0",
        "driver": "580.65.06",
        "library": "NVML 13.580.65.06",
        "cuda": "13.0",
    }
    assert first["link_bytes_per_s"]["value"] == 16 * 3.938e9
    assert first["link_bytes_per_s"]["source"] == "PCIe 5.0 ×16, by the driver"
    rate = (18 * 26562e6, "NVSwitch, 18 links, by the driver")
    assert peers(first) == {"nvidia:1": rate, "nvidia:2": rate}


def test_cards_wired_to_each_other_and_cards_on_pcie() -> None:
    wired = discover(environment("devices=4 nvlink=1 direct=1"))
    assert peers(wired["nvidia:0"]) == {"nvidia:1": (18 * 26562e6, "NVLink, 18 links, by the driver")}
    plain = discover(environment("devices=4 p2p=1"))
    # The others are on another processor: no direct way.
    assert peers(plain["nvidia:2"]) == {
        "nvidia:3": (16 * 3.938e9, "PCIe 5.0 ×16, through one switch, by the driver")
    }
    assert peers(discover(environment("devices=2 p2p=0"))["nvidia:0"]) == {}


def test_kinds_mixed_and_a_slot_with_few_lanes() -> None:
    found = discover(environment("devices=2 mixed=1", faults="LinkWidth:1:0:0:0:4"))
    assert found["nvidia:1"]["peak_flops"]["float16"]["value"] == 65e12
    assert found["nvidia:1"]["link_bytes_per_s"]["value"] == 4 * 0.985e9


def test_a_card_that_is_cut_is_its_instances() -> None:
    found = discover(environment("devices=2 mig=2"))
    assert list(found) == ["nvidia:0/0", "nvidia:0/1", "nvidia:1"]
    instance = found["nvidia:0/1"]
    assert instance["memory_bytes"]["value"] == 10 * 2**30
    # Nobody has published what an instance reaches: not the whole card's figures.
    assert instance["peak_flops"] == {}
    assert instance["bandwidth_bytes_per_s"] is None
    assert instance["details"]["uuid"].startswith("MIG-")


@pytest.mark.parametrize(
    ("options", "faults"),
    [(None, ""), ("devices=0", ""), ("", "Init:*:9"), ("", "Init:*:0:0:5"), ("", "GetCount:*:999")],
    ids=["no library", "no device", "no driver", "a driver that hangs", "a driver that fails"],
)
def test_no_cards(options: str | None, faults: str) -> None:
    assert discover(environment(options, faults=faults)) == {}


def test_a_card_that_answers_nothing_is_there_and_unknown() -> None:
    found = discover(environment("devices=2", faults="nvmlDeviceGet:1:15:2"))
    assert found["nvidia:1"]["memory_bytes"] is None
    assert found["nvidia:1"]["name"] == "NVIDIA device"
    assert found["nvidia:0"]["memory_bytes"]["value"] == 80 * 2**30


@amd
def test_amd_cards_and_partitions() -> None:
    found = discover(environment(amd="devices=2"))
    first = found["amd:0"]
    assert first["peak_flops"]["bfloat16"]["value"] > 1e15
    assert first["vendor"] == "AMD"
    assert first["memory_bytes"]["value"] == 192 * 2**30
    details = {"pci": "0000:20:00.0", "driver": "6.16.6", "library": "AMD SMI 26.0.2", "partition": "SPX"}
    assert details.items() <= first["details"].items()
    assert peers(first) == {"amd:1": (64e9, "XGMI, 1 hop, by the driver")}
    assert peers(discover(environment(amd="devices=2 xgmi=0"))["amd:0"]) == {}
    parts = discover(environment(amd="devices=8 partitions=8"))
    assert len(parts) == 8
    assert parts["amd:7"]["details"]["partition"] == "CPX"


@amd
def test_cards_of_both_vendors() -> None:
    assert list(discover(environment("devices=1", amd="devices=1"))) == ["nvidia:0", "amd:0"]
