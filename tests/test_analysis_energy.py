"""Energy, throttling and bandwidth by meters, beside phases and stages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from recordings import Tape, device

from gimlet_lab.analysis import Analysis, analyse
from gimlet_lab.model import MeterSeries
from gimlet_lab.model.meters import Gap


def cell(meters: tuple[MeterSeries, ...], card: str = "cuda:0", moved: float = 8e9) -> Analysis:
    """A second of products on a card, then a second of waiting."""
    tape = Tape()
    with tape.module("net"):
        for _ in range(100):
            tape.op(0.01, flops=1e6, moved=moved / 100)
    with tape.function("tool"):
        tape.wait(1.0)
    recording = tape.recording()
    ops = tuple(replace(op, device=card) for op in recording.ops)
    return analyse(replace(recording, ops=ops, meters=meters), device())


def tenths(name: str, value: Any, **more: Any) -> MeterSeries:
    """A reading every tenth of a second, from just before the cell until just after it."""
    times = tuple((index - 1) / 10 for index in range(23))
    return MeterSeries(name, times, {key: tuple(map(call, times)) for key, call in value.items()}, **more)


def watts(first: float, then: float) -> Any:
    """Energy at a power in the cell's first second, and at another in its second."""
    return lambda time_s: first * min(time_s, 1.0) + then * max(time_s - 1.0, 0.0) + 10.0


def stage_joules(found: Analysis) -> dict[str, float | None]:
    return {stage.id: stage.joules for stage in found.graph.stages}


def test_energy_goes_to_the_phase_and_the_stage_in_which_it_was_spent() -> None:
    found = cell((tenths("cuda:0", {"energy_j": watts(400, 60)}, energy_source="counter"),))
    assert [phase.bound for phase in found.phases] == ["bandwidth", "wait"]
    assert [phase.joules for phase in found.phases] == pytest.approx([400, 60], rel=0.03)
    assert stage_joules(found) == pytest.approx({"net": 400, "tool": 60}, rel=0.03)
    assert "energy is of cuda:0 (its own counter); that of cpu is not known" in found.notes


def test_energy_is_of_all_devices_that_the_run_used_and_no_others() -> None:
    found = cell(
        (
            tenths("cpu", {"energy_j": watts(50, 20)}, energy_source="counter"),
            tenths("cuda:0", {"energy_j": watts(400, 60)}, energy_source="power"),
            tenths("cuda:1", {"energy_j": watts(9000, 9000)}, energy_source="counter"),
        )
    )
    assert [phase.joules for phase in found.phases] == pytest.approx([450, 80], rel=0.03)
    assert "energy is of cpu (its own counter), cuda:0 (its power over time)" in found.notes


def test_what_a_meter_did_not_cover_is_unknown_and_so_is_the_sum() -> None:
    hole = (Gap(1.15, 1.85, bridged=False),)
    found = cell(
        (
            tenths("cpu", {"energy_j": watts(50, 20)}, energy_source="counter"),
            tenths("cuda:0", {"energy_j": watts(400, 60)}, energy_source="power", gaps=hole),
        )
    )
    first, second = found.phases
    assert first.joules == pytest.approx(450, rel=0.03)
    assert second.joules is None
    assert stage_joules(found)["tool"] is None


def test_without_meters_nothing_is_known_and_nothing_is_said() -> None:
    found = cell(())
    assert {(phase.joules, phase.throttled) for phase in found.phases} == {(None, None)}
    assert set(stage_joules(found).values()) == {None}
    assert not [note for note in found.notes if "energy" in note or "held back" in note]


def test_a_throttled_phase_says_so() -> None:
    def reasons(time_s: float) -> str:
        return "power cap" if 0.35 < time_s < 0.75 else ""

    found = cell((tenths("cuda:0", {"throttle_reasons": reasons}),))
    assert [phase.throttled for phase in found.phases] == [True, False]
    assert "cuda:0 was held back in 17% of its readings: power cap" in found.notes
    unknown = cell((tenths("cuda:0", {"throttle_reasons": lambda _: None}),))
    assert [phase.throttled for phase in unknown.phases] == [None, None]


@pytest.mark.parametrize(("factor", "said"), [(1.0, False), (1.15, False), (1.3, True), (0.5, True)])
def test_meter_and_count_that_disagree_are_said(factor: float, said: bool) -> None:
    def moved(time_s: float) -> float:
        return 8e9 * factor if time_s <= 1.0 else 0.0  # of the tenth before it

    found = cell((tenths("cuda:0", {"dram_bytes_per_s": moved}),))
    notes = [note for note in found.notes if "by its meter" in note]
    assert bool(notes) == said
    if said:
        assert "by the operators' count" in notes[0]
        assert notes[0].startswith("net: the memory of cuda:0 moved ")


def test_bytes_that_nobody_counted_are_not_compared() -> None:
    tape = Tape()
    with tape.module("net"):
        tape.op(1.0, flops=None, moved=None)
    recording = replace(tape.recording(), meters=(tenths("cpu", {"dram_bytes_per_s": lambda _: 1e9}),))
    assert not [note for note in analyse(recording, device()).notes if "by its meter" in note]
