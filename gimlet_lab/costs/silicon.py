"""What the model of kernels needs to know of a device, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gimlet_lab.costs import roofline
from gimlet_lab.model.device import Device

#: A number, or one for each of many kernels: everything here broadcasts.
Numbers = float | NDArray[np.float64]

#: Energy of one operation by the process an architecture is made in, 16 nm = 1: what decides whether a card
#: can hold its datasheet's clock under load. Guided by the cards that were fitted on; not a measurement.
ENERGY = {
    "Pascal": 1.0,
    "Volta": 0.9,
    "Turing": 0.9,
    "Ampere": 0.4,
    "CDNA 1": 0.4,
    "CDNA 2": 0.37,
    "Gaudi 2": 0.4,
    "Hopper": 0.2,
    "Ada Lovelace": 0.2,
    "Blackwell": 0.2,
    "Blackwell Ultra": 0.2,
    "CDNA 3": 0.2,
    "CDNA 4": 0.17,
    "Battlemage": 0.2,
    "Gaudi 3": 0.2,
}

#: Kernels are written for generations of chips: what a library runs on one is what it runs on its siblings.
#: On vector units Pascal is 0, Ampere and all later 1; on matrix units 0 is a warp's own products (Ampere,
#: Ada), 1 the asynchronous ones of Hopper and the data-centre Blackwells.
_EARLY = {"Pascal": 0.0, "Volta": 0.5, "Turing": 0.5}
_ASYNCHRONOUS = {"Hopper", "Blackwell", "Blackwell Ultra"}

#: Share of a published best GEMM, and of the datasheet, that large GEMMs reach: the fit starts from these.
#: The last is of chips with asynchronous products: an H100's.
SHARE_OF_BEST, SHARE_OF_DATASHEET, SHARE_OF_DATASHEET_ASYNCHRONOUS = 0.94, 0.8, 0.76

#: Clock that :data:`ENERGY` stands for; above it the voltage rises with the clock.
CALM_HZ = 1.41e9

#: Watts per (energy-weighted) TFLOP/s from which a card holds its clock, and how its rate falls below it.
#: Asynchronous products take less: the best GEMMs published for H100 and B200 show no fall at 2.5 and 1.6.
ENOUGH_W = {"vector": 22.0, "matrix": 4.0, "asynchronous": 1.6}
FALL = 0.65

#: Share of the datasheet's bandwidth that streaming kernels reach.
SHARE_OF_BANDWIDTH = 0.88

#: Bytes of last-level cache for each compute unit, where nobody says.
CACHE_PER_UNIT_BYTES = 400e3


@dataclass(frozen=True, slots=True)
class Silicon:
    """A device as the model of kernels sees it; every field may be an array, one entry a kernel.

    Attributes
    ----------
    units : float
        SMs, CUs, cores.
    clock_hz : float
    flops_per_s : float
        What large matrix products of the dtype reach.
    vector_flops_per_s : float
    bytes_per_s : float
        What streaming kernels reach.
    cache_bytes : float
        Last-level cache.
    generation : float
        Of the kernels that libraries have for it, from 0 to 1.
    """

    units: Numbers
    clock_hz: Numbers
    flops_per_s: Numbers
    vector_flops_per_s: Numbers
    bytes_per_s: Numbers
    cache_bytes: Numbers
    generation: Numbers


def silicon(device: Device, dtype: str) -> tuple[Silicon, bool] | None:
    """Describe a device for kernels of a dtype, and say whether it computes them in another dtype.

    Returns
    -------
    tuple or None
        None where the catalogue does not know the chip well enough (or it is a processor): then the roofline
        is all there is.
    """
    if device.is_host or device.compute_units is None or device.clock_hz is None:
        return None
    rate, spec = roofline.datasheet(device, dtype), device.bandwidth_bytes_per_s
    if rate is None or spec is None:
        return None
    peak, family, instead = rate
    best = roofline.figure(device.achieved_flops, family)
    simt = _on_vector_units(device, family, peak)
    generation = _generation(device, dtype)
    modern = not simt and generation > 0 and dtype != "float32"
    held = throttle(device, peak, "vector" if simt else "asynchronous" if modern else "matrix")
    share = SHARE_OF_DATASHEET_ASYNCHRONOUS if modern else SHARE_OF_DATASHEET
    flops_per_s = best * SHARE_OF_BEST if best is not None else peak * share * held
    vector = device.vector_flops.value if device.vector_flops else peak
    units = device.compute_units.value
    caches = [one.value for one in (device.l2_bytes, device.l3_bytes) if one is not None]
    bandwidth = device.achieved_bandwidth_bytes_per_s
    found = Silicon(
        units=units,
        clock_hz=device.clock_hz.value,
        flops_per_s=flops_per_s,
        vector_flops_per_s=vector,
        bytes_per_s=bandwidth.value
        if bandwidth and bandwidth.tier == "measured"
        else spec.value * SHARE_OF_BANDWIDTH,
        cache_bytes=max(caches) if caches else units * CACHE_PER_UNIT_BYTES,
        generation=generation,
    )
    return found, instead


def throttle(device: Device, peak: float, kind: str) -> float:
    """Share of its clock that a card holds on large products, by its power: an L4 has 72 W for 121 TFLOP/s.

    Examples
    --------
    >>> from gimlet_lab.hardware import catalogue
    >>> cards = [catalogue.find(name) for name in ("t4", "h100-sxm")]
    >>> [round(throttle(card, card.peak_flops["float32"].value, "vector"), 2) for card in cards]
    [0.54, 1.0]
    """
    energy = ENERGY.get(device.architecture)
    if device.max_w is None or energy is None or device.clock_hz is None:
        return 1.0
    voltage = max(device.clock_hz.value / CALM_HZ, 1.0)
    watts = device.max_w.value / (peak / 1e12) / energy / voltage
    return float(min(1.0, (watts / ENOUGH_W[kind]) ** FALL))


def stack(parts: list[Silicon]) -> Silicon:
    """One description with an array in each field, from one per kernel."""
    fields: dict[str, Any] = {
        name: np.array([getattr(part, name) for part in parts], dtype=np.float64)
        for name in Silicon.__dataclass_fields__
    }
    return Silicon(**fields)


def _generation(device: Device, dtype: str) -> float:
    if dtype == "float32":
        return _EARLY.get(device.architecture, 1.0)
    return float(device.architecture in _ASYNCHRONOUS and device.memory_kind.startswith("HBM"))


def _on_vector_units(device: Device, family: str, peak: float) -> bool:
    if family != "float32":
        return False
    return device.vector_flops is None or peak < 1.3 * device.vector_flops.value
