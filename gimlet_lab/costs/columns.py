"""Many works as columns: what the model prices at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gimlet_lab.errors import UsageError
from gimlet_lab.model.work import Work
from gimlet_lab.work.formulas import DTYPE_BYTES

Array = NDArray[np.float64]

#: Dimensions of each op: those it needs, and those it may leave out with what they are then.
NEEDED: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "bmm": ("b", "m", "n", "k"),
    "attention_prefill": ("batch", "kv_len", "heads", "head_dim"),
    "attention_decode": ("batch", "kv_len", "heads", "head_dim"),
    "elementwise": ("elements",),
    "copy": (),
    "softmax": ("rows", "cols"),
    "layer_norm": ("rows", "cols"),
    "rms_norm": ("rows", "cols"),
    "embedding": ("rows", "cols"),
    "conv2d": ("batch", "in_channels", "out_channels", "height", "width", "kernel"),
    "moe": ("tokens", "hidden", "inter", "experts", "top_k"),
    "all_reduce": ("bytes",),
    "all_gather": ("bytes",),
    "send": ("bytes",),
}
#: -1: not said.
OPTIONAL: dict[str, dict[str, int]] = {
    "gemm": {"b": 1, "tf32": 0},
    "bmm": {"tf32": 0},
    "attention_prefill": {"q_len": 1, "kv_heads": -1, "window": 0, "causal": 1},
    "attention_decode": {"q_len": 1, "kv_heads": -1, "window": 0, "causal": 1},
    "elementwise": {"inputs": 1, "outputs": 1},
    "copy": {"elements": -1, "bytes": -1},
    "conv2d": {"stride": 1, "padding": 0, "groups": 1},
    "moe": {"tp": 1, "ep": 1},
    "all_reduce": {"devices": 2},
    "all_gather": {"devices": 2},
    "send": {"devices": 2},
}
_COUNTED = ("flops", "bytes_read", "bytes_written")


@dataclass(frozen=True)
class Group:
    """Works of one op and dtype: their places in the list, their dimensions and counts."""

    op: str
    dtype: str
    kv_dtype: str | None
    index: NDArray[np.int64]
    dims: Mapping[str, Array]
    count: Array


def groups(works: Iterable[Work | Mapping[str, Any]]) -> list[Group]:
    """Sort works by op and dtype and turn their dimensions into columns.

    Raises
    ------
    UsageError
        For a dimension that is missing, negative, or no integer.
    KeyError
        For an op that has no formula; :func:`gimlet_lab.costs.estimate` prices those one by one.
    """
    members: dict[tuple[str, str, str | None], list[tuple[int, Mapping[str, Any], int]]] = {}
    for place, work in enumerate(works):
        if isinstance(work, Work):
            key = (work.op, work.dtype, work.kv_dtype)
            one: tuple[int, Mapping[str, Any], int] = (place, dict(work.dims), work.count)
        else:
            key = (work["op"], work.get("dtype", "float32"), work.get("kv_dtype"))
            one = (place, work, work.get("count", 1))
        members.setdefault(key, []).append(one)
    return [_group(*key, found) for key, found in members.items()]


def element_bytes(dtype: str) -> float:
    """Bytes of an element; NaN for a dtype of unknown size."""
    return DTYPE_BYTES.get(dtype, np.nan)


def _group(
    op: str, dtype: str, kv_dtype: str | None, members: list[tuple[int, Mapping[str, Any], int]]
) -> Group:
    dims: dict[str, Array] = {}
    for name in NEEDED[op]:
        try:
            values: list[Any] = [one[name] for _, one, _ in members]
        except KeyError:
            raise UsageError(f"a {op} work needs {name!r}") from None
        dims[name] = _column(op, name, values)
    for name, default in (OPTIONAL.get(op, {}) | dict.fromkeys(_COUNTED, -1)).items():
        dims[name] = _column(op, name, [one.get(name, default) for _, one, _ in members], default)
    index = np.array([place for place, _, _ in members], dtype=np.int64)
    return Group(op, dtype, kv_dtype, index, dims, _column(op, "count", [count for _, _, count in members]))


def _column(op: str, name: str, values: list[Any], default: int = 0) -> Array:
    found = np.array(values)
    if found.dtype.kind not in "iub":
        wrong = next(value for value in values if not isinstance(value, int))
        raise UsageError(f"work {op!r}: {name} must be an integer, not {wrong!r}")
    if (found < min(default, 0)).any():
        raise UsageError(f"a {op} work has a negative dimension: {name}={found.min()}")
    return found.astype(np.float64)
