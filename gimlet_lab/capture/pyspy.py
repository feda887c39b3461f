"""py-spy beside the cell: sees threads that hold the interpreter's lock, native frames and other processes.

It writes a Chrome trace, the one of its formats that says when each stack was seen. All that is Linux's: on
macOS only root may look into a process, and elsewhere nobody has tried.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gimlet_lab.capture.frames import Raw
from gimlet_lab.capture.permission import Facts, allow, refusal

RATE_HZ = 100

#: Native code is looked at less often: each look stops the process for some ten milliseconds.
NATIVE_RATE_HZ = 25

#: A trace larger than this is not read.
MAX_TRACE_BYTES = 512 * 2**20

_STOP_S = 5.0


class Traced(NamedTuple):
    """A thread in one stack for a while, on py-spy's clock; the outermost frame first."""

    ident: int
    start_s: float
    end_s: float
    frames: tuple[Raw, ...]


def find_program() -> str | None:
    """Where py-spy is: beside this Python, else on the path."""
    beside = os.pathsep.join((sysconfig.get_path("scripts"), str(Path(sys.executable).parent)))
    return shutil.which("py-spy", path=beside) or shutil.which("py-spy")


#: Its own number first; and only when somebody says so, the program. So it is held, and may attach, before it
#: does anything: one that ends at once is no riddle. Without a word (its parent has died) it never runs.
_WHEN_TOLD = 'exec 3<&0; { read -r go <&3 && exec "$@" 3<&- </dev/null; } >"$0" 2>&1 & echo $!'


class _Gate:
    """A pipe that somebody waits at."""

    def __enter__(self) -> _Gate:
        self.inner, self._outer = os.pipe()
        return self

    def open(self) -> None:
        """Let it go on."""
        os.write(self._outer, b"go\n")

    def __exit__(self, *_error: object) -> None:
        os.close(self.inner)
        os.close(self._outer)


class PySpy:
    """One py-spy on one process.

    It is no child of ours, so that a cell that waits for its children never waits for it.

    Parameters
    ----------
    pid : int
    program : str
    native : bool
        Native frames too; the process is then stopped for each look.
    rate_hz, length_s : int
        How often it looks, and for how long.
    clock : callable
        Seconds since the start of the cell.
    """

    def __init__(
        self,
        pid: int,
        program: str,
        *,
        native: bool,
        rate_hz: int,
        length_s: int,
        clock: Callable[[], float],
    ) -> None:
        self.pid = pid
        self.started_s = 0.0
        self._program = program
        self._native = native
        self._rate_hz = min(rate_hz, NATIVE_RATE_HZ) if native else rate_hz
        self.length_s = length_s
        self._clock = clock
        self._folder: Path | None = None
        self._process: int | None = None
        self._owner = os.getpid()
        self._ended_early = False

    def start(self) -> str | None:
        """Start it; why not, where it cannot be."""
        how = ["--native"] if self._native else ["--nonblocking"]
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="gimlet-stacks-"))
            words = [
                self._program, "record", "--pid", str(self.pid), "--format", "chrometrace", "--idle",
                "--rate", str(self._rate_hz), "--full-filenames", *how,
                "--duration", str(self.length_s), "--output", str(self._folder / "trace"),
            ]  # fmt: skip
            with _Gate() as gate:
                said = subprocess.run(
                    ["/bin/sh", "-c", _WHEN_TOLD, str(self._log), *words],
                    stdout=subprocess.PIPE,
                    stdin=gate.inner,
                    start_new_session=True,  # Ctrl-C in a terminal is for the cell
                    check=True,
                )
                spy = int(said.stdout)
                self._process = self._opened(spy)
                if self.pid == os.getpid():
                    allow(spy)
                self.started_s = self._clock()
                gate.open()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__
            self.abandon()
            return f"it could not be started ({reason})"
        return None

    def _opened(self, spy: int) -> int:
        try:
            return os.pidfd_open(spy)
        except OSError:  # a system without: what cannot be told to end must not run
            with contextlib.suppress(OSError):
                os.kill(spy, signal.SIGKILL)
            raise

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and not self._ended(0.0)

    def interrupt(self) -> None:
        """Tell it to write what it saw."""
        if self._process is not None:
            self._ended_early = self._ended(0.0)
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._process, signal.SIGINT)

    def finish(self) -> tuple[list[Traced], str | None]:
        """What it saw, on our clock, once it was told to end; and why that is nothing, where it is."""
        if self._process is None:
            return [], "it was not started"
        try:
            attached = "Sampling" in self._said()
            if not self._ended(_STOP_S if attached else 0.0):
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(self._process, signal.SIGKILL)
            if self.pid == os.getpid():
                allow(0)
            said = self._said()
            trace = self._folder / "trace" if self._folder else Path()
            if not trace.is_file():
                if attached:
                    return [], "it ended before its time, and what it had seen is lost"
                # Else the cell was too short for it.
                return [], refusal(said, Facts.here()) if said or self._ended_early else None
            if trace.stat().st_size > MAX_TRACE_BYTES:
                return [], f"what it wrote is larger than {MAX_TRACE_BYTES / 2**20:.0f} MiB"
            return list(self._placed(parse(trace.read_bytes()))), None
        except OSError as error:
            return [], f"what it wrote cannot be read ({error.strerror})"
        except ValueError as error:
            return [], f"what it wrote is no trace ({error})"
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of everything; a forked child leaves its parent's files where they are."""
        if self._process is not None:
            if self._owner == os.getpid():
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(self._process, signal.SIGKILL)
            os.close(self._process)
            self._process = None
        if self._folder is not None and self._owner == os.getpid():
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    @property
    def _log(self) -> Path:
        return (self._folder or Path()) / "log"

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _ended(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self._process or -1, select.POLLIN)
        return bool(poll.poll(1000 * timeout_s))

    def _placed(self, found: list[Traced]) -> Iterator[Traced]:
        # Its clock begins as it starts. A stack is first seen up to one interval after it began.
        shift_s = self.started_s - 0.5 / self._rate_hz
        for one in found:
            yield one._replace(start_s=one.start_s + shift_s, end_s=one.end_s + shift_s)


def parse(data: bytes) -> list[Traced]:
    """Read py-spy's Chrome trace: by thread, in order, without overlaps.

    Raises
    ------
    ValueError
        If it is no such trace.

    Examples
    --------
    >>> events = [{"ph": "B", "name": "f", "tid": 7, "ts": 0, "args": {"filename": "a.py", "line": 3}},
    ...           {"ph": "E", "name": "f", "tid": 7, "ts": 20000, "args": {"filename": "a.py", "line": 3}}]
    >>> parse(json.dumps(events).encode())
    [Traced(ident=7, start_s=0.0, end_s=0.02, frames=(Raw(function='f', file='a.py', line=3),))]
    """
    try:
        events = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(events, list):
        raise ValueError("not a list of events")
    idents: dict[int, int] = {}
    stacks: dict[int, list[Raw]] = {}
    since: dict[int, float] = {}
    found: dict[int, list[Traced]] = {}
    for event in events:
        kind, tid, at_s = _head(event)
        if kind == "M":
            # Later versions number the threads, and name each "IDENT: NAME".
            ident = str(event.get("args", {}).get("name", "")).partition(":")[0]
            if ident.isdecimal():
                idents[tid] = int(ident)
            continue
        stack = stacks.setdefault(tid, [])
        at_s = max(at_s, since.get(tid, 0.0))
        if stack and at_s > since[tid]:
            found.setdefault(tid, []).append(Traced(tid, since[tid], at_s, tuple(stack)))
        since[tid] = at_s
        if kind == "B":
            stack.append(_raw(event))
        elif stack:
            stack.pop()
    return [one._replace(ident=idents.get(tid, tid)) for tid in sorted(found) for one in _joined(found[tid])]


def _head(event: Any) -> tuple[str, int, float]:
    try:
        kind, tid, ts = event["ph"], event["tid"], event["ts"]
    except (TypeError, KeyError):
        raise ValueError("an event without kind, thread and time") from None
    numbers = isinstance(tid, int) and isinstance(ts, int | float) and 0 <= ts < 1e15
    if kind not in ("B", "E", "M") or not numbers or not isinstance(event.get("args", {}), dict):
        raise ValueError("an event of another kind")
    return kind, tid, 1e-6 * ts


def _raw(event: Any) -> Raw:
    args = event.get("args", {})
    line = args.get("line")
    return Raw(
        str(event.get("name", "?"))[:200],
        str(args.get("filename", "?"))[:1000],
        line if isinstance(line, int) and 0 < line < 2**31 else None,
    )


def _joined(rows: list[Traced]) -> Iterator[Traced]:
    """Neighbours with equal stacks as one."""
    last: Traced | None = None
    for row in rows:
        if last is not None and last.frames == row.frames and last.end_s == row.start_s:
            last = last._replace(end_s=row.end_s)
            continue
        if last is not None:
            yield last
        last = row
    if last is not None:
        yield last
