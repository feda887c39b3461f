"""Meters beside everything else that is recorded of a cell, on its clock."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from gimlet_lab.capture import Recorder
from gimlet_lab.hardware.meters import Sampler, UnreadableError


class Meter:
    """Two devices; the second one leaves when the cell begins."""

    name = "a"

    def __init__(self) -> None:
        self.gone = threading.Event()

    def open(self) -> tuple[Sequence[Any], Sequence[str]]:
        meter = self

        class Probe:
            cards = ()

            def __init__(self, device: str) -> None:
                self.devices = (device,)

            def read(self, _now_s: float) -> Mapping[str, Mapping[str, Any]]:
                if self.devices == ("a:1",) and meter.gone.is_set():
                    raise UnreadableError("it has left")
                return {self.devices[0]: {"power_w": 100.0}}

        return [Probe("a:0"), Probe("a:1")], ()


def recorder(sampler: Sampler) -> Recorder:
    return Recorder({}, lambda _name: False, meters=sampler)


def test_a_recording_has_the_meters_from_before_its_start_until_after_its_end() -> None:
    meter = Meter()
    sampler = Sampler(lambda: [meter])
    recording_of = recorder(sampler)
    recording_of.start()
    meter.gone.set()
    recording = recording_of.stop()
    cell_s = recording.spans[0].duration_s
    well, left = sorted(recording.meters, key=lambda series: series.device)
    assert well.time_s[0] <= 0.0
    assert well.time_s[-1] >= cell_s
    assert well.joules(0.0, cell_s) == pytest.approx(100.0 * cell_s, rel=0.01)
    assert left.joules(0.0, cell_s) is None
    assert "a:1: it has left" in recording.notes
    assert sampler._subscriptions == []


def test_without_meters_there_are_none() -> None:
    plain = Recorder({}, lambda _name: False)
    plain.start()
    assert plain.stop().meters == ()


def test_a_recorder_that_cannot_start_reads_no_meters(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(lambda: [Meter()])
    broken = recorder(sampler)

    def refuse() -> None:
        raise RuntimeError("no events")

    monkeypatch.setattr(broken._events, "install", refuse)
    with pytest.raises(RuntimeError, match="no events"):
        broken.start()
    assert sampler._subscriptions == []
    assert torch._C._len_torch_dispatch_stack() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_lets_go_of_its_parents_meters() -> None:
    sampler = Sampler(lambda: [Meter()])
    running = recorder(sampler)
    running.start()
    child = os.fork()
    if child == 0:
        os._exit(0 if Recorder.current() is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert running.stop().meters
