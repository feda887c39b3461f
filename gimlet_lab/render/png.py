"""Scenes as one picture, by matplotlib's object interface: no pyplot, no window, safe in any thread."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from gimlet_lab.render import units
from gimlet_lab.render.scene import Scene, Shape, Text
from gimlet_lab.render.theme import LIGHT

#: Pixels of the picture for one of a scene: crisp on dense screens, less where the file would be large.
_DENSITIES = (1.6, 1.2, 0.9, 0.6, 0.4)
MAX_BYTES = 40_000
_PAD, _GAP, _HEAD = 18.0, 16.0, 22.0
_POINT = 72.0 / 100.0  # a scene's pixel is a hundredth of an inch here

# FreeType, below matplotlib, is not safe for two threads at once.
_lock = threading.Lock()


def png(rows: Sequence[Sequence[Scene]], lines: Sequence[str] = ()) -> bytes:
    """Paint rows of scenes below some lines of text.

    Parameters
    ----------
    rows : sequence of sequence of Scene
        Scenes of a row stand side by side.
    lines : sequence of str
        The first one is the heading.

    Returns
    -------
    bytes
        A PNG.
    """
    with _lock:
        for density in _DENSITIES:
            data = _png(rows, lines, density)
            if len(data) <= MAX_BYTES:
                break
        return data


def _png(rows: Sequence[Sequence[Scene]], lines: Sequence[str], density: float) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = max(sum(s.width for s in row) + _GAP * (len(row) - 1) for row in rows) + 2 * _PAD
    wrapped = [
        (index == 0, part)
        for index, line in enumerate(lines)
        for part in _wrapped(line, int((width - 2 * _PAD) / ((14 if index == 0 else 11) * 0.56)))
    ]
    top = _PAD + 20.0 * len(wrapped) + (6 if wrapped else 0)
    height = top + sum(max(s.height for s in row) + _HEAD + _GAP for row in rows)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100 * density, facecolor=LIGHT["surface"])
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    for index, (bold, line) in enumerate(wrapped):
        place = Text(
            _PAD, _PAD + 14 + 20 * index, line, 14 if bold else 11, "ink" if bold else "quiet", bold=bold
        )
        _text(axes, place, 0.0, 0.0)
    # matplotlib would paint all text above all shapes; here what comes later lies above.
    order = itertools.count(10)
    y = top
    for row in rows:
        x = _PAD
        for scene in row:
            _text(axes, Text(x, y + 14, scene.title, 12, "ink", bold=True), 0.0, 0.0)
            for item in scene.items:
                artist = (
                    _shape(axes, item, x, y + _HEAD)
                    if isinstance(item, Shape)
                    else _text(axes, item, x, y + _HEAD)
                )
                artist.set_zorder(next(order))
            x += scene.width + _GAP
        y += max(s.height for s in row) + _HEAD + _GAP
    canvas.draw()
    return _encoded(canvas)


def _encoded(canvas: Any) -> bytes:
    from PIL import Image

    width, height = canvas.get_width_height(physical=True)
    picture = Image.frombuffer("RGBA", (width, height), canvas.buffer_rgba(), "raw", "RGBA", 0, 1).convert(
        "RGB"
    )
    buffer = io.BytesIO()
    picture.quantize(palette=_palette(), dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _palette() -> Any:
    """The theme's colours and their blends with white: a third of the bytes of true colour."""
    from PIL import Image

    colours = {name: [int(value[at : at + 2], 16) for at in (1, 3, 5)] for name, value in LIGHT.items()}
    plain = [colours.pop(name) for name in ("surface", "tint", "grid")]
    strong = [colour for name, colour in colours.items() if name not in ("white", "roof")]
    # From a tenth on: fainter blends lie so near to white that Pillow would take them for it.
    steps = [0.1 + 0.9 * step / 27 for step in range(28)]
    blends = [[round(255 + (c - 255) * step) for c in colour] for colour in strong for step in steps]
    image = Image.new("P", (1, 1))
    image.putpalette([channel for colour in [*plain, *blends] for channel in colour])
    return image


def _shape(axes: Any, shape: Shape, dx: float, dy: float) -> Any:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    vertices: list[tuple[float, float]] = []
    codes: list[Any] = []
    for letter, numbers in shape.path:
        points = [(numbers[i] + dx, numbers[i + 1] + dy) for i in range(0, len(numbers), 2)]
        if letter == "Z":
            points = [(vertices[-1] if vertices else (dx, dy))]
        vertices += points
        codes += {"M": [Path.MOVETO], "L": [Path.LINETO], "C": [Path.CURVE4] * 3, "Z": [Path.CLOSEPOLY]}[
            letter
        ]
    style: Any = "-"
    if shape.dash and shape.dash != "none":
        scale = max(shape.width * _POINT, 0.1)
        style = (0, tuple(float(part) * _POINT / scale for part in shape.dash.split()))
    return axes.add_patch(
        PathPatch(
            Path(vertices, codes),
            facecolor=LIGHT[shape.fill] if shape.fill else "none",
            edgecolor=LIGHT[shape.stroke] if shape.stroke else "none",
            linewidth=shape.width * _POINT if shape.stroke else 0.0,
            linestyle=style,
            alpha=shape.opacity,
            capstyle="butt",
            clip_on=False,
        )
    )


def _text(axes: Any, text: Text, dx: float, dy: float) -> Any:
    from matplotlib.patheffects import withStroke

    effects = [withStroke(linewidth=2.2, foreground=LIGHT["surface"])] if text.halo else None
    return axes.text(
        text.x + dx,
        text.y + dy,
        _drawable(text.text),
        fontsize=text.size * _POINT,
        family=["DejaVu Sans"],  # matplotlib ships it: the same picture everywhere, and no search for fonts
        fontweight="bold" if text.bold else "normal",
        color=LIGHT[text.fill],
        ha={"start": "left", "middle": "center", "end": "right"}[text.anchor],
        va="baseline",
        rotation=-text.angle,
        rotation_mode="anchor",
        parse_math=False,
        path_effects=effects,
    )


def _drawable(text: str) -> str:
    """Characters that the font lacks are boxes: matplotlib would warn of each."""
    known = _characters()
    return "".join(char if ord(char) in known else "□" for char in text)


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def _wrapped(line: str, columns: int) -> list[str]:
    import textwrap

    return textwrap.wrap(units.clip(line, 4 * columns), columns) or [""]
