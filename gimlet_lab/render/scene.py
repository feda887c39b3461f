"""A drawing as data: shapes and text in pixels, which the page (SVG) and the picture (PNG) paint alike.

Colours are names of the theme (``ink``, ``grid``, ``bandwidth``, …), never values: light or dark is decided
where it is painted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gimlet_lab.render import units

#: A command and its coordinates: M x y, L x y, C x1 y1 x2 y2 x y, Z.
Command = tuple[str, tuple[float, ...]]
Path = tuple[Command, ...]

#: Mean width of a character over its size: that of DejaVu Sans, wider than most, so nothing overflows.
_EM = 0.6


@dataclass(frozen=True, slots=True)
class Shape:
    """A path, filled or stroked. ``title`` is what a pointer resting on it reads."""

    path: Path
    fill: str | None = None
    stroke: str | None = None
    width: float = 1.0
    dash: str | None = None
    opacity: float = 1.0
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """One line of text; ``anchor`` is ``start``, ``middle`` or ``end``, ``angle`` in degrees, clockwise."""

    x: float
    y: float
    text: str
    size: float = 11.0
    fill: str = "ink"
    anchor: str = "start"
    bold: bool = False
    angle: float = 0.0
    halo: bool = False
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """A chart: its size in pixels, its name, what it shows in a sentence, its items from back to front."""

    width: float
    height: float
    title: str
    description: str
    items: tuple[Shape | Text, ...] = field(default=())


def rect(x: float, y: float, width: float, height: float) -> Path:
    """A rectangle."""
    return polygon([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])


def box(x: float, y: float, width: float, height: float, radius: float = 5.0) -> Path:
    """A rectangle with round corners."""
    r = min(radius, width / 2, height / 2)
    k = r * 0.4477  # the control points of a quarter circle
    right, bottom = x + width, y + height
    return (
        ("M", (x + r, y)),
        ("L", (right - r, y)),
        ("C", (right - k, y, right, y + k, right, y + r)),
        ("L", (right, bottom - r)),
        ("C", (right, bottom - k, right - k, bottom, right - r, bottom)),
        ("L", (x + r, bottom)),
        ("C", (x + k, bottom, x, bottom - k, x, bottom - r)),
        ("L", (x, y + r)),
        ("C", (x, y + k, x + k, y, x + r, y)),
        ("Z", ()),
    )


def polygon(points: Sequence[tuple[float, float]]) -> Path:
    """A closed outline."""
    return (*line(points), ("Z", ()))


def line(points: Sequence[tuple[float, float]]) -> Path:
    """Straight pieces through the points."""
    return tuple(("M" if index == 0 else "L", point) for index, point in enumerate(points))


def disc(x: float, y: float, radius: float) -> Path:
    """A circle of four curves."""
    return box(x - radius, y - radius, 2 * radius, 2 * radius, radius)


def marker(bound: str | None, x: float, y: float, radius: float, title: str | None = None, *,
           hollow: bool = False, fill: str | None = None) -> Shape:  # fmt: skip
    """The shape of a bound: ● bandwidth, ▲ compute, ■ overhead, ◆ wait, ▶ transfer, ○ idle or unknown."""
    r = radius
    path = {
        "bandwidth": lambda: disc(x, y, r),
        "compute": lambda: polygon(
            [(x, y - 1.15 * r), (x + 1.1 * r, y + 0.8 * r), (x - 1.1 * r, y + 0.8 * r)]
        ),
        "overhead": lambda: rect(x - 0.88 * r, y - 0.88 * r, 1.76 * r, 1.76 * r),
        "wait": lambda: polygon([(x, y - 1.2 * r), (x + 1.1 * r, y), (x, y + 1.2 * r), (x - 1.1 * r, y)]),
        "transfer": lambda: polygon(
            [(x - 0.8 * r, y - 1.1 * r), (x + 1.15 * r, y), (x - 0.8 * r, y + 1.1 * r)]
        ),
    }.get(bound or "", lambda: disc(x, y, 0.85 * r))()
    colour = fill or colour_of(bound)
    if hollow or bound not in ("bandwidth", "compute", "overhead", "wait", "transfer"):
        inside = None if fill else "surface"
        return Shape(path, inside, colour, max(1.4, radius / 4), title=title)
    return Shape(path, colour, "surface" if fill is None else None, 1.0, title=title)


def colour_of(bound: str | None) -> str:
    """The colour of a bound; ones nobody knows are grey like idle."""
    return bound if bound in ("bandwidth", "compute", "overhead", "wait", "transfer") else "idle"


def text_width(text: str, size: float) -> float:
    """About how wide a text is, in pixels."""
    return units.width(text) * size * _EM


def fit(text: object, pixels: float, size: float, *, bold: bool = False) -> str:
    """The text, its end cut off so that it takes about so many pixels at most."""
    return units.clip(text, max(1, math.floor(pixels / (size * _EM * (1.12 if bold else 1.0)))))


def ticks(end: float, most: int = 8) -> list[tuple[float, str]]:
    """Round numbers of seconds from 0 to ``end``, at most so many, with their labels."""
    if not end > 0:
        return [(0.0, "0 s")]
    raw = end / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= raw), 10 * power)
    scale, unit = next(
        ((s, u) for s, u in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")) if end >= 2 * s), (1e-9, "ns")
    )
    values = [index * step for index in range(int(end / step + 1e-9) + 1)]
    return [(value, f"{value / scale:,.6g} {unit}") for value in values]


def empty(title: str, why: str, width: float = 470.0) -> Scene:
    """A chart with nothing in it says why."""
    return Scene(width, 60.0, title, why, (Text(width / 2, 34.0, why, 12.0, "quiet", "middle"),))


def stacked(shapes: Iterable[Path]) -> Path:
    """Several outlines as one path."""
    return tuple(command for shape in shapes for command in shape)
