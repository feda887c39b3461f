"""A worker on a node of the cluster, as the kernel sees it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from gimlet_lab.backends.packing import Packed
from gimlet_lab.backends.ray.actor import StageActor, arrays, messages
from gimlet_lab.backends.ray.cluster import START_S, Cluster
from gimlet_lab.backends.ray.library import first_line
from gimlet_lab.backends.remote import Remote, WorkerDiedError


class RayWorker(Remote):
    """One actor.

    Parameters
    ----------
    cluster : Cluster
    device : str
        Id of the device.
    node : str
        Ray's id of the node it is on.
    cores : tuple of int
    torch_device : str
    """

    far = True

    def __init__(
        self, cluster: Cluster, device: str, node: str, cores: tuple[int, ...], torch_device: str = "cpu"
    ) -> None:
        super().__init__(device)
        self.node = node
        self.cores = cores
        self.torch_device = torch_device
        self._cluster = cluster
        self._actor: Any = None
        self._ready = False

    @property
    def running(self) -> bool:
        """Whether there is an actor that has answered."""
        return self._ready

    def begin(self) -> None:
        """Ask for the actor, without waiting for it: several nodes start theirs at once."""
        if self._actor is None:
            if not self._cluster.ray.is_initialized():  # Ray would start a cluster of its own
                raise WorkerDiedError(f"{self.device}: the cluster was left")
            if not self._cluster.alive(self.node):
                raise WorkerDiedError(f"{self.device}: its node has left the cluster")
            made = self._cluster.ray.remote(StageActor).options(**self._cluster.on(self.node))
            self._actor = made.remote(self.cores, sys.path, self.torch_device)

    def _open(self) -> None:
        self.begin()
        ray = self._cluster.ray
        try:
            pid = ray.get(self._actor.ready.remote(), timeout=START_S)
        except BaseException as error:
            self._end()
            if isinstance(error, ray.exceptions.GetTimeoutError):
                raise WorkerDiedError(f"no worker started on {self.device} within {START_S:.0f} s") from None
            if isinstance(error, ray.exceptions.RayError):
                raise WorkerDiedError(
                    f"no worker could be started on {self.device}: {first_line(error)}"
                ) from None
            raise
        self.pid = pid if self.node == self._cluster.here() else 0
        self._ready = True

    def _exchange(self, packed: Packed) -> Iterator[Packed]:
        ray = self._cluster.ray
        try:
            reply = ray.get(self._actor.answer.remote(packed.stream, arrays(packed)))
        except ray.exceptions.RayError as error:
            raise ConnectionError(_how(error)) from None
        yield from messages(reply)

    def _end(self) -> str:
        actor, self._actor, self._ready, self.pid = self._actor, None, False, 0
        if actor is not None and self._cluster.ray.is_initialized():
            # Gone already, or the cluster is.
            with contextlib.suppress(Exception):
                self._cluster.ray.kill(actor, no_restart=True)
        return ""


def _how(error: BaseException) -> str:
    name = type(error).__name__
    if "OutOfMemory" in name:
        return "was ended: its node had no memory left"
    if "Node" in name:
        return "was lost with its node"
    return f"was lost ({name}: {first_line(error)[:160]})"
