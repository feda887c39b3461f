"""Where calls can go, and who makes such places: what a backend for plans like ours has to bring."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from gimlet_lab.backends.remote import Remote
from gimlet_lab.backends.resident import Resident
from gimlet_lab.model import Device, Plan, Stage

Place = Remote | Resident


class Places(ABC):
    """Makes places for one deployment."""

    @abstractmethod
    def check(self, plan: Plan, stage: Stage, device: Device) -> None:
        """Check that a stage can go to a device that the plan puts it on.

        Raises
        ------
        GimletError
            If it cannot; says why, and what to do.
        """

    @abstractmethod
    def still(self, place: Place, device: Device) -> bool:
        """Whether a place is the one that would be made for a device."""

    @abstractmethod
    def open(self, devices: Sequence[Device], things: Sequence[Any]) -> dict[str, Place]:
        """Make a place for each device; all of them, or none.

        Parameters
        ----------
        things : sequence
            Functions and modules that they will be sent.

        Raises
        ------
        GimletError
            If one cannot be made.
        """

    @abstractmethod
    def close(self) -> None:
        """The deployment has ended, and its places are closed."""
