"""Call stacks while a cell runs: from inside, and by py-spy too once the cell has proved to be a long one.

From inside, a thread that holds the interpreter's lock is seen when it lets go, and native code not at all;
but it costs next to nothing, there is no process to start for a cell of a few milliseconds, and nobody can
forbid it. So it goes on all the time, and what py-spy saw takes its place.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from types import FrameType

from gimlet_lab.capture.accounts import Account, Totals, WorkerAccount
from gimlet_lab.capture.frames import LiveStacks, Names, served
from gimlet_lab.capture.pyspy import NATIVE_RATE_HZ, RATE_HZ, PySpy, Traced, find_program
from gimlet_lab.model.collector import uncollected
from gimlet_lab.model.stacks import Seen, StackRecording, StackThread, Tree

#: A cell that has run for so long gets py-spy.
AFTER_S = 0.5

#: How often py-spy looks, and for how many seconds: its trace grows with every look. Later there is the view
#: from inside.
_TURNS = ((RATE_HZ, 60), (RATE_HZ // 10, 600))

#: Rows of one thread, beyond which every second one is given up.
_MAX_ROWS = 100_000

#: Threads that were there before the cell mostly do nothing for it: they are looked at once in so many times.
_OLD_LOOKS = 10


@dataclass(frozen=True, slots=True)
class StackOptions:
    """How stacks are sampled.

    Attributes
    ----------
    cell_name : callable
        What a cell's file is called (``In[3]``); None for a file without a name of its own.
    native : bool
        Frames of native code too.
    processes : mapping of int to str
        Worker processes to look into, and their devices.
    program : str or None
        py-spy; None where there is none.
    after_s : float
        When it is started.
    """

    cell_name: Callable[[str], str | None] = lambda _file: None
    native: bool = False
    processes: Mapping[int, str] = field(default_factory=dict)
    program: str | None = field(default_factory=find_program)
    after_s: float = AFTER_S


class _Thread:
    """A thread of this process, and what is known of it.

    ``old``: it was there before the cell.
    """

    __slots__ = ("account", "first_s", "ident", "last_s", "name", "node", "number", "old", "rows")

    def __init__(self, number: int, ident: int, now_s: float, *, old: bool) -> None:
        known = next((thread for thread in threading.enumerate() if thread.ident == ident), None)
        self.number = number
        self.ident = ident
        self.name = known.name if known is not None else f"thread {ident}"
        self.old = old
        self.first_s = self.last_s = now_s
        self.node = -1
        self.rows: list[Seen] = []
        self.account = Account(known.native_id if known is not None else None)

    def saw(self, now_s: float) -> None:
        """It has been in its present stack since the last look."""
        last = self.rows[-1] if self.rows else None
        if last is not None and last.node == self.node and last.end_s == self.last_s:
            self.rows[-1] = last._replace(end_s=now_s)
        elif now_s > self.last_s:
            self.rows.append(Seen(self.number, self.last_s, now_s, self.node))
            if len(self.rows) > _MAX_ROWS:
                self.rows = thinned(self.rows)
        self.last_s = now_s


def thinned(rows: list[Seen]) -> list[Seen]:
    """Half as many rows: what stood in a row of its own counts for the one before, unless there is a gap.

    Examples
    --------
    >>> thinned([Seen(0, 0.0, 1.0, 5), Seen(0, 1.0, 2.0, 6), Seen(0, 3.0, 4.0, 7)])
    [Seen(thread=0, start_s=0.0, end_s=2.0, node=5), Seen(thread=0, start_s=3.0, end_s=4.0, node=7)]
    """
    found: list[Seen] = []
    alone = False
    for row in rows:
        if alone and found[-1].end_s == row.start_s:
            found[-1] = found[-1]._replace(end_s=row.end_s)
            alone = False
        else:
            found.append(row)
            alone = True
    return found


def _frames() -> dict[int, FrameType]:
    """The frame of every thread, while nothing is collected.

    Python holds the lock of its list of threads meanwhile, and allocates: where that sets off a collection
    which finds a ``threading.local``, the process waits for itself for ever (python/cpython#106883).
    """
    with uncollected():
        return sys._current_frames()  # noqa: SLF001 - the one way, and documented


class StackSampler:
    """The stacks of a cell's threads, from :meth:`start` to :meth:`stop`.

    Made and started in the cell's thread; ticks come from another one.

    Parameters
    ----------
    now : callable
        Seconds since the start of the cell.
    is_cell_file : callable
    options : StackOptions
    """

    def __init__(
        self, now: Callable[[], float], is_cell_file: Callable[[str], bool], options: StackOptions
    ) -> None:
        self.notes: list[str] = []
        self._now = now
        self._options = options
        self._names = Names(is_cell_file, options.cell_name)
        self._tree = Tree()
        self._threads: list[_Thread] = []
        self._current: dict[int, _Thread] = {}
        self._live = LiveStacks()
        self._looks = 0
        self._spies: list[tuple[PySpy, str | None]] = []
        self._workers: dict[str, WorkerAccount] = {}
        #: By the number of a thread in the recording.
        self._accounts: dict[int, Totals] = {}
        self._own: PySpy | None = None
        self._turns = list(_TURNS)
        self._failed = False

    def start(self) -> None:
        """Begin."""
        now_s = self._now()
        self._owner = threading.get_ident()
        self._workers = {device: WorkerAccount(pid) for pid, device in self._options.processes.items()}
        for ident in _frames():
            self._meet(ident, now_s, old=ident != self._owner)

    def tick(self) -> None:
        """Look once; after a failure never again."""
        if self._failed:
            return
        try:
            self._look()
        except Exception as error:  # noqa: BLE001 - the thread that calls has more to do than this
            self._failed = True
            self.notes.append(f"stacks were not sampled to the end: {type(error).__name__}: {error}")

    def _look(self) -> None:
        now_s = self._now()
        if self._turns and self._turn_is_due(now_s):
            self._spy(*self._turns.pop(0))
        for worker in self._workers.values():
            worker.read(now_s)
        frames = _frames()
        frames.pop(threading.get_ident(), None)
        self._looks += 1
        for ident, frame in frames.items():
            thread = self._current.get(ident) or self._meet(ident, now_s, old=False)
            if thread.old and self._looks % _OLD_LOOKS:
                continue
            try:
                moved = thread.account.read(now_s)
            except ProcessLookupError:  # another thread has got the number of one that ended
                thread = self._meet(ident, now_s, old=False)
                moved = True
            if moved:
                thread.node = self._live.add(frame)
            thread.saw(now_s)

    def stop(self, lanes: Mapping[int, int]) -> StackRecording:
        """End, and give what was seen.

        Parameters
        ----------
        lanes : mapping of thread identifier to lane
        """
        for spy, _ in self._spies:
            spy.interrupt()
        threads = [StackThread(thread.name, lanes.get(thread.ident)) for thread in self._threads]
        seen = [row for thread in self._threads for row in self._named(thread)]
        sources = ["in-process"] if seen else []
        for spy, device in self._spies:
            traced, why = spy.finish()
            if why is not None:
                self._note_refusal(device, why)
            elif traced and device is None:
                seen = self._merged(seen, traced)
                sources.append("py-spy")
                if self._options.native:
                    self.notes.append(
                        "the process was stopped for each look at native code: waits include it"
                    )
            elif traced:
                seen = [*seen, *self._of_worker(traced, device or "", threads)]
        self._accounts |= {thread.number: thread.account for thread in self._threads}
        self._close_accounts()
        return StackRecording(
            tuple(self._tree.frames),
            tuple(self._tree.nodes),
            tuple(threads),
            tuple(sorted(seen, key=lambda one: (one.thread, one.start_s))),
            {
                number: (account.at_s, account.active_s)
                for number, account in self._accounts.items()
                if account.at_s
            },
            float(NATIVE_RATE_HZ if self._options.native and "py-spy" in sources else RATE_HZ),
            ", ".join(dict.fromkeys(sources)),
        )

    def abandon(self) -> None:
        """Let go without a word: in a forked child nothing of it runs."""
        self._close_accounts()
        for spy, _ in self._spies:
            spy.abandon()
        self._spies = []

    def _close_accounts(self) -> None:
        for thread in self._threads:
            thread.account.close()
        for worker in self._workers.values():
            worker.close()

    # -- from inside -----------------------------------------------------------------------------

    def _meet(self, ident: int, now_s: float, *, old: bool) -> _Thread:
        before = self._current.get(ident)
        if before is not None:
            before.account.close()
        thread = self._current[ident] = _Thread(len(self._threads), ident, now_s, old=old)
        self._threads.append(thread)
        return thread

    def _named(self, thread: _Thread) -> Iterator[Seen]:
        nodes = {
            row.node: self._tree.add(self._names.path(self._live.read(row.node), own=not thread.old))
            for row in thread.rows
        }
        return (row._replace(node=nodes[row.node]) for row in thread.rows if nodes[row.node] >= 0)

    # -- from outside ----------------------------------------------------------------------------

    def _turn_is_due(self, now_s: float) -> bool:
        before = self._own
        if before is None:
            return now_s >= self._options.after_s
        if before.running:
            return False
        if now_s - before.started_s < 0.9 * before.length_s:  # it failed, and would again
            self._turns = []
            return False
        return True

    def _spy(self, rate_hz: int, length_s: int) -> None:
        options = self._options
        if sys.platform != "linux":
            on_mac = sys.platform == "darwin"
            self._note_refusal(
                None, "macOS lets only root look" if on_mac else f"not tried on {sys.platform}"
            )
            return
        if options.program is None:
            self._note_refusal(None, "it is not installed: pip install py-spy")
            return
        for pid, device in [(os.getpid(), None), *options.processes.items()]:
            spy = PySpy(
                pid,
                options.program,
                native=options.native,
                rate_hz=rate_hz,
                length_s=length_s,
                clock=self._now,
            )
            why = spy.start()
            if why is None:
                self._spies.append((spy, device))
                self._own = spy if device is None else self._own
            else:
                self._note_refusal(device, why)

    def _merged(self, inside: list[Seen], traced: list[Traced]) -> list[Seen]:
        """What py-spy saw, and what was seen from inside before and after it."""
        first_s = min(one.start_s for one in traced)
        last_s = max(one.end_s for one in traced)
        found = [one._replace(end_s=min(one.end_s, first_s)) for one in inside if one.start_s < first_s]
        found += [one._replace(start_s=max(one.start_s, last_s)) for one in inside if one.end_s > last_s]
        by_ident: dict[int, list[_Thread]] = {}
        for thread in self._threads:
            by_ident.setdefault(thread.ident, []).append(thread)
        for one in traced:
            for thread in by_ident.get(one.ident, ()):
                # Its trace does not say when a thread ended.
                late_s = (_OLD_LOOKS if thread.old else 1) / RATE_HZ
                start_s = max(one.start_s, thread.first_s - late_s)
                end_s = min(one.end_s, thread.last_s + late_s)
                if start_s < end_s:
                    node = self._tree.add(self._names.path(one.frames, own=not thread.old))
                    found.append(Seen(thread.number, start_s, end_s, node))
        return [one for one in found if one.node >= 0]

    def _of_worker(self, traced: list[Traced], device: str, threads: list[StackThread]) -> list[Seen]:
        found = []
        for _, group in groupby(traced, key=lambda one: one.ident):
            rows = list(group)
            placed = [(row, self._tree.add(self._names.path(served(row.frames), own=True))) for row in rows]
            seen = [Seen(len(threads), row.start_s, row.end_s, node) for row, node in placed if node >= 0]
            if not seen:
                continue
            # Only of its main thread there is an account; the others begin in Python's own bootstrap.
            if not rows[0].frames[0].file.endswith("threading.py"):
                self._accounts[len(threads)] = self._workers[device]
            threads.append(StackThread(f"worker of {device}", None, device))
            found += seen
        return found

    def _note_refusal(self, device: str | None, why: str) -> None:
        self._turns = [] if device is None else self._turns
        if device is not None:
            self.notes.append(f"stacks of the worker of {device} were not seen: py-spy: {why}")
            return
        cost = "native code is not seen, and threads only where they let go of the interpreter"
        self.notes.append(f"stacks were sampled from inside, without py-spy: {why}; {cost}")
