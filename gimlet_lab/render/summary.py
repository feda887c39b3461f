"""What a person wants to know first, in sentences: where the time goes and what holds it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gimlet_lab.render import units

#: Stages below this share of the time get no sentence of their own.
_WORTH_SAYING = 0.05
_AT_MOST = 4


def finding(form: Mapping[str, Any]) -> str:
    """One sentence for the whole run: its time and its largest stage."""
    stages = _largest_first(form["stages"])
    took = f"{_quoted(form['name'])} took {units.seconds(form['duration_s'])}"
    if form.get("dry"):
        took = (
            f"{_quoted(form['name'])} ran dry, no time was measured: on {form['device']['short']} "
            f"it would take about {units.seconds(form['duration_s'])}"
        )
    if form["status"] == "failed":
        took = f"{_quoted(form['name'])} failed ({units.clip(form['error'] or 'an error', 60)}) after "
        took += units.seconds(form["duration_s"])
    elif form["status"] == "interrupted":
        took = f"{_quoted(form['name'])} was interrupted after {units.seconds(form['duration_s'])}"
    if not stages:
        return f"{took}; no stage was found in it."
    top = stages[0]
    share = "" if top["share"] is None else f"{units.percent(top['share'])} of it in "
    return f"{took}, {share}{_about(top, form)}."


def sentences(form: Mapping[str, Any]) -> list[str]:
    """What else to know: the other large stages, warm-up, time outside stages, the cost of looking."""
    stages = _largest_first(form["stages"])
    lines = [
        f"{_about(stage, form)}; {units.percent(stage['share'])} of the time."
        for stage in stages[1:_AT_MOST]
        if (stage["share"] or 0) >= _WORTH_SAYING
    ]
    warm = sum(stage["warmup_s"] for stage in stages)
    if form["net_s"] and warm / form["net_s"] > 0.01:
        lines.append(f"First calls took {units.seconds(warm)} longer than the others (warm-up), kept apart.")
    inside = sum(stage["total_s"] or 0.0 for stage in stages)
    outside = (form["net_s"] or 0.0) - inside
    if stages and form["net_s"] and outside / form["net_s"] > _WORTH_SAYING:
        lines.append(
            f"{units.seconds(outside)} ({units.percent(outside / form['net_s'])}) passed outside the stages."
        )
    if form.get("dry"):
        if form["peak_bytes"] is not None:
            weights = units.size(form["weight_bytes"])
            lines.append(
                f"At its fullest it holds {units.size(form['peak_bytes'])}, {weights} of them weights."
            )
        return lines
    lines.append(
        f"Profiling took {units.seconds(form['overhead_s'])} of these "
        f"{units.seconds(form['duration_s'])} "
        f"({units.percent(units.ratio(form['overhead_s'], form['duration_s']))})."
    )
    compared = [stage for stage in stages if stage.get("predicted") and stage["call_s"]]
    if compared:
        ratios = [stage["predicted"]["seconds"] / stage["call_s"] for stage in compared]
        off = sum(abs(ratio - 1) for ratio in ratios) / len(ratios)
        learned = any(stage["predicted"]["source"] == "measured" for stage in compared)
        by = "the model and earlier runs here" if learned else "the model alone"
        some = "1 stage" if len(compared) == 1 else f"{len(compared)} stages"
        lines.append(
            f"Predicted by {by}, {some} took what was expected within {units.percent(off)} on average."
            if off <= 1
            else f"{by[0].upper()}{by[1:]} expected something else of {some}: the next time it knows better."
        )
    if form["deployment"]:
        devices = sorted(set(form["deployment"].values()))
        moved = units.size(form["transferred_bytes"])
        lines.append(f"It ran under a plan on {', '.join(devices)}; {moved} crossed between them.")
    return lines


def _about(stage: Mapping[str, Any], form: Mapping[str, Any]) -> str:
    """``decode: bandwidth-bound, reads 538 MB per token at 9.80 GB/s, 92% of what this CPU can read``."""
    name = _quoted(stage["id"])
    device = form["device"]["short"]
    each = "token" if stage["role"] == "decode" else "call"
    of_roof = units.percent(stage["of_roof"])
    calls = stage["calls"]
    if stage["bound"] == "bandwidth" and stage["read_bytes_per_s"] is not None:
        per = units.size(units.ratio(stage["bytes_read"], calls))
        text = f"{name}: bandwidth-bound, reads {per} per {each} at "
        text += units.bandwidth(stage["read_bytes_per_s"])
        return text + ("" if stage["of_read"] is None else
                       f", {units.percent(stage['of_read'])} of what {device} can read")  # fmt: skip
    if stage["bound"] == "compute" and stage["flops_per_s"] is not None:
        text = f"{name}: compute-bound, {units.flops(units.ratio(stage['flops'], calls))} per {each} at "
        text += units.flop_rate(stage["flops_per_s"])
        return text + ("" if stage["of_roof"] is None else
                       f", {of_roof} of what {device} reaches in {stage['dtype']}")  # fmt: skip
    if stage["bound"] == "overhead" and stage["ops"]:
        each_op = units.seconds(units.ratio(stage["steady_s"], stage["ops"]))
        return f"{name}: overhead-bound, {units.count(stage['ops'])} operators of {each_op} each"
    took = units.seconds(stage["call_s"])
    what = {
        "overhead": "overhead-bound (Python, launches)",
        "wait": "waiting (network, disk, a lock)",
        "transfer": "moving data between devices",
        "idle": "idle",
    }.get(stage["bound"], f"{stage['bound']}-bound")
    return f"{name}: {what}, " + (took if calls == 1 else f"{units.count(calls)} times, {took} each")


def _largest_first(stages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(stages, key=lambda stage: -(stage["total_s"] or 0.0))


def _quoted(name: str) -> str:
    return units.clip(name, 40) or "the cell"
