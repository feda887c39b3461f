"""Many estimates as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from gimlet_lab.model.estimate import Estimate


@dataclass(frozen=True, eq=False)
class Estimates(Sequence["Estimate | None"]):
    """Many estimates: a sequence of :class:`Estimate`, kept as arrays. NaN seconds stand for None.

    Attributes
    ----------
    seconds, low, high : array
    bound, source, note : array of str
        ``note`` is empty where there is nothing to say.
    watts, usd_per_s : float or None
        Of the device: energy and money follow from the seconds.
    """

    seconds: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    bound: NDArray[np.str_]
    source: NDArray[np.str_]
    note: NDArray[np.object_]
    watts: float | None = None
    usd_per_s: float | None = None

    @property
    def joules(self) -> NDArray[np.float64] | None:
        """Energy of each; None where the device's power is not known."""
        return None if self.watts is None else self.seconds * self.watts

    @property
    def usd(self) -> NDArray[np.float64] | None:
        """Money of each; None where the device has no price."""
        return None if self.usd_per_s is None else self.seconds * self.usd_per_s

    def __len__(self) -> int:
        return len(self.seconds)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, index: int) -> Estimate | None: ...

    @overload
    def __getitem__(self, index: slice) -> list[Estimate | None]: ...

    def __getitem__(self, index: int | slice) -> Estimate | list[Estimate | None] | None:
        if isinstance(index, slice):
            return [self._one(i) for i in range(*index.indices(len(self)))]
        return self._one(range(len(self))[index])

    def __iter__(self) -> Iterator[Estimate | None]:
        return map(self._one, range(len(self)))

    def _one(self, i: int) -> Estimate | None:
        seconds = float(self.seconds[i])
        if np.isnan(seconds):
            return None
        return Estimate(
            seconds,
            float(self.low[i]),
            float(self.high[i]),
            str(self.bound[i]),
            str(self.source[i]),
            None if self.watts is None else seconds * self.watts,
            None if self.usd_per_s is None else seconds * self.usd_per_s,
            self.note[i] or None,
        )
