"""The user's cell in a real kernel: profiled, everything is as with a comment in the line's place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cells import CELLS
from kernel import Kernel, Shown

#: Cell magics: IPython takes them in the first line only, so that the plain run has no comment above them.
MAGIC_CELLS = {
    "time below": "%%time\nprint('timed')\n6 * 7",
    "capture below": "%%capture caught\nprint('caught')\n6 * 7",
    "bash below": "%%bash\necho from bash",
    "writefile below": "%%writefile /dev/null\nx = 1",
    "error below time": "%%time\nx = 0\n1 / x",
}


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    started = Kernel()
    setup = started.run(
        # Without this a warning comes with the first of two equal cells only.
        "import warnings; warnings.simplefilter('always')\n"
        "%load_ext gimlet_lab\n"
        "from gimlet_lab import notebook as _notebook\n"
        "def fails_at_line_three(value):\n    x = value\n    return x / (x - 2)"
    )
    assert setup.status == "ok", setup
    warm = started.run("%%gimlet --quiet\n1")  # imports and calibration, once
    assert (warm.status, warm.value) == ("ok", "1"), warm
    yield started
    started.close()


def last_run(kernel: Kernel, expression: str = "[r.name, r.status, r.error, list(r.notes)]") -> Any:
    """Something about the last run that the notebook holds."""
    return ast.literal_eval(kernel.get(f"(lambda r: {expression})(_notebook.current().find_run())"))


def forget(kernel: Kernel) -> None:
    kernel.run("_notebook.current().runs.clear()")


def held(kernel: Kernel) -> int:
    return int(kernel.get("len(_notebook.current().runs)"))


def untimed(shown: Shown) -> Shown:
    """Clock readings are all that may differ in what ``%time`` prints."""
    streams = {
        name: re.sub(r"(CPU times|Wall time): .*", r"\1", text) for name, text in shown.streams.items()
    }
    return replace(shown, streams=streams)


@pytest.mark.parametrize("name", CELLS)
def test_profiled_cell_shows_what_the_plain_one_shows(kernel: Kernel, name: str) -> None:
    line = f"%%gimlet --quiet --name '{name}'"
    plain = untimed(kernel.run(f"# {line}\n{CELLS[name]}").normal())
    profiled = untimed(kernel.run(f"{line}\n{CELLS[name]}").normal())
    assert profiled == plain
    ok = plain.status == "ok"
    error = None if ok or plain.error is None else plain.error[0]
    assert last_run(kernel)[:3] == [name, "ok" if ok else "failed", error]
    assert [note for note in last_run(kernel)[3] if "failed:" in note] == []


@pytest.mark.parametrize("name", MAGIC_CELLS)
def test_other_cell_magics_below(kernel: Kernel, name: str) -> None:
    plain = untimed(kernel.run(MAGIC_CELLS[name]).normal())
    profiled = untimed(
        kernel.run(f"%%gimlet --quiet --name '{name}'\n# a note\n\n{MAGIC_CELLS[name]}").normal()
    )
    assert (profiled.value, profiled.streams, profiled.error) == (plain.value, plain.streams, plain.error)
    assert last_run(kernel)[0] == name
    # The magic's own line is the fourth of the cell; lines inside its body count as ever.
    outer = "Cell In[N], line"
    assert profiled.traceback.count(f"{outer} 4") == plain.traceback.count(f"{outer} 1")
    inner = re.compile(r"File <timed exec>.*", re.DOTALL)
    assert inner.findall(profiled.traceback) == inner.findall(plain.traceback)


def test_capture_below_captures_what_it_captures_alone(kernel: Kernel) -> None:
    kernel.run("%%gimlet --quiet\n%%capture caught\nprint('inside')")
    assert kernel.get("caught.stdout") == repr("inside\n")


@pytest.mark.parametrize("above", ["\n\n", "# note\n", "\n# one\n\n# two\n"])
def test_blank_lines_and_comments_above(kernel: Kernel, above: str) -> None:
    plain = kernel.run(f"{above}# %%gimlet --quiet\nx = 0\n\n1 / x").normal()
    forget(kernel)
    profiled = kernel.run(f"{above}%%gimlet --quiet\nx = 0\n\n1 / x").normal()
    assert profiled.traceback.replace("# %%gimlet", "%%gimlet") == plain.traceback.replace(
        "# %%gimlet", "%%gimlet"
    )
    assert profiled.error == plain.error
    assert held(kernel) == 1


@pytest.mark.parametrize("magic", ["%%time", "%%capture"])
def test_below_another_magic_it_warns(kernel: Kernel, magic: str) -> None:
    forget(kernel)
    shown = kernel.run(f"{magic}\n%%gimlet\nmisplaced = 5")
    assert shown.status == "ok"
    assert f"not below {magic}" in shown.streams["stderr"]
    assert kernel.get("misplaced") == "5"
    assert held(kernel) == 0
    assert kernel.run("%%gimlet --quiet\n2").streams == {}
    assert held(kernel) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--nmae x", "did you mean --name"),
        ("--name", "--name: expected one argument"),
        ("--name 'x", "no closing quotation"),
        ("-o 2x", "'2x' is not a name for a variable"),
        ("extra", "does not take 'extra'"),
        ("--repeat none", "'none' is not a number from 1"),
        ("phases", "%gimlet phases"),
    ],
)
def test_option_errors_say_so_and_the_cell_does_not_run(kernel: Kernel, line: str, said: str) -> None:
    forget(kernel)
    kernel.run("ran = False")
    for above in ("", "# a comment\n"):
        shown = kernel.run(f"{above}%%gimlet {line}\nran = True")
        assert shown.status == "error"
        assert shown.traceback == ""
        lines = shown.streams["stderr"].strip().splitlines()
        assert len(lines) == 1
        assert said in lines[0]
    assert kernel.get("ran") == "False"
    assert held(kernel) == 0
    assert kernel.run("%%gimlet --quiet\n'next'").value == "'next'"


INTERRUPTED = {
    # One line each to be interrupted in, and no Python frame below it: the traceback is the same every time.
    "plain": "import os\nwhile True: os.close(os.open({sign!r}, os.O_CREAT))",
    "await": (
        "import asyncio, os\nwhile True:\n"
        "    os.close(os.open({sign!r}, os.O_CREAT))\n    await asyncio.sleep(0)"
    ),
    "sleep": "import os, time\nos.close(os.open({sign!r}, os.O_CREAT)); time.sleep(600)",
}


@pytest.mark.parametrize("name", INTERRUPTED)
def test_interrupts(kernel: Kernel, name: str, tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    code = INTERRUPTED[name].format(sign=str(sign))
    plain = kernel.interrupted(f"# %%gimlet --quiet\n{code}", sign).normal()
    profiled = kernel.interrupted(f"%%gimlet --quiet\n{code}", sign).normal()
    assert profiled == plain
    assert plain.error is not None
    assert last_run(kernel)[1:3] == ["interrupted", plain.error[0]]
    assert kernel.run("'alive'").value == "'alive'"


def test_a_forked_child_leaves_the_profile_to_its_parent(kernel: Kernel) -> None:
    forget(kernel)
    code = (
        "import os\nchild = os.fork()\nif child == 0:\n"
        "    get_ipython().events.trigger('post_run_cell', get_ipython().last_execution_result)\n"
        "    import gimlet_lab.profiling\n"
        "    os._exit(0 if gimlet_lab.profiling.active() is None else 9)\n"
        "os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])"
    )
    shown = kernel.run(f"%%gimlet --name forks\n{code}")
    assert shown.value == "0"
    assert len(shown.displays) == 1
    assert held(kernel) == 1


def test_the_result_is_shown_below_the_cell(kernel: Kernel) -> None:
    shown = kernel.run("%%gimlet --name shown -o result\nsum(range(1000))")
    assert shown.value == "499500"
    assert len(shown.displays) == 1
    bundle = shown.displays[0]
    assert {"text/plain", "text/html", "image/png"} <= set(bundle)
    assert "shown" in bundle["text/plain"]
    assert "<script" not in bundle["text/html"]
    assert kernel.get("(result.name, result.text)") == "('shown', None)"


def test_a_failed_cell_still_shows_its_run(kernel: Kernel) -> None:
    shown = kernel.run("%%gimlet\n1 / 0")
    assert shown.error == ("ZeroDivisionError", "division by zero")
    assert len(shown.displays) == 1
    assert "ZeroDivisionError" in shown.displays[0]["text/plain"]


def test_text_is_kept_only_when_asked_for(kernel: Kernel) -> None:
    cell = "%%gimlet --quiet --keep-text\n'a secret'"
    kernel.run(cell)
    assert last_run(kernel, "r.text") == cell
    kernel.run("%gimlet config keep-text=on")
    kernel.run("%%gimlet --quiet\n'another'")
    assert last_run(kernel, "r.text") == "%%gimlet --quiet\n'another'"
    kernel.run("%gimlet config keep-text=off")


def test_exact_looks_at_every_call(kernel: Kernel) -> None:
    kernel.run(
        "import torch\ntorch.set_num_threads(1)\nlinear = torch.nn.Linear(64, 64)\nx = torch.ones(2, 64)"
    )
    looked = "[s.looked for s in r.span_list if s.kind == 'module']"
    kernel.run("%%gimlet --quiet\nfor _ in range(20): linear(x)")
    assert 0 < sum(last_run(kernel, looked)) < 20
    kernel.run("%%gimlet --quiet --exact\nfor _ in range(20): linear(x)")
    assert last_run(kernel, looked) == [True] * 20


def test_a_render_failure_does_not_break_the_cell(kernel: Kernel) -> None:
    kernel.run(
        "import gimlet_lab.render.bundle as _b\n_kept = _b.run_bundle\n"
        "def _broken(*a, **k):\n    raise RuntimeError('no paint')\n_b.run_bundle = _broken"
    )
    shown = kernel.run("%%gimlet\n6 * 7")
    kernel.run("_b.run_bundle = _kept")
    assert (shown.status, shown.value) == ("ok", "42")
    assert shown.streams["stderr"].count("\n") == 1
    assert "no paint" in shown.streams["stderr"]


@pytest.mark.parametrize("line", ["%reload_ext gimlet_lab", "%unload_ext gimlet_lab\n%load_ext gimlet_lab"])
def test_reloading_inside_a_profiled_cell(kernel: Kernel, line: str) -> None:
    forget(kernel)
    shown = kernel.run(f"%%gimlet --quiet --name reloaded-{len(line)}\n{line}\n'reloaded'")
    assert (shown.status, shown.value, shown.streams) == ("ok", "'reloaded'", {})
    assert held(kernel) == 1
    assert kernel.run("%%gimlet --quiet --name afterwards\n1").value == "1"
    assert last_run(kernel)[:2] == ["afterwards", "ok"]
    counts = kernel.get(
        "[len([t for t in get_ipython().input_transformers_cleanup if 'gimlet' in type(t).__module__]),"
        " *[c.__module__ for c in get_ipython().events.callbacks['post_run_cell']"
        " if 'gimlet' in c.__module__]]"
    )
    assert counts == "[1, 'gimlet_lab.cell', 'gimlet_lab.page']"


def test_a_block_and_a_function_profiled_in_a_cell(kernel: Kernel) -> None:
    shown = kernel.run(
        "import gimlet_lab as gimlet\n"
        "with gimlet.profile('block-of-mine') as recorder:\n    s = sum(range(10))\n"
        "@gimlet.profile('async-of-mine')\nasync def later(x):\n    return x + 1\n"
        "(await later(1), recorder.run.name, later.recorder.run.name)"
    )
    assert shown.value == "(2, 'block-of-mine', 'async-of-mine')"
    assert last_run(kernel)[0] == "async-of-mine"


def test_one_profile_at_a_time(kernel: Kernel) -> None:
    shown = kernel.run("%%gimlet --quiet --name outer\nwith gimlet.profile('inner'):\n    pass")
    assert shown.error is not None
    assert shown.error[0] == "UsageError"
    assert "'outer' is running already" in shown.error[1]
    assert last_run(kernel)[:2] == ["outer", "failed"]
    # A decorated function is part of the profile that runs already.
    shown = kernel.run("%%gimlet --quiet --name outer\n@gimlet.profile\ndef f():\n    return 3\nf()")
    assert shown.value == "3"
    assert last_run(kernel)[:2] == ["outer", "ok"]


def test_called_by_hand(kernel: Kernel) -> None:
    shown = kernel.run("get_ipython().run_cell_magic('gimlet', '--quiet --name by-hand', 'by_hand = 6 * 7')")
    assert shown.status == "ok"
    assert kernel.get("by_hand") == "42"
    assert last_run(kernel)[0] == "by-hand"
    shown = kernel.run(
        "async def coroutine():\n    return 1\n"
        "get_ipython().run_cell_magic('gimlet', '', 'await coroutine()')"
    )
    assert "a cell with await cannot be run by a call" in shown.streams["stderr"]
    assert shown.error is not None
    assert shown.error[0] == "UsageError"


def test_memory_that_runs_out_leaves_the_kernel_alive(kernel: Kernel) -> None:
    shown = kernel.run("%%gimlet --quiet\nbytearray(1 << 62)")
    assert shown.error is not None
    assert shown.error[0] == "MemoryError"
    assert last_run(kernel)[1:3] == ["failed", "MemoryError"]
    assert kernel.run("'alive'").value == "'alive'"


def test_question_mark_shows_the_options(kernel: Kernel) -> None:
    for question in ("%%gimlet?", "%gimlet?"):
        shown = kernel.run(question)
        assert len(shown.pages) == 1
        assert ("--keep-text" if question.startswith("%%") else "advise") in shown.pages[0]


def test_tab_completes(kernel: Kernel) -> None:
    assert "%%gimlet" in kernel.completions("%%giml")
    assert {"phases", "profile"} <= set(kernel.completions("%gimlet p"))
    assert "--name" in kernel.completions("%%gimlet --na")
    assert kernel.completions("%gimlet advise --objective l") == ["latency"]
    kernel.run("%%gimlet --quiet -o run_for_tab --name named_for_tab\n1")
    assert {"run_for_tab"} <= set(kernel.completions("%gimlet phases run_f"))
    assert {"named_for_tab"} <= set(kernel.completions("%gimlet phases named_f"))


def test_line_commands_say_what_is_wrong_in_one_line(kernel: Kernel) -> None:
    for line, said in {
        "phasse": "did you mean 'phases'",
        "phases nosuchrun": "no run 'nosuchrun'",
        "connect rai": "did you mean 'ray'",
        "connect ray ray://far:10001": "Ray Client is not supported",
        "watch on": "not built yet",
        "compare a": "needs RUN",
        "profile": "%%gimlet",
    }.items():
        shown = kernel.run(f"%gimlet {line}")
        assert shown.status == "error"
        assert shown.traceback == ""
        text = shown.streams["stderr"].strip()
        assert said in text
        assert "\n" not in text


def test_commands_leave_their_result_in_a_variable(kernel: Kernel, tmp_path: Path) -> None:
    kernel.run("%%gimlet --quiet --name to_save\nsum(range(10))")
    assert (
        f"wrote {tmp_path}/r.gimlet"
        in kernel.run(f"%gimlet save to_save {tmp_path}/r.gimlet").streams["stdout"]
    )
    shown = kernel.run(f"%gimlet load {tmp_path}/r.gimlet -o loaded")
    assert len(shown.displays) == 1
    assert kernel.get("loaded.name") == "'to_save'"
    assert "to_save" in kernel.run("%gimlet runs").streams["stdout"]
    assert "last run" in kernel.run("%gimlet").streams["stdout"]


def test_works_where_the_working_folder_is_read_only(kernel: Kernel, tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    kernel.run(f"import os; _back = os.getcwd(); os.chdir({str(folder)!r})")
    shown = kernel.run("%%gimlet\n1")
    kernel.run("os.chdir(_back)")
    assert shown.status == "ok"
    assert len(shown.displays) == 1
    assert list(folder.iterdir()) == []


#: An agent of two functions, each long enough to be a stage of its own.
AGENT = """
import torch
torch.set_num_threads(1)
weights = torch.arange(360_000.0).reshape(600, 600) / 1e6
def embed(x):
    for _ in range(40):
        x = torch.tanh(x @ weights)
    return x
def search(v):
    for _ in range(20):
        v = v @ weights
    return [round(float(score), 4) for score in v.sum(0)[:3]]
def agent():
    v = embed(torch.ones(200, 600))
    return search(v)
"""


def test_a_plan_in_force_follows_what_is_defined_again(kernel: Kernel) -> None:
    kernel.run(AGENT)
    plain = kernel.run("%%gimlet --quiet --name before\nagent()")
    assert plain.status == "ok"
    stages = last_run(kernel, "[s.id for s in r.graph.stages if s.kind == 'function']")
    assert "embed" in stages
    shown = kernel.run("%gimlet advise before --on cpu cpu/0 cpu/1 --pin embed=cpu/1 -o plan")
    assert shown.status == "ok"
    assert kernel.get("plan.assignment['embed']") == "'cpu/1'"
    assert "embed" in kernel.run("%gimlet apply --dry-run").streams["stdout"]
    try:
        assert "in force" in kernel.run("%gimlet apply").streams["stdout"]
        placed = kernel.run("%%gimlet --quiet --name after\nagent()")
        assert placed.value == plain.value
        assert last_run(kernel, "r.deployment.get('embed')") == "cpu/1"
        assert last_run(kernel, "r.transferred_bytes") > 0
        compared = kernel.run("%gimlet compare before after").displays[0]["text/plain"]
        assert "cpu/1" in compared
        again = kernel.run("def embed(x):\n    return x @ weights")
        assert again.status == "ok"
        assert "embed" in again.streams["stderr"]
        assert kernel.run("x = 1").streams == {}
    finally:
        rolled = kernel.run("%gimlet rollback")
    assert "rolled back" in rolled.streams["stdout"]
    assert "nothing to roll back" in kernel.run("%gimlet rollback").streams["stdout"]


REPEATED = {
    "last expression": "total = globals().get('total', 0) + 1\nprint('said', total)\ntotal",
    "await": "import asyncio\nasync def nap():\n    await asyncio.sleep(0)\n    return 7\nawait nap()",
    "error": "count = globals().get('count', 0) + 1\nprint('turn', count)\nif count == 2:\n    1 / 0\ncount",
    "display": "from IPython.display import display\ndisplay('shown'); 5",
    "magic below": "%%time\nturns = globals().get('turns', 0) + 1",
}


def test_a_repeated_cell_shows_its_last_run_only(kernel: Kernel) -> None:
    shown = kernel.run(f"%%gimlet --quiet --repeat 3\n{REPEATED['last expression']}")
    assert (shown.status, shown.value, shown.streams) == ("ok", "4", {"stdout": "said 4\n"})
    assert last_run(kernel, "r.status") == "ok"
    shown = kernel.run(f"# plain\n{REPEATED['last expression']}")
    assert shown.value == "5"


def test_a_repeated_cell_may_await(kernel: Kernel) -> None:
    shown = kernel.run(f"%%gimlet --quiet --repeat 2\n{REPEATED['await']}")
    assert (shown.status, shown.value) == ("ok", "7")
    assert last_run(kernel, "[s.name for s in r.span_list if s.kind == 'function']") == ["nap"] * 3


def test_a_repeated_cell_that_fails_fails_at_its_own_line(kernel: Kernel) -> None:
    kernel.run("count = 1")
    plain = kernel.run("# %%gimlet --quiet --repeat 5\n" + REPEATED["error"]).normal()
    kernel.run("del count")
    shown = kernel.run("%%gimlet --quiet --repeat 5\n" + REPEATED["error"]).normal()
    assert shown.error == ("ZeroDivisionError", "division by zero")
    assert shown.streams == {"stdout": "turn 2\n"}
    assert shown == plain
    assert last_run(kernel, "r.status") == "failed"


def test_a_repeated_cell_displays_once_and_takes_other_magics(kernel: Kernel) -> None:
    shown = kernel.run(f"%%gimlet --quiet --repeat 2\n{REPEATED['display']}")
    assert (len(shown.displays), shown.value) == (1, "5")
    shown = kernel.run(f"%%gimlet --quiet --repeat 2\n{REPEATED['magic below']}")
    assert shown.status == "ok"
    assert kernel.get("turns") == "3"
    assert shown.streams["stdout"].count("Wall time") == 1
