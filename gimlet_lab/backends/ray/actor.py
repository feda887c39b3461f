"""What runs on a node: the same server as in a worker of this machine, inside a Ray actor."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from gimlet_lab.backends.packing import Packed
from gimlet_lab.backends.serving import Server
from gimlet_lab.hardware.machine import threads


class Printed:
    """In place of a channel: what a call prints goes back with its answer."""

    def __init__(self) -> None:
        self._streams: list[bytes] = []

    def send(self, packed: Packed) -> None:
        """Take an ``("output", stream, text)``."""
        self._streams.append(packed.stream)

    def take(self) -> list[bytes]:
        """What was printed since last asked, still packed."""
        streams, self._streams = self._streams, []
        return streams


class StageActor:
    """One worker of a plan.

    Parameters
    ----------
    cores : tuple of int
        What it is pinned to, of its own machine.
    path : list of str
        Where the notebook finds modules; those folders that are here too are searched here.
    device : str
        torch's name of the accelerator that modules are put on, or ``cpu``.
    """

    def __init__(self, cores: tuple[int, ...], path: Sequence[str], device: str) -> None:
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        use_threads(len(cores) or 1)
        sys.path += [folder for folder in path if folder not in sys.path]
        self.printed = Printed()
        self.server = Server(cast(Any, self.printed), device=device, far=True)
        self.server.take_streams()

    def ready(self) -> int:
        """Answer once it is there: its process id."""
        return os.getpid()

    def answer(self, stream: bytes, buffers: Sequence[Any]) -> list[Any]:
        """Answer a message: what was printed, the pickle, and its buffers; see :func:`messages`."""
        reply = self.server.reply(Packed(stream, writable(buffers)))
        return [self.printed.take(), reply.stream, *arrays(reply)]


def use_threads(cores: int) -> None:
    """Compute with a thread a core, as far as the quota goes; Ray sets one for who asks for no core."""
    count = threads(cores)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def arrays(packed: Packed) -> list[Any]:
    """The buffers as arrays, which Ray moves without pickling them."""
    return [np.frombuffer(buffer, dtype=np.uint8) for buffer in packed.buffers]


def messages(reply: Sequence[Any]) -> Iterator[Packed]:
    """What :meth:`StageActor.answer` sends, as the messages that it stands for."""
    printed, stream, *buffers = reply
    yield from map(Packed, printed)
    yield Packed(stream, writable(buffers))


def writable(buffers: Sequence[Any]) -> tuple[memoryview, ...]:
    """Copies that may be written to: Ray's own memory may not, and whoever does is ended by the system."""
    return tuple(memoryview(_aligned(buffer)) for buffer in buffers)


def _aligned(buffer: Any) -> Any:
    # As in shared memory: kernels may choose by alignment, and results differ in the last bits.
    room = np.empty(len(buffer) + 63, dtype=np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + len(buffer)]
    copy[:] = buffer
    return copy
