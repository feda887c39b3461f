"""The roofline: what each stage reaches beside what the device can, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gimlet_lab.render import units
from gimlet_lab.render.scene import (
    Scene,
    Shape,
    Text,
    colour_of,
    empty,
    line,
    marker,
    text_width,
)  # fmt: skip

#: Charts up to this width stand two in a row.
BESIDE = 560.0
#: Radius of an operator group's ring.
_RING = 4.5
_LEFT, _RIGHT, _TOP, _BOTTOM = 74.0, 14.0, 10.0, 42.0
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class _Axes:
    """Decades to pixels."""

    def __init__(self, x: Sequence[int], y: Sequence[int], width: float, height: float) -> None:
        self.x, self.y = x, y
        self.left, self.right = _LEFT, width - _RIGHT
        self.top, self.bottom = _TOP, height - _BOTTOM
        self.per_x = (self.right - self.left) / (x[1] - x[0])
        self.per_y = (self.bottom - self.top) / (y[1] - y[0])

    def at(self, intensity: float, rate: float) -> tuple[float, float]:
        return (
            self.left + (math.log10(intensity) - self.x[0]) * self.per_x,
            self.bottom - (math.log10(rate) - self.y[0]) * self.per_y,
        )


def scene(form: Mapping[str, Any], width: float = 470.0, height: float = 372.0) -> Scene:
    """Draw the roofline of a run."""
    chart = form["roofline"]
    if not chart["points"] and not chart["roofs"]:
        return empty("Roofline", "No operators with known FLOPs and bytes.", width)
    axes = _Axes(chart["x_decades"], chart["y_decades"], width, height)
    taken = [_area(axes, point) for point in chart["points"]]
    items = _grid(axes) + _roofs(axes, chart["roofs"], taken)
    if width > BESIDE:
        items += _groups(axes, chart.get("groups", ()), taken)
    items += _points(axes, chart["points"], taken)
    near = [
        f"{point['stage']} {units.flop_rate(point['flops_per_s'])} at "
        f"{units.intensity(point['intensity'])} FLOP per byte"
        for point in chart["points"][:6]
    ]
    return Scene(width, height, "Roofline", "; ".join(near) or "no stage with known work", tuple(items))


def beside(form: Mapping[str, Any], other: Scene) -> Scene:
    """The roofline as high as the graph beside it, within reason; alone in its row it is broader."""
    if other.width > BESIDE:
        return scene(form, 760.0, 420.0)
    return scene(form, height=min(520.0, max(372.0, other.height)))


def _every(decades: Sequence[int], most: int) -> range:
    step = max(1, math.ceil((decades[1] - decades[0]) / most))
    return range(decades[0], decades[1] + 1, step)


def _grid(axes: _Axes) -> list[Shape | Text]:
    items: list[Shape | Text] = []
    for decade in _every(axes.x, 8):
        x = axes.left + (decade - axes.x[0]) * axes.per_x
        items.append(Shape(line([(x, axes.top), (x, axes.bottom)]), stroke="grid"))
        label = f"{10.0**decade:g}" if -3 <= decade <= 4 else "10" + str(decade).translate(_SUPERSCRIPT)
        items.append(Text(x, axes.bottom + 15, label, 10.5, "quiet", "middle"))
    for decade in _every(axes.y, 8):
        y = axes.bottom - (decade - axes.y[0]) * axes.per_y
        items.append(Shape(line([(axes.left, y), (axes.right, y)]), stroke="grid"))
        items.append(Text(axes.left - 6, y + 3.5, _rate(decade), 10.5, "quiet", "end"))
    middle = (axes.left + axes.right) / 2
    items.append(Text(middle, axes.bottom + 33, "intensity (FLOP per byte)", 11, "ink", "middle"))
    return items


def _rate(decade: int) -> str:
    steps = {18: "E", 15: "P", 12: "T", 9: "G", 6: "M", 3: "k", 0: ""}
    power = next((p for p in steps if decade >= p), None)
    if power is None or decade - power > 2:
        return "10" + str(decade).translate(_SUPERSCRIPT)
    return f"{10 ** (decade - power)} {steps[power]}FLOP/s"


def _roofs(
    axes: _Axes, roofs: Sequence[Mapping[str, Any]], taken: list[tuple[float, float, float, float]]
) -> list[Shape | Text]:
    items: list[Shape | Text] = []
    low, high = 10.0 ** axes.x[0], 10.0 ** axes.x[1]
    for tier in ("datasheet", "calibrated"):
        mine = [roof for roof in roofs if roof["tier"] == tier]
        slopes = [roof["value"] for roof in mine if roof["kind"] == "bandwidth"]
        # Where only one kind of roof is calibrated, the other's datasheet closes it.
        slope = (slopes or [r["value"] for r in roofs if r["kind"] == "bandwidth"] or [None])[0]
        peaks = [roof for roof in mine if roof["kind"] == "compute"]
        dash = None if tier == "calibrated" else "5 4"
        stroke = 2.0 if tier == "calibrated" else 1.2
        if slopes:
            # Two memory roofs lie close together: the upper one's label above it, the lower one's below.
            side = -1.0 if tier == "calibrated" and _tiers(roofs) == 2 else 1.0
            top = max(
                (r["value"] for r in peaks or roofs if r["kind"] == "compute"), default=slopes[0] * high
            )
            items += _slope(axes, slopes[0], top, tier, dash, stroke, taken, side)
        for roof in peaks:
            start = max(low, roof["value"] / slope) if slope else low
            (x, y), (end, _) = axes.at(start, roof["value"]), axes.at(high, roof["value"])
            text = f"{roof['dtype']} {units.flop_rate(roof['value'])}"
            title = f"{text}: {roof['source']}, {roof['date']} ({tier})"
            items.append(Shape(line([(x, y), (end, y)]), None, "roof", stroke, dash, title=title))
            wide = text_width(text, 10.5)
            # The upper of two roofs has its label above it, so that neither line runs through it.
            twin = [r["value"] for r in roofs if r["kind"] == "compute" and r["dtype"] == roof["dtype"]]
            upper = roof["value"] == max(twin) if len(twin) > 1 else tier == "datasheet"
            heights = (y - 5, y + 13) if upper else (y + 13, y - 5)
            lefts = (end - wide - 2, x + 4, (x + end - wide) / 2)
            spots = [(left, at) for at in heights for left in lefts if x <= left <= end - wide]
            spots += [(end - wide - 2, y + 26 + 13 * row) for row in range(4)]
            for left, at in spots:
                if not any(_overlap((left, at - 9, wide, 12), other) for other in taken):
                    taken.append((left, at - 9, wide, 12))
                    items.append(Text(left, at, text, 10.5, "quiet", halo=True, title=title))
                    break
    return items


def _tiers(roofs: Sequence[Mapping[str, Any]]) -> int:
    return len({roof["tier"] for roof in roofs if roof["kind"] == "bandwidth"})


def _slope(
    axes: _Axes, slope: float, top: float, tier: str, dash: str | None, stroke: float,
    taken: list[tuple[float, float, float, float]], side: float,
) -> list[Shape | Text]:  # fmt: skip
    """The memory roof, from the edge of the chart to the ridge, its label along it."""
    floor = 10.0 ** axes.y[0]
    start = max(10.0 ** axes.x[0], floor / slope)
    end = min(10.0 ** axes.x[1], top / slope)
    if end <= start:
        return []
    a, b = axes.at(start, start * slope), axes.at(end, end * slope)
    text = f"{'reads' if tier == 'calibrated' else 'datasheet'} {units.bandwidth(slope)}"
    items: list[Shape | Text] = [Shape(line([a, b]), None, "roof", stroke, dash, title=f"{text} ({tier})")]
    length = math.hypot(b[0] - a[0], b[1] - a[1])
    wide = text_width(text, 10.5)
    angle = math.degrees(math.atan2(b[1] - a[1], b[0] - a[0]))
    nx, ny = (b[1] - a[1]) / length, -(b[0] - a[0]) / length  # to the upper left of the line
    for share in (0.62, 0.5, 0.75, 0.38, 0.25):
        if share * length < wide / 2 + 8 or (1 - share) * length < wide / 2 + 4:
            continue
        x, y = a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share
        along, across = wide / 2 * abs(b[0] - a[0]) / length, wide / 2 * abs(b[1] - a[1]) / length
        area = (x - along - 10, y - across - 10, 2 * along + 10, 2 * across + 10)
        if not any(_overlap(area, other) for other in taken):
            taken.append((x - along / 2 - 6, y - across / 2 - 6, along, across))
            away = 6.0 if side > 0 else -13.0  # text stands on its baseline
            at = (x + away * nx, y + away * ny)
            items.append(Text(*at, text, 10.5, "quiet", "middle", angle=angle, halo=True))
            break
    return items


def _radius(point: Mapping[str, Any]) -> float:
    return 5.0 + 8.0 * math.sqrt(min(1.0, point["share"] or 0.0))


def _area(axes: _Axes, point: Mapping[str, Any]) -> tuple[float, float, float, float]:
    (x, y), radius = axes.at(point["intensity"], point["flops_per_s"]), _radius(point)
    return x - radius, y - radius, 2 * radius, 2 * radius


def _points(
    axes: _Axes, points: Sequence[Mapping[str, Any]], taken: list[tuple[float, float, float, float]]
) -> list[Shape | Text]:
    shapes: list[Shape | Text] = []
    labels: list[Shape | Text] = []
    placed = []
    for point in sorted(points, key=lambda point: -(point["share"] or 0.0)):
        x, y = axes.at(point["intensity"], point["flops_per_s"])
        radius = _radius(point)
        warm = " (warm-up)" if point["warmup"] else ""
        title = (
            f"{units.clip(point['stage'], 80)}{warm}: {units.flop_rate(point['flops_per_s'])}, "
            f"{units.bandwidth(point['bytes_per_s'])}, {units.intensity(point['intensity'])} FLOP per byte, "
            f"{units.percent(point['of_roof'])} of the roof, {units.percent(point['share'])} of the time"
        )
        if point["interval_flops_per_s"]:
            low, high = (axes.at(point["intensity"], rate)[1] for rate in point["interval_flops_per_s"])
            shapes.append(
                Shape(
                    line([(x, low), (x, high)]),
                    stroke=colour_of(point["bound"]),
                    width=1.5,
                    title="90% of its calls",
                )
            )
        shapes.append(marker(point["bound"], x, y, radius, title, hollow=point["warmup"]))
        placed.append((x, y, radius, units.clip(point["stage"], 22) + warm, title))
    for x, y, radius, text, title in placed:
        labels += _label(axes, x, y, radius, text, title, taken)
    return shapes + labels


def _groups(
    axes: _Axes, groups: Sequence[Mapping[str, Any]], taken: list[tuple[float, float, float, float]]
) -> list[Shape | Text]:
    """Operators of one kind: a small ring each, with the span of 90% of their time."""
    shapes: list[Shape | Text] = []
    labels: list[Shape | Text] = []
    for group in groups:
        x, y = axes.at(group["intensity"], group["flops_per_s"])
        title = (
            f"{group['op']}, {group['dtype']}: {units.flop_rate(group['flops_per_s'])}, "
            f"{units.bandwidth(group['bytes_per_s'])}, {units.intensity(group['intensity'])} FLOP per byte, "
            f"{units.percent(group['of_roof'])} of the roof, {units.percent(group['share'])} of the time"
        )
        if group["interval_flops_per_s"]:
            low, high = (axes.at(group["intensity"], rate)[1] for rate in group["interval_flops_per_s"])
            shapes.append(
                Shape(line([(x, low), (x, high)]), stroke="quiet", width=1.0, title="90% of their time")
            )
        shapes.append(marker(None, x, y, _RING, title))
        taken.append((x - 4, y - 4, 8, 8))
        labels += _label(axes, x, y, _RING, group["op"], title, taken)
    return shapes + labels


def _label(
    axes: _Axes, x: float, y: float, radius: float, text: str, title: str,
    taken: list[tuple[float, float, float, float]],
) -> list[Shape | Text]:  # fmt: skip
    """Beside, above or below its point, where there is room; none where there is not: the table has it."""
    wide, gap = text_width(text, 11), radius + 4
    places = [
        ("start", x + gap, y + 4), ("end", x - gap, y + 4),
        ("middle", x, y - gap), ("middle", x, y + gap + 8),
        ("start", x + gap, y + 16), ("start", x + gap, y - 10),
        ("end", x - gap, y - 10), ("end", x - gap, y + 16),
        ("middle", x, y + gap + 21), ("middle", x, y - gap - 13),
    ]  # fmt: skip
    for anchor, at_x, at_y in places:
        left = at_x - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
        area = (left, at_y - 10, wide, 13.0)
        inside = left >= axes.left and left + wide <= axes.right + _RIGHT and area[1] >= 0
        if inside and at_y + 3 <= axes.bottom and not any(_overlap(area, other) for other in taken):
            taken.append(area)
            return [Text(at_x, at_y, text, 11, "ink", anchor, halo=True, title=title)]
    return []


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
