"""Worker processes as the kernel sees them: started, called, replaced when they die, and gone at the end."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from gimlet_lab.backends.channel import Channel, ChannelClosedError
from gimlet_lab.backends.packing import Packed, pack, unpack
from gimlet_lab.errors import GimletError

#: A worker that died this often is not started again: it would die again.
MAX_DEATHS = 3

_STOP_S = 5.0


class WorkerDiedError(GimletError):
    """A worker process ended while it was needed."""


class Template:
    """The process that workers are forked from: it imports what they need once.

    It is there while some worker is: :meth:`hold` and :meth:`release` count.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holders = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._pid = 0
        self._imported: set[str] = set()

    def hold(self) -> None:
        """Keep it."""
        with self._lock:
            self._forked()
            self._holders += 1

    def release(self) -> None:
        """Let it go; the last one to do so ends it."""
        with self._lock:
            self._holders -= 1
            if self._holders <= 0:
                self._stop()

    def prepare(self, modules: Iterable[str], threads: int) -> None:
        """Start it where it does not run, and import modules ahead.

        Parameters
        ----------
        threads : int
            Of a worker; numerical libraries fix it when they are imported.
        """
        with self._lock:
            self._start(threads)
            wanted = [name for name in modules if name not in self._imported]
            self._imported.update(wanted)
            self._ask("import", list(sys.path), wanted)

    def fork(self, cores: tuple[int, ...]) -> tuple[socket.socket, int]:
        """Start a worker; its socket and its process id."""
        with self._lock:
            self._start(len(cores))
            ours, theirs = socket.socketpair()
            try:
                assert self._channel is not None
                self._channel.send(pack(("fork", cores)))
                socket.send_fds(self._channel.sock, [b"f"], [theirs.fileno()])
                pid = unpack(self._channel.receive())
            except BaseException as error:
                ours.close()
                self._stop()
                if isinstance(error, (ChannelClosedError, OSError)):
                    raise WorkerDiedError(f"a worker could not be started: {error}") from None
                raise
            finally:
                theirs.close()
            return ours, int(pid)

    def ended(self, pid: int) -> int | None:
        """Wait for a worker that was told to end; its exit status (negative: the signal that ended it)."""
        with self._lock:
            if self._channel is None:
                return None
            try:
                status = self._ask("ended", pid)
            except WorkerDiedError:
                return None
            return None if status is None else int(status)

    def _ask(self, *message: Any) -> Any:
        assert self._channel is not None
        try:
            self._channel.send(pack(message))
            return unpack(self._channel.receive())
        except BaseException as error:
            self._stop()  # half a message would garble the next
            if isinstance(error, ChannelClosedError):
                raise WorkerDiedError("the process that starts workers ended: apply the plan again") from None
            raise

    def _start(self, threads: int) -> None:
        self._forked()
        if self._process is not None and self._process.poll() is None:
            return
        self._stop()
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment.setdefault(variable, str(threads))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gimlet_lab.backends.worker", str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
            )
        except OSError as error:
            ours.close()
            raise WorkerDiedError(f"a worker could not be started: {error}") from None
        finally:
            theirs.close()
        self._channel = Channel(ours)
        self._pid = os.getpid()

    def _forked(self) -> None:
        if self._pid and self._pid != os.getpid():  # a child of the kernel: the processes are not its own
            self.__init__()  # type: ignore[misc]

    def _stop(self) -> None:
        channel, process = self._channel, self._process
        self._channel = self._process = None
        self._imported = set()
        if channel is not None:
            channel.close()
        if process is not None:
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


TEMPLATE = Template()


class Worker:
    """One pinned process.

    Parameters
    ----------
    device : str
        The slice's id.
    cores : tuple of int
        What it is pinned to.
    """

    _numbers = itertools.count()

    def __init__(self, device: str, cores: tuple[int, ...]) -> None:
        self.device = device
        self.cores = cores
        self.deaths = 0
        self.generation = 0
        self.pid = 0
        self.contents: dict[str, Packed] = {}
        self._channel: Channel | None = None
        self._lock = threading.RLock()
        self._host = os.getpid()
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether it can be called: running, or to be started again by the next call."""
        return not self._closed and self._host == os.getpid() and self.deaths < MAX_DEATHS

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._channel is not None

    def start(self) -> None:
        """Start the process and send it what it had before, where it died."""
        with self._lock:
            if self._channel is not None:
                return
            sock, self.pid = TEMPLATE.fork(self.cores)
            self._channel = Channel(sock)
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
            if self.contents.pop(key, None) is not None and self._channel is not None:
                self._transact(pack(("drop", key)))

    def call(
        self,
        packed: Packed,
        find: Callable[[Any], Any] | None = None,
        printed: list[tuple[str, str]] | None = None,
    ) -> tuple[tuple[Any, ...], int]:
        """Make one call, one at a time: the answer and its bytes.

        Parameters
        ----------
        printed : list, optional
            Takes what the call prints, as stream and text, in place of the streams.

        Raises
        ------
        WorkerDiedError
            If the process ends before it has answered.
        """
        with self._lock:
            if not self.alive:
                raise WorkerDiedError(f"{self.device} is gone")
            self.start()
            return self._transact(packed, find, printed)

    def _transact(
        self,
        packed: Packed,
        find: Callable[[Any], Any] | None = None,
        printed: list[tuple[str, str]] | None = None,
    ) -> tuple[tuple[Any, ...], int]:
        channel = self._channel
        assert channel is not None
        try:
            channel.send(packed)
            while True:
                received = channel.receive()
                answer: tuple[Any, ...] = unpack(received, find)
                if answer[0] != "output":
                    return answer, received.nbytes
                if printed is None:
                    emit(answer[1], answer[2])
                else:
                    printed.append((answer[1], answer[2]))
        except ChannelClosedError:
            self.deaths += 1
            status = self._end()
            raise WorkerDiedError(f"the worker of {self.device} {_how(status)}") from None
        except BaseException:
            # Ctrl-C, or an answer that cannot be read: where the conversation stands is not known any more.
            self._end()
            raise

    def close(self) -> None:
        """End the process; a call that runs is waited for."""
        with self._lock:
            self._closed = True
            self._end()
            self.contents = {}

    def _end(self) -> int | None:
        channel, self._channel = self._channel, None
        if channel is None:
            return None
        channel.close()
        if self._host != os.getpid():
            return None
        pid, self.pid = self.pid, 0
        # It ends by itself when its socket closes; but not while it is stuck, or stopped.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return TEMPLATE.ended(pid)


def emit(stream: str, text: str) -> None:
    """Print what a worker printed."""
    (sys.stdout if stream == "stdout" else sys.stderr).write(text)


def _how(status: int | None) -> str:
    if status is None:
        return "ended"
    if status < 0:
        name = signal.Signals(-status).name
        return f"was ended by {name}" + (" (out of memory?)" if status == -signal.SIGKILL else "")
    return f"ended with status {status}"


def _first_line(answer: tuple[Any, ...]) -> str:
    error = answer[1]
    text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    return text.splitlines()[0] if text else text
