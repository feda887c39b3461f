"""The local backend: CPU slices of this machine as pinned workers, its accelerators in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from gimlet_lab.backends.binding import imports
from gimlet_lab.backends.places import Place, Places
from gimlet_lab.backends.placing import PlacingBackend
from gimlet_lab.backends.process import TEMPLATE, Worker
from gimlet_lab.backends.resident import Resident
from gimlet_lab.errors import GimletError
from gimlet_lab.hardware.fleet import local_fleet
from gimlet_lab.hardware.machine import cores
from gimlet_lab.model import Device, Fleet, Plan, Stage
from gimlet_lab.progress import Progress, silent


class LocalBackend(PlacingBackend):
    """Puts plans in force on this machine."""

    name = "local"

    def connect(
        self, address: str | None = None, *, recalibrate: bool = False, progress: Progress = silent
    ) -> Fleet:
        """The devices of this machine, which are always there; see :meth:`Backend.connect`."""
        if address is not None:
            raise GimletError(f"the local backend is this machine, and has no address {address!r}")
        return local_fleet(recalibrate=recalibrate, progress=progress)

    def disconnect(self) -> bool:
        """Do nothing: this machine stays."""
        return False

    def places(self) -> LocalPlaces:
        """What makes the places of one deployment."""
        return LocalPlaces()


class LocalPlaces(Places):
    """Workers for CPU slices, copies of modules on accelerators."""

    def __init__(self) -> None:
        self._holds_template = False

    def check(self, plan: Plan, stage: Stage, device: Device) -> None:
        """Check that a device is one of this machine that the stage can run on."""
        if device.node:
            raise GimletError(
                f"plan {plan.id} puts {stage.id!r} on {device.id!r}, a device of a Ray cluster: "
                "apply it with --backend ray"
            )
        if device.kind == "cpu" and not set(device.cores) <= set(cores()):
            raise GimletError(
                f"plan {plan.id} is for another machine: {device.id!r} has cores {device.cores}, "
                f"this one {cores()}: advise again here"
            )
        if device.kind == "cpu" and not all(
            hasattr(os, name) for name in ("fork", "memfd_create", "sched_setaffinity")
        ):
            raise GimletError(f"CPU slices need Linux: pin {stage.id!r} to 'cpu'")

    def still(self, place: Place, device: Device) -> bool:
        """Whether a place is the one that would be made for a device."""
        return isinstance(place, Resident) or (isinstance(place, Worker) and place.cores == device.cores)

    def open(self, devices: Sequence[Device], things: Sequence[Any]) -> dict[str, Place]:
        """Make places: workers are forks of one template, which imports once for all."""
        slices = [device for device in devices if device.kind == "cpu"]
        if slices:
            if not self._holds_template:
                TEMPLATE.hold()
                self._holds_template = True
            TEMPLATE.prepare(imports(things), max(len(device.cores) for device in slices))
        places: dict[str, Place] = {}
        try:
            for device in devices:
                if device.kind == "cpu":
                    places[device.id] = worker = Worker(device.id, device.cores)
                    worker.start()
                else:
                    places[device.id] = Resident(device.id, str(device.torch_device))
        except BaseException:
            for place in places.values():
                place.close()
            raise
        return places

    def close(self) -> None:
        """The last deployment to end ends the template."""
        if self._holds_template:
            TEMPLATE.release()
