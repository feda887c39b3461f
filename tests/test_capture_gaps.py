"""A library's loop around module calls: what lies between them is looked at a few times and inferred else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from capturing import Notebook, spans

from gimlet_lab.model import Recording

torch: Any = pytest.importorskip("torch")

LIBRARY = """
def loop(model, x, turns, call=None):
    for turn in range(turns):
        x = model(x)
        x = (x * 2).sin() + turn
        if call is not None:
            call(x)
        if turn == 90:
            raise StopIteration
    return x

def stream(model, x, turns):
    for _ in range(turns):
        x = model(x)
        yield x + 1
"""


@pytest.fixture
def notebook() -> Notebook:
    names: dict[str, Any] = {}
    exec(compile(LIBRARY, "library.py", "exec"), names)
    return Notebook(
        torch=torch,
        model=torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).eval(),
        x=torch.ones(2, 4),
        loop=names["loop"],
        stream=names["stream"],
    )


def total(recording: Recording) -> Counter[str]:
    """Calls of operators outside modules, seen and inferred."""
    modules = {span.id for span in spans(recording, "module")}
    counts: Counter[str] = Counter()
    for op in (*recording.ops, *recording.inferred):
        if op.span not in modules:
            counts[op.op] += op.count
    return counts


def flops(recording: Recording) -> float:
    modules = {span.id for span in spans(recording, "module")}
    return sum(op.flops or 0.0 for op in (*recording.ops, *recording.inferred) if op.span not in modules)


def test_what_was_not_looked_at_is_inferred_from_what_was(notebook: Notebook) -> None:
    cell = "with torch.inference_mode(): y = loop(model, x, 50)"
    sampled = notebook.profile(cell)
    assert notebook.error is None
    exact = notebook.profile(cell, exact=True)
    assert exact.inferred == ()
    assert total(sampled) == total(exact)
    assert flops(sampled) == flops(exact) > 0
    assert sum(op.count for op in sampled.ops if op.op == "aten::sin") < 12


def test_the_notebooks_own_code_is_never_left_alone(notebook: Notebook) -> None:
    notebook.run(
        "def after(y): return y.cos()\ndef own(x):\n    for _ in range(40): x = model(x).cos()\n    return x"
    )
    recording = notebook.profile("y = loop(model, x, 50); z = after(y).tan(); w = own(x)")
    assert total(recording)["aten::cos"] == 41
    assert total(recording)["aten::tan"] == 1
    assert sum(op.count for op in recording.ops if op.op in ("aten::cos", "aten::tan")) == 42
    assert [span.name for span in spans(recording, "function")] == ["after", "own"]


def test_a_callback_of_the_notebooks_is_heard_every_time(notebook: Notebook) -> None:
    notebook.run("def heard(x): return x.cos()")
    recording = notebook.profile("y = loop(model, x, 50, heard)")
    assert len(spans(recording, "function", "heard")) == 50
    assert total(recording)["aten::cos"] == 50


def test_a_loop_that_raises_ends(notebook: Notebook) -> None:
    recording = notebook.profile(
        """
        try: loop(model, x, 100)
        except StopIteration: pass
        z = x.tan()
        """
    )
    assert notebook.error is None
    assert total(recording)["aten::tan"] == 1
    assert total(recording)["aten::sin"] == 91


def test_a_generator_of_a_librarys_gives_the_turn_to_the_notebook(notebook: Notebook) -> None:
    recording = notebook.profile("for y in stream(model, x, 40): z = y.cos()")
    assert sum(op.count for op in recording.ops if op.op == "aten::cos") == 40


def test_nothing_of_the_loops_lives_longer(notebook: Notebook) -> None:
    names: dict[str, Any] = {}
    source = """
def loop(model, x, turns):
    big = Big()
    alive.append(weakref.ref(big))
    for _ in range(turns):
        x = model(x) + 1
        big = None
        alive.append(alive[0]() is not None)
    return x
"""
    import weakref

    class Big:
        pass

    names.update(Big=Big, weakref=weakref, alive=[])
    exec(compile(source, "library.py", "exec"), names)
    notebook.namespace["loop"] = names["loop"]
    notebook.profile("y = loop(model, x, 20)")
    assert notebook.error is None
    assert names["alive"][1:] == [False] * 20


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
