"""Kernels, their tables and served models: what ``estimate`` and ``estimate_serving`` answer."""

import dataclasses

import numpy as np
import pytest

import gimlet_lab as gimlet
from gimlet_lab.costs import kernel_tables, stage_estimate
from gimlet_lab.costs.decoder import decoder, step
from gimlet_lab.errors import UnknownNameError, UsageError
from gimlet_lab.hardware import architectures, catalogue
from gimlet_lab.model import Stage, Work
from gimlet_lab.work import formulas

GEMM = {"op": "gemm", "m": 512, "n": 4096, "k": 4096, "dtype": "bfloat16"}


@pytest.fixture(autouse=True)
def _without_kernel_tables(monkeypatch):
    monkeypatch.setattr(kernel_tables, "installed", lambda: None)


def serve(**changes):
    return gimlet.estimate_serving(
        **{"model": "llama-3.1-8b", "device": "h100-sxm", "batch": 16, "isl": 1024, "osl": 256, **changes}
    )


# Kernels


def test_a_list_gives_arrays_and_is_a_sequence():
    found = gimlet.estimate([GEMM, Work.of("other"), {"op": "softmax", "rows": 64, "cols": 1024}], "h200-sxm")
    assert found.seconds.shape == found.low.shape == found.high.shape == (3,)
    assert found[1] is None
    assert np.isnan(found.seconds[1])
    assert found[0].seconds == found.seconds[0]
    assert len(found) == len(list(found)) == 3
    assert found.usd[0] == pytest.approx(found[0].usd)


def test_a_long_list_is_priced_as_a_short_one():
    works = [{**GEMM, "m": m} for m in range(1, 2502)]
    many = gimlet.estimate(works, "b200-sxm")
    few = gimlet.estimate(works[:100], "b200-sxm")
    np.testing.assert_allclose(many.seconds[:100], few.seconds, rtol=1e-4)
    with pytest.raises(UsageError, match="needs 'k'"):
        gimlet.estimate([*works, {"op": "gemm", "m": 1, "n": 1}], "b200-sxm")
    with pytest.raises(UnknownNameError, match="did you mean 'gemm'"):
        gimlet.estimate([*works, {**GEMM, "op": "gem"}], "b200-sxm")
    with pytest.raises(UsageError, match="negative"):
        gimlet.estimate([*works, {**GEMM, "m": -1}], "b200-sxm")


def test_a_dtype_the_device_lacks_says_what_it_falls_back_to():
    found = gimlet.estimate({**GEMM, "dtype": "float8_e4m3fn"}, "a100-sxm-80gb")
    assert "a100-sxm-80gb has no float8_e4m3fn: computed in bfloat16" in found.note
    assert "computed in float32" in gimlet.estimate(GEMM, "t4").note
    assert gimlet.estimate(GEMM, "h100-sxm").note is None


def test_a_shape_nobody_measured_is_less_sure():
    usual, huge = (gimlet.estimate({**GEMM, "k": k}, "h200-sxm") for k in (4096, 2**24))
    assert "outside the shapes" in huge.note
    assert huge.high / huge.seconds > usual.high / usual.seconds


def test_another_makers_card_is_less_sure():
    own, other = (gimlet.estimate(GEMM, name) for name in ("b200-sxm", "mi300x"))
    assert other.high / other.low > own.high / own.low
    assert "AMD" in other.note


def test_what_the_cache_holds_is_read_faster():
    # 4 MB and 64 MB of weights, one row: the L40S keeps the first.
    small, large = (gimlet.estimate({**GEMM, "m": 1, "n": n, "k": 2048}, "l40s") for n in (1024, 16384))
    assert large.seconds > 8 * small.seconds


def test_grouped_heads_read_less_cache():
    shape = {
        "op": "attention_decode",
        "batch": 64,
        "kv_len": 8192,
        "heads": 32,
        "head_dim": 128,
        "dtype": "bfloat16",
    }
    grouped, all_heads = (gimlet.estimate({**shape, "kv_heads": n}, "h200-sxm") for n in (8, 32))
    assert 2 < all_heads.seconds / grouped.seconds < 8


def test_collectives_go_over_the_link():
    small, large = (
        gimlet.estimate({"op": "all_reduce", "bytes": n, "devices": 8}, "h100-sxm") for n in (1024, 2**28)
    )
    assert small.bound == "overhead"
    assert large.bound == "transfer"
    assert (
        gimlet.estimate({"op": "all_reduce", "bytes": 2**28, "devices": 8}, "l40s").seconds
        > 3 * large.seconds
    )
    assert gimlet.estimate({"op": "all_reduce", "bytes": 2**20, "devices": 8}, "xeon-8480") is None


def test_kernel_tables_that_are_not_there_say_so():
    with pytest.raises(UsageError, match="gimlet-lab\\[tables\\]"):
        gimlet.estimate(GEMM, "h100-sxm", "kernel table")


# Kernel tables, with a table of two shapes


@pytest.fixture
def two_shapes(monkeypatch, tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("scipy")
    monkeypatch.setattr(kernel_tables, "installed", lambda: tmp_path)
    monkeypatch.setattr(kernel_tables, "_TABLES", {})
    rows = pd.DataFrame(
        {"gemm_dtype": "bfloat16", "m": [512, 1024], "n": 4096, "k": 4096, "latency": [0.03, 0.05]}
    )
    monkeypatch.setattr(
        kernel_tables, "_frame", lambda system, folder, name: rows if folder == "gemm" else None
    )
    kernel_tables._load.cache_clear()
    yield
    kernel_tables._load.cache_clear()


@pytest.mark.usefixtures("two_shapes")
def test_a_measured_shape_is_looked_up():
    found = gimlet.estimate(GEMM, "h100-sxm")
    assert found.source == "kernel table"
    assert found.seconds == pytest.approx(0.03e-3, rel=0.01)
    between = gimlet.estimate({**GEMM, "m": 768}, "h100-sxm")
    assert 0.03e-3 < between.seconds < 0.05e-3
    assert between.high / between.seconds > found.high / found.seconds
    far = gimlet.estimate({**GEMM, "n": 64}, "h100-sxm")
    assert far.note == "no measured shape is near"
    # What the tables do not have, the model answers; a device without tables too.
    softmax = {"op": "softmax", "rows": 64, "cols": 64}
    assert [one.source for one in gimlet.estimate([GEMM, softmax], "h100-sxm")] == ["kernel table", "model"]
    assert gimlet.estimate(GEMM, "l4").source == "model"
    assert gimlet.estimate(GEMM, "h100-sxm", "model").source == "model"
    with pytest.raises(UsageError, match="no kernel tables of l4"):
        gimlet.estimate(GEMM, "l4", "kernel table")


# Serving


def test_a_step_has_the_models_arithmetic():
    dims = decoder("llama-3.1-8b", architectures.config("llama-3.1-8b"))
    matrices, tables = dims.weights()
    assert matrices + tables == pytest.approx(8.03e9, rel=0.01)
    works = step(dims, "bf16", 1, decode=16, context=1)
    done = sum(formulas.flops(work) for work in works if work.op == "gemm")
    assert done == pytest.approx(2 * 16 * (matrices + tables / 2), rel=0.01)
    half = step(dims, "bf16", 2, decode=16, context=1)
    assert sum(formulas.flops(work) for work in half if work.op == "gemm") == pytest.approx(
        done / 2, rel=0.01
    )
    assert dims.kv_bytes_per_token("bf16") == 2 * 32 * 8 * 128 * 2
    assert dims.kv_bytes_per_token("fp8") == 2 * 32 * 8 * 128


def test_serving_answers_with_intervals_and_source():
    found = serve()
    assert found.tpot.low < found.tpot_s < found.tpot.high
    assert found.ttft.low < found.ttft_s < found.ttft.high
    assert found.tpot.source == "model"
    assert any("no kernel tables" in note for note in found.notes)
    assert found.tokens_per_s == pytest.approx(found.requests_per_s * 256)
    assert found.usd_per_million_tokens > 0


def test_more_at_a_time_serve_more_and_slower():
    few, many = serve(batch=4), serve(batch=64)
    assert many.tpot_s > few.tpot_s
    assert many.tokens_per_s > 2 * few.tokens_per_s


def test_tensor_parallelism_shortens_a_token_of_a_large_model():
    two, eight = (serve(model="llama-3.1-70b", tp=tp) for tp in (2, 8))
    assert eight.tpot_s < two.tpot_s
    assert eight.kv_capacity_tokens > 3 * two.kv_capacity_tokens


def test_what_does_not_fit_says_so():
    with pytest.raises(UsageError, match=r"llama-3.1-70b \(\d+ GB in bf16\).*1 × h100-sxm: raise tp"):
        serve(model="llama-3.1-70b", dtype="bf16")
    waiting = serve(batch=2000, isl=8192)
    assert waiting.batch < 2000
    assert waiting.wait_s > 0
    assert any("do not fit" in note for note in waiting.notes)


def test_prefill_elsewhere_moves_the_cache_and_leaves_tokens_alone():
    together, apart = serve(), serve(device="h200-sxm", prefill_device="h100-sxm")
    assert together.kv_transfer_s is None
    assert apart.kv_transfer_s == pytest.approx(apart.kv_bytes_per_token * 1024 / 50e9)
    assert apart.tpot_s < serve(device="h200-sxm").tpot_s


def test_a_rate_sets_the_batch_and_the_wait():
    calm, busy = serve(rate_per_s=1.0), serve(rate_per_s=20.0)
    assert calm.batch < busy.batch
    assert calm.utilisation < busy.utilisation < 1
    assert calm.wait_s <= busy.wait_s
    flooded = serve(rate_per_s=1e5)
    assert flooded.ttft_s == np.inf
    assert any("saturated" in note for note in flooded.notes)


def test_experts_cost_what_their_tokens_reach():
    dense, sparse = serve(model="llama-3.1-70b", tp=4), serve(model="mixtral-8x7b", tp=4)
    assert sparse.tpot_s < dense.tpot_s


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model": "llama-3.1-9b"}, UnknownNameError, "llama-3.1-8b"),
        ({"device": "h100"}, UnknownNameError, "h100-sxm"),
        ({"dtype": "fp9"}, UnknownNameError, "fp8"),
        ({"tp": 0}, UsageError, "tp must be a positive integer"),
        ({"rate_per_s": 0}, UsageError, "rate_per_s must be above 0"),
        ({"tier": "guess"}, UnknownNameError, "no tier 'guess'"),
        ({"model": {"model_type": "bert", "hidden_size": 8}}, UsageError, "its config has no"),
    ],
)
def test_bad_input_is_one_line(changes, error, says):
    with pytest.raises(error, match=says) as caught:
        serve(**changes)
    assert "\n" not in str(caught.value)


# Stages


def test_a_stage_measured_on_one_accelerator_corrects_the_model_on_another():
    works = (Work.of("gemm", "bfloat16", count=10, m=4096, n=4096, k=4096),)
    here, there = (
        dataclasses.replace(catalogue.find(name), live=True) for name in ("h100-sxm", "a100-sxm-80gb")
    )
    says = gimlet.estimate(works[0], here, "model").seconds / 10
    stage = Stage(
        "prefill",
        "module",
        "llm",
        "prefill",
        calls=10,
        call_s=1.3 * says,
        total_s=13 * says,
        bound="compute",
        works=works,
        ops=10,
    )
    found = stage_estimate(stage, there, here)
    assert found.seconds == pytest.approx(
        1.3 * gimlet.estimate(works[0], there, "model").seconds / 10, rel=1e-4
    )
    assert found.source == "model"
