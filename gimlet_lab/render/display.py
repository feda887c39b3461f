"""What the charts and tables of a run show, computed once: plain data that any page can draw.

The display form is stored with the run (``display.json``). It holds no pixels: times in seconds, places of
the graph in layers and slots, the roofline in FLOP per byte and FLOP/s. Unknown is null. Text, static
pictures and the page draw from it alike.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import count
from operator import attrgetter
from statistics import median
from typing import Any

import numpy as np

from gimlet_lab.model.device import Device
from gimlet_lab.model.graph import Graph, Stage
from gimlet_lab.model.run import Run
from gimlet_lab.render import lines, marks, points, stacks, summary
from gimlet_lab.render.layout import layered
from gimlet_lab.render.points import of_roof, read_roof
from gimlet_lab.render.units import finite, label, maybe, ratio

SCHEMA = "gimlet.display/1"
MAX_ROWS = 200
MAX_NODES = 24

_OP, _DTYPE = attrgetter("op"), attrgetter("dtype")


def display_form(run: Run) -> dict[str, Any]:
    """Everything that is shown of a run.

    Returns
    -------
    dict
        ``schema``, the run's own fields, ``finding`` and ``summary`` (sentences), and one entry for each
        chart or table: ``stages``, ``phases``, ``timeline``, ``roofline``, ``graph``, ``calls``,
        ``operators``, ``stacks``.

    Examples
    --------
    >>> from gimlet_lab.model import Device, Run
    >>> run = Run("r", "ok", None, "2026-01-01T00:00:00Z", 1.0, 0.0, Device("cpu", "CPU", "", "cpu"), {})
    >>> display_form(run)["finding"]
    'r took 1.00 s; no stage was found in it.'
    """
    stages = [_stage(stage, run) for stage in run.graph.stages]
    sampled = stacks.summed(run)
    line_of = lines.of_phases(sampled)
    form: dict[str, Any] = {
        "schema": SCHEMA,
        "name": label(run.name),
        "status": label(run.status),
        "error": maybe(run.error),
        "started": label(run.started),
        "duration_s": finite(run.duration_s),
        "net_s": finite(run.net_s),
        "overhead_s": finite(run.overhead_s),
        "device": _device(run.device),
        "environment": {label(k): label(v) for k, v in run.environment.items()},
        "deployment": {label(k): label(v) for k, v in run.deployment.items()},
        "transferred_bytes": finite(run.transferred_bytes),
        "dry": run.dry,
        "weight_bytes": run.weight_bytes,
        "peak_bytes": run.peak_bytes,
        "notes": [label(note) for note in run.notes],
        "stages": stages,
        "phases": marks.phases(run, line_of),
        "timeline": marks.timeline(run),
        "roofline": points.roofline(run, stages),
        "graph": _graph(run.graph),
        "calls": _calls(run),
        "operators": _operators(run),
        "stacks": stacks.form(sampled),
    }
    form["finding"] = summary.finding(form)
    form["summary"] = [*summary.sentences(form), *lines.sentences(sampled)]
    return form


def _device(device: Device) -> dict[str, Any]:
    # The person sits at the live CPU; any other device has a name.
    short = "this CPU" if device.kind == "cpu" and device.live else label(device.name)
    return {"id": label(device.id), "name": label(device.name), "kind": label(device.kind), "short": short}


# --- stages ---


def _predicted(run: Run, stage_id: str) -> dict[str, Any] | None:
    """What one call was expected to take, with its interval and source."""
    estimate = run.predicted.get(stage_id)
    if estimate is None:
        return None
    interval = [finite(estimate.low), finite(estimate.high)]
    return {"seconds": finite(estimate.seconds), "interval": interval, "source": label(estimate.source)}


def _stage(stage: Stage, run: Run) -> dict[str, Any]:
    total, warm = finite(stage.total_s), finite(stage.warmup_s) or 0.0
    steady = None if total is None else max(0.0, total - warm)
    device = run.deployment.get(stage.id) or stage.device
    # What was not measured reaches no part of a roof.
    at_home = not run.dry and device in (None, run.device.id, run.device.torch_device)
    reached, roof = of_roof(stage.flops, stage.bytes, steady, stage.dtype, run.device)
    read_rate = ratio(stage.bytes_read, steady)
    return {
        "id": label(stage.id),
        "kind": label(stage.kind),
        "target": maybe(stage.target),
        "role": maybe(stage.role),
        "device": maybe(device),
        "at_home": at_home,
        "calls": stage.calls,
        "turns": stage.turns,
        "call_s": finite(stage.call_s),
        "predicted": _predicted(run, stage.id),
        "total_s": total,
        "steady_s": steady,
        "warmup_s": warm,
        "share": ratio(total, run.net_s),
        "bound": label(stage.bound),
        "ops": stage.ops,
        "flops": finite(stage.flops),
        "bytes": finite(stage.bytes),
        "bytes_read": finite(stage.bytes_read),
        "intensity": finite(stage.intensity),
        "flops_per_s": ratio(stage.flops, steady),
        "bytes_per_s": ratio(stage.bytes, steady),
        "read_bytes_per_s": read_rate,
        "of_read": ratio(read_rate, read_roof(run.device)) if at_home else None,
        "of_roof": reached if at_home else None,
        "roof": roof if at_home else None,
        "dtype": maybe(stage.dtype),
        "weight_bytes": stage.weight_bytes,
        "state_bytes": stage.state_bytes,
        "pure": stage.pure,
        "joules": finite(stage.joules),
    }


# --- graph ---


def _graph(graph: Graph) -> dict[str, Any]:
    """Nodes and edges by the number of their stages: the largest stages, where there are many."""
    largest = sorted(graph.stages, key=lambda stage: -(finite(stage.total_s) or 0.0))[:MAX_NODES]
    drawn = {stage.id for stage in largest}
    number = {stage.id: index for index, stage in enumerate(graph.stages) if stage.id in drawn}
    layout = layered(list(number), [(edge.src, edge.dst, edge.back) for edge in graph.edges])
    together: dict[tuple[str, str, bool], list[Any]] = defaultdict(list)
    for edge in graph.edges:
        together[edge.src, edge.dst, (edge.src, edge.dst) in layout.back].append(edge)
    return {
        "layers": layout.layers,
        "left_out": len(graph.stages) - len(number),
        "nodes": [
            {"stage": index, "layer": layout.place[stage][0], "slot": round(layout.place[stage][1], 3)}
            for stage, index in number.items()
        ],
        "edges": [
            {
                "from": number[src],
                "to": number[dst],
                "back": back,
                "lane": layout.back.get((src, dst)) if back else None,
                "via": [[layer, round(slot, 3)] for layer, slot in layout.via.get((src, dst), [])],
                "carries": [
                    {
                        "tensor": label(edge.tensor),
                        "bytes": finite(edge.bytes),
                        "calls": edge.calls,
                        "known": label(edge.known),
                    }
                    for edge in edges
                ],
            }
            for (src, dst, back), edges in together.items()
            if src in number and dst in number
        ],
    }


# --- calls and operators ---


def _calls(run: Run) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for span in run.span_list:
        if span.kind != "cell":
            groups[run.span_stage.get(span.id), span.name, span.kind, span.role].append(span)
    rows = []
    for (stage, name, kind, role), spans in groups.items():
        times = [span.duration_s for span in spans if finite(span.duration_s) is not None]
        rows.append(
            {
                "stage": maybe(stage),
                "name": label(name),
                "kind": label(kind),
                "role": maybe(role),
                "calls": len(spans),
                "looked": sum(span.looked for span in spans),
                "total_s": sum(times) if times else None,
                "median_s": median(times) if times else None,
                "min_s": min(times, default=None),
                "max_s": max(times, default=None),
            }
        )
    return sorted(rows, key=lambda row: -(row["total_s"] or 0.0))[:MAX_ROWS]


def _operators(run: Run) -> list[dict[str, Any]]:
    """Operators by stage, kind and dtype, the longest first."""
    # By column: there may be a million rows. Each takes the place of the first of its kind.
    keys = zip(run.stage_of, map(_OP, run.operators), map(_DTYPE, run.operators), strict=True)
    kinds: dict[tuple[Any, ...], int] = {}
    places = np.array(list(map(kinds.setdefault, keys, count())), dtype=np.int64)
    of = np.searchsorted(np.array(list(kinds.values()), dtype=np.int64), places)

    def total(name: str) -> list[float]:
        """Unknown in one row is unknown in the sum, and not a number."""
        column = np.array(list(map(attrgetter(name), run.operators)), dtype=np.float64)
        if name == "duration_s":
            column[~np.isfinite(column)] = 0.0
        return np.bincount(of, weights=column, minlength=len(kinds)).tolist()  # type: ignore[no-any-return]

    names = ("count", "duration_s", "flops", "bytes_read", "bytes_written")
    rows: list[dict[str, Any]] = [
        {
            "stage": maybe(stage),
            "op": label(op),
            "dtype": label(dtype),
            "calls": int(calls),
            "total_s": total_s,
            "flops": finite(flops),
            "bytes": finite(read + written),
        }
        for (stage, op, dtype), calls, total_s, flops, read, written in zip(
            kinds, *map(total, names), strict=True
        )
    ]
    return sorted(rows, key=lambda row: -row["total_s"])[:MAX_ROWS]
