"""Stages with all that is known of them, and the graph they make."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

import numpy as np
import numpy.typing as npt

from gimlet_lab.analysis.atom import Atom
from gimlet_lab.analysis.calls import Call, past
from gimlet_lab.analysis.dataflow import edges
from gimlet_lab.analysis.inference import Inference
from gimlet_lab.analysis.stages import SMALL_SHARE, Member, Membership, Tree, module_of
from gimlet_lab.model import Graph, ModuleInfo, Op, Recording, Stage, Work
from gimlet_lab.model.phase import BOUNDS

#: FLOPs and bytes of a stage are unknown when those of operators that took more of its time are.
UNKNOWN_SHARE = 0.1


def glue_stage(recording: Recording, membership: Membership, atoms: Sequence[Atom]) -> Member | None:
    """The Python between the stages as one more stage; None where it is too little to count.

    It is called ``cell`` where it has operators of the cell's own, ``python`` otherwise.
    """
    glue_s = sum(sum(atom.shares) for atom in atoms if atom.stage is None)
    own = [op for op in recording.ops if op.span in membership.glue]
    if membership.members and glue_s < SMALL_SHARE * recording.spans[0].duration_s:
        return None
    taken = {member.id for member in membership.members}
    name = "cell" if any(op.span == 0 for op in own) or not membership.members else "python"
    while name in taken:
        name += "_"
    return Member(name, "glue", None, None)


def build(
    recording: Recording,
    membership: Membership,
    members: Sequence[Member],
    calls: Mapping[int, Call],
    rows: Mapping[str | None, Sequence[Op]],
    atoms: Sequence[Atom],
    inference: Inference,
) -> Graph:
    """Sum up every stage and join them by edges."""
    unseen = _unseen(recording, members, calls, inference)
    by_stage: dict[str | None, list[Atom]] = defaultdict(list)
    for atom in atoms:
        by_stage[atom.stage].append(atom)
    tree = Tree(recording)
    modules = {module.target: module for module in recording.modules}
    stages: list[Stage] = []
    for member in members:
        stage = (
            _glue(member, by_stage[None])
            if member.kind == "glue"
            else _placeable(member, [calls[span.id] for span in member.calls], by_stage[member.id], tree)
        )
        stages.append(with_work(stage, rows.get(member.id, ()), _module(member, modules), unseen[member.id]))
    return Graph(tuple(_unlistened(recording, stages)), edges(recording, membership, members))


def _unlistened(recording: Recording, stages: Sequence[Stage]) -> list[Stage]:
    """Take out what listening took. That of a closer look is out already; the rest fell into the Python.

    Nobody counts it call by call (that would cost as much again), so every Python stage gives up its share.
    """
    looking_s = sum(float(span.attributes.get("look_overhead_s") or 0.0) for span in recording.spans)
    listening_s = max(0.0, recording.overhead_s - looking_s)
    python_s = sum(stage.total_s for stage in stages if stage.kind != "module")
    # Never less than a tenth: what we measured of ourselves has its own error.
    kept = max(0.1, 1.0 - listening_s / python_s) if python_s > 0 else 1.0
    return [
        stage
        if stage.kind == "module"
        else replace(stage, call_s=kept * stage.call_s, total_s=kept * stage.total_s)
        for stage in stages
    ]


def _unseen(
    recording: Recording, members: Sequence[Member], calls: Mapping[int, Call], inference: Inference
) -> dict[str, float]:
    """Seconds of each stage's module calls of which no operator is known."""
    seen = {op.span for op in recording.ops} | set(inference.models)
    return {
        member.id: sum(calls[span.id].clean_s for span in member.calls if span.id not in seen)
        if member.kind == "module"
        else 0.0
        for member in members
    }


def _glue(member: Member, atoms: Sequence[Atom]) -> Stage:
    seconds = sum(sum(atom.shares) for atom in atoms)
    return Stage(member.id, "glue", None, None, 1, seconds, seconds, _bound(atoms))


def _placeable(member: Member, calls: Sequence[Call], atoms: Sequence[Atom], tree: Tree) -> Stage:
    plain = [call.clean_s for call in calls if not call.warmup and not call.span.looked]
    call_s = median(
        plain or [call.clean_s for call in calls if not call.warmup] or [c.clean_s for c in calls]
    )
    first = calls[0].span
    placed_on = first.attributes.get("device")
    return Stage(
        member.id,
        member.kind,
        member.target,
        member.role,
        len(calls),
        call_s,
        sum(call.warm_s for call in calls),
        _bound(atoms),
        device=None if placed_on is None else str(placed_on),
        pure=bool(member.declared.get("pure", False)),
        idempotent=bool(member.declared.get("idempotent", True)),
        turns=_turns(member, tree),
        state_bytes=_largest(calls, "kv_bytes") or 0,
        warmup_s=sum(call.clean_s - call.warm_s for call in calls),
        peak_bytes=_largest(calls, "peak_bytes"),
    )


def _largest(calls: Sequence[Call], attribute: str) -> int | None:
    sizes = [call.span.attributes.get(attribute) for call in calls]
    return max((int(size) for size in sizes if isinstance(size, int | float)), default=None)


def _bound(atoms: Sequence[Atom]) -> str:
    """What most of the time is held back by, warm-ups aside where there is anything else."""
    counted = [atom for atom in atoms if not atom.warmup] or atoms
    seconds = [sum(atom.weight * atom.shares[index] for atom in counted) for index in range(len(BOUNDS))]
    if not any(seconds):
        return "overhead"
    return BOUNDS[seconds.index(max(seconds))]


def _turns(member: Member, tree: Tree) -> int:
    """How often the agent's loop came by.

    A KV cache that does not go on where the call before left it begins a new turn. Without one, the calls'
    innermost common caller runs the loop: a call of its own that leads here after something else is a turn.
    """
    if member.role in ("prefill", "decode") and all("past_len" in span.attributes for span in member.calls):
        starts = 1
        for before, span in pairwise(member.calls):
            new = before.attributes.get("q_len")
            starts += past(span) != past(before) + new if isinstance(new, int) else past(span) <= past(before)
        return starts
    paths = [[span, *tree.ancestors(span)][::-1] for span in member.calls]
    level = 0
    while all(len(path) > level + 1 for path in paths) and len({path[level].id for path in paths}) == 1:
        level += 1
    leading = [path[level] for path in paths]
    if level == 0:
        return 1
    # Calls that follow each other directly are one turn; calls of a function that leads here are one each.
    siblings = sorted(tree.children[paths[0][level - 1].id], key=lambda span: span.start_s)
    place = {span.id: index for index, span in enumerate(siblings)}
    own = {span.id for span in member.calls}
    turns, last = 0, -2
    for index, number in sorted((place[number], number) for number in {span.id for span in leading}):
        turns += number not in own or index != last + 1
        last = index
    return turns


def _module(member: Member, modules: Mapping[str, ModuleInfo]) -> ModuleInfo | None:
    return modules.get(module_of(member.calls[0])) if member.kind == "module" else None


def with_work(stage: Stage, ops: Sequence[Op], module: ModuleInfo | None, unseen_s: float) -> Stage:
    """A stage with what its operators sum up to, and the weights of its module."""
    # Millions of rows have few works, and rows of one shape share theirs.
    shared: dict[int, tuple[Work, int]] = {}
    by_dtype: dict[str, float] = defaultdict(float)
    by_device: dict[str, float] = defaultdict(float)
    for op in ops:
        if op.work is not None:
            shared[id(op.work)] = (op.work, shared.get(id(op.work), (None, 0))[1] + op.count)
        by_dtype[op.dtype] += op.flops or 0.0
        by_device[op.device] += op.duration_s
    counts: dict[Work, int] = defaultdict(int)
    for work, count in shared.values():
        counts[replace(work, count=1)] += count * work.count
    dtype = max(by_dtype, key=lambda name: by_dtype[name], default=None)
    device = max(by_device, key=lambda name: by_device[name], default=None)
    took_s = np.array([op.duration_s for op in ops], dtype=np.float64)
    return replace(
        stage,
        works=tuple(replace(work, count=count) for work, count in counts.items()),
        ops=sum(op.count for op in ops),
        flops=_sum([op.flops for op in ops], took_s, unseen_s),
        bytes_read=_sum([op.bytes_read for op in ops], took_s, unseen_s),
        bytes_written=_sum([op.bytes_written for op in ops], took_s, unseen_s),
        weights=_weights(module),
        dtype=module.dtype if module is not None else dtype or None,
        device=stage.device or device or (module.device if module is not None else None),
    )


def _weights(module: ModuleInfo | None) -> dict[str, int]:
    """Bytes by block, named so that all stages of one module share them and no two modules do."""
    if module is None:
        return {}
    prefix = f"{module.target}."
    return {
        name if name.startswith(prefix) or name == module.target else prefix + name: size
        for name, size in module.weights.items()
    }


def _sum(values: Sequence[float | None], took_s: npt.NDArray[np.float64], unseen_s: float) -> float | None:
    """Sum what is known; None where nothing is, or not for what took a tenth of the time."""
    amounts = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    known = ~np.isnan(amounts)
    unknown_s = float(took_s[~known].sum()) + unseen_s
    if not values or unknown_s > UNKNOWN_SHARE * (float(took_s.sum()) + unseen_s):
        return None
    return float(amounts[known].sum())
