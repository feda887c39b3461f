"""Tensors as operators see them, and operators by what they do to memory: names and shapes, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

#: Bytes of an index of a sparse tensor: torch's are int64.
INDEX_BYTES = 8


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor as an operator sees it.

    Attributes
    ----------
    shape, strides : tuple of int
        Strides in elements; left out: contiguous.
    dtype : str
        torch's name without ``torch.``.
    itemsize : int
        Bytes of one element.
    key : object
        Operands with one key are the same tensor; None is never the same as another one.
    nnz : int or None
        Entries of a sparse tensor; None is dense.

    Examples
    --------
    >>> Operand((4, 3), strides=(0, 1)).nbytes, Operand((4, 3)).nbytes
    (12, 48)
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    itemsize: int = 4
    strides: tuple[int, ...] | None = None
    key: object = None
    nnz: int | None = None

    @property
    def numel(self) -> int:
        """Elements as the operator counts them."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that lie in memory: a dimension of stride 0 repeats what is already there."""
        if self.nnz is not None:  # each entry with the places it is at
            return self.nnz * (self.itemsize + INDEX_BYTES * len(self.shape))
        if self.strides is None:
            return self.numel * self.itemsize
        sizes = (n for n, stride in zip(self.shape, self.strides, strict=True) if stride != 0 or n == 0)
        return math.prod(sizes) * self.itemsize


#: An operator's arguments by the names of its schema: operands, lists of them, plain values.
Inputs = Mapping[str, object]
Outputs = Sequence[Operand]


def operands(inputs: Inputs) -> Iterator[tuple[str, Operand]]:
    """Every operand among the arguments with the argument's name, lists item by item."""
    for argument, value in inputs.items():
        if isinstance(value, Operand):
            yield argument, value
        elif isinstance(value, list | tuple):
            for item in value:
                if isinstance(item, Operand):
                    yield argument, item


def tensor(inputs: Inputs, *names: str) -> Operand:
    """Give the first of these arguments that is a tensor.

    Raises
    ------
    KeyError
        If none is.
    """
    for name in names:
        value = inputs.get(name)
        if isinstance(value, Operand):
            return value
    raise KeyError(f"no tensor {' or '.join(names)}")


def names(text: str) -> frozenset[str]:
    """Names of operators, by blanks."""
    return frozenset(text.split())


#: Nothing is computed and nothing moves: another look at the same memory.
VIEWS = names("""
    view _unsafe_view _reshape_alias t transpose permute expand slice select unsqueeze squeeze split
    split_with_sizes chunk unbind as_strided alias detach narrow diagonal unfold view_as_real
    view_as_complex view_as lift_fresh movedim swapaxes real imag numpy_T conj _conj _neg_view expand_as
    unsafe_split unsafe_split_with_sizes unsafe_chunk
    squeeze_ unsqueeze_ t_ transpose_ swapaxes_ swapdims_ detach_ as_strided_
""")

#: Memory is asked for, and not touched.
EMPTIES = names("""
    empty empty_like empty_strided new_empty new_empty_strided resize_ set_
""")

#: These write and read nothing.
FILLS = names("""
    zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full arange linspace eye
    scalar_tensor fill fill_ zero zero_ tril_indices triu_indices
""")

#: So do these; what they compute, nobody counts.
RANDOM = names("""
    uniform_ normal_ bernoulli_ random_ exponential_ geometric_ log_normal_ cauchy_ randn rand randint
    randperm
""")

#: Data moves, nothing is computed.
COPIES = names("""
    clone copy_ copy _to_copy contiguous cat stack repeat roll flip constant_pad_nd slice_scatter
    select_scatter select_backward slice_backward expand_copy view_copy permute_copy as_strided_copy
    tril triu tril_ triu_ upsample_nearest1d upsample_nearest2d
    upsample_nearest3d _to_sparse _to_sparse_csr _to_dense to_sparse to_dense one_hot
    reflection_pad1d reflection_pad2d replication_pad2d pixel_shuffle
    pixel_unshuffle channel_shuffle im2col _copy_from _copy_from_and_resize _local_scalar_dense
""")

#: Likewise; these read as many elements of their first operand as they write.
GATHERS = names("""
    index index_select gather take _unsafe_index masked_select repeat_interleave take_along_dim
    _index_put_impl_
""")

#: Likewise; these write as many elements as this argument has, wherever they land.
SCATTERS = {
    **dict.fromkeys(names("index_put_ index_put _unsafe_index_put _index_put_impl_"), "values"),
    **dict.fromkeys(
        names("index_copy_ index_copy index_add_ index_add masked_scatter_ masked_scatter"), "source"
    ),
    **dict.fromkeys(names("scatter_ scatter scatter_add_ scatter_add scatter_reduce_ scatter_reduce"), "src"),
}

#: One operation an element.
POINTWISE = names("""
    add sub mul div rsub pow neg abs exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal sin cos
    tan tanh sigmoid silu gelu relu leaky_relu elu selu celu hardswish hardsigmoid hardtanh softplus
    mish erf erfc ceil floor round trunc frac sign clamp clamp_min clamp_max maximum minimum where
    masked_fill lerp addcmul addcdiv eq ne lt le gt ge logical_and logical_or logical_not logical_xor
    bitwise_and bitwise_or bitwise_not bitwise_xor isnan isinf isfinite fmod remainder floor_divide
    atan2 sgn square nan_to_num native_dropout isin threshold_backward gelu_backward silu_backward
    tanh_backward sigmoid_backward polar logit xlogy mse_loss l1_loss huber_loss bitwise_left_shift
    bitwise_right_shift _softmax_backward_data _log_softmax_backward_data nan_to_num_ glu
""")

#: One operation an element of what goes in.
REDUCTIONS = names("""
    sum mean amax amin max min argmax argmin any all prod norm linalg_vector_norm var std var_mean
    std_mean trace logsumexp cumsum cumprod nll_loss_forward count_nonzero aminmax equal avg_pool2d
    max_pool2d_with_indices _adaptive_avg_pool2d adaptive_max_pool2d avg_pool1d _foreach_norm
""")
