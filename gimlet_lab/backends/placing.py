"""What backends share that put plans in force by places."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import MutableMapping
from typing import Any

from gimlet_lab.backends.base import Backend
from gimlet_lab.backends.binding import Placement, bind
from gimlet_lab.backends.chains import title
from gimlet_lab.backends.deployment import PlacedDeployment
from gimlet_lab.backends.places import Places
from gimlet_lab.backends.weights import store_of
from gimlet_lab.model import Plan
from gimlet_lab.progress import Progress, silent


class PlacingBackend(Backend):
    """Puts plans in force over places of its own."""

    @abstractmethod
    def places(self) -> Places:
        """What makes the places of one deployment.

        Raises
        ------
        GimletError
            If there are none to be had.
        """

    def deploy(
        self, plan: Plan, namespace: MutableMapping[str, Any], *, progress: Progress = silent
    ) -> PlacedDeployment:
        """Put a plan in force; see :meth:`Backend.deploy`."""
        return PlacedDeployment(plan, namespace, self.places(), progress)

    def diff(self, plan: Plan, namespace: MutableMapping[str, Any]) -> list[str]:
        """Say what :meth:`deploy` would change, a line each; empty where nothing would."""
        lines = []
        copied: set[tuple[int, str]] = set()
        for placement in bind(plan, namespace, self.places().check):
            if not placement.elsewhere:
                continue
            what = (id(placement.thing), placement.device.id)
            lines.append(_line(placement, again=what in copied))
            copied.add(what)
        return lines


def _line(placement: Placement, again: bool) -> str:
    stage, device = placement.stage, placement.device
    where = f"{stage.device or 'cpu'} → {device.id}"
    if stage.kind == "function":
        how = "sent to a worker process"
        more = [
            word
            for word, holds in (("pure", placement.pure), ("not repeatable", not placement.idempotent))
            if holds
        ]
        kind = ", ".join(["function", *more])
    else:
        kind = f"{title(placement.thing)}, {placement.role}"
        tensors = {
            t.untyped_storage().data_ptr(): t
            for t in (*placement.thing.parameters(), *placement.thing.buffers())
        }
        nbytes = sum(t.untyped_storage().nbytes() for t in tensors.values())
        store = store_of(placement.thing) if device.node else None
        what = f"{nbytes / 1e6:,.0f} MB of weights"
        how = "the same copy" if again else f"{what} copied" if store is None else f"{what} read from {store}"
    cores = (
        f" (core{'s' if len(device.cores) > 1 else ''} {', '.join(map(str, device.cores))})"
        if device.kind == "cpu"
        else ""
    )
    return f"{stage.id}: {stage.target} ({kind}) {where}{cores}; {how}"
