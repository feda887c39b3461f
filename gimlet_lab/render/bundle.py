"""What a notebook keeps of a run or a plan: the same thing as a page, a picture and text."""

from __future__ import annotations

from typing import Any

from gimlet_lab.model.plan import Plan
from gimlet_lab.model.run import Run
from gimlet_lab.render import bars, flame, flow, html, roofline, text, timeline
from gimlet_lab.render.pageform import page_form
from gimlet_lab.render.png import png

#: The type that our extension of JupyterLab draws.
RUN = "application/vnd.gimlet.run.v1+json"


def run_bundle(run: Run, view: str = "summary") -> dict[str, Any]:
    """One view of a run by mime type.

    Parameters
    ----------
    run : Run
    view : str
        ``summary``, ``phases``, ``roofline``, ``graph``, ``calls`` or ``stacks``.

    Returns
    -------
    dict
        Our own type (the display form, for the page of our extension), ``text/html`` (no script),
        ``image/png`` (bytes) and ``text/plain``.
    """
    return {
        RUN: page_form(text.form_of(run), view),
        "text/plain": text.run_text(run, view),
        "text/html": html.run_html(run, view),
        "image/png": run_png(run, view),
    }


def run_png(run: Run, view: str = "summary") -> bytes:
    """One view of a run as a picture."""
    text.check_view(view)
    form = text.form_of(run)
    graph = flow.scene(form)
    roof = roofline.beside(form, graph)
    rows = {
        "summary": lambda: [
            [timeline.phases(form)],
            *([[roof, graph]] if graph.width <= roofline.BESIDE else [[roof], [graph]]),
        ],
        "phases": lambda: [[timeline.phases(form)]],
        "roofline": lambda: [[roofline.scene(form, 760.0, 440.0)]],
        "graph": lambda: [[flow.scene(form, 760.0)]],
        "calls": lambda: [[timeline.phases(form)]],
        "stacks": lambda: [[flame.scene(form)]],
    }[view]()
    return png(rows, [form["finding"]])


def plan_bundle(plan: Plan) -> dict[str, Any]:
    """A plan by mime type: ``text/html`` (no script), ``image/png`` (bytes) and ``text/plain``."""
    schedule = timeline.schedule(plan)
    rows = [[bars.scene(plan)], *([[schedule]] if schedule else [])]
    return {
        "text/plain": text.plan_text(plan),
        "text/html": html.plan_html(plan),
        "image/png": png(rows, text.prediction(plan)),
    }
