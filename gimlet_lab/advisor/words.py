"""Figures as a person says them."""

from __future__ import annotations

from gimlet_lab.model import Estimate


def quantity(value: float, objective: str) -> str:
    """A figure with its unit, three digits."""
    if objective == "cost":
        return f"${value:.3g}"
    if objective == "energy":
        return f"{value:.3g} J"
    return seconds(value)


def seconds(value: float) -> str:
    """A time as a person says it.

    Examples
    --------
    >>> seconds(0.0123), seconds(90.0), seconds(0)
    ('12.3 ms', '90 s', '0 s')
    """
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= size:
            return f"{_three(value / size)} {unit}"
    return f"{_three(value / 1e-6)} µs" if value else "0 s"


def _three(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def size(value: float) -> str:
    """Bytes as a person says them."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def interval(estimate: Estimate) -> str:
    """A time with its interval and its source."""
    between = f"{seconds(estimate.low)} to {seconds(estimate.high)}"
    return f"{seconds(estimate.seconds)} ({between}, {estimate.source})"
