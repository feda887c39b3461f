"""Stacks from inside and by py-spy: real threads, a real py-spy, and ones that fail in every way."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from capturing import Notebook
from hypothesis import given
from hypothesis import strategies as st

from gimlet_lab.capture.frames import LiveStacks, Names, Raw, served
from gimlet_lab.capture.permission import Facts, refusal
from gimlet_lab.capture.pyspy import Traced, find_program, parse
from gimlet_lab.capture.stacks import StackOptions
from gimlet_lab.model.stacks import StackRecording, Stacks

linux = pytest.mark.skipif(sys.platform != "linux", reason="py-spy's ways are Linux's")

SPIN = """
import time
def spin(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        sum(range(100))
spin({seconds})
"""


def seconds_in(stacks: StackRecording, function: str) -> float:
    """Seconds of the cell's thread in stacks with a function."""
    inside = {
        number
        for number, (parent, frame) in enumerate(stacks.nodes)
        if stacks.frames[frame].function == function
    }
    for number, (parent, _) in enumerate(stacks.nodes):
        if parent in inside:
            inside.add(number)
    cell = {number for number, thread in enumerate(stacks.threads) if thread.lane == 0}
    return sum(one.end_s - one.start_s for one in stacks.seen if one.thread in cell and one.node in inside)


def program(path: Path, body: str) -> str:
    """Something that is called as py-spy is; ``$out`` is where it should write."""
    path.write_text(
        f'#!/bin/sh\nwhile [ "$1" != --output ]; do shift; done\nout="$2"\n{body}\n', encoding="utf-8"
    )
    path.chmod(0o755)
    return str(path)


def profiled(seconds: float, **options: Any) -> Any:
    return Notebook().profile(SPIN.format(seconds=seconds), stacks=StackOptions(**options))


# --- from inside ---


def test_a_cell_is_seen_from_inside() -> None:
    recording = profiled(0.3, program=None)
    assert recording.stacks.source == "in-process"
    assert seconds_in(recording.stacks, "spin") > 0.1
    whole = Stacks(recording.stacks.frames, recording.stacks.nodes, recording.stacks.threads)
    seen = [one for one in recording.stacks.seen if whole.threads[one.thread].lane == 0]
    of_cell = [one for one in seen if whole.path(one.node)[0].function == "<module>"]
    # A look may fall just before the cell's first line, or after its last.
    assert sum(one.end_s - one.start_s for one in of_cell) > 0.2, "a stack begins at the cell"
    assert [note for note in recording.notes if "stacks" in note] == []  # too short a cell for py-spy


def test_rows_of_a_thread_do_not_overlap_and_accounts_never_fall() -> None:
    recording = profiled(0.2, program=None)
    stacks = recording.stacks
    for before, after in zip(stacks.seen, stacks.seen[1:], strict=False):
        assert before.thread < after.thread or before.end_s <= after.start_s
    for at_s, ran_s in stacks.accounts.values():
        assert list(at_s) == sorted(at_s)
        assert list(ran_s) == sorted(ran_s)


def test_a_missing_py_spy_is_one_line() -> None:
    notes = profiled(0.2, program=None, after_s=0.0).notes
    assert [note for note in notes if "pip install py-spy" in note] == list(notes)[-1:]


def test_threads_are_told_apart_and_ours_are_not_shown() -> None:
    notebook = Notebook(threading=threading)
    recording = notebook.profile(
        """
        import time
        done = threading.Event()
        def wait():
            done.wait()
        other = threading.Thread(target=wait, name="other")
        other.start()
        until = time.perf_counter() + 0.2
        while time.perf_counter() < until:
            pass
        done.set()
        other.join()
        """,
        stacks=StackOptions(program=None),
    )
    names = {recording.stacks.threads[one.thread].name for one in recording.stacks.seen}
    assert names == {threading.current_thread().name, "other"}
    lanes = {thread.name: thread.lane for thread in recording.stacks.threads}
    assert lanes[threading.current_thread().name] == 0
    assert lanes["other"] == 1


def test_live_stacks_are_read_as_the_interpreter_says() -> None:
    live = LiveStacks()

    def inner() -> tuple[int, Any]:
        frame = sys._getframe()
        return live.add(frame), (frame.f_code.co_qualname, frame.f_code.co_filename, frame.f_lineno)

    node, here = inner()
    assert tuple(live.read(node)[-1]) == (*here[:2], here[2])
    again, _ = inner()
    assert [raw.function for raw in live.read(again)] == [raw.function for raw in live.read(node)]


def test_a_stack_without_a_cell_counts_for_threads_of_the_cell_only() -> None:
    names = Names(lambda file: file == "<cell>", lambda _: None, ["/lib"])
    raw = [Raw("Thread._bootstrap", threading.__file__, 1), Raw("work", "/lib/pool/worker.py", 7)]
    assert [frame.function for frame in names.path(raw, own=True)] == ["work"]
    assert names.path(raw, own=False) == []


def test_what_runs_magics_is_not_shown() -> None:
    names = Names(lambda file: file in ("<cell>", "<timed exec>"), lambda _: None, ["/lib"])
    raw = [Raw("<module>", "<cell>", 1), Raw("run_cell_magic", "/lib/IPython/shell.py", 9),
           Raw("<module>", "<timed exec>", 2)]  # fmt: skip
    assert [frame.file for frame in names.path(raw, own=True)] == ["<cell>", "<timed exec>"]


def test_a_worker_s_stack_begins_below_what_of_ours_called_it() -> None:
    ours = str(Path(sys.modules["gimlet_lab"].__file__ or "").parent / "backends" / "worker.py")
    raw = [Raw("<module>", "<frozen runpy>", 1), Raw("serve", ours, 9), Raw("call", ours, 12)]
    inside = Raw("forward", "/lib/torch/nn.py", 3)
    assert list(served([*raw, inside])) == [inside]
    assert list(served(raw)) == []
    assert list(served([inside])) == []


# --- by py-spy ---


@linux
@pytest.mark.skipif(find_program() is None, reason="py-spy is not installed")
def test_py_spy_sees_the_cell() -> None:
    recording = profiled(1.0, after_s=0.0)
    refused = [note for note in recording.notes if "py-spy" in note]
    if refused:  # where it may not attach, the run says so and is whole all the same
        assert "SYS_PTRACE" in refused[0] or "Yama" in refused[0] or "dumpable" in refused[0]
    else:
        assert "py-spy" in recording.stacks.source
    assert seconds_in(recording.stacks, "spin") > 0.5


@linux
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("exit 3", "ended without a word"),
        ("echo 'Error: Operation not permitted'; exit 1", None),
        ("echo 'Error: no such thing'; exit 1", "it said: Error: no such thing"),
        ("echo Sampling process; exit 1", "ended before its time"),
        ("echo Sampling process; echo '[{' > $out", "not JSON"),
        ("echo Sampling process; echo '{}' > $out", "not a list"),
        ("echo Sampling process; echo '[1, 2]' > $out", "without kind"),
        ("echo Sampling process; trap '' INT; kill -9 $$", "ended before its time"),
    ],
)
def test_a_py_spy_that_fails_is_one_line_and_the_cell_is_seen_from_inside(
    tmp_path: Path, body: str, says: str | None
) -> None:
    recording = profiled(0.4, program=program(tmp_path / "py-spy", body), after_s=0.0)
    notes = [note for note in recording.notes if "py-spy" in note]
    assert len(notes) == 1, recording.notes
    assert "\n" not in "".join(notes)
    if says is not None:
        assert says in notes[0]
    assert recording.stacks.source == "in-process"
    assert seconds_in(recording.stacks, "spin") > 0.1


@linux
def test_a_py_spy_that_is_no_program_is_one_line(tmp_path: Path) -> None:
    recording = profiled(0.3, program=str(tmp_path / "nowhere"), after_s=0.0)
    assert len([note for note in recording.notes if "py-spy" in note]) == 1, recording.notes


@linux
def test_a_cell_may_wait_for_all_its_children() -> None:
    notebook = Notebook()
    notebook.profile(
        """
        import os, time
        until = time.perf_counter() + 0.3
        while time.perf_counter() < until:
            pass
        os.posix_spawn("/bin/true", ["true"], {})
        waited = []
        try:
            while True:
                waited.append(os.wait())
        except ChildProcessError:
            pass
        """,
        stacks=StackOptions(after_s=0.0),
    )
    assert notebook.error is None
    assert len(notebook["waited"]) == 1


@linux
@pytest.mark.skipif(find_program() is None, reason="py-spy is not installed")
def test_a_child_of_the_cell_leaves_its_parent_s_stacks_alone() -> None:
    recording = Notebook().profile(
        """
        import os, time
        until = time.perf_counter() + 0.6
        while time.perf_counter() < until:
            pass
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        """,
        stacks=StackOptions(after_s=0.0),
    )
    assert "py-spy" in recording.stacks.source or any("py-spy" in note for note in recording.notes)
    assert not any("lost" in note or "cannot be read" in note for note in recording.notes), recording.notes


# --- the trace ---


def trace(rows: Iterable[tuple[int, tuple[Raw, ...]]], end_us: int) -> list[dict[str, Any]]:
    """One thread's stacks by the microsecond they were first seen at, as py-spy writes them."""

    def event(kind: str, raw: Raw, ts: int) -> dict[str, Any]:
        args = {"filename": raw.file, "line": raw.line}
        return {"args": args, "cat": "py-spy", "name": raw.function, "ph": kind, "pid": 1, "tid": 7, "ts": ts}

    events: list[dict[str, Any]] = []
    before: tuple[Raw, ...] = ()
    for ts, stack in rows:
        common = 0
        while common < min(len(before), len(stack)) and before[common] == stack[common]:
            common += 1
        events += [event("E", raw, ts) for raw in reversed(before[common:])]
        events += [event("B", raw, ts) for raw in stack[common:]]
        before = stack
    return events + [event("E", raw, end_us) for raw in reversed(before)]


raws = st.builds(Raw, st.sampled_from("fgh"), st.sampled_from(["a.py", "b.py"]), st.integers(1, 3))
stacks_seen = st.lists(
    st.tuples(st.integers(1, 10_000), st.lists(raws, max_size=4).map(tuple)), min_size=1, max_size=12
)


@given(stacks_seen)
def test_a_trace_is_read_as_it_was_seen(steps: list[tuple[int, tuple[Raw, ...]]]) -> None:
    rows, now = [], 0
    for step, stack in steps:
        rows.append((now, stack))
        now += step
    wanted: list[Traced] = []
    for (start, stack), end in zip(rows, [*(at for at, _ in rows[1:]), now], strict=True):
        last = wanted[-1] if wanted else None
        if last is not None and last.frames == stack and last.end_s == pytest.approx(start * 1e-6):
            wanted[-1] = last._replace(end_s=end * 1e-6)
        elif stack:
            wanted.append(Traced(7, start * 1e-6, end * 1e-6, stack))
    found = parse(json.dumps(trace(rows, now)).encode())
    assert [one.frames for one in found] == [one.frames for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert (one.start_s, one.end_s) == pytest.approx((other.start_s, other.end_s))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["ph", "tid", "ts", "args", "name", "filename", "line"]), inner, max_size=6
        )
    ),
    max_leaves=12,
)
almost = st.fixed_dictionaries(
    {"ph": st.sampled_from(["B", "E", "M", "X"]), "tid": st.integers(0, 2), "ts": st.integers(-5, 50)},
    optional={"args": anything, "name": anything},
)


@given(
    st.binary(max_size=60) | (st.lists(almost | anything, max_size=8)).map(lambda v: json.dumps(v).encode())
)
def test_garbage_is_a_value_error_or_rows_in_order(data: bytes) -> None:
    try:
        found = parse(data)
    except ValueError:
        return
    for one in found:
        assert one.start_s < one.end_s
        assert one.frames


def test_numbered_threads_of_later_versions() -> None:
    events = trace([(0, (Raw("f", "a.py", 1),))], 10)
    named = {"ph": "M", "name": "thread_name", "tid": 7, "ts": 0, "args": {"name": "140001: MainThread"}}
    assert [one.ident for one in parse(json.dumps([named, *events]).encode())] == [140001]


# --- why not ---


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (Facts(3, may_trace=True, dumpable=True), "everybody"),
        (Facts(2, may_trace=False, dumpable=True), "SYS_PTRACE only"),
        (Facts(1, may_trace=False, dumpable=True), "parents only"),
        (Facts(None, may_trace=False, dumpable=False), "not dumpable"),
        (Facts(0, may_trace=False, dumpable=True), "--cap-add"),
        (Facts(0, may_trace=True, dumpable=True), "it said: Permission Denied"),
    ],
)
def test_the_reason_is_named(facts: Facts, says: str) -> None:
    assert says in refusal("Permission Denied: Try running again with elevated permissions", facts)
    assert refusal("", facts) == "it ended without a word"


def test_the_clock_of_a_cell_may_stand_still() -> None:
    recording = Notebook().profile("x = 1", stacks=StackOptions(program=None), clock=lambda: 5.0)
    assert recording.stacks.seen == ()


GARBAGE = """
import gc, threading
from gimlet_lab.capture.stacks import StackOptions, StackSampler
sampler = StackSampler(lambda: 0.0, lambda name: False, StackOptions())
for _ in range(300):
    gc.set_threshold(1_000_000)
    for _ in range(3):
        local = threading.local()
        local.me = [local]  # a cycle, for the collector
        del local
    gc.set_threshold(1)
    sampler.start()
print("done", gc.isenabled())
"""


def test_a_collection_while_frames_are_listed_stops_nothing() -> None:
    """CPython would wait for its own lock for ever (python/cpython#106883)."""
    done = subprocess.run([sys.executable, "-c", GARBAGE], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "done True", done.stderr
