"""What holds an operator back, by the roofline of the device it ran on.

Three estimates: arithmetic at the FLOP/s that large products reach, bytes at the bandwidth out of cache,
calls at the time that an operator costs before it does anything. The largest of them names the bound,
however slow the kernel: one that reaches a tenth of its roof is still held back by the nearer roof.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from gimlet_lab.model import Device, ModuleInfo, Op, Quantity, Span
from gimlet_lab.model.phase import BOUNDS
from gimlet_lab.work.formulas import DTYPE_BYTES

Column = npt.NDArray[np.float64]

COMPUTE, BANDWIDTH, OVERHEAD, TRANSFER, WAIT, IDLE = range(len(BOUNDS))

#: Products of matrices, by the names of :mod:`gimlet_lab.work`: arithmetic where no roof is known.
_PRODUCTS = frozenset({"gemm", "bmm", "conv2d", "attention_prefill", "moe"})

#: The least that an operator's time counts, however little of it a roof explains.
LEAST_EVIDENCE = 0.01

#: Without a calibration: what a call costs at least. Python and torch's dispatcher take microseconds.
_LAUNCH_S = 2e-6


@dataclass(frozen=True, slots=True)
class Roofs:
    """What a device reaches, measured where it was, by the datasheet otherwise.

    Attributes
    ----------
    flops : mapping of dtype to float
    read_bytes_per_s, copy_bytes_per_s : float or None
    launch_s : float
    """

    flops: Mapping[str, float] = field(default_factory=dict)
    read_bytes_per_s: float | None = None
    copy_bytes_per_s: float | None = None
    launch_s: float = _LAUNCH_S

    @classmethod
    def of(cls, device: Device) -> Roofs:
        """Collect the roofs of a device."""
        flops = {**_values(device.peak_flops), **_values(device.achieved_flops)}
        read = device.achieved_bandwidth_bytes_per_s or device.bandwidth_bytes_per_s
        copy = device.copy_bandwidth_bytes_per_s or read
        launch = device.launch_s
        return cls(
            flops,
            read.value if read else None,
            copy.value if copy else None,
            launch.value if launch and launch.value > 0 else _LAUNCH_S,
        )

    @property
    def known(self) -> bool:
        """Whether there is any roof at all."""
        return bool(self.flops) or self.read_bytes_per_s is not None

    def compute_s(self, flops: float | None, dtype: str) -> float | None:
        """Seconds of so much arithmetic; a dtype nobody measured takes the slowest roof there is."""
        if flops is None or not self.flops:
            return None
        return flops / (self.flops.get(dtype) or self.flops.get("float32") or min(self.flops.values()))

    def memory_s(self, read: float | None, written: float | None) -> float | None:
        """Seconds of so many bytes; what writes as much as it reads is measured against a copy."""
        if read is None or written is None:
            return None
        rate = self.copy_bytes_per_s if written >= 0.5 * read else self.read_bytes_per_s
        return None if not rate else (read + written) / rate

    def judge(self, ops: Sequence[Op]) -> Judged:
        """What holds each of many rows of operators back, and how sure that is."""
        start_s, duration_s = _column(ops, "start_s"), _column(ops, "duration_s")
        flops, read, written = (_column(ops, name) for name in ("flops", "bytes_read", "bytes_written"))
        compute_s, memory_s = self._compute(ops, flops), self._memory(read, written)
        launch_s = self.launch_s * _column(ops, "count")
        away = _of(ops, "device", _is_away, bool)
        overlaps = np.fromiter(map(attrgetter("device_timed"), ops), dtype=bool, count=len(ops))
        timed = ~away | overlaps
        kinds = [None if op.work is None else op.work.op for op in ops]
        unknown = np.isnan(compute_s) & np.isnan(memory_s)
        compute_s, memory_s = np.nan_to_num(compute_s), np.nan_to_num(memory_s)
        seconds = np.where(timed, duration_s, np.maximum(duration_s, np.maximum(compute_s, memory_s)))
        explained_s = np.minimum(seconds, np.maximum(np.maximum(compute_s, memory_s), launch_s))
        # Faster than memory: its operands were in cache. Theirs is only the time that the others leave.
        left_s = np.maximum(0.0, duration_s - launch_s - compute_s)
        memory_s = np.where((memory_s > duration_s) & ~away, left_s, memory_s)
        largest = np.maximum(np.maximum(compute_s, memory_s), launch_s)
        bound = np.where(largest == launch_s, OVERHEAD, np.where(largest == compute_s, COMPUTE, BANDWIDTH))
        # Long, and nobody knows what it did: products compute, all others move.
        computes = np.array([kind is None or kind in _PRODUCTS for kind in kinds], dtype=bool)
        guess = np.where(duration_s < 10 * launch_s, OVERHEAD, np.where(computes, COMPUTE, BANDWIDTH))
        bound = np.where(unknown, guess, bound)
        bound = np.where(np.array([kind == "send" for kind in kinds], dtype=bool), TRANSFER, bound)
        with np.errstate(divide="ignore", invalid="ignore"):
            sure = np.where(seconds > 0, np.maximum(LEAST_EVIDENCE, explained_s / seconds), 1.0)
        return Judged(
            start_s, duration_s, flops, read + written, bound, seconds, explained_s, sure, timed, overlaps
        )

    def _compute(self, ops: Sequence[Op], flops: Column) -> Column:
        if not self.flops:
            return np.full(len(ops), math.nan)
        rate: Column = _of(ops, "dtype", lambda dtype: self.compute_s(1.0, dtype) or math.nan, np.float64)
        return flops * rate

    def _memory(self, read: Column, written: Column) -> Column:
        rates = (self.copy_bytes_per_s or math.nan, self.read_bytes_per_s or math.nan)
        return (read + written) / np.where(written >= 0.5 * read, *rates)

    def bound(self, op: Op) -> int:
        """What holds a row of equal operator calls back, as an index of :data:`BOUNDS`."""
        return int(self.judge([op]).bound[0])

    def explained_s(self, op: Op) -> float:
        """Seconds that the largest of the three estimates explains."""
        return float(self.judge([op]).explained_s[0])

    def bound_by_weights(self, span: Span, module: ModuleInfo | None) -> int:
        """Guess the bound of a module call nobody looked into: each weight is used once a token."""
        if module is None:
            return COMPUTE
        weights = float(sum(module.weights.values()))
        tokens = 1.0
        for size in (span.attributes.get("batch"), span.attributes.get("q_len")):
            tokens *= size if isinstance(size, int) else 1
        flops = 2.0 * weights / DTYPE_BYTES.get(module.dtype, 4.0) * tokens
        compute_s, memory_s = self.compute_s(flops, module.dtype), self.memory_s(weights, 0.0)
        return BANDWIDTH if (memory_s or 0.0) > (compute_s or 0.0) else COMPUTE


@dataclass(frozen=True, slots=True)
class Judged:
    """Rows of operators against the roofs, by column; what is unknown is not a number.

    Attributes
    ----------
    start_s, took_s, flops, moved : array
        As recorded; bytes read and written together.
    bound : array of int
        Indices of :data:`BOUNDS`.
    seconds : array
        How long each took: where the host only timed its launch on an accelerator, the roofs must say.
    explained_s : array
        Seconds that the largest of the three estimates explains.
    evidence : array
        How sure an operator's bound is: what its roof explains of its time.
    timed : array of bool
        Timed where it ran: not by a host that only saw its launch.
    overlaps : array of bool
        Timed by an accelerator's own events: its streams overlap.
    """

    start_s: Column
    took_s: Column
    flops: Column
    moved: Column

    bound: npt.NDArray[np.int64]
    seconds: Column
    explained_s: Column
    evidence: Column
    timed: npt.NDArray[np.bool_]
    overlaps: npt.NDArray[np.bool_]

    def of(self, rows: npt.NDArray[np.int64]) -> Judged:
        """Some of the rows."""
        return Judged(*(getattr(self, column.name)[rows] for column in fields(self)))


def _is_away(device: str) -> bool:
    """Whether what runs there runs beside the host, which goes on meanwhile."""
    return not device.startswith(("cpu", "meta"))


def _column(ops: Sequence[Op], name: str) -> Column:
    """A column of numbers; None is not a number."""
    return np.array(list(map(attrgetter(name), ops)), dtype=np.float64)


def _of(ops: Sequence[Op], name: str, value: Callable[[str], Any], dtype: type) -> npt.NDArray[Any]:
    """A value for each row that follows from a text of few values, each worked out once."""
    texts = list(map(attrgetter(name), ops))
    found = {text: value(text) for text in set(texts)}
    return np.array(list(map(found.__getitem__, texts)), dtype=dtype)


def _values(quantities: Mapping[str, Quantity]) -> dict[str, float]:
    return {dtype: quantity.value for dtype, quantity in quantities.items() if quantity.value > 0}
