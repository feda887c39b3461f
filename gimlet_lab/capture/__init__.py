"""A cell as it runs, recorded: modules, operators, functions, waits, and the data between them."""

from __future__ import annotations

from gimlet_lab.capture.fakes import FakeWorld
from gimlet_lab.capture.recorder import Recorder

__all__ = ["FakeWorld", "Recorder"]
