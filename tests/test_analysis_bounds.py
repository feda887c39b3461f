"""What holds an operator or a stretch of Python back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import BYTES_PER_S, FLOPS, LAUNCH_S, Tape, device

from gimlet_lab.analysis import Analysis, analyse
from gimlet_lab.analysis.bounds import BANDWIDTH, COMPUTE, OVERHEAD, TRANSFER, Roofs
from gimlet_lab.model import Device, ModuleInfo, Op, Work

ROOFS = Roofs.of(device())


def op(seconds: float, flops: float | None, moved: float | None, count: int = 1, **more: object) -> Op:
    written = None if moved is None else 0.0
    base = Op("aten::op", 0, "", None, 0.0, seconds, flops, moved, written, "float32", "cpu", count)
    return replace(base, **more)  # type: ignore[arg-type]


def bounds(analysis: Analysis) -> list[str]:
    return [phase.bound for phase in analysis.phases]


def bounds_of(tape: Tape, **more: object) -> list[str]:
    return bounds(analyse(tape.recording(**more), device()))  # type: ignore[arg-type]


# -- operators ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("efficiency", [1.0, 0.5, 0.1, 0.02])
def test_a_slow_kernel_is_held_back_by_its_nearer_roof_all_the_same(efficiency):
    assert ROOFS.bound(op(1.0 / efficiency, FLOPS, 0.1 * BYTES_PER_S)) == COMPUTE
    assert ROOFS.bound(op(1.0 / efficiency, 0.1 * FLOPS, BYTES_PER_S)) == BANDWIDTH


def test_many_tiny_operators_are_overhead_however_long_they_take_together():
    assert ROOFS.bound(op(0.02, 4e4, 4.8e5, count=10_000)) == OVERHEAD
    assert ROOFS.bound(op(2.0, 4e4, 4.8e5, count=10_000)) == OVERHEAD


def test_operands_in_cache_are_not_held_to_the_memorys_roof():
    """A thousand products of small matrices: 48 kB each from cache, faster than memory would give them."""
    assert ROOFS.bound(op(1000 * 4e-6, 1000 * 2 * 64.0**3 * 0.5, 1000 * 49152.0, count=1000)) != BANDWIDTH


@given(st.floats(1e-6, 10), st.floats(0, 1e12), st.floats(0, 1e11), st.integers(1, 1000))
def test_no_estimate_explains_more_than_the_time_there_was(seconds, flops, moved, count):
    assert 0 <= ROOFS.explained_s(op(seconds, flops, moved, count)) <= seconds


def test_what_nobody_knows_is_named_by_its_kind():
    assert ROOFS.bound(op(1e-6, None, None)) == OVERHEAD
    assert ROOFS.bound(op(1.0, None, None)) == COMPUTE
    assert ROOFS.bound(op(1.0, None, None, work=Work.of("elementwise", elements=5))) == BANDWIDTH
    assert ROOFS.bound(op(1.0, None, 1e9, work=Work.of("send", bytes=10**9))) == TRANSFER


def test_a_device_without_calibration_takes_its_datasheet_and_one_without_that_is_said_so():
    whole = device()
    sheet = device(
        achieved_flops={},
        peak_flops=whole.achieved_flops,
        achieved_bandwidth_bytes_per_s=None,
        copy_bandwidth_bytes_per_s=None,
        bandwidth_bytes_per_s=whole.copy_bandwidth_bytes_per_s,
    )
    assert Roofs.of(sheet) == ROOFS
    tape = Tape()
    tape.op(0.1, flops=1e9, work=Work.of("gemm", m=1, n=1, k=1))
    found = analyse(tape.recording(), Device("x", "x", "x", "cpu"))
    assert bounds(found) == ["compute"]
    assert any("not calibrated" in note for note in found.notes)


# -- Python and waits --------------------------------------------------------------------------------------


def test_five_known_kernels_in_a_row():
    tape = Tape()
    tape.op(0.3, flops=0.25 * FLOPS, moved=1e8)
    tape.op(0.2, moved=2e9, name="aten::copy_")
    for _ in range(10):
        tape.op(1000 * 2 * LAUNCH_S, flops=4e3, moved=5e4, count=1000, name="aten::add")
        tape.run(0.01)
    tape.wait(0.3)
    tape.run(0.001)
    tape.wait(0.25)
    assert bounds_of(tape) == ["compute", "bandwidth", "overhead", "wait"]


def test_a_busy_machine_is_no_wait():
    tape = Tape()
    for _ in range(100):
        tape.run(0.01, runnable=0.009)
    assert bounds_of(tape) == ["overhead"]


def test_sleep_while_ones_own_pool_computes_is_no_wait():
    tape = Tape()
    tape.run(0.5, blocked=0.45, others=0.5)
    tape.run(0.5, blocked=0.45, others=0.01)
    assert bounds_of(tape) == ["compute", "wait"]


def test_a_process_that_stands_still_is_idle():
    tape = Tape()
    tape.run(0.1)
    tape.stop(0.2)
    assert bounds_of(tape) == ["overhead", "idle"]


def test_sleep_in_a_sample_belongs_to_what_is_no_operator():
    """One sample of 40 ms: an operator of 30 ms, then 10 ms of sleep."""
    tape = Tape()
    tape.op(0.03, flops=0.03 * FLOPS)
    tape.wait(0.01)
    recording = tape.recording()
    first = recording.samples[0]
    merged = replace(first, duration_s=0.04, running_s=0.03, blocked_s=0.01)
    found = analyse(replace(recording, samples=(merged,)), device(), min_phase_s=0.002)
    assert bounds(found) == ["compute", "wait"]
    assert found.phases[1].duration_s == pytest.approx(0.01)


def test_an_operator_that_reads_from_disk_waits():
    tape = Tape()
    recording = tape_with_disk(tape, blocked=0.95)
    assert bounds(analyse(recording, device())) == ["wait"]
    assert bounds(analyse(tape_with_disk(Tape(), blocked=0.3), device())) == ["bandwidth"]


def tape_with_disk(tape: Tape, blocked: float):
    tape.op(1.0, moved=1e8, name="aten::copy_")
    recording = tape.recording()
    sample = replace(recording.samples[0], running_s=1.0 - blocked, blocked_s=blocked)
    return replace(recording, samples=(sample,))


def test_without_the_schedulers_account_a_wait_cannot_be_told_and_the_run_says_so():
    tape = Tape()
    tape.wait(0.5)
    found = analyse(tape.recording(sampled=False), device())
    assert bounds(found) == ["overhead"]
    assert any("wait" in note for note in found.notes)


def test_spans_that_say_what_they_are_are_believed():
    tape = Tape()
    with tape.function("ask"):
        with tape.span("recv", "wait"):
            tape.run(0.3)
        with tape.span("to device", "transfer"):
            tape.run(0.2)
    assert bounds_of(tape) == ["wait", "transfer"]


# -- module calls --------------------------------------------------------------------------------------------


def test_a_look_that_trebles_a_call_does_not_make_it_overhead():
    """Looking fills a decode step with Python; the steps around it tell how long it really is."""
    tape = Tape()
    for past in range(40):
        looked = past in (0, 20)
        with tape.module("llm", "decode", q_len=1, past_len=past, looked=looked):
            if looked:
                for _ in range(10):
                    tape.op(0.001, moved=0.001 * BYTES_PER_S)
                    tape.run(0.003)
            else:
                tape.run(0.011)
    found = analyse(tape.recording(), device())
    assert bounds(found) == ["bandwidth"]
    assert found.graph["decode"].bound == "bandwidth"
    assert found.phases[0].bytes == pytest.approx(40 * 0.01 * BYTES_PER_S, rel=0.05)


def test_a_compiled_model_is_judged_by_its_weights():
    tape = Tape()
    with tape.module("llm", "prefill", q_len=512, batch=1, past_len=0):
        tape.run(0.5)
    for past in range(10):
        with tape.module("llm", "decode", q_len=1, batch=1, past_len=512 + past):
            tape.run(0.05)
    info = ModuleInfo("llm", "Llama", {"": 500_000_000}, "float32", "cpu", compiled=True)
    found = analyse(tape.recording(modules=(info,)), device())
    assert [(phase.bound, phase.role) for phase in found.phases] == [
        ("compute", "prefill"),
        ("bandwidth", "decode"),
    ]
    assert found.graph["decode"].flops is None
    assert found.phases[0].flops is None


def test_a_stages_first_touch_is_a_phase_apart_and_not_its_bound():
    tape = Tape()
    with tape.module("net", looked=True, look_overhead_s=0.0):
        tape.run(0.5)
        tape.op(0.02, flops=0.01 * FLOPS)
    for _ in range(5):
        with tape.module("net"):
            tape.run(0.021)
    found = analyse(tape.recording(), device())
    assert found.phases[0].warmup
    assert not found.phases[-1].warmup
    assert found.graph["net"].bound == "compute"


def test_phases_sum_to_the_cell_also_with_threads_waits_and_looks():
    tape = Tape()
    tape.run(0.013)
    with tape.function("tool"):
        tape.run(0.05)
        tape.op(0.04, flops=1e9)
        with tape.span("recv", "wait"):
            tape.wait(0.02)
        tape.op(0.001, flops=1e3, count=100)
    with tape.function("threaded", thread=1):
        tape.run(0.07, blocked=0.07)
    recording = tape.recording()
    found = analyse(recording, device())
    assert sum(phase.duration_s for phase in found.phases) == pytest.approx(recording.spans[0].duration_s)
    assert {phase.stage for phase in found.phases} >= {"tool", "threaded"}
