"""What vendors' libraries do on bad days, and what must still be known then: for tests and benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from fake_drivers import environment, has_amdsmi, watch

Seen = Mapping[str, Any]


@dataclass(frozen=True)
class Fault:
    """One bad day.

    Attributes
    ----------
    name : str
    check : callable
        Of what was seen: fails where something is not as it must be.
    nvidia, amd : str or None
        Options of each vendor's library; None where it is not there.
    faults : str
        See ``drivers/faults.h``.
    more : mapping
        Of the environment.
    seconds : float
        How long it is watched.
    """

    name: str
    check: Callable[[Seen], None]
    nvidia: str | None = None
    amd: str | None = None
    faults: str = ""
    more: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.4

    def passes(self) -> None:
        """Watch the meters meanwhile and check; the processor's must always go on, and nothing is printed."""
        seen = watch(environment(self.nvidia, self.amd, self.faults, **self.more), self.seconds)
        assert last(seen, "cpu", "memory_used_bytes") > 1e6
        assert seen["printed"] == []
        assert all("Traceback" not in note and "\n" not in note for note in seen["notes"]), seen["notes"]
        self.check(seen)


def column(seen: Seen, device: str, name: str) -> list[Any]:
    return list(seen["series"].get(device, {"readings": {}})["readings"].get(name, []))


def last(seen: Seen, device: str, name: str) -> Any:
    values = column(seen, device, name)
    return values[-1] if values else None


def devices(seen: Seen, vendor: str) -> list[str]:
    return sorted(name for name in seen["series"] if name.startswith(f"{vendor}:"))


def unknown(name: str, vendor: str = "nvidia", note: str | None = None) -> Callable[[Seen], None]:
    """Device 1 does not know one thing, and says nothing instead of 0; all else is known, of both devices."""

    def check(seen: Seen) -> None:
        assert column(seen, f"{vendor}:1", name) == []
        assert last(seen, f"{vendor}:0", name) is not None
        for device in devices(seen, vendor):
            for other in {"utilization", "memory_used_bytes", "power_w", "sm_clock_hz"} - {name}:
                assert last(seen, device, other) is not None, (device, other)
        assert all(note is not None and note in line for line in seen["notes"])

    return check


def nothing(vendor: str, note: str | None = None) -> Callable[[Seen], None]:
    """No device of the vendor, and at most one line about it."""

    def check(seen: Seen) -> None:
        assert devices(seen, vendor) == []
        assert [note in line for line in seen["notes"]] == ([True] if note else [])

    return check


def lost(vendor: str) -> Callable[[Seen], None]:
    """Device 1 goes away in the middle: known before, missing after; the other one is known to the end."""

    def check(seen: Seen) -> None:
        power = column(seen, f"{vendor}:1", "power_w")
        assert power[0] is not None
        assert power[-1] is None
        others = column(seen, f"{vendor}:0", "power_w")
        assert len(others) > 5
        assert None not in others
        assert len(seen["notes"]) == 1
        assert seen["notes"][0].startswith(f"{vendor}:1: ")
        joules = column(seen, f"{vendor}:1", "energy_j")
        assert joules[-1] is None

    return check


def gone(seen: Seen) -> None:
    assert column(seen, "nvidia:1", "power_w") == []
    assert None not in column(seen, "nvidia:0", "power_w")
    assert seen["notes"] == ["nvidia:1: its driver has lost it (it may have fallen off the bus)"]


def hangs(vendor: str) -> Callable[[Seen], None]:
    """Device 1 answers nothing for seconds; the other one and the processor are read on, and nobody waits."""

    def check(seen: Seen) -> None:
        assert len(column(seen, f"{vendor}:0", "power_w")) > 8
        assert len(seen["series"]["cpu"]["time_s"]) > 8
        assert len(column(seen, f"{vendor}:1", "power_w")) <= 5
        assert seen["waited_s"] < 3
        assert any("did not answer" in note for note in seen["notes"])

    return check


def several(count: int, vendor: str = "nvidia") -> Callable[[Seen], None]:
    """All devices are read, each with its own values."""

    def check(seen: Seen) -> None:
        assert len(devices(seen, vendor)) == count
        used = {last(seen, device, "temperature_c") for device in devices(seen, vendor)}
        assert len(used) == count
        assert not seen["notes"]

    return check


def instances(seen: Seen) -> None:
    assert devices(seen, "nvidia") == ["nvidia:0", "nvidia:0/0", "nvidia:0/1", "nvidia:0/2", "nvidia:1"]
    assert last(seen, "nvidia:0/1", "memory_total_bytes") == 10 * 2**30
    assert last(seen, "nvidia:0/1", "tensor_utilization") == 0.4
    # Power is the whole card's: an instance's is not known, and not 0.
    assert column(seen, "nvidia:0/1", "power_w") == []
    assert last(seen, "nvidia:0", "power_w") == 100.0


def reset(vendor: str) -> Callable[[Seen], None]:
    def check(seen: Seen) -> None:
        series = seen["series"][f"{vendor}:1"]
        joules = series["readings"]["energy_j"]
        assert all(after >= before for before, after in pairwise(joules))
        assert joules[-1] < 1e6
        assert any(not gap["bridged"] for gap in series["gaps"])

    return check


def throttled(vendor: str, reason: str) -> Callable[[Seen], None]:
    def check(seen: Seen) -> None:
        assert reason in column(seen, f"{vendor}:1", "throttle_reasons")
        assert not seen["notes"]

    return check


def no_bandwidth(seen: Seen) -> None:
    assert column(seen, "nvidia:0", "dram_bytes_per_s") == []
    assert last(seen, "nvidia:0", "pcie_rx_bytes_per_s") == 2e6
    assert last(seen, "nvidia:0", "utilization") == 0.5


def both_go_on(seen: Seen) -> None:
    assert last(seen, "amd:1", "power_w") == 300.0
    assert None not in column(seen, "amd:1", "power_w")[:-1]
    assert len(column(seen, "amd:0", "power_w")) > 8


def by_power(seen: Seen) -> None:
    one, other = (seen["series"][f"amd:{index}"] for index in (0, 1))
    assert (one["energy_source"], other["energy_source"]) == ("counter", "power")
    spent_s = other["time_s"][-1] - other["time_s"][0]
    assert abs(last(seen, "amd:1", "energy_j") - 300.0 * spent_s) < 1e-3


def partitions(seen: Seen) -> None:
    assert len(devices(seen, "amd")) == 8
    assert last(seen, "amd:7", "utilization") == 0.67


def mixed(seen: Seen) -> None:
    # A T4 has no energy counter and no GPM: energy by its power, PCIe by the driver.
    assert seen["series"]["nvidia:1"]["energy_source"] == "power"
    assert seen["series"]["nvidia:0"]["energy_source"] == "counter"
    assert last(seen, "nvidia:1", "pcie_rx_bytes_per_s") == 2e6


NVIDIA = (
    # NVML's codes: 3 not supported, 4 no permission, 9 no driver, 13 no function, 15 lost, 18 mismatch.
    Fault("no library", nothing("nvidia")),
    Fault("no driver", nothing("nvidia"), nvidia="", faults="InitWithFlags:*:9"),
    Fault("driver and library differ", nothing("nvidia", "nvidia: "), nvidia="", faults="InitWithFlags:*:18"),
    Fault("no permission at all", nothing("nvidia", "nvidia: "), nvidia="", faults="InitWithFlags:*:4"),
    Fault("no device", nothing("nvidia"), nvidia="devices=0"),
    Fault("one device cannot be opened", several(1), nvidia="devices=2",
          faults="HandleByIndex:1:999"),
    Fault("power is not supported", unknown("power_w"), nvidia="", faults="PowerUsage:1:3"),
    Fault("utilization is forbidden", unknown("utilization"), nvidia="", faults="Utilization:1:4"),
    Fault("clocks are not in this driver", unknown("sm_clock_hz"), nvidia="", faults="GetClockInfo:1:13"),
    Fault("memory fails for no known reason", unknown("memory_used_bytes"), nvidia="",
          faults="MemoryInfo:1:999"),
    Fault("power is 0", unknown("power_w"), nvidia="", faults="PowerUsage:1:0:0:0:0"),
    Fault("power is absurd", unknown("power_w"), nvidia="", faults="PowerUsage:1:0:0:0:4294967295"),
    Fault("utilization is absurd", unknown("utilization"), nvidia="",
          faults="Utilization:1:0:0:0:4294967295"),
    Fault("memory is not available", unknown("memory_used_bytes"), nvidia="",
          faults="MemoryInfo:1:0:0:0:18446744073709549568"),
    Fault("device lost in the middle", lost("nvidia"), nvidia="", faults="nvmlDevice:1:15:80"),
    Fault("device lost before it is opened", gone, nvidia="", faults="nvmlDeviceGet:1:15:1"),
    Fault("a call hangs for 5 s", hangs("nvidia"), nvidia="", faults="PowerUsage:1:0:4:5", seconds=0.8),
    Fault("the first call hangs for 5 s", hangs("nvidia"), nvidia="", seconds=0.8,
          faults="Utilization:1:0:0:5"),
    Fault("the energy counter is reset", reset("nvidia"), nvidia="", faults="TotalEnergy:1:0:8:0:1000"),
    Fault("the energy counter leaps", reset("nvidia"), nvidia="", faults="TotalEnergy:1:0:8:0:1e17"),
    Fault("16 devices", several(16), nvidia="devices=16"),
    Fault("MIG", instances, nvidia="devices=2 mig=3"),
    Fault("devices of two kinds", mixed, nvidia="devices=3 mixed=1"),
    Fault("GPM's metrics are infinite", unknown("dram_utilization"), nvidia="",
          faults="GpmMetrics:1:0:0:0:inf"),
    Fault("no GPM", no_bandwidth, nvidia="gpm=0"),
    Fault("throttled", throttled("nvidia", "power cap, temperature"), nvidia="",
          faults="EventReasons:1:0:0:0:36"),
)  # fmt: skip

AMD = (
    # Codes are AMD SMI's: 2 not supported, 9 try again, 10 no permission, 12 I/O error, 34 no driver.
    Fault("AMD: no ROCm", nothing("amd", "libamd_smi.so (ROCm) is not"), amd="",
          more={"LD_LIBRARY_PATH": ""}),
    Fault("AMD: no driver", nothing("amd", "amd: "), amd="", faults="amdsmi_init:*:34"),
    Fault("AMD: no device", nothing("amd"), amd="devices=0"),
    Fault("AMD: N/A", unknown("utilization", "amd"), amd="", faults="activity:1:0:0:0:65535"),
    Fault("AMD: not supported", unknown("memory_used_bytes", "amd"), amd="", faults="memory_usage:1:2"),
    Fault("AMD: the energy counter is forbidden", by_power, amd="", faults="energy_count:1:10"),
    Fault("AMD: a library that lacks functions", nothing("amd", "amd: "), amd="torn=1"),
    Fault("AMD: busy", unknown("utilization", "amd"), amd="", faults="activity:1:9"),
    Fault("AMD: absurd", unknown("utilization", "amd"), amd="", faults="activity:1:0:0:0:4000000000"),
    Fault("AMD: lost in the middle", lost("amd"), amd="", faults="amdsmi_get:1:12:60"),
    Fault("AMD: a call hangs for 5 s", hangs("amd"), amd="", faults="memory_usage:1:0:4:5", seconds=0.8),
    Fault("AMD: the energy counter is reset", reset("amd"), amd="", faults="energy_count:1:0:8:0:7"),
    Fault("AMD: throttled", throttled("amd", "power cap"), amd="throttle=1", seconds=1.2),
    Fault("AMD: partitions", partitions, amd="devices=8 partitions=8"),
    Fault("AMD goes on while NVIDIA hangs", both_go_on, nvidia="", amd="", faults="nvmlInit:*:0:0:5"),
)  # fmt: skip


def faults() -> tuple[Fault, ...]:
    """Those that can be tried here."""
    return (*NVIDIA, *(AMD if has_amdsmi() else ()))
