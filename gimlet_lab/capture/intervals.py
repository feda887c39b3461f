"""Stretches of time on an accelerator: streams overlap, so seconds are of unions, never of sums."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

Interval = tuple[float, float]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time without overlap, by start.

    Examples
    --------
    >>> union([(3.0, 4.0), (0.0, 2.0), (1.0, 2.5)])
    [(0.0, 2.5), (3.0, 4.0)]
    """
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            if end > found[-1][1]:
                found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def seconds(intervals: Iterable[Interval]) -> float:
    """How long some of them go on.

    Examples
    --------
    >>> seconds([(0.0, 2.0), (1.0, 3.0)])
    3.0
    """
    return sum(end - start for start, end in union(intervals))


def without(start: float, end: float, covered: Sequence[Interval]) -> Iterator[Interval]:
    """What of a stretch no interval of a :func:`union` covers.

    Examples
    --------
    >>> list(without(0.0, 10.0, [(1.0, 2.0), (5.0, 20.0)]))
    [(0.0, 1.0), (2.0, 5.0)]
    """
    at = max(0, bisect_right(covered, (start, float("inf"))) - 1)
    now = start
    while at < len(covered) and covered[at][0] < end:
        low, high = covered[at]
        if low > now:
            yield now, low
        now = max(now, high)
        at += 1
    if now < end:
        yield now, end


class Busy:
    """Until when work that was launched before a moment keeps a device busy.

    Parameters
    ----------
    launches : sequence of (launched, ended)
        When each piece of work was launched, by the host's clock, and when it ended on the device.
    """

    def __init__(self, launches: Iterable[Interval]) -> None:
        self._at: list[float] = []
        self._until: list[float] = []
        latest = float("-inf")
        for launched, ended in sorted(launches):
            latest = max(latest, ended)
            self._at.append(launched)
            self._until.append(latest)

    def until(self, moment: float) -> float:
        """The end of all work launched before a moment; the moment itself where there is none later.

        Examples
        --------
        >>> Busy([(0.0, 5.0), (1.0, 9.0)]).until(0.5), Busy([]).until(0.5)
        (5.0, 0.5)
        """
        index = bisect_right(self._at, moment) - 1
        return max(moment, self._until[index]) if index >= 0 else moment
