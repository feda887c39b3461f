"""The tables beside the charts: rows of text that a terminal and a page show alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gimlet_lab.render import units
from gimlet_lab.render.units import UNKNOWN

#: A shape for each bound, so that nothing is said by colour alone.
GLYPHS = {
    "bandwidth": "●",
    "compute": "▲",
    "overhead": "■",
    "wait": "◆",
    "transfer": "▶",
    "idle": "○",
}


_CLOCKS = {True: "throttled", False: "", None: UNKNOWN}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text.

    Attributes
    ----------
    title : str
    columns : tuple of str
        Those that start with ``>`` hold numbers and stand to the right.
    rows : tuple of tuple of str
    note : str
        What the table leaves out.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def bound(name: str | None, warmup: bool = False) -> str:
    """``● bandwidth``; first calls are marked."""
    if name is None:
        return UNKNOWN
    return f"{GLYPHS.get(name, '?')} {units.clip(name, 20)}" + (" (warm-up)" if warmup else "")


def cell(value: object, limit: int = 60) -> str:
    """A text cut to its place; a dash where it is unknown."""
    return UNKNOWN if value is None else units.clip(value, limit) or UNKNOWN


def stages(form: Mapping[str, Any], limit: int = 40) -> Table:
    """Where the time went, stage by stage: the largest, in the order they first ran."""
    largest = sorted(form["stages"], key=lambda row: -(row["total_s"] or 0.0))[:limit]
    shown = [row for row in form["stages"] if any(row is one for one in largest)]
    energy = any(row.get("joules") is not None for row in shown)
    return Table(
        "Stages",
        (
            "stage", "role", "bound", ">time", ">share", ">calls", ">per call", ">predicted", ">FLOP/s",
            ">bytes/s", ">of roof", ">weights", *([">energy"] if energy else []),
        ),
        tuple(
            (
                cell(row["id"], 32),
                cell(row["role"], 16),
                bound(row["bound"]),
                units.seconds(row["total_s"]),
                units.percent(row["share"]),
                units.count(row["calls"]),
                units.seconds(row["call_s"]),
                units.seconds((row.get("predicted") or {}).get("seconds")),
                units.flop_rate(row["flops_per_s"]),
                units.bandwidth(row["bytes_per_s"]),
                units.percent(row["of_roof"]),
                units.size(row["weight_bytes"]) if row["weight_bytes"] else UNKNOWN,
                *([units.energy(row.get("joules"))] if energy else []),
            )
            for row in shown
        ),
        _more(len(form["stages"]), limit),
    )  # fmt: skip


def bounds(form: Mapping[str, Any]) -> Table:
    """What held the run back, in all."""
    return Table(
        "Bounds",
        ("bound", ">time", ">share"),
        tuple(
            (bound(row["bound"]), units.seconds(row["seconds"]), units.percent(row["share"]))
            for row in form["phases"]["by_bound"]
        ),
    )


def phases(form: Mapping[str, Any], limit: int = 40, *, lines: bool = True) -> Table:
    """The longest phases in the order they ran, and the line of the notebook that each mostly is."""
    rows = form["phases"]["rows"]
    longest = sorted(rows, key=lambda row: -(row["duration_s"] or 0.0))
    shown = sorted(longest[:limit], key=lambda row: row["start_s"] or 0.0)
    hidden = form["phases"]["count"] - len(shown)
    seconds = form["phases"]["left_out"]["seconds"] + sum(row["duration_s"] or 0 for row in longest[limit:])
    lined = ("mostly",) if lines and any(row.get("line") for row in rows) else ()
    note = f"A phase lasts {units.seconds(form['phases']['min_phase_s'])} or longer."
    if hidden:
        note += f" {hidden:,} shorter ones, {units.seconds(seconds)} in all, are not listed."
    # Of a run of a machine, or a version, without such meters nothing is shown.
    energy = any(row.get("joules") is not None for row in rows)
    held = any(row.get("throttled") for row in rows)
    return Table(
        "Phases",
        (
            ">start", ">time", "bound", "stage", "role", ">FLOP", ">bytes", ">FLOP/byte",
            *([">energy"] if energy else []), *(["clocks"] if held else []), *lined,
        ),
        tuple(
            (
                units.seconds(row["start_s"]),
                units.seconds(row["duration_s"]),
                bound(row["bound"], row["warmup"]),
                cell(row["stage"], 32),
                cell(row["role"], 16),
                units.flops(row["flops"]),
                units.size(row["bytes"]),
                units.intensity(row["intensity"]),
                *([units.energy(row.get("joules"))] if energy else []),
                *([_CLOCKS[row.get("throttled")]] if held else []),
                *([cell(row["line"])] if lined else []),
            )
            for row in shown
        ),
        note,
    )  # fmt: skip


def roofline(form: Mapping[str, Any]) -> Table:
    """The points of the roofline and how near they come to it."""
    left_out = form["roofline"]["left_out"]
    note = ""
    if left_out:
        named = ", ".join(f"{units.clip(entry['stage'], 32)} ({entry['why']})" for entry in left_out[:12])
        more = f" and {len(left_out) - 12} more" if len(left_out) > 12 else ""
        note = f"Not on the roofline: {named}{more}."
    return Table(
        "Roofline",
        ("stage", "role", "dtype", "bound", ">FLOP/byte", ">FLOP/s", ">bytes/s", ">of roof", "roof"),
        tuple(
            (
                cell(point["stage"], 32),
                cell(point["role"], 16),
                cell(point["dtype"], 16),
                bound(point["bound"], point["warmup"]),
                units.intensity(point["intensity"]),
                units.flop_rate(point["flops_per_s"]),
                units.bandwidth(point["bytes_per_s"]),
                units.percent(point["of_roof"]),
                cell(point["roof"], 16),
            )
            for point in form["roofline"]["points"]
        ),
        note,
    )


def groups(form: Mapping[str, Any]) -> Table:
    """Operators of one kind together: where each lies under the roof, and how far its calls spread."""
    return Table(
        "Operator groups",
        ("operators", "dtype", ">share", ">FLOP/byte", ">FLOP/s", ">90% of their time", ">of roof", "roof"),
        tuple(
            (
                cell(group["op"], 24),
                cell(group["dtype"], 16),
                units.percent(group["share"]),
                units.intensity(group["intensity"]),
                units.flop_rate(group["flops_per_s"]),
                " – ".join(map(units.flop_rate, group["interval_flops_per_s"] or ())) or UNKNOWN,
                units.percent(group["of_roof"]),
                cell(group["roof"], 12),
            )
            for group in form["roofline"].get("groups", ())
        ),
    )


def roofs(form: Mapping[str, Any]) -> Table:
    """The roofs themselves, and who says so."""
    return Table(
        "Roofs",
        ("roof", ">value", "source"),
        tuple(
            (
                cell("memory, reading" if roof["kind"] == "bandwidth" else f"arithmetic, {roof['dtype']}"),
                (units.bandwidth if roof["kind"] == "bandwidth" else units.flop_rate)(roof["value"]),
                cell(f"{roof['source']}, {roof['date']}"),
            )
            for roof in form["roofline"]["roofs"]
        ),
    )


def edges(form: Mapping[str, Any], limit: int = 60) -> Table:
    """What goes from stage to stage."""
    names = [stage["id"] for stage in form["stages"]]
    rows = [(edge, carried) for edge in form["graph"]["edges"] for carried in edge["carries"]]
    return Table(
        "Data between stages",
        ("from", "to", "data", ">bytes", ">times", "known by"),
        tuple(
            (
                cell(names[edge["from"]], 32),
                cell(names[edge["to"]], 32) + (" (next turn)" if edge["back"] else ""),
                cell(carried["tensor"], 32),
                units.size(carried["bytes"]),
                units.count(carried["calls"]),
                cell(carried["known"], 16),
            )
            for edge, carried in rows[:limit]
        ),
        _more(len(rows), limit),
    )


def calls(form: Mapping[str, Any], limit: int = 40) -> Table:
    """Calls of functions and modules, the longest first."""
    rows = form["calls"]
    return Table(
        "Calls",
        (
            "name", "kind", "role", "stage", ">calls", ">looked at", ">time", ">median", ">shortest",
            ">longest",
        ),
        tuple(
            (
                cell(row["name"], 40),
                cell(row["kind"], 16),
                cell(row["role"], 16),
                cell(row["stage"], 32),
                units.count(row["calls"]),
                units.count(row["looked"]),
                units.seconds(row["total_s"]),
                units.seconds(row["median_s"]),
                units.seconds(row["min_s"]),
                units.seconds(row["max_s"]),
            )
            for row in rows[:limit]
        ),
        _more(len(rows), limit),
    )  # fmt: skip


def operators(form: Mapping[str, Any], limit: int = 25) -> Table:
    """Operators, the longest first."""
    rows = form["operators"]
    return Table(
        "Operators",
        ("operator", "stage", "dtype", ">calls", ">time", ">FLOP", ">bytes"),
        tuple(
            (
                cell(row["op"], 40),
                cell(row["stage"], 32),
                cell(row["dtype"], 16),
                units.count(row["calls"]),
                units.seconds(row["total_s"]),
                units.flops(row["flops"]),
                units.size(row["bytes"]),
            )
            for row in rows[:limit]
        ),
        _more(len(rows), limit),
    )


def lines(form: Mapping[str, Any], limit: int = 20) -> Table:
    """The notebook's own lines with the most time: of the cell's thread, and of others."""
    rows = _stacks(form, "lines")
    return Table(
        "Lines",
        ("line", "stage", "bound", "thread", ">time", ">running", ">idle", ">share"),
        tuple(
            (
                cell(row["line"]),
                cell(row["stage"], 32),
                bound(row["bound"]),
                cell(row["thread"], 24),
                units.seconds(row["seconds"]),
                units.seconds(row["running_s"]),
                units.seconds(row["idle_s"]),
                units.percent(row["share"]),
            )
            for row in rows[:limit]
        ),
        _more(len(rows), limit),
    )


def functions(form: Mapping[str, Any], limit: int = 20) -> Table:
    """Functions, the notebook's and others', by the time spent in them and in no other."""
    rows = _stacks(form, "functions")
    return Table(
        "Functions, by their own time",
        ("function", "file", ">time", ">running", ">idle", ">share"),
        tuple(
            (
                cell(row["function"], 48),
                cell(row["file"], 48),
                units.seconds(row["seconds"]),
                units.seconds(row["running_s"]),
                units.seconds(row["idle_s"]),
                units.percent(row["share"]),
            )
            for row in rows[:limit]
        ),
        sampling(form),
    )


def sampling(form: Mapping[str, Any]) -> str:
    """How the stacks were come by."""
    stacks = form.get("stacks")
    if stacks is None:
        return (
            "No stacks were sampled: it takes %%gimlet --stacks (or %gimlet config stacks=on), "
            "and a cell of over 10 ms."
        )
    return (
        f"Sampled {units.count(stacks['rate_hz'])} times a second ({stacks['source']}); "
        f"{units.percent(stacks['coverage'])} of the cell's time was seen. Shares are of that; idle is "
        "neither on a core nor waiting for one or for the interpreter."
    )


def _stacks(form: Mapping[str, Any], name: str) -> list[Any]:
    stacks = form.get("stacks")
    return [] if stacks is None else list(stacks[name])


def _more(total: int, limit: int) -> str:
    return f"{total - limit:,} more are not listed." if total > limit else ""
