"""What cannot be in a profile: sparse figures taken for dense ones, wrong units, more reached than there is.

Each rule is a ratio that physics, an architecture or a memory standard fixes; a finding says key and reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gimlet_lab.model.device import Device, Quantity

#: Lowest and highest value one can believe, and the unit it is in.
_RANGES = {
    "vector_flops": (1e12, 3e14, "FLOP/s"),
    "memory_bytes": (8e9, 2e12, "bytes"),
    "spec_memory_bytes": (8e9, 2e12, "bytes"),
    "bandwidth_bytes_per_s": (5e10, 2e13, "bytes per second"),
    "achieved_bandwidth_bytes_per_s": (5e9, 2e13, "bytes per second"),
    "copy_bandwidth_bytes_per_s": (5e9, 2e13, "bytes per second"),
    "link_bytes_per_s": (5e9, 1e12, "bytes per second"),
    "pair_bytes_per_s": (5e9, 2e12, "bytes per second"),
    "all_to_all_bytes_per_s": (5e9, 2e12, "bytes per second"),
    "network_bytes_per_s": (1e9, 4e11, "bytes per second"),
    "scale_up_devices": (2, 1e4, "devices"),
    "compute_units": (1, 1024, "SMs, CUs or cores"),
    "clock_hz": (5e8, 6e9, "Hz"),
    "l2_bytes": (1e6, 1e9, "bytes"),
    "l3_bytes": (1e6, 2e9, "bytes"),
    "launch_s": (1e-7, 1e-4, "seconds"),
    "idle_w": (1, 500, "watts"),
    "max_w": (15, 2000, "watts"),
}
_FLOPS = (1e12, 2e16)

#: Dense 16-bit FLOP in a cycle of one compute unit. Half of what sparsity promises.
_PER_CYCLE = {
    "Volta": 1024,
    "Turing": 1024,
    "Ampere": 2048,
    "Ada Lovelace": 1024,
    "Hopper": 4096,
    "Blackwell": 8192,
    "Blackwell Ultra": 8192,
    "CDNA 1": 1024,
    "CDNA 2": 1024,
    "CDNA 3": 2048,
    "CDNA 4": 4096,
    "Gaudi 2": 131072,
    "Gaudi 3": 131072,
}

#: At most so many times the dense 16-bit rate. int8 and FP4 are twice as many times one that 32-bit sums
#: halve; Blackwell Ultra gave other units up for FP4.
_LADDER = {"tf32": 0.55, "float8": 2.1, "int8": 4.1, "float4": 8.1}

#: Bandwidths that a memory of this kind gives one device.
_MEMORY = {
    "GDDR5": (8e10, 5e11),
    "GDDR6": (2e11, 1e12),
    "GDDR6X": (4e11, 1.2e12),
    "GDDR7": (4e11, 2e12),
    "HBM2": (5e11, 1.8e12),
    "HBM2e": (1.2e12, 4e12),
    "HBM3": (2e12, 6e12),
    "HBM3e": (3e12, 1e13),
    "LPDDR4X": (5e10, 1e11),
    "LPDDR5": (5e10, 9e11),
    "LPDDR5X": (1e11, 9e11),
}

_DTYPES = frozenset(
    {
        *("float64", "float32", "tf32", "float16", "bfloat16", "int8", "int4"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float4_e2m1fn_x2"),
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one key of a device."""

    key: str
    reason: str


def findings(device: Device) -> list[Finding]:
    """All that cannot be about a device; empty where nothing speaks against it.

    Examples
    --------
    >>> slow = Device("x", "X", "V", "gpu", clock_hz=Quantity(1980, "datasheet", "2026", "vendor"))
    >>> findings(slow)[0].reason
    '1980 is not in Hz: between 5e+08 and 6e+09'
    """
    rules = (_units, _dtypes, _sparse, _ladder, _per_cycle, _reached, _memory, _balance, _links, _power)
    return [finding for rule in rules for finding in rule(device)]


def _units(device: Device) -> Iterator[Finding]:
    for key, (low, high, unit) in _RANGES.items():
        quantity = getattr(device, key)
        if quantity is not None and not low <= quantity.value <= high:
            yield Finding(key, f"{quantity.value:g} is not in {unit}: between {low:g} and {high:g}")


def _dtypes(device: Device) -> Iterator[Finding]:
    low, high = _FLOPS
    for key in ("peak_flops", "half_sum_flops", "sparse_flops", "achieved_flops"):
        for dtype, quantity in getattr(device, key).items():
            if dtype not in _DTYPES:
                yield Finding(f"{key}.{dtype}", f"no such dtype: one of {', '.join(sorted(_DTYPES))}")
            if not low <= quantity.value <= high:
                yield Finding(f"{key}.{dtype}", f"{quantity.value:g} is not in FLOP/s")


def _sparse(device: Device) -> Iterator[Finding]:
    for dtype, quantity in device.sparse_flops.items():
        dense = device.peak_flops.get(dtype)
        if dense and not 1.1 <= quantity.value / dense.value <= 2.1:
            ratio = quantity.value / dense.value
            yield Finding(
                f"sparse_flops.{dtype}", f"{ratio:.2f} times the dense rate, not between 1.1 and 2.1"
            )


def _ladder(device: Device) -> Iterator[Finding]:
    half = _half(device)
    if half is None:
        return
    for dtype, quantity in device.peak_flops.items():
        limit = next((most for name, most in _LADDER.items() if dtype.startswith(name)), None)
        if limit is not None and quantity.value > limit * half.value:
            ratio = quantity.value / half.value
            yield Finding(f"peak_flops.{dtype}", f"{ratio:.1f} times the 16-bit rate: a sparse figure?")


def _per_cycle(device: Device) -> Iterator[Finding]:
    """The 16-bit rate against what the architecture's units do in a cycle: this tells sparse from dense."""
    half, most = _half(device), _PER_CYCLE.get(device.architecture)
    if most and device.memory_kind.startswith("GDDR"):  # a graphics chip of that architecture
        most = min(most, 1024)
    if half is None or most is None or device.compute_units is None or device.clock_hz is None:
        return
    per_cycle = half.value / (device.compute_units.value * device.clock_hz.value)
    if per_cycle > 1.04 * most:
        name = "bfloat16" if "bfloat16" in device.peak_flops else "float16"
        yield Finding(
            f"peak_flops.{name}",
            f"{per_cycle:.0f} FLOP per cycle and unit, where {device.architecture} does {most}: "
            "a sparse figure?",
        )


def _reached(device: Device) -> Iterator[Finding]:
    for dtype, quantity in device.achieved_flops.items():
        peak = device.peak_flops.get(dtype)
        if peak and not 0.3 < quantity.value / peak.value <= 1:
            yield Finding(f"achieved_flops.{dtype}", f"{quantity.value / peak.value:.2f} of the peak")
    reached, spec = device.achieved_bandwidth_bytes_per_s, device.bandwidth_bytes_per_s
    if reached and spec and not 0.3 < reached.value / spec.value <= 1:
        yield Finding(
            "achieved_bandwidth_bytes_per_s", f"{reached.value / spec.value:.2f} of the datasheet's bandwidth"
        )


def _memory(device: Device) -> Iterator[Finding]:
    bandwidth, kind = device.bandwidth_bytes_per_s, device.memory_kind
    if bandwidth is None or not kind:
        return
    dimms = re.fullmatch(r"(?:DDR5|MRDIMM)-(\d+)", kind)
    if dimms:
        channels = bandwidth.value / (int(dimms[1]) * 8e6)
        if abs(channels - round(channels)) > 0.05 or not 1 <= round(channels) <= 16:
            yield Finding("bandwidth_bytes_per_s", f"{channels:.2f} channels of {kind}")
    elif kind in _MEMORY and not _MEMORY[kind][0] <= bandwidth.value <= _MEMORY[kind][1]:
        low, high = _MEMORY[kind]
        reason = f"{bandwidth.value:g} is not what {kind} gives: between {low:g} and {high:g}"
        yield Finding("bandwidth_bytes_per_s", reason)
    usable, spec = device.memory_bytes, device.spec_memory_bytes
    # 192 GB on a datasheet may be 192 GiB in the device.
    if usable and spec and not 0.85 <= usable.value / spec.value <= 1.08:
        yield Finding("memory_bytes", f"{usable.value / spec.value:.2f} of the datasheet's capacity")


def _balance(device: Device) -> Iterator[Finding]:
    """The ridge point: all accelerators ever built lie within a factor of thirty."""
    half, bandwidth = _half(device), device.bandwidth_bytes_per_s
    if half and bandwidth and device.kind == "gpu" and not 20 <= half.value / bandwidth.value <= 570:
        ridge = half.value / bandwidth.value
        yield Finding("peak_flops", f"ridge point at {ridge:.0f} FLOP per byte: sparse, or a wrong unit?")


def _links(device: Device) -> Iterator[Finding]:
    pair, every, network = device.pair_bytes_per_s, device.all_to_all_bytes_per_s, device.network_bytes_per_s
    if pair and every and pair.value > every.value:
        yield Finding("pair_bytes_per_s", "more to one device than to all of them together")
    if network and every and network.value > every.value:
        yield Finding("network_bytes_per_s", "faster between domains than within one")


def _power(device: Device) -> Iterator[Finding]:
    half, cap, idle = _half(device), device.max_w, device.idle_w
    if half and cap and half.value / cap.value > 2.5e12:
        rate = half.value / cap.value / 1e12
        yield Finding("max_w", f"{rate:.1f} dense 16-bit TFLOP/s per watt: a sparse figure, or a wrong unit?")
    if idle and cap and idle.value >= cap.value:
        yield Finding("idle_w", "not below the cap")


def _half(device: Device) -> Quantity | None:
    return device.peak_flops.get("bfloat16", device.peak_flops.get("float16"))
