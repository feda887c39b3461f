"""What a dry run does not do: change anything outside the cell. Heard of by Python's audit events."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from gimlet_lab.errors import DryRunError

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

#: Events that change something outside, and what they do: the event's arguments fill the gaps.
_REFUSED = {
    "os.exec": "starting {0}",
    "os.fork": "starting a process",
    "os.forkpty": "starting a process",
    "os.kill": "a signal to process {0}",
    "os.link": "linking {1}",
    "os.mkdir": "making the folder {0}",
    "os.posix_spawn": "starting {0}",
    "os.remove": "removing {0}",
    "os.rename": "renaming {0}",
    "os.rmdir": "removing the folder {0}",
    "os.spawn": "starting {1}",
    "os.symlink": "linking {1}",
    "os.system": "running {0}",
    "os.truncate": "cutting {0}",
    "shutil.copyfile": "copying to {1}",
    "shutil.move": "moving {0}",
    "shutil.rmtree": "removing {0}",
    "socket.bind": "listening on {1}",
    "socket.connect": "connecting to {1}",
    "socket.getaddrinfo": "connecting to {0}",
    "socket.sendto": "sending to {1}",
    "sqlite3.connect": "opening the database {0}",
    "subprocess.Popen": "starting {0}",
    "urllib.Request": "requesting {0}",
}


class Guard:
    """Refuses what would change something outside, in the thread that enters and in those started since."""

    def __init__(self, is_cell_file: Callable[[str], bool]) -> None:
        self.is_cell_file = is_cell_file
        self._others: set[int | None] = set()

    def enter(self) -> None:
        """Begin to refuse."""
        global _on_guard, _installed
        own = threading.get_ident()
        self._others = {thread.ident for thread in threading.enumerate()} - {own}
        _on_guard = self
        if not _installed:
            sys.addaudithook(_heard)  # there is no way to take it away: without a guard it does nothing
            _installed = True

    def leave(self) -> None:
        """Refuse no more."""
        global _on_guard
        if _on_guard is self:
            _on_guard = None

    def check(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raise if an event changes something outside.

        Raises
        ------
        DryRunError
        """
        if threading.get_ident() in self._others:
            return
        if event == "open":
            path, mode, flags = arguments
            if not _writes(path, mode, flags):
                return
            what = f"opening {_spelled(path)} for writing"
        else:
            what = _REFUSED[event].format(*map(_spelled, arguments))
        raise refusal(self.is_cell_file, f"{what} would change something outside, and a dry run does not")


_on_guard: Guard | None = None
_installed = False


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    guard = _on_guard
    if guard is not None and (event == "open" or event in _REFUSED):
        guard.check(event, arguments)


def _writes(path: object, mode: object, flags: object) -> bool:
    if isinstance(path, int) or str(path) == os.devnull or "__pycache__" in str(path):
        return False  # a descriptor was opened before; what importing writes is Python's own
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & _WRITING)


def _spelled(argument: object) -> str:
    if isinstance(argument, bytes):
        argument = argument.decode(errors="replace")
    text = str(argument) if isinstance(argument, str | os.PathLike) else repr(argument)
    # Of a long path the end says which file it is.
    return repr(text if len(text) <= 60 else "…" + text[-59:]) if text == str(argument) else text[:60]


def refusal(is_cell_file: Callable[[str], bool], why: str) -> DryRunError:
    """The error for what a dry run cannot do, with the line of the cell that asked for it."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as inspect.currentframe, which may be None
    while frame is not None and not is_cell_file(frame.f_code.co_filename):
        frame = frame.f_back
    where = "dry run" if frame is None else f"dry run, line {frame.f_lineno}"
    return DryRunError(f"{where}: {why}")
