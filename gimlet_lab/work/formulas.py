"""FLOPs and bytes of every kind of work: pure arithmetic on shapes.

Three rules hold everywhere:

* A multiplication and an addition are two FLOPs.
* Bytes are the least that must move between memory and the cores: each operand is read once, each result is
  written once. What a cache or a bad kernel makes of that is the cost model's matter.
* A dimension named ``flops``, ``bytes_read`` or ``bytes_written`` is what somebody counted for one call and
  goes before the formula: capture writes it where it saw broadcast operands, views or an operator of its own.

All functions take a :class:`~gimlet_lab.model.work.Work` and answer for all its ``count`` calls together.
Unknown is None.
"""

from __future__ import annotations

from collections.abc import Callable

from gimlet_lab.model.work import Work

#: Bytes of one element, by torch's dtype name.
DTYPE_BYTES: dict[str, float] = {
    "float64": 8.0,
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "float8_e4m3fn": 1.0,
    "float8_e4m3fnuz": 1.0,
    "float8_e5m2": 1.0,
    "float8_e5m2fnuz": 1.0,
    "float8_e8m0fnu": 1.0,
    # torch packs two 4-bit floats into one element of this dtype; a work counts the floats.
    "float4_e2m1fn_x2": 0.5,
    "complex32": 4.0,
    "complex64": 8.0,
    "complex128": 16.0,
    "int64": 8.0,
    "int32": 4.0,
    "int16": 2.0,
    "int8": 1.0,
    "int4": 0.5,
    "uint64": 8.0,
    "uint32": 4.0,
    "uint16": 2.0,
    "uint8": 1.0,
    "uint4": 0.5,
    "bool": 1.0,
    "qint8": 1.0,
    "quint8": 1.0,
}

#: Bytes of an index into a table: torch's embedding takes int64.
INDEX_BYTES = 8.0

#: The kinds of work that have a formula.
OPS: frozenset[str]


def flops(work: Work) -> float | None:
    """Floating-point (or integer) operations of all calls of a work.

    ============================  =====================================================================
    op                            FLOPs of one call
    ============================  =====================================================================
    gemm                          2·m·n·k
    bmm                           2·b·m·n·k
    attention_prefill, _decode    4·batch·heads·head_dim·(pairs of a query and a key it sees)
    elementwise                   elements·outputs (an ``exp`` counts one, as an addition does)
    softmax                       5·rows·cols (maximum, difference, exponential, sum, quotient)
    layer_norm                    7·rows·cols (mean, difference, square, sum, scale, weight, bias)
    rms_norm                      4·rows·cols (square, sum, scale, weight)
    embedding, copy               0
    conv2d                        2·batch·out_channels·out_height·out_width·(in_channels/groups)·kernel²
    moe                           6·tokens·top_k·hidden·inter / (tp·ep)   (gated: up, gate and down)
    all_reduce                    elements·(devices−1)/devices (ring, one device's part)
    all_gather, send              0
    ============================  =====================================================================

    The matrix products are as of Narayanan et al., "Efficient Large-Scale Language Model Training on GPU
    Clusters", 2021, appendix A; attention counts its two products only, as of Dao, "FlashAttention-2", 2023,
    §4.1, but the causal pairs exactly (:func:`attention_pairs`). A mixture's router is a ``gemm`` of its own.

    Returns
    -------
    float or None
        None for an op without a formula (``other``) that has no ``flops`` dimension.

    Examples
    --------
    >>> flops(Work.of("gemm", m=1, n=4096, k=4096, count=3))
    100663296.0
    >>> flops(Work.of("other")) is None
    True
    """
    return _of(work, "flops", _FLOPS)


def bytes_read(work: Work) -> float | None:
    """Bytes that all calls of a work must read.

    Each operand once: both matrices of a product; queries, and keys and values of ``kv_heads`` heads in
    ``kv_dtype`` for as many positions as any query sees; the gathered rows of an embedding with their
    indices; the weights of the experts that some token is expected to reach (:func:`experts_reached`). For
    a collective: what one device sends by the ring algorithm (NCCL's "bus" bytes: all_reduce
    2·(devices−1)/devices of ``bytes``, all_gather (devices−1)/devices of the gathered ``bytes``, send all).

    Returns
    -------
    float or None
        None where the op has no formula or the dtype's size is unknown.

    Examples
    --------
    >>> shape = dict(batch=1, q_len=1, kv_len=1000, heads=32, kv_heads=8, head_dim=128)
    >>> bytes_read(Work.of("attention_decode", "bfloat16", **shape))
    4104192.0
    """
    return _of(work, "bytes_read", _READ)


def bytes_written(work: Work) -> float | None:
    """Bytes that all calls of a work must write: each result once.

    For a collective: what one device receives.

    Examples
    --------
    >>> bytes_written(Work.of("gemm", "bfloat16", m=2, n=4096, k=64))
    16384.0
    """
    return _of(work, "bytes_written", _WRITTEN)


def intensity(work: Work) -> float | None:
    """Arithmetic intensity in FLOP per byte read or written.

    Returns
    -------
    float or None
        None where either is unknown or nothing moves.
    """
    done, read, written = flops(work), bytes_read(work), bytes_written(work)
    if done is None or read is None or written is None or read + written == 0:
        return None
    return done / (read + written)


def attention_pairs(q_len: int, kv_len: int, window: int = 0, causal: bool = True) -> float:
    """Pairs of a query and a key it attends to, per head and sequence.

    The queries are the last ``q_len`` of ``kv_len`` positions. Query i (from 1) sees ``past + i`` keys where
    ``past = kv_len − q_len``, so prefill sees ``past + (q_len + 1)/2`` on average; a window above 0 cuts
    what one query sees to that many keys. Without ``causal`` every query sees every key.

    Examples
    --------
    >>> attention_pairs(4, 4), attention_pairs(1, 100), attention_pairs(4, 4, causal=False)
    (10.0, 100.0, 16.0)
    >>> attention_pairs(4, 4, window=2)
    7.0
    """
    limit = window if window > 0 else max(kv_len, 1)
    if not causal:
        return float(q_len * min(kv_len, limit))

    def below(position: int) -> float:  # Σ min(i, limit) for i in 1…position
        if position <= 0:
            return 0.0
        ramp = min(position, limit)
        return ramp * (ramp + 1) / 2 + (position - ramp) * limit

    return below(kv_len) - below(kv_len - q_len)


def keys_touched(q_len: int, kv_len: int, window: int = 0) -> int:
    """Positions of the KV cache that at least one query sees."""
    return kv_len if window <= 0 else min(kv_len, window + q_len - 1)


def experts_reached(tokens: float, experts: int, top_k: int) -> float:
    """Give the mean number of experts some token is routed to, when each draws ``top_k`` evenly at random.

    ``experts·(1 − (1 − top_k/experts)^tokens)``: the mean of a union of independent draws.

    Examples
    --------
    >>> experts_reached(1, 8, 2), round(experts_reached(1000, 8, 2))
    (2.0, 8)
    """
    return float(experts * (1.0 - (1.0 - top_k / experts) ** tokens))


def _of(work: Work, what: str, formulas: dict[str, Callable[[Work], float | None]]) -> float | None:
    counted = work.get(what, -1)
    if counted >= 0:
        return float(counted * work.count)
    formula = formulas.get(work.op)
    one = formula(work) if formula else None
    return None if one is None else float(one * work.count)


def _sized(elements: Callable[[Work], float]) -> Callable[[Work], float | None]:
    """Turn a number of elements into bytes of the work's dtype; None for a dtype of unknown size."""

    def formula(work: Work) -> float | None:
        size = DTYPE_BYTES.get(work.dtype)
        return None if size is None else elements(work) * size

    return formula


def _mnk(work: Work) -> tuple[int, int, int]:
    return work["m"], work["n"], work["k"]


def _gemm_flops(work: Work) -> float:
    m, n, k = _mnk(work)
    return 2.0 * m * n * k * (work["b"] if work.op == "bmm" else 1)


def _gemm_read(work: Work) -> float:
    m, n, k = _mnk(work)
    return (m * k + k * n) * (work["b"] if work.op == "bmm" else 1)


def _gemm_written(work: Work) -> float:
    m, n, _ = _mnk(work)
    return m * n * (work["b"] if work.op == "bmm" else 1)


def _attention_flops(work: Work) -> float:
    pairs = attention_pairs(
        work.get("q_len", 1), work["kv_len"], work.get("window", 0), bool(work.get("causal", 1))
    )
    return 4.0 * work["batch"] * work["heads"] * work["head_dim"] * pairs


def _attention_read(work: Work) -> float | None:
    size = DTYPE_BYTES.get(work.dtype)
    kv_size = DTYPE_BYTES.get(work.kv_dtype or work.dtype)
    if size is None or kv_size is None:
        return None
    q_len, heads = work.get("q_len", 1), work["heads"]
    kept = work.get("kv_heads", heads) * keys_touched(q_len, work["kv_len"], work.get("window", 0))
    return work["batch"] * work["head_dim"] * (q_len * heads * size + 2 * kept * kv_size)


def _attention_written(work: Work) -> float:
    return work["batch"] * work.get("q_len", 1) * work["heads"] * work["head_dim"]


def _grid(work: Work) -> int:
    return work["rows"] * work["cols"]


def _copied(work: Work) -> float | None:
    """Give the bytes of a copy: from its ``elements``, or as said by ``bytes`` where only those are known."""
    said = work.get("bytes", -1)
    if said >= 0:
        return float(said)
    size = DTYPE_BYTES.get(work.dtype)
    return None if size is None else work["elements"] * size


def _conv_out(work: Work) -> int:
    """Output positions of one image, square kernel, no dilation."""
    kernel, stride, padding = work["kernel"], work.get("stride", 1), work.get("padding", 0)
    height = (work["height"] + 2 * padding - kernel) // stride + 1
    width = (work["width"] + 2 * padding - kernel) // stride + 1
    return max(height, 0) * max(width, 0)


def _conv_taps(work: Work) -> float:
    return work["in_channels"] / work.get("groups", 1) * work["kernel"] ** 2


def _conv_flops(work: Work) -> float:
    return 2.0 * work["batch"] * work["out_channels"] * _conv_out(work) * _conv_taps(work)


def _conv_read(work: Work) -> float:
    image = work["batch"] * work["in_channels"] * work["height"] * work["width"]
    return image + work["out_channels"] * _conv_taps(work)


def _conv_written(work: Work) -> float:
    return work["batch"] * work["out_channels"] * _conv_out(work)


def _routed(work: Work) -> float:
    """Rows one device works on: its share of tokens × experts per token."""
    return work["tokens"] * work["top_k"] / work.get("ep", 1)


def _moe_flops(work: Work) -> float:
    return 6.0 * _routed(work) * work["hidden"] * work["inter"] / work.get("tp", 1)


def _moe_read(work: Work) -> float:
    reached = experts_reached(work["tokens"], work["experts"], work["top_k"]) / work.get("ep", 1)
    weights = 3.0 * reached * work["hidden"] * work["inter"] / work.get("tp", 1)
    return weights + _routed(work) * work["hidden"]


def _moe_written(work: Work) -> float:
    return _routed(work) * work["hidden"]


def _others(work: Work) -> float:
    """Give the part of a ring that is not one's own: (devices − 1)/devices."""
    devices = work.get("devices", 2)
    return (devices - 1) / devices if devices > 0 else 0.0


def _reduce_flops(work: Work) -> float | None:
    size = DTYPE_BYTES.get(work.dtype)
    return None if size is None else work["bytes"] / size * _others(work)


def _nothing(_work: Work) -> float:
    return 0.0


_FLOPS: dict[str, Callable[[Work], float | None]] = {
    "gemm": _gemm_flops,
    "bmm": _gemm_flops,
    "attention_prefill": _attention_flops,
    "attention_decode": _attention_flops,
    "elementwise": lambda work: work["elements"] * work.get("outputs", 1),
    "softmax": lambda work: 5.0 * _grid(work),
    "layer_norm": lambda work: 7.0 * _grid(work),
    "rms_norm": lambda work: 4.0 * _grid(work),
    "embedding": _nothing,
    "copy": _nothing,
    "conv2d": _conv_flops,
    "moe": _moe_flops,
    "all_reduce": _reduce_flops,
    "all_gather": _nothing,
    "send": _nothing,
}

_COLLECTIVES: dict[str, Callable[[Work], float | None]] = {
    "all_reduce": lambda work: 2.0 * work["bytes"] * _others(work),
    "all_gather": lambda work: work["bytes"] * _others(work),
    "send": lambda work: float(work["bytes"]),
}


def _embedding_read(work: Work) -> float | None:
    size = DTYPE_BYTES.get(work.dtype)
    return None if size is None else _grid(work) * size + work["rows"] * INDEX_BYTES


_READ: dict[str, Callable[[Work], float | None]] = {
    "gemm": _sized(_gemm_read),
    "bmm": _sized(_gemm_read),
    "attention_prefill": _attention_read,
    "attention_decode": _attention_read,
    "elementwise": _sized(lambda work: work["elements"] * work.get("inputs", 1)),
    "softmax": _sized(_grid),
    "layer_norm": _sized(lambda work: _grid(work) + 2 * work["cols"]),
    "rms_norm": _sized(lambda work: _grid(work) + work["cols"]),
    "embedding": _embedding_read,
    "copy": _copied,
    "conv2d": _sized(_conv_read),
    "moe": _sized(_moe_read),
    **_COLLECTIVES,
}

_WRITTEN: dict[str, Callable[[Work], float | None]] = {
    "gemm": _sized(_gemm_written),
    "bmm": _sized(_gemm_written),
    "attention_prefill": _sized(_attention_written),
    "attention_decode": _sized(_attention_written),
    "elementwise": _sized(lambda work: work["elements"] * work.get("outputs", 1)),
    "softmax": _sized(_grid),
    "layer_norm": _sized(_grid),
    "rms_norm": _sized(_grid),
    "embedding": _sized(_grid),
    "copy": _copied,
    "conv2d": _sized(_conv_written),
    "moe": _sized(_moe_written),
    **_COLLECTIVES,
}

OPS = frozenset(_FLOPS)
