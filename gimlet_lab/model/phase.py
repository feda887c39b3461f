"""A stretch of a run held back by one thing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

#: What can hold a stretch of a run back.
BOUNDS = ("compute", "bandwidth", "overhead", "transfer", "wait", "idle")


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a run held back by one thing: a smoothed view of its operators.

    Attributes
    ----------
    start_s, duration_s : float
        Since the start of the cell.
    bound : str
        One of :data:`BOUNDS`.
    stage, role : str or None
        The stage most of it ran in, and its role.
    flops, bytes : float or None
        None is unknown.
    warmup : bool
        First touch: shown, but kept out of estimates.
    joules : float or None
        Energy that the run's devices spent meanwhile, by their meters. None is unknown.
    throttled : bool or None
        Whether one of them was held back by heat or a power cap. None is unknown.
    """

    start_s: float
    duration_s: float
    bound: str
    stage: str | None
    role: str | None
    flops: float | None
    bytes: float | None
    warmup: bool = False
    joules: float | None = None
    throttled: bool | None = None

    @property
    def intensity(self) -> float | None:
        """Arithmetic intensity in FLOP per byte; None where either is unknown."""
        if self.flops is None or not self.bytes:
            return None
        return self.flops / self.bytes

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)
