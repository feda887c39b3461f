"""When a thread was active: on a core, waiting for one, or waiting for the interpreter's lock.

The scheduler's account cannot tell a thread that waits for the interpreter from one that waits for the
network: both sleep. What it sleeps on can: the lock lies in the interpreter's own memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from array import array

#: The interpreter's state, its lock included, is smaller than this (3.11 to 3.13: under 400 kB).
_RUNTIME_BYTES = 2**20


class Totals:
    """Seconds in all that a thread was active, each time it is read.

    Attributes
    ----------
    at_s, active_s : array of float
        When it was read, and the total then; both never fall.
    """

    def __init__(self, path: str | None) -> None:
        self.at_s = array("d")
        self.active_s = array("d")
        self._file: int | None = None
        if path is not None and sys.platform == "linux":
            # A kernel may keep no such account, and a thread may have ended.
            with contextlib.suppress(OSError):
                self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Account(Totals):
    """One thread of this process.

    Parameters
    ----------
    thread : int or None
        Its number to the system. Where that is unknown, or the system does not tell, nothing is known.
    """

    def __init__(self, thread: int | None) -> None:
        super().__init__(None if thread is None else f"/proc/self/task/{thread}/syscall")
        self._last = b""

    def read(self, now_s: float) -> bool:
        """Read it; whether the thread may have moved since the last time.

        Raises
        ------
        ProcessLookupError
            If it has ended.
        """
        if self._file is None:
            return True
        state = _read(self._file)
        moved = state != self._last or state.startswith(b"running")
        self._last = state
        active = _active(state)
        before_s = self.at_s[-1] if self.at_s else now_s
        total_s = (self.active_s[-1] if self.active_s else 0.0) + active * max(0.0, now_s - before_s)
        if not active and len(self.at_s) > 1 and self.active_s[-2] == total_s:
            self.at_s[-1] = max(before_s, now_s)
        else:
            self.at_s.append(max(before_s, now_s))
            self.active_s.append(total_s)
        return moved


class WorkerAccount(Totals):
    """The main thread of another process: on a core, or waiting for one.

    Parameters
    ----------
    pid : int
        Where the system does not tell of it, nothing is known.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(f"/proc/{pid}/schedstat")

    def read(self, now_s: float) -> None:
        """Read it, as long as there is one."""
        if self._file is None:
            return
        try:
            ran_ns, waited_ns = _read(self._file).split()[:2]
        except (ProcessLookupError, ValueError):
            self.close()
            return
        self.at_s.append(now_s)
        self.active_s.append(1e-9 * (int(ran_ns) + int(waited_ns)))


def _active(state: bytes) -> bool:
    """Whether ``/proc/…/syscall`` tells of a thread that runs or wants to."""
    words = state.split()
    if len(words) < 3:  # "running"; "-1 …" is a fault being served
        return True
    return words[0] == b"-1" or _RUNTIME <= int(words[1], 16) < _RUNTIME + _RUNTIME_BYTES


def _runtime() -> int:
    try:
        return ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "_PyRuntime"))
    except (ValueError, AttributeError):  # an interpreter that does not show it: its lock is not told apart
        return 1 << 64


_RUNTIME = _runtime()


def _read(file: int) -> bytes:
    """Read a file from its start, and keep the interpreter: to let go would cost a turn for each thread."""
    assert _pread is not None
    count = _pread(file, _buffer, ctypes.c_size_t(len(_buffer)), ctypes.c_long(0))
    if count <= 0:
        raise ProcessLookupError(file)
    return _buffer.raw[:count]


_buffer = ctypes.create_string_buffer(256)
_pread = ctypes.PyDLL(None).pread if sys.platform == "linux" else None
