"""Floats as the integers a solver needs, so that what is proved of the integers is true of the floats."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gimlet_lab.advisor.instance import TOLERANCE

#: Ticks of the largest figure where the numbers fit no grid: each is off by less than 1e-11 of it.
FINEST = 10**11

#: Ticks of one unit at most: finer than that no figure here is known.
MOST_TICKS = 1e18

#: More than any sum of ticks.
NEVER = 2**60


@dataclass(frozen=True, slots=True)
class Scale:
    """Ticks per unit.

    Attributes
    ----------
    ticks : float
        Of one second, dollar, joule or byte.
    exact : bool
        All numbers are whole in ticks, so that nothing is lost.
    """

    ticks: float
    exact: bool

    @classmethod
    def fit(cls, values: Iterable[float], largest: float) -> Scale:
        """A grid that holds all values, decimal or of the smallest one, or else the finest there is.

        Parameters
        ----------
        values : iterable of float
            Every number of one kind in the model.
        largest : float
            The largest sum of them that can come up.
        """
        distinct = {value for value in values if value}
        if not distinct:
            return cls(1.0, exact=True)
        decimal = (10.0**power for power in range(-6, 13))
        rational = (parts / min(distinct) for parts in range(1, 13))
        for ticks in (*decimal, *rational):
            if largest * ticks <= FINEST and all(
                abs(v * ticks - round(v * ticks)) <= 1e-12 * v * ticks for v in distinct
            ):
                return cls(ticks, exact=True)
        return cls(min(MOST_TICKS, FINEST / max(largest, max(distinct))), exact=False)

    def down(self, value: float) -> int:
        """At most ``value``: the model is a relaxation, its bound is a bound."""
        return round(value * self.ticks) if self.exact else math.floor(value * self.ticks)

    def up(self, value: float) -> int:
        """At least ``value``: what the model allows is allowed."""
        return round(value * self.ticks) if self.exact else math.ceil(value * self.ticks)

    def limit(self, value: float) -> int:
        """The largest sum of rounded-down numbers under a limit with the contract's slack."""
        return math.floor(min(value * self.ticks * (1 + TOLERANCE), NEVER))

    def value(self, ticks: float) -> float:
        """Back in the unit."""
        return ticks / self.ticks
