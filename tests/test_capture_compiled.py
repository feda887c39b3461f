"""torch.compile and capture leave one another alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from capturing import Notebook, spans

import gimlet_lab as gimlet
from gimlet_lab.analysis import analyse
from gimlet_lab.model import Device

torch: Any = pytest.importorskip("torch")

SOURCE = """
def plain(x): return net(x).sin() + 1

def broken(x):
    y = net(x).sin()
    torch._dynamo.graph_break()
    return net(y)

def calls(x): return function(x) * 2

class Outer(torch.nn.Module):
    # A library's compiled function, inside a module that is not compiled.
    def forward(self, x): return hidden(x) + 1

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = make()
    def forward(self, x): return self.inner(x) + 1
"""
NAMES = ("function", "graphs", "calls", "module", "in_place", "outer")


class Backend:
    """Counts what is compiled, and how often the compiled code runs."""

    def __init__(self) -> None:
        self.compiled = 0
        self.ran = 0

    def __call__(self, graph: Any, _inputs: Any) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.ran += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def backend() -> Iterator[Backend]:
    torch._dynamo.reset()
    yield Backend()
    torch._dynamo.reset()


@pytest.fixture
def notebook(backend: Backend) -> Notebook:
    def make() -> Any:
        return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))

    notebook = Notebook(torch=torch, make=make, net=make(), x=torch.ones(2, 4))
    notebook.run(SOURCE)
    names = notebook.namespace
    names["function"] = torch.compile(names["plain"], backend=backend)
    names["graphs"] = torch.compile(names["broken"], backend=backend)
    names["hidden"] = torch.compile(lambda x: names["net"](x).cos(), backend=backend)
    names["module"] = torch.compile(names["net"], backend=backend)
    names["outer"] = names["Outer"]()
    names["in_place"] = names["Net"]()
    names["in_place"].compile(backend=backend)
    return notebook


def go(notebook: Notebook, backend: Backend, *, profiled: bool) -> list[tuple[int, int]]:
    """For each callable: how many graphs were compiled, and how many ran."""
    found = []
    for name in NAMES:
        compiled, ran = backend.compiled, backend.ran
        if profiled:
            notebook.profile(f"{name}(x)")
            assert notebook.error is None
        else:
            notebook.run(f"{name}(x)")
        found.append((backend.compiled - compiled, backend.ran - ran))
    return found


BARE_FIRST = [(1, 1), (2, 2), (0, 1), (1, 1), (1, 1), (1, 1)]
BARE_AGAIN = [(0, ran) for _, ran in BARE_FIRST]


def test_what_was_compiled_before_the_cell_stays_compiled(notebook: Notebook, backend: Backend) -> None:
    with warnings.catch_warnings():
        # What torch says of hooks that are on while something is compiled.
        warnings.filterwarnings("error", message=".*hooks.*")
        assert go(notebook, backend, profiled=False) == BARE_FIRST
        assert go(notebook, backend, profiled=True) == BARE_AGAIN
        assert go(notebook, backend, profiled=True) == BARE_AGAIN
        assert go(notebook, backend, profiled=False) == BARE_AGAIN


def test_what_is_compiled_in_the_cell_is_compiled_once(notebook: Notebook, backend: Backend) -> None:
    with warnings.catch_warnings():
        # What torch says of hooks that are on while something is compiled.
        warnings.filterwarnings("error", message=".*hooks.*")
        assert go(notebook, backend, profiled=True) == BARE_FIRST
        assert go(notebook, backend, profiled=True) == BARE_AGAIN
        assert go(notebook, backend, profiled=False) == BARE_AGAIN
        assert go(notebook, backend, profiled=False) == BARE_AGAIN


def test_compiled_code_is_a_region(notebook: Notebook) -> None:
    recording = notebook.profile("function(x); module(x); in_place(x); outer(x); x + 1")
    found = [(s.name, s.kind, s.target, s.looked) for s in recording.spans[1:]]
    assert found == [
        ("plain", "function", "function", False),
        ("OptimizedModule", "module", "module", False),
        ("Net", "module", "in_place", False),
        ("Outer", "module", "outer", True),
    ]
    assert recording.spans[1].attributes["compiled"] is True
    assert {m.target: m.compiled for m in recording.modules} == {
        "module": True,
        "in_place": True,
        "outer": False,
    }
    assert "aten::add" in {o.op for o in recording.ops if o.span == 0}
    assert any("torch.compile took" in note for note in recording.notes)


def test_compiled_code_that_raises_ends_its_region(notebook: Notebook) -> None:
    recording = notebook.profile(
        """
        for call in (function, module):
            try: call(torch.ones(2, 3))
            except Exception: pass
        net(x)
        """
    )
    assert [(s.kind, "error" in s.attributes) for s in recording.spans[1:]] == [
        ("function", True),
        ("module", True),
        ("module", False),
    ]
    assert spans(recording, "module")[-1].looked


def test_what_is_kept_off_compiling_is_no_region(notebook: Notebook) -> None:
    notebook.run("""
        @torch._dynamo.disable
        def eager(x): return net(x)
        class Off(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = make()
                self.forward = torch._dynamo.disable(lambda x: self.inner(x))
        off = Off()
        """)
    recording = notebook.profile("eager(x); off(x)")
    assert notebook.error is None
    found = [(s.name, s.looked) for s in spans(recording, "module")]
    assert found == [("Sequential", True), ("Off", True)]


def test_resetting_dynamo_in_the_cell_does_no_harm(notebook: Notebook) -> None:
    recording = notebook.profile("function(x); torch._dynamo.reset(); function(x)")
    assert notebook.error is None
    assert not [note for note in recording.notes if "not put back" in note]
    assert torch._dynamo.callback_handler.start_callbacks == []
    assert torch._dynamo.callback_handler.end_callbacks == []


def test_inductor_code_is_not_dispatched_again(backend: Backend) -> None:
    # aot_eager takes the road that inductor takes, without a C++ compiler.
    compiled = torch.compile(lambda x: (x * 2).relu().sum(), backend="aot_eager")
    notebook = Notebook(f=compiled, x=torch.ones(4))
    notebook.run("bare = f(x)")
    notebook.profile("seen = f(x)")
    counters = torch._dynamo.utils.counters["stats"].copy()
    notebook.run("after = f(x)")
    assert torch._dynamo.utils.counters["stats"] == counters
    assert notebook["bare"] == notebook["seen"] == notebook["after"]


@pytest.mark.slow
def test_export_and_tracing_in_the_cell() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    notebook = Notebook(torch=torch, net=net, x=torch.ones(2, 4))
    recording = notebook.profile(
        """
        bare = net(x)
        exported = torch.export.export(net, (x,)).module()(x)
        scripted = torch.jit.script(net)(x)
        """
    )
    assert notebook.error is None
    assert torch.equal(notebook["bare"], notebook["exported"])
    assert torch.equal(notebook["bare"], notebook["scripted"])
    assert len(spans(recording, "module")) >= 2


def test_what_compiled_code_computes_is_counted_on_fake_tensors(backend: Backend) -> None:
    notebook = Notebook(torch=torch)
    notebook.run(
        """
net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8))
x = torch.randn(16, 64)
said = []
class Loud(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.last = net, None
        self.register_buffer("count", torch.zeros(()))
    def forward(self, x):
        self.last = self.net(x)
        self.count += 1
        return self.last
def scaled(x, *, by): return (net(x) * by).relu()
loud = Loud()
"""
    )
    names = notebook.namespace
    names["fast"] = torch.compile(names["scaled"], backend=backend)
    names["inplace"] = names["loud"]
    names["inplace"].compile(backend=backend)
    recording = notebook.profile("for _ in range(3):\n    fast(x, by=2.0)\n    loud(x)")
    assert notebook.error is None
    rows = {recording.spans[op.span].name: op for op in recording.ops if op.op == "compiled"}
    products = 2 * 16 * 64 * 128 + 2 * 16 * 128 * 8
    for name in ("scaled", "Loud"):
        assert products <= rows[name].flops <= products + 16 * (128 + 8) * 4
        assert rows[name].bytes_written >= 16 * 8 * 4
        weights = 4 * (64 * 128 + 128 + 128 * 8 + 8)
        assert weights <= rows[name].weight_bytes <= weights + 8
        assert rows[name].bytes_read == pytest.approx(weights + 16 * 64 * 4, abs=8)
    loud = names["loud"]
    assert float(loud.count) == 3.0, "the counting counted nothing"
    assert type(loud.last) is torch.Tensor
    assert torch.equal(loud.last, names["net"](names["x"]))
    assert backend.compiled == 2
    ran = backend.ran
    notebook.run("loud(x); fast(x, by=2.0)")
    assert (backend.compiled, backend.ran) == (2, ran + 2), "still compiled"


def test_calls_of_compiled_code_like_one_that_was_counted_are_inferred(backend: Backend) -> None:
    names = {"torch": torch, "net": torch.nn.Linear(512, 512), "x": torch.randn(256, 512)}
    names["fast"] = torch.compile(names["net"], backend=backend)
    code = Notebook().compile("for _ in range(5): fast(x)")
    with gimlet.profile("compiled", namespace=names) as recorder:
        exec(code, names)
    stage = next(stage for stage in recorder.run.graph.stages if stage.kind == "module")
    assert stage.calls == 5
    assert stage.flops == pytest.approx(5 * 2 * 256 * 512 * 512, rel=0.01)


@pytest.mark.parametrize("by", ["aot_eager", "eager"])
def test_a_backward_pass_over_compiled_code_is_counted_like_the_bare_one(by: str) -> None:
    torch._dynamo.reset()
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8))
    notebook = Notebook(net=net, x=torch.randn(16, 64), part=torch.compile(net, backend=by))
    notebook.run("def loss(x): return net(x).square().sum()")
    notebook.namespace["whole"] = torch.compile(notebook["loss"], backend=by)
    steps = "for _ in range(3):\n    net.zero_grad()\n    {}.backward()"
    code = {
        "bare": steps.format("net(x).square().sum()"),
        "whole": steps.format("whole(x)"),  # the way back is compiled as well
        "part": steps.format("part(x).square().sum()"),  # and here there is more than that of it
    }
    found = {}
    for name, source in code.items():
        notebook.run(source)
        recording = notebook.profile(source)
        assert notebook.error is None
        assert not [note for note in recording.notes if "not counted" in note or "unknown" in note]
        ops = analyse(recording, Device("cpu", "cpu", "unknown", "cpu", live=True)).operators
        found[name] = [op for op in ops if recording.spans[op.span].name == "backward"]
    products = 2 * 16 * (64 * 128 + 2 * 128 * 8)  # no gradient of x
    slack = 16 * (128 + 8) * 4
    for name, ops in found.items():
        assert 3 * products <= sum(op.flops for op in ops) <= 3 * (products + slack), name
        compiled = [op for op in ops if op.op == "compiled"]
        assert bool(compiled) == (by == "aot_eager" and name != "bare"), name
        if compiled:
            assert not [op for op in ops if op.op == "aten::mm"]
            assert sum(op.count for op in compiled) == 3
            assert sum(op.weight_bytes for op in compiled) == 3 * 4 * 128 * 8
            saved, gradients = 4 * 16 * 128, 4 * (64 * 128 + 128 + 128 * 8 + 8)
            assert sum(op.bytes_read for op in compiled) >= 3 * saved
            assert sum(op.bytes_written for op in compiled) == pytest.approx(3 * gradients, rel=0.01)
    assert net[0].weight.grad is not None, "counting has left the gradients alone"
    assert type(net[0].weight.grad) is torch.Tensor
    torch._dynamo.reset()


def test_what_cannot_be_counted_is_said_once(backend: Backend) -> None:
    notebook = Notebook(torch=torch, x=torch.ones(4))
    notebook.run(
        """
class Box:
    def __init__(self, x): self.x = x
def boxed(box): return box.x + 1
def decides(x): return x + 1 if x.sum() > 3 else x
"""
    )
    for name in ("boxed", "decides"):
        notebook.namespace[name] = torch.compile(notebook[name], backend=backend)
    recording = notebook.profile("for _ in range(2):\n    boxed(Box(x))\n    decides(x)")
    assert notebook.error is None
    said = [note for note in recording.notes if "not counted" in note]
    assert len(said) == 2, recording.notes
    assert "a Box among its arguments" in said[0]
    assert "needs values" in said[1]
    assert not [op for op in recording.ops if op.op == "compiled"]


@pytest.mark.parametrize("first", [False, True], ids=["compiled before", "compiled in the cell"])
def test_a_model_that_a_library_compiles_has_its_calls_and_their_work(backend: Backend, first: bool) -> None:
    """With a static cache ``generate`` compiles the model itself, on an accelerator by default."""
    pytest.importorskip("transformers")
    from small_llm import IDS, make_llm
    from transformers import CompileConfig

    def by(graph: Any, inputs: Any) -> Any:  # the config is copied, and its backend with it
        return backend(graph, inputs)

    compiles = CompileConfig(backend=by, fullgraph=False, mode=None)
    compiles._compile_all_devices = True
    notebook = Notebook(torch=torch, llm=make_llm(), ids=IDS, mask=torch.ones_like(IDS), compiles=compiles)
    greedy = "max_new_tokens=6, do_sample=False, cache_implementation='static'"
    cell = f"with torch.inference_mode():\n    out = llm.generate(ids, attention_mask=mask, {greedy}{{}})"
    bare, compiled = cell.format(""), cell.format(", compile_config=compiles")
    notebook.run(bare)
    expected = notebook["out"]
    if not first:
        notebook.run(compiled)
    looked = notebook.profile(bare)
    assert backend.compiled == (0 if first else 1)
    recording = notebook.profile(compiled)
    assert notebook.error is None
    assert torch.equal(notebook["out"], expected)
    assert backend.compiled == 1
    calls = spans(recording, "module")
    assert [call.role for call in calls] == ["prefill"] + ["decode"] * 5
    assert [call.attributes["past_len"] for call in calls] == [0, *range(11, 16)]

    def decoded(found: Any) -> dict[str, float]:
        of = next(span for span in spans(found, "module") if span.role == "decode")
        ops = [op for op in found.ops if op.span == of.id]
        names = ("flops", "weight_bytes", "kv_bytes")
        return {name: sum(getattr(op, name) or 0.0 for op in ops) for name in names}

    assert decoded(recording) == pytest.approx(decoded(looked), rel=0.01)
    ran = backend.ran
    notebook.run(compiled)
    assert (backend.compiled, backend.ran) == (1, ran + 5), "still compiled"


def test_a_compiled_model_is_counted_again_when_its_cache_has_doubled(backend: Backend) -> None:
    pytest.importorskip("transformers")
    from small_llm import IDS, make_llm

    llm = make_llm()
    llm.compile(backend=backend, dynamic=True)
    notebook = Notebook(torch=torch, llm=llm, ids=IDS, mask=torch.ones_like(IDS))
    tokens = "max_new_tokens=40, do_sample=False"
    cell = f"with torch.inference_mode(): llm.generate(ids, attention_mask=mask, {tokens})"
    recording = notebook.profile(cell)
    assert notebook.error is None
    calls = [call for call in spans(recording, "module") if call.role == "decode"]
    counted = {call.id: call.attributes["past_len"] for call in calls if "counted" in call.attributes}
    assert list(counted.values()) == [11, 22, 44]
    a_token = 2 * 2 * IDS.shape[0] * 2 * 8 * 4  # layers, keys and values, prompts, heads of 8, float32
    rows = {op.span: op for op in recording.ops if op.op == "compiled"}
    assert {past: rows[span].kv_bytes for span, past in counted.items()} == {
        past: past * a_token for past in (11, 22, 44)
    }
