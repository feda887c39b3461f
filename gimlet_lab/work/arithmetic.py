"""What torch's operators compute: from the shapes of their arguments to arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable

from gimlet_lab.model.work import Work
from gimlet_lab.work import formulas
from gimlet_lab.work.gradients import BACKWARD, foreach, fused_step
from gimlet_lab.work.kernels import KERNELS, counted
from gimlet_lab.work.operand import (
    COPIES,
    FILLS,
    GATHERS,
    POINTWISE,
    REDUCTIONS,
    SCATTERS,
    Inputs,
    Outputs,
    operands,
    tensor,
)

_SDPA = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
    "scaled_dot_product_attention",
)


def arithmetic(base: str, inputs: Inputs, outputs: Outputs, *, pointwise: bool = False) -> Work | None:
    """Say what an operator computes; None where nobody knows.

    Parameters
    ----------
    base : str
        Its name without namespace and overload.
    pointwise : bool
        torch tags it as pointwise: one operation an element, whatever its name.
    """
    special = _SPECIAL.get(base)
    if special is not None:
        return special(inputs, outputs)
    if base.startswith("_fused_"):
        return fused_step(base, inputs)
    plain = base.removeprefix("_foreach_").removesuffix("_")
    if base.startswith("_foreach_") and plain in POINTWISE:
        return foreach(plain, inputs)
    first = next((operand for _, operand in operands(inputs)), None)
    dtype = outputs[0].dtype if outputs else first.dtype if first is not None else "float32"
    if base in FILLS or base in COPIES or base in GATHERS or base in SCATTERS:
        return Work.of("copy", dtype, elements=sum(out.numel for out in outputs))
    if pointwise or plain in POINTWISE:
        elements = max((out.numel for out in outputs), default=0)
        count = sum(1 for _ in operands(inputs))
        return Work.of("elementwise", dtype, elements=elements, inputs=count, outputs=max(len(outputs), 1))
    if plain in REDUCTIONS and first is not None:
        return Work.of("elementwise", first.dtype, elements=first.numel, inputs=1, outputs=1)
    return None


def has_formula(base: str) -> bool:
    """Whether an operator's arithmetic is known by its name.

    Not of copies: whether ``contiguous`` copies at all, only what it is made of tells.
    """
    plain = base.removeprefix("_foreach_").removesuffix("_")
    moved = base in FILLS or base in GATHERS or base in SCATTERS
    return moved or base in _SPECIAL or plain in POINTWISE or plain in REDUCTIONS


def _gemm(left: str, right: str) -> Callable[[Inputs, Outputs], Work | None]:
    def work(inputs: Inputs, _outputs: Outputs) -> Work | None:
        a, b = tensor(inputs, left), tensor(inputs, right)
        if a.nnz is not None:  # sparse: each entry meets a row
            return counted(a.dtype, 2 * a.nnz * (b.shape[-1] if len(b.shape) > 1 else 1))
        if len(b.shape) == 1:
            return Work.of("gemm", a.dtype, m=math.prod(a.shape[:-1]), n=1, k=a.shape[-1])
        if len(a.shape) == 3:
            return Work.of("bmm", a.dtype, b=a.shape[0], m=a.shape[1], n=b.shape[-1], k=a.shape[2])
        return Work.of("gemm", a.dtype, m=a.shape[0], n=b.shape[-1], k=a.shape[-1])

    return work


def _linear(inputs: Inputs, _outputs: Outputs) -> Work | None:
    x, weight = tensor(inputs, "input", "self"), tensor(inputs, "weight")
    return Work.of("gemm", x.dtype, m=math.prod(x.shape[:-1]), n=weight.shape[0], k=x.shape[-1])


def _attention(inputs: Inputs, _outputs: Outputs = ()) -> Work:
    query, key = tensor(inputs, "query"), tensor(inputs, "key")
    batch, heads, q_len, head_dim = query.shape
    kv_heads, kv_len = key.shape[1], key.shape[2]
    causal = bool(inputs.get("is_causal", False))
    # One query sees every key, causal or not: it is the last of them.
    op = "attention_decode" if q_len == 1 else "attention_prefill"
    # torch aligns a causal mask to the first key: with fewer queries than keys only the corner is computed.
    return Work.of(
        op,
        query.dtype,
        kv_dtype=key.dtype if key.dtype != query.dtype else None,
        batch=batch,
        q_len=q_len,
        kv_len=q_len if causal and q_len > 1 else kv_len,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        causal=int(causal and q_len > 1),
    )


def _pair(value: object, dims: int) -> list[int]:
    found = (
        [int(v) for v in value]
        if isinstance(value, list | tuple)
        else [int(value)]
        if isinstance(value, int)
        else []
    )
    return found * dims if len(found) == 1 else found or [0] * dims


def _convolution(inputs: Inputs, outputs: Outputs) -> Work | None:
    x, weight, out = tensor(inputs, "input", "self"), tensor(inputs, "weight"), outputs[0]
    dims = len(weight.shape) - 2
    kernel, groups = weight.shape[2:], int(str(inputs.get("groups", 1)))
    stride, padding = _pair(inputs.get("stride", 1), dims), _pair(inputs.get("padding", 0), dims)
    dilation = _pair(inputs.get("dilation", 1), dims)
    transposed = bool(inputs.get("transposed", False))
    square = dims == 2 and len({*kernel}) == len({*stride}) == len({*padding}) == 1 and {*dilation} <= {0, 1}
    if square and not transposed:
        return Work.of(
            "conv2d", x.dtype, batch=x.shape[0], in_channels=x.shape[1], out_channels=weight.shape[0],
            height=x.shape[2], width=x.shape[3], kernel=kernel[0], stride=stride[0], padding=padding[0],
            groups=groups,
        )  # fmt: skip
    # Any other convolution as the product it is: of every output place with every tap of its group.
    if transposed:
        places = x.shape[0] * math.prod(x.shape[2:])
        n, k = weight.shape[1] * math.prod(kernel), x.shape[1] // groups
    else:
        places = out.shape[0] * math.prod(out.shape[2:])
        n, k = weight.shape[0] // groups, weight.shape[1] * math.prod(kernel)
    return Work.of("bmm", x.dtype, b=groups, m=places, n=n, k=k)


def _convolution_backward(inputs: Inputs, _outputs: Outputs) -> Work | None:
    grad, x, weight = tensor(inputs, "grad_output"), tensor(inputs, "input"), tensor(inputs, "weight")
    mask = inputs.get("output_mask")
    parts = sum(map(bool, mask[:2])) if isinstance(mask, list | tuple) else 2
    places = (x if inputs.get("transposed") else grad).shape
    one = 2 * places[0] * math.prod(places[2:]) * math.prod(weight.shape)
    return Work.of("other", x.dtype, flops=parts * one)


def _attention_backward(inputs: Inputs, _outputs: Outputs) -> Work | None:
    # Five products where the forward pass has two (Dao, "FlashAttention-2", 2023, §2.3).
    forward = formulas.flops(_attention(inputs))
    return (
        None if forward is None else Work.of("other", tensor(inputs, "query").dtype, flops=int(2.5 * forward))
    )


def _softmax(inputs: Inputs, _outputs: Outputs) -> Work | None:
    x = tensor(inputs, "self", "input")
    dim = inputs.get("dim", -1)
    cols = x.shape[dim] if x.shape and isinstance(dim, int) else 1
    return Work.of("softmax", x.dtype, rows=x.numel // cols if cols else 0, cols=cols)


def _norm(op: str) -> Callable[[Inputs, Outputs], Work | None]:
    def work(inputs: Inputs, _outputs: Outputs) -> Work | None:
        x, shape = tensor(inputs, "input", "self"), inputs.get("normalized_shape")
        cols = math.prod(int(n) for n in shape) if isinstance(shape, list | tuple) else x.shape[-1]
        return Work.of(op, x.dtype, rows=x.numel // cols if cols else 0, cols=cols)

    return work


def _channel_norm(inputs: Inputs, _outputs: Outputs) -> Work | None:
    x, groups = tensor(inputs, "input"), inputs.get("group")
    rows = x.shape[0] * groups if isinstance(groups, int) else x.shape[1] if len(x.shape) > 1 else 1
    return Work.of("layer_norm", x.dtype, rows=rows, cols=x.numel // rows if rows else 0)


def _embedding(inputs: Inputs, _outputs: Outputs) -> Work | None:
    weight, indices = tensor(inputs, "weight"), tensor(inputs, "indices")
    return Work.of("embedding", weight.dtype, rows=indices.numel, cols=weight.shape[-1])


_SPECIAL: dict[str, Callable[[Inputs, Outputs], Work | None]] = {
    "mm": _gemm("self", "mat2"),
    "bmm": _gemm("self", "mat2"),
    "_int_mm": _gemm("self", "mat2"),
    "_scaled_mm": _gemm("self", "mat2"),
    "mv": _gemm("self", "vec"),
    "addmv": _gemm("mat", "vec"),
    "dot": _gemm("self", "tensor"),
    "vdot": _gemm("self", "other"),
    "addmm": _gemm("mat1", "mat2"),
    "addmm_": _gemm("mat1", "mat2"),
    "_addmm_activation": _gemm("mat1", "mat2"),
    "baddbmm": _gemm("batch1", "batch2"),
    "baddbmm_": _gemm("batch1", "batch2"),
    "addbmm": _gemm("batch1", "batch2"),
    "linear": _linear,
    "mkldnn_linear": _linear,
    "_mkl_linear": _linear,
    "_linear_pointwise": _linear,
    "convolution": _convolution,
    "_convolution": _convolution,
    "mkldnn_convolution": _convolution,
    "cudnn_convolution": _convolution,
    "miopen_convolution": _convolution,
    "convolution_overrideable": _convolution,
    "_slow_conv2d_forward": _convolution,
    "convolution_backward": _convolution_backward,
    **dict.fromkeys(_SDPA, _attention),
    **{f"{name}_backward": _attention_backward for name in _SDPA},
    "_softmax": _softmax,
    "_log_softmax": _softmax,
    "_safe_softmax": _softmax,
    "softmax": _softmax,
    "native_layer_norm": _norm("layer_norm"),
    "layer_norm": _norm("layer_norm"),
    "rms_norm": _norm("rms_norm"),
    "_fused_rms_norm": _norm("rms_norm"),
    "native_group_norm": _channel_norm,
    "native_batch_norm": _channel_norm,
    "_native_batch_norm_legit": _channel_norm,
    "_native_batch_norm_legit_no_training": _channel_norm,
    "cudnn_batch_norm": _channel_norm,
    "miopen_batch_norm": _channel_norm,
    "embedding": _embedding,
    "embedding_bag": _embedding,
    "_embedding_bag": _embedding,
    "_embedding_bag_forward_only": _embedding,
    **KERNELS,
    **BACKWARD,
}
