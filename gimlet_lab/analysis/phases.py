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
from itertools import pairwise
from math import ceil, inf

import numpy as np
import numpy.typing as npt

from gimlet_lab.analysis.atom import Atom, part_of
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
    pieces = _grid([atom for atom in atoms if atom.duration_s > 0], min_phase_s / FINENESS)
    if not pieces:
        return ()
    owners = sorted({(atom.stage, atom.warmup) for piece in pieces for atom in piece}, key=str)
    number = {owner: index for index, owner in enumerate(owners)}
    rows = [(index, atom) for index, piece in enumerate(pieces) for atom in piece]
    of = np.array([index for index, _ in rows])
    own = np.array([number[atom.stage, atom.warmup] for _, atom in rows])
    took = np.array([atom.duration_s for _, atom in rows])
    shares = np.array([atom.shares for _, atom in rows]) * np.array([[atom.weight] for _, atom in rows])
    took_by_piece = np.bincount(of, weights=took, minlength=len(pieces))
    cost = np.zeros((len(pieces), len(owners), len(BOUNDS)))
    cost += 2.0 * took_by_piece[:, None, None]
    np.add.at(cost, (of, own), shares.sum(axis=1, keepdims=True) - shares - 2.0 * took[:, None])
    edges = np.concatenate([[0.0], np.cumsum(took_by_piece)])
    labels = [(owner, bound) for owner in owners for bound in BOUNDS]
    found: list[Phase] = []
    for first, last, label in _segment(cost.reshape(len(pieces), -1), edges, min_phase_s):
        (stage, warmup), bound = labels[label]
        inside = [atom for piece in pieces[first:last] for atom in piece]
        found.append(
            Phase(
                inside[0].start_s,
                float(edges[last] - edges[first]),
                bound,
                stage,
                None if stage is None else roles.get(stage),
                _known([(atom.flops, atom.duration_s) for atom in inside]),
                _known([(atom.bytes, atom.duration_s) for atom in inside]),
                warmup,
            )
        )
    return tuple(found)


def _grid(atoms: Sequence[Atom], step_s: float) -> list[list[Atom]]:
    """Pieces no longer than a step, cut also where a stage begins that lasts longer than one."""
    stretches: list[list[Atom]] = []
    for atom in atoms:
        last = stretches[-1][-1] if stretches else None
        if last is not None and (last.stage, last.warmup) == (atom.stage, atom.warmup):
            stretches[-1].append(atom)
        else:
            stretches.append([atom])
    pieces: list[list[Atom]] = []
    current: list[Atom] = []
    filled = 0.0
    for stretch in stretches:
        length = sum(atom.duration_s for atom in stretch)
        if length > step_s and current:
            pieces.append(current)
            current, filled = [], 0.0
        for atom in stretch:
            for part in _parts(atom, step_s):
                if current and filled + part.duration_s > step_s * (1 + 1e-9):
                    pieces.append(current)
                    current, filled = [], 0.0
                current.append(part)
                filled += part.duration_s
        if length > step_s:
            pieces.append(current)
            current, filled = [], 0.0
    if current:
        pieces.append(current)
    return pieces


def _parts(atom: Atom, step_s: float) -> list[Atom]:
    count = ceil(atom.duration_s / step_s * (1 - 1e-9))
    if count <= 1:
        return [atom]
    edges = np.linspace(atom.start_s, atom.start_s + atom.duration_s, count + 1)
    return [part_of(atom, float(low), float(high)) for low, high in pairwise(edges)]


def _segment(
    cost: npt.NDArray[np.float64], edges: npt.NDArray[np.float64], min_phase_s: float
) -> list[tuple[int, int, int]]:
    """The cheapest cut into stretches of at least ``min_phase_s``: first piece, last piece + 1, label.

    ``best[j]`` is the least cost of the first j pieces. A stretch i…j with label l costs ``best[i]`` plus
    ``upto[j, l] − upto[i, l]``; so for each l only the least ``best[i] − upto[i, l]`` of all cuts i that lie
    far enough back needs to be kept.
    """
    count, labels = cost.shape
    upto = np.vstack([np.zeros(labels), np.cumsum(cost, axis=0)])
    shortest_s = min(min_phase_s, float(edges[-1])) * (1 - 1e-9)
    switch = 0.5 * min_phase_s
    best = [0.0] + [inf] * count
    came: list[tuple[int, int]] = [(0, 0)] * (count + 1)
    kept = np.full(labels, inf)
    kept_at = np.zeros(labels, dtype=np.int64)
    admitted, at = 0, edges.tolist()
    for end in range(1, count + 1):
        while at[end] - at[admitted] >= shortest_s:
            if best[admitted] < inf:
                candidate = best[admitted] - upto[admitted]
                better = candidate < kept - 1e-15
                np.copyto(kept, candidate, where=better)
                kept_at[better] = admitted
            admitted += 1
        total = kept + upto[end]
        label = int(total.argmin())
        if total[label] < inf:
            best[end] = float(total[label]) + switch
            came[end] = (int(kept_at[label]), label)
    found: list[tuple[int, int, int]] = []
    end = count
    while end > 0:
        start, label = came[end]
        found.append((start, end, label))
        end = start
    return found[::-1]


def _known(values: Sequence[tuple[float | None, float]]) -> float | None:
    """Sum what is known; None when it is unknown for more than a fifth of the time."""
    total_s = sum(seconds for _, seconds in values)
    unknown_s = sum(seconds for value, seconds in values if value is None)
    if total_s <= 0 or unknown_s > UNKNOWN_SHARE * total_s:
        return None
    return sum(value for value, _ in values if value is not None)
