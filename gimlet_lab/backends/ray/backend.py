"""The Ray backend: stages as actors on the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gimlet_lab.backends.places import Place, Places
from gimlet_lab.backends.placing import PlacingBackend
from gimlet_lab.backends.ray import nodes
from gimlet_lab.backends.ray.cluster import Cluster
from gimlet_lab.backends.ray.worker import RayWorker
from gimlet_lab.errors import GimletError
from gimlet_lab.hardware.fleet import connect, disconnect, local_fleet
from gimlet_lab.model import Device, Fleet, Plan, Stage
from gimlet_lab.progress import Progress, silent

#: A process is connected to one cluster, as Ray has it.
_connected: list[Cluster] = []


class RayBackend(PlacingBackend):
    """Puts plans in force on the cluster that this process is connected to."""

    name = "ray"

    def connect(
        self, address: str | None = None, *, recalibrate: bool = False, progress: Progress = silent
    ) -> Fleet:
        """Reach a cluster: the devices of this machine and of its nodes; see :meth:`Backend.connect`."""
        cluster = self._cluster(address)
        if cluster is None:
            self.disconnect()
            progress(0.0, "starting Ray" if address is None else f"reaching {address}")
            cluster = Cluster(address)
            _connected.append(cluster)
        try:
            fleet = nodes.fleet(
                cluster, local_fleet(progress=progress), recalibrate=recalibrate, progress=progress
            )
        except BaseException:
            self.disconnect()
            raise
        connect(fleet)
        return fleet

    def _cluster(self, address: str | None) -> Cluster | None:
        """The connection that there is, where it is the one asked for: nodes may have come and gone."""
        known = _connected[-1] if _connected else None
        if known is None or not known.ray.is_initialized():
            return None
        return known if address in (None, "auto", known.address) else None

    def disconnect(self) -> bool:
        """Leave the cluster; whether there was one."""
        disconnect()
        if not _connected:
            return False
        _connected.pop().close()
        return True

    def places(self) -> RayPlaces:
        """What makes the places of one deployment."""
        if not _connected or not _connected[-1].ray.is_initialized():
            raise GimletError("no Ray cluster is connected: %gimlet connect ray [HOST:PORT]")
        return RayPlaces(_connected[-1])


class RayPlaces(Places):
    """Actors for devices of any node, slices of this machine's processor among them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def check(self, plan: Plan, stage: Stage, device: Device) -> None:
        """Check that the device's node is there."""
        if device.node and not self._cluster.alive(device.node):
            raise GimletError(
                f"plan {plan.id} puts {stage.id!r} on {device.id!r}, which is no node of the cluster at "
                f"{self._cluster.address}: connect to the one it was made for, or advise again"
            )

    def still(self, place: Place, device: Device) -> bool:
        """Whether a place is the one that would be made for a device."""
        return isinstance(place, RayWorker) and (place.node, place.cores) == (
            self._node(device),
            device.cores,
        )

    def open(self, devices: Sequence[Device], things: Sequence[Any]) -> dict[str, Place]:  # noqa: ARG002 - what they import they import there
        """Make places: all actors start at once."""
        workers = [
            RayWorker(self._cluster, device.id, self._node(device), device.cores, str(device.torch_device))
            for device in devices
        ]
        try:
            for worker in workers:
                worker.begin()
            for worker in workers:
                worker.start()
        except BaseException:
            for worker in workers:
                worker.close()
            raise
        return {worker.device: worker for worker in workers}

    def _node(self, device: Device) -> str:
        return device.node or self._cluster.here()

    def close(self) -> None:
        """Nothing is left: actors ended with their places."""
