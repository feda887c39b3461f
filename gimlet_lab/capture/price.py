"""What watching an operator costs outside our own clock: the way through torch to us and back."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from gimlet_lab.capture.dataflow import Dataflow
from gimlet_lab.capture.operators import Operators
from gimlet_lab.capture.timeline import Timeline

#: No machine is believed to be slower than the quiet loop by more.
COLDEST = 5.0


class Price(NamedTuple):
    """Seconds that watching takes of an operator in a quiet loop: outside our own clock, and by it."""

    outside_s: float
    inside_s: float


_prices: dict[int, Price] = {}


def dispatch_s(operators: Operators) -> float:
    """Seconds that watching took of each operator of a recording outside our own clock.

    Between a model's products caches are cold, and Python is twice or thrice as slow as in a quiet loop: by
    how much, the part inside our clock tells.
    """
    lanes = operators.timeline.lanes
    watched = sum(lane.calls for lane in lanes)
    if not watched:
        return 0.0
    price = price_of(operators.torch)
    inside_s = sum(lane.spent - lane.learning for lane in lanes) / watched
    return price.outside_s * min(max(inside_s / price.inside_s, 1.0), COLDEST)


def price_of(torch: Any) -> Price:
    """What watching costs at best, measured once."""
    if id(torch) in _prices:
        return _prices[id(torch)]
    timeline = Timeline(time.perf_counter)
    operators, lane, tensor = Operators(timeline, Dataflow(), torch), timeline.lane(), torch.zeros(1)
    best, inside = [float("inf"), float("inf")], float("inf")
    for watched in (0, 1) * 5:
        if watched:
            operators.push(lane)
        try:
            lane.spent, lane.learning, started = 0.0, 0.0, time.perf_counter()
            for _ in range(40):
                # One of one tensor, one of two, and one of a number that torch has to wrap.
                tensor.neg_()
                tensor.mul_(tensor)
                tensor.add_(1)
            took = time.perf_counter() - started - lane.spent
        finally:
            operators.remove(lane)
        best[watched] = min(best[watched], took / 120)
        inside = min(inside, (lane.spent - lane.learning) / 120) if watched else inside
    _prices[id(torch)] = Price(max(0.0, best[1] - best[0]), inside)
    return _prices[id(torch)]
