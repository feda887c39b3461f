"""The flame graph of a run: stages and their bounds at the top, below each what Python was doing there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gimlet_lab.render import units
from gimlet_lab.render.scene import Scene, Shape, Text, colour_of, empty, fit, marker, rect
from gimlet_lab.render.stacks import is_idle

_ROW = 18.0
_TOP = 4.0
_MAX_DEPTH = 26
_NARROWEST = 0.8

#: How strongly each kind of frame is coloured: the notebook's own code stands out.
_STRENGTH = {"stage": 1.0, "thread": 0.8, "cell": 0.5, "library": 0.24, "native": 0.14}

TITLE = "Stacks: what Python was doing"


def scene(form: Mapping[str, Any], width: float = 960.0) -> Scene:
    """Draw the stacks of a run; broad is long, the caller above the called."""
    stacks = form.get("stacks")
    if stacks is None:
        return empty(TITLE, "No stacks were sampled.", width)
    scale = (width - 2.0) / stacks["seconds"]
    items: list[Shape | Text] = []
    depths: list[int] = []
    for row in stacks["nodes"]:
        depth = 0 if row["parent"] < 0 else depths[row["parent"]] + 1
        depths.append(depth)
        wide = row["seconds"] * scale
        if depth <= _MAX_DEPTH and wide >= _NARROWEST:
            items += _box(row, 1.0 + row["start_s"] * scale, _TOP + _ROW * depth, wide)
    roots = [row for row in stacks["nodes"] if row["parent"] < 0]
    description = "; ".join(
        f"{row['label']}, {row['bound'] or 'a thread'}: {units.percent(row['share'])}"
        for row in sorted(roots, key=lambda row: -row["seconds"])[:8]
    )
    high = _TOP + _ROW * (1 + min(max(depths), _MAX_DEPTH)) + 4.0
    return Scene(width, high, TITLE, description, tuple(items))


def _box(row: Mapping[str, Any], x: float, y: float, wide: float) -> list[Shape | Text]:
    idle = is_idle(row)
    top = row["kind"] in ("stage", "thread")
    colour = colour_of("idle" if row["bound"] is None or (idle and not top) else row["bound"])
    title = (
        f"{row['label']}: {units.seconds(row['seconds'])}, {units.percent(row['share'])} of the cell's time"
    )
    if row["running_s"] is not None:
        title += f", {units.percent(units.ratio(row['running_s'], row['seconds']))} of it running"
    outline = rect(x, y, max(_NARROWEST, wide - 0.8), _ROW - 1.5)
    items: list[Shape | Text] = [Shape(outline, colour, opacity=_STRENGTH[row["kind"]], title=title)]
    left = x + 4.0
    if top and wide > 22:
        items.append(marker(row["bound"], x + 9, y + 8.2, 3.8, fill="white"))
        left = x + 17
    if x + wide - left > 24:
        shown = fit(row["label"], x + wide - left - 3, 10.5)
        items.append(Text(left, y + 12.2, shown, 10.5, "white" if top else "ink", title=title))
    return items
