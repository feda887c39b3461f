"""What holds for the analysis of any recording."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import Tape, device

from gimlet_lab.analysis import analyse
from gimlet_lab.model import Span

steps = st.recursive(
    st.tuples(st.sampled_from(["run", "wait", "op"]), st.floats(0.0, 0.05)),
    lambda inner: st.tuples(
        st.sampled_from(["f", "g", "h", "net", "llm", "looked"]), st.lists(inner, min_size=0, max_size=4)
    ),
    max_leaves=25,
)


def act(tape: Tape, step: tuple, seen: list[int], inside_module: bool = False) -> None:
    what, how = step
    if what == "run":
        tape.run(how)
    elif what == "wait":
        tape.wait(how)
    elif what == "op":
        tape.op(how, flops=how * 1e10, moved=how * 1e9)
    elif what in ("net", "llm", "looked") and not inside_module:
        role = "prefill" if what == "llm" and not len(seen) % 3 else "decode" if what == "llm" else "forward"
        with tape.module(what, role, q_len=1, past_len=len(seen), looked=what == "looked") as span:
            for producer in seen[-2:]:
                tape.move(producer, span, size=None if len(seen) % 2 else 8.0)
            for inner in how:
                act(tape, inner, seen, inside_module=True)
        seen.append(span)
    else:
        with tape.function(what if what in "fgh" else "f") as span:
            for producer in seen[-1:]:
                tape.move(producer, span, "argument", known="object")
            for inner in how:
                act(tape, inner, seen, inside_module)
        seen.append(span)


@settings(max_examples=80, deadline=None)
@given(st.lists(steps, max_size=6), st.booleans())
def test_any_recording_gives_a_whole(program, sampled):
    tape = Tape()
    for step in program:
        act(tape, step, [])
    recording = tape.recording(sampled=sampled)
    found = analyse(recording, device())
    cell = recording.spans[0]

    assert sum(phase.duration_s for phase in found.phases) == pytest.approx(cell.duration_s, abs=1e-9)
    assert len(found.operators) == len(found.inferred) == len(found.stage_of)
    assert sum(1 for inferred in found.inferred if not inferred) == len(recording.ops)

    names = [stage.id for stage in found.graph.stages]
    assert len(names) == len(set(names)) > 0
    assert set(found.span_stage.values()) <= set(names)
    assert {stage for stage in found.stage_of if stage} <= set(names)
    assert {phase.stage for phase in found.phases if phase.stage} <= set(names)

    forward = networkx.DiGraph([(edge.src, edge.dst) for edge in found.graph.edges if not edge.back])
    assert networkx.is_directed_acyclic_graph(forward)
    assert all({edge.src, edge.dst} <= set(names) and edge.src != edge.dst for edge in found.graph.edges)
    assert all(edge.calls >= 1 for edge in found.graph.edges)
    # One thread, nothing pure: the program's order is whole.
    for earlier, later in pairwise(names):
        assert networkx.has_path(forward, earlier, later)
    for stage in found.graph.stages:
        assert stage.calls >= 1
        assert stage.turns <= stage.calls
        assert stage.total_s >= 0
        assert stage.warmup_s >= 0


def test_spans_left_open_or_lost_by_an_interrupt_do_no_harm():
    tape = Tape()
    with tape.function("work"):
        tape.run(0.1)
    recording = tape.recording()
    lost = Span(7, "late", "function", 0.05, 10.0, parent=99)
    before = Span(8, "early", "function", -0.01, 0.02, parent=None)
    found = analyse(
        replace(recording, spans=(*recording.spans, lost, before), status="interrupted"), device()
    )
    assert sum(phase.duration_s for phase in found.phases) == pytest.approx(0.1)


def test_the_shortest_phase_may_be_asked_for():
    tape = Tape()
    for _ in range(5):
        tape.run(0.01)
        tape.wait(0.01)
    recording = tape.recording()
    assert len(analyse(recording, device(), min_phase_s=0.001).phases) == 10
    coarse = analyse(recording, device(), min_phase_s=0.05)
    assert len(coarse.phases) <= 2
    assert coarse.min_phase_s == 0.05


def test_analysis_needs_no_torch():
    heavy = ("torch", "pandas", "networkx", "ortools", "matplotlib")
    code = f"import sys, gimlet_lab.analysis; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
