"""Sampled stacks placed, stored, shown and exported: pure, on stacks that we make up."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import sample_run

from gimlet_lab import export
from gimlet_lab.analysis.stacks import place
from gimlet_lab.errors import GimletError, RunFileError
from gimlet_lab.export.stacks import folded, speedscope
from gimlet_lab.model import Phase, Run, Span, store
from gimlet_lab.model.stacks import Frame, Seen, StackRecording, Stacks, StackSample, StackThread, Tree
from gimlet_lab.render.bundle import run_bundle
from gimlet_lab.render.display import display_form

CELL = Frame("<module>", "In[5]", 7, cell=True)
SEARCH = Frame("search", "In[2]", 4, cell=True)
ENCODE = Frame("encode", "tokenizers/api.py", 90)
WAIT = Frame("Event.wait", "threading.py", 629)
FRAMES = (CELL, SEARCH, ENCODE, WAIT)
#: cell; cell › search; cell › search › encode; cell › wait
NODES = ((-1, 0), (0, 1), (1, 2), (0, 3))
THREADS = (
    StackThread("MainThread", 0),
    StackThread("helper", 1),
    StackThread("worker of cpu/1", None, "cpu/1"),
)


def recording(*seen: Seen, **more: Any) -> StackRecording:
    return StackRecording(FRAMES, NODES, THREADS, seen, **{"rate_hz": 100.0, "source": "py-spy", **more})


SPANS = (
    Span(0, "cell", "cell", 0.0, 1.0),
    Span(1, "search", "function", 0.2, 0.4, 0),
    Span(2, "inner", "function", 0.3, 0.1, 1),
    Span(3, "other", "function", 0.0, 0.5, 0, thread=1),
)
STAGES = {1: "search", 2: "inner", 3: "other"}
PHASES = (
    Phase(0.0, 0.5, "overhead", "search", None, None, None),
    Phase(0.5, 0.5, "wait", "late", None, None, None),
)


def placed(*seen: Seen, **more: Any) -> Stacks:
    return place(recording(*seen, **more), 1.0, SPANS, STAGES, PHASES)


def total(stacks: Stacks, **which: Any) -> float:
    rows = [one for one in stacks.samples if all(getattr(one, k) == v for k, v in which.items())]
    return sum(one.duration_s for one in rows)


def test_time_goes_to_the_innermost_stage_and_to_its_phase() -> None:
    stacks = placed(Seen(0, 0.0, 1.0, 2))
    assert total(stacks) == pytest.approx(1.0)
    assert total(stacks, stage="inner") == pytest.approx(0.1)
    # Where no span of a stage is, the phase says which it is.
    assert total(stacks, stage="search") == pytest.approx(0.5 - 0.1 + 0.1)
    assert total(stacks, stage="late") == pytest.approx(0.4)
    assert total(stacks, phase=0) == pytest.approx(0.5)


def test_a_thread_is_where_its_own_spans_are_and_a_worker_where_the_cell_is() -> None:
    stacks = placed(Seen(1, 0.0, 1.0, 1), Seen(2, 0.0, 1.0, 2))
    assert total(stacks, thread=1, stage="other") == pytest.approx(0.5)
    assert total(stacks, thread=1, stage=None) == pytest.approx(0.5)
    assert total(stacks, thread=2, stage="late") == pytest.approx(0.5)


def test_what_was_seen_after_the_cell_is_not_the_cell_s() -> None:
    assert total(placed(Seen(0, -0.3, 0.25, 0), Seen(0, 0.9, 3.0, 0))) == pytest.approx(0.35)
    assert placed(Seen(0, 1.5, 2.0, 0)).samples == ()


def test_running_and_idle_come_from_the_account() -> None:
    accounts = {0: ([0.0, 0.5, 1.0], [0.0, 0.5, 0.5])}
    stacks = placed(Seen(0, 0.0, 0.5, 2), Seen(0, 0.5, 1.0, 3), Seen(2, 0.0, 1.0, 1), accounts=accounts)
    by_node = {
        node: [one for one in stacks.samples if (one.thread, one.node) == (0, node)] for node in (2, 3)
    }
    assert {one.state for one in by_node[2]} == {"running"}
    assert {one.state for one in by_node[3]} == {"idle"}
    assert sum(one.idle_s or 0.0 for one in by_node[3]) == pytest.approx(0.5)
    unknown = [one for one in stacks.samples if one.thread == 2]
    assert {(one.running_s, one.idle_s, one.state) for one in unknown} == {(None, None, None)}


rows = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.3), st.integers(0, 3)), max_size=6)


@given(rows, st.sampled_from([1.0, 30.0, 100.0]))
def test_no_time_is_lost_or_made(steps: list[tuple[float, float, int]], rate_hz: float) -> None:
    seen, now = [], 0.0
    for gap, length, node in steps:
        seen.append(Seen(0, now + gap, now + gap + length, node))
        now += gap + length
    inside = sum(max(0.0, min(1.0, one.end_s) - min(1.0, one.start_s)) for one in seen)
    stacks = placed(*seen, rate_hz=rate_hz)
    assert total(stacks) == pytest.approx(inside)
    ends = [(one.start_s, one.start_s + one.duration_s) for one in stacks.samples]
    assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(ends))


# --- the tree and the file ---


frames = st.builds(
    Frame,
    st.sampled_from("fg;\n<"),
    st.sampled_from(["In[1]", "a b/c.py"]),
    st.none() | st.integers(1, 9),
    st.booleans(),
)


@st.composite
def stacks_of(draw: st.DrawFn) -> Stacks:
    tree = Tree()
    nodes = [tree.add(path) for path in draw(st.lists(st.lists(frames, min_size=1, max_size=4), min_size=1))]
    samples, now = [], 0.0
    for node in nodes:
        length = draw(st.floats(1e-3, 1.0))
        running = draw(st.none() | st.just(length))
        samples.append(StackSample(now, length, running, 0, node, draw(st.sampled_from([None, "s;t"]))))
        now += length + draw(st.sampled_from([0.0, 0.5]))
    return Stacks(tuple(tree.frames), tuple(tree.nodes), THREADS[:1], tuple(samples), 100.0, "py-spy")


@settings(max_examples=30)
@given(stacks_of())
def test_a_run_with_stacks_is_read_as_it_was_written(stacks: Stacks) -> None:
    run = replace(sample_run(), sampled=stacks)
    assert store._decode(store._encode(run), "here") == run


def test_a_file_of_an_earlier_version_holds_no_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sample_run().save(tmp_path / "old")
    monkeypatch.setattr(store, "LATER_MEMBERS", ())
    assert Run.load(path).sampled == Stacks()


@pytest.mark.parametrize(
    "wrong",
    [
        Stacks((CELL,), ((-1, 3),), THREADS),
        Stacks((CELL,), ((5, 0),), THREADS),
        Stacks((CELL,), ((-1, 0),), THREADS, (StackSample(0.0, 1.0, None, 0, 4),)),
        Stacks((CELL,), ((-1, 0),), (), (StackSample(0.0, 1.0, None, 0, 0),)),
    ],
)
def test_a_file_whose_stacks_point_nowhere_is_refused(tmp_path: Path, wrong: Stacks) -> None:
    path = replace(sample_run(), sampled=wrong).save(tmp_path / "wrong")
    with pytest.raises(RunFileError, match="not a whole run"):
        Run.load(path)


# --- exports ---


@settings(max_examples=30)
@given(stacks_of())
def test_folded_lines_can_be_read_and_hold_all_the_time(stacks: Stacks) -> None:
    lines = folded(stacks).splitlines()
    found = [re.fullmatch(r"(.+) (\d+)", line) for line in lines]
    assert all(found)
    micros = sum(int(match[2]) for match in found if match)
    assert micros == pytest.approx(1e6 * total(stacks), abs=len(stacks.samples))
    deepest = max(len(stacks.path(one.node)) for one in stacks.samples)
    # A thread, a stage, and the frames: a semicolon in a name parts nothing.
    assert max(match[1].count(";") for match in found if match) <= deepest + 1


@settings(max_examples=30)
@given(stacks_of())
def test_speedscope_has_a_profile_a_thread_whose_weights_fill_it(stacks: Stacks) -> None:
    data = json.loads(json.dumps(speedscope(stacks, "run")))
    frames = data["shared"]["frames"]
    assert all(set(frame) <= {"name", "file", "line"} and frame["name"] for frame in frames)
    for profile in data["profiles"]:
        assert profile["type"] == "sampled"
        assert len(profile["samples"]) == len(profile["weights"])
        assert all(0 <= number < len(frames) for sample in profile["samples"] for number in sample)
        assert sum(profile["weights"]) == pytest.approx(profile["endValue"] - profile["startValue"])


def test_a_run_without_stacks_says_so(tmp_path: Path) -> None:
    run = replace(sample_run(), sampled=Stacks())
    for target in ("folded", "speedscope-stacks"):
        with pytest.raises(GimletError, match="holds no stacks"):
            export.export(run, target, tmp_path / "out")
    assert "No stacks were sampled" in run_bundle(run, "stacks")["text/plain"]


# --- what is shown ---


def shown(**more: Any) -> Run:
    stacks = placed(
        Seen(0, 0.0, 0.1, 1), Seen(0, 0.1, 0.5, 2), Seen(0, 0.5, 1.0, 3), Seen(1, 0.0, 1.0, 3),
        accounts={0: ([0.0, 0.5, 1.0], [0.0, 0.5, 0.5])},
    )  # fmt: skip
    run = replace(sample_run(), duration_s=1.0, overhead_s=0.0, phase_list=PHASES, sampled=stacks, **more)
    return replace(run, display=display_form(run))


def test_an_overhead_phase_says_which_line_it_is() -> None:
    run = shown()
    line = next(line for line in run.display["summary"] if "held back by Python" in line)
    assert "line 4 of In[2], in search" in line
    assert "most of it in encode (tokenizers/api.py:90)" in line
    assert [row["line"] for row in run.display["phases"]["rows"]] == [
        "line 4 of In[2], in search",
        "line 7 of the cell",
    ]
    assert "line 7 of the cell" in run_bundle(run, "phases")["text/plain"]


def test_source_is_shown_only_where_the_run_keeps_it() -> None:
    text = "\n".join(f"line_{number}()" for number in range(1, 9))
    stacks = placed(Seen(0, 0.0, 0.5, 0))
    run = replace(sample_run(), duration_s=1.0, phase_list=PHASES, sampled=stacks)
    assert not any("line_7()" in line for line in display_form(run)["summary"])
    assert any("`line_7()`" in line for line in display_form(replace(run, text=text))["summary"])


def test_the_view_has_a_picture_a_page_and_a_tree() -> None:
    bundle = run_bundle(shown(), "stacks")
    assert bundle["image/png"].startswith(b"\x89PNG")
    for part in ("<svg", "line 4 of In[2], in search", "encode (tokenizers/api.py:90)"):
        assert part in bundle["text/html"]
    assert "<script" not in bundle["text/html"]
    tree = bundle["text/plain"]
    assert re.search(r"40% +400 ms +late · wait · idle\n +40% +400 ms +cell \(In\[5\]:7\)", tree), tree


def test_frames_cannot_write_into_the_page() -> None:
    evil = Frame("<script>alert(1)</script>", 'a"><b.py', 3)
    stacks = Stacks((evil,), ((-1, 0),), THREADS[:1], (StackSample(0.0, 1.0, None, 0, 0),), 100.0, "py-spy")
    run = replace(sample_run(), sampled=stacks)
    page = run_bundle(replace(run, display=display_form(run)), "stacks")["text/html"]
    assert "<script" not in page
    assert "<b.py" not in page


def test_the_frame_is_a_table_of_plain_columns() -> None:
    table = shown().stacks
    assert {"time_s", "thread", "stage", "phase", "function", "file", "line", "state"} <= set(table.columns)
    assert table.duration_s.sum() == pytest.approx(2.0)
    first = table[table.thread == "MainThread"].iloc[0]
    assert (first.function, first.cell_line, first.bound) == ("search", 4, "overhead")
    assert replace(sample_run(), sampled=Stacks()).stacks.empty
