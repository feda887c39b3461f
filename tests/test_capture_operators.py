"""Operators and module calls of eager torch."""

from __future__ import annotations

import gc
import traceback
import weakref
from pathlib import Path
from typing import Any

import pytest
from capturing import Notebook, edges, spans

from gimlet_lab.capture import operators as operators_module
from gimlet_lab.model import Op, Recording

torch: Any = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def op(recording: Recording, name: str) -> Op:
    (found,) = [o for o in recording.ops if o.op == f"aten::{name}"]
    return found


def mlp() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()


# -- loose operators ------------------------------------------------------------


def test_operators_outside_modules_are_seen_where_they_ran() -> None:
    notebook = Notebook(torch=torch)
    notebook.run("def f(x): return x @ x")
    recording = notebook.profile("x = torch.ones(4, 4); y = f(x)")
    product = op(recording, "mm")
    assert recording.spans[product.span].name == "f"
    assert (product.flops, product.bytes_read, product.bytes_written) == (2 * 4**3, 64.0, 64.0)
    assert (product.dtype, product.device, product.module) == ("float32", "cpu", "")
    assert op(recording, "ones").span == 0
    assert notebook["y"].sum() == 64


def test_equal_operators_back_to_back_are_one_row() -> None:
    recording = Notebook(torch=torch).profile("x = torch.zeros(3)\nfor _ in range(1000): x.add_(1)")
    row = op(recording, "add_")
    assert row.count == 1000
    assert row.flops == 3000
    assert row.bytes_read == row.bytes_written == 12_000.0
    assert 0 < row.duration_s < recording.spans[0].duration_s


def test_broadcast_operands_are_read_once() -> None:
    recording = Notebook(torch=torch).profile("a = torch.ones(1000, 1).expand(1000, 50); b = a * a + 1")
    assert op(recording, "mul").bytes_read == 4000.0
    assert op(recording, "mul").bytes_written == 200_000.0
    assert op(recording, "expand").bytes_read == 0.0


def test_flops_of_what_is_unknown_are_none_and_of_moving_zero() -> None:
    recording = Notebook(torch=torch).profile("a = torch.arange(9.).sort()[0]; b = a.clone()")
    assert op(recording, "sort").flops is None
    assert op(recording, "clone").flops == 0.0


def test_backward_and_optimizers_are_seen() -> None:
    model = torch.nn.Linear(8, 4)
    notebook = Notebook(model=model, sgd=torch.optim.SGD(model.parameters(), 0.1), x=torch.ones(2, 8))
    recording = notebook.profile("model(x).sum().backward(); sgd.step()")
    assert notebook.error is None
    names = [recording.spans[o.span].name for o in recording.ops]
    assert [n for n, o in zip(names, recording.ops, strict=True) if o.op == "aten::mm"] == ["backward"]
    assert "SGD.step" in names
    assert model.weight.grad is not None


def test_more_loose_operators_than_are_kept_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators_module, "MAX_LOOSE", 100)
    notebook = Notebook(torch=torch)
    recording = notebook.profile("x = torch.zeros(1)\nfor _ in range(300): x.add_(1)")
    assert notebook["x"].item() == 300
    assert sum(o.count for o in recording.ops) == 100
    assert any("truncated" in note for note in recording.notes)


def test_an_error_in_an_operator_looks_as_it_would_without_us() -> None:
    def lines(error: BaseException | None) -> list[str]:
        assert error is not None
        frames = traceback.extract_tb(error.__traceback__)
        return [f.name for f in frames if not f.filename.endswith("capturing.py")] + [str(error)]

    source = "def f(): return torch.ones(2, 3) @ torch.ones(2, 3)\nf()"
    bare, notebook = Notebook(torch=torch), Notebook(torch=torch)
    with pytest.raises(RuntimeError) as caught:
        bare.run(source)
    notebook.profile(source)
    outside = lines(caught.value)[1:]
    assert lines(notebook.error) == outside


def test_an_error_in_a_module_looks_as_it_would_without_us() -> None:
    model = mlp()

    def frames(error: BaseException | None) -> list[tuple[str, int | None]]:
        assert error is not None
        found = traceback.extract_tb(error.__traceback__)
        return [
            (f.name, f.lineno) for f in found if "capturing" not in f.filename and "test_" not in f.filename
        ]

    bare, notebook = Notebook(model=model, torch=torch), Notebook(model=model, torch=torch)
    with pytest.raises(RuntimeError) as caught:
        bare.run("model(torch.ones(2, 3))")
    notebook.profile("model(torch.ones(2, 3))")
    assert frames(notebook.error) == frames(caught.value)


def test_modes_of_the_users_go_on_working() -> None:
    from torch._subclasses import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Theirs(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Theirs.seen += 1
            return func(*args, **(kwargs or {}))

    notebook = Notebook(torch=torch, Fake=FakeTensorMode, Theirs=Theirs, model=mlp())
    recording = notebook.profile(
        """
        with torch.inference_mode(): a = model(torch.ones(1, 8))
        with Theirs():
            b = model(torch.ones(1, 8))
            c = model(torch.ones(1, 8))
        with Fake(allow_non_fake_inputs=True): d = model(torch.ones(3, 8))
        e = torch.ones(2) + 1
        """
    )
    assert notebook.error is None
    assert Theirs.seen > 0
    assert torch.equal(notebook["a"], notebook["c"])
    assert tuple(notebook["d"].shape) == (3, 4)
    assert [s.looked for s in spans(recording, "module")] == [True, False, False, True]
    assert recording.notes == ()
    assert torch._C._len_torch_dispatch_stack() == 0


def test_a_mode_that_the_cell_enters_and_never_leaves_stays() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Theirs(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    notebook = Notebook(torch=torch, theirs=Theirs())
    notebook.profile("x = torch.ones(2); theirs.__enter__(); y = x + 1")
    try:
        assert torch._C._len_torch_dispatch_stack() == 1
        assert torch._C._get_dispatch_stack_at(0) is notebook["theirs"]
    finally:
        notebook["theirs"].__exit__(None, None, None)


# -- module calls ------------------------------------------------------------


def test_an_outermost_call_is_one_span_and_its_first_is_looked_at() -> None:
    notebook = Notebook(model=mlp(), x=torch.ones(2, 8), z=torch.ones(5, 8))
    recording = notebook.profile("a = model(x); b = model(x); c = model(z)")
    calls = spans(recording, "module")
    assert [(s.name, s.target, s.role, s.looked) for s in calls] == [
        ("Sequential", "model", "forward", True),
        ("Sequential", "model", "forward", False),
        ("Sequential", "model", "forward", True),
    ]
    assert calls[0].signature == calls[1].signature != calls[2].signature
    assert calls[0].attributes["look_overhead_s"] > 0
    assert "look_overhead_s" not in calls[1].attributes
    assert calls[0].attributes["class"] == "Sequential"
    products = [o for o in recording.ops if o.op == "aten::addmm"]
    assert [(o.span, o.module) for o in products] == [(1, "0"), (1, "2"), (3, "0"), (3, "2")]
    assert products[0].weight_bytes == (8 * 16 + 16) * 4
    assert products[0].bytes_read == products[0].weight_bytes + 2 * 8 * 4


def test_exact_looks_at_every_call() -> None:
    recording = Notebook(model=mlp(), x=torch.ones(2, 8)).profile("model(x); model(x); model(x)", exact=True)
    assert [s.looked for s in spans(recording, "module")] == [True] * 3
    one, two, three = ([o.op for o in recording.ops if o.span == s.id] for s in spans(recording, "module"))
    assert one == two == three != []


def test_weights_are_known_by_block_and_shared_ones_count_once() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(10, 4)
            self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4, bias=False) for _ in range(2)])
            self.head = torch.nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("scale", torch.ones(3, dtype=torch.float64))

        def forward(self, ids: Any) -> Any:
            x = self.embed(ids)
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    recording = Notebook(pipe={"model": Tied()}, ids=torch.tensor([[1, 2]])).profile("pipe['model'](ids)")
    (module,) = recording.modules
    assert module.target == "pipe['model']"
    assert module.weights == {"embed": 160, "layers.0": 64, "layers.1": 64, "": 24}
    assert (module.class_name, module.dtype, module.device, module.compiled) == (
        "Tied",
        "float32",
        "cpu",
        False,
    )
    assert op(recording, "embedding").weight_bytes == 2 * 4 * 4


def test_modules_that_nothing_names_have_a_label_of_their_own() -> None:
    recording = Notebook(make=mlp, x=torch.ones(1, 8)).profile("make()(x); make()(x)")
    assert [s.target for s in spans(recording, "module")] == [None, None]
    assert [m.target for m in recording.modules] == ["<Sequential>", "<Sequential>#2"]
    assert [s.attributes["module"] for s in spans(recording, "module")] == ["<Sequential>", "<Sequential>#2"]


def test_a_module_that_raises_ends_its_span_and_the_next_call_is_whole() -> None:
    class Fails(torch.nn.Module):
        def forward(self, x: Any, error: type[BaseException]) -> Any:
            raise error

    notebook = Notebook(fails=torch.nn.ModuleList([Fails()]), model=mlp(), x=torch.ones(1, 8))
    recording = notebook.profile(
        """
        for error in (ValueError, KeyboardInterrupt):
            try: fails[0](x, error)
            except error: pass
            model(x)
        x + 1
        """
    )
    assert notebook.error is None
    calls = spans(recording, "module")
    assert [s.attributes.get("error") for s in calls] == ["ValueError", None, "KeyboardInterrupt", None]
    assert [s.parent for s in calls] == [0] * 4
    assert op(recording, "add").span == 0


def test_modules_called_in_other_threads_keep_to_themselves() -> None:
    notebook = Notebook(models=[mlp() for _ in range(4)], torch=torch)
    notebook.run(
        """
        import threading
        from concurrent.futures import ThreadPoolExecutor
        together = threading.Barrier(4)
        def call(i):
            together.wait()
            return [models[i](torch.ones(i + 1, 8)) for _ in range(5)]
        """
    )
    recording = notebook.profile("with ThreadPoolExecutor(4) as pool: out = list(pool.map(call, range(4)))")
    calls = spans(recording, "module")
    assert len(calls) == 20
    targets = {s.thread: s.target for s in calls}
    assert sorted(targets.values()) == [f"models[{i}]" for i in range(4)]
    for call in calls:
        assert call.target == targets[call.thread]
        assert recording.spans[call.parent].name == "call"
        rows = [o for o in recording.ops if o.span == call.id]
        assert [o.op for o in rows if "mm" in o.op] == (["aten::addmm"] * 2 if call.looked else [])


def test_functions_inside_a_module_are_the_modules() -> None:
    notebook = Notebook(torch=torch)
    notebook.run(
        """
        def helper(x): return x * 2
        class Net(torch.nn.Module):
            def forward(self, x): return helper(x)
        net = Net()
        """
    )
    recording = notebook.profile("net(torch.ones(2)); helper(1)")
    assert [(s.name, s.kind, s.parent) for s in recording.spans[1:]] == [
        ("Net", "module", 0),
        ("helper", "function", 0),
    ]


def test_a_redirected_call_is_not_looked_into_and_says_where_it_ran() -> None:
    model = mlp()
    plain = model.forward

    def redirected(x: Any) -> Any:
        return plain(x)

    routes = {"forward": {"device": "cpu/1", "bound": "compute", "stage": "s1"}}
    redirected.__gimlet_placed__ = routes  # type: ignore[attr-defined]
    model.__dict__["forward"] = redirected
    recording = Notebook(model=model, x=torch.ones(1, 8)).profile("model(x)")
    (call,) = spans(recording, "module")
    assert call.looked is False
    assert {key: call.attributes[key] for key in routes["forward"]} == routes["forward"]
    assert [o for o in recording.ops if o.span == call.id] == []


# -- data ------------------------------------------------------------


def test_tensors_go_from_module_to_module_and_through_functions() -> None:
    notebook = Notebook(
        torch=torch, first=mlp(), second=torch.nn.Linear(4, 4), numpy=pytest.importorskip("numpy")
    )
    notebook.run(
        """
        def embed(x): return first(x).mean(0).detach().numpy()
        def search(vector): return torch.from_numpy(vector)
        def use(x): return x
        """
    )
    recording = notebook.profile(
        """
        use(search(embed(torch.ones(3, 8))))
        hidden = first(torch.ones(3, 8))
        view = hidden[1:]
        out = second(view)
        other = second(torch.ones(2, 4))
        """
    )
    assert edges(recording) == {("embed", "search"), ("embed", "use"), ("Sequential", "Linear")}
    last = next(t for t in recording.transfers if recording.spans[t.consumer].name == "Linear")
    assert (last.known, last.kind, last.bytes, last.name) == ("tensor", "activation", 2 * 4 * 4.0, "input")


def test_the_last_writer_counts() -> None:
    notebook = Notebook(torch=torch)
    notebook.run(
        """
        def make(): return torch.ones(4)
        def change(x): x.mul_(2)
        def look(x): return x[0]
        def use(x): return None
        """
    )
    recording = notebook.profile("x = make(); look(x); change(x); use(x)")
    assert edges(recording) == {("make", "look"), ("make", "change"), ("change", "use")}


def test_a_module_that_hands_its_input_on_did_not_make_it() -> None:
    class Adds(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.add_(1)

    notebook = Notebook(torch=torch, same=torch.nn.Identity(), adds=Adds(), last=torch.nn.ReLU())
    notebook.run("def make(): return torch.ones(4)")
    recording = notebook.profile("x = make(); last(same(x)); last(adds(x))")
    assert edges(recording) == {("make", "Identity"), ("make", "ReLU"), ("make", "Adds"), ("Adds", "ReLU")}


def test_freed_and_reused_memory_makes_no_edge() -> None:
    notebook = Notebook(torch=torch, model=mlp())
    notebook.run("def take(x): return None")
    recording = notebook.profile(
        "for i in range(100):\n    model(torch.ones(4, 8))\n    take(torch.rand(4, 4))"
    )
    assert len(spans(recording, name="take")) == 100
    assert edges(recording) == set()


def test_no_tensor_is_kept_alive() -> None:
    notebook = Notebook(torch=torch, model=mlp(), weakref=weakref)
    notebook.run(
        """
        def make(): return {"hidden": torch.ones(8, 8), "more": [torch.ones(3)]}
        def use(d): return model(d["hidden"])
        """
    )
    notebook.profile(
        """
        d = make(); out = use(d)
        references = [weakref.ref(d["hidden"]), weakref.ref(d["more"][0]), weakref.ref(out)]
        storages = [r().untyped_storage()._weak_ref() for r in references]
        del d, out
        alive = [r() is not None for r in references]
        gone = [torch.UntypedStorage._expired(s) for s in storages]
        """
    )
    gc.collect()
    assert notebook.error is None
    assert notebook["alive"] == [False] * 3
    assert notebook["gone"] == [True] * 3


def test_a_deleted_module_is_forgotten() -> None:
    notebook = Notebook(make=mlp, x=torch.ones(1, 8), weakref=weakref)
    notebook.profile(
        "m = make(); m(x); r = weakref.ref(m); del m\nimport gc; gc.collect(); alive = r() is not None"
    )
    assert notebook["alive"] is False


# -- what else people do with torch --------------------------------------------

CELLS = {
    "checkpoint": """
        from torch.utils.checkpoint import checkpoint
        y = x.clone().requires_grad_()
        checkpoint(net, y, use_reentrant=False).sum().backward()
        out = y.grad
        """,
    "symbolic trace": "import torch.fx; out = torch.fx.symbolic_trace(net)(x)",
    "vmap": "out = torch.func.vmap(net)(x)",
    "grad": """
        call = lambda p: torch.func.functional_call(net, p, (x,)).sum()
        out = torch.func.grad(call)(dict(net.named_parameters()))["0.weight"]
        """,
    "nested tensors": """
        ragged = torch.nested.nested_tensor([x[0], x[1, :3]], layout=torch.jagged)
        out = torch.nested.to_padded_tensor(ragged * 2, 0.0)
        """,
    "sparse": "out = torch.sparse.mm(torch.eye(8).to_sparse(), x.T)",
    "complex": "out = torch.fft.fft(x).abs()",
    "lazy": "torch.manual_seed(0); out = torch.nn.LazyLinear(3)(x)",
    "autocast": "with torch.autocast('cpu', dtype=torch.bfloat16): out = net(x)",
    "lstm": "torch.manual_seed(0); out = torch.nn.LSTM(8, 4)(x[None])[0]",
    "fast path": """
        torch.manual_seed(0)
        out = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()(x[None])
        """,
    "hooks": """
        import torch.nn.modules.module as m
        hooks = [net[0].register_forward_hook(lambda m, a, r: r * 2)]
        hooks.append(m.register_module_forward_hook(lambda m, a, r: r + 1))
        out = net(x)
        for hook in hooks: hook.remove()
        """,
    "workers": """
        from torch.utils.data import DataLoader, TensorDataset
        out = torch.cat([batch[0] for batch in DataLoader(TensorDataset(x), batch_size=1, num_workers=1)])
        """,
    "meta": "out = torch.nn.Linear(8, 4, device='meta')(x.to('meta')); out = torch.zeros(out.shape)",
    "shared with numpy": "a = x.numpy(); a[0, 0] = 5; out = x * 1",
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.filterwarnings("ignore")
def test_a_cell_does_what_it_does_without_us(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # How long a loader's worker takes to start depends on how large the process is that it is forked from.
    monkeypatch.setattr("gimlet_lab.capture.workers.LEAST_S", 60.0)
    torch.manual_seed(0)
    net, x = mlp(), torch.randn(3, 8)
    bare, profiled = Notebook(torch=torch, net=net, x=x.clone()), Notebook(torch=torch, net=net, x=x.clone())
    bare.run(CELLS[name])
    recording = profiled.profile(CELLS[name])
    assert profiled.error is None
    assert torch.equal(bare["out"], profiled["out"])
    assert recording.notes == ()
    assert torch._C._len_torch_dispatch_stack() == 0


# -- edges through what the cell computes ------------------------------------------------------------


def test_what_the_cell_computes_passes_on_where_it_comes_from() -> None:
    models = {name: torch.nn.Linear(4, 4).eval() for name in "abcd"}
    recording = Notebook(torch=torch, x=torch.ones(2, 4), **models).profile(
        """
        h, g = a(x), b(x)
        y = c((h * 2 + g).relu())
        h[:1].add_(y[:1])
        z = d(h)
        """
    )
    names = {s.id: s.target for s in spans(recording, "module")}
    found = {(names[t.producer], names[t.consumer]) for t in recording.transfers}
    assert found == {("a", "c"), ("b", "c"), ("a", "d"), ("c", "d")}


def test_what_is_overwritten_as_a_whole_comes_from_nobody_else() -> None:
    models = {name: torch.nn.Linear(4, 4).eval() for name in "abcd"}
    recording = Notebook(torch=torch, x=torch.ones(2, 4), **models).profile(
        """
        with torch.no_grad():
            buffer = torch.empty(2, 4)
            buffer.copy_(a(x)); y = b(buffer)
            buffer.copy_(c(x)); z = d(buffer)
            buffer.zero_(); w = b(buffer)
        """
    )
    names = {s.id: s.target for s in spans(recording, "module")}
    found = {(names[t.producer], names[t.consumer]) for t in recording.transfers}
    assert found == {("a", "b"), ("c", "d")}


def test_a_function_passes_on_only_what_it_holds() -> None:
    models = {name: torch.nn.Linear(4, 4).eval() for name in "ab"}
    notebook = Notebook(torch=torch, x=torch.ones(2, 4), **models)
    notebook.run("def double(h): return h * 2\ndef inside(h): return a(h) + 1")
    recording = notebook.profile("y = b(double(a(x))); z = b(inside(x))")
    named = {s.id: s.name if s.kind == "function" else str(s.target) for s in recording.spans}
    ids = [s.id for s in spans(recording, "module")]
    between = {(t.producer, t.consumer) for t in recording.transfers if {t.producer, t.consumer} <= set(ids)}
    assert between == {(ids[2], ids[3])}  # through double, its own edges; through inside, the module's
    assert {("a", "double"), ("double", "b")} <= {
        (named[t.producer], named[t.consumer]) for t in recording.transfers
    }


def test_what_is_made_of_others_is_seen_from_inside_under_inference_mode() -> None:
    recording = Notebook(torch=torch, x=torch.ones(4, 6)).profile(
        """
        with torch.inference_mode():
            a = x.contiguous(); b = x.t().contiguous(); c = x.t().reshape(24); d = x.reshape(24)
            e = torch.matmul(x, x.t()); f = torch.einsum("ij,kj->ik", x, x)
        """
    )
    clones = [o for o in recording.ops if o.op == "aten::clone"]
    assert [(o.bytes_read, o.bytes_written) for o in clones] == [(96.0, 96.0)] * 2
    products = [o for o in recording.ops if o.op in ("aten::mm", "aten::bmm")]
    assert sum(o.flops or 0 for o in products) == 2 * 2 * 4 * 6 * 4
    assert "aten::matmul" not in {o.op for o in recording.ops}


@pytest.mark.parametrize("how", ["plain", "memory", "disk"])
def test_weights_that_accelerate_fetches_for_each_call_are_weights(how: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = mlp()
    here = torch.device("cpu")
    if how == "memory":
        accelerate.cpu_offload(model, execution_device=here)
    if how == "disk":
        accelerate.disk_offload(model, str(tmp_path), execution_device=here)
    before = [dict(vars(part)) for part in model.modules()]
    notebook = Notebook(model=model, torch=torch)
    recording = notebook.profile("with torch.no_grad(): out = [model(torch.ones(2, 8)) for _ in range(2)]")
    assert notebook.error is None
    weighed = [(op.flops, op.weight_bytes) for op in recording.ops if op.op == "aten::addmm"]
    assert weighed == [(512.0, 4.0 * (8 * 16 + 16)), (256.0, 4.0 * (16 * 4 + 4))]
    put_back = [op for op in recording.ops if op.op == "aten::_to_copy"]
    still = [op for op in put_back if op.bytes_read == op.bytes_written == 0.0]
    assert bool(still) == (how != "plain"), "nothing moves to meta"
    assert how == "disk" or still == put_back
    assert [dict(vars(part)) for part in model.modules()] == before
