"""Stacks of cells in a real kernel, and of the workers of a plan in force."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import pytest
from kernel import Kernel


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    started = Kernel()
    setup = started.run(
        "%load_ext gimlet_lab\n"
        "%gimlet config stacks=on\n"
        "import time\n"
        "from gimlet_lab import notebook as _notebook\n"
        "def spin(seconds):\n"
        "    until = time.perf_counter() + seconds\n"
        "    while time.perf_counter() < until:\n"
        "        sorted(range(500))"
    )
    assert setup.status == "ok", setup
    warm = started.run("%%gimlet --quiet\n1")
    assert warm.status == "ok", warm
    yield started
    started.close()


def last(kernel: Kernel, expression: str) -> Any:
    return ast.literal_eval(kernel.get(f"(lambda r: {expression})(_notebook.current().find_run())"))


def test_a_cell_knows_its_lines_and_those_of_its_functions(kernel: Kernel) -> None:
    kernel.run("%%gimlet --quiet\n# a note\nspin(0.8)\ntime.sleep(0.1)")
    of_cell = "r.stacks[r.stacks.thread == 'MainThread']"
    # py-spy reads while the cell runs: a look now and then is torn.
    begins = f"(lambda t: t.duration_s.groupby(t.frames.str.split(';').str[0]).sum())({of_cell})"
    share = last(kernel, f"(lambda b: float(b.filter(regex=':[34][)]$').sum() / b.sum()))({begins})")
    assert share > 0.8
    spent = f"({of_cell}.groupby(['cell_function', 'cell_line']).duration_s.sum())"
    function, line = last(kernel, f"(lambda best: (best[0], int(best[1])))({spent}.idxmax())")
    assert function == "spin"
    assert line in (7, 8)
    files = last(kernel, "sorted({f.file for f in r.sampled.frames if f.cell})")
    assert all(file.startswith("In[") for file in files)
    # A look may fall just before the cell's first line, or after its last.
    ours = f"(lambda t: float(t[t.frames.str.contains('ipykernel|gimlet_lab')].duration_s.sum()))({of_cell})"
    assert last(kernel, ours) < 0.1


def test_the_view_and_the_exports(kernel: Kernel, tmp_path: Any) -> None:
    kernel.run("%%gimlet --quiet\nspin(0.3)")
    view = kernel.run("%gimlet stacks")
    assert {"text/plain", "text/html", "image/png"} <= set(view.displays[0])
    assert "spin (In[1]:" in view.displays[0]["text/plain"]
    assert "<script" not in view.displays[0]["text/html"]
    written = kernel.run(f"%gimlet export folded {tmp_path}/a\n%gimlet export speedscope-stacks {tmp_path}/b")
    assert written.status == "ok", written
    assert "spin (In[1]" in (tmp_path / "a").read_text()
    assert "spin" in (tmp_path / "b").read_text()


def test_they_can_be_switched_off(kernel: Kernel) -> None:
    kernel.run("%gimlet config stacks=off")
    kernel.run("%%gimlet --quiet\nspin(0.1)")
    assert last(kernel, "len(r.sampled.samples)") == 0
    kernel.run("%gimlet config stacks=on")
    kernel.run("%%gimlet --quiet\nspin(0.1)")
    assert last(kernel, "len(r.sampled.samples)") > 0


def test_an_interrupted_cell_has_its_stacks(kernel: Kernel, tmp_path: Any) -> None:
    sign = tmp_path / "sign"
    shown = kernel.interrupted(
        f"%%gimlet --quiet\nimport pathlib\nspin(0.7)\npathlib.Path({str(sign)!r}).touch()\nspin(60)", sign
    )
    assert shown.error is not None
    assert shown.error[0] == "KeyboardInterrupt"
    assert last(kernel, "r.status") == "interrupted"
    assert last(kernel, "'spin' in set(r.stacks.function)")


@pytest.mark.slow
def test_a_worker_s_stacks_are_in_the_run(kernel: Kernel) -> None:
    shown = kernel.run(
        "import gimlet_lab as gimlet\n"
        "@gimlet.stage(pure=True)\n"
        "def work(seconds):\n    spin(seconds)\n    rest(seconds)\n    return seconds\n"
        "def rest(seconds):\n    import time\n    time.sleep(seconds)\n"
    )
    assert shown.status == "ok", shown
    kernel.run("%%gimlet --quiet -o run\nwork(0.3)")
    placed = kernel.run(
        "there = {s.id: 'cpu/1' if s.target == 'work' else 'cpu' for s in run.graph.stages}\n"
        "plan = gimlet.advise(run, gimlet.fleet('cpu', 'cpu/1'), pin=there)\n"
        "%gimlet apply plan\n"
        "work(0.1)"
    )
    assert placed.status == "ok", placed
    kernel.run("%%gimlet --quiet\nfor _ in range(4):\n    work(0.5)")
    seen = last(kernel, "sorted({(str(d), f) for d, f in zip(r.stacks.device, r.stacks.function)})")
    notes = last(kernel, "list(r.notes)")
    there = "r.stacks[(r.stacks.device == 'cpu/1') & (r.stacks.function == '{}')]"
    shares = "[float(x.running_s.sum() / x.duration_s.sum()) for x in ({})]"
    refused = [note for note in notes if "py-spy" in note]
    if not refused:
        assert {("cpu/1", "spin"), ("cpu/1", "rest")} <= set(seen), (seen, notes)
        spinning, resting = last(kernel, shares.format(f"{there.format('spin')}, {there.format('rest')}"))
        assert spinning > 0.7, "running is told apart"
        assert resting < 0.3, "from waiting"
    kernel.run("%gimlet rollback")
