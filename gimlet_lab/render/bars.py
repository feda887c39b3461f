"""A plan beside its baselines: bars of latency from one zero, the prediction with its interval."""

from __future__ import annotations

from gimlet_lab.model.plan import Plan
from gimlet_lab.render import units
from gimlet_lab.render.scene import Scene, Shape, Text, box, fit, line, text_width

_ROW = 26.0
_MOST = 12


def scene(plan: Plan, width: float = 960.0) -> Scene:
    """Draw the bars."""
    low, high = (units.finite(value) for value in plan.interval_s)
    rows: list[tuple[str, float | None, str]] = [("this plan", units.finite(plan.latency_s), "")]
    rows += [
        (name, units.finite(entry.get("latency_s")), str(entry.get("why_not") or ""))
        for name, entry in list(plan.baselines.items())[:_MOST]
    ]
    left = min(220.0, max(text_width(units.clip(name, 36), 11.5) for name, _, _ in rows) + 16)
    longest = max([value for _, value, _ in rows if value is not None] + [high or 0.0], default=0.0)
    scale = (width - left - 110.0) / longest if longest > 0 else 0.0
    items: list[Shape | Text] = []
    for index, (name, value, why_not) in enumerate(rows):
        y = 4 + _ROW * index
        ours = index == 0
        items.append(Text(left - 8, y + 16, fit(name, left - 10, 11.5), 11.5, "ink", "end", bold=ours,
                          title=units.clip(name, 200)))  # fmt: skip
        if value is None:
            said = f"not possible: {why_not}" if why_not else "unknown"
            items.append(Text(left, y + 16, fit(said, width - left, 11), 11, "quiet"))
            continue
        wide = max(2.0, value * scale)
        title = f"{units.clip(name, 80)}: {units.seconds(value)}"
        items.append(Shape(box(left, y + 4, wide, _ROW - 9, 3.0), "transfer" if ours else "idle",
                           opacity=1.0 if ours else 0.55, title=title))  # fmt: skip
        end = left + wide
        if ours and low is not None and high is not None:
            middle, a, b = y + _ROW / 2 - 0.5, left + low * scale, left + high * scale
            items.append(
                Shape(
                    (*line([(a, middle), (b, middle)]), *line([(a, middle - 4), (a, middle + 4)]),
                     *line([(b, middle - 4), (b, middle + 4)])),
                    None, "ink", 1.5, title=f"90%: {units.interval(low, high)}",
                )
            )  # fmt: skip
            end = max(end, b)
        times = units.ratio(value, plan.latency_s)
        label = units.seconds(value)
        label += "" if ours or times is None else f"  ({units.figures(times)}×)"
        items.append(Text(end + 7, y + 16, label, 11, "ink", bold=ours))
    described = "; ".join(f"{units.clip(name, 40)} {units.seconds(value)}" for name, value, _ in rows)
    return Scene(width, 8 + _ROW * len(rows), "Predicted latency", described, tuple(items))
