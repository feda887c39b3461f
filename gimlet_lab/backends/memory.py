"""Anonymous shared memory (memfd): written by one process, mapped by others, gone with the last of them.

Nothing is left under ``/dev/shm``, and there is no name that another user could open.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

#: Free segments kept for the next message, at most.
KEPT_BYTES = 256 * 2**20

_ALIGN = 64

#: The number of a segment that is sent to several receivers and never used again.
SHARED = -2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def map_private(fd: int, nbytes: int, released: Callable[[], object] = lambda: None) -> memoryview:
    """Map a segment copy-on-write, without keeping its descriptor as ``mmap.mmap`` would.

    ``released`` is called when everything made of the memory is gone; from any thread, so it must be short.
    """
    address = _libc.mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), f"cannot map {nbytes} bytes of shared memory")
    held = (ctypes.c_ubyte * nbytes).from_address(address)

    def release() -> None:
        _libc.munmap(address, nbytes)
        released()

    # At exit the system unmaps; a tensor may outlive this module.
    weakref.finalize(held, release).atexit = False
    return memoryview(held).cast("B")


@dataclass
class Segment:
    """Anonymous shared memory that this process writes and others map."""

    size: int
    number: int = SHARED
    fd: int = field(init=False)
    view: memoryview = field(init=False)

    def __post_init__(self) -> None:
        self.fd = os.memfd_create("gimlet", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, self.size)
            self._map = mmap.mmap(self.fd, self.size)
        except BaseException:
            os.close(self.fd)
            raise
        self.view = memoryview(self._map)

    def write(self, buffers: tuple[memoryview, ...], offsets: list[int]) -> None:
        """Copy buffers to their offsets."""
        import numpy as np

        target = np.frombuffer(self.view, np.uint8)  # numpy copies at memory speed and lets other threads run
        for buffer, offset in zip(buffers, offsets, strict=True):
            target[offset : offset + buffer.nbytes] = np.frombuffer(buffer, np.uint8)

    def close(self) -> None:
        """Give the memory back; who has it mapped keeps it."""
        if self.fd >= 0:
            self.view.release()
            self._map.close()
            os.close(self.fd)
            self.fd = -1


def aligned(nbytes: int) -> int:
    """Bytes that a buffer takes in a segment.

    Examples
    --------
    >>> aligned(1), aligned(64)
    (64, 64)
    """
    return -(-nbytes // _ALIGN) * _ALIGN


def layout(buffers: tuple[memoryview, ...]) -> tuple[list[int], int]:
    """Aligned offsets of buffers one behind the other, and the size of all."""
    offsets, end = [], 0
    for buffer in buffers:
        offsets.append(end)
        end += aligned(buffer.nbytes)
    return offsets, end


class Pool:
    """The sender's segments: which are free, and which the receiver still reads."""

    def __init__(self) -> None:
        self.free: list[Segment] = []
        self.busy: dict[int, Segment] = {}
        self._numbers = itertools.count()

    def take(self, nbytes: int) -> tuple[Segment, bool]:
        """Give a segment of at least ``nbytes``, and whether it is new."""
        fitting = [segment for segment in self.free if nbytes <= segment.size <= max(8 * nbytes, 2**20)]
        if fitting:
            segment = min(fitting, key=lambda s: s.size)
            self.free.remove(segment)
            fresh = False
        else:
            segment = Segment(max(2**20, 1 << (nbytes - 1).bit_length()), next(self._numbers))
            fresh = True
        self.busy[segment.number] = segment
        return segment, fresh

    def give(self, number: int) -> int | None:
        """Take back a released segment; the number of one to be forgotten where too many are free."""
        segment = self.busy.pop(number, None)
        if segment is None:
            return None
        if sum(s.size for s in self.free) + segment.size > KEPT_BYTES:
            segment.close()
            return number
        self.free.append(segment)
        return None

    def close(self) -> None:
        """Give all memory back; who has it mapped keeps it."""
        for segment in (*self.free, *self.busy.values()):
            segment.close()
        self.free, self.busy = [], {}
