"""Rare operators against closed formulas, through real torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
from capturing import Notebook

import gimlet_lab as gimlet
from gimlet_lab.model import Op

torch: Any = pytest.importorskip("torch")

F: Any = torch.nn.functional

#: A cell, the operator in it, its FLOPs.
KNOWN = {
    "fft": ("torch.fft.fft(torch.ones(4, 128, dtype=torch.complex64))", "_fft_c2c", 4 * 5 * 128 * 7),
    "rfft": ("torch.fft.rfft(torch.ones(4, 128))", "_fft_r2c", 4 * 5 * 128 * 7 / 2),
    "irfft": ("torch.fft.irfft(torch.ones(4, 65, dtype=torch.complex64))", "_fft_c2r", 4 * 5 * 128 * 7 / 2),
    "sparse": ("torch.eye(32).to_sparse() @ torch.ones(32, 8)", "mm", 2 * 32 * 8),
    "csr": ("torch.eye(32).to_sparse_csr() @ torch.ones(32, 8)", "mm", 2 * 32 * 8),
    "lstm": ("lstm(torch.ones(10, 3, 16))", "mkldnn_rnn_layer", 2 * 30 * (4 * 32 * 16 + 4 * 32 * 32)),
    "quantised": ("quantised(torch.ones(4, 16))", "linear_dynamic", 2 * 4 * 16 * 32),
    "layer norm": ("norm(torch.ones(5, 8)).sum().backward()", "native_layer_norm_backward", 13 * 40),
    "fused": ("adamw.step()", "_fused_adamw_", (13 + 2) * 8),
    "foreach": ("torch._foreach_add_([torch.ones(8), torch.ones(4)], 1.0)", "_foreach_add_", 12),
    "cholesky": ("torch.linalg.cholesky(torch.eye(30))", "linalg_cholesky_ex", 30**3 / 3),
    "distances": ("torch.cdist(q[0, 0], q[0, 1], p=1.0)", "_cdist_forward", 3 * 6 * 6 * 16),
    "grouped": (
        "torch._grouped_mm(torch.ones(16, 32).bfloat16(), torch.ones(4, 32, 64).bfloat16(), offs=offsets)",
        "_grouped_mm",
        2 * 16 * 32 * 64,
    ),
    "transposed": ("F.conv_transpose2d(torch.ones(2, 4, 5, 5), torch.ones(4, 3, 2, 2), stride=2)",
                   "convolution", 2 * 2 * 25 * 4 * 3 * 4),
    "causal": ("F.scaled_dot_product_attention(q, q, q, is_causal=True)",
               "_scaled_dot_product_flash_attention_for_cpu", 4 * 2 * 16 * 6 * 7 / 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def notebook() -> Notebook:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.ones(8))
    weight.grad = torch.ones(8)
    with pytest.warns(match=".*"):
        quantised = torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(torch.nn.Linear(16, 32)), {torch.nn.Linear}
        )
    return Notebook(
        torch=torch,
        F=F,
        q=torch.ones(1, 2, 6, 16),
        lstm=torch.nn.LSTM(16, 32).eval(),
        quantised=quantised,
        offsets=torch.tensor([4, 8, 12, 16], dtype=torch.int32),
        norm=torch.nn.LayerNorm(8),
        adamw=torch.optim.AdamW([weight], fused=True),
    )


def found(notebook: Notebook, cell: str, name: str) -> Op:
    recording = notebook.profile(cell)
    assert notebook.error is None
    (op,) = [op for op in recording.ops if op.op.endswith(f"::{name}")]
    return op


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("what", KNOWN)
def test_flops_of_rare_operators(notebook: Notebook, what: str) -> None:
    cell, name, flops = KNOWN[what]
    op = found(notebook, cell, name)
    assert op.flops == pytest.approx(flops, rel=1e-9, abs=1)
    assert op.bytes_read
    assert op.bytes_written


def test_fused_steps_write_the_state_in_place(notebook: Notebook) -> None:
    notebook.run("adamw.step()")
    op = found(notebook, "adamw.step()", "_fused_adamw_")
    # The parameter, its two running means and the count; read, the gradient as well.
    assert op.bytes_written == pytest.approx(3 * 32 + 4, abs=4)
    assert op.bytes_read == pytest.approx(4 * 32 + 4, abs=4)


def test_packed_weights_are_read(notebook: Notebook) -> None:
    op = found(notebook, "quantised(torch.ones(4, 16))", "linear_dynamic")
    assert op.bytes_read == 4 * 16 * 4 + 16 * 32


def test_a_custom_operator_says_what_it_computes() -> None:
    library = torch.library.custom_op(
        "gimlet_test::twice", lambda x: x + x, mutates_args=(), schema="(Tensor x) -> Tensor"
    )
    notebook = Notebook(torch=torch, twice=library, x=torch.ones(3, 4))
    assert found(notebook, "y = twice(x)", "twice").flops is None
    gimlet.register_flops(library, lambda x, *, out_shape: 7 * math.prod(x) + math.prod(out_shape))
    op = found(notebook, "y = twice(x)", "twice")
    assert (op.flops, op.bytes_read, op.bytes_written) == (8 * 12, 48.0, 48.0)


def test_what_is_registered_with_torch_is_found() -> None:
    from torch.utils.flop_counter import register_flop_formula

    library = torch.library.custom_op(
        "gimlet_test::thrice", lambda x: x * 3, mutates_args=(), schema="(Tensor x) -> Tensor"
    )
    register_flop_formula(torch.ops.gimlet_test.thrice)(
        lambda x, *_args, out_shape=None, **_kwargs: 5 * math.prod(x)
    )
    op = found(Notebook(torch=torch, thrice=library, x=torch.ones(3, 4)), "y = thrice(x)", "thrice")
    assert op.flops == 60


def test_only_operators_can_be_registered() -> None:
    with pytest.raises(ValueError, match="register_flops: 'mm' is no operator"):
        gimlet.register_flops("mm", lambda **_: 0)
