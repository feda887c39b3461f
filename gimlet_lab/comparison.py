"""Two runs side by side, stage by stage, and what the plan behind one of them had predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gimlet_lab.model import Plan, Run
from gimlet_lab.render.units import UNKNOWN, seconds, width


@dataclass(frozen=True, slots=True)
class Row:
    """One stage in both runs.

    Attributes
    ----------
    stage : str
    before_s, after_s : float or None
        Seconds of all its calls; None where it did not run.
    predicted_s : float or None
        What the plan behind ``after`` said; None without a plan.
    device : str or None
        Where it ran in ``after``, by its plan.
    """

    stage: str
    before_s: float | None
    after_s: float | None
    predicted_s: float | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side; the last row is the whole cell, profiling's own overhead left out."""

    before: str
    after: str
    rows: tuple[Row, ...]

    @property
    def titles(self) -> tuple[str, ...]:
        """Of the table's columns."""
        return ("stage", self.before, self.after, "change", "predicted", "measured/predicted", "device")

    def cells(self) -> list[tuple[str, ...]]:
        """The table's text; what is not known is a dash."""
        return [
            (
                row.stage,
                seconds(row.before_s),
                seconds(row.after_s),
                _change(row.before_s, row.after_s),
                seconds(row.predicted_s),
                f"{row.after_s / row.predicted_s:.2f}" if row.after_s and row.predicted_s else UNKNOWN,
                row.device or UNKNOWN,
            )
            for row in self.rows
        ]

    def text(self) -> str:
        """A table for a terminal."""
        return table(self.titles, self.cells())

    def html(self) -> str:
        """The same table for a page; names are escaped."""
        head = "".join(f"<th>{escape(title)}</th>" for title in self.titles)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>" for cells in self.cells()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def compare(before: Run, after: Run, plan: Plan | None = None) -> Comparison:
    """Put two runs side by side.

    Parameters
    ----------
    before, after : Run
    plan : Plan, optional
        The plan that ``after`` ran under.
    """
    stages = {stage.id: stage for stage in before.graph.stages}
    later = {stage.id: stage for stage in after.graph.stages}
    rows = [
        Row(
            name,
            stages[name].total_s if name in stages else None,
            later[name].total_s if name in later else None,
            _predicted_s(plan, name),
            after.deployment.get(name),
        )
        for name in [*stages, *(name for name in later if name not in stages)]
    ]
    whole = Row("whole cell", before.net_s, after.net_s, plan.latency_s if plan else None)
    names = (before.name, after.name) if before.name != after.name else ("before", "after")
    first, second = names[0] + " (dry)" * before.dry, names[1] + " (dry)" * after.dry
    return Comparison(first, second, (*rows, whole))


def _predicted_s(plan: Plan | None, stage: str) -> float | None:
    if plan is None or stage not in plan.assignment:
        return None
    estimate = plan.estimates.get(stage, {}).get(plan.assignment[stage])
    return None if estimate is None else estimate.seconds * plan.graph[stage].calls


def _change(before_s: float | None, after_s: float | None) -> str:
    if not before_s or after_s is None:
        return UNKNOWN
    return f"{100 * (after_s / before_s - 1):+.0f}%"


def table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]], left: int = 1) -> str:
    """Columns in line: the first ones to the left, the others to the right.

    Examples
    --------
    >>> print(table(("stage", "time"), [("embed", "2 ms"), ("search", "120 ms")]))
    stage     time
    embed     2 ms
    search  120 ms
    """
    widths = [max(width(row[column]) for row in (titles, *rows)) for column in range(len(titles))]
    lines = []
    for row in (titles, *rows):
        gaps = [" " * (wide - width(cell)) for cell, wide in zip(row, widths, strict=True)]
        cells = [c + gap if i < left else gap + c for i, (c, gap) in enumerate(zip(row, gaps, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
