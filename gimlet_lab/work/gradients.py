"""Backward passes and optimizer steps as arithmetic."""

from __future__ import annotations

from gimlet_lab.model.work import Work
from gimlet_lab.work.kernels import Formula, counted
from gimlet_lab.work.operand import Inputs, Operand, Outputs, names, operands, tensor


def _each(flops: int, *names: str) -> Formula:
    """So many operations an element of this operand."""

    def work(inputs: Inputs, _outputs: Outputs) -> Work | None:
        x = tensor(inputs, *names)
        return counted(x.dtype, flops * x.numel)

    return work


def _embedding(inputs: Inputs, _outputs: Outputs) -> Work | None:
    # Every row of the gradient is added to the row of the table that it came from.
    grad = tensor(inputs, "grad_output", "grad")
    return counted(grad.dtype, grad.numel)


def _embedding_bag(inputs: Inputs, _outputs: Outputs) -> Work | None:
    grad, indices = tensor(inputs, "grad"), tensor(inputs, "indices")
    return counted(grad.dtype, indices.numel * grad.shape[-1])


def _upsample(inputs: Inputs, outputs: Outputs) -> Work | None:
    grad = tensor(inputs, "grad_output")
    return counted(grad.dtype, max([grad.numel, *(out.numel for out in outputs)]))


#: Backward passes. Of a normalisation, the input's gradient takes ten operations an element (the normalised
#: value again, two products, two means, two differences, the scale) and those of weight and bias three.
BACKWARD: dict[str, Formula] = {
    "embedding_dense_backward": _embedding,
    "embedding_backward": _embedding,
    "_embedding_bag_backward": _embedding_bag,
    "_embedding_bag_dense_backward": _embedding_bag,
    **dict.fromkeys(
        names("""
        native_layer_norm_backward native_group_norm_backward native_batch_norm_backward
        cudnn_batch_norm_backward miopen_batch_norm_backward batch_norm_backward
        """),
        _each(13, "grad_out", "grad_output"),
    ),
    "_fused_rms_norm_backward": _each(9, "grad_out"),
    **dict.fromkeys(
        names("""
        max_pool2d_with_indices_backward max_pool3d_with_indices_backward
        max_pool2d_backward adaptive_max_pool2d_backward nll_loss_backward
        nll_loss2d_backward
        """),
        _each(1, "grad_output"),
    ),
    **dict.fromkeys(
        names("""
        avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d_backward
        upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward
        """), _upsample
    ),
    "upsample_linear1d_backward": _each(4, "grad_output"),
    "upsample_bilinear2d_backward": _each(8, "grad_output"),
    "upsample_bicubic2d_backward": _each(32, "grad_output"),
    "grid_sampler_2d_backward": _each(16, "grad_output"),
    "_thnn_fused_lstm_cell_backward_impl": _each(16, "grad_hy", "grad_cy"),
    "_cdist_backward": _each(4, "x1"),
}  # fmt: skip

#: One step of a fused optimizer, an element: without weight decay, and what that adds.
_FUSED = {
    # Two running means (3 and 4 operations), a root, a division, a sum, a scale and the step (2).
    "_fused_adam_": 13,
    "_fused_adamw_": 13,
    "_fused_adagrad_": 6,
    "_fused_sgd_": 2,
}


def fused_step(base: str, inputs: Inputs) -> Work | None:
    """One step of a fused optimizer over all its parameters."""
    parameters = [item for item in _list(inputs.get("self")) if isinstance(item, Operand)]
    each = _FUSED.get(base)
    if each is None or not parameters:
        return None
    each += 2 * bool(inputs.get("weight_decay")) + 2 * bool(inputs.get("momentum"))
    return counted(parameters[0].dtype, each * sum(item.numel for item in parameters))


def foreach(plain: str, inputs: Inputs) -> Work | None:
    """One elementwise operation on every tensor of a list."""
    items = [item for item in _list(inputs.get("self")) if isinstance(item, Operand)]
    if not items:
        return None
    # Products that are added take two.
    flops = 2 if plain.startswith(("addc", "lerp")) else 0 if plain in ("copy", "zero") else 1
    return counted(items[0].dtype, flops * sum(item.numel for item in items))


def written_in_place(inputs: Inputs, mutated: frozenset[str]) -> float:
    """Bytes of all operands that an operator without results writes."""
    # A fused step may scale gradients in place, and only says so to be safe.
    written = mutated - {"grads"}
    return float(sum(operand.nbytes for name, operand in operands(inputs) if name in written))


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []
