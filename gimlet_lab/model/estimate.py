"""A number with its interval and source."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

#: Sources, the best first.
SOURCES = ("measured", "kernel table", "model")


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds one call takes, never without its interval and source.

    Attributes
    ----------
    seconds, low, high : float
        The estimate and its 90% interval, in seconds.
    bound : str or None
        What holds the call back: ``compute``, ``bandwidth``, ``overhead``, ``transfer``, ``wait``.
    source : str
        ``measured``, ``kernel table`` or ``model``.
    joules, usd : float or None
        Energy and money of one call, where known.
    note : str or None
        What makes it less sure than others of its source: another dtype, a shape nobody measured, …
    """

    seconds: float
    low: float
    high: float
    bound: str | None
    source: str
    joules: float | None = None
    usd: float | None = None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Estimate:
        """The inverse of :meth:`to_json`."""
        return cls(**data)
