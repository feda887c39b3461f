"""What makes calls elsewhere, as the kernel sees it: started, called, replaced when it dies, gone at the end.

What lies in between (a socket to a process, Ray to an actor on another machine) is the subclass's.
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from gimlet_lab.backends.packing import Packed, pack, unpack
from gimlet_lab.errors import GimletError

_T = TypeVar("_T")

#: A worker that died this often, and answered no call in between, is not started again: it would die again.
MAX_DEATHS = 3


class WorkerDiedError(GimletError):
    """A worker cannot be had."""


class WorkerLostError(WorkerDiedError):
    """A worker ended under a call: whether it was done is not known."""


class Remote(ABC):
    """One worker, wherever it is; it answers what :class:`~gimlet_lab.backends.serving.Server` does.

    Parameters
    ----------
    device : str
        Id of the device it stands for.
    """

    #: Whether it may be on another machine.
    far = False

    def __init__(self, device: str) -> None:
        self.device = device
        self.deaths = 0
        self.generation = 0
        #: Of its process, where that is one of this machine; else 0.
        self.pid = 0
        self.contents: dict[str, Packed] = {}
        self._lock = threading.RLock()
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether it can be called: running, or to be started again by the next call."""
        return not self._closed and self.deaths < MAX_DEATHS

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether it is there."""

    @abstractmethod
    def _open(self) -> None:
        """Start it, empty.

        Raises
        ------
        WorkerDiedError
            If it cannot be started.
        """

    @abstractmethod
    def _exchange(self, packed: Packed) -> Iterator[Packed]:
        """Send a message: what comes back as it comes, ``("output", stream, text)`` and at last the answer.

        Raises
        ------
        ConnectionError
            If the worker is gone.
        """

    @abstractmethod
    def _end(self) -> str:
        """End it, whatever it does; how it ended, behind "the worker", where more is known than raised."""

    def start(self) -> None:
        """Start it and send it what it had before, where it died."""
        with self._lock:
            if self.running:
                return
            self._open()
            self.generation += 1
            for packed in self.contents.values():
                self._transact(packed)

    def ready(self) -> None:
        """Start it again where it died, so that :attr:`generation` says who will answer."""
        if self.alive:
            self.start()

    def keep(self, key: str, packed: Packed) -> None:
        """Send it a module or a function, a packed ``("keep", key, object)``; again when it starts again."""
        with self._lock:
            self.start()
            answer, _ = self._transact(packed)
            if answer[0] != "ok":
                raise GimletError(f"{self.device} could not load it: {_first_line(answer)}")
            self.contents[key] = packed

    def drop(self, key: str) -> None:
        """Make it forget one."""
        with self._lock:
            if self.contents.pop(key, None) is not None and self.running:
                self._transact(pack(("drop", key)))

    def call(
        self,
        packed: Packed,
        find: Callable[[Any], Any] | None = None,
        printed: list[tuple[str, str]] | None = None,
        *,
        once: bool = False,
    ) -> tuple[tuple[Any, ...], int]:
        """Make one call, one at a time: the answer and its bytes.

        Parameters
        ----------
        printed : list, optional
            Takes what the call prints, as stream and text, in place of the streams.
        once : bool
            It may not be made again: see first that the worker is still there.

        Raises
        ------
        WorkerLostError
            If the worker ends before it has answered.
        WorkerDiedError
            If there is none to be had; nothing was done.
        """
        with self._lock:
            if not self.alive:
                raise WorkerDiedError(f"{self.device} is gone")
            try:
                self.start()
                if once:
                    self._see()
            except WorkerLostError as error:  # before it was told what to do
                raise WorkerDiedError(str(error)) from None
            answer = self._transact(packed, find, printed)
            self.deaths = 0
            return answer

    def _see(self) -> None:
        try:
            self._transact(pack(("echo", None)))
        except WorkerLostError:
            self.start()

    def _transact(
        self,
        packed: Packed,
        find: Callable[[Any], Any] | None = None,
        printed: list[tuple[str, str]] | None = None,
    ) -> tuple[tuple[Any, ...], int]:
        try:
            coming = self._exchange(packed)
            while True:
                received = next(coming)
                answer: tuple[Any, ...] = unpack(received, find)
                if answer[0] != "output":
                    return answer, received.nbytes
                if printed is None:
                    emit(answer[1], answer[2])
                else:
                    printed.append((answer[1], answer[2]))
        except ConnectionError as error:
            self.deaths += 1
            raise WorkerLostError(f"the worker of {self.device} {self._end() or error}") from None
        except BaseException:
            # Ctrl-C, or an answer that cannot be read: where the conversation stands is not known any more.
            self._end()
            raise

    def close(self) -> None:
        """End it; a call that runs is waited for."""
        with self._lock:
            self._closed = True
            self._end()
            self.contents = {}


def again(attempt: Callable[[], _T], what: str, lost: Callable[[str], object]) -> _T:
    """Make a call, and once more where the worker ends under it.

    Parameters
    ----------
    what : str
        What is called.
    lost : callable
        Takes how each worker ended.

    Raises
    ------
    WorkerLostError
        If the second one ends too. What ends two workers might end the kernel, so it is not tried there.
    """
    try:
        return attempt()
    except WorkerLostError as error:
        lost(str(error))
    try:
        return attempt()
    except WorkerLostError as error:
        lost(str(error))
        raise WorkerLostError(f"{error} while it ran {what}, and so was the one before") from None


def emit(stream: str, text: str) -> None:
    """Print what a worker printed."""
    (sys.stdout if stream == "stdout" else sys.stderr).write(text)


def _first_line(answer: tuple[Any, ...]) -> str:
    error = answer[1]
    text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    return text.splitlines()[0] if text else text
