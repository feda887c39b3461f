"""Estimates: what bounds them, what they cannot know, and how stages carry over to other devices."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimlet_lab.costs import estimate, kernel_tables, roofline, stage_estimate
from gimlet_lab.costs.stages import PYTHON_PER_OP_S
from gimlet_lab.errors import UnknownNameError, UsageError
from gimlet_lab.hardware import catalogue
from gimlet_lab.model import Device, Quantity, Stage, Work

ACCELERATORS = sorted(name for name, d in catalogue.devices().items() if d.kind == "gpu")
GEMM = {"op": "gemm", "m": 4096, "n": 4096, "k": 4096, "dtype": "bfloat16"}


def q(value: float) -> Quantity:
    return Quantity(value, "a test", "2026-01-01", "measured")


def host(device_id: str, threads: int, **changes) -> Device:
    """A slice of one machine: a tera-FLOP/s and 10 GB/s per thread."""
    base = Device(
        device_id,
        "a processor",
        "V",
        "cpu",
        achieved_flops={"float32": q(1e12 * threads)},
        achieved_bandwidth_bytes_per_s=q(1e10 * threads),
        launch_s=q(1e-6),
        live=True,
    )
    return replace(base, **changes)


CPU, HALF = host("cpu", 2), host("cpu/0", 1)


def stage(kind: str = "module", **changes) -> Stage:
    base = Stage(
        "decode", kind, "llm", "decode", calls=10, call_s=0.1, total_s=1.0, bound="bandwidth", dtype="float32"
    )
    return replace(base, **changes)


# A decode step: 1 GB of weights read by each call, all ten calls counted together.
READING = (Work.of("gemm", "float32", count=10, m=1, n=16384, k=16384),)
# A prefill: 10¹² FLOPs a call.
COMPUTING = (Work.of("gemm", "float32", count=10, m=8192, n=8192, k=8192),)


@pytest.fixture(autouse=True)
def _without_kernel_tables(monkeypatch):
    # Whoever has the tables installed is told the same by the model tier.
    monkeypatch.setattr(kernel_tables, "installed", lambda: None)


def test_a_large_gemm_is_compute_bound_near_what_is_reached():
    found = estimate(GEMM, "h100-sxm")
    assert found.bound == "compute"
    assert found.source == "model"
    assert found.low < found.seconds < found.high
    assert 0.6 * 794.5e12 < 2 * 4096**3 / found.seconds < 1.05 * 794.5e12
    usd_per_hour = catalogue.find("h100-sxm").usd_per_hour.value
    assert found.usd == pytest.approx(found.seconds * usd_per_hour / 3600)
    assert found.joules == pytest.approx(found.seconds * 700)


def test_a_card_short_of_power_does_not_hold_its_datasheet():
    # 72 W for 121 TFLOP/s.
    assert 2 * 4096**3 / estimate(GEMM, "l4").seconds < 0.75 * 121e12


def test_few_rows_are_bandwidth_bound_and_nothing_is_overhead():
    assert estimate({**GEMM, "m": 1}, "h100-sxm").bound == "bandwidth"
    tiny = estimate({"op": "elementwise", "elements": 1, "inputs": 1, "outputs": 1}, "h100-sxm")
    assert tiny.bound == "overhead"
    assert 1e-6 < tiny.seconds < 1e-5


def test_a_list_gives_what_its_members_give():
    works = [GEMM, {**GEMM, "m": 1}, Work.of("softmax", rows=8, cols=8), Work.of("other")]
    for one, other in zip(
        estimate(works, "a100-sxm-80gb"), [estimate(work, "a100-sxm-80gb") for work in works], strict=True
    ):
        if one is None:
            assert other is None
        else:
            assert one.seconds == pytest.approx(other.seconds, rel=1e-4)
            assert (one.bound, one.source) == (other.bound, other.source)
    assert estimate([], "a100-sxm-80gb") == []
    assert estimate(works, catalogue.find("t4")) == estimate(works, "Tesla T4")


def test_count_stands_for_so_many_calls():
    one, many = estimate(GEMM, "t4"), estimate({**GEMM, "count": 7}, "t4")
    assert many.seconds == pytest.approx(7 * one.seconds)


@given(
    device=st.sampled_from(ACCELERATORS),
    m=st.integers(1, 5000),
    n=st.integers(1, 5000),
    k=st.integers(1, 5000),
    more=st.integers(1, 5000),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_more_work_is_never_said_to_take_less(device, m, n, k, more, dtype):
    small, large = estimate(
        [Work.of("gemm", dtype, m=m, n=n, k=k), Work.of("gemm", dtype, m=m + more, n=n, k=k)], device
    )
    assert 0 < small.low < small.seconds < small.high
    # Tiles that fit better can make a larger product the quicker one, as they do on the card.
    assert small.low <= large.high


def test_known_silicon_keeps_its_order():
    # A decode step follows bandwidth, a prefill FLOP/s.
    decode = [
        estimate({**GEMM, "m": 1}, name).seconds for name in ("l4", "a100-sxm-80gb", "h100-sxm", "b200-sxm")
    ]
    prefill = [estimate(GEMM, name).seconds for name in ("t4", "l4", "a100-sxm-80gb", "h100-sxm", "b200-sxm")]
    assert decode == sorted(decode, reverse=True)
    assert prefill == sorted(prefill, reverse=True)


def test_a_dtype_the_device_lacks_runs_as_the_one_torch_would_use():
    lacking, own = estimate([GEMM, {**GEMM, "dtype": "float32"}], "t4")
    assert lacking.seconds == pytest.approx(own.seconds, rel=0.02)
    assert lacking.high / lacking.seconds > own.high / own.seconds
    assert estimate({**GEMM, "dtype": "float8_e5m2"}, "mi300x").seconds < estimate(GEMM, "mi300x").seconds
    assert estimate({**GEMM, "dtype": "float64"}, "t4") is None


def test_tf32_only_when_asked_for():
    plain = estimate({**GEMM, "dtype": "float32"}, "a100-sxm-80gb")
    tf32 = estimate({**GEMM, "dtype": "float32", "tf32": True}, "a100-sxm-80gb")
    assert plain.seconds > 5 * tf32.seconds


def test_what_is_half_known_is_priced_by_that_half_and_widened():
    known, half = estimate(
        [
            Work.of("other", "bfloat16", flops=10**9, bytes_read=10**9, bytes_written=0),
            Work.of("other", "bfloat16", bytes_read=10**9, bytes_written=0),
        ],
        "h100-sxm",
    )
    assert half.seconds == pytest.approx(known.seconds)
    assert half.high > known.high
    assert estimate(Work.of("other"), "h100-sxm") is None


def test_an_unknown_device_has_no_figures_and_no_estimate():
    assert estimate(GEMM, Device("cuda:0", "NVIDIA Quark", "NVIDIA", "gpu")) is None


def test_a_collective_without_a_link_is_not_a_matter_of_one_device():
    lone = replace(
        catalogue.find("h100-sxm"), all_to_all_bytes_per_s=None, pair_bytes_per_s=None, link_bytes_per_s=None
    )
    assert estimate({"op": "all_reduce", "bytes": 2**20, "devices": 8}, lone) is None


@pytest.mark.parametrize(
    ("work", "device", "tier", "error", "says"),
    [
        ({**GEMM, "op": "gem"}, "t4", None, UnknownNameError, "no op 'gem'; did you mean 'gemm'"),
        (GEMM, "h100", None, UnknownNameError, "did you mean 'h100-sxm'"),
        (GEMM, "t4", "modle", UnknownNameError, "no tier 'modle'; did you mean 'model'"),
        (GEMM, "t4", "kernel table", UsageError, "no kernel tables here"),
        ({"op": "gemm", "m": 1, "n": 1}, "t4", None, UsageError, "a gemm work needs 'k'"),
        ({**GEMM, "m": -1}, "t4", None, UsageError, "negative dimension"),
        ({**GEMM, "m": 1.5}, "t4", None, UsageError, "m must be an integer"),
        ({"m": 1}, "t4", None, UsageError, "needs 'op'"),
        (
            {"op": "moe", "tokens": 1, "hidden": 1, "inter": 1, "experts": 0, "top_k": 1},
            "t4",
            None,
            UsageError,
            "is 0",
        ),
    ],
)
def test_bad_input_is_one_line(work, device, tier, error, says):
    with pytest.raises(error, match=says) as caught:
        estimate(work, device, tier)
    assert "\n" not in str(caught.value)


# Stages


def test_where_it_was_measured_the_measurement_is_the_estimate():
    found = stage_estimate(stage(works=READING), CPU, CPU)
    assert (found.seconds, found.low, found.high) == pytest.approx((0.1, 0.09, 0.11))
    assert (found.source, found.bound) == ("measured", "bandwidth")
    # Calls that differ say so: their mean is half again their median.
    uneven = stage_estimate(stage(works=READING, total_s=2.0, warmup_s=0.5), CPU, CPU)
    assert (uneven.low, uneven.high) == pytest.approx((0.05, 0.15))


@pytest.mark.parametrize("works", [READING, COMPUTING], ids=["reading", "computing"])
def test_half_the_cores_take_twice_as_long_for_what_the_roofline_explains(works):
    found = stage_estimate(stage(works=works, ops=10), HALF, CPU)
    assert found.seconds == pytest.approx(0.2, rel=0.01)
    assert found.source == "model"
    assert found.low < found.seconds < found.high


def test_a_gemm_goes_by_the_rate_that_one_row_was_measured_at():
    # Two threads read twice as fast, but one-row products do not: decoding gains nothing from the second.
    whole, half = (replace(device, gemv_bytes_per_s={"float32": q(1e10)}) for device in (CPU, HALF))
    assert stage_estimate(stage(works=READING), half, whole).seconds == pytest.approx(0.1, rel=0.01)
    copied = (Work.of("copy", "float32", count=10, elements=2**28),)
    assert stage_estimate(stage(works=copied), half, whole).seconds == pytest.approx(0.2, rel=0.01)


def test_each_slice_goes_by_its_own_calibration():
    slow = replace(HALF, achieved_bandwidth_bytes_per_s=q(2e9))
    assert stage_estimate(stage(works=READING), slow, CPU).seconds == pytest.approx(1.0, rel=0.01)
    # A slice that alone reaches all the bandwidth is no slower there.
    quick = replace(HALF, achieved_bandwidth_bytes_per_s=q(2e10))
    assert stage_estimate(stage(works=READING), quick, CPU).seconds == pytest.approx(0.1, rel=0.01)


def test_the_python_of_a_function_does_not_scale():
    # 0.1 s a call, of which the operators explain 0.05: a gigabyte at 20 GB/s.
    works = (Work.of("copy", count=10, elements=2**27),)
    here = 2**30 / 2e10 + 1e-6
    found = stage_estimate(stage("function", works=works, ops=0), HALF, CPU)
    assert found.seconds == pytest.approx(0.1 + here, rel=0.01)


def test_a_function_of_unknown_insides_carries_over_to_hosts_only():
    function = stage("function")
    same, other = (stage_estimate(function, device, CPU) for device in (HALF, catalogue.find("xeon-8480")))
    assert same.seconds == other.seconds == 0.1
    assert other.high > same.high
    assert stage_estimate(function, catalogue.find("h100-sxm"), CPU) is None
    assert stage_estimate(stage("glue"), catalogue.find("h100-sxm"), CPU) is None
    # Even with operators: it is Python, and Python runs on hosts.
    assert stage_estimate(stage("function", works=READING), catalogue.find("h100-sxm"), CPU) is None


def test_waiting_takes_as_long_anywhere():
    waiting = stage("function", bound="wait")
    for device in (CPU, HALF, catalogue.find("epyc-9654")):
        found = stage_estimate(waiting, device, CPU)
        assert (found.seconds, found.bound) == (0.1, "wait")
    assert stage_estimate(waiting, HALF, CPU).source == "measured"


def test_a_module_on_an_accelerator_takes_its_roofline():
    h100 = catalogue.find("h100-sxm")
    found = stage_estimate(stage(works=READING, ops=10), h100, CPU)
    assert found.seconds == pytest.approx(estimate(READING[0], h100).seconds / 10)
    assert (found.source, found.bound) == ("model", "bandwidth")
    assert found.usd == pytest.approx(found.seconds * h100.usd_per_hour.value / 3600)


def test_eager_torch_on_an_accelerator_waits_for_its_host():
    # A decode step of 2,000 small operators: the card idles while Python launches.
    ops = 2000
    works = (Work.of("gemm", "float32", count=10 * ops, m=1, n=64, k=64),)
    found = stage_estimate(stage(works=works, ops=10 * ops), catalogue.find("h100-sxm"), CPU)
    assert found.bound == "overhead"
    assert 1 <= found.seconds / (ops * (PYTHON_PER_OP_S + 5e-6)) < 1.5


def test_operators_without_a_price_are_launched_all_the_same():
    h100 = catalogue.find("h100-sxm")
    priced = stage_estimate(stage(works=READING, ops=10), h100, CPU)
    more = stage_estimate(stage(works=(*READING, Work.of("other", count=1000)), ops=10_000), h100, CPU)
    assert more.seconds > priced.seconds
    assert more.high / more.seconds > priced.high / priced.seconds


def test_sums_serve_where_operators_are_not_known():
    sums = {
        "flops": 10 * 2.0 * 16384**2,
        "bytes_read": 10 * 4.0 * 16384**2,
        "bytes_written": 10 * 4.0 * 16384,
    }
    whole = stage_estimate(stage(**sums), catalogue.find("h100-sxm"), CPU)
    parts = stage_estimate(stage(works=READING, ops=10), catalogue.find("h100-sxm"), CPU)
    # Sums know no kernels: products of few rows in float32 read more slowly than memory gives.
    assert 0.3 * parts.seconds < whole.seconds < 1.2 * parts.seconds
    assert stage_estimate(stage(), catalogue.find("h100-sxm"), CPU) is None


def test_measured_on_an_accelerator_a_module_comes_back_by_its_roofline():
    gpu = replace(catalogue.find("h100-sxm"), id="cuda:0", live=True)
    found = stage_estimate(stage(works=READING, ops=10), CPU, gpu)
    assert found.seconds == pytest.approx(4 * 16384**2 / 2e10, rel=0.01)
    assert found.source == "model"
    assert stage_estimate(stage(works=READING), gpu, gpu).source == "measured"


def test_energy_and_money_only_where_they_are_known():
    here = stage_estimate(stage(works=READING), CPU, CPU)
    assert here.joules is None
    assert here.usd is None
    t4 = stage_estimate(stage(works=READING, ops=10), catalogue.find("t4"), CPU)
    assert t4.joules == pytest.approx(t4.seconds * 70)
    assert t4.usd is None


def test_a_stage_that_never_ran_has_no_time():
    assert stage_estimate(stage(calls=0, call_s=0.0, total_s=0.0), CPU, CPU) is None


@given(
    calls=st.integers(1, 50),
    call_s=st.floats(1e-6, 10),
    m=st.integers(1, 4096),
    ops=st.integers(0, 10_000),
    kind=st.sampled_from(["module", "function", "glue"]),
    name=st.sampled_from(["cpu", "cpu/0", *sorted(catalogue.devices())]),
)
def test_every_estimate_is_a_finite_interval_around_itself(calls, call_s, m, ops, kind, name):
    works = (Work.of("gemm", "float16", count=calls, m=m, n=576, k=1536), Work.of("other", count=calls))
    some = stage(kind, calls=calls, call_s=call_s, total_s=call_s * calls, works=works, ops=ops)
    device = {"cpu": CPU, "cpu/0": HALF}.get(name) or catalogue.find(name)
    found = stage_estimate(some, device, CPU)
    if found is None:
        assert kind != "module" or device.is_host
        assert device.id not in ("cpu", "cpu/0")
        return
    assert 0 < found.low <= found.seconds <= found.high < math.inf
    assert found.bound in ("compute", "bandwidth", "overhead", "transfer", "wait")


def test_the_shares_are_of_what_was_reached_before_what_the_datasheet_says():
    h100 = catalogue.find("h100-sxm")
    assert roofline.flops_per_s(h100, "bfloat16") == (794.5e12 * roofline.SHARE_OF_BEST, False)
    assert roofline.flops_per_s(h100, "float16") == (989e12 * roofline.COMPUTE_EFFICIENCY, False)
    assert roofline.bandwidth(h100) == 3350e9 * roofline.BANDWIDTH_EFFICIENCY
    assert roofline.bandwidth(CPU) == 2e10


def test_a_run_from_another_machine_was_not_measured_on_this_ones_processor():
    theirs = replace(CPU, name="another processor (64 cores)", achieved_bandwidth_bytes_per_s=q(1e11))
    here = stage_estimate(stage(works=READING), CPU, theirs)
    assert here.source == "model"
    assert here.seconds == pytest.approx(0.5, rel=0.01)
    slices = [replace(d, name=f"a processor ({d.id})") for d in (CPU, HALF)]
    same = stage_estimate(stage(works=READING), slices[1], slices[0])
    assert same.high / same.seconds < here.high / here.seconds
