"""The cell as a row of atoms: pieces that follow each other, each in one stage, with what held it back.

An atom shares its seconds out to bounds. Seconds that only the looking took belong to none: they count in
the run's length, not for or against any bound. Operators shorter than a step are one atom with their
neighbours: a run of a million is as few atoms as one of a thousand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from gimlet_lab.analysis.account import Account
from gimlet_lab.analysis.atom import Atom, Shares, all_in
from gimlet_lab.analysis.bounds import OVERHEAD, WAIT, Column, Judged, Roofs
from gimlet_lab.analysis.calls import Call
from gimlet_lab.analysis.inference import Inference, Model
from gimlet_lab.analysis.segments import Segment, segments
from gimlet_lab.analysis.stages import Membership, module_of
from gimlet_lab.model import Recording, Span
from gimlet_lab.model.phase import BOUNDS

#: Python between operators for longer than this may compute what no operator shows.
SILENT_S = 1e-3


def atoms(
    recording: Recording,
    membership: Membership,
    calls: Mapping[int, Call],
    inference: Inference,
    roofs: Roofs,
    step_s: float,
) -> list[Atom]:
    """Cut the whole cell into atoms, without gap or overlap; what is shorter than a step goes together."""
    return _Cutter(recording, membership, calls, inference, roofs, step_s).cut()


class _Cutter:
    def __init__(
        self,
        recording: Recording,
        membership: Membership,
        calls: Mapping[int, Call],
        inference: Inference,
        roofs: Roofs,
        step_s: float,
    ) -> None:
        self.step_s = step_s
        self.recording = recording
        self.membership = membership
        self.calls = calls
        self.inference = inference
        self.roofs = roofs
        self.modules = {module.target: module for module in recording.modules}
        self.by_id = {span.id: span for span in recording.spans}
        self.account = Account(recording)
        ops = sorted(recording.ops, key=attrgetter("start_s"))
        thread = {span.id: span.thread for span in recording.spans}
        rows: dict[int | None, list[int]] = defaultdict(list)
        for row, op in enumerate(ops):
            call = membership.call_of.get(op.span)
            if call is not None or thread.get(op.span) == 0:
                rows[call].append(row)
        judged = roofs.judge(ops)
        self.judged = {call: judged.of(np.array(held, dtype=np.int64)) for call, held in rows.items()}
        self.ops, self.rows = ops, rows
        self._spent: dict[int | None, tuple[float, float]] = {}
        self._profiles: dict[int, tuple[Shares, float]] = {}
        self._means: dict[int, float] = {}

    def cut(self) -> list[Atom]:
        pieces: list[tuple[Atom, bool]] = []
        for segment in segments(self.recording, self.membership):
            pieces.extend(self._pieces(segment))
        return self.account.weigh(self.account.settle(pieces))

    def _pieces(self, segment: Segment) -> Iterator[tuple[Atom, bool]]:
        """Atoms of a segment; the flag says that only the scheduler's account can tell what they were."""
        duration_s = segment.end_s - segment.start_s
        stage = None if segment.call is None else self.membership.stage_of[segment.call]
        call = None if segment.call is None else self.calls[segment.call]
        atom = Atom(
            segment.start_s,
            duration_s,
            stage,
            all_in(OVERHEAD, duration_s),
            warmup=call is not None and call.warmup,
        )
        if segment.ours:
            yield replace(atom, shares=(0.0,) * len(BOUNDS)), False
        elif segment.bound is not None:
            yield replace(atom, shares=all_in(segment.bound, duration_s)), False
        elif call is not None and self._is_unseen(call):
            yield self._unseen(atom, call), False
        else:
            yield from self._seen(atom, segment.call)

    def _is_unseen(self, call: Call) -> bool:
        """Whether what a call did is inferred: a module's, a backward pass's, an optimizer's step."""
        number = call.span.id
        like = call.span.kind == "module" or number in self.inference.models
        return like and not self._is_timed(number)

    def _is_timed(self, call: int) -> bool:
        """Whether a call's operators were timed where they ran: not by a host that only saw their launch."""
        return call in self.judged and bool(self.judged[call].timed.all())

    def _unseen(self, atom: Atom, call: Call) -> Atom:
        """Give part of a module call whose operators were not timed."""
        model = self.inference.models.get(call.span.id)
        if model is None and call.span.id in self.rows:
            model = Model.of(call.span.id, [self.ops[row] for row in self.rows[call.span.id]])
        duration_s = atom.duration_s
        if model is None:
            bound = self.roofs.bound_by_weights(call.span, self.modules.get(module_of(call.span)))
            return replace(atom, shares=all_in(bound, duration_s))
        shares, explained = self._profile(model.like)
        if explained < 0.1 and self.account.slept(atom.start_s, atom.start_s + duration_s) > 0.8 * duration_s:
            return replace(atom, shares=all_in(WAIT, duration_s))
        part = duration_s / call.span.duration_s if call.span.duration_s > 0 else 1.0
        return replace(
            atom,
            shares=tuple(share * duration_s for share in shares),
            flops=None if model.flops is None else model.flops * part,
            bytes=None if model.bytes is None else model.bytes * part,
        )

    def _profile(self, looked: int) -> tuple[Shares, float]:
        """Shares of one second of a looked-at call, and how much of it the roofs explain."""
        if looked not in self._profiles:
            judged = self.judged[looked]
            weighed = np.bincount(
                judged.bound, weights=judged.seconds * judged.evidence, minlength=len(BOUNDS)
            )
            shares = weighed.tolist()
            busy_s, explained_s = float(judged.seconds.sum()), float(judged.explained_s.sum())
            python_s = max(0.0, self.calls[looked].warm_s - busy_s)
            shares[OVERHEAD] += python_s * self._mean_evidence(looked)
            total = sum(shares) or 1.0
            explained = explained_s / max(busy_s + python_s, 1e-12)
            self._profiles[looked] = tuple(share / total for share in shares), explained
        return self._profiles[looked]

    def _mean_evidence(self, call: int) -> float:
        """The mean evidence of a call's operators.

        Also that of the Python between them, which so neither gains nor loses against them.
        """
        if call not in self._means:
            took_s, evidence = self.judged[call].took_s, self.judged[call].evidence
            busy_s = float(took_s.sum())
            self._means[call] = float((took_s * evidence).sum()) / busy_s if busy_s else 1.0
        return self._means[call]

    def _true(self, call: int | None) -> tuple[float, float]:
        """What part of operators' and of other time is the call's own, not the looking's."""
        if call not in self._spent:
            span = self.by_id[0 if call is None else call]
            busy_s = float(self.judged[call].took_s.sum()) if call in self.judged else 0.0
            clean_s = self.calls[call].clean_s if call is not None else _clean_cell_s(span)
            if not busy_s or clean_s >= span.duration_s:
                self._spent[call] = (1.0, 1.0)
            else:
                idle_s = max(span.duration_s - busy_s, 1e-12)
                self._spent[call] = (
                    min(1.0, clean_s / busy_s),
                    min(1.0, max(0.0, clean_s - busy_s) / idle_s),
                )
        return self._spent[call]

    def _seen(self, atom: Atom, call: int | None) -> Iterator[tuple[Atom, bool]]:
        """Operators of a segment and the Python between them; those shorter than a step together."""
        start_s, end_s = atom.start_s, atom.start_s + atom.duration_s
        in_ops, in_python = self._true(call)
        module = call if call is not None and self.by_id[call].kind == "module" else None
        sureness = 1.0 if module is None else self._mean_evidence(module)
        judged = self.judged.get(call)
        pieces = None if judged is None else _Pieces.of(judged, start_s, end_s)
        if judged is None or pieces is None or not (pieces.row >= 0).any():
            silent_s = 0.0 if judged is None else SILENT_S if module is None else float("inf")
            known = None if atom.duration_s >= silent_s else 0.0
            shares_s = all_in(OVERHEAD, atom.duration_s * in_python)
            yield replace(atom, shares=shares_s, flops=known, bytes=known, weight=sureness), True
            return
        row, is_gap = np.maximum(pieces.row, 0), pieces.row < 0
        bound = np.where(is_gap, OVERHEAD, self._waits(pieces, judged.bound[row], judged.explained_s))
        part = np.where(is_gap, 0.0, pieces.took_s / np.where(is_gap, 1.0, judged.took_s[row]))
        flops, moved = judged.flops[row] * part, judged.moved[row] * part
        weight = np.where(is_gap, sureness, 1.0 if module is None else judged.evidence[row])
        silent = (pieces.took_s >= SILENT_S) & (module is None)
        # Nothing was done in a gap, unless it is so long that nobody saw what was.
        flops = np.where(is_gap, np.where(silent, np.nan, 0.0), flops)
        moved = np.where(is_gap, np.where(silent, np.nan, 0.0), moved)
        seconds = pieces.took_s * np.where(is_gap, in_python, in_ops)
        # By step; within one what is open to the scheduler's account comes last, what is unknown stays apart.
        step = np.floor((pieces.start_s - start_s) / self.step_s).astype(np.int64)
        group = step * 8 + is_gap * 4 + np.isnan(flops) * 2 + np.isnan(moved)
        groups, of = np.unique(group, return_inverse=True)
        count = len(groups)

        def total(values: Column) -> Column:
            return np.bincount(of, weights=values, minlength=count).astype(np.float64)

        weighed = np.zeros((count, len(BOUNDS)))
        np.add.at(weighed, (of, bound), seconds * weight)
        all_s, took_s = total(seconds), total(pieces.took_s)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.where(all_s > 0, weighed.sum(axis=1) / all_s, 1.0)
        shares = weighed / np.where(mean > 0, mean, 1.0)[:, None]
        now = start_s
        for index, (number, took, done, bytes_) in enumerate(
            zip(groups.tolist(), took_s.tolist(), total(flops).tolist(), total(moved).tolist(), strict=True)
        ):
            yield (
                Atom(
                    now,
                    took,
                    atom.stage,
                    tuple(shares[index].tolist()),
                    None if number & 2 else done,
                    None if number & 1 else bytes_,
                    atom.warmup,
                    float(mean[index]),
                ),
                bool(number & 4),
            )
            now += took

    def _waits(
        self, pieces: _Pieces, bound: npt.NDArray[np.int64], explained_s: Column
    ) -> npt.NDArray[np.int64]:
        """What holds operators back, but for those behind whose back something was read from disk."""
        for index in np.flatnonzero((pieces.row >= 0) & (pieces.took_s > SILENT_S)).tolist():
            took_s, start_s = float(pieces.took_s[index]), float(pieces.start_s[index])
            if (
                explained_s[pieces.row[index]] < 0.1 * took_s
                and self.account.slept(start_s, start_s + took_s) > 0.8 * took_s
            ):
                bound[index] = WAIT
        return bound


@dataclass(frozen=True, slots=True)
class _Pieces:
    """A segment from end to end: operators by their row, and the gaps between them (−1)."""

    start_s: Column
    took_s: Column
    row: npt.NDArray[np.int64]

    @classmethod
    def of(cls, ops: Judged, start_s: float, end_s: float) -> _Pieces:
        first = int(np.searchsorted(ops.start_s, start_s))
        # A row that began before this segment (a wait inside it cut the call in two) goes on into it.
        if first and ops.start_s[first - 1] + ops.took_s[first - 1] > start_s:
            first -= 1
        last = int(np.searchsorted(ops.start_s, end_s))
        begins = np.maximum(ops.start_s[first:last], start_s)
        ends = ops.start_s[first:last] + ops.took_s[first:last]
        # By the host's clock one begins when the one before has ended; an accelerator's streams overlap.
        following = np.append(begins[1:], end_s)
        ends = np.where(ops.overlaps[first:last], ends, np.minimum(ends, following))
        ends = np.clip(ends, begins, end_s)
        covered = np.maximum.accumulate(np.append(start_s, ends))
        begins = np.maximum(begins, covered[:-1])
        count = last - first
        edges = np.empty(2 * count + 2)
        edges[0], edges[-1] = start_s, end_s
        edges[1:-1:2], edges[2:-1:2] = begins, np.maximum(ends, begins)
        rows = np.full(2 * count + 1, -1, dtype=np.int64)
        rows[1::2] = np.arange(first, last)
        took_s = np.diff(edges)
        kept = took_s > 0
        return cls(edges[:-1][kept], took_s[kept], rows[kept])


def _clean_cell_s(cell: Span) -> float:
    looking_s = cell.attributes.get("look_overhead_s")
    return cell.duration_s - float(looking_s) if isinstance(looking_s, int | float) else cell.duration_s
