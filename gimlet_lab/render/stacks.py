"""Sampled stacks as they are shown: a tree by stage and bound, the lines and functions with the most time.

Plain data, as all of the display form: no source text, unless the run holds its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gimlet_lab.model.run import Run
from gimlet_lab.model.stacks import Frame, StackSample
from gimlet_lab.render.lines import named, own_file, place
from gimlet_lab.render.marks import OTHER
from gimlet_lab.render.units import clip, finite, label, maybe, percent, ratio, seconds

MAX_ROWS = 40
#: Frames that take a smaller part of all are not drawn.
SMALLEST = 0.004
#: A frame that does nothing but call the next one, for this part of its time, is left out.
_PASSES_ON = 0.98
_DEEPEST = 40
_PLUMBING = frozenset(("Module._call_impl", "Module._wrapped_call_impl"))


@dataclass(slots=True)
class _Node:
    label: str
    kind: str
    bound: str | None = None
    seconds: float = 0.0
    running_s: float | None = 0.0
    inside: dict[object, _Node] = field(default_factory=dict)

    def add(self, sample: StackSample) -> None:
        self.seconds += sample.duration_s
        known = self.running_s is not None and sample.running_s is not None
        self.running_s = (self.running_s or 0.0) + (sample.running_s or 0.0) if known else None


def summed(run: Run) -> Run:
    """Equal stacks of one thread, stage and phase as one sample: what all that is shown is made from."""
    stacks, phases = run.sampled, len(run.phase_list)
    found: dict[tuple[Any, ...], StackSample] = {}
    for sample in stacks.samples:
        if not (finite(sample.duration_s) or 0.0) > 0.0:
            continue
        known_phase = sample.phase is not None and 0 <= sample.phase < phases
        one = replace(sample, running_s=finite(sample.running_s), phase=sample.phase if known_phase else None)
        key = (one.thread, one.node, one.stage, one.phase)
        before = found.get(key)
        if before is not None:
            known = before.running_s is not None and one.running_s is not None
            one = replace(
                before,
                duration_s=before.duration_s + one.duration_s,
                running_s=(before.running_s or 0.0) + (one.running_s or 0.0) if known else None,
            )
        found[key] = one
    return replace(run, sampled=replace(stacks, samples=tuple(found.values())))


def form(run: Run) -> dict[str, Any] | None:
    """The stacks of a run; None where none were sampled."""
    stacks = run.sampled
    if not stacks.samples:
        return None
    roots: dict[object, _Node] = {}
    for sample in stacks.samples:
        key, root = _root(run, sample)
        node = roots.setdefault(key, root)
        node.add(sample)
        for frame in _shown(stacks.path(sample.node)):
            node = node.inside.setdefault(frame, _Node(label(named(frame)), _kind(frame)))
            node.add(sample)
    total = sum(root.seconds for root in roots.values())
    cell_s = sum(sample.duration_s for sample in stacks.samples if stacks.of_cell(sample))
    rows: list[dict[str, Any]] = []
    at_s = 0.0
    for root in sorted(roots.values(), key=lambda root: root.kind != "stage"):
        _flatten(root, -1, at_s, SMALLEST * total, cell_s, rows)
        at_s += root.seconds
    return {
        "source": label(stacks.source),
        "rate_hz": finite(stacks.rate_hz),
        "seconds": total,
        "cell_s": cell_s,
        "coverage": ratio(cell_s, run.duration_s),
        "nodes": rows,
        "lines": _lines(run, cell_s),
        "functions": _functions(run, cell_s),
    }


def _root(run: Run, sample: StackSample) -> tuple[object, _Node]:
    thread = run.sampled.threads[sample.thread]
    bound = run.phase_list[sample.phase].bound if sample.phase is not None else None
    if thread.lane == 0:
        stage = OTHER if sample.stage is None else label(sample.stage)
        return (stage, bound), _Node(stage, "stage", maybe(bound))
    return sample.thread, _Node(label(thread.name), "thread")


def _shown(path: list[Frame]) -> list[Frame]:
    """Without the frames through which torch calls every module, and down to a depth."""
    inner = path[-1]
    return [frame for frame in path if frame.function not in _PLUMBING or frame is inner][:_DEEPEST]


def _kind(frame: Frame) -> str:
    return "cell" if frame.cell else "native" if frame.line is None else "library"


def _flatten(
    node: _Node, parent: int, at_s: float, least_s: float, cell_s: float, rows: list[dict[str, Any]]
) -> None:
    """Rows from the outside in; a frame of a library that only passes on is left out."""
    own = len(rows)
    rows.append(
        {
            "parent": parent,
            "label": node.label,
            "kind": node.kind,
            "bound": node.bound if parent < 0 else rows[parent]["bound"],
            "start_s": at_s,
            "seconds": node.seconds,
            "running_s": node.running_s,
            "share": ratio(node.seconds, cell_s),
        }
    )
    for inner in node.inside.values():
        if inner.seconds >= least_s:
            entered = node.kind != inner.kind
            _flatten(inner if entered else _last(inner), own, at_s, least_s, cell_s, rows)
        at_s += inner.seconds


def _last(node: _Node) -> _Node:
    while node.kind in ("library", "native"):
        most = max(node.inside.values(), key=lambda inner: inner.seconds, default=None)
        if most is None or most.kind != node.kind or most.seconds < _PASSES_ON * node.seconds:
            break
        node = most
    return node


def _lines(run: Run, cell_s: float) -> list[dict[str, Any]]:
    """The notebook's own lines, by stage, bound and thread, the longest first."""
    stacks, here = run.sampled, own_file(run.sampled)
    found: dict[tuple[Any, ...], _Node] = {}
    for sample in stacks.samples:
        own = stacks.own(sample.node)
        if own is None:
            continue
        # What holds the cell's thread back need not hold back another one.
        phase = sample.phase if stacks.of_cell(sample) else None
        bound = None if phase is None else run.phase_list[phase].bound
        key = (own, sample.stage, bound, stacks.threads[sample.thread].name)
        found.setdefault(key, _Node("", "")).add(sample)
    longest = sorted(found.items(), key=lambda item: -item[1].seconds)[:MAX_ROWS]
    return [
        {
            "line": label(place(own, here)),
            "function": label(own.function),
            "stage": maybe(stage),
            "bound": maybe(bound),
            "thread": label(thread),
            **_amounts(node, cell_s),
        }
        for (own, stage, bound, thread), node in longest
    ]


def _functions(run: Run, cell_s: float) -> list[dict[str, Any]]:
    """Functions by their own time, whatever they were called from."""
    found: dict[tuple[str, str], _Node] = {}
    for sample in run.sampled.samples:
        leaf = run.sampled.frames[run.sampled.nodes[sample.node][1]]
        found.setdefault((leaf.function, leaf.file), _Node("", _kind(leaf))).add(sample)
    longest = sorted(found.items(), key=lambda item: -item[1].seconds)[:MAX_ROWS]
    return [
        {"function": label(function), "file": label(file), "kind": node.kind, **_amounts(node, cell_s)}
        for (function, file), node in longest
    ]


def _amounts(node: _Node, cell_s: float) -> dict[str, Any]:
    return {
        "seconds": node.seconds,
        "running_s": node.running_s,
        "idle_s": None if node.running_s is None else max(0.0, node.seconds - node.running_s),
        "share": ratio(node.seconds, cell_s),
    }


# --- as text ---


def is_idle(row: Mapping[str, Any]) -> bool:
    """Whether a row of the tree is known to have been idle for most of its time."""
    return row["running_s"] is not None and row["running_s"] < 0.5 * row["seconds"]


def tree_lines(form: Mapping[str, Any], least: float = 0.02, deepest: int = 12) -> Iterator[str]:
    """The tree, a line each, indented; what takes less of the cell's time is left out."""
    depth: list[int] = []
    for row in form["nodes"]:
        depth.append(0 if row["parent"] < 0 else depth[row["parent"]] + 1)
        if (row["share"] or 0.0) < least or depth[-1] > deepest:
            continue
        what = "  " * depth[-1] + clip(row["label"], 100)
        what += f" · {row['bound']}" if depth[-1] == 0 and row["bound"] else ""
        what += " · idle" if is_idle(row) else ""
        yield f"{percent(row['share']):>5} {seconds(row['seconds']):>8}  {what}"
