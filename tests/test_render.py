from __future__ import annotations

import base64
import io
import json
import math
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from types import ModuleType
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import (
    HOSTILE_NAMES,
    empty_run,
    hostile_plan,
    hostile_run,
    measured,
    sample_device,
    sample_gpu,
    sample_plan,
    sample_run,
)

from gimlet_lab.errors import UnknownNameError
from gimlet_lab.model import Edge, Graph, MeterSeries, Op, Phase, Plan, Quantity, Run, Stage
from gimlet_lab.render import (
    bars,
    bundle,
    display,
    flow,
    html,
    marks,
    plan_tables,
    roofline,
    tables,
    text,
    timeline,
    units,
)
from gimlet_lab.render.layout import CROSSING, layered
from gimlet_lab.render.scene import Scene, Shape, Text, text_width, ticks

VIEWS = text.VIEWS
# A notebook grows by less than 200 kB a run; pictures are stored in base 64.
NOTEBOOK_BYTES = 200_000


class Page(HTMLParser):
    """What a page is made of, and whether every element is closed in order."""

    VOID = frozenset({"meta", "br", "img"})

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(source)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


ALLOWED = {
    "div", "style", "p", "bdi", "ul", "li", "figure", "figcaption", "svg", "title", "desc", "path", "text",
    "table", "thead", "tbody", "tr", "th", "td", "span", "h1", "h3", "details", "summary", "pre",
    "html", "head", "body", "main", "meta", "img",
}  # fmt: skip
ATTRIBUTES = {
    "class", "xmlns", "viewbox", "width", "height", "role", "aria-labelledby", "aria-label", "aria-hidden",
    "id", "d", "stroke-width", "stroke-dasharray", "opacity", "x", "y", "font-size", "text-anchor",
    "font-weight", "transform", "scope", "open", "charset", "name", "content", "lang", "http-equiv",
    "hidden", "alt", "src",
}  # fmt: skip


def checked(source: str) -> Page:
    """A page that holds nothing but drawing and text, and that can be stored."""
    source.encode("utf-8")
    page = Page(source)
    assert {tag for tag, _ in page.tags} <= ALLOWED
    assert {name for _, attributes in page.tags for name in attributes} <= ATTRIBUTES
    outside = re.sub(r"""xmlns=["']http://www.w3.org/2000/svg["']""", "", source)
    assert all(
        str(image["src"]).startswith(("data:image/svg+xml,", "data:image/png;base64,"))
        for image in page.all("img")
    )
    assert not re.search(r"url\(|@import|https?://[^<]*[\"']\s*>", outside)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for drawing in page.all("svg"):
        if drawing.get("aria-hidden") != "true":
            assert drawing["role"] == "img"
            assert set(str(drawing["aria-labelledby"]).split()) <= set(ids)
    return page


def saved_bytes(made: dict[str, object]) -> int:
    """What a notebook file grows by."""
    stored = {
        mime: base64.b64encode(data).decode() if isinstance(data, bytes) else data
        for mime, data in made.items()
    }
    return len(json.dumps(stored, ensure_ascii=False).encode())


RUNS = {
    "sample": sample_run(),
    "empty": empty_run(),
    "hostile": hostile_run(),
    "failed": replace(sample_run(), status="failed", error="ValueError"),
    "interrupted": replace(sample_run(), status="interrupted", error="KeyboardInterrupt"),
    "gpu": replace(sample_run(), device=sample_gpu()),
    "one stage": replace(
        sample_run(),
        graph=Graph((sample_run().graph["decode"],), ()),
        phase_list=sample_run().phase_list[-1:],
    ),
}


# --- numbers and names ---


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (units.seconds(None), "–"),
        (units.seconds(float("nan")), "–"),
        (units.seconds(0), "0 s"),
        (units.seconds(2.1e-6), "2.10 µs"),
        (units.seconds(0.0552), "55.2 ms"),
        (units.seconds(0.9996), "1.00 s"),
        (units.seconds(0.99949), "999 ms"),
        (units.seconds(119.96), "120 s"),
        (units.seconds(200), "3 min 20 s"),
        (units.seconds(7322), "2 h 2 min"),
        (units.seconds(-0.25), "-250 ms"),
        (units.seconds(1e300), "1.0e+300 s"),
        (units.seconds(1e-300), "1.0e-291 ns"),
        (units.size(41), "41 B"),
        (units.size(999_600), "1.00 MB"),
        (units.size(538e6), "538 MB"),
        (units.size(0), "0 B"),
        (units.bandwidth(9.8e9), "9.80 GB/s"),
        (units.flops(271e6), "271 MFLOP"),
        (units.flop_rate(98e9), "98.0 GFLOP/s"),
        (units.percent(0.923), "92%"),
        (units.percent(0.004), "0.4%"),
        (units.percent(1e-9), "<0.1%"),
        (units.percent(0), "0%"),
        (units.percent(None), "–"),
        (units.dollars(9.9e-5), "$0.000099"),
        (units.dollars(0.71), "$0.71"),
        (units.dollars(1234.5), "$1,234.50"),
        (units.count(4320), "4,320"),
        (units.intensity(0.4939), "0.494"),
        (units.interval(0.0079, 0.0127), "7.90 ms – 12.7 ms"),
        (units.interval(0.0079, None), "–"),
        (units.figures(7.88), "7.88"),
        (units.figures(0.5), "0.500"),
        (units.clip("a long name", 7), "a long…"),
        (units.clip("short", 7), "short"),
        (units.clip("埋め込み検索", 7), "埋め込…"),
        (units.clip("a\nb\t c\x1b[0m\u202e", 20), "a b c�[0m�"),
    ],
)
def test_numbers_and_names_for_people(shown: str, wanted: str) -> None:
    assert shown == wanted


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_number_is_short_and_on_one_line(number: float) -> None:
    shown = [
        show(number)
        for show in (units.seconds, units.size, units.bandwidth, units.flops, units.flop_rate, units.percent,
                     units.dollars, units.count, units.intensity)
    ]  # fmt: skip
    for said in shown:
        assert said
        assert "\n" not in said
        assert len(said) < 32
        assert (said == units.UNKNOWN) == (not math.isfinite(number))


@given(st.floats(1e-9, 100) | st.floats(-100, -1e-9))
def test_seconds_keep_three_figures(number: float) -> None:
    value, unit = units.seconds(number).split()
    factor = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[unit]
    assert float(value) * factor == pytest.approx(number, rel=0.0051)


@given(st.text(max_size=300), st.integers(1, 80))
def test_clipped_text_fits_and_cannot_break_a_line(name: str, limit: int) -> None:
    shown = units.clip(name, limit)
    assert units.width(shown) <= limit
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]", shown)


@given(st.floats(1e-9, 1e9), st.integers(2, 12))
def test_ticks_are_round_and_in_range(end: float, most: int) -> None:
    marks = ticks(end, most)
    values = [value for value, _ in marks]
    assert values[0] == 0
    assert values[-1] <= end * (1 + 1e-9)
    assert len(marks) <= most + 1
    assert len({label for _, label in marks}) == len(marks)


# --- the display form ---


@pytest.mark.parametrize("name", RUNS)
def test_the_display_form_is_plain_strict_json_and_small(name: str) -> None:
    form = display.display_form(RUNS[name])
    again = json.dumps(form, allow_nan=False)
    assert json.loads(again) == form
    again.encode()
    assert len(again) < 120_000


PREFILL = (
    "prefill: compute-bound, 57.5 GFLOP per call at 80.8 GFLOP/s, 82% of what this CPU reaches in float32; "
    "35% of the time."
)


def test_what_is_found_is_said_first() -> None:
    form = display.display_form(sample_run())
    assert form["finding"] == (
        "agent took 4.21 s, 64% of it in decode: bandwidth-bound, reads 546 MB per token at 9.89 GB/s, "
        "93% of what this CPU can read."
    )
    assert form["summary"] == [
        PREFILL,
        "First calls took 45.3 ms longer than the others (warm-up), kept apart.",
        "Profiling took 94.0 ms of these 4.21 s (2%).",
    ]


def test_a_failed_and_an_interrupted_cell_say_so() -> None:
    assert display.display_form(RUNS["failed"])["finding"].startswith(
        "agent failed (ValueError) after 4.21 s"
    )
    assert display.display_form(RUNS["interrupted"])["finding"].startswith(
        "agent was interrupted after 4.21 s"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bound": "wait"}, "decode: waiting (network, disk, a lock), 48 times, 55.2 ms each"),
        ({"bound": "overhead"}, "decode: overhead-bound, 107,712 operators of 24.6 µs each"),
        (
            {"bound": "overhead", "ops": 0},
            "decode: overhead-bound (Python, launches), 48 times, 55.2 ms each",
        ),
        ({"bound": "transfer", "calls": 1}, "decode: moving data between devices, 55.2 ms"),
        ({"bytes_read": None}, "decode: bandwidth-bound, 48 times, 55.2 ms each"),
    ],
)
def test_each_bound_has_its_sentence(changes: dict[str, object], said: str) -> None:
    graph = sample_run().graph
    stage = replace(graph["decode"], **changes)  # type: ignore[arg-type]
    run = replace(sample_run(), graph=replace(graph, stages=(*graph.stages[:-1], stage)))
    assert f"of it in {said}." in display.display_form(run)["finding"]


def test_unknown_is_null_and_a_dash_and_never_zero() -> None:
    form = display.display_form(sample_run())
    search = next(stage for stage in form["stages"] if stage["id"] == "search")
    assert search["flops"] is None
    assert search["of_roof"] is None
    shown = tables.stages(form)
    row = dict(zip(shown.columns, shown.rows[1], strict=True))
    assert row["stage"] == "search"
    assert (row[">FLOP/s"], row[">bytes/s"], row[">of roof"]) == ("–", "–", "–")
    operator = next(row for row in form["operators"] if row["op"] == "aten::silu")
    assert operator["flops"] is None


def test_a_sum_with_an_unknown_part_is_unknown() -> None:
    known = Op("x", 0, "", None, 0.0, 1.0, 5.0, 1.0, 1.0, "float32", "cpu", 2)
    unknown = replace(known, flops=None)
    run = replace(empty_run(), operators=(known, unknown), inferred=(False,) * 2, stage_of=(None,) * 2)
    (row,) = display.display_form(run)["operators"]
    assert (row["calls"], row["total_s"], row["flops"], row["bytes"]) == (4, 2.0, None, 4.0)


def test_the_share_of_the_roof_is_model_time_over_time() -> None:
    form = display.display_form(sample_run())
    decode = next(point for point in form["roofline"]["points"] if point["stage"] == "decode")
    stage = sample_run().graph["decode"]
    assert decode["roof"] == "bandwidth"
    assert decode["of_roof"] == pytest.approx((stage.bytes or 0) / 10.6e9 / stage.total_s)
    prefill = next(point for point in form["roofline"]["points"] if point["stage"] == "prefill")
    stage = sample_run().graph["prefill"]
    assert prefill["roof"] == "compute"
    assert prefill["of_roof"] == pytest.approx((stage.flops or 0) / 98e9 / (stage.total_s - stage.warmup_s))


def test_warm_up_is_a_point_of_its_own_and_roofs_are_told_apart() -> None:
    form = display.display_form(sample_run())["roofline"]
    assert [point["stage"] for point in form["points"] if point["warmup"]] == ["embed"]
    assert {entry["stage"] for entry in form["left_out"]} == {"search", "calculate", "build_prompt"}
    gpu = replace(sample_gpu(), achieved_bandwidth_bytes_per_s=measured(255e9))
    roofs = display.display_form(replace(sample_run(), device=gpu))["roofline"]["roofs"]
    assert [(roof["kind"], roof["tier"], roof["value"]) for roof in roofs] == [
        ("bandwidth", "calibrated", 255e9),
        ("bandwidth", "datasheet", 300e9),
        ("compute", "calibrated", 24e12),
        ("compute", "datasheet", 30.3e12),
    ]


def test_a_stage_that_ran_elsewhere_is_not_held_against_this_roof() -> None:
    run = replace(sample_run(), deployment={"decode": "cpu/1"}, transferred_bytes=9.9e6)
    form = display.display_form(run)
    decode = next(stage for stage in form["stages"] if stage["id"] == "decode")
    assert (decode["device"], decode["of_roof"], decode["of_read"]) == ("cpu/1", None, None)
    assert "can read" not in form["finding"]
    assert "It ran under a plan on cpu/1; 9.90 MB crossed between them." in form["summary"]


def phases(number: int) -> Iterator[Phase]:
    for index in range(number):
        stage = f"s{index % 7}"
        yield Phase(index * 1e-3, 0.9e-3, ("compute", "bandwidth", "wait")[index % 3], stage, None, 1.0, 1.0)


def test_many_phases_are_drawn_together_and_their_time_is_kept() -> None:
    run = replace(sample_run(), phase_list=tuple(phases(50_000)), duration_s=50.0, overhead_s=0.0)
    form = display.display_form(run)
    drawn = form["timeline"]["marks"]
    assert len(drawn["lane"]) <= marks.MAX_MARKS
    assert sum(drawn["merged"]) == 50_000
    assert max(s + d for s, d in zip(drawn["start_s"], drawn["duration_s"], strict=True)) <= 50.0
    assert form["phases"]["count"] == 50_000
    assert len(form["phases"]["rows"]) == marks.MAX_ROWS
    listed = sum(row["duration_s"] for row in form["phases"]["rows"])
    assert listed + form["phases"]["left_out"]["seconds"] == pytest.approx(45.0)
    assert sum(entry["seconds"] for entry in form["phases"]["by_bound"]) == pytest.approx(45.0)
    assert "49,960 shorter ones" in tables.phases(form).note
    assert saved_bytes(bundle.run_bundle(replace(run, display=form))) < NOTEBOOK_BYTES


def test_many_stages_keep_their_names_apart_and_the_picture_small() -> None:
    stages = tuple(
        Stage(f"stage{index}", "function", None, None, 1, 0.01 * (index + 1), 0.01 * (index + 1), "compute")
        for index in range(120)
    )
    edges = tuple(
        Edge(f"stage{i}", f"stage{j}", "x", 1e3, 1, "tensor") for i in range(120) for j in (i + 1, i + 9)
    )
    run = replace(sample_run(), graph=Graph(stages, edges))
    form = display.display_form(run)
    assert len(form["graph"]["nodes"]) == display.MAX_NODES
    assert form["graph"]["left_out"] == 96
    assert "The 24 largest of 120 stages" in html.run_html(run, "graph")
    assert saved_bytes(bundle.run_bundle(run)) < NOTEBOOK_BYTES


def test_a_stored_display_form_is_used_as_it_is() -> None:
    run = sample_run()
    form = {**display.display_form(run), "finding": "as stored"}
    assert "as stored" in text.run_text(replace(run, display=form))
    newer = {"schema": "gimlet.display/2", "finding": "other"}
    assert "agent took" in text.run_text(replace(run, display=newer))


# --- layout ---

graphs = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=30
).map(lambda edges: [(f"n{a}", f"n{b}", back) for a, b, back in edges])  # fmt: skip


@given(graphs, st.integers(0, 10))
def test_edges_point_down_and_nothing_overlaps(edges: list[tuple[str, str, bool]], number: int) -> None:
    nodes = [f"n{index}" for index in range(number)]
    found = layered(nodes, edges)
    assert set(found.place) == set(nodes)
    rows: dict[int, list[tuple[float, float]]] = {}
    for layer, slot in found.place.values():
        assert 0 <= layer < found.layers
        rows.setdefault(layer, []).append((slot, 1.0))
    for (a, b), via in found.via.items():
        assert found.place[a][0] < found.place[b][0]
        assert [layer for layer, _ in via] == list(range(found.place[a][0] + 1, found.place[b][0]))
        for layer, slot in via:
            rows[layer].append((slot, CROSSING))
    for row in rows.values():
        row.sort()
        for (left, wide), (right, broad) in pairwise(row):
            assert right - left >= (wide + broad) / 2 - 1e-9
    drawn = {(a, b) for a, b, _ in edges if a in found.place and b in found.place}
    assert set(found.via) | set(found.back) == drawn
    assert not set(found.via) & set(found.back)
    lanes = [lane for (a, b), lane in found.back.items() if a != b]
    assert sorted(lanes) == list(range(len(lanes)))


def test_a_chain_is_straight_and_in_order() -> None:
    found = layered(
        ["a", "b", "c"], [("a", "b", False), ("b", "c", False), ("c", "a", True), ("c", "c", True)]
    )
    assert found.place == {"a": (0, 0.0), "b": (1, 0.0), "c": (2, 0.0)}
    assert found.back == {("c", "a"): 0, ("c", "c"): -1}


# --- scenes ---


def scenes(run: Run) -> list[Scene]:
    form = display.display_form(run)
    graph = flow.scene(form)
    return [timeline.phases(form), roofline.scene(form), roofline.beside(form, graph), graph]


def plan_scenes() -> list[Scene]:
    schedule = timeline.schedule(sample_plan())
    assert schedule is not None
    return [bars.scene(sample_plan()), schedule]


def corners(shape: Shape) -> Iterator[tuple[float, float]]:
    for _, numbers in shape.path:
        yield from zip(numbers[::2], numbers[1::2], strict=True)


def metered(count: int, **readings: tuple[Any, ...]) -> Run:
    run = next(iter(RUNS.values()))
    times = tuple(run.duration_s * (i - 1) / count for i in range(count + 1))
    card = MeterSeries("cuda:0", times, readings)
    core = MeterSeries("core:0", times, {"utilization": (1.0,) * (count + 1)})
    return replace(run, meter_list=(card, core))


def test_what_the_meters_said_lies_below_the_timeline() -> None:
    power = (999.0, 100.0, 300.0, None, 200.0, 400.0, 400.0)
    form = display.display_form(metered(6, power_w=power, utilization=(0.5,) * 7, memory_used_bytes=(1,) * 2))
    use, watts = form["timeline"]["strips"]
    assert (use["device"], use["reading"], use["most"]) == ("cuda:0", "use", 1.0)
    assert (watts["reading"], watts["unit"], watts["most"]) == ("power", "W", 400.0)
    assert watts["value"] == [100.0, 300.0, None, 200.0, 400.0, 400.0], "without the one from before the cell"
    scene = timeline.phases(form)
    bare = display.display_form(replace(metered(6), meter_list=()))
    assert scene.height > timeline.phases(bare).height
    assert {"cuda:0 use", "cuda:0 power", "400 W"} <= {i.text for i in scene.items if isinstance(i, Text)}
    del form["timeline"]["strips"]  # a run saved before there were any
    assert timeline.phases(form).height == timeline.phases(bare).height


def test_a_long_run_has_short_strips_with_the_same_mean() -> None:
    draw = random.Random(0)
    values = tuple(draw.random() for _ in range(10_001))
    form = display.display_form(metered(10_000, utilization=values))
    (use,) = form["timeline"]["strips"]
    assert len(use["value"]) <= 241
    assert sum(use["value"]) / len(use["value"]) == pytest.approx(sum(values) / len(values), abs=0.01)
    assert not display.display_form(metered(2, utilization=(0.5,) * 3))["timeline"]["strips"]


@pytest.mark.parametrize("name", RUNS)
def test_everything_is_drawn_inside_its_picture(name: str) -> None:
    for scene in [*scenes(RUNS[name]), *plan_scenes()]:
        assert scene.title
        assert scene.description
        assert math.isfinite(scene.width)
        assert math.isfinite(scene.height)
        for item in scene.items:
            if isinstance(item, Shape):
                for x, y in corners(item):
                    assert -1 <= x <= scene.width + 1, (scene.title, item)
                    assert -1 <= y <= scene.height + 1, (scene.title, item)
            else:
                assert -1 <= item.x <= scene.width + 1
                assert -1 <= item.y <= scene.height + 1


@pytest.mark.parametrize("name", ["sample", "one stage", "gpu", "empty"])
def test_no_text_runs_out_of_its_picture(name: str) -> None:
    for scene in [*scenes(RUNS[name]), *plan_scenes()]:
        for item in scene.items:
            if isinstance(item, Text) and not item.angle:
                wide = text_width(item.text, item.size) * (1.0 if item.size > 8 else 0)
                left = item.x - {"start": 0.0, "middle": wide / 2, "end": wide}[item.anchor]
                assert left >= -4, (scene.title, item.text)
                assert left + wide <= scene.width + 16, (scene.title, item.text)


def test_each_bound_has_a_shape_of_its_own() -> None:
    assert len(set(tables.GLYPHS.values())) == 6
    from gimlet_lab.render.scene import marker

    shapes = {
        bound: "".join(letter for letter, _ in marker(bound, 0, 0, 5).path) + str(marker(bound, 0, 0, 5).path)
        for bound in tables.GLYPHS
    }
    assert len(set(shapes.values())) == 6


@pytest.mark.parametrize("derived", [92e9, 105e9])
def test_of_two_roofs_that_lie_close_the_upper_one_has_its_label_above(derived: float) -> None:
    run = sample_run()
    peaks = {"float32": Quantity(derived, "nominal clock", "2026-01-01", "derived")}
    run = replace(run, device=replace(run.device, peak_flops=peaks))
    labels = [
        item
        for item in roofline.scene(display.display_form(run), 760.0).items
        if isinstance(item, Text) and item.text.startswith("float32 ")
    ]
    upper, lower = sorted(labels, key=lambda label: label.y)
    rates = [float(label.text.split()[1]) for label in (upper, lower)]
    assert rates == sorted(rates, reverse=True)
    assert lower.y - upper.y > 12


def test_the_roofline_puts_points_where_their_numbers_say() -> None:
    form = display.display_form(sample_run())
    drawn = roofline.scene(form)
    axis_x = {item.text: item.x for item in drawn.items if isinstance(item, Text)}
    decode = next(
        item for item in drawn.items if isinstance(item, Shape) and (item.title or "").startswith("decode:")
    )
    middle = sum(x for x, _ in corners(decode)) / len(list(corners(decode)))
    wanted = axis_x["0.1"] + (axis_x["1"] - axis_x["0.1"]) * (math.log10(form["stages"][-1]["intensity"]) + 1)
    assert middle == pytest.approx(wanted, abs=1.0)


def test_operator_groups_have_a_rate_and_a_spread_and_are_drawn_where_there_is_room() -> None:
    run = sample_run()
    form = display.display_form(run)
    groups = form["roofline"]["groups"]
    assert groups
    assert [group["seconds"] for group in groups] == sorted((g["seconds"] for g in groups), reverse=True)
    for group in groups:
        rows = [
            op for op in run.operators if op.work and (op.work.op, op.dtype) == (group["op"], group["dtype"])
        ]
        flops, seconds = sum(op.flops or 0 for op in rows), sum(op.duration_s for op in rows)
        assert group["flops_per_s"] == pytest.approx(flops / seconds)
        if group["interval_flops_per_s"]:
            low, high = group["interval_flops_per_s"]
            assert 0 < low <= high
    rings = [f"{group['op']}, {group['dtype']}:" for group in groups]

    def titles(width: float) -> list[str]:
        items = roofline.scene(form, width).items
        return [str(item.title) for item in items if isinstance(item, Shape)]

    assert all(any(title.startswith(ring) for title in titles(760.0)) for ring in rings)
    assert not any(title.startswith(ring) for title in titles(470.0) for ring in rings)
    shown = text.run_text(run, "roofline")
    assert "Operator groups" in shown
    assert all(group["op"] in shown for group in groups)


def test_calls_of_different_shapes_have_no_interval_of_one_rate() -> None:
    def interval(run: Run) -> object:
        points = display.display_form(run)["roofline"]["points"]
        return next(p["interval_flops_per_s"] for p in points if p["stage"] == "decode" and not p["warmup"])

    run = sample_run(tokens=40)
    assert interval(run)
    spans = tuple(
        replace(span, signature=str(index % 2)) if run.span_stage.get(span.id) == "decode" else span
        for index, span in enumerate(run.span_list)
    )
    assert interval(replace(run, span_list=spans)) is None


# --- pages, pictures, text ---


class Untrusted(HTMLParser):
    """What JupyterLab shows of a page that it does not trust: no style, no SVG, but the text inside it."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[tuple[str, bool]] = []
        self.text: list[str] = []
        self.images: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(str(dict(attrs)["src"]))
        elif tag not in Page.VOID:
            # JupyterLab's sanitizer drops the attribute where it has no value.
            self.stack.append((tag, bool(dict(attrs).get("hidden"))))

    def handle_endtag(self, tag: str) -> None:
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if not any(hidden or tag == "style" for tag, hidden in self.stack):
            self.text.append(data)


@pytest.mark.parametrize("view", VIEWS)
def test_a_page_that_is_not_trusted_shows_images_and_no_text_of_drawings(view: str) -> None:
    form = text.form_of(sample_run())
    shown = Untrusted(html.run_html(sample_run(), view))
    assert shown.images
    for image in shown.images:
        drawing = unquote(image.removeprefix("data:image/svg+xml,"))
        root = ElementTree.fromstring(drawing)
        assert "title" not in drawing
        assert root.find("{http://www.w3.org/2000/svg}path") is not None
    for description in re.findall(r"<desc[^>]*>([^<]+)", html.run_html(sample_run(), view)):
        assert unescape(description) not in "".join(shown.text)
    assert form["stages"][0]["id"] in "".join(shown.text)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", RUNS)
def test_every_view_of_every_run_is_whole(name: str, view: str) -> None:
    made = bundle.run_bundle(RUNS[name], view)
    assert set(made) == {bundle.RUN, "text/plain", "text/html", "image/png"}
    checked(made["text/html"])
    assert made["image/png"].startswith(b"\x89PNG")
    assert saved_bytes(made) < NOTEBOOK_BYTES
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", made["text/plain"])
    made["text/plain"].encode()


@pytest.mark.parametrize("plan", [sample_plan(), hostile_plan()], ids=["sample", "hostile"])
def test_a_plan_is_whole(plan: Plan) -> None:
    made = bundle.plan_bundle(plan)
    checked(made["text/html"])
    assert made["image/png"].startswith(b"\x89PNG")
    assert saved_bytes(made) < NOTEBOOK_BYTES
    made["text/plain"].encode()


@pytest.mark.parametrize("name", RUNS)
def test_the_report_is_a_page_of_its_own(name: str) -> None:
    source = html.page(replace(RUNS[name], text="agent('<b>')\n\tx = 1"))
    page = checked(source.removeprefix("<!DOCTYPE html>\n"))
    assert "agent('<b>')\n\tx = 1" in "".join(page.text)
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert str(policy).startswith("default-src 'none'")


def test_hostile_names_arrive_as_text() -> None:
    page = checked(html.run_html(hostile_run()))
    seen = "".join(page.text)
    assert "<script>alert(1)</script>" in seen
    assert "x" * 300 not in seen
    assert page.all("script") == []


def test_every_chart_has_a_table_with_its_numbers() -> None:
    page = checked(html.run_html(sample_run()))
    assert {table["aria-label"] for table in page.all("table")} == {
        "Stages", "Phases", "Roofline", "Roofs", "Data between stages",
    }  # fmt: skip
    seen = "".join(page.text)
    for number in (
        "4.91 GFLOP/s",
        "9.95 GB/s",
        "94%",
        "9.86 MB",
        "past_key_values",
        "def-use",
        "98.0 GFLOP/s",
    ):
        assert number in seen


def test_the_same_run_gives_the_same_page() -> None:
    assert html.run_html(sample_run()) == html.run_html(sample_run())


def test_an_unknown_view_names_the_nearest() -> None:
    for show in (text.run_text, bundle.run_bundle, html.run_html, bundle.run_png):
        with pytest.raises(UnknownNameError, match="did you mean 'roofline'"):
            show(sample_run(), "rofline")


def test_pictures_are_true_and_thread_safe() -> None:
    from PIL import Image

    pictures: dict[int, bytes] = {}

    def draw(index: int) -> None:
        pictures[index] = bundle.run_png(sample_run())

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(pictures.values())) == 1
    picture = Image.open(io.BytesIO(pictures[0])).convert("RGB")
    assert picture.getpixel((2, 2)) == (255, 255, 255)
    colours = {colour for _, colour in picture.getcolors(1 << 24) or ()}
    assert {(0x3B, 0x82, 0xC4), (0xD5, 0x5E, 0x00)} <= colours


def test_drawing_needs_no_torch_and_no_window(tmp_path: object) -> None:
    code = """
import sys
for name in ("torch", "ray", "pandas", "ortools", "IPython", "tkinter", "matplotlib.pyplot"):
    sys.modules[name] = None
sys.path.insert(0, "tests")
from samples import sample_run, sample_plan
from gimlet_lab.render import bundle
print(len(bundle.run_bundle(sample_run())), len(bundle.plan_bundle(sample_plan())))
"""
    root = __file__.rpartition("/tests/")[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert (done.stdout.strip(), done.stderr) == ("4 3", "")


def test_text_columns_line_up() -> None:
    shown = text.run_text(replace(sample_run(), name="埋め込み"), "summary")
    head, rule, *rows = shown[shown.index("Stages\n") + 7 :].split("\n\n")[0].split("\n")
    assert set(rule) == {"─"}
    assert len(rows) == 6
    assert {units.width(row) for row in rows} == {units.width(head)}


def test_text_says_what_was_not_seen_and_what_failed() -> None:
    shown = text.run_text(RUNS["failed"])
    assert "· failed" in shown.splitlines()[0]
    assert "Note: faiss: its operators are not torch's; only its time is known" in shown
    assert "Not on the roofline: search (FLOPs unknown)" in text.run_text(RUNS["failed"], "roofline")
    assert "Phases: none" in text.run_text(empty_run(), "phases")


def test_a_plan_says_what_moves_what_it_gains_and_what_is_proven() -> None:
    shown = text.plan_text(sample_plan())
    lines = shown.splitlines()
    assert lines[0] == (
        "Move prefill and decode to l4: 4.12 s → 523 ms (90%: 440 ms – 696 ms), 7.88× as fast."
    )
    assert lines[1].startswith("Proven optimal for latency: no plan is below 523 ms (gap 0%)")
    decode = next(line for line in lines if line.startswith("decode "))
    assert re.split(r"\s{2,}", decode) == [
        "decode", "cpu", "l4 *", "48", "55.2 ms", "9.40 ms", "7.90 ms – 12.7 ms", "■ overhead", "model",
    ]  # fmt: skip
    assert "search, calculate, build_prompt are Python and need a host" in shown
    assert "- prefill follows decode" in shown


def test_a_plan_that_stays_and_a_tie_say_so() -> None:
    plan = sample_plan()
    here = dict.fromkeys(plan.assignment, "cpu")
    stay = replace(plan, assignment=here, latency_s=4.12, interval_s=(3.9, 4.4), status="feasible", gap=0.02)
    assert text.prediction(stay)[0] == "Nothing moves: predicted 4.12 s (90%: 3.90 s – 4.40 s)."
    assert text.prediction(stay)[1].startswith("The best found for latency")
    tie = replace(plan, latency_s=4.0, interval_s=(3.5, 4.5))
    assert "a tie: as it is lies within the interval" in text.prediction(tie)[0]


def test_the_schedule_of_another_placement_is_not_shown() -> None:
    plan = replace(sample_plan(), assignment={**sample_plan().assignment, "prefill": "cpu"})
    assert timeline.schedule(plan) is None
    assert timeline.schedule(replace(plan, solution={})) is None
    assert "Predicted schedule" not in bundle.plan_bundle(plan)["text/html"]
    assert "Predicted schedule" in bundle.plan_bundle(sample_plan())["text/html"]


@pytest.mark.parametrize("started", ["2026-09-20T10:11:12Z", "2026-09-20T12:11:12.345+02:00"])
def test_the_moment_is_given_in_utc(started: str) -> None:
    assert "2026-09-20 10:11:12 UTC" in html.run_html(replace(sample_run(), started=started))


def test_devices_say_what_is_measured() -> None:
    shown = text.devices_text([sample_device(), sample_gpu()])
    cpu, gpu = shown.splitlines()[3:5]
    assert "10.6 GB/s" in cpu
    assert "measured" in cpu
    assert "$0.71" in gpu
    assert "vendor" in gpu
    assert text.devices_text([]) == "Devices: none"


def test_every_hostile_name_fits_every_table() -> None:
    form = display.display_form(hostile_run())
    for table in [
        tables.stages(form), tables.phases(form), tables.roofline(form), tables.roofs(form),
        tables.groups(form),
        tables.edges(form), tables.calls(form), tables.operators(form), plan_tables.placement(hostile_plan()),
        plan_tables.baselines(hostile_plan()), plan_tables.devices([hostile_run().device]),
    ]:  # fmt: skip
        for row in table.rows:
            assert len(row) == len(table.columns)
            for cell in row:
                assert units.width(cell) <= 90
                assert "\n" not in cell
    assert len(HOSTILE_NAMES) == len(form["stages"])


@pytest.mark.parametrize("module", [units, display], ids=lambda module: module.__name__)
def test_the_examples_in_the_docstrings_are_true(module: ModuleType) -> None:
    import doctest

    done = doctest.testmod(module)
    assert done.attempted > 0
    assert done.failed == 0


def test_energy_and_throttling_show_where_they_are_known() -> None:
    plain = sample_run()
    assert "energy" not in text.run_text(plain, "phases")
    first, *rest = plain.phase_list
    stages = tuple(replace(stage, joules=36.2) for stage in plain.graph.stages)
    metered = replace(
        plain,
        phase_list=(
            replace(first, joules=1234.5, throttled=True),
            *(replace(p, throttled=False) for p in rest),
        ),
        graph=replace(plain.graph, stages=stages),
        display={},
    )
    lines = text.run_text(metered, "phases").splitlines()
    assert any("1.23 kJ  throttled" in line for line in lines)
    assert any("36.2 J" in line for line in text.run_text(metered, "graph").splitlines())
