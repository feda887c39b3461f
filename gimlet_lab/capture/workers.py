"""Worker processes of a cell: what they took, for what they computed nobody here can see."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import psutil

#: Less CPU time than this is not worth a word.
LEAST_S = 0.05


class Workers:
    """Children of this process from its making to :meth:`note`.

    Parameters
    ----------
    known : collection of int
        Processes that have their own place in the run: stages that a plan put there.
    """

    def __init__(self, known: Collection[int] = ()) -> None:
        self._known = frozenset(known)
        self._ended_s = _ended_s()
        self._before = self._living()

    def note(self) -> str | None:
        """Say how much CPU time children took, if they took any."""
        now = self._living()
        alive_s = sum(spent - self._before.get(child, 0.0) for child, spent in now.items())
        # What had been spent before by those that have ended meanwhile was not spent here.
        ended_s = _ended_s() - self._ended_s - sum(self._before[child] for child in self._before.keys() - now)
        spent_s = alive_s + max(0.0, ended_s)
        if spent_s < LEAST_S:
            return None
        still = f", {len(now)} of them still running," if now else ""
        return (
            f"worker processes{still} used {spent_s:.2g} s of CPU time; what they computed is not in this run"
        )

    def _living(self) -> dict[tuple[int, float], float]:
        """CPU seconds of each child, by its number and its birth: the number alone is given out again."""
        found = {}
        for child in _children():
            try:
                times, born = child.cpu_times(), child.create_time()
            except psutil.Error:
                continue
            if child.pid not in self._known:
                found[child.pid, born] = times.user + times.system
        return found


def _children() -> Iterator[psutil.Process]:
    """Processes that this one started; psutil finds them among all there are, which takes milliseconds."""
    try:
        texts = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    except OSError:
        texts = []
    if not texts:
        yield from psutil.Process().children()
    for number in " ".join(texts).split():
        with contextlib.suppress(psutil.Error):
            yield psutil.Process(int(number))


def _ended_s() -> float:
    """CPU seconds of all children that have ended and been waited for."""
    times = os.times()
    return times.children_user + times.children_system
