"""A module's stages in stretches of its layers: what each would be if it were placed by itself.

Its roles go together: a stretch that prefills is where its KV cache is, and so decodes. What is in no layer
(embeddings, the head, the Python between) stays with the notebook.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from gimlet_lab.analysis.graph import with_work
from gimlet_lab.errors import UnknownNameError, UsageError
from gimlet_lab.model import Edge, Graph, Op, Run, Stage

_NUMBERED = re.compile(r"(.+)\.(\d+)$")


def in_layers(run: Run, counts: Mapping[str, int]) -> Graph:
    """The graph of a run with modules in so many stretches of layers each.

    Parameters
    ----------
    run : Run
    counts : mapping of str to int
        Targets of modules (``llm``), and stretches of each.

    Returns
    -------
    Graph
        Stages ``llm.model.layers[0:16]``, …, one after the other between those of the module's roles, which
        keep what is in no layer and are ``glue``.

    Raises
    ------
    UsageError
        For a module that was not seen, has no numbered layers, or fewer than that.
    """
    graph = run.graph
    for target, count in counts.items():
        graph = _split(run, graph, target, count)
    return graph


def _split(run: Run, graph: Graph, target: str, count: int) -> Graph:
    roles = [stage for stage in graph.stages if stage.kind == "module" and stage.target == target]
    if not roles:
        raise UnknownNameError("module", target, {str(s.target) for s in graph.stages if s.kind == "module"})
    path, layers = _layers(roles[0])
    if not 1 <= count <= layers:
        raise UsageError(f"layers: {target} has {layers} numbered layers, and not {count} stretches of them")
    ends = [round(index * layers / count) for index in range(count + 1)]
    rows = _rows(run, roles, path.removeprefix(f"{target}."), ends)
    shares = _shares(rows)
    stretches = [
        _stretch(roles, rows, shares, index, f"{path}[{first}:{last}]", range(first, last), layers)
        for index, (first, last) in enumerate(pairwise(ends))
    ]
    kept = {stage.id: _kept(stage, rows[stage.id, None], shares[stage.id, None], path) for stage in roles}
    stages: list[Stage] = []
    for stage in graph.stages:
        stages.append(kept.get(stage.id, stage))
        if stage is roles[0]:
            stages += stretches
    hidden = _hidden_bytes(rows, path.removeprefix(f"{target}."))
    return Graph(tuple(stages), tuple(_edges(graph, roles, stretches, hidden)))


def _layers(stage: Stage) -> tuple[str, int]:
    """Where the module's layers are, by the names of its weights, and how many."""
    numbers: dict[str, set[int]] = defaultdict(set)
    nbytes: dict[str, int] = defaultdict(int)
    for name, size in stage.weights.items():
        found = _NUMBERED.match(name)
        if found:
            numbers[found[1]].add(int(found[2]))
            nbytes[found[1]] += size
    path = max(nbytes, key=lambda one: nbytes[one], default=None)
    if path is None or numbers[path] != set(range(len(numbers[path]))):
        raise UsageError(f"layers: {stage.target} has no numbered layers that hold weights")
    return path, len(numbers[path])


_Rows = dict[tuple[str, int | None], list[Op]]


def _rows(run: Run, roles: Sequence[Stage], path: str, ends: Sequence[int]) -> _Rows:
    """Operators by role and stretch; of what is in none: None."""
    layer = re.compile(rf"{re.escape(path)}\.(\d+)(?:\.|$)")
    found: _Rows = defaultdict(list)
    wanted = {stage.id for stage in roles}
    for op, stage in zip(run.operators, run.stage_of, strict=True):
        if stage in wanted:
            number = layer.match(op.module)
            index = None if number is None else bisect_right(ends, int(number[1])) - 1
            found[str(stage), index].append(op)
    return found


def _shares(rows: _Rows) -> dict[tuple[str, int | None], float]:
    """The part of a role's time that goes to each stretch: by its operators'."""
    took = {place: sum(op.duration_s for op in ops) for place, ops in rows.items()}
    whole: dict[str, float] = defaultdict(float)
    for (stage, _), seconds in took.items():
        whole[stage] += seconds
    return defaultdict(
        float, {place: seconds / whole[place[0]] for place, seconds in took.items() if whole[place[0]] > 0}
    )


def _stretch(
    roles: Sequence[Stage],
    rows: _Rows,
    shares: Mapping[tuple[str, int | None], float],
    index: int,
    name: str,
    numbers: range,
    layers: int,
) -> Stage:
    calls = sum(stage.calls for stage in roles)
    total_s = sum(stage.total_s * shares[stage.id, index] for stage in roles)
    longest = max(roles, key=lambda stage: stage.total_s)
    path = name[: name.rindex("[")]
    return replace(
        with_work(longest, [op for stage in roles for op in rows[stage.id, index]], None, 0.0),
        id=name,
        target=name,
        role=None,
        calls=calls,
        call_s=total_s / calls,
        total_s=total_s,
        weights={f"{path}.{n}": longest.weights[f"{path}.{n}"] for n in numbers},
        state_bytes=max(stage.state_bytes for stage in roles) * len(numbers) // layers,
        warmup_s=sum(stage.warmup_s * shares[stage.id, index] for stage in roles),
        dtype=longest.dtype,
        peak_bytes=None,
        joules=None,
    )


def _kept(stage: Stage, ops: Sequence[Op], share: float, path: str) -> Stage:
    """A role without its layers, which stays where the notebook is."""
    return replace(
        with_work(stage, ops, None, 0.0),
        kind="glue",
        call_s=stage.call_s * share,
        total_s=stage.total_s * share,
        weights={name: size for name, size in stage.weights.items() if not name.startswith(f"{path}.")},
        state_bytes=0,
        warmup_s=stage.warmup_s * share,
        dtype=stage.dtype,
        peak_bytes=None,
        joules=None,
    )


def _hidden_bytes(rows: _Rows, path: str) -> float | None:
    """What a layer hands on, in the mean over all calls: what it adds at its own level it gives out."""
    layer = re.compile(rf"{re.escape(path)}\.\d+$")
    added = [
        op
        for ops in rows.values()
        for op in ops
        if layer.match(op.module) and op.op.startswith("aten::add") and op.bytes_written
    ]
    calls = sum(op.count for op in added)
    return sum(op.bytes_written or 0.0 for op in added) / calls if calls else None


def _edges(
    graph: Graph, roles: Sequence[Stage], stretches: Sequence[Stage], hidden: float | None
) -> list[Edge]:
    """The first role's stage hands hidden states to the stretches, the last one's takes them back."""
    own = {stage.id for stage in roles}
    first, last = roles[0].id, roles[-1].id
    calls = stretches[0].calls
    way = [first, *(stage.id for stage in stretches), *([last] if last != first else [])]
    chain = [Edge(a, b, "hidden_states", hidden, calls, "tensor") for a, b in pairwise(way)]
    others = [edge for edge in graph.edges if not (edge.src in own and edge.dst in own)]
    if last == first:  # what comes after it comes after its layers
        others = [
            replace(edge, src=way[-1]) if edge.src == first and not edge.back else edge for edge in others
        ]
    return [*others, *chain]
