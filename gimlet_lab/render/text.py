"""Runs, plans and devices as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gimlet_lab.errors import UnknownNameError
from gimlet_lab.model.device import Device
from gimlet_lab.model.plan import Plan
from gimlet_lab.model.run import Run
from gimlet_lab.render import display, plan_tables, stacks, tables, units
from gimlet_lab.render.tables import Table

VIEWS = ("summary", "phases", "roofline", "graph", "calls", "stacks")


def form_of(run: Run) -> Mapping[str, Any]:
    """The display form a run was stored with, or a new one where it has none that this version draws."""
    return run.display if run.display.get("schema") == display.SCHEMA else display.display_form(run)


def check_view(view: str) -> None:
    """Raise UnknownNameError where there is no such view."""
    if view not in VIEWS:
        raise UnknownNameError("view", view, VIEWS)


def run_text(run: Run, view: str = "summary") -> str:
    """One view of a run: ``summary``, ``phases``, ``roofline``, ``graph``, ``calls`` or ``stacks``."""
    check_view(view)
    form = form_of(run)
    parts = [heading(form), form["finding"]]
    if view == "summary":
        parts += [
            "\n".join(form["summary"]),
            table_text(tables.stages(form)),
            table_text(tables.bounds(form)),
        ]
        parts += ["\n".join(f"Note: {note}" for note in form["notes"])]
    if view == "stacks" and form.get("stacks"):
        parts.append("\n".join(stacks.tree_lines(form["stacks"])))
    parts += [table_text(table) for table in view_tables(form, view)]
    return "\n\n".join(part for part in parts if part)


def view_tables(form: Mapping[str, Any], view: str) -> list[Table]:
    """The tables of a view other than the summary."""
    return {
        "summary": list[Table],
        "phases": lambda: [tables.phases(form), tables.bounds(form)],
        "roofline": lambda: [tables.roofline(form), tables.groups(form), tables.roofs(form)],
        "graph": lambda: [tables.stages(form), tables.edges(form)],
        "calls": lambda: [tables.calls(form), tables.operators(form)],
        "stacks": lambda: [tables.lines(form), tables.functions(form)],
    }[view]()


def heading(form: Mapping[str, Any]) -> str:
    """Name, time, device, state: one line."""
    took = units.seconds(form["duration_s"])
    if form.get("dry"):
        took = f"dry, no time was measured · estimated {took}"
    state = "" if form["status"] == "ok" else f" · {form['status']}"
    name, device = units.clip(form["name"], 60) or "cell", units.clip(form["device"]["name"], 60)
    return f"{name} · {took} on {device}{state}"


def plan_text(plan: Plan) -> str:
    """A plan: placement, prediction, proof, baselines, reasons."""
    parts = [
        "\n".join(prediction(plan)),
        table_text(plan_tables.placement(plan)),
        table_text(plan_tables.baselines(plan)),
        "\n".join(f"- {units.clip(line, 400)}" for line in plan.why),
    ]
    return "\n\n".join(part for part in parts if part)


def prediction(plan: Plan) -> tuple[str, str]:
    """What the plan does and is predicted to take; and what it costs and what is proven of it."""
    low, high = plan.interval_s
    here = {stage.id: stage.device for stage in plan.graph.stages if stage.device is not None}
    moves: dict[str, list[str]] = {}
    for stage, device in plan.assignment.items():
        if here.get(stage, device) != device:
            moves.setdefault(device, []).append(units.clip(stage, 32))
    interval = f"{units.seconds(plan.latency_s)} (90%: {units.interval(low, high)})"
    if moves:
        where = "; ".join(f"{_several(stages)} to {device}" for device, stages in moves.items())
        now = _as_it_is(plan, here)
        times = units.ratio(now, plan.latency_s)
        change = f"{units.seconds(now)} → {interval}" if now is not None else f"predicted {interval}"
        lead = f"Move {where}: {change}"
        if now is not None and low <= now <= high:
            lead += ", a tie: as it is lies within the interval."
        else:
            lead += f", {units.figures(times)}× as fast." if times is not None and times > 1 else "."
    elif here:
        lead = f"Nothing moves: predicted {interval}."
    else:
        there: dict[str, list[str]] = {}
        for stage, device in plan.assignment.items():
            there.setdefault(device, []).append(units.clip(stage, 32))
        where = "; ".join(f"{_several(stages)} on {device}" for device, stages in there.items())
        lead = f"Place {where}: predicted {interval}; nothing ran yet, the run was dry."
    proof = "Proven optimal" if plan.status == "optimal" else "The best found"
    below = plan_tables.objective(plan, plan.bound)
    rest = [
        f"{proof} for {plan.objective}: no plan is below {below} (gap {units.percent(plan.gap)})",
        *([] if plan.usd is None else [f"{units.dollars(plan.usd)} per request"]),
        *([] if plan.joules is None else [f"{units.figures(plan.joules)} J per request"]),
        f"plan {plan.id} for {units.clip(plan.name, 40)}",
    ]
    return lead, " · ".join(rest)


def _as_it_is(plan: Plan, here: Mapping[str, str]) -> float | None:
    """The predicted latency where every stage stays, which one of the baselines may be."""
    for entry in plan.baselines.values():
        if entry.get("assignment") and all(
            entry["assignment"].get(stage) == device for stage, device in here.items()
        ):
            return units.finite(entry.get("latency_s"))
    return None


def _several(names: list[str]) -> str:
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def devices_text(devices: Iterable[Device], now: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Devices as a table, how they are connected, and what their meters say now."""
    found = list(devices)
    further = [plan_tables.links(found), plan_tables.readings(now or {})]
    tables_ = [plan_tables.devices(found), *(table for table in further if table.rows)]
    return "\n\n".join(table_text(table) for table in tables_)


def table_text(table: Table) -> str:
    """Aligned columns; a table without rows says so."""
    if not table.rows:
        return f"{table.title}: none" + (f"\n{table.note}" if table.note else "")
    names = [name.removeprefix(">") for name in table.columns]
    right = [name.startswith(">") for name in table.columns]
    widths = [
        max(units.width(cells[index]) for cells in (tuple(names), *table.rows)) for index in range(len(names))
    ]

    def line(cells: Iterable[str]) -> str:
        padded = []
        for cell, width, to_right in zip(cells, widths, right, strict=True):
            gap = " " * (width - units.width(cell))
            padded.append(gap + cell if to_right else cell + gap)
        return "  ".join(padded).rstrip()

    rule = "─" * min(sum(widths) + 2 * len(widths) - 2, 160)
    body = [table.title, line(names), rule, *(line(row) for row in table.rows)]
    return "\n".join([*body, *([table.note] if table.note else [])])
