"""A scene as inline SVG: no script, no reference to anything outside, every string escaped."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from gimlet_lab.render import theme
from gimlet_lab.render.scene import Path, Scene, Shape, Text


def svg(scene: Scene, prefix: str | None) -> str:
    """Paint a scene.

    Parameters
    ----------
    scene : Scene
    prefix : str or None
        Makes the ids of its title and description unique in the page; None: a decoration without either.
    """
    names = 'aria-hidden="true">'
    if prefix is not None:
        names = (
            f'role="img" aria-labelledby="{prefix}-t {prefix}-d"><title id="{prefix}-t">'
            f'{escape(scene.title)}</title><desc id="{prefix}-d">{escape(scene.description)}</desc>'
        )
    return _drawn(scene, names)


def still(scene: Scene) -> str:
    """Paint a scene as the address of an image, in the light theme and without anything to point at."""
    drawn = _drawn(scene, f'aria-hidden="true">{theme.STILL}', titled=False)
    # What a double-quoted attribute and an address can hold as it is; the scene's own quotes are all markup.
    return "data:image/svg+xml," + quote(drawn.replace('"', "'"), safe=" /:=;,()!*'@?+$.")


def _drawn(scene: Scene, head: str, *, titled: bool = True) -> str:
    body = "".join(
        _shape(item, titled) if isinstance(item, Shape) else _text(item, titled) for item in scene.items
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(scene.width)} {_n(scene.height)}" '
        f'width="{_n(scene.width)}" height="{_n(scene.height)}" {head}{body}</svg>'
    )


def _shape(shape: Shape, titled: bool) -> str:
    classes = [f"f-{shape.fill or 'none'}", *([f"s-{shape.stroke}"] if shape.stroke else [])]
    attributes = [f'class="{" ".join(classes)}"', f'd="{_path(shape.path)}"']
    if shape.stroke and shape.width != 1.0:
        attributes.append(f'stroke-width="{_n(shape.width)}"')
    if shape.dash:
        attributes.append(f'stroke-dasharray="{shape.dash}"')
    if shape.opacity != 1.0:
        attributes.append(f'opacity="{_n(shape.opacity)}"')
    return _closed("path", attributes, "", shape.title if titled else None)


def _text(text: Text, titled: bool) -> str:
    attributes = [f'x="{_n(text.x)}"', f'y="{_n(text.y)}"', f'font-size="{_n(text.size)}"']
    attributes.append(f'class="f-{text.fill}{" halo" if text.halo else ""}"')
    if text.anchor != "start":
        attributes.append(f'text-anchor="{text.anchor}"')
    if text.bold:
        attributes.append('font-weight="600"')
    if text.angle:
        attributes.append(f'transform="rotate({_n(text.angle)} {_n(text.x)} {_n(text.y)})"')
    return _closed("text", attributes, escape(text.text), text.title if titled else None)


def _closed(tag: str, attributes: list[str], inside: str, title: str | None) -> str:
    if title:
        inside += f"<title>{escape(title)}</title>"
    head = f"<{tag} {' '.join(attributes)}"
    return f"{head}>{inside}</{tag}>" if inside else f"{head}/>"


def _path(path: Path) -> str:
    """Level and upright pieces as H and V: rectangles are most of a large chart."""
    parts: list[str] = []
    before: tuple[float, ...] = ()
    for letter, numbers in path:
        if letter == "L" and _n(numbers[1]) == _n(before[-1]):
            parts.append("H" + _n(numbers[0]))
        elif letter == "L" and _n(numbers[0]) == _n(before[-2]):
            parts.append("V" + _n(numbers[1]))
        else:
            parts.append(letter + " ".join(_n(number) for number in numbers))
        before = numbers or before
    return "".join(parts)


def _n(number: float) -> str:
    """A tenth of a pixel is as fine as anybody sees."""
    text = f"{number:.1f}"
    return text.removesuffix(".0") if text != "-0.0" else "0"
