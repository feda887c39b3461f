"""The scheduler's account: when the cell's thread slept, and when it wanted a core and had none."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from gimlet_lab.analysis.atom import Atom, part_of
from gimlet_lab.analysis.bounds import COMPUTE, IDLE, LEAST_EVIDENCE, WAIT
from gimlet_lab.model import Recording, Sample

#: Sleep counts as computing, not as waiting, when the process's other threads ran for this share of it.
POOL_SHARE = 0.5


class Account:
    """What the samples of a recording say of any stretch of it."""

    def __init__(self, recording: Recording) -> None:
        samples = recording.samples
        self.samples = samples
        self.edges = [sample.start_s for sample in samples]
        asleep = [_asleep(sample.blocked_s, sample.others_s) for sample in samples]
        self._at = np.array([*self.edges, samples[-1].start_s + samples[-1].duration_s] if samples else [0.0])
        self._slept = np.concatenate([[0.0], np.cumsum(asleep)]) if samples else np.array([0.0])
        starved = [sample.runnable_s for sample in samples]
        self._starved = np.concatenate([[0.0], np.cumsum(starved)]) if samples else np.array([0.0])

    def slept(self, start_s: float, end_s: float) -> float:
        """Seconds of sleep in an interval during which nothing else of the process ran."""
        low, high = np.interp([start_s, end_s], self._at, self._slept)
        return float(high - low)

    def weigh(self, atoms: Sequence[Atom]) -> list[Atom]:
        """Give every atom its weight: the share of it that the thread did not want a core in vain."""
        if not self.samples or not atoms:
            return list(atoms)
        edges = np.array([[atom.start_s, atom.start_s + atom.duration_s] for atom in atoms])
        starved = np.diff(np.interp(edges, self._at, self._starved), axis=1)[:, 0]
        return [
            replace(atom, weight=atom.weight * max(LEAST_EVIDENCE, 1.0 - starved_s / atom.duration_s))
            if starved_s > 0
            else atom
            for atom, starved_s in zip(atoms, starved.tolist(), strict=True)
        ]

    def settle(self, pieces: Sequence[tuple[Atom, bool]]) -> list[Atom]:
        """Cut the open pieces where samples meet, and share the samples' sleep out to them.

        Operators run on a core, so what a sample slept belongs to the rest of it.
        """
        if not self.samples:
            return [atom for atom, _ in pieces]
        cut: list[tuple[Atom, int]] = []
        open_s = [0.0] * len(self.samples)
        for atom, unsettled in pieces:
            if not unsettled:
                cut.append((atom, -1))
                continue
            for part, index in self._parts(atom):
                cut.append((part, index))
                if index >= 0:
                    open_s[index] += part.duration_s
        return [
            atom if index < 0 else _slept(atom, self.samples[index], open_s[index]) for atom, index in cut
        ]

    def _parts(self, atom: Atom) -> Iterator[tuple[Atom, int]]:
        end_s = atom.start_s + atom.duration_s
        first = bisect_left(self.edges, atom.start_s)
        last = bisect_left(self.edges, end_s)
        points = [atom.start_s, *(edge for edge in self.edges[first:last] if edge > atom.start_s), end_s]
        for low, high in pairwise(points):
            if high <= low:
                continue
            index = bisect_left(self.edges, 0.5 * (low + high)) - 1
            inside = index >= 0 and 0.5 * (low + high) < self._at[index + 1]
            yield part_of(atom, low, high), index if inside else -1


def _asleep(blocked_s: float, others_s: float) -> float:
    return blocked_s if others_s < POOL_SHARE * blocked_s else 0.0


def _slept(atom: Atom, sample: Sample, open_s: float) -> Atom:
    asleep_s = min(sample.blocked_s, open_s)
    rest_s = sample.duration_s - sample.running_s - sample.runnable_s - sample.blocked_s
    unaccounted_s = min(max(0.0, rest_s), open_s - asleep_s)
    part = atom.duration_s / open_s
    # The looking runs on a core: sleep is never its.
    awake = max(0.0, open_s - asleep_s - unaccounted_s) / open_s
    shares = [share * awake for share in atom.shares]
    waits = sample.others_s < POOL_SHARE * sample.blocked_s
    shares[WAIT if waits else COMPUTE] += asleep_s * part
    shares[IDLE] += unaccounted_s * part
    return replace(atom, shares=tuple(shares))
