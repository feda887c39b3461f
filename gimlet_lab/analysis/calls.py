"""How long calls would have taken without a closer look, and which were the first touch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from gimlet_lab.model import Span

#: A first call is a warm-up when it takes this many times the median of the others.
WARMUP_RATIO = 1.5

#: A looked-at call takes as long as so many calls that were not, the nearest in KV length.
NEIGHBOURS = 5


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a stage.

    Attributes
    ----------
    span : Span
    clean_s : float
        What it would have taken had nobody looked; its own time where nobody did.
    warm_s : float
        What it takes once warm: less than ``clean_s`` only for a warm-up.
    warmup : bool
    """

    span: Span
    clean_s: float
    warm_s: float
    warmup: bool


def past(span: Span) -> float:
    """KV length before the call: what makes calls of one signature grow."""
    value = span.attributes.get("past_len")
    return float(value) if isinstance(value, int | float) else 0.0


def likeness(span: Span) -> tuple[object, ...]:
    """Calls with equal likeness do the same work, up to their KV length."""
    shape = span.signature or (span.attributes.get("batch"), span.attributes.get("q_len"))
    return (span.kind, span.target or span.attributes.get("module") or span.name, span.role, shape)


def measure(spans: Iterable[Span]) -> dict[int, Call]:
    """Times of calls, by span id.

    A looked-at call takes the median of its nearest neighbours that were not looked at; where there are none,
    its own time less what the looking took (``look_overhead_s``). The first call of a kind is a warm-up when
    it takes more than 1.5 times the median of the others: one other for modules, whose work is the same each
    time, two for functions.
    """
    groups: dict[tuple[object, ...], list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_s):
        groups[likeness(span)].append(span)
    calls: dict[int, Call] = {}
    for group in groups.values():
        plain = [span for span in group[1:] if not span.looked]
        own = {span.id: _own_s(span) for span in group}
        clean = {span.id: _clean_s(span, plain) for span in group}
        first, others = group[0], [clean[span.id] for span in group[1:]]
        enough = 1 if first.kind == "module" else 2
        # How much of a looked-at call was the looking: where nobody says, nobody knows what the rest was.
        told = not first.looked or "look_overhead_s" in first.attributes
        warmup = told and len(others) >= enough and own[first.id] > WARMUP_RATIO * median(others)
        for span in group:
            calls[span.id] = Call(span, clean[span.id], clean[span.id], False)
        if warmup:
            calls[first.id] = Call(first, own[first.id], median(others), True)
    return calls


def _own_s(span: Span) -> float:
    looking_s = span.attributes.get("look_overhead_s")
    if not isinstance(looking_s, int | float):
        return span.duration_s
    # Never less than a tenth: what we measured of ourselves has its own error.
    return max(span.duration_s - float(looking_s), 0.1 * span.duration_s)


def _clean_s(span: Span, plain: list[Span]) -> float:
    if not span.looked or not plain:
        return _own_s(span)
    nearest = sorted(plain, key=lambda other: (abs(past(other) - past(span)), other.start_s))[:NEIGHBOURS]
    return min(median(other.duration_s for other in nearest), span.duration_s)
