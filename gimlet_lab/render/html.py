"""Runs and plans as HTML without a script: what a notebook keeps, and a page of its own.

Nothing in it points outside, and every string of the user's is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

from gimlet_lab.model.plan import Plan
from gimlet_lab.model.run import Run
from gimlet_lab.render import bars, flame, flow, plan_tables, roofline, tables, text, theme, timeline, units
from gimlet_lab.render.png import png
from gimlet_lab.render.scene import Scene, marker
from gimlet_lab.render.svg import still, svg
from gimlet_lab.render.tables import GLYPHS, Table


def run_html(run: Run, view: str = "summary") -> str:
    """One view of a run as a fragment of a page."""
    text.check_view(view)
    form = text.form_of(run)
    prefix = _prefix("run", form["name"], form["started"], form["duration_s"], view)
    chart = {
        "phases": [("time", timeline.phases(form))],
        "roofline": [("roof", roofline.scene(form, 760.0, 440.0))],
        "graph": [("graph", flow.scene(form, 760.0))],
        "calls": [("time", timeline.phases(form))],
        "stacks": [("flame", flame.scene(form))],
    }
    if view == "summary":
        return _fragment(_head(form), *_summary(form, prefix))
    figures = [_figure(scene, f"{prefix}-{key}") for key, scene in chart[view]]
    if view in ("phases", "calls"):
        figures.append(_legend(form))
    if view == "graph":
        figures.append(_KEY)
    return _fragment(_head(form), *figures, *(_table(table) for table in text.view_tables(form, view)))


def plan_html(plan: Plan) -> str:
    """A plan as a fragment of a page."""
    prefix = _prefix("plan", plan.id, plan.name)
    lead, rest = text.prediction(plan)
    why = "".join(f"<li>{_bdi(line, 400)}</li>" for line in plan.why)
    schedule = timeline.schedule(plan)
    return _fragment(
        f'<p class="lead">{_bdi(lead, 200)}</p><p class="meta">{_bdi(rest, 400)}</p>',
        _figure(bars.scene(plan), f"{prefix}-bars"),
        _table(plan_tables.placement(plan)),
        _figure(schedule, f"{prefix}-plan") if schedule else "",
        f"<h3>Why</h3><ul>{why}</ul>" if why else "",
        _details(_table(plan_tables.baselines(plan), titled=False), "Baselines"),
    )


def page(run: Run) -> str:
    """A whole page of its own: every chart and table of a run."""
    form = text.form_of(run)
    prefix = _prefix("page", form["name"], form["started"])
    environment = Table(
        "Environment", ("what", "value"),
        tuple((units.clip(k, 60), units.clip(v, 120)) for k, v in
              {"started": form["started"], "device": form["device"]["name"], **form["environment"]}.items()),
    )  # fmt: skip
    body = _fragment(
        _head(form),
        *_summary(form, prefix, opened=True),
        _table(tables.calls(form)),
        _table(tables.operators(form)),
        *_flame(form, prefix),
        _table(environment),
        f"<details><summary>Source of the cell</summary><pre>{escape(_source(run.text))}</pre></details>"
        if run.text is not None else "",
    )  # fmt: skip
    title = escape(f"{units.clip(form['name'], 60)} · gimlet")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>' + title + "</title>"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        "<style>:root{color-scheme:light dark}body{margin:24px auto;max-width:1000px;padding:0 16px;"
        "background:Canvas;color:CanvasText;font-family:system-ui,sans-serif}h1{font-size:1.3rem}</style></head>"
        f"<body><main><h1>{title}</h1>{body}</main></body></html>\n"
    )


def _summary(form: Mapping[str, Any], prefix: str, *, opened: bool = False) -> list[str]:
    lines = "".join(f"<li>{_bdi(line, 400)}</li>" for line in form["summary"])
    notes = "".join(f"<li>{_bdi(line, 400)}</li>" for line in form["notes"])
    graph = flow.scene(form)
    roof = _figure(roofline.beside(form, graph), f"{prefix}-roof")
    drawn = _figure(graph, f"{prefix}-graph")
    return [
        f"<ul>{lines}</ul>" if lines else "",
        _figure(timeline.phases(form), f"{prefix}-time"),
        _legend(form),
        _table(tables.stages(form), titled=False) if form["stages"] else "",
        f'<div class="row">{roof}{drawn}</div>' if graph.width <= roofline.BESIDE else roof + drawn,
        _details(_table(tables.phases(form, lines=opened), titled=False), "Phases", opened=opened),
        _details(
            _table(tables.roofline(form), titled=False) + _table(tables.roofs(form)),
            "Roofline as a table", opened=opened,
        ),
        _details(_KEY + _table(tables.edges(form), titled=False), "Data between stages", opened=opened),
        _details(f"<ul>{notes}</ul>", "What was not seen", opened=True) if notes else "",
    ]  # fmt: skip


def _flame(form: Mapping[str, Any], prefix: str) -> list[str]:
    if not form.get("stacks"):
        return []
    return [
        _figure(flame.scene(form), f"{prefix}-flame"),
        _table(tables.lines(form)),
        _table(tables.functions(form)),
    ]


def _fragment(*parts: str) -> str:
    return f'<div class="gimlet"><style>{theme.css()}</style>{"".join(parts)}</div>'


def _head(form: Mapping[str, Any]) -> str:
    meta = [
        units.clip(form["device"]["name"], 60),
        units.clip(_moment(form["started"]), 40),
        "dry: no time was measured" if form.get("dry") else "",
        "" if form["status"] == "ok" else form["status"],
    ]
    joined = " · ".join(f"<bdi>{escape(part)}</bdi>" for part in meta if part)
    return f'<p class="lead">{_bdi(form["finding"], 500)}</p><p class="meta">{joined}</p>'


def _moment(started: str) -> str:
    """``2026-09-20 10:11:12 UTC``; what is no ISO time, as it is."""
    try:
        return f"{datetime.fromisoformat(started).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return started


def _legend(form: Mapping[str, Any]) -> str:
    entries = []
    for entry in form["phases"]["by_bound"]:
        scene = Scene(12, 12, entry["bound"], "", (marker(entry["bound"], 6, 6, 4.6),))
        glyph = svg(scene, None)
        entries.append(
            f"<li>{glyph}{escape(units.clip(entry['bound'], 24))} {units.seconds(entry['seconds'])} "
            f"({units.percent(entry['share'])})</li>"
        )
    warm = any(form["timeline"]["marks"]["warmup"])
    if warm:
        entries.append("<li>slanted lines: first calls (warm-up)</li>")
    return f'<ul class="legend">{"".join(entries)}</ul>' if entries else ""


#: From here on a picture of the drawing is smaller than the drawing.
_STILL_BYTES = 48_000

#: What the lines of the graph mean.
_KEY = (
    '<p class="note">Lines: solid, known by a shared tensor; long dashes, the same Python object; short '
    "dashes, definition and use in the code; dots, order only. Broader is more bytes.</p>"
)


def _figure(scene: Scene, prefix: str) -> str:
    # A notebook that is not trusted loses style and SVG, but not what an SVG says: text without a picture.
    # There the drawing stays hidden (JupyterLab drops that attribute where it has no value) and the same
    # drawing as an image takes its place.
    drawn = (
        f'<div class="live" hidden="hidden">{svg(scene, prefix)}</div>'
        f'<img class="still" alt="{escape(scene.description)}" src="{_still(scene)}">'
    )
    if scene.width > 980:  # broader than the page: it scrolls, so that its text stays readable
        drawn = f'<div class="scroll">{drawn}</div>'
    return f"<figure><figcaption>{escape(scene.title)}</figcaption>{drawn}</figure>"


def _still(scene: Scene) -> str:
    drawn = still(scene)
    if len(drawn) <= _STILL_BYTES:
        return drawn
    return "data:image/png;base64," + base64.b64encode(png([[scene]])).decode()


def _details(inside: str, title: str, *, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{inside}</details>"


def _table(table: Table, *, titled: bool = True) -> str:
    caption = f"<h3>{escape(table.title)}</h3>" if titled else ""
    note = f'<p class="note">{_bdi(table.note, 900)}</p>' if table.note else ""
    if not table.rows:
        return f'{caption}<p class="note">none</p>{note}'
    head = "".join(
        f'<th scope="col"{_number(name)}>{escape(name.removeprefix(">"))}</th>' for name in table.columns
    )
    body = "".join(f"<tr>{_row(table.columns, row)}</tr>" for row in table.rows)
    return (
        f'{caption}<div class="scroll"><table aria-label="{escape(table.title)}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}"
    )


def _row(columns: Iterable[str], row: Iterable[str]) -> str:
    cells = []
    for index, (name, cell) in enumerate(zip(columns, row, strict=True)):
        if name.startswith(">"):
            cells.append(f'<td class="n">{escape(cell)}</td>')
        elif name.startswith("bound"):
            glyph, _, word = cell.partition(" ")
            known = next((bound for bound, shape in GLYPHS.items() if shape == glyph), None)
            shown = f'<span class="c-{known}" aria-hidden="true">{glyph}</span> ' if known else ""
            cells.append(f"<td>{shown}{escape(word if known else cell)}</td>")
        elif index == 0:
            cells.append(f'<th scope="row"><bdi>{escape(cell)}</bdi></th>')
        else:
            wrap = ' class="wrap"' if len(cell) > 48 else ""
            cells.append(f"<td{wrap}><bdi>{escape(cell)}</bdi></td>")
    return "".join(cells)


def _number(name: str) -> str:
    return ' class="n"' if name.startswith(">") else ""


def _bdi(line: str, limit: int) -> str:
    """Escaped, and what is written from right to left inside it does not turn the rest."""
    return f"<bdi>{escape(units.clip(line, limit))}</bdi>"


def _source(source: str) -> str:
    """Its lines as they are, without characters that a page cannot hold."""
    return "\n".join(units.clean_line(line) for line in source.splitlines())


def _prefix(*parts: object) -> str:
    """Ids of one output do not meet those of another in the same page; the same run gives the same page."""
    return "g" + hashlib.sha256(repr(parts).encode("utf-8", "replace")).hexdigest()[:8]
