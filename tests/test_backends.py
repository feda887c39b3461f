"""Function stages on CPU slices, deployments and their end: through the local backend, with real workers."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from placing import cell, device, function, functions, held, module, notebook, plan

from gimlet_lab.backends import backend, backends
from gimlet_lab.boundary import stage
from gimlet_lab.errors import GimletError, UnknownNameError
from gimlet_lab.model import Fleet

LOCAL = backend("local")


@pytest.fixture(scope="module", autouse=True)
def _template():
    """One start of an interpreter for all tests here; a test of its end releases it itself."""
    from gimlet_lab.backends.process import TEMPLATE

    TEMPLATE.hold()
    yield
    TEMPLATE.release()


def test_backends_are_found_by_name():
    assert "local" in backends()
    with pytest.raises(UnknownNameError, match="did you mean 'local'"):
        backend("lokal")


def test_a_function_runs_elsewhere_and_stays_the_function_it_is(placer):
    book = notebook(
        "import os\n"
        "shift = 3\n"
        "def where(x: int, /, y=2, *rest, z: int = 5, **more) -> tuple:\n"
        "    'Where it runs.'\n"
        "    return os.getpid(), sorted(os.sched_getaffinity(0)), (x, y, rest, z, more), shift\n"
    )
    where = book["where"]
    before = (
        inspect.signature(where),
        inspect.getsource(where),
        where.__doc__,
        where.__qualname__,
        dict(vars(where)),
    )
    code, expected = where.__code__, where(1, 7, 8, z=9, q=4)
    with placer.deploy(functions(where="cpu_1"), book) as deployment:
        assert book["where"] is where
        assert (
            inspect.signature(where),
            inspect.getsource(where),
            where.__doc__,
            where.__qualname__,
        ) == before[:4]
        pid, cores, *rest = where(1, 7, 8, z=9, q=4)
        assert pid != os.getpid()
        assert cores == sorted(os.sched_getaffinity(0))[-1:]
        assert rest == list(expected[2:])
        assert where.__gimlet_placed__ == {"*": {"device": "cpu/1", "bound": "compute", "stage": "where"}}
        stats = deployment.stats()["where"]
        assert (stats["device"], stats["calls"], stats["on_host"]) == ("cpu/1", 1, {})
        assert stats["sent_bytes"] > 0
        assert stats["received_bytes"] > 0
        with pytest.raises(TypeError, match=r"where\(\) missing 1 required positional argument: 'x'"):
            where()
    assert where.__code__ is code
    assert vars(where) == before[4]
    assert where(1, 7, 8, z=9, q=4) == expected


def test_closures_methods_and_recursion(placer):
    book = notebook(
        "import os\n"
        "def make(k):\n"
        "    def inner(x): return x + k, os.getpid()\n"
        "    return inner\n"
        "inner = make(10)\n"
        "def factorial(n): return 1 if n < 2 else n * factorial(n - 1)\n"
        "class Tool:\n"
        "    k = 2\n"
        "    def run(self, x): return self.k * x, os.getpid()\n"
    )
    book["run"] = book["Tool"].run
    tool = book["Tool"]()
    with placer.deploy(functions(inner="cpu_0", factorial="cpu_1", run="cpu_1"), book) as deployment:
        assert book["inner"](1)[0] == 11
        assert book["inner"](1)[1] != os.getpid()
        assert book["factorial"](10) == 3628800
        assert tool.run(4)[0] == 8
        assert tool.run(4)[1] != os.getpid()
        assert {s: n["on_host"] for s, n in deployment.stats().items()} == {
            "inner": {},
            "factorial": {},
            "run": {},
        }


def test_arrays_and_tensors_travel_unchanged(placer):
    torch = pytest.importorskip("torch")
    book = notebook("def same(x): return [x, x]\n")
    big = np.random.default_rng(0).normal(size=(700, 600))
    values = [
        big,
        big.T,
        np.asfortranarray(big),
        np.zeros((0, 3), np.int8),
        np.array(["a", None], object),
        torch.arange(10.0),
        torch.randn(400, 500).bfloat16(),
        torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last),
        torch.randn(300, 400).T,
        torch.tensor(3),
        torch.zeros(0, 4),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([True, False]),
        torch.nn.Parameter(torch.ones(2)),
    ]
    with placer.deploy(functions(same="cpu_0"), book) as deployment:
        for value in values:
            one, two = book["same"](value)
            assert one is two
            assert type(one) is type(value)
            assert one.dtype == value.dtype
            assert one.shape == value.shape
            if isinstance(value, torch.Tensor):
                assert torch.equal(one, value.detach())
                if value.numel() > 1 and not value.is_conj():
                    assert one.stride() == value.stride()
            else:
                np.testing.assert_array_equal(one, value)
            with torch.no_grad():
                one[...] = 0  # what came back is the program's own
        assert deployment.stats()["same"]["on_host"] == {}
        kept = book["same"](big)[0]
    assert (kept == big).all()


def test_what_it_prints_and_raises_reaches_the_cell(placer, capsys):
    book = notebook(
        "import sys\n"
        "class Odd(Exception):\n"
        "    def __init__(self, a, b): super().__init__(a); self.b = b\n"
        "class Mine(ValueError): pass\n"
        "def tool(x):\n"
        "    print('out', x); print('err', file=sys.stderr)\n"
        "    if x == 1: raise Mine('bad x')\n"
        "    if x == 2: raise Odd('a', 'b')\n"
        "    return x\n"
    )
    mine = book["Mine"]
    with placer.deploy(functions(tool="cpu_0"), book) as deployment:
        assert book["tool"](0) == 0
        assert capsys.readouterr() == ("out 0\n", "err\n")
        with pytest.raises(mine, match="bad x") as caught:
            book["tool"](1)
        assert type(caught.value) is mine
        note = "\n".join(caught.value.__notes__)
        assert "On cpu/0" in note
        assert "if x == 1: raise Mine('bad x')" in note
        assert capsys.readouterr() == ("out 1\n", "err\n")
        # An exception that cannot be pickled is raised by the host, once printed.
        with pytest.raises(book["Odd"]) as caught:
            book["tool"](2)
        assert caught.value.b == "b"
        assert capsys.readouterr() == ("out 2\n", "err\n")
        assert "its error cannot travel" in str(deployment.refresh())


def test_classes_of_the_notebook_stay_the_notebooks(placer):
    book = notebook(
        "class Point:\n"
        "    def __init__(self, x): self.x = x\n"
        "    def double(self): return Point(2 * self.x)\n"
        "def move(p): return p.double()\n"
    )
    point, double = book["Point"], book["Point"].double
    with placer.deploy(functions(move="cpu_0"), book) as deployment:
        moved = book["move"](point(4))
        assert type(moved) is point
        assert moved.x == 8
        assert point.double is double
        assert deployment.stats()["move"]["on_host"] == {}


def test_changes_of_arguments_state_and_dice_are_never_lost(placer):
    book = notebook(
        "import random\n"
        "import numpy as np\n"
        "seen, cache = [], {'n': 0}\n"
        "def append(items): items.append(1); return len(items)\n"
        "def remember(x): seen.append(x); return len(seen)\n"
        "def count():\n"
        "    global total\n"
        "    total = cache['n'] = cache['n'] + 1\n"
        "    return total\n"
        "def fill(a): a[:] = 7; return a.sum()\n"
        "def dice(): return random.random()\n"
        "def legacy(): return np.random.rand()\n"
    )
    names = ("append", "remember", "count", "fill", "dice", "legacy")
    with placer.deploy(functions(**dict.fromkeys(names, "cpu_0")), book) as deployment:
        items = []
        assert [book["append"](items) for _ in range(3)] == [1, 2, 3]
        assert items == [1, 1, 1]
        assert [book["remember"](x) for x in "ab"] == [1, 2]
        assert book["seen"] == ["a", "b"]
        assert [book["count"]() for _ in range(2)] == [1, 2]
        assert (book["cache"], book["total"]) == ({"n": 2}, 2)
        array = np.zeros(3)
        assert book["fill"](array) == 21
        assert array.tolist() == [7, 7, 7]
        book["random"].seed(1)
        first = book["dice"]()
        book["random"].seed(1)
        assert book["random"].random() == first
        np.random.seed(1)
        first = book["legacy"]()
        np.random.seed(1)
        assert np.random.rand() == first
        assert all(stats["calls"] == 0 for stats in deployment.stats().values())
        lines = "\n".join(deployment.refresh())
        assert "append runs on the host, not on cpu/0: append: it changes its arguments" in lines
        assert "remember: it changes objects of the notebook" in lines
        assert "dice: it draws random numbers" in lines
        assert deployment.refresh() == []  # said once


def test_what_the_notebook_changes_between_calls_is_seen(placer):
    book = notebook("table = [1]\ndef helper(x): return x + len(table)\ndef look(x): return helper(x)\n")
    with placer.deploy(functions(look="cpu_1"), book) as deployment:
        assert book["look"](0) == 1
        book["table"].append(2)
        assert book["look"](0) == 2
        book["table"] = [1, 2, 3, 4]
        assert book["look"](0) == 4
        book["helper"] = lambda x: "new"
        assert book["look"](0) == "new"
        assert deployment.stats()["look"]["calls"] == 4
        assert deployment.stats()["look"]["on_host"] == {}


def test_what_cannot_travel_runs_on_the_host(placer):
    book = notebook(
        "import threading, os\n"
        "def lock(x): return os.getpid()\n"
        "def give(): return threading.Lock()\n"
        "def ask(): return get_ipython_is_not_there()\n"
    )
    book["__builtins__"] = dict(vars(__import__("builtins")))
    book["__builtins__"]["get_ipython_is_not_there"] = lambda: "here"
    with placer.deploy(functions(lock="cpu_0", give="cpu_0", ask="cpu_0"), book) as deployment:
        assert book["lock"](threading.Lock()) == os.getpid()
        assert book["lock"](1) != os.getpid()
        assert isinstance(book["give"](), type(threading.Lock()))
        assert book["ask"]() == "here"
        stats = deployment.stats()
        assert stats["lock"]["calls"] == 1
        assert "an argument cannot travel" in next(iter(stats["lock"]["on_host"]))
        assert "its result cannot travel" in next(iter(stats["give"]["on_host"]))


def test_async_functions_run_at_the_same_time(placer, tmp_path):
    book = notebook(
        "import asyncio, os, pathlib, time\n"
        "async def meet(mine, other):\n"
        "    pathlib.Path(mine).touch()\n"
        "    while not pathlib.Path(other).exists(): time.sleep(0.001)\n"
        "    await asyncio.sleep(0)\n"
        "    return os.getpid()\n"
        "async def too(mine, other): return await meet(mine, other)\n"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")

    async def both():
        return await asyncio.gather(book["meet"](a, b), book["too"](b, a))

    with placer.deploy(functions(meet="cpu_0", too="cpu_1"), book):
        assert inspect.iscoroutinefunction(book["meet"])
        pids = asyncio.run(asyncio.wait_for(both(), 60))
    assert len({*pids, os.getpid()}) == 3


def test_threads_of_the_program_run_at_the_same_time(placer, tmp_path):
    book = notebook(
        "import pathlib, time\n"
        "def left(mine, other):\n"
        "    pathlib.Path(mine).touch()\n"
        "    while not pathlib.Path(other).exists(): time.sleep(0.001)\n"
        "    return mine\n"
        "def right(mine, other): return left(mine, other)\n"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with placer.deploy(functions(left="cpu_0", right="cpu_1"), book):
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(book["left"](a, b))),
            threading.Thread(target=lambda: results.append(book["right"](b, a))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(results) == [a, b]


LOOK_AHEAD = """
import pathlib, time
def wait_for(path):
    while not pathlib.Path(path).exists(): time.sleep(0.001)
def one(mine, other):
    pathlib.Path(mine).touch(); wait_for(other)
    return mine
def two(mine, other):
    pathlib.Path(mine).touch(); wait_for(other); print("two")
    return other
def together(a, b):
    x = one(a, b)
    y = two(b, a)
    return x, y
"""


def _pure(**where):
    return plan(*((function(name, pure=True), place.replace("_", "/")) for name, place in where.items()))


def test_pure_stages_run_side_by_side(placer, tmp_path, capsys):
    # Each waits for the other: one after the other would never end.
    book = notebook(LOOK_AHEAD)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with placer.deploy(_pure(one="cpu_0", two="cpu_1"), book) as deployment:
        assert book["together"](a, b) == (a, a)
        assert capsys.readouterr().out == "two\n"
        assert deployment.stats()["two"]["started_ahead"] == 1
        # At the top of a cell as well.
        book |= {"a": str(tmp_path / "c"), "b": str(tmp_path / "d")}
        cell(book, "x = one(a, b)\ny = two(\n    b, a)\n")
        assert (book["x"], book["y"]) == (book["a"], book["a"])


def test_what_stays_starts_others_beside_it(placer, tmp_path):
    book = notebook(LOOK_AHEAD)
    one, code = book["one"], book["one"].__code__
    with placer.deploy(_pure(one="cpu", two="cpu_1"), book) as deployment:
        assert book["together"](str(tmp_path / "a"), str(tmp_path / "b")) == (str(tmp_path / "a"),) * 2
        assert deployment.stats()["two"]["started_ahead"] == 1
        assert set(deployment.stats()) == {"two"}
        assert inspect.signature(one).parameters.keys() == {"mine", "other"}
    assert one.__code__ is code


def test_looking_ahead_is_never_wrong(placer):
    book = notebook(
        "def one(x): return x + 1\n"
        "def two(x, k=1): print('two', x); return x * 10 + k\n"
        "def other(x): return x\n"
        "def depends(x):\n"
        "    a = one(x)\n"
        "    b = two(a)\n"
        "    return b\n"
        "def rebound(x):\n"
        "    x = one(x)\n"
        "    x = two(x)\n"
        "    return x\n"
        "def between(x):\n"
        "    a = one(x)\n"
        "    x = other(5)\n"
        "    return a, two(x)\n"
        "def raising(x):\n"
        "    try:\n"
        "        a = one(None)\n"
        "        b = two(x)\n"
        "    except TypeError:\n"
        "        return 'caught'\n"
        "def constants():\n"
        "    a = one(1)\n"
        "    b = two(2, k=0.0)\n"
        "    c = two(3)\n"
        "    return a, b, c\n"
        "def branch(x):\n"
        "    for i in range(2):\n"
        "        a = one(i); b = two(x)\n"
        "    return a, b\n"
        "def replaced(x):\n"
        "    two = one(x)\n"
        "    b = one(two)\n"
        "    return b\n"
    )
    calls = [
        ("depends", 1),
        ("rebound", 1),
        ("between", 1),
        ("raising", 1),
        ("constants",),
        ("branch", 4),
        ("replaced", 1),
    ]
    expected = [book[name](*args) for name, *args in calls]
    with placer.deploy(_pure(one="cpu_0", two="cpu_1"), book) as deployment:
        assert [book[name](*args) for name, *args in calls] == expected
        assert deployment.stats()["two"]["started_ahead"] == 4  # raising, constants, twice in branch
        assert deployment.refresh() == []


def test_a_call_ahead_prints_when_it_is_made_or_never(placer, capsys):
    book = notebook(
        "def one(x):\n"
        "    if x is None: raise ValueError('one')\n"
        "def two(x): print('two'); return x\n"
        "def run(x):\n"
        "    a = one(x)\n"
        "    b = two(3)\n"
        "    return b\n"
    )
    with placer.deploy(_pure(one="cpu_0", two="cpu_1"), book):
        with pytest.raises(ValueError, match="one"):
            book["run"](None)
        assert capsys.readouterr().out == ""
        assert book["run"](1) == 3
        assert capsys.readouterr().out == "two\n"


def test_a_worker_killed_in_the_middle_of_a_call(placer, tmp_path):
    book = notebook(
        "import os, pathlib, time\n"
        "def slow(path):\n"
        "    if os.getpid() == host: return 'host'\n"
        "    if pathlib.Path(path).exists(): return 'the next worker'\n"
        "    pathlib.Path(path).write_text(str(os.getpid()))\n"
        "    while not pathlib.Path(path + '.go').exists(): time.sleep(0.001)\n"
        "    return 'worker'\n"
        "once = slow\n"
    )
    book["host"] = os.getpid()
    path = str(tmp_path / "pid")
    cell(book, "def once(path): return slow(path)\n")

    def kill():
        while not (Path(path).exists() and Path(path).read_text()):
            time.sleep(0.001)
        os.kill(int(Path(path).read_text()), 9)

    placed = plan((function("slow"), "cpu/0"), (function("once", idempotent=False), "cpu/0"))
    with placer.deploy(placed, book) as deployment:
        killer = threading.Thread(target=kill)
        killer.start()
        assert book["slow"](path) == "the next worker"
        killer.join()
        stats = deployment.stats()["slow"]
        assert (stats["calls"], stats["on_host"], sum(stats["lost"].values())) == (1, {}, 1)
        assert [entry.outcome for entry in deployment.journal()] == ["lost", "done"]
        # What may not run twice is an error that says so.
        (tmp_path / "pid").unlink()
        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(GimletError, match=r"idempotent=False.*not tried again"):
            book["once"](path)
        killer.join()
        assert deployment.refresh() == ["the worker of cpu/0 had ended; it was started again"]


def test_what_ends_every_worker_does_not_end_the_kernel(placer):
    book = notebook("import os\ndef deadly(): os.kill(os.getpid(), 9)\ndef fine(): return 3\n")
    with placer.deploy(functions(deadly="cpu_0", fine="cpu_0"), book):
        with pytest.raises(GimletError, match="while it ran deadly, and so was the one before"):
            book["deadly"]()
        assert book["fine"]() == 3


def test_a_stage_declared_after_the_profile_counts(placer):
    book = notebook("state = []\ndef grow(x):\n    state.append(x)\n    return len(state)\n")
    stage(book["grow"], idempotent=False)
    with placer.deploy(functions(grow="cpu_0"), book) as deployment:
        # It runs once, there; that its change is lost is said, and it does not happen again.
        assert book["grow"](1) == 1
        assert "which was lost once" in str(deployment.refresh())
        assert book["grow"](1) == 1
        assert book["state"] == [1]


def test_a_function_defined_again_is_rebound(placer):
    book = notebook("import os\ndef tool(x): return x, os.getpid()\n")
    old = book["tool"]
    with placer.deploy(functions(tool="cpu_0"), book) as deployment:
        cell(book, "def tool(x): return -x, os.getpid()\n")
        assert book["tool"](1) == (-1, os.getpid())
        assert deployment.refresh() == ["tool was defined again: tool runs on cpu/0 again"]
        value, pid = book["tool"](1)
        assert value == -1
        assert pid != os.getpid()
        assert old(1) == (1, os.getpid())
        cell(book, "def tool(x): yield x\n")
        assert "is a generator" in str(deployment.refresh())
        assert "is a generator" in str(deployment.stale())
        assert list(book["tool"](1)) == [1]
        del book["tool"]
        assert "no 'tool'" in str(deployment.refresh())
        cell(book, "def tool(x): return os.getpid()\n")
        deployment.refresh()
        assert deployment.stale() == []
        assert book["tool"](1) != os.getpid()


def test_migrating_keeps_what_stays(placer):
    book = notebook("import os\ndef a(): return os.getpid()\ndef b(): return os.getpid()\n")
    with placer.deploy(functions(a="cpu_0", b="cpu_0"), book) as deployment:
        first = book["a"]()
        assert book["b"]() == first
        deployment.migrate(functions(a="cpu_0", b="cpu_1"))
        assert book["a"]() == first
        assert book["b"]() not in (first, os.getpid())
        deployment.migrate(functions(b="cpu_1"))
        assert book["a"]() == os.getpid()
        before = book["b"]()
        book["bad"] = threading.Lock()
        cell(book, "def c(): return bad\n")
        with pytest.raises(GimletError, match="c cannot travel"):
            deployment.migrate(functions(b="cpu_0", c="cpu_0"))
        assert book["b"]() == before  # the plan before stays in force
        assert deployment.plan.assignment == {"b": "cpu/1"}
    assert book["b"]() == os.getpid()
    with pytest.raises(GimletError, match="rolled back"):
        deployment.migrate(functions(b="cpu_1"))


@pytest.mark.parametrize(
    ("source", "where", "message"),
    [
        ("def other(): pass", "cpu_0", "stage 'tool'.*no 'tool'.*run the cell"),
        ("def tool():\n    yield 1", "cpu_0", "stage 'tool'.*generator.*--pin tool=cpu"),
        ("async def tool():\n    yield 1", "cpu_0", "stage 'tool'.*generator"),
        ("tool = 3", "cpu_0", "stage 'tool'.*is a int, not a function"),
        ("import threading\nlock = threading.Lock()\ndef tool(): return lock", "cpu_0", "tool cannot travel"),
    ],
)
def test_a_deploy_that_fails_changes_nothing(placer, source, where, message):
    book = notebook(source + "\ndef good(): return 1\n")
    code, before = book["good"].__code__, held()
    with pytest.raises(GimletError, match=message) as caught:
        placer.deploy(functions(good="cpu_1", tool=where), book)
    assert "\n" not in str(caught.value)
    assert book["good"].__code__ is code
    assert held() == before


def test_plans_for_other_machines_are_refused():
    book = notebook("def tool(): return 1\n")
    here = tuple(sorted(os.sched_getaffinity(0)))
    away = Fleet((device("cpu", here), device("h100-sxm", (), kind="gpu", live=False, torch_device=None)))
    with pytest.raises(GimletError, match="'h100-sxm', which is not on this machine"):
        LOCAL.deploy(plan((function("tool"), "h100-sxm"), over=away), book)
    larger = Fleet((device("cpu", here), device("cpu/0", (4096,))))
    with pytest.raises(GimletError, match="for another machine"):
        LOCAL.deploy(plan((function("tool"), "cpu/0"), over=larger), book)
    gpu = Fleet((device("cpu", here), device("cuda:0", (), kind="gpu", torch_device="cuda:0")))
    with pytest.raises(GimletError, match="Python function"):
        LOCAL.deploy(plan((function("tool"), "cuda:0"), over=gpu), book)


def test_a_plan_that_stays_changes_nothing(placer):
    book = notebook("def tool(): return 1\n")
    code, before = book["tool"].__code__, held()
    assert placer.diff(functions(tool="cpu"), book) == []
    with placer.deploy(functions(tool="cpu"), book) as deployment:
        assert book["tool"].__code__ is code
        assert held() == before
        assert deployment.stats() == {}


def test_the_diff_says_what_would_happen(placer):
    book = notebook("def tool(): return 1\n")
    assert placer.diff(plan((function("tool", pure=True), "cpu/0")), book) == [
        "tool: tool (function, pure) cpu → cpu/0 (core 0); sent to a worker process"
    ]
    with pytest.raises(GimletError, match="no 'embedder'"):
        placer.diff(plan((module("embed", "embedder", "embed"), "cpu/0")), book)


def test_rolling_back_twice_and_after_a_ctrl_c(placer, tmp_path):
    book = notebook(
        "import os, signal, threading, time\n"
        "def stuck():\n"
        "    os.kill(host, signal.SIGINT)\n"
        "    while True: time.sleep(0.01)\n"
        "def fine(): return os.getpid()\n"
    )
    book["host"] = os.getpid()
    deployment = placer.deploy(functions(stuck="cpu_0", fine="cpu_0"), book)
    with pytest.raises(KeyboardInterrupt):
        book["stuck"]()
    assert book["fine"]() not in (0, os.getpid())  # a new worker
    deployment.rollback()
    deployment.rollback()
    assert book["fine"]() == os.getpid()
    assert deployment.refresh() == []


def test_a_child_of_the_kernel_leaves_the_workers_alone():
    book = notebook("import os\ndef tool(): return os.getpid()\n")
    with LOCAL.deploy(functions(tool="cpu_0"), book) as deployment:
        worker = book["tool"]()
        child = os.fork()
        if child == 0:
            same = book["tool"]() == os.getpid()
            deployment.rollback()
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert book["tool"]() == worker


CYCLE = """
import os
table = {"a": 1}
def search(x): return [x, table["a"]], os.getpid()
def tool(x): return sum(i * i for i in range(x))
def agent(x): return search(x)[0], tool(x)
"""


def test_five_rounds_leave_nothing():
    book = notebook(CYCLE)
    expected = book["agent"](9)
    own = {name: dict(vars(book[name])) for name in ("search", "tool")}
    before = held()
    for _ in range(5):
        with LOCAL.deploy(functions(search="cpu_0", tool="cpu_1"), book):
            assert book["agent"](9) == expected
            assert book["search"](1)[1] != os.getpid()
        assert book["agent"](9) == expected
        assert {name: dict(vars(book[name])) for name in own} == own
        assert held() == before
