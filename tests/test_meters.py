"""Meters without a vendor: one sampler for all, what is kept of long runs, energy, the processor's files."""

from __future__ import annotations

import math
import os
import random
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimlet_lab.hardware.meters import Record, Sampler, UnreadableError, shared
from gimlet_lab.hardware.meters.cpu import CpuMeter, CpuProbe, Rapl
from gimlet_lab.hardware.meters.meter import Rates, Seldom, believable, clean
from gimlet_lab.hardware.meters.record import MAX_GAPS
from gimlet_lab.model.meters import Gap, MeterSeries

PATIENCE_S = 10.0


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Device:
    """A device whose readings a test decides, which says when it was read."""

    def __init__(self, name: str, read: Callable[[float], Mapping[str, Any]]) -> None:
        self.devices = (name,)
        self._read = read
        self.times: list[float] = []
        self.was_read = threading.Event()

    def read(self, now_s: float) -> Mapping[str, Mapping[str, Any]]:
        self.times.append(now_s)
        try:
            return {self.devices[0]: self._read(now_s)}
        finally:
            self.was_read.set()


class Vendor:
    """A meter of such devices."""

    def __init__(self, name: str, *devices: Device) -> None:
        self.name = name
        self.opened = 0
        self._devices = devices

    def open(self) -> tuple[Sequence[Device], Sequence[str]]:
        self.opened += 1
        return self._devices, ()


def ours() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("gimlet-")}


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other threads bring about; fails where they do not."""
    ready = threading.Event()
    for _ in range(int(PATIENCE_S / 0.005)):
        if condition():
            return
        ready.wait(0.005)
    raise AssertionError("it did not happen")


# The sampler


def test_it_reads_while_somebody_reads_and_leaves_no_thread() -> None:
    device = Device("a:0", lambda _: {"power_w": 5.0})
    sampler = Sampler(lambda: [Vendor("a", device)])
    seen: list[float] = []
    assert device.times == []
    with sampler.subscribe(0.001, lambda _device, at_s, _readings: seen.append(at_s)):
        assert seen  # the first is taken before it returns
        until(lambda: len(seen) > 5)
        assert "gimlet-meters" in ours()
    until(lambda: not ours())
    count = len(device.times)
    assert seen == sorted(seen)
    assert len(seen) <= count
    # And again, without looking for devices again.
    with sampler.subscribe(10.0):
        assert len(device.times) == count + 1
    assert len(device.times) == count + 2  # a last one, when the reader leaves


def test_every_reader_has_its_own_rate_and_all_share_the_readings() -> None:
    device = Device("a:0", lambda _: {"power_w": 5.0})
    vendor = Vendor("a", device)
    sampler = Sampler(lambda: [vendor])
    fast, slow = [], []
    with sampler.subscribe(1000.0, lambda *_: slow.append(1)):
        with sampler.subscribe(0.001, lambda *_: fast.append(1)):
            until(lambda: len(fast) > 20)
        assert len(slow) == 1  # its first; it wants the next in a quarter of an hour
        assert vendor.opened == 1
    assert len(slow) in (2, 3)  # its last one; one that was being read just then may come before it
    assert len(device.times) > len(fast)


def test_readers_that_come_and_go_at_once_have_their_first_and_last_reading(monkeypatch) -> None:
    monkeypatch.setattr("gimlet_lab.hardware.meters.sampler.READ_S", PATIENCE_S)  # on a busy machine
    sampler = Sampler(lambda: [Vendor("a", *(Device(f"a:{i}", lambda _: {"load": 1.0}) for i in range(3)))])
    missed: list[str] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            record = Record()
            with sampler.subscribe(chance.choice([0.001, 0.01, 10.0]), record.add):
                began = sampler.clock()
                time.sleep(chance.random() * 0.003)  # the cell
                ended = sampler.clock()
            series = record.series()
            late = [one.device for one in series if one.time_s[0] > began or one.time_s[-1] < ended]
            missed.extend(late if len(series) == 3 else ["a device"])

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    until(lambda: not ours())
    assert missed == []
    assert sampler._subscriptions == []


def test_a_hanging_call_stops_nobody_else() -> None:
    hang, returned = threading.Event(), threading.Event()

    def stuck(_now_s: float) -> Mapping[str, Any]:
        hang.wait(PATIENCE_S)
        returned.set()
        return {"power_w": 1.0}

    well, sick = Device("a:0", lambda _: {"power_w": 5.0}), Device("b:0", stuck)
    record = Record()
    sampler = Sampler(lambda: [Vendor("a", well), Vendor("b", sick)], deadline_s=0.01)
    with sampler.subscribe(0.001, record.add):
        until(lambda: len(well.times) > 20 and bool(sampler.notes))
        assert len(sick.times) == 1
        assert "b:0" not in sampler.latest()
    assert [series.device for series in record.series()] == ["a:0"]
    assert sampler.notes == ["b:0: its meter did not answer for 0.01 s or longer"]
    # It comes back in the next run.
    hang.set()
    returned.wait(PATIENCE_S)
    with sampler.subscribe(0.001):
        until(lambda: "b:0" in sampler.latest())
    until(lambda: not ours())


def test_a_library_that_hangs_when_it_is_opened() -> None:
    hang = threading.Event()

    class Slow(Vendor):
        def open(self) -> tuple[Sequence[Device], Sequence[str]]:
            hang.wait(PATIENCE_S)
            return super().open()

    well, late = Device("a:0", lambda _: {"load": 1.0}), Device("b:0", lambda _: {"load": 1.0})
    sampler = Sampler(lambda: [Slow("b", late), Vendor("a", well)], open_s=0.01)
    with sampler.subscribe(0.001):
        until(lambda: len(well.times) > 3)
        assert late.times == []
        hang.set()
        until(lambda: len(late.times) > 3)
    until(lambda: not ours())


def test_a_lost_device_is_said_once_and_looked_for_again() -> None:
    clock = Clock()

    def read(_now_s: float) -> Mapping[str, Any]:
        raise UnreadableError("it has left")

    vendor = Vendor("a", Device("a:0", read))
    other = Device("b:0", lambda _: {"load": 0.0})
    sampler = Sampler(lambda: [vendor, Vendor("b", other)], clock)
    with sampler.subscribe(0.001):
        until(lambda: len(other.times) > 5)
    assert sampler.notes == ["a:0: it has left"]
    assert vendor.opened == 1
    with sampler.subscribe(0.001):
        assert vendor.opened == 1  # not at once
    clock.now_s += 60
    with sampler.subscribe(0.001):
        assert vendor.opened == 2


def test_a_clock_set_back_and_a_late_answer_are_left_out() -> None:
    sampler = Sampler(list)
    for at_s in (1.0, 2.0, 1.5, 2.0, 3.0):
        sampler.publish("a:0", at_s, {"load": at_s})
    assert [row.at_s for row in sampler.recent("a:0")] == [1.0, 2.0, 3.0]


def test_readers_errors_and_meters_errors_do_not_end_the_others() -> None:
    class Broken(Vendor):
        def open(self) -> tuple[Sequence[Device], Sequence[str]]:
            raise RuntimeError("torn\nlibrary")

    well = Device("a:0", lambda _: {"load": 1.0})
    sampler = Sampler(lambda: [Broken("b"), Vendor("a", well)])
    with sampler.subscribe(0.001):
        until(lambda: len(well.times) > 3)
    assert sampler.notes == ["b: torn library"]


def test_an_interrupted_reader_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(lambda: [Vendor("a", Device("a:0", lambda _: {"load": 1.0}))])
    subscription = sampler.subscribe(0.001)

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sampler, "_read_now", interrupted)
    with pytest.raises(KeyboardInterrupt):
        subscription.close()
    with pytest.raises(KeyboardInterrupt):
        sampler.subscribe()
    until(lambda: not ours())
    assert sampler._subscriptions == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_sampler_of_its_own() -> None:
    mine = shared()
    with mine.subscribe():
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                other = shared()
                os.write(write, b"own" if other is not mine and "cpu" in other.look(0.01) else b"same")
            finally:
                os._exit(0)
        os.close(write)
        assert os.read(read, 10) == b"own"
        os.waitpid(child, 0)


# What is believed


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("power_w", 0, None), ("power_w", -3, None), ("power_w", 350, 350.0), ("power_w", 2**32 - 1, None),
        ("utilization", 1.03, 1.0), ("utilization", 42, None), ("utilization", 0, 0.0),
        ("temperature_c", -300, None), ("temperature_c", 65535, None), ("temperature_c", 0, 0.0),
        ("memory_used_bytes", -1, None), ("memory_used_bytes", 2**64 - 1, None), ("sm_clock_hz", "N/A", None),
        ("load", math.nan, None), ("load", math.inf, None), ("load", True, None), ("load", None, None),
        ("throttle_reasons", "", ""), ("throttle_reasons", 4, None), ("processes", -1, None),
    ],
)  # fmt: skip
def test_what_cannot_be_is_not_known(name: str, value: object, expected: object) -> None:
    assert believable(name, value) == expected


@given(
    st.dictionaries(
        st.sampled_from(["power_w", "energy_j", "utilization", "x"]),
        st.floats() | st.sampled_from(["N/A", "", "7"]),
    )
)
def test_whatever_a_library_says(readings: dict[str, object]) -> None:
    for name, value in clean(readings).items():
        assert value is None or (isinstance(value, float) and math.isfinite(value) and value >= 0), name


def test_more_memory_used_than_there_is_is_not_known() -> None:
    assert clean({"memory_used_bytes": 3.0, "memory_total_bytes": 2.0})["memory_used_bytes"] is None
    assert "memory_total_bytes" not in clean({"memory_used_bytes": 3.0, "memory_total_bytes": 0})


def test_rates_and_seldom_calls() -> None:
    rates = Rates()
    counts = ((10.0, 1.0), (30.0, 3.0), (30.0, 3.0), (5.0, 4.0), (7.0, 5.0))
    assert [rates.of("x", *count) for count in counts] == [None, 10.0, None, None, 2.0]
    calls: list[float] = []
    seldom = Seldom(lambda now_s: calls.append(now_s) or len(calls), 1.0)
    assert [seldom(now_s) for now_s in (0.0, 0.5, 1.0, 1.9)] == [1, 1, 2, 2]


# Energy


def recorded(
    times: Sequence[float], readings: Callable[[float], Mapping[str, float]], **options: Any
) -> MeterSeries:
    record = Record(**options)
    for time_s in times:
        record.add("a:0", time_s, readings(time_s))
    return record.series()[0]


def wave_w(time_s: float) -> float:
    """A card between 60 and 700 W, once every 2 s."""
    return 380.0 + 320.0 * math.sin(math.pi * time_s)


def wave_j(start_s: float, end_s: float) -> float:
    return 380.0 * (end_s - start_s) - 320.0 / math.pi * (
        math.cos(math.pi * end_s) - math.cos(math.pi * start_s)
    )


TENTHS = [index / 10 for index in range(601)]
STRETCHES = [(0.0, 60.0), (3.33, 57.1), (10.0, 12.5), (7.77, 8.9), (30.05, 30.5)]


@pytest.mark.parametrize("points", [5000, 100])
@pytest.mark.parametrize("source", ["counter", "power"])
def test_energy_of_a_known_power_is_right_within_a_hundredth(source: str, points: int) -> None:
    def readings(time_s: float) -> Mapping[str, float]:
        counter = {"energy_j": 1e6 + wave_j(0.0, time_s)} if source == "counter" else {}
        return {"power_w": wave_w(time_s), **counter}

    series = recorded(TENTHS, readings, points=points)
    assert series.energy_source == source
    assert len(series.time_s) <= points + 1
    for start_s, end_s in STRETCHES:
        if points == 100 and end_s - start_s < 10:
            continue  # averaged over longer than the stretch
        assert series.joules(start_s, end_s) == pytest.approx(wave_j(start_s, end_s), rel=0.01)


def test_energy_of_a_step_lies_between_the_readings() -> None:
    series = recorded(TENTHS, lambda time_s: {"power_w": 100.0 if time_s < 30.0 else 500.0})
    assert series.joules(0.0, 60.0) == pytest.approx(100 * 30 + 500 * 30, rel=0.01)
    assert series.joules(1.0, 29.0) == pytest.approx(2800.0)


def test_energy_is_unknown_outside_of_the_readings() -> None:
    series = recorded(TENTHS, lambda _: {"power_w": 100.0})
    assert series.joules(-1.0, 5.0) is None
    assert series.joules(59.0, 60.5) is None
    assert recorded(TENTHS, lambda _: {"utilization": 1.0}).joules(1.0, 2.0) is None
    assert recorded(TENTHS, lambda _: {"utilization": 1.0}).energy_source is None


def test_a_suspended_laptop_spent_nothing_that_is_known() -> None:
    times = [*TENTHS[:300], *(time_s + 3600.0 for time_s in TENTHS[300:])]
    series = recorded(times, lambda _: {"power_w": 100.0})
    assert series.joules(10.0, 20.0) == pytest.approx(1000.0)
    assert series.joules(3640.0, 3650.0) == pytest.approx(1000.0)
    assert series.joules(10.0, 3650.0) is None
    assert series.joules(100.0, 200.0) is None


def test_a_counter_that_went_on_while_nobody_read_says_how_much_not_when() -> None:
    times = [*TENTHS[:300], *TENTHS[400:]]
    series = recorded(times, lambda time_s: {"energy_j": 50.0 * time_s})
    assert series.joules(10.0, 50.0) == pytest.approx(2000.0)
    assert series.joules(32.0, 33.0) is None
    assert series.gaps == (Gap(29.9, 40.0, bridged=True),)


@pytest.mark.parametrize("after", [0.0, 1e12])
def test_a_counter_that_is_reset_or_leaps_is_not_energy(after: float) -> None:
    def readings(time_s: float) -> Mapping[str, float]:
        return {"energy_j": (1e6 if time_s < 30 else after) + 50.0 * time_s}

    series = recorded(TENTHS, readings)
    assert series.joules(1.0, 29.0) == pytest.approx(1400.0)
    assert series.joules(31.0, 59.0) == pytest.approx(1400.0)
    assert series.joules(1.0, 59.0) is None


@given(
    st.lists(
        st.tuples(st.floats(0.01, 5.0), st.none() | st.floats(0, 1e6), st.none() | st.floats(1, 900)),
        min_size=2, max_size=60,
    )
)  # fmt: skip
def test_energy_never_falls_and_is_never_more_than_any_device_draws(
    rows: list[tuple[float, float | None, float | None]],
) -> None:
    record, now_s = Record(points=16), 0.0
    for step_s, energy_j, power_w in rows:
        now_s += step_s
        record.add("a:0", now_s, {"energy_j": energy_j, "power_w": power_w})
    (series,) = record.series()
    known = [value for value in series.readings.get("energy_j", ()) if value is not None]
    assert all(after >= before for before, after in pairwise(known))
    total = series.joules(series.time_s[0], series.time_s[-1])
    assert total is None or 0 <= total <= 2e4 * (now_s + 0.1 * len(rows))


def test_gaps_without_end_are_a_few() -> None:
    times = [5.0 * index for index in range(2000)]
    series = recorded(times, lambda _: {"power_w": 100.0})
    assert len(series.gaps) <= MAX_GAPS
    assert series.joules(9000.0, 9001.0) is None


# What is kept


def test_long_runs_are_averaged_and_keep_what_must_not_be_lost() -> None:
    def readings(time_s: float) -> dict[str, Any]:
        return {
            "utilization": 0.25 if int(time_s * 10) % 2 else 0.75,
            "throttle_reasons": "power cap" if time_s == 31.7 else "",
            "energy_j": 50.0 * time_s,
        }

    series = recorded(TENTHS, readings, points=20)
    assert len(series.time_s) <= 21
    assert (series.time_s[0], series.time_s[-1]) == (0.0, 60.0)
    assert series.mean("utilization", 10.0, 50.0) == pytest.approx(0.5, abs=0.05)
    assert series.throttled(0.0, 60.0) == "power cap"
    assert series.throttled(40.0, 60.0) == ""
    assert series.throttled(70.0, 80.0) is None
    assert series.joules(0.0, 60.0) == pytest.approx(3000.0)


def test_a_day_of_readings_takes_no_more_memory_than_an_hour() -> None:
    clock, sampler, record = Clock(), Sampler(list), Record(gap_s=10.0)
    counts: dict[int, int] = {}
    sampler._subscriptions.append(subscription_to(sampler, record))
    tracemalloc.start()
    try:
        for second in range(0, 24 * 3600, 5):
            clock.now_s = float(second)
            sampler.publish("nvidia:0", clock.now_s, {"power_w": 100.0 + second % 7, "utilization": 0.5})
            if second in (6 * 3600, 24 * 3600 - 5):
                counts[second] = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    early, late = counts.values()
    assert late < 1.2 * early + 100_000
    for series in record.series():
        assert len(series.time_s) <= 2001
        assert series.joules(0.0, 24 * 3600 - 5) == pytest.approx(103.0 * (24 * 3600 - 5), rel=0.01)


def subscription_to(sampler: Sampler, record: Record) -> Any:
    from gimlet_lab.hardware.meters import Subscription

    return Subscription(sampler, 1.0, record.add)


def test_series_keep_as_json() -> None:
    series = recorded(TENTHS[:9], lambda time_s: {"power_w": wave_w(time_s)})
    assert MeterSeries.from_json(series.to_json()) == series


# The processor


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A system with two packages, memory and a core domain of RAPL, and two L3 domains of resctrl."""
    zones = {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:0:0": "core",
             "intel-rapl:0:1": "dram", "intel-rapl-mmio:0": "package-0"}  # fmt: skip
    for zone, name in zones.items():
        folder = tmp_path / "sys/class/powercap" / zone
        folder.mkdir(parents=True)
        (folder / "name").write_text(name)
        (folder / "energy_uj").write_text("1000000")
        (folder / "max_energy_range_uj").write_text("10000000")
    for domain in ("00", "01"):
        folder = tmp_path / f"sys/fs/resctrl/mon_data/mon_L3_{domain}"
        folder.mkdir(parents=True)
        (folder / "mbm_total_bytes").write_text("1000")
    return tmp_path


def rapl(files: Path, zone: str, microjoules: int) -> None:
    (files / "sys/class/powercap" / zone / "energy_uj").write_text(str(microjoules))


def test_the_processors_energy_is_its_packages_and_its_memory(files: Path) -> None:
    energy = Rapl(files / "sys/class/powercap")
    assert energy.joules() == 0.0
    rapl(files, "intel-rapl:0", 3_000_000)
    rapl(files, "intel-rapl:0:0", 9_000_000)  # within the package
    rapl(files, "intel-rapl:0:1", 1_500_000)
    assert energy.joules() == pytest.approx(2.5)
    rapl(files, "intel-rapl:0", 1_000_000)  # it wraps at 10 J
    assert energy.joules() == pytest.approx(2.5 + 8.0)
    (files / "sys/class/powercap/intel-rapl:1/energy_uj").write_text("torn")
    assert energy.joules() is None
    assert energy.notes == []


def test_the_processor_reads_what_the_system_lets_it(files: Path) -> None:
    (probe,), notes = CpuMeter(files).open()
    assert notes == []
    probe.read(1.0)
    rapl(files, "intel-rapl:1", 51_000_000)
    (files / "sys/fs/resctrl/mon_data/mon_L3_01/mbm_total_bytes").write_text("5000")
    found = clean(probe.read(3.0)["cpu"])
    assert (found["energy_j"], found["power_w"]) == (50.0, 25.0)
    assert found["dram_bytes_per_s"] == 2000.0
    assert found["process_memory_bytes"] > 1e6
    assert 0 < found["memory_used_bytes"] < found["memory_total_bytes"]
    (files / "sys/fs/resctrl/mon_data/mon_L3_00/mbm_total_bytes").write_text("Unavailable")
    assert probe.read(4.0)["cpu"]["dram_bytes_per_s"] is None


def test_energy_for_the_administrator_only_is_said(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def refuse(path: Path, *args: Any, **options: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError
        return read(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    (probe,), notes = CpuMeter(files).open()
    assert len(notes) == 1
    assert "administrator" in notes[0]
    assert probe.read(1.0)["cpu"]["energy_j"] is None


def test_a_system_without_these_files(tmp_path: Path) -> None:
    (probe,), notes = CpuMeter(tmp_path).open()
    assert notes == []
    found = probe.read(1.0)["cpu"]
    assert found["energy_j"] is None
    assert found["power_w"] is None
    assert found["dram_bytes_per_s"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="of the kernel's accounts")
def test_a_container_that_hides_disk_and_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError

    for name in ("disk_io_counters", "net_io_counters", "cpu_freq", "cpu_times", "getloadavg"):
        monkeypatch.setattr(psutil, name, refuse)
    probe = CpuProbe(Rapl(tmp_path), tmp_path)
    probe.read(1.0)
    found = clean(probe.read(2.0)["cpu"])
    for name in ("utilization", "disk_read_bytes_per_s", "network_rx_bytes_per_s", "clock_hz", "load"):
        assert found[name] is None
    assert found["memory_used_bytes"] > 0


def test_the_real_processor_is_busy_while_it_works() -> None:
    probe = CpuProbe(Rapl(Path("/nowhere")), Path("/nowhere"))
    started = time.perf_counter()
    probe.read(started)
    spent = time.process_time()
    while time.process_time() - spent < 0.2:
        pass
    found = probe.read(time.perf_counter())
    assert found["cpu"]["process_cores"] > 0.1
    assert found["cpu"]["utilization"] > 0.1
    assert {device for device in found if device != "cpu"} == set(probe.devices[1:])


def test_a_device_that_answers_slowly_is_asked_more_rarely() -> None:
    clock = Clock()

    def slow(_now_s: float) -> dict[str, float]:
        clock.now_s += 1.0  # as long as the driver takes
        return {"load": 1.0}

    def passes() -> bool:
        clock.now_s += 0.5
        return len(device.times) >= 4

    device = Device("a:0", slow)
    sampler = Sampler(lambda: [Vendor("a", device)], clock)
    with sampler.subscribe(0.001):
        until(passes)
        times = list(device.times)  # the last reader's last reading comes when it goes
    assert min(later - earlier for earlier, later in pairwise(times)) >= 1.0 + 9.0
