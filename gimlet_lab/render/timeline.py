"""Lanes of time: the phases of a run by stage, or the schedule of a plan by device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gimlet_lab.model.plan import Plan
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
    line,
    marker,
    rect,
    stacked,
    text_width,
    ticks,
)  # fmt: skip

_LANE = 24.0
_TOP = 6.0
_AXIS = 24.0
_STRIP = 30.0
#: Bars that get a tooltip of their own, the widest first; the rest is drawn as one shape a bound and lane.
_TITLED = 80


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of time in a lane."""

    lane: int
    start_s: float
    duration_s: float
    bound: str | None
    label: str
    title: str
    hatched: bool = False


def phases(form: Mapping[str, Any], width: float = 960.0) -> Scene:
    """The timeline of a run: a lane per stage, a bar per phase."""
    timeline = form["timeline"]
    marks = timeline["marks"]
    bars = []
    for lane, start, duration, bound, warm, merged in zip(
        *(marks[name] for name in ("lane", "start_s", "duration_s", "bound", "warmup", "merged")), strict=True
    ):
        name = timeline["bounds"][bound]
        more = f", {merged} phases" if merged > 1 else ""
        title = (
            f"{units.clip(timeline['lanes'][lane], 80)}: {name}{' (warm-up)' if warm else ''}{more}, "
            f"{units.seconds(duration)} from {units.seconds(start)}"
        )
        bars.append(Bar(lane, start, duration, name, "", title, bool(warm)))
    found = form["phases"]["count"]
    description = (
        f"{found} phases in {len(timeline['lanes'])} lanes over {units.seconds(timeline['end_s'])}; "
    )
    description += ", ".join(
        f"{entry['bound']} {units.percent(entry['share'])}" for entry in form["phases"]["by_bound"]
    )
    if not bars:
        return empty("Timeline of phases", "No phases were seen.", width)
    strips = timeline.get("strips", ())  # runs saved before there were any have none
    return lanes("Timeline of phases", description, timeline["lanes"], bars, timeline["end_s"], width, strips)


def schedule(plan: Plan, width: float = 960.0) -> Scene | None:
    """When each device runs which stage, as predicted; None where the plan holds no schedule of its own."""
    entries = list(plan.solution.get("schedule") or ())
    # The solver's schedule may be that of another placement, where the plan is a simpler one as good.
    if not entries or any(plan.assignment.get(e["stage"]) != e["device"] for e in entries):
        return None
    names = list(dict.fromkeys(str(entry["device"]) for entry in entries))
    bars = []
    for entry in entries:
        stage, device = entry["stage"], str(entry["device"])
        estimate = plan.estimates.get(stage, {}).get(device)
        duration = entry["end_s"] - entry["start_s"]
        bound = estimate.bound if estimate else None
        title = f"{units.clip(stage, 80)} on {device}: {units.seconds(duration)}"
        title += f" from {units.seconds(entry['start_s'])}{f', {bound}' if bound else ''}"
        bars.append(Bar(names.index(device), entry["start_s"], duration, bound, stage, title))
    end = max(entry["end_s"] for entry in entries)
    description = f"{len(entries)} stages on {len(names)} devices in {units.seconds(end)}"
    return lanes("Predicted schedule", description, names, bars, end, width)


def lanes(
    title: str,
    description: str,
    names: Sequence[str],
    bars: Sequence[Bar],
    end: float,
    width: float,
    strips: Sequence[Mapping[str, Any]] = (),
) -> Scene:
    """Draw lanes of bars over a time axis, and between the two what meters said."""
    called = [f"{strip['device']} {strip['reading']}" for strip in strips]
    left = min(150.0, max(text_width(units.clip(name, 24), 11.5) for name in (*names, *called)) + 14)
    right = width - 14.0
    bottom = _TOP + _LANE * len(names) + _STRIP * len(strips)
    scale = (right - left) / end if end > 0 else 0.0
    items: list[Shape | Text] = []
    for value, label in ticks(end):
        x = left + value * scale
        items.append(Shape(line([(x, _TOP), (x, bottom + 4)]), stroke="grid"))
        anchor = "end" if x + text_width(label, 10.5) / 2 > width else "middle"
        items.append(Text(min(x, width - 1), bottom + 17, label, 10.5, "quiet", anchor))
    for index, name in enumerate(names):
        y = _TOP + _LANE * index
        items.append(Shape(line([(left, y + _LANE), (right, y + _LANE)]), stroke="grid"))
        shown = fit(name, left - 10, 11.5)
        full = units.clip(name, 200)
        items.append(Text(left - 8, y + 16, shown, 11.5, "ink", "end", title=full if full != shown else None))
    for index, (strip, name) in enumerate(zip(strips, called, strict=True)):
        items += _strip(strip, name, left, scale, _TOP + _LANE * len(names) + _STRIP * (index + 1))
    placed = sorted(bars, key=lambda bar: -bar.duration_s)
    together: dict[tuple[int, str, bool], list[Path]] = {}
    for bar in reversed(placed[_TITLED:]):
        outline = _outline(bar, left, scale, right)
        together.setdefault((bar.lane, colour_of(bar.bound), bar.hatched), []).append(rect(*outline))
    items += [
        Shape(stacked(outlines), colour, opacity=0.5 if hatched else 1.0)
        for (_, colour, hatched), outlines in together.items()
    ]
    for bar in placed[:_TITLED]:
        items += _bar(bar, left, scale, right)
    return Scene(width, bottom + _AXIS, title, description, tuple(items))


def _strip(
    strip: Mapping[str, Any], name: str, left: float, scale: float, bottom: float
) -> list[Shape | Text]:
    """What one meter said, from nothing at the bottom to the most at the top."""
    high, most = _STRIP - 8, strip["most"] or 1.0
    runs: list[list[tuple[float, float]]] = [[]]
    for at, value in zip(strip["time_s"], strip["value"], strict=True):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((left + at * scale, bottom - 3 - high * min(1.0, value / most)))
    top = {"W": units.power, "B": units.size}.get(strip["unit"], units.percent)(most)
    drawn = stacked([line(points) for points in runs if len(points) > 1])
    return [
        Text(left - 8, bottom - _STRIP / 2 + 4, fit(name, left - 10, 11.5), 11.5, "quiet", "end"),
        Shape(drawn, None, "ink", 1.2, title=f"{name}, at most {top}"),
        Text(left + 3, bottom - high + 4, top, 9, "quiet"),
    ]


def _outline(bar: Bar, left: float, scale: float, right: float) -> tuple[float, float, float, float]:
    """x, y, width, height; nothing is thinner than a pixel and a half, so nothing goes unseen."""
    x = left + bar.start_s * scale
    wide = max(1.5, bar.duration_s * scale)
    return min(x, right - wide), _TOP + _LANE * bar.lane + 4, wide, _LANE - 8


def _bar(bar: Bar, left: float, scale: float, right: float) -> list[Shape | Text]:
    x, y, wide, high = _outline(bar, left, scale, right)
    outline = box(x, y, wide, high, 3.0) if wide > 12 else rect(x, y, wide, high)
    colour = colour_of(bar.bound)
    items: list[Shape | Text] = [Shape(outline, colour, title=bar.title)]
    if bar.hatched:
        # Slanted lines tell first calls apart without colour.
        step = 6.0
        slants = [
            line([(x + at, y + high), (x + at + high / 2, y)])
            for at in (step * k for k in range(int(max(0.0, wide - high / 2) / step) + 1))
            if at + high / 2 <= wide
        ]
        if slants:
            items.append(Shape(stacked(slants), None, "white", 1.6, opacity=0.75))
    inside = x + 6
    if wide >= 20 and not bar.hatched:
        items.append(marker(bar.bound, x + 10, y + high / 2, 4.2, fill="white"))
        inside = x + 19
    if bar.label and wide - 24 > 30:
        label = fit(bar.label, x + wide - inside - 4, 10.5)
        items.append(Text(inside, y + high / 2 + 3.8, label, 10.5, "white", title=bar.title))
    return items
