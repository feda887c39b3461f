"""What the devices' meters said while the cell ran, on the cell's clock."""

from __future__ import annotations

from gimlet_lab.hardware.meters import Record, Sampler, Subscription
from gimlet_lab.model import MeterSeries


class Metering:
    """A subscription to the process's sampler for the time of a cell.

    Parameters
    ----------
    sampler : Sampler
    """

    def __init__(self, sampler: Sampler) -> None:
        self.cpu_s = 0.0
        self.notes: list[str] = []
        self._sampler = sampler
        self._record = Record()
        self._subscription: Subscription | None = None
        self._zero_s = 0.0
        self._spent_s = 0.0

    def start(self) -> None:
        """Begin with a reading of now; the first time in a process the vendors' libraries are opened."""
        self._subscription = self._sampler.subscribe(sink=self._record.add)

    def zero(self) -> None:
        """The cell starts now."""
        self._zero_s = self._sampler.clock()
        self._spent_s = self._sampler.cpu_s

    def stop(self) -> tuple[MeterSeries, ...]:
        """End with a reading of now, and give the devices that this process can see."""
        if self._subscription is None:
            return ()
        self.cpu_s = self._sampler.cpu_s - self._spent_s
        self._subscription.close()
        self._subscription = None
        self.notes = list(self._sampler.notes)
        names = self._sampler.names()
        series = self._record.series(self._zero_s, names)
        mine = set(names.values())
        return tuple(
            one for one in series if not mine or one.device in mine or one.device.startswith(("cpu", "core:"))
        )
