"""What the devices are doing now: use, memory, bandwidth, power, clocks, throttling. One module a vendor."""

from __future__ import annotations

from gimlet_lab.hardware.meters.meter import Meter, Probe, Readings, UnreadableError
from gimlet_lab.hardware.meters.record import Record
from gimlet_lab.hardware.meters.sampler import Row, Sampler, Subscription, shared

__all__ = [
    "Meter",
    "Probe",
    "Readings",
    "Record",
    "Row",
    "Sampler",
    "Subscription",
    "UnreadableError",
    "shared",
]
