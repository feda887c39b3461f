"""The stage graph: boxes from top to bottom in the order data flows, edges with what they carry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from gimlet_lab.render import units
from gimlet_lab.render.scene import (
    Path,
    Scene,
    Shape,
    Text,
    box,
    colour_of,
    empty,
    fit,
    marker,
    polygon,
    rect,
    text_width,
)  # fmt: skip

_WIDE, _HIGH = 214.0, 50.0
_PITCH_X, _PITCH_Y = 244.0, 98.0
_LANE = 24.0
_MARGIN = 8.0
#: How an edge is known, as a dash pattern: the surer the more solid.
DASHES = {"tensor": None, "object": "9 3", "def-use": "5 4", "order": "1.5 4"}


def scene(form: Mapping[str, Any], width: float = 470.0) -> Scene:
    """Draw the graph of a run."""
    graph, stages = form["graph"], form["stages"]
    if not stages:
        return empty("Stage graph", "No stages were found.", width)
    lanes = max((edge["lane"] or 0 for edge in graph["edges"] if edge["back"]), default=-1)
    lanes += any(edge["back"] and edge["lane"] >= 0 for edge in graph["edges"])
    slots = [node["slot"] for node in graph["nodes"]]
    crossings = [slot for edge in graph["edges"] for _, slot in edge["via"]]
    loops = any(edge["from"] == edge["to"] for edge in graph["edges"])
    left_most = min([slot * _PITCH_X - _WIDE / 2 for slot in slots] + [s * _PITCH_X - 20 for s in crossings])
    right_most = max([slot * _PITCH_X + _WIDE / 2 + 104 * loops for slot in slots] +
                     [slot * _PITCH_X + 128 for slot in crossings])  # fmt: skip
    left = _MARGIN + _LANE * lanes + 8 * bool(lanes)
    natural = left + right_most - left_most + _MARGIN
    shift = left - left_most + max(0.0, (width - natural) / 2)
    centres = {
        node["stage"]: (shift + node["slot"] * _PITCH_X, _MARGIN + node["layer"] * _PITCH_Y)
        for node in graph["nodes"]
    }
    items = _forward(graph["edges"], centres, shift)
    items += _backward(graph["edges"], centres, shift + left_most)
    for index, centre in centres.items():
        items += _node(stages[index], *centre)
    height = 2 * _MARGIN + (graph["layers"] - 1) * _PITCH_Y + _HIGH
    if graph["left_out"]:
        more = f"The {len(centres)} largest of {len(stages)} stages; the table has the others."
        items.append(Text(_MARGIN, height + 12, more, 11, "quiet"))
        height += 20
    edges = sum(len(edge["carries"]) for edge in graph["edges"])
    described = f"{len(stages)} stages and {edges} edges: " + " → ".join(
        units.clip(stage["id"], 24) for stage in stages[:12]
    )
    return Scene(max(width, natural), height, "Stage graph", described, tuple(items))


def _node(stage: Mapping[str, Any], x: float, y: float) -> list[Shape | Text]:
    left = x - _WIDE / 2
    full = units.clip(stage["id"], 200)
    where = f" on {stage['device']}" if stage["device"] else ""
    title = (
        f"{full} ({stage['kind']}{where}): {stage['bound']}, {units.seconds(stage['total_s'])}, "
        f"{units.percent(stage['share'])} of the time, {units.count(stage['calls'])} calls"
    )
    times = f" · ×{units.count(stage['calls'])}" if stage["calls"] != 1 else ""
    second = f"{units.seconds(stage['total_s'])} · {units.percent(stage['share'])}{times}"
    holds = [
        *([f"weights {units.size(stage['weight_bytes'])}"] if stage["weight_bytes"] else []),
        *([f"state {units.size(stage['state_bytes'])}"] if stage["state_bytes"] else []),
    ]
    third = " · ".join(holds)
    first_y = y + (17 if third else 21)
    role = stage["role"] if stage["role"] and stage["role"] != stage["id"] else stage["kind"]
    role = fit(role, 62, 10)
    name = fit(full, _WIDE - 42 - text_width(role, 10), 12, bold=True)
    items: list[Shape | Text] = [
        Shape(box(left, y, _WIDE, _HIGH, 6.0), "tint", "grid", 1.2, title=title),
        Shape(rect(left, y + 4, 4.0, _HIGH - 8), colour_of(stage["bound"])),
        marker(stage["bound"], left + 18, first_y - 4, 5.0),
        Text(left + 29, first_y, name, 12, "ink", bold=True),
        Text(left + _WIDE - 9, first_y, role, 10, "quiet", "end"),
        Text(left + 29, first_y + 14, fit(second, _WIDE - 34, 10.5), 10.5, "ink"),
    ]
    if third:
        items.append(Text(left + 29, first_y + 27, fit(third, _WIDE - 32, 10), 10, "quiet"))
    return items


def _labels(edge: Mapping[str, Any]) -> list[str]:
    """At most two lines; the table has them all."""
    carried = edge["carries"]
    lines = [_carried(entry) for entry in carried]
    if len(lines) > 2:
        lines = [lines[0], f"and {len(lines) - 1} more"]
    times = max(entry["calls"] for entry in carried)
    return [*lines[:-1], lines[-1] + (f" ×{times:,}" if times > 1 else "")]


def _carried(entry: Mapping[str, Any]) -> str:
    if entry["known"] == "order":
        return "order"
    name = units.clip(entry["tensor"], 15)
    return name if entry["bytes"] is None else f"{name} {units.size(entry['bytes'])}"


def _title(edge: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{units.clip(entry['tensor'], 80)}: {units.size(entry['bytes'])}, {units.count(entry['calls'])} "
        f"times, known by {entry['known']}"
        for entry in edge["carries"][:12]
    )


def _known(edge: Mapping[str, Any]) -> str | None:
    """The dash of the surest thing an edge carries."""
    kinds = {entry["known"] for entry in edge["carries"]}
    return next((dash for kind, dash in DASHES.items() if kind in kinds), "1.5 4")


def _weight(edge: Mapping[str, Any]) -> float:
    """Broader for more bytes: 1.3 px below a kilobyte, 4 px above a gigabyte."""
    moved = max((entry["bytes"] or 0.0 for entry in edge["carries"]), default=0.0)
    steps = next((n for n, size in enumerate((1e3, 1e5, 1e6, 1e7, 1e8, 1e9)) if moved < size), 6)
    return 1.3 + 0.45 * steps


def _forward(
    edges: Sequence[Mapping[str, Any]], centres: Mapping[int, tuple[float, float]], shift: float
) -> list[Shape | Text]:
    forward = [edge for edge in edges if not edge["back"]]
    leaving: dict[int, list[int]] = defaultdict(list)
    entering: dict[int, list[int]] = defaultdict(list)
    for number, edge in enumerate(forward):
        leaving[edge["from"]].append(number)
        entering[edge["to"]].append(number)

    def towards(edge: Mapping[str, Any], *, first: bool) -> float:
        if edge["via"]:
            return float(shift + edge["via"][0 if first else -1][1] * _PITCH_X)
        return centres[edge["to" if first else "from"]][0]

    for numbers in leaving.values():
        numbers.sort(key=lambda number: towards(forward[number], first=True))
    for numbers in entering.values():
        numbers.sort(key=lambda number: towards(forward[number], first=False))
    shapes: list[Shape | Text] = []
    labels: list[Shape | Text] = []
    for number, edge in enumerate(forward):
        start, end = centres[edge["from"]], centres[edge["to"]]
        out, into = leaving[edge["from"]], entering[edge["to"]]
        x0 = start[0] + _spread(out.index(number), len(out))
        x1 = end[0] + _spread(into.index(number), len(into))
        path, middle = _route((x0, start[1] + _HIGH), (x1, end[1] - 1), edge["via"], shift)
        weight, title = _weight(edge), _title(edge)
        shapes.append(Shape(path, None, "quiet", weight, _known(edge), 0.62, title))
        shapes.append(_arrow(x1, end[1] - 1, 4 + weight))
        # Of several edges side by side, the left one's label stands to its left.
        crowded = len(out) > 1 and out.index(number) == 0 and not edge["via"]
        anchor, dx = ("end", -8) if crowded else ("start", 8)
        lines = _labels(edge)
        y = middle[1] + 3.5 - 6 * (len(lines) - 1)
        for row, text in enumerate(lines):
            at = (middle[0] + dx, y + 12.5 * row)
            labels.append(Text(*at, text, 10.5, "ink", anchor, halo=True, title=title))
    return shapes + labels


def _spread(index: int, number: int) -> float:
    return (index - (number - 1) / 2) * min(30.0, _WIDE / (number + 1))


def _arrow(x: float, y: float, size: float) -> Shape:
    points = [(x, y), (x - size * 0.62, y - size * 1.15), (x + size * 0.62, y - size * 1.15)]
    return Shape(polygon(points), "quiet")


def _route(
    start: tuple[float, float], end: tuple[float, float], via: Sequence[Sequence[float]], shift: float
) -> tuple[Path, tuple[float, float]]:
    """A curve from box to box, straight where it passes a layer; and where its label stands."""
    stops = [start]
    for layer, slot in via:
        x, y = shift + slot * _PITCH_X, _MARGIN + layer * _PITCH_Y
        stops += [(x, y), (x, y + _HIGH)]
    stops.append(end)
    path: list[tuple[str, tuple[float, ...]]] = [("M", start)]
    for index in range(len(stops) - 1):
        (x0, y0), (x1, y1) = stops[index], stops[index + 1]
        if index % 2:
            path.append(("L", (x1, y1)))
        else:
            bend = (y1 - y0) * 0.5
            path.append(("C", (x0, y0 + bend, x1, y1 - bend, x1, y1)))
    if via:
        (x, y), (_, below) = stops[1], stops[2]
        return tuple(path), (x, (y + below) / 2)
    return tuple(path), ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)


def _backward(
    edges: Sequence[Mapping[str, Any]], centres: Mapping[int, tuple[float, float]], left: float
) -> list[Shape | Text]:
    """Edges to the next turn: loops of one stage at its right side, the others in lanes at the left."""
    items: list[Shape | Text] = []
    for edge in edges:
        if not edge["back"]:
            continue
        (x0, y0), (x1, y1) = centres[edge["from"]], centres[edge["to"]]
        dash, weight, title = _known(edge), _weight(edge), _title(edge)
        middle0, middle1 = y0 + _HIGH / 2, y1 + _HIGH / 2
        if edge["from"] == edge["to"]:
            right = x0 + _WIDE / 2
            path: Path = (
                ("M", (right, middle0 - 12)),
                ("C", (right + 30, middle0 - 16, right + 30, middle0 + 16, right + 2, middle0 + 12)),
            )
            items.append(Shape(path, None, "quiet", weight, dash, 0.62, title))
            tip = right + 1
            arrow = [(tip, middle0 + 12), (tip + 8, middle0 + 7.5), (tip + 7, middle0 + 16)]
            items.append(Shape(polygon(arrow), "quiet"))
            label = units.clip(edge["carries"][0]["tensor"], 11)
            more = len(edge["carries"]) - 1
            rows = [
                label + (f" +{more}" if more else ""),
                units.size(edge["carries"][0]["bytes"]),
                f"×{edge['carries'][0]['calls']:,}",
            ]
            items += [
                Text(right + 28, middle0 - 9 + 12.5 * row, text, 10.5, "ink", halo=True, title=title)
                for row, text in enumerate(rows)
            ]
            continue
        lane = left - 14 - _LANE * edge["lane"]
        from_x, to_x, turn = x0 - _WIDE / 2, x1 - _WIDE / 2, 10.0
        way = 1 if middle1 < middle0 else -1
        path = (
            ("M", (from_x, middle0)),
            ("L", (lane + turn, middle0)),
            ("C", (lane + 3, middle0, lane, middle0 - 3 * way, lane, middle0 - turn * way)),
            ("L", (lane, middle1 + turn * way)),
            ("C", (lane, middle1 + 3 * way, lane + 3, middle1, lane + turn, middle1)),
            ("L", (to_x - 1, middle1)),
        )
        items.append(Shape(path, None, "quiet", weight, dash or "none", 0.62, title))
        size = 4 + weight
        tip = to_x - 1
        arrow = [
            (tip, middle1),
            (tip - 1.15 * size, middle1 - 0.62 * size),
            (tip - 1.15 * size, middle1 + 0.62 * size),
        ]
        items.append(Shape(polygon(arrow), "quiet"))
        text = " · ".join(_labels(edge)) + " · next turn"
        items.append(
            Text(lane - 5, (middle0 + middle1) / 2, fit(text, abs(middle0 - middle1), 10.5), 10.5, "ink",
                 "middle", angle=-90.0, halo=True, title=title)
        )  # fmt: skip
    return items
