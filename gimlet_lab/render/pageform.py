"""What our page draws of a run: part of the display form in few digits, for a notebook keeps every output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WHOLE = ("schema", "name", "status", "started", "duration_s", "overhead_s", "device", "finding")
_STAGE = (
    "id", "role", "device", "calls", "call_s", "total_s", "share", "bound", "flops_per_s", "bytes_per_s",
    "joules",
)  # fmt: skip
_POINT = ("stage", "bound", "intensity", "flops_per_s", "share", "of_roof", "interval_flops_per_s")
_ROOF = ("kind", "tier", "dtype", "value")
_OPERATOR = ("stage", "op", "dtype", "calls", "total_s", "flops", "bytes")

MAX_OPERATORS = 60
MAX_LINES = 40

#: Phases that are drawn, the longest.
MAX_MARKS = 600


def page_form(form: Mapping[str, Any], view: str = "summary") -> dict[str, Any]:
    """What is drawn of a display form.

    Parameters
    ----------
    form : mapping
        As of :func:`gimlet_lab.render.display.display_form`.
    view : str
        Which view was asked for.
    """
    roofline, graph = form["roofline"], form["graph"]
    kept = {
        **{name: form[name] for name in _WHOLE},
        "view": view,
        "timeline": {**form["timeline"], "marks": _longest(form["timeline"]["marks"])},
        "summary": form["summary"][:MAX_LINES],
        "notes": form["notes"][:MAX_LINES],
        "stages": [_part(stage, _STAGE) for stage in form["stages"]],
        "phases": {"by_bound": form["phases"]["by_bound"]},
        "roofline": {
            "points": [_part(point, _POINT) for point in roofline["points"]],
            "roofs": [_part(roof, _ROOF) for roof in roofline["roofs"]],
            "x_decades": roofline["x_decades"],
            "y_decades": roofline["y_decades"],
        },
        "graph": {
            "layers": graph["layers"],
            "nodes": graph["nodes"],
            "edges": [
                {
                    **_part(edge, ("from", "to", "back")),
                    "carries": [_part(one, ("tensor", "bytes", "known")) for one in edge["carries"]],
                }
                for edge in graph["edges"]
            ],
        },
        "operators": [_part(one, _OPERATOR) for one in form["operators"][:MAX_OPERATORS]],
    }
    rounded: dict[str, Any] = _rounded(kept)
    return rounded


def _part(entry: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: entry[name] for name in names if entry.get(name) is not None}


def _longest(marks: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    rows = sorted(range(len(marks["lane"])), key=lambda row: -marks["duration_s"][row])[:MAX_MARKS]
    return {name: [column[row] for row in sorted(rows)] for name, column in marks.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
