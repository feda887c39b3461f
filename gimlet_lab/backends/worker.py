"""The worker process: ``python -m gimlet_lab.backends.worker FD HOST_PID``.

Started by a fresh interpreter, never by a fork of the kernel. The process that is started is a template:
it imports what the workers will need once, and every worker is a fork of it (single threaded, so that
forking is safe). A worker is pinned to the cores of its slice and answers one call at a time.

Template and workers end when the kernel ends, however it ends.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import socket
import sys
import threading
import traceback
import warnings
from typing import Any

from gimlet_lab.backends.channel import Channel, ChannelClosedError
from gimlet_lab.backends.packing import pack, unpack
from gimlet_lab.backends.serving import Server


def template(control: socket.socket, host: int) -> None:
    """Import and fork as told, until the host goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the kernel's
    warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
    watched = _process(host)
    channel = Channel(control)
    while _readable(control, watched):
        try:
            command, *values = unpack(channel.receive())
        except ChannelClosedError:
            return
        if command == "import":
            path, names = values
            sys.path[:] = path
            answer: Any = _import(names)
        elif command == "fork":
            (cores,) = values
            sock = socket.socket(fileno=socket.recv_fds(control, 1, 1)[1][0])
            answer = os.fork()
            if answer == 0:
                control.close()
                channel.close()
                _begin(sock, watched, cores)
            sock.close()
        else:  # what ended a worker
            answer = _ended(values[0])
        try:
            channel.send(pack(answer))
        except ChannelClosedError:
            return


def _import(names: list[str]) -> list[str]:
    """Import ahead of the workers; what cannot be imported they will say when they need it."""
    failed = []
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException:  # noqa: BLE001 - any module may raise anything, even SystemExit
            failed.append(name)
    return failed


def _ended(pid: int) -> int | None:
    try:
        done, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if done else None


def _process(pid: int) -> int | None:
    """Something to poll that is readable once a process has ended; None where the system has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _readable(sock: socket.socket, watched: int | None) -> bool:
    """Wait for a message; False when the host has gone."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if watched is not None:
        poll.register(watched, select.POLLIN)
    events = dict(poll.poll())
    return watched not in events


def _begin(sock: socket.socket, watched: int | None, cores: tuple[int, ...]) -> None:
    status = 1
    try:
        os.sched_setaffinity(0, cores)
        os.environ["OMP_NUM_THREADS"] = str(len(cores))
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(len(cores))
        threading.Thread(target=_follow, args=(sock, watched), daemon=True).start()
        channel = Channel(sock)
        server = Server(channel)
        server.take_streams()
        while True:
            channel.send(server.reply(channel.receive()))
    except ChannelClosedError:
        status = 0
    except BaseException:  # noqa: BLE001 - this is the end of the process; nothing above may run twice
        traceback.print_exc()
    finally:
        os._exit(status)


def _follow(sock: socket.socket, watched: int | None) -> None:
    """End with the host, also in the middle of a call."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP if hasattr(select, "POLLRDHUP") else select.POLLHUP)
    if watched is not None:
        poll.register(watched, select.POLLIN)
    poll.poll()
    os._exit(0)


if __name__ == "__main__":
    # Under its own name, so that what is pickled here is found there.
    from gimlet_lab.backends import worker

    worker.template(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    os._exit(0)  # taking an interpreter with torch apart takes half a second
