"""Worker processes of this machine, forks of one template."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from gimlet_lab.backends.channel import Channel, ChannelClosedError
from gimlet_lab.backends.packing import Packed, pack, unpack
from gimlet_lab.backends.remote import Remote, WorkerDiedError

_STOP_S = 5.0


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


class Worker(Remote):
    """One pinned process.

    Parameters
    ----------
    device : str
        The slice's id.
    cores : tuple of int
        What it is pinned to.
    """

    def __init__(self, device: str, cores: tuple[int, ...]) -> None:
        super().__init__(device)
        self.cores = cores
        self._channel: Channel | None = None
        self._host = os.getpid()

    @property
    def alive(self) -> bool:
        """Whether it can be called; never from a child of the kernel."""
        return self._host == os.getpid() and super().alive

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._channel is not None

    def _open(self) -> None:
        sock, self.pid = TEMPLATE.fork(self.cores)
        self._channel = Channel(sock)

    def _exchange(self, packed: Packed) -> Iterator[Packed]:
        channel = self._channel
        assert channel is not None
        channel.send(packed)
        while True:
            yield channel.receive()

    def _end(self) -> str:
        channel, self._channel = self._channel, None
        if channel is None:
            return _how(None)
        channel.close()
        if self._host != os.getpid():
            return _how(None)
        pid, self.pid = self.pid, 0
        # It ends by itself when its socket closes; but not while it is stuck, or stopped.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return _how(TEMPLATE.ended(pid))


def _how(status: int | None) -> str:
    if status is None:
        return "ended"
    if status < 0:
        name = signal.Signals(-status).name
        return f"was ended by {name}" + (" (out of memory?)" if status == -signal.SIGKILL else "")
    return f"ended with status {status}"
