"""FLOPs and bytes: known values, and laws that hold for every shape."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimlet_lab.model import Work
from gimlet_lab.work import DTYPE_BYTES, OPS, bytes_read, bytes_written, flops, intensity
from gimlet_lab.work.formulas import attention_pairs, keys_touched

size = st.integers(1, 300)
LLAMA = {"batch": 2, "heads": 32, "kv_heads": 8, "head_dim": 128}
EXAMPLES = [
    Work.of("gemm", "bfloat16", m=3, n=5, k=7),
    Work.of("bmm", "float32", b=2, m=3, n=5, k=7),
    Work.of("attention_prefill", "bfloat16", q_len=16, kv_len=40, **LLAMA),
    Work.of("attention_decode", "bfloat16", q_len=1, kv_len=40, **LLAMA),
    Work.of("elementwise", elements=100, inputs=2, outputs=1),
    Work.of("softmax", rows=4, cols=8),
    Work.of("layer_norm", rows=4, cols=8),
    Work.of("rms_norm", rows=4, cols=8),
    Work.of("embedding", rows=4, cols=8),
    Work.of("copy", elements=100),
    Work.of(
        "conv2d",
        batch=1,
        in_channels=4,
        out_channels=8,
        height=9,
        width=9,
        kernel=3,
        stride=2,
        padding=1,
        groups=2,
    ),
    Work.of("moe", "bfloat16", tokens=10, hidden=64, inter=32, experts=8, top_k=2, tp=1, ep=1),
    Work.of("all_reduce", bytes=1024, devices=4),
    Work.of("all_gather", bytes=1024, devices=4),
    Work.of("send", bytes=1024, devices=2),
]


def test_every_op_has_an_example_here():
    assert {work.op for work in EXAMPLES} == OPS


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (EXAMPLES[0], (210, 2 * (21 + 35), 2 * 15)),
        (EXAMPLES[1], (420, 2 * 4 * (21 + 35), 2 * 4 * 15)),
        # Queries 25…40 of 40 see as many keys each: Σ 25…40 = 520 pairs.
        (EXAMPLES[2], (4 * 2 * 32 * 128 * 520, 2 * 2 * 128 * (16 * 32 + 2 * 8 * 40), 2 * 2 * 16 * 32 * 128)),
        (EXAMPLES[3], (4 * 2 * 32 * 128 * 40, 2 * 2 * 128 * (32 + 2 * 8 * 40), 2 * 2 * 32 * 128)),
        (EXAMPLES[4], (100, 800, 400)),
        (EXAMPLES[8], (0, 4 * 8 * 4 + 4 * 8, 4 * 8 * 4)),
        # 5 × 5 outputs of 8 channels, each 2 channels × 9 taps.
        (EXAMPLES[10], (2 * 8 * 25 * 18, 4 * (4 * 81 + 8 * 18), 4 * 8 * 25)),
        (EXAMPLES[12], (1024 / 4 * 3 / 4, 2 * 1024 * 3 / 4, 2 * 1024 * 3 / 4)),
        (EXAMPLES[13], (0, 768, 768)),
    ],
    ids=lambda value: value.op if isinstance(value, Work) else "",
)
def test_known_values(work, expected):
    assert (flops(work), bytes_read(work), bytes_written(work)) == expected


@pytest.mark.parametrize("work", EXAMPLES, ids=lambda work: work.op)
def test_count_scales_everything_and_intensity_stays(work):
    five = replace(work, count=5)
    for formula in (flops, bytes_read, bytes_written):
        assert formula(five) == pytest.approx(5 * formula(work))
    assert intensity(five) == pytest.approx(intensity(work))


@given(m=size, n=size, k=size, more=st.integers(1, 50), dim=st.sampled_from("mnk"))
def test_a_larger_gemm_never_costs_less(m, n, k, more, dim):
    small = Work.of("gemm", "bfloat16", m=m, n=n, k=k)
    large = Work.of("gemm", "bfloat16", **{"m": m, "n": n, "k": k, dim: small[dim] + more})
    assert flops(large) > flops(small)
    assert bytes_read(large) + bytes_written(large) > bytes_read(small) + bytes_written(small)


@given(m=size, n=size, k=size)
def test_a_gemm_moves_at_least_its_weights_and_its_intensity_is_at_most_its_smallest_side(m, n, k):
    work = Work.of("gemm", "float32", m=m, n=n, k=k)
    assert bytes_read(work) >= 4 * n * k
    assert intensity(work) <= min(m, n, k) / 2


@given(q=st.integers(1, 40), past=st.integers(0, 60), window=st.integers(0, 80), causal=st.booleans())
def test_attention_pairs_are_those_one_can_count(q, past, window, causal):
    kv = past + q
    seen = {
        (i, j)
        for i in range(past, kv)
        for j in range(kv)
        if not causal or (j <= i and (not window or i - j < window))
    }
    if causal:
        assert attention_pairs(q, kv, window) == len(seen)
        assert keys_touched(q, kv, window) == len({j for _, j in seen})
    elif not window:
        assert attention_pairs(q, kv, window, causal=False) == len(seen)


@given(q=st.integers(1, 500), past=st.integers(0, 500))
def test_prefill_sees_the_past_and_half_of_itself(q, past):
    work = Work.of("attention_prefill", batch=1, q_len=q, kv_len=past + q, heads=1, kv_heads=1, head_dim=1)
    assert flops(work) == pytest.approx(4 * q * (past + (q + 1) / 2))


@given(kv_heads=st.sampled_from([1, 2, 4, 8, 16, 32]), kv_len=st.integers(1, 4096))
def test_grouped_heads_save_bytes_not_flops(kv_heads, kv_len):
    dims = {"batch": 1, "q_len": 1, "kv_len": kv_len, "heads": 32, "head_dim": 64}
    grouped = Work.of("attention_decode", "float16", kv_heads=kv_heads, **dims)
    full = Work.of("attention_decode", "float16", kv_heads=32, **dims)
    assert flops(grouped) == flops(full)
    assert bytes_read(full) - bytes_read(grouped) == 2 * 2 * (32 - kv_heads) * 64 * kv_len


def test_a_smaller_kv_dtype_halves_what_the_cache_costs():
    plain = Work.from_json(
        {"op": "attention_decode", "dtype": "bfloat16", "q_len": 1, "kv_len": 1000, **LLAMA}
    )
    small = Work.from_json({**plain.to_json(), "kv_dtype": "float8_e4m3fn"})
    cache = 2 * 2 * 8 * 128 * 1000
    assert bytes_read(plain) - bytes_read(small) == cache
    assert Work.from_json(small.to_json()) == small


@given(tokens=st.integers(1, 64), experts=st.integers(1, 64), top_k=st.integers(1, 8))
def test_a_mixture_reads_between_top_k_and_all_experts(tokens, experts, top_k):
    top_k = min(top_k, experts)
    dims = {"tokens": tokens, "hidden": 16, "inter": 32, "top_k": top_k}
    work = Work.of("moe", "float32", experts=experts, **dims)
    one, rows = 3 * 16 * 32 * 4, tokens * top_k * 16 * 4
    assert top_k * one * (1 - 1e-9) <= bytes_read(work) - rows <= experts * one * (1 + 1e-9)
    assert flops(work) == 6 * tokens * top_k * 16 * 32


def test_unknown_is_none_and_what_was_counted_goes_first():
    assert flops(Work.of("other")) is bytes_read(Work.of("other")) is intensity(Work.of("other")) is None
    counted = Work.of("other", count=2, flops=10, bytes_read=20, bytes_written=5)
    assert (flops(counted), bytes_read(counted), bytes_written(counted)) == (20, 40, 10)
    broadcast = Work.of("elementwise", elements=100, inputs=2, bytes_read=404)
    assert (bytes_read(broadcast), bytes_written(broadcast)) == (404, 400)


def test_a_dtype_of_unknown_size_has_flops_but_no_bytes():
    work = Work.of("gemm", "posit16", m=2, n=2, k=2)
    assert (flops(work), bytes_read(work), bytes_written(work)) == (16, None, None)


def test_torch_agrees_with_the_sizes():
    torch = pytest.importorskip("torch")
    for name, size_bytes in DTYPE_BYTES.items():
        dtype = getattr(torch, name, None)
        if isinstance(dtype, torch.dtype) and size_bytes >= 1:
            assert dtype.itemsize == size_bytes, name


def test_a_missing_dimension_says_which():
    with pytest.raises(KeyError, match="a gemm work needs 'k'"):
        flops(Work.of("gemm", m=1, n=2))
