"""Phases: the smoothed view of what held the cell back.

Operators' bounds change every microsecond, phases do not. Of all ways to cut the cell into stretches of at
least ``min_phase_s``, each with one label (stage and bound), take the one with the least

    seconds labelled with another bound than their own
    + twice the seconds labelled with another stage
    + half of ``min_phase_s`` for every cut.

The last term is the hysteresis: a stretch inside another one must save two cuts, so a change of bound
shorter than ``min_phase_s`` never shows, and a longer one always does; nor do two stages that both last
longer ever merge. Dynamic programming over cuts finds the least exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, inf

import numpy as np
import numpy.typing as npt

from gimlet_lab.analysis.atom import Atom
from gimlet_lab.model import Phase
from gimlet_lab.model.phase import BOUNDS

#: Cuts lie on a grid this many times finer than the shortest phase, and wherever a stage of that size begins.
FINENESS = 16

#: FLOPs and bytes of a phase are unknown when those of more of its time are.
UNKNOWN_SHARE = 0.2

Label = tuple[str | None, bool]


def shortest(cell_s: float) -> float:
    """Give the shortest phase worth showing: 2 ms, or 0.5% of a cell over 0.4 s."""
    return max(2e-3, 5e-3 * cell_s)


def smooth(atoms: Sequence[Atom], min_phase_s: float, roles: Mapping[str, str | None]) -> tuple[Phase, ...]:
    """Label atoms with the phases that fit them best.

    Parameters
    ----------
    atoms : sequence of Atom
        The whole cell, in order, without gaps.
    min_phase_s : float
    roles : mapping of stage to role

    Returns
    -------
    tuple of Phase
        They follow each other; their durations sum to the atoms'.
    """
    atoms = [atom for atom in atoms if atom.duration_s > 0]
    if not atoms:
        return ()
    grid = _Grid.of(atoms, min_phase_s / FINENESS)
    owners = sorted({(atom.stage, atom.warmup) for atom in atoms}, key=str)
    number = {owner: index for index, owner in enumerate(owners)}
    own = np.array([number[atom.stage, atom.warmup] for atom in atoms])[grid.atom]
    seconds = np.array([atom.duration_s for atom in atoms])
    weight = np.array([atom.weight for atom in atoms])
    shares = (np.array([atom.shares for atom in atoms]) * weight[:, None])[grid.atom] * grid.part[:, None]
    took = seconds[grid.atom] * grid.part
    count = len(grid.start_s)
    took_by_piece = _by_piece(grid.piece, took, count)
    cost = np.zeros((count, len(owners), len(BOUNDS)))
    cost += 2.0 * took_by_piece[:, None, None]
    np.add.at(cost, (grid.piece, own), shares.sum(axis=1, keepdims=True) - shares - 2.0 * took[:, None])
    edges = np.concatenate([[0.0], np.cumsum(took_by_piece)])
    labels = [(owner, bound) for owner in owners for bound in BOUNDS]
    flops = grid.total([atom.flops for atom in atoms], took)
    moved = grid.total([atom.bytes for atom in atoms], took)
    found: list[Phase] = []
    for first, last, label in _segment(cost.reshape(count, -1), edges, min_phase_s):
        (stage, warmup), bound = labels[label]
        took_s = float(edges[last] - edges[first])
        found.append(
            Phase(
                grid.start_s[first],
                took_s,
                bound,
                stage,
                None if stage is None else roles.get(stage),
                flops.known(first, last, took_s),
                moved.known(first, last, took_s),
                warmup,
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Pieces no longer than a step, cut also where a stage begins that lasts longer than one.

    Of each part of an atom: the piece that it is in, the atom, and what part of it; of each piece its start.
    """

    piece: npt.NDArray[np.int64]
    atom: npt.NDArray[np.int64]
    part: npt.NDArray[np.float64]
    start_s: list[float]

    @classmethod
    def of(cls, atoms: Sequence[Atom], step_s: float) -> _Grid:
        rows: list[tuple[int, int, float]] = []
        start_s: list[float] = []
        filled, full = 0.0, step_s * (1 + 1e-9)
        # An atom that is done ends its piece where its stage lasts longer than a step.
        for _, stretch in groupby(enumerate(atoms), key=lambda item: (item[1].stage, item[1].warmup)):
            held = list(stretch)
            alone = sum(atom.duration_s for _, atom in held) > step_s
            filled = 0.0 if alone else filled
            for index, atom in held:
                count = max(1, ceil(atom.duration_s / step_s * (1 - 1e-9)))
                took_s = atom.duration_s / count
                for number in range(count):
                    if not filled or filled + took_s > full:
                        start_s.append(atom.start_s + number * took_s)
                        filled = 0.0
                    rows.append((len(start_s) - 1, index, 1 / count))
                    filled += took_s
            filled = 0.0 if alone else filled
        piece, which, part = zip(*rows, strict=True)
        return cls(np.array(piece), np.array(which), np.array(part), start_s)

    def total(self, values: Sequence[float | None], took: npt.NDArray[np.float64]) -> _Total:
        """What is known of each piece, and for how long nothing is; ``took``: seconds of each part."""
        missing = np.array([value is None for value in values])[self.atom]
        known = np.array([0.0 if value is None else value for value in values])[self.atom] * self.part
        count = len(self.start_s)
        return _Total(*(_by_piece(self.piece, each, count) for each in (known, took * missing)))


@dataclass(frozen=True, slots=True)
class _Total:
    """FLOPs or bytes by piece, and the seconds of each in which nobody saw how many."""

    value: npt.NDArray[np.float64]
    unknown_s: npt.NDArray[np.float64]

    def known(self, first: int, last: int, took_s: float) -> float | None:
        """Sum what is known; None when it is unknown for more than a fifth of the time."""
        if took_s <= 0 or float(self.unknown_s[first:last].sum()) > UNKNOWN_SHARE * took_s:
            return None
        return float(self.value[first:last].sum())


def _segment(
    cost: npt.NDArray[np.float64], edges: npt.NDArray[np.float64], min_phase_s: float
) -> list[tuple[int, int, int]]:
    """The cheapest cut into stretches of at least ``min_phase_s``: first piece, last piece + 1, label.

    ``best[j]`` is the least cost of the first j pieces. A stretch i…j with label l costs ``best[i]`` plus
    ``upto[j, l] − upto[i, l]``; so for each l only the least ``best[i] − upto[i, l]`` of all cuts i that lie
    far enough back needs to be kept. As many ends as fit into one shortest stretch have all of theirs before
    the first of them, and are worked out together.
    """
    count, labels = cost.shape
    upto = np.vstack([np.zeros(labels), np.cumsum(cost, axis=0)])
    shortest_s = min(min_phase_s, float(edges[-1])) * (1 - 1e-9)
    best = np.full(count + 1, inf)
    best[0] = 0.0
    came = np.zeros((count + 1, 2), dtype=np.int64)
    kept = np.full((1, labels), inf)
    kept_at = np.zeros((1, labels), dtype=np.int64)
    # Cuts before this one are far enough back of each end.
    open_to = np.searchsorted(edges, edges - shortest_s, side="right")
    admitted, end = 0, 1
    while end <= count:
        last = max(end + 1, int(np.searchsorted(open_to, end, side="right")))
        last = min(last, count + 1)
        cuts = np.arange(admitted, max(admitted, int(open_to[last - 1])))
        # Row k: the least before k of these cuts, and where it lies; of equals, but for rounding, the first.
        values = np.vstack([kept[-1:], best[cuts, None] - upto[cuts]])
        kept = np.minimum.accumulate(values, axis=0)
        is_less = np.vstack([np.zeros((1, labels), dtype=bool), values[1:] < kept[:-1] - 1e-12])
        rows = np.maximum.accumulate(np.where(is_less, np.arange(len(values))[:, None], 0), axis=0)
        kept_at = np.vstack([kept_at[-1:], np.broadcast_to(cuts[:, None], (len(cuts), labels))])
        kept_at = np.take_along_axis(kept_at, rows, axis=0)
        at = np.maximum(open_to[end:last] - admitted, 0)
        total = kept[at] + upto[end:last]
        label = total.argmin(axis=1)
        here = np.arange(last - end)
        best[end:last] = total[here, label] + 0.5 * min_phase_s
        came[end:last, 0] = kept_at[at, label]
        came[end:last, 1] = label
        admitted, end = admitted + len(cuts), last
    found: list[tuple[int, int, int]] = []
    end = count
    while end > 0:
        start, label_at = came[end].tolist()
        found.append((start, end, label_at))
        end = start
    return found[::-1]


def _by_piece(
    piece: npt.NDArray[np.int64], values: npt.NDArray[np.float64], count: int
) -> npt.NDArray[np.float64]:
    return np.bincount(piece, weights=values, minlength=count).astype(np.float64)
