from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimlet_lab.work import aten, formulas
from gimlet_lab.work.aten import Operand

size = st.integers(1, 64)


@given(size, size, size)
def test_a_product_needs_nothing_but_its_formula(m: int, n: int, k: int) -> None:
    given_ = {"self": Operand((m, k)), "mat2": Operand((k, n), strides=(1, k))}
    work = aten.describe("aten::mm", given_, [Operand((m, n))])
    assert work is not None
    assert dict(work.dims) == {"m": m, "n": n, "k": k}
    assert formulas.flops(work) == 2 * m * n * k


@given(st.lists(size, min_size=1, max_size=4), st.data())
def test_what_a_work_says_it_moves_is_what_its_operands_hold(shape: list[int], data: st.DataObject) -> None:
    spread = data.draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
    full = Operand(tuple(shape), key=1)
    strides = tuple(0 if wide else 1 for wide in spread)
    other = Operand(tuple(shape), strides=strides, key=2)
    work = aten.describe("aten::add.Tensor", {"self": full, "other": other}, [Operand(tuple(shape), key=3)])
    assert work is not None
    small = math.prod(n for n, wide in zip(shape, spread, strict=True) if not wide)
    assert formulas.bytes_read(work) == 4 * (math.prod(shape) + small)
    assert formulas.bytes_written(work) == 4 * math.prod(shape)


def test_views_are_free() -> None:
    x = Operand((8, 8))
    for name in ("view", "transpose.int", "expand", "slice.Tensor", "_unsafe_view", "detach"):
        work = aten.describe(f"aten::{name}", {"self": x}, [x])
        assert work is not None
        assert formulas.flops(work) == formulas.bytes_read(work) == formulas.bytes_written(work) == 0


def test_an_argument_written_in_place_is_read_once_and_written_once() -> None:
    x, y = Operand((100,), key="x"), Operand((100,), key="y")
    mutated = frozenset({"self"})
    assert aten.read_bytes("aten::add_.Tensor", {"self": x, "other": y}, [x], mutated) == [400.0, 400.0]
    assert aten.written_bytes("aten::add_.Tensor", {"self": x, "other": y}, [x]) == 400.0
    assert aten.read_bytes("aten::copy_", {"self": x, "src": y}, [x], mutated) == [0.0, 400.0]
    assert aten.read_bytes("aten::zero_", {"self": x}, [x], mutated) == [0.0]


def test_a_gather_reads_the_rows_it_takes() -> None:
    table, index = Operand((50_000, 16), key="t"), Operand((3,), "int64", 8, key="i")
    read = aten.read_bytes("aten::embedding", {"weight": table, "indices": index}, [Operand((3, 16))])
    assert read == [3 * 16 * 4.0, 24.0]
    work = aten.describe("aten::embedding", {"weight": table, "indices": index}, [Operand((3, 16))])
    assert work is not None
    assert (work.op, work["rows"], work["cols"]) == ("embedding", 3, 16)
    read = aten.read_bytes("aten::index.Tensor", {"self": table, "indices": [index]}, [Operand((3, 16))])
    assert read == [3 * 16 * 4.0, 24.0]


def test_a_scatter_writes_what_it_puts() -> None:
    cache, index = Operand((1, 3, 1024, 64), key="c"), Operand((1,), "int64", 8, key="i")
    new = Operand((1, 3, 1, 64), key="n")
    given_ = {"self": cache, "dim": 2, "index": index, "source": new}
    assert aten.written_bytes("aten::index_copy_", given_, [cache]) == new.nbytes
    assert aten.read_bytes("aten::index_copy_", given_, [cache], frozenset({"self"})) == [
        0.0,
        8.0,
        new.nbytes,
    ]
    one = {
        "self": Operand((100,), key="c"),
        "indices": [Operand((7,), "int64", 8)],
        "values": Operand((), key="v"),
    }
    assert aten.written_bytes("aten::index_put_", one, [Operand((100,), key="c")]) == 7 * 4


@pytest.mark.parametrize(
    ("q_len", "kv_len", "causal", "op"),
    [
        (1, 300, False, "attention_decode"),
        (40, 40, True, "attention_prefill"),
        (8, 300, False, "attention_prefill"),
    ],
)
def test_attention_moves_its_operands_and_never_the_scores(
    q_len: int, kv_len: int, causal: bool, op: str
) -> None:
    query, key = Operand((1, 9, q_len, 64), key="q"), Operand((1, 3, kv_len, 64), key="k")
    given_ = {"query": query, "key": key, "value": Operand(key.shape, key="v"), "is_causal": causal}
    out = Operand(query.shape, key="o")
    work = aten.describe("aten::_scaled_dot_product_flash_attention_for_cpu", given_, [out])
    assert work is not None
    assert work.op == op
    pairs = formulas.attention_pairs(q_len, kv_len, causal=causal)
    assert formulas.flops(work) == 4 * 9 * 64 * pairs
    assert formulas.bytes_read(work) == query.nbytes + 2 * key.nbytes
    assert formulas.bytes_written(work) == out.nbytes


def test_kv_of_another_dtype_is_said() -> None:
    given_ = {
        "query": Operand((1, 2, 1, 8), "float32"),
        "key": Operand((1, 2, 9, 8), "bfloat16", 2),
        "value": Operand((1, 2, 9, 8), "bfloat16", 2),
    }
    work = aten.describe("aten::_scaled_dot_product_flash_attention", given_, [Operand((1, 2, 1, 8))])
    assert work is not None
    assert work.kv_dtype == "bfloat16"


def test_what_nobody_knows_is_none() -> None:
    assert aten.describe("mylib::magic", {"x": Operand((8,))}, [Operand((8,))]) is None
    assert (
        aten.describe("aten::sort", {"self": Operand((8,))}, [Operand((8,)), Operand((8,), "int64", 8)])
        is None
    )


def test_what_torch_tags_as_pointwise_is_elementwise() -> None:
    work = aten.describe("aten::erfinv", {"self": Operand((8,))}, [Operand((8,))], pointwise=True)
    assert work is not None
    assert (work.op, formulas.flops(work)) == ("elementwise", 8)


# -- against torch ------------------------------------------------------------


def _cases() -> dict[str, object]:
    import torch
    from torch.nn import functional as F

    r = torch.randn
    return {
        "mm": lambda: r(5, 7) @ r(7, 3),
        "linear": lambda: F.linear(r(2, 5, 7), r(3, 7), r(3)),
        "bmm": lambda: torch.bmm(r(4, 5, 7), r(4, 7, 3)),
        "baddbmm": lambda: torch.baddbmm(r(4, 5, 3), r(4, 5, 7), r(4, 7, 3)),
        "conv2d": lambda: F.conv2d(r(2, 4, 9, 9), r(6, 2, 3, 3), stride=2, padding=1, groups=2),
        "conv2d of odd shape": lambda: F.conv2d(r(2, 4, 9, 8), r(6, 4, 3, 1), padding=(1, 0)),
        "conv2d dilated": lambda: F.conv2d(r(1, 2, 12, 12), r(3, 2, 3, 3), dilation=2),
        "conv1d": lambda: F.conv1d(r(2, 4, 30), r(6, 4, 3), stride=2),
        "conv_transpose2d": lambda: F.conv_transpose2d(r(2, 4, 5, 5), r(4, 6, 3, 3), stride=2),
    }


@pytest.mark.parametrize(
    "name",
    [
        "mm", "linear", "bmm", "baddbmm", "conv2d", "conv2d of odd shape", "conv2d dilated", "conv1d",
        "conv_transpose2d",
    ],
)  # fmt: skip
def test_flops_are_those_that_torch_counts(name: str) -> None:
    pytest.importorskip("torch")
    from capturing import Notebook
    from torch.utils.flop_counter import FlopCounterMode

    case = _cases()[name]
    with FlopCounterMode(display=False) as counter:
        case()  # type: ignore[operator]
    recording = Notebook(case=case).profile("case()")
    assert (
        sum(op.flops or 0 for op in recording.ops if op.work and op.work.op != "copy")
        == counter.get_total_flops()
    )


def test_backward_of_a_convolution_is_two_convolutions() -> None:
    torch = pytest.importorskip("torch")
    from capturing import Notebook
    from torch.nn import functional as F
    from torch.utils.flop_counter import FlopCounterMode

    def case() -> None:
        x, w = torch.randn(2, 4, 9, 9, requires_grad=True), torch.randn(6, 4, 3, 3, requires_grad=True)
        F.conv2d(x, w).backward(torch.ones(2, 6, 7, 7))

    with FlopCounterMode(display=False) as counter:
        case()
    recording = Notebook(case=case).profile("case()")
    counted = sum(op.flops or 0 for op in recording.ops if "convolution" in op.op)
    assert counted == counter.get_total_flops()
