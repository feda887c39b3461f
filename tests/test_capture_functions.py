"""Functions of the notebook: on any Python, without torch."""

from __future__ import annotations

import gc
import sys
import threading
import weakref

import pytest
from capturing import Notebook, edges, spans

from gimlet_lab import boundary
from gimlet_lab.capture import functions as functions_module


def test_calls_become_spans_inside_one_another() -> None:
    notebook = Notebook()
    notebook.run(
        """
        def inner(x):
            return x + 1

        def outer(x):
            return inner(x) * inner(x + 1)
        """
    )
    recording = notebook.profile("y = outer(3)")
    assert notebook["y"] == 20
    assert [(s.name, s.parent, s.target) for s in recording.spans] == [
        ("cell", None, None),
        ("outer", 0, "outer"),
        ("inner", 1, "inner"),
        ("inner", 1, "inner"),
    ]
    assert [s.kind for s in recording.spans[1:]] == ["function"] * 3
    outer = recording.spans[1]
    for inner in recording.spans[2:]:
        assert outer.start_s <= inner.start_s <= inner.end_s <= outer.end_s
    assert recording.spans[0].end_s >= outer.end_s


def test_where_a_function_is_and_who_calls_it_are_known_for_def_use() -> None:
    notebook = Notebook()
    notebook.run("def tool(x):\n    return x\n")
    recording = notebook.profile("\n\nz = tool(1)")
    definition, first = recording.functions[1]
    cell, line = recording.frames[1]
    assert (first, line) == (1, 1)
    assert recording.sources[definition].startswith("def tool")
    assert recording.sources[cell] == "z = tool(1)"


def test_code_outside_the_notebook_and_nameless_code_is_no_span() -> None:
    notebook = Notebook()
    recording = notebook.profile(
        """
        import json
        text = json.dumps([[i for i in range(3)], list(map(lambda i: i, (1, 2)))])
        class Thing:
            size = sum(i for i in range(3))
        """
    )
    assert [s.name for s in recording.spans] == ["cell"]


def test_methods_are_found_by_their_object_and_closures_by_nothing() -> None:
    notebook = Notebook()
    notebook.run(
        """
        class Agent:
            def answer(self): return make()()
        def make():
            def closure(): return 1
            return closure
        agent = Agent()
        """
    )
    recording = notebook.profile("agent.answer()")
    found = {s.name: s.target for s in recording.spans[1:]}
    assert found == {"Agent.answer": "Agent.answer", "make": "make", "make.<locals>.closure": None}
    hidden = Notebook(agents=[notebook["agent"]])
    recording = hidden.profile("agents[0].answer()")
    assert recording.spans[1].target == "agents[0].answer"


def test_decorated_functions_are_found_under_their_name() -> None:
    notebook = Notebook()
    notebook.run(
        """
        import functools
        @functools.lru_cache
        def cached(x): return x
        """
    )
    recording = notebook.profile("cached(1); cached(1)")
    assert [(s.name, s.target) for s in spans(recording, "function")] == [("cached", "cached")]


def test_declarations_are_kept() -> None:
    notebook = Notebook(stage=boundary.stage)
    notebook.run(
        """
        @stage(name="lookup", pure=True)
        def search(x): return x
        """
    )
    recording = notebook.profile("search(1)")
    assert recording.declared == {"search": {"name": "lookup", "pure": True, "idempotent": True}}


def test_recursion_ends_where_it_ends() -> None:
    notebook = Notebook()
    notebook.run("def down(n): return 0 if n == 0 else 1 + down(n - 1)")
    recording = notebook.profile("down(4)")
    assert [s.parent for s in recording.spans[1:]] == [0, 1, 2, 3, 4]
    ends = [s.end_s for s in recording.spans[1:]]
    assert ends == sorted(ends, reverse=True)


def test_an_exception_ends_every_span_it_leaves_and_says_so() -> None:
    notebook = Notebook()
    notebook.run(
        """
        def fails(): raise KeyError("x")
        def catches():
            try: fails()
            except KeyError: return 1
        def none(): return None
        """
    )
    recording = notebook.profile("catches(); none(); fails()")
    assert isinstance(notebook.error, KeyError)
    assert (recording.status, recording.error) == ("failed", "KeyError")
    errors = [(s.name, "error" in s.attributes) for s in recording.spans[1:]]
    assert errors == [("catches", False), ("fails", True), ("none", False), ("fails", True)]
    assert [s.parent for s in recording.spans[1:]] == [0, 1, 0, 0]


def test_an_interrupted_cell_says_so() -> None:
    notebook = Notebook()
    notebook.run("def stuck(): raise KeyboardInterrupt")
    recording = notebook.profile("stuck()")
    assert (recording.status, recording.error) == ("interrupted", "KeyboardInterrupt")
    assert spans(recording, name="stuck")


def test_a_generator_is_one_span_from_first_to_last() -> None:
    notebook = Notebook()
    notebook.run(
        """
        def work(i): return i
        def produce(n):
            for i in range(n): yield work(i)
        """
    )
    recording = notebook.profile("total = sum(produce(3)); g = produce(3); next(g); g.close(); work(9)")
    assert notebook["total"] == 3
    produced = spans(recording, name="produce")
    assert len(produced) == 2
    parents = [s.parent for s in spans(recording, name="work")]
    assert parents == [produced[0].id] * 3 + [produced[1].id, 0]
    assert produced[0].end_s <= produced[1].start_s


def test_coroutines_that_wait_for_one_another_keep_their_own_spans() -> None:
    notebook = Notebook()
    notebook.run(
        """
        import asyncio
        def step(name, i): return name
        async def task(name):
            for i in range(3):
                step(name, i)
                await asyncio.sleep(0)
            return name
        async def both():
            return await asyncio.gather(task("a"), task("b"))
        """
    )
    recording = notebook.profile("names = asyncio.run(both())")
    assert notebook["names"] == ["a", "b"]
    assert len(spans(recording, name="both")) == 1
    tasks = spans(recording, name="task")
    assert len(tasks) == 2
    parents = [s.parent for s in spans(recording, name="step")]
    assert sorted(parents) == sorted([tasks[0].id] * 3 + [tasks[1].id] * 3)
    assert tasks[0].start_s < tasks[1].start_s < tasks[0].end_s


def test_threads_started_by_the_cell_have_lanes_of_their_own() -> None:
    notebook = Notebook()
    notebook.run(
        """
        from concurrent.futures import ThreadPoolExecutor
        def part(x): return x * 2
        def run():
            with ThreadPoolExecutor(2) as pool:
                return sum(pool.map(part, range(6)))
        """
    )
    recording = notebook.profile("total = run()")
    assert notebook["total"] == 30
    parts = spans(recording, name="part")
    assert len(parts) == 6
    assert 0 not in {s.thread for s in parts}
    assert {s.parent for s in parts} == {0}


def test_a_helper_called_without_end_is_recorded_so_often_and_not_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(functions_module, "MAX_CALLS", 10)
    notebook = Notebook()
    notebook.run(
        """
        def helper(x): return x + 1
        def loop():
            n = 0
            for i in range(100): n = helper(n)
            return n
        def after(): return 1
        """
    )
    recording = notebook.profile("n = loop(); after()")
    assert notebook["n"] == 100
    assert len(spans(recording, name="helper")) == 10
    assert len(spans(recording, name="after")) == 1
    assert any("helper: only the first 10" in note for note in recording.notes)


@pytest.mark.skipif(hasattr(sys, "monitoring"), reason="sys.monitoring is not switched off anywhere")
def test_listening_stops_inside_a_function_busy_with_small_calls_and_goes_on_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gimlet_lab.capture import profile

    monkeypatch.setattr(profile, "DEAF_AFTER_S", 0.0)
    monkeypatch.setattr(profile, "DEAF_SHARE", 0.0)
    monkeypatch.setattr(profile, "CHECK_EVERY", 64)
    notebook = Notebook()
    notebook.run(
        """
        import sys
        listens = []
        def busy():
            for i in range(1000): abs(i)
            listens.append(sys.getprofile())
            return f"the result of being busy {len(listens)}"
        def after(x, y=None): return len(x)
        def assigns():
            text = "a text of its own " * 2
            result = busy()
            return after(result) + after(text)
        def hands_on(): return after(busy(), "a constant that nobody made")
        def returns(): return busy()
        """
    )
    recording = notebook.profile("assigns(); hands_on(); after(returns()); found = busy(); after(found)")
    assert notebook.error is None
    assert notebook["listens"] == [None] * 4
    names = [(s.name, s.parent) for s in recording.spans[1:]]
    assert names == [
        ("assigns", 0), ("busy", 1), ("after", 1), ("after", 1), ("hands_on", 0), ("busy", 5), ("after", 5),
        ("returns", 0), ("busy", 8), ("after", 0), ("busy", 0), ("after", 0),
    ]  # fmt: skip
    assert {(t.producer, t.consumer, t.name) for t in recording.transfers} == {
        (2, 3, "x"), (6, 7, "x"), (9, 10, "x"), (11, 12, "x"),
    }  # fmt: skip
    busy, after = recording.spans[2:4]
    assert busy.end_s <= after.start_s
    assert any("busy" in note for note in recording.notes)


@pytest.mark.skipif(hasattr(sys, "monitoring"), reason="sys.monitoring has room for both")
def test_a_profiler_of_the_users_is_left_alone() -> None:
    notebook = Notebook()
    notebook.run("def f(): return 1")
    heard: list[str] = []

    def theirs(frame: object, event: str, arg: object) -> None:
        heard.append(event)

    sys.setprofile(theirs)
    try:
        recording = notebook.profile("f()")
        kept = sys.getprofile()
    finally:
        sys.setprofile(None)
    assert kept is theirs
    assert "call" in heard
    assert [s.name for s in recording.spans] == ["cell"]
    assert any("another profiler" in note for note in recording.notes)


@pytest.mark.skipif(hasattr(sys, "monitoring"), reason="sys.monitoring has room for both")
def test_a_profiler_that_the_cell_sets_stays_and_is_noted() -> None:
    notebook = Notebook()
    notebook.run("def f(): return 1")
    try:
        recording = notebook.profile("import sys\ndef p(*a): pass\nf()\nsys.setprofile(p)\nf()")
        assert sys.getprofile() is notebook["p"]
    finally:
        sys.setprofile(None)
    assert len(spans(recording, name="f")) == 1
    assert any("profiler of its own" in note for note in recording.notes)


def test_a_debugger_stays() -> None:
    notebook = Notebook()
    notebook.run("def f(): return 1")
    before = sys.gettrace()

    def trace(frame: object, event: str, arg: object) -> None:
        return None

    sys.settrace(trace)
    try:
        recording = notebook.profile("f()")
        kept = sys.gettrace()
    finally:
        sys.settrace(before)
    assert kept is trace
    assert spans(recording, name="f")


def test_a_redirected_function_says_where_it_ran_and_its_fallback_is_no_second_call() -> None:
    notebook = Notebook()
    notebook.run(
        """
        def original(x): return x + 1
        def f(x): return original(x)
        """
    )

    class Placed(dict):  # type: ignore[type-arg]
        original = notebook["original"]

    route = {"device": "cpu/1", "bound": "compute", "stage": "tool"}
    notebook["f"].__gimlet_placed__ = Placed({"*": route})
    recording = notebook.profile("f(1)")
    assert [s.name for s in recording.spans] == ["cell", "f"]
    assert {key: recording.spans[1].attributes[key] for key in route} == route


# -- data ------------------------------------------------------------


def test_objects_go_from_who_returned_them_to_who_is_given_them() -> None:
    notebook = Notebook()
    notebook.run(
        """
        from dataclasses import dataclass
        @dataclass
        class Hit:
            score: float
        def search(): return [Hit(1.0), Hit(2.0)]
        def best(hits): return hits[0]
        def show(hit): return "a text that is long enough"
        def shout(text, times=1): return text.upper()
        def small(): return 7
        def takes(n): return n
        """
    )
    recording = notebook.profile("shout(show(best(search()))); takes(small()); takes(True); takes('short')")
    assert edges(recording) == {("search", "best"), ("search", "show"), ("show", "shout")}
    by_name = {recording.spans[t.consumer].name: t for t in recording.transfers}
    assert (by_name["shout"].name, by_name["shout"].bytes, by_name["shout"].known) == ("text", 26.0, "object")
    assert sum(t.bytes or 0 for t in recording.transfers if t.name == "hits") == 16.0
    assert {t.kind for t in recording.transfers} == {"object"}


def test_numpy_arrays_are_known_by_their_memory() -> None:
    numpy = pytest.importorskip("numpy")
    notebook = Notebook(np=numpy)
    notebook.run(
        """
        def embed(): return np.ones((4, 8), dtype=np.float32)
        def search(vector): return vector.sum()
        """
    )
    recording = notebook.profile("v = embed(); search(v[1:3].reshape(-1)); search(v.copy())")
    assert [(t.known, t.kind, t.bytes) for t in recording.transfers] == [("tensor", "activation", 64.0)]


def test_arrow_columns_slices_and_batches_are_of_the_table_whose_memory_they_are() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    notebook = Notebook(pa=pyarrow)
    notebook.run(
        """
        def load(): return pa.table({"text": ["aa", "b", "c"], "score": [1.0, 2.0, 3.0]})
        def pick(table): return table["score"]
        def total(column): return sum(column.to_pylist())
        def array(values): return values.sum()
        """
    )
    recording = notebook.profile(
        """
        t = load()
        total(pick(t))
        total(t.slice(1)["score"])
        for batch in t.to_batches(): total(batch.column("text").slice(0, 0))
        array(t["score"].chunk(0).to_numpy())
        total(pa.chunked_array([[1.0, 2.0]]))
        again = load()
        del again
        total(pa.chunked_array([[1.0, 2.0, 3.0]]))
        """
    )
    assert edges(recording) == {("load", "pick"), ("load", "total"), ("load", "array")}
    by_reader = [(recording.spans[t.consumer].name, t.known, t.bytes) for t in recording.transfers]
    assert ("total", "object", 24.0) in by_reader  # a column of the table
    assert ("total", "object", 16.0) in by_reader  # its last two rows
    assert ("array", "object", 24.0) in by_reader
    assert ("pick", "object", 24.0 + 4 + 12) in by_reader  # the table: numbers, letters, where texts begin


def test_who_changed_a_list_is_its_maker() -> None:
    notebook = Notebook()
    notebook.run(
        """
        def start(): return ["you are a helpful agent"]
        def ask(messages): messages.append("and what is the question?")
        def answer(messages): return len(messages)
        """
    )
    recording = notebook.profile("m = start(); ask(m); answer(m)")
    assert edges(recording) == {("start", "ask"), ("ask", "answer")}


def test_what_a_wrapper_hands_on_is_read_by_the_innermost_and_made_by_the_first() -> None:
    notebook = Notebook()
    notebook.run(
        """
        def make(): return ["something that is data"]
        def wrap(): return make()
        def use(x): return inner(x)
        def inner(x): return 1
        """
    )
    recording = notebook.profile("use(wrap())")
    assert edges(recording) == {("make", "inner")}


def test_recycled_identities_make_no_edge() -> None:
    notebook = Notebook()
    notebook.run(
        """
        class Box:
            def __init__(self, n): self.n = n
        def make(n): return Box(n)
        def take(box): return box.n
        """
    )
    recording = notebook.profile("for i in range(200):\n    make(i)\n    take(Box(i))")
    assert len(spans(recording, name="take")) == 200
    assert ("make", "take") not in edges(recording)


def test_nothing_of_the_users_is_kept_alive() -> None:
    notebook = Notebook()
    notebook.run(
        """
        import weakref
        class Big: pass
        def make(): return Big()
        def use(x): return [x]
        """
    )
    recording = notebook.profile(
        "a = make(); b = use(a); r = weakref.ref(a); del a, b; alive = r() is not None"
    )
    assert notebook["alive"] is False
    assert edges(recording) == {("make", "use")}


def test_plain_data_is_held_only_while_the_cell_runs() -> None:
    class Marked(str):
        pass

    notebook = Notebook(Marked=Marked)
    notebook.run("def make(): return Marked('a text that is long enough')")
    recording = notebook.profile("t = make(); ")
    reference = weakref.ref(notebook.namespace.pop("t"))
    gc.collect()
    assert reference() is None
    assert spans(recording, name="make")


def test_after_it_nothing_listens() -> None:
    notebook = Notebook()
    notebook.run("def f(): return 1")
    notebook.profile("f()")
    assert sys.getprofile() is None
    assert threading.getprofile() is None
    if hasattr(sys, "monitoring"):
        assert all(sys.monitoring.get_tool(i) != "gimlet_lab" for i in range(6))
    assert not [t for t in threading.enumerate() if t.name.startswith("gimlet")]
