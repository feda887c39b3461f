"""What became of a stage's calls: counted where they are made, read by ``Deployment.stats``."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one attempt at a call.

    Attributes
    ----------
    at_s : float
        When it had ended: seconds since 1970.
    stage, device : str
    outcome : str
        ``done``; ``lost``: the worker ended under it, and it was made again if it may be; ``on host``.
    why : str
        Where it is not done.
    """

    at_s: float
    stage: str
    device: str
    outcome: str
    why: str


class Usage:
    """Counts of one stage; several threads may count at once.

    Parameters
    ----------
    stage, device : str
    journal : deque of Entry, optional
        Takes what became of each call.
    """

    def __init__(self, stage: str, device: str, journal: deque[Entry] | None = None) -> None:
        self._journal = journal
        self.stage = stage
        self.device = device
        self.calls = 0
        self.seconds = 0.0
        self.loaded_bytes = 0
        self.sent_bytes = 0
        self.received_bytes = 0
        self.checked_s = 0.0
        self.ahead = 0
        self.on_host: Counter[str] = Counter()
        self.lost_calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def placed(self, seconds: float, sent_bytes: int, received_bytes: int) -> None:
        """Count a call that ran where the plan says."""
        with self._lock:
            self.calls += 1
            self.seconds += seconds
            self.sent_bytes += sent_bytes
            self.received_bytes += received_bytes
            self._write("done", "")

    def loaded(self, nbytes: int) -> None:
        """Count what was sent besides calls: weights, functions."""
        with self._lock:
            self.loaded_bytes += nbytes

    def checked(self, seconds: float) -> None:
        """Count the time it took to see whether the notebook has changed what a function reads."""
        with self._lock:
            self.checked_s += seconds

    def kept(self, why: str) -> None:
        """Count a call that ran on the host all the same."""
        with self._lock:
            self.on_host[why] += 1
            self._write("on host", why)

    def _write(self, outcome: str, why: str) -> None:
        if self._journal is not None:
            self._journal.append(Entry(time.time(), self.stage, self.device, outcome, why))

    def lost(self, why: str) -> None:
        """Count a call under which the worker ended."""
        with self._lock:
            self.lost_calls[why] += 1
            self._write("lost", why)

    def started_ahead(self) -> None:
        """Count a call that was started before the program came to it."""
        with self._lock:
            self.ahead += 1

    def to_dict(self) -> dict[str, Any]:
        """The form of ``Deployment.stats``."""
        with self._lock:
            return {
                "device": self.device,
                "calls": self.calls,
                "seconds": self.seconds,
                "checked_s": self.checked_s,
                "loaded_bytes": self.loaded_bytes,
                "sent_bytes": self.sent_bytes,
                "received_bytes": self.received_bytes,
                "started_ahead": self.ahead,
                "on_host": dict(self.on_host),
                "lost": dict(self.lost_calls),
            }
