"""Operators that are one kernel of many steps: recurrent layers, transforms, sparse and quantised products.

Each gives an ``other`` work with its FLOPs: no cost model knows their shapes, but their arithmetic is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gimlet_lab.model.work import Work
from gimlet_lab.work import formulas
from gimlet_lab.work.operand import Inputs, Operand, Outputs, names, tensor

Formula = Callable[[Inputs, Outputs], Work | None]


def counted(dtype: str, flops: float) -> Work:
    """Give a work of which only the FLOPs are known."""
    return Work.of("other", dtype, flops=round(flops))


def matrices(value: object) -> float:
    """Elements of the matrices in a list of weights; biases and initial states are vectors or deeper."""
    items = value if isinstance(value, list | tuple) else ()
    return float(sum(item.numel for item in items if isinstance(item, Operand) and len(item.shape) == 2))


def _recurrent(inputs: Inputs, _outputs: Outputs) -> Work | None:
    # Every step of every sequence meets each weight once; the gates are a percent of that.
    x = tensor(inputs, "input", "data")
    weights = matrices(inputs.get("params", inputs.get("weight")))
    rows = x.shape[0] if len(x.shape) == 2 else math.prod(x.shape[:-1])
    return counted(x.dtype, 2 * rows * weights) if weights else None


def _recurrent_layer(times: int) -> Formula:
    def work(inputs: Inputs, _outputs: Outputs) -> Work | None:
        x = tensor(inputs, "input")
        both = [("weight0", "weight1"), ("weight1", "weight2")]
        first, second = next(pair for pair in both if isinstance(inputs.get(pair[0]), Operand))
        weights = tensor(inputs, first).numel + tensor(inputs, second).numel
        return counted(x.dtype, times * 2 * math.prod(x.shape[:-1]) * weights)

    return work


def _cell(each: int) -> Formula:
    """A fused recurrent cell: gates are added and passed through their functions."""

    def work(inputs: Inputs, _outputs: Outputs) -> Work | None:
        gates = tensor(inputs, "input_gates", "grad_hy", "grad_cy")
        return counted(gates.dtype, each * gates.numel)

    return work


def _fourier(inputs: Inputs, outputs: Outputs) -> Work | None:
    """5·N·log2 N a complex transform (as FFTW's authors count), half of it where one side is real."""
    x, dims = tensor(inputs, "self"), inputs.get("dim")
    if not isinstance(dims, list | tuple) or not outputs:
        return None
    full = x if x.numel >= outputs[0].numel else outputs[0]
    points = math.prod(full.shape[int(dim)] for dim in dims)
    if points <= 1:
        return counted(outputs[0].dtype, 0)
    real = not (x.dtype.startswith("complex") and outputs[0].dtype.startswith("complex"))
    one = 5 * points * math.log2(points) / (2 if real else 1)
    return counted(outputs[0].dtype, full.numel / points * one)


def _sparse_product(left: str, right: str) -> Formula:
    def work(inputs: Inputs, _outputs: Outputs) -> Work | None:
        a, b = tensor(inputs, left), tensor(inputs, right)
        if a.nnz is None and b.nnz is None:
            return None
        if a.nnz is None:
            return counted(a.dtype, 2 * (b.nnz or 0) * (a.numel // a.shape[-1] if a.shape[-1] else 0))
        if b.nnz is not None:  # each entry of the one meets a row of the other, of its mean length
            return counted(a.dtype, 2 * a.nnz * b.nnz / max(b.shape[0], 1))
        return counted(a.dtype, 2 * a.nnz * (b.shape[-1] if len(b.shape) > 1 else 1))

    return work


def _projection(inputs: Inputs, outputs: Outputs) -> Work | None:
    """A product with packed weights: the result says how many, one byte each unless they are seen."""
    x = tensor(inputs, "X", "input", "self", "x")
    if not outputs:
        return None
    n, k = outputs[0].shape[-1], x.shape[-1]
    flops = 2 * outputs[0].numel * k
    if any(isinstance(inputs.get(name), Operand) for name in ("mat2", "weight", "packed_weights", "qw")):
        return counted(x.dtype, flops)
    return Work.of("other", x.dtype, flops=flops, bytes_read=x.nbytes + n * k)


def _grouped(inputs: Inputs, outputs: Outputs) -> Work | None:
    """Each row meets the weights of its own group only; in a backward pass each group its own rows."""
    a, b = tensor(inputs, "self", "mat_a"), tensor(inputs, "mat2", "mat_b")
    dtype = outputs[0].dtype if outputs else a.dtype
    if len(a.shape) == 3 and len(b.shape) == 3:
        return Work.of("bmm", dtype, b=a.shape[0], m=a.shape[1], n=b.shape[-1], k=a.shape[2])
    rows = a.shape[-2]
    return Work.of("gemm", dtype, m=rows, n=b.shape[-1], k=a.shape[-1])


def _encoder_layer(inputs: Inputs, _outputs: Outputs) -> Work | None:
    x, width = tensor(inputs, "src", "query"), int(str(inputs.get("embed_dim", 0)))
    rows = math.prod(x.shape[:-1])
    weights = sum(
        value.numel
        for name, value in inputs.items()
        if isinstance(value, Operand) and len(value.shape) == 2 and "weight" in name
    )
    return counted(x.dtype, 2 * rows * weights + 4 * rows * x.shape[-2] * width)


def _flash(inputs: Inputs, _outputs: Outputs) -> Work | None:
    """Attention with heads behind positions; of packed sequences only the data know the lengths."""
    query, key = tensor(inputs, "query"), tensor(inputs, "key")
    packed = ("cum_seq_q", "cu_seqlens_q", "cum_seq_k", "cu_seqlens_k")
    if len(query.shape) != 4 or any(isinstance(inputs.get(name), Operand) for name in packed):
        return None
    batch, q_len, heads, head_dim = query.shape
    kv_len, kv_heads = key.shape[1], key.shape[2]
    causal = bool(inputs.get("is_causal") or inputs.get("custom_mask_type")) and q_len > 1
    left = inputs.get("window_size_left")
    window = left + 1 if isinstance(left, int) and left >= 0 else 0
    return Work.of(
        "attention_decode" if q_len == 1 else "attention_prefill", query.dtype, batch=batch, q_len=q_len,
        kv_len=kv_len, heads=heads, kv_heads=kv_heads, head_dim=head_dim, window=window, causal=int(causal),
    )  # fmt: skip


def _flash_backward(inputs: Inputs, outputs: Outputs) -> Work | None:
    forward = _flash(inputs, outputs)
    flops = None if forward is None else formulas.flops(forward)
    return None if flops is None else counted(tensor(inputs, "query").dtype, 2.5 * flops)


def _taps(each: int, name: str = "self") -> Formula:
    """So many operations an element of the larger side: resampling."""

    def work(inputs: Inputs, outputs: Outputs) -> Work | None:
        x = tensor(inputs, name, "grad_output", "input")
        return counted(x.dtype, each * max([x.numel, *(out.numel for out in outputs[:1])]))

    return work


def _cube(numerator: float) -> Formula:
    """A factorisation: so many thirds of n³ (Golub and Van Loan, "Matrix Computations")."""

    def work(inputs: Inputs, _outputs: Outputs) -> Work | None:
        a = tensor(inputs, "A", "self", "input")
        n = a.shape[-1]
        flops = numerator / 3 * n**3 * math.prod(a.shape[:-2])
        b = inputs.get("B")
        if isinstance(b, Operand):
            flops += 2.0 * n * b.numel
        return counted(a.dtype, flops)

    return work


def _qr(inputs: Inputs, _outputs: Outputs) -> Work | None:
    a = tensor(inputs, "A", "self")
    m, n = a.shape[-2:]
    low = min(m, n)
    # Householder, and as much again to form Q.
    return counted(a.dtype, math.prod(a.shape[:-2]) * 2 * (2 * low * low * (max(m, n) - low / 3)))


def _distances(inputs: Inputs, outputs: Outputs) -> Work | None:
    x = tensor(inputs, "x1")
    return counted(x.dtype, 3 * outputs[0].numel * x.shape[-1])


def _outer(inputs: Inputs, outputs: Outputs) -> Work | None:
    return counted(tensor(inputs, "vec1").dtype, 2 * outputs[0].numel)


KERNELS: dict[str, Formula] = {
    **dict.fromkeys(names("lstm gru rnn_tanh rnn_relu quantized_lstm quantized_gru"), _recurrent),
    **dict.fromkeys(("_cudnn_rnn", "miopen_rnn"), _recurrent),
    "mkldnn_rnn_layer": _recurrent_layer(1),
    "mkldnn_rnn_layer_backward": _recurrent_layer(2),
    "_thnn_fused_lstm_cell": _cell(4),
    "_thnn_fused_gru_cell": _cell(4),
    **dict.fromkeys(("_fft_r2c", "_fft_c2r", "_fft_c2c"), _fourier),
    "_sparse_addmm": _sparse_product("mat1", "mat2"),
    "_sparse_mm": _sparse_product("sparse", "dense"),
    "_sparse_sparse_matmul": _sparse_product("self", "other"),
    **dict.fromkeys(
        names("""
        linear_dynamic linear_relu_dynamic linear_dynamic_fp16 linear_relu
        linear_unpacked_dynamic_fp16 _weight_int4pack_mm _weight_int4pack_mm_for_cpu
        _weight_int8pack_mm _dyn_quant_matmul_4bit fbgemm_linear_int8_weight
        fbgemm_linear_fp16_weight _mixed_dtypes_linear qlinear_pointwise
        """),
        _projection,
    ),
    **dict.fromkeys(("_grouped_mm", "_scaled_grouped_mm"), _grouped),
    **dict.fromkeys(("_transformer_encoder_layer_fwd", "_native_multi_head_attention"), _encoder_layer),
    **dict.fromkeys(("_flash_attention_forward", "_efficient_attention_forward"), _flash),
    **dict.fromkeys(("_flash_attention_backward", "_efficient_attention_backward"), _flash_backward),
    "upsample_linear1d": _taps(3),
    "upsample_bilinear2d": _taps(7),
    "_upsample_bilinear2d_aa": _taps(7),
    "upsample_trilinear3d": _taps(15),
    "upsample_bicubic2d": _taps(31),
    "_upsample_bicubic2d_aa": _taps(31),
    "grid_sampler_2d": _taps(8),
    "grid_sampler_3d": _taps(16),
    "linalg_cholesky_ex": _cube(1),
    "linalg_lu_factor_ex": _cube(2),
    "_linalg_solve_ex": _cube(2),
    "linalg_inv_ex": _cube(6),
    "_linalg_det": _cube(2),
    "linalg_qr": _qr,
    "_cdist_forward": _distances,
    "addr": _outer,
    "addr_": _outer,
}  # fmt: skip
