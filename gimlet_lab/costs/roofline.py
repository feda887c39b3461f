"""The roofline: what a work takes on a processor, or on a chip that nobody knows better.

``max(flops / rate, bytes / bandwidth) + launch``. A rate is a share of what the device is known to reach:

* 0.75 of the datasheet's dense FLOP/s, 0.86 of a published or measured best GEMM (the best shape is about
  0.87 of the datasheet on the cards this was fitted on: the two agree);
* 0.8 of the datasheet's bandwidth, all of a measured one (for GEMMs that of a measured one-row GEMM);
* a dtype that the device lacks runs at the rate of the one that torch would compute it in.

The three constants (with a launch of 5 µs) are fitted on the 27,144 linear layers that Vidur measured on an
A100 SXM and an A40 (fp16): mean error 10.7% and 9.6%. On 119,847 GEMMs of arbitrary shapes that NeuSight
measured in fp32 on P4, P100, V100, T4 and A100 PCIe the mean error is 31% (median 28%; 25% if fitted to
them; each card's floor taken as the launch), on their vector operators 13–19%. Those shapes leave 90% of
residuals between 0.9 and 3.4 times the estimate, the linear layers between 0.93 and 1.44; :data:`LOW` and
:data:`HIGH` hold 90% of both together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gimlet_lab.errors import UnknownNameError, UsageError
from gimlet_lab.model.device import Device, Quantity
from gimlet_lab.model.work import Work
from gimlet_lab.work import formulas

#: Share of the datasheet's dense FLOP/s that usual GEMMs reach.
COMPUTE_EFFICIENCY = 0.75

#: Share of the best GEMM's FLOP/s that usual ones reach.
SHARE_OF_BEST = 0.86

#: Share of the datasheet's bandwidth that is reached; also aiconfigurator's
#: ``mem_bw_empirical_scaling_factor``.
BANDWIDTH_EFFICIENCY = 0.8

#: Cost of one operator on an accelerator whose own figure nobody measured.
LAUNCH = Quantity(
    5e-6, "fitted on Vidur's linear layers (A100 SXM, A40), rounded to 5 µs", "2026-11-24", "derived"
)

#: Bounds of the 90% interval as multiples of the estimate, for one operator.
LOW, HIGH = 0.75, 2.6

#: What a dtype falls back to, in order: torch computes in the first that the device has.
_FALLBACKS = {
    "bfloat16": ("float32",),
    "float16": ("float32",),
    "float8": ("bfloat16", "float16", "float32"),
    "float4": ("float8", "bfloat16", "float16", "float32"),
    "int8": ("bfloat16", "float16", "float32"),
    "int4": ("int8", "bfloat16", "float16", "float32"),
    "tf32": ("float32",),
}

#: Interval of a dtype that falls back: conversions cost what the formula does not count.
FALLBACK_HIGH = 1.5

#: Ops that run on the matrix units; the others are limited by bytes and run at the rate of float32 at best.
_MATRIX = frozenset({"gemm", "bmm", "attention_prefill", "attention_decode", "conv2d", "moe", "other"})

#: Ops between devices: a device alone does not say how fast its peers are reached.
_COLLECTIVE = frozenset({"all_reduce", "all_gather", "send"})


def terms(
    works: list[Work], device: Device
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Seconds, index of the bound and widening of the interval for each work.

    The index is that of :data:`gimlet_lab.model.phase.BOUNDS`: compute, bandwidth or overhead.
    NaN where it cannot be priced: nothing known of the work, or the device lacks the rate it needs.
    """
    count = np.array([work.count for work in works], dtype=np.float64)
    flops = _array(formulas.flops(work) for work in works)
    moved = _array(formulas.bytes_read(work) for work in works) + _array(
        formulas.bytes_written(work) for work in works
    )
    rates = [_rate_of(work, device) for work in works]
    rate = np.array([np.nan if found is None else found[0] for found in rates])
    widened = np.array([FALLBACK_HIGH if found is not None and found[1] else 1.0 for found in rates])
    bytes_per_s = np.array([_bytes_per_s_of(work, device) for work in works])
    with np.errstate(invalid="ignore", divide="ignore"):
        compute = np.where(flops == 0, 0.0, flops / rate)
        memory = np.where(moved == 0, 0.0, moved / bytes_per_s)
    # Elementwise work is limited by its bytes: not to know a rate for its few FLOPs is no matter.
    vector = np.array([work.op not in _MATRIX for work in works])
    compute = np.where(vector & np.isnan(compute), 0.0, compute)
    # Where somebody counted only one of the two, that one is all there is to go by: a lower bound.
    counted = np.array([work.op == "other" for work in works])
    half = counted & (np.isnan(flops) ^ np.isnan(moved))
    widened = np.where(half, 2 * widened, widened)
    compute = np.where(half & np.isnan(flops), 0.0, compute)
    memory = np.where(half & np.isnan(moved), 0.0, memory)
    overhead = count * launch_s(device)
    apart = np.array([work.op in _COLLECTIVE for work in works])
    body = np.where(apart, np.nan, np.maximum(compute, memory))
    bound = np.where(compute >= memory, 0, 1)
    bound = np.where(overhead > body, 2, bound)
    return body + overhead, bound, widened


def flops_per_s(device: Device, dtype: str) -> tuple[float, bool] | None:
    """The rate of usual GEMMs of a dtype on a device, and whether it is another dtype's.

    None where the device has no figure for the dtype, nor for one that torch would compute it in.

    Examples
    --------
    >>> from gimlet_lab.hardware import catalogue
    >>> flops_per_s(catalogue.find("t4"), "bfloat16")  # Turing has none: float32
    (6105750000000.0, True)
    """
    for index, name in enumerate(families(dtype)):
        achieved = figure(device.achieved_flops, name)
        if achieved is not None:
            return achieved * SHARE_OF_BEST, index > 0
        peak = figure(device.peak_flops, name)
        if peak is not None:
            return peak * COMPUTE_EFFICIENCY, index > 0
    return None


def datasheet(device: Device, dtype: str) -> tuple[float, str, bool] | None:
    """The peak of a dtype, the dtype it is the peak of, and whether that is another one; None without any."""
    for index, name in enumerate(families(dtype)):
        peak = figure(device.peak_flops, name)
        if peak is not None:
            return peak, name, index > 0
    return None


def families(dtype: str) -> tuple[str, ...]:
    """The dtypes that torch would compute a dtype in, the first it finds; its own first.

    Examples
    --------
    >>> families("float8_e5m2")
    ('float8', 'bfloat16', 'float16', 'float32')
    """
    return (_family(dtype), *_FALLBACKS.get(_family(dtype), ()))


def bandwidth(device: Device) -> float | None:
    """Bytes per second that usual operators reach: the measured figure, or a share of the datasheet's."""
    if device.achieved_bandwidth_bytes_per_s is not None:
        return device.achieved_bandwidth_bytes_per_s.value
    if device.bandwidth_bytes_per_s is not None:
        return device.bandwidth_bytes_per_s.value * BANDWIDTH_EFFICIENCY
    return None


def launch_s(device: Device) -> float:
    """Seconds that one operator costs before it does anything."""
    return device.launch_s.value if device.launch_s else LAUNCH.value


def as_work(work: Work | Mapping[str, Any]) -> Work:
    """Read and check a work.

    Raises
    ------
    UnknownNameError
        For an op that does not exist.
    UsageError
        For a missing, negative or wrong dimension.
    """
    try:
        found = work if isinstance(work, Work) else Work.from_json(work)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if found.op != "other" and found.op not in formulas.OPS:
        raise UnknownNameError("op", found.op, [*formulas.OPS, "other"])
    if found.count < 0 or any(value < 0 for _, value in found.dims):
        raise UsageError(f"a {found.op} work has a negative dimension: {found.to_json()}")
    try:
        formulas.flops(found), formulas.bytes_read(found), formulas.bytes_written(found)
    except KeyError as error:
        raise UsageError(str(error.args[0])) from None
    except ZeroDivisionError:
        raise UsageError(f"a {found.op} work divides by a dimension that is 0: {found.to_json()}") from None
    return found


def _rate_of(work: Work, device: Device) -> tuple[float, bool] | None:
    if work.op not in _MATRIX:
        return flops_per_s(device, "float32")
    tf32 = work.dtype == "float32" and bool(work.get("tf32", 0))
    return flops_per_s(device, "tf32" if tf32 else work.dtype)


def _bytes_per_s_of(work: Work, device: Device) -> float:
    """The rate a work's bytes move at; NaN where the device has none.

    A GEMM reads its weights slower than the memory could give them, by as much as one of a single row does
    where that was measured; with many rows its FLOPs take longer anyway.
    """
    if work.op == "gemm" and work.dtype in device.gemv_bytes_per_s:
        return device.gemv_bytes_per_s[work.dtype].value
    known = bandwidth(device)
    return np.nan if known is None else known


def _family(dtype: str) -> str:
    """Fold the variants of small floats, which run at one rate: float8_e4m3fn, float8_e5m2, …."""
    for family in ("float8", "float4", "int4", "int8"):
        if dtype.startswith((family, f"u{family}", f"q{family}", f"qu{family}")):
            return family
    return dtype


def figure(figures: Mapping[str, Quantity], family: str) -> float | None:
    """The largest figure among the dtypes of a family."""
    found = [quantity.value for dtype, quantity in figures.items() if _family(dtype) == family]
    return max(found) if found else None


def _array(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
