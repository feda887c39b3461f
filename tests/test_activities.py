"""Device times of looked-at calls: torch's profiler here has none to give, so its events are made up.

On a real GPU the same is tried by ``test_cuda.py``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from capturing import Notebook, spans

from gimlet_lab.capture import activities, recorder
from gimlet_lab.capture.devices import Devices, Stamps
from gimlet_lab.capture.timeline import OpenSpan
from gimlet_lab.model import Span

torch: Any = pytest.importorskip("torch")


class Event:
    """As torch's profiler gives it: nanoseconds, and what launched it."""

    def __init__(
        self, number: int, name: str, start: int, end: int, on: str = "CPU", linked: int = 0
    ) -> None:
        self.correlation_id = lambda: number
        self.linked_correlation_id = lambda: linked
        self.name = lambda: name
        self.device_type = lambda: f"DeviceType.{on}"
        self.start_ns = lambda: start * 1000
        self.duration_ns = lambda: (end - start) * 1000
        self.is_user_annotation = lambda: name.startswith("gimlet_lab")


def test_kernels_belong_to_the_operator_under_whose_mark_they_were_launched() -> None:
    events = [
        Event(1, "gimlet_lab operator 0", 10, 20),
        Event(2, "aten::linear", 11, 19),
        Event(3, "aten::addmm", 12, 18),
        Event(50, "cudaLaunchKernel", 13, 14, linked=3),  # the driver's own numbers mean something else
        Event(4, "gimlet_lab operator 1", 30, 40),
        Event(5, "aten::copy_", 45, 48),
        Event(50, "gemm", 100, 150, on="CUDA", linked=3),
        Event(51, "epilogue", 140, 160, on="CUDA", linked=3),
        Event(52, "gimlet_lab operator 1", 200, 230, on="CUDA", linked=4),  # the mark's own shadow
        Event(53, "copy", 200, 230, on="CUDA", linked=4),
        Event(54, "launched between marks", 240, 250, on="CUDA", linked=5),
        Event(55, "of nobody", 300, 310, on="CUDA", linked=99),
    ]
    found = activities.read(events, marked_s=7.0)
    assert set(found) == {0, 1}
    assert found[0] == [pytest.approx((7.00009, 7.00014)), pytest.approx((7.00013, 7.00015))]
    assert found[1] == [pytest.approx((7.00019, 7.00022))]
    assert activities.read([], 0.0) == {}


def test_torchs_profiler_is_a_source_and_leaves_another_one_alone() -> None:
    source: activities.ActivitySource = activities.TorchActivities(torch, time.perf_counter)
    assert source.start()
    with source.mark(0):
        made = torch.ones(4) * 2
    assert source.stop()() == {}, "a CPU's operators are timed by the host's clock"
    assert float(made[0]) == 2.0
    with torch.profiler.profile() as theirs:
        assert not source.start()
        torch.ones(4).sum()
    assert "aten::sum" in {event.key for event in theirs.key_averages()}


class Card:
    """An accelerator with a clock of its own: it works ten times longer than it takes to launch that."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.free_s = 0.0
        self.launched = 0
        self.capturing = False
        self.broken = False

    def named(self, device: str) -> str:
        return device

    def captured(self) -> bool:
        return self.capturing

    def launch(self, seconds: float) -> None:
        self.free_s = max(self.free_s, self.clock()) + seconds
        self.launched += 1

    def stamp(self, _device: str) -> float:
        if self.broken:
            raise RuntimeError("CUDA error: device-side assert triggered\nand much more")
        return max(self.free_s, self.clock())

    def elapsed_s(self, first: float, second: float) -> float:
        return (second - first) * 2.0  # it counts twice as fast

    def wait(self, _device: str) -> None:
        if self.broken:
            raise RuntimeError("CUDA error: device-side assert triggered\nand much more")
        self.clock.now = max(self.clock.now, self.free_s)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def called(card: Card, devices: Devices, clock: Clock, span: OpenSpan, seconds: float) -> None:
    span.start = clock()
    begin = devices.stamp("cuda:0")
    card.launch(seconds)
    clock.now += 0.1
    devices.called(span, "cuda:0", begin)
    span.end = clock()


def test_calls_lie_where_the_device_worked_for_them_and_what_holds_them_as_well() -> None:
    clock = Clock()
    card, cell = Card(clock), OpenSpan(0, "cell", "cell", 0.0, None, 0)
    devices = Devices(card, clock)
    outer = OpenSpan(1, "answer", "function", 0.0, cell, 0)
    first, second = (OpenSpan(n, "Net", "module", 0.0, outer, 0) for n in (2, 3))
    after = OpenSpan(4, "tool", "function", 0.0, cell, 0)
    called(card, devices, clock, first, 1.0)
    called(card, devices, clock, second, 2.0)
    outer.end = clock()
    after.start, after.end = clock(), clock() + 0.5
    clock.now += 0.5
    devices.wait()
    assert clock() == 3.0, "waited for it, and no longer"
    cell.end = clock()
    placed = devices.place([span.frozen() for span in (cell, outer, first, second, after)])
    assert [(round(s.start_s, 6), round(s.end_s, 6)) for s in placed] == [
        (0.0, 3.0), (0.0, 3.0), (0.0, 1.0), (1.0, 3.0), (0.2, 0.7),
    ]  # fmt: skip
    assert devices.last == "cuda:0"
    assert devices.interval(Stamps("cuda:0", 0.5, 0.75)) == pytest.approx((0.5, 0.75))


def test_nothing_is_stamped_while_a_graph_is_captured_and_a_broken_device_is_said_once() -> None:
    clock = Clock()
    card = Card(clock)
    devices = Devices(card, clock)
    card.capturing = True
    assert devices.stamp("cuda:0") is None
    card.capturing = False
    assert devices.stamp("cuda:0") is not None
    card.broken = True
    assert devices.stamp("cuda:0") is None
    devices.wait()
    assert devices.failed is not None
    assert "device-side assert" in devices.failed
    assert "\n" not in devices.failed
    assert devices.interval(Stamps("cuda:0", 0.0, 1.0)) is None
    span = Span(0, "cell", "cell", 0.0, 1.0)
    assert devices.place([span]) == (span,)


class Kernels:
    """A source that heard one kernel of two milliseconds for each product, long after its launch."""

    def __init__(self, now: Any) -> None:
        self.now = now
        self.starts = self.marks = 0

    def start(self) -> bool:
        self.starts += 1
        return True

    @contextlib.contextmanager
    def mark(self, number: int) -> Iterator[None]:
        self.marks += 1
        yield

    def stop(self) -> activities.Heard:
        at = self.now()
        return lambda: {1: [(at, at + 2e-3)]}


def test_a_look_at_an_accelerator_takes_the_times_of_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch calls the CPU is taken for an accelerator, whose streams and profiler are made up."""
    made: list[Kernels] = []

    def source(_torch: Any, now: Any) -> Kernels:
        made.append(Kernels(now))
        return made[-1]

    def streams(_torch: Any) -> Card:
        return Card(time.perf_counter)

    for where in ("devices", "modules", "operators"):
        monkeypatch.setattr(f"gimlet_lab.capture.{where}.is_away", lambda device: device == "cpu")
    monkeypatch.setattr(recorder.TorchStreams, "of", streams)
    monkeypatch.setattr(recorder.TorchActivities, "of", source)
    monkeypatch.setattr(Card, "stamp", lambda self, device: self.clock())
    monkeypatch.setattr(Card, "wait", lambda self, device: None)
    monkeypatch.setattr(Card, "elapsed_s", lambda self, first, second: second - first)
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    recording = Notebook(torch=torch, net=net).profile(
        """
        with torch.no_grad():
            for _ in range(3):
                net(torch.ones(2, 8))
        """
    )
    assert len(made) == 1
    assert made[0].starts == 1, recording.notes
    looked = spans(recording, "module")[0]
    rows = [op for op in recording.ops if op.span == looked.id]
    products = [op for op in rows if op.op == "aten::addmm"]
    assert sum(op.count for op in products) == 2
    assert made[0].marks == 3, "and a transposition, until it is known for a view"
    assert all(op.device_timed for op in rows), "also what runs nothing there"
    assert sum(op.duration_s for op in products) == pytest.approx(2e-3)
    assert [s.name for s in spans(recording, "profiling")] == [
        "start of the device's profiler", "end of the device's profiler",
    ]  # fmt: skip
    loose = [op for op in recording.ops if op.span == 0 and op.op == "aten::ones"]
    assert loose
    assert all(op.device_timed for op in loose), "by events: its device is named, though no tensor goes in"
