"""Exports of runs: read back by the rules of the programs they are for."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
from recordings import Tape, device
from samples import empty_run, hostile_run, sample_run

import gimlet_lab as gimlet
from gimlet_lab import commands
from gimlet_lab.errors import GimletError
from gimlet_lab.export import tracks
from gimlet_lab.model import Op, Run, Span
from gimlet_lab.notebook import Notebook

RUNS = {"sample": sample_run, "hostile": hostile_run, "empty": empty_run}


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> Run:
    return RUNS[request.param]()


def load(path: Path) -> Any:
    """Strict JSON: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return json.loads(text, parse_constant=refuse)


def check_trace(trace: Any) -> None:
    """The rules of the trace event format (Google's "Trace Event Format", 2016) that viewers insist on."""
    assert set(trace) <= {"traceEvents", "displayTimeUnit", "otherData", "stackFrames", "samples", "metadata"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    needed = {
        "X": {"name", "cat", "pid", "tid", "ts", "dur"},
        "M": {"name", "pid", "args"},
        "C": {"name", "pid", "ts", "args"},
        "s": {"name", "cat", "pid", "tid", "ts", "id"},
        "f": {"name", "cat", "pid", "tid", "ts", "id"},
    }
    slices: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in trace["traceEvents"]:
        assert needed[event["ph"]] <= set(event), event
        assert isinstance(event["name"], str)
        assert event["name"]
        for key in ("pid", "tid"):
            assert isinstance(event.get(key, 0), int)
        for key in ("ts", "dur"):
            assert math.isfinite(event.get(key, 0.0))
        assert event.get("dur", 0.0) >= 0
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "process_sort_index", "thread_name", "thread_sort_index")
        if event["ph"] == "C":
            assert all(isinstance(value, float) for value in event["args"].values())
        if event["ph"] == "X":
            slices.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["dur"]))
    for found in slices.values():
        stack: list[float] = []
        for ts, dur in sorted(found, key=lambda entry: (entry[0], -entry[1])):
            while stack and stack[-1] <= ts + 1e-3:
                stack.pop()
            assert not stack or ts + dur <= stack[-1] + 1e-3, "slices of one track cross"
            stack.append(ts + dur)
    flows: dict[int, list[Any]] = {}
    for event in trace["traceEvents"]:
        if event["ph"] in "sf":
            flows.setdefault(event["id"], []).append(event)
            own = slices[event["pid"], event["tid"]]
            assert any(ts <= event["ts"] <= ts + dur + 1e-3 for ts, dur in own), "a flow hangs in the air"
    for pair in flows.values():
        assert [event["ph"] for event in pair] == ["s", "f"]
        assert pair[0]["name"] == pair[1]["name"]
        assert pair[0]["ts"] <= pair[1]["ts"] + 1e-3
        assert pair[1]["bp"] == "e"


def check_speedscope(profile: Any) -> None:
    """The rules of speedscope's file format schema, and of its importer."""
    assert profile["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert set(profile) <= {"$schema", "shared", "profiles", "name", "activeProfileIndex", "exporter"}
    frames = profile["shared"]["frames"]
    assert set(profile["shared"]) == {"frames"}
    for frame in frames:
        assert set(frame) <= {"name", "file", "line", "col"}
        assert isinstance(frame["name"], str)
    assert not profile["profiles"] or 0 <= profile["activeProfileIndex"] < len(profile["profiles"])
    for track in profile["profiles"]:
        assert set(track) == {"type", "name", "unit", "startValue", "endValue", "events"}
        assert track["type"] == "evented"
        assert track["unit"] in ("none", "nanoseconds", "microseconds", "milliseconds", "seconds", "bytes")
        stack: list[int] = []
        last = track["startValue"]
        for event in track["events"]:
            assert set(event) == {"type", "frame", "at"}
            assert last <= event["at"] <= track["endValue"], "events must be ordered"
            last = event["at"]
            assert 0 <= event["frame"] < len(frames)
            if event["type"] == "O":
                stack.append(event["frame"])
            else:
                assert event["type"] == "C"
                assert stack.pop() == event["frame"], "frames must close as they nest"
        assert stack == []


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_perfetto_trace_keeps_the_rules(run: Run, tmp_path: Path, name: str) -> None:
    trace = load(gimlet.export(run, "perfetto", tmp_path / name))
    check_trace(trace)
    assert trace["otherData"]["run"] == run.name


def test_a_perfetto_trace_shows_all_that_a_run_knows(tmp_path: Path) -> None:
    run = sample_run()
    events = load(gimlet.export(run, "perfetto", tmp_path / "t.json"))["traceEvents"]
    by_category: dict[str, list[Any]] = {}
    for event in events:
        by_category.setdefault(event.get("cat", event["ph"]), []).append(event)
    called = [stage.id for stage in run.graph.stages if stage.id in run.span_stage.values()]
    assert {event["name"] for event in by_category["stage"]} == set(called)
    phases = by_category["phase"]
    assert [event["name"] for event in phases] == [phase.bound for phase in run.phase_list]
    assert sum(event["dur"] for event in phases) == pytest.approx(
        1e6 * sum(phase.duration_s for phase in run.phase_list)
    )
    known = next(i for i, phase in enumerate(run.phase_list) if phase.flops is not None)
    assert phases[known]["args"]["flops"] == run.phase_list[known].flops
    unknown = next(i for i, phase in enumerate(run.phase_list) if phase.flops is None)
    assert "flops" not in phases[unknown]["args"], "unknown is not a number"
    assert {event["name"] for event in events if event["ph"] == "C"} == {"FLOP/s", "bytes/s"}
    assert any(event["ph"] == "s" and "tensor" in event["cat"] for event in events)


def test_a_speedscope_profile_keeps_the_rules(run: Run, tmp_path: Path) -> None:
    check_speedscope(load(gimlet.export(run, "speedscope", tmp_path / "p.json")))


def acted_out() -> Run:
    """Two threads, coroutines that cross, operators inside a call, rows of several calls."""
    tape = Tape()
    with tape.function("agent"):
        tape.run(0.1)
        with tape.module("llm", "prefill", looked=True) as number:
            tape.op(0.2, flops=1e9)
            tape.op(0.3, name="aten::add", count=3)
        tape.run(0.1)
    spans = [
        *tape.recording().spans,
        Span(10, "ask a", "function", 0.10, 0.20, 0, thread=1),
        Span(11, "ask b", "function", 0.15, 0.30, 0, thread=1),
        Span(12, "inside b", "function", 0.20, 0.25, 11, thread=1),
    ]
    guessed = Op("aten::mm", number, "", None, 0.1, 9.0, 1.0, 1.0, 1.0, "float32", "cpu", count=7)
    return replace(
        empty_run(),
        name="acted out",
        duration_s=0.7,
        device=device(),
        operators=(*tape.ops, guessed),
        inferred=(False, False, True),
        stage_of=("llm",) * 3,
        span_list=tuple(spans),
        span_stage={number: "llm"},
    )


def test_tracks_nest_and_crossing_spans_get_their_own(tmp_path: Path) -> None:
    run = acted_out()
    found = tracks.tracks(run)
    assert [(track.thread, track.number, [s.name for s in track.slices]) for track in found] == [
        (0, 0, ["cell"]),
        (1, 0, ["ask a"]),
        (1, 1, ["ask b"]),
    ]
    agent = found[0].slices[0].inside[0]
    assert [s.name for s in agent.inside[0].inside] == ["aten::mm", "aten::add"]
    assert [(s.start_s, s.end_s) for s in agent.inside[0].inside] == [
        (pytest.approx(0.1), pytest.approx(0.3)),
        (pytest.approx(0.3), pytest.approx(0.6)),
    ]
    assert [s.name for s in found[2].slices[0].inside] == ["inside b"]
    check_speedscope(load(gimlet.export(run, "speedscope", tmp_path / "p.json")))
    trace = load(gimlet.export(run, "perfetto", tmp_path / "p.json"))
    check_trace(trace)
    assert trace["otherData"]["inferred"].startswith("1 rows of operators, 9 s in all")
    operators = [event for event in trace["traceEvents"] if event.get("cat") == "operator"]
    assert [(event["name"], event["args"]["count"]) for event in operators] == [
        ("aten::mm", 1),
        ("aten::add", 3),
    ]


@pytest.mark.parametrize("target", ["csv", "parquet"])
def test_tables_are_read_back(run: Run, tmp_path: Path, target: str) -> None:
    folder = gimlet.export(run, target, tmp_path / "tables")
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{name}.{target}" for name in ("edges", "ops", "phases", "spans")
    ]
    read = {"csv": pandas.read_csv, "parquet": pandas.read_parquet}[target]
    for name, rows in (
        ("ops", len(run.operators)),
        ("phases", len(run.phase_list)),
        ("spans", len(run.span_list)),
        ("edges", len(run.graph.edges)),
    ):
        path = folder / f"{name}.{target}"
        if target == "csv" and not path.read_text().strip():
            assert rows == 0
            continue
        frame = read(path)  # type: ignore[operator]
        assert len(frame) == rows


def test_unknown_is_empty_in_tables(tmp_path: Path) -> None:
    run = sample_run()
    for target, read in (("csv", pandas.read_csv), ("parquet", pandas.read_parquet)):
        folder = gimlet.export(run, target, tmp_path / target)
        phases = read(folder / f"phases.{target}")
        assert list(phases["flops"].isna()) == [phase.flops is None for phase in run.phase_list]
    again = gimlet.export(run, "csv", tmp_path / "csv")
    assert again == tmp_path / "csv", "written again in the same place"


def test_parquet_without_pyarrow_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pyarrow" else find(name, *a)
    )
    with pytest.raises(GimletError, match=r"needs pyarrow, .* pip install 'gimlet-lab\[parquet\]'"):
        gimlet.export(sample_run(), "parquet", tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["perfetto", "speedscope", "csv", "parquet"])
def test_places_that_cannot_be_written_are_one_line(tmp_path: Path, target: str) -> None:
    taken = tmp_path / "taken"
    taken.write_text("x")
    with pytest.raises(GimletError, match="cannot write") as caught:
        gimlet.export(sample_run(), target, taken / "x" if target in ("perfetto", "speedscope") else taken)
    assert "\n" not in str(caught.value)
    assert taken.read_text() == "x"


@pytest.mark.parametrize("target", ["perfetto", "speedscope", "csv", "parquet"])
def test_the_command_writes_a_run(tmp_path: Path, target: str) -> None:
    notebook = Notebook({})
    notebook.add_run(sample_run())
    answer, _ = commands.run_line(["export", target, str(tmp_path / "out"), "--run", "agent"], notebook)
    assert answer.text() == f"wrote {tmp_path / 'out'}"
    assert (tmp_path / "out").exists()
