"""From a recording to what it means: operators, stages, phases, the graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from gimlet_lab.analysis.bounds import Roofs
from gimlet_lab.analysis.calls import measure
from gimlet_lab.analysis.energy import meter
from gimlet_lab.analysis.graph import build, glue_stage
from gimlet_lab.analysis.inference import infer
from gimlet_lab.analysis.phases import FINENESS, shortest, smooth
from gimlet_lab.analysis.stacks import place
from gimlet_lab.analysis.stages import membership
from gimlet_lab.analysis.timeline import atoms
from gimlet_lab.model import Device, Graph, Op, Phase, Recording
from gimlet_lab.model.stacks import Stacks

__all__ = ["Analysis", "analyse"]


@dataclass(frozen=True, slots=True)
class Analysis:
    """What a recording means.

    Attributes
    ----------
    operators : tuple of Op
        As recorded, and inferred for calls that were not looked at; by start.
    inferred : tuple of bool
        Beside ``operators``.
    stage_of : tuple of str or None
        Beside ``operators``: the stage of each; None is glue too small to be one.
    span_stage : mapping of span id to stage id
    phases : tuple of Phase
    graph : Graph
    min_phase_s : float
        The shortest stretch that counts as a phase of its own.
    stacks : Stacks
        Sampled call stacks in their stages and phases.
    overhead_s : float
        Seconds of the cell that were ours.
    notes : tuple of str
        What could not be told, and why.
    """

    operators: tuple[Op, ...]
    inferred: tuple[bool, ...]
    stage_of: tuple[str | None, ...]
    span_stage: Mapping[int, str]
    phases: tuple[Phase, ...]
    graph: Graph
    min_phase_s: float
    stacks: Stacks
    overhead_s: float
    notes: tuple[str, ...]


def analyse(recording: Recording, device: Device, *, min_phase_s: float | None = None) -> Analysis:
    """Find stages, phases and the graph of a recorded cell.

    Parameters
    ----------
    recording : Recording
    device : Device
        What it ran on, with its calibration.
    min_phase_s : float, optional
        The shortest phase; 2 ms or 0.5% of the cell, whichever is longer, where left out.
    """
    cell = recording.spans[0]
    members = membership(recording)
    calls = measure(
        span
        for span in recording.spans
        if span.signature is not None or members.call_of.get(span.id) == span.id
    )
    inference = infer(recording, calls)
    roofs = Roofs.of(device)
    shortest_s = shortest(cell.duration_s) if min_phase_s is None else min_phase_s
    pieces = atoms(recording, members, calls, inference, roofs, shortest_s / FINENESS)
    extra = glue_stage(recording, members, pieces)
    stages = members.members if extra is None else (extra, *members.members)
    glue_id = None if extra is None else extra.id
    span_stage = dict(members.stage_of)
    if glue_id is not None:
        span_stage.update((span, glue_id) for span in sorted(members.glue))
    guesses = (*recording.inferred, *inference.rows)
    rows = sorted((*recording.ops, *guesses), key=attrgetter("start_s"))
    guessed = set(map(id, guesses))
    stage_of = tuple([span_stage.get(op.span) for op in rows])
    by_stage: dict[str | None, list[Op]] = defaultdict(list)
    for op, stage in zip(rows, stage_of, strict=True):
        by_stage[stage].append(op)
    roles = {member.id: member.role for member in stages}
    named = [replace(atom, stage=glue_id) if atom.stage is None else atom for atom in pieces]
    graph = build(recording, members, stages, calls, by_stage, pieces, inference)
    found = smooth(named, shortest_s, roles)
    metered = meter(recording, found, graph, named)
    return Analysis(
        operators=tuple(rows),
        inferred=tuple([id(op) in guessed for op in rows]) if guessed else (False,) * len(rows),
        stage_of=stage_of,
        span_stage=span_stage,
        phases=metered.phases,
        graph=metered.graph,
        min_phase_s=shortest_s,
        stacks=place(recording.stacks, cell.duration_s, recording.spans, span_stage, found),
        overhead_s=recording.overhead_s,
        notes=(*_notes(recording, device, roofs), *_unknown(rows), *metered.notes),
    )


def _notes(recording: Recording, device: Device, roofs: Roofs) -> Iterator[str]:
    if recording.ops and not roofs.known:
        yield f"{device.id} is not calibrated: operators' bounds go by their kind, not by a roofline"
    if recording.spans[0].duration_s > 0 and not recording.samples:
        yield "no scheduler's account of the cell's thread: a wait cannot be told from Python"


def _unknown(ops: Sequence[Op]) -> Iterator[str]:
    """Say which operators have no formula, and for what share of the time."""
    seconds: dict[str, float] = defaultdict(float)
    for op in ops:
        if op.flops is None:
            seconds[op.op] += op.duration_s
    total_s = sum(op.duration_s for op in ops)
    if not seconds or total_s <= 0:
        return
    names = sorted(seconds, key=lambda name: -seconds[name])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    share = 100 * sum(seconds.values()) / total_s
    yield f"FLOPs unknown, no formula: {', '.join(names[:8])}{more}; {share:.2g}% of operators' time"
