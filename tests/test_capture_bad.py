"""What goes wrong in a cell goes wrong as it would without us, and the rest is recorded."""

from __future__ import annotations

from typing import Any

import pytest
from capturing import Notebook, spans

torch: Any = pytest.importorskip("torch")


class Half(torch.nn.Module):  # type: ignore[misc]
    """Raises half way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x: Any, fail: bool = True) -> Any:
        x = self.first(x)
        if fail:
            raise ValueError("half way")
        return self.second(x)


@pytest.fixture
def notebook() -> Notebook:
    return Notebook(torch=torch, half=Half(), net=torch.nn.Linear(4, 4), x=torch.ones(2, 4))


def test_a_model_that_raises_half_way(notebook: Notebook) -> None:
    recording = notebook.profile(
        """
        try: half(x)
        except ValueError: pass
        y = half(x, False); z = x.tan()
        """
    )
    assert notebook.error is None
    failed, whole = spans(recording, "module")
    assert (failed.attributes["error"], "error" in whole.attributes) == ("ValueError", False)
    modules = [{o.module for o in recording.ops if o.span == s.id} for s in (failed, whole)]
    assert modules == [{"first"}, {"first", "second"}]
    assert [o.span for o in recording.ops if o.op == "aten::tan"] == [0]


def test_a_kind_of_call_that_failed_is_looked_at_again(notebook: Notebook) -> None:
    recording = notebook.profile(
        """
        half.forward, wrong = (lambda x: half.second(half.first(x))), half.forward
        for forward in (wrong, half.forward, half.forward):
            half.forward = forward
            try: half(x)
            except ValueError: pass
        del half.forward
        """
    )
    assert notebook.error is None
    assert [s.looked for s in spans(recording, "module")] == [True, True, False]


def test_hooks_that_the_cell_removes(notebook: Notebook) -> None:
    recording = notebook.profile(
        """
        seen = []
        handle = net.register_forward_hook(lambda *_: seen.append(1))
        net(x); handle.remove(); net(x)
        torch.nn.modules.module._global_forward_hooks.clear()
        torch.nn.modules.module._global_forward_pre_hooks.clear()
        net(x)
        """
    )
    assert notebook.error is None
    assert notebook["seen"] == [1]
    assert len(spans(recording, "module")) == 3


def test_a_module_that_is_deleted_during_the_cell(notebook: Notebook) -> None:
    recording = notebook.profile(
        """
        import gc
        y = net(x); del net; gc.collect()
        net = torch.nn.Linear(4, 2); z = net(x)
        """
    )
    assert notebook.error is None
    assert [info.class_name for info in recording.modules] == ["Linear", "Linear"]
    first, second = spans(recording, "module")
    flops = [sum(o.flops or 0 for o in recording.ops if o.span == s.id) for s in (first, second)]
    assert flops == [2 * 2 * 4 * 4, 2 * 2 * 4 * 2]


def test_tensors_of_no_elements(notebook: Notebook) -> None:
    recording = notebook.profile(
        "y = net(torch.ones(0, 4)); z = torch.ones(0).sum(); w = y @ torch.ones(4, 0)"
    )
    assert notebook.error is None
    assert all(o.flops is None or o.flops >= 0 for o in recording.ops)
    (product,) = [o for o in recording.ops if o.op == "aten::mm"]
    assert (product.flops, product.bytes_written) == (0.0, 0.0)
    assert recording.notes == ()


def test_a_tensor_of_two_to_the_forty_elements(notebook: Notebook) -> None:
    recording = notebook.profile(
        """
        from torch._subclasses import FakeTensorMode
        with FakeTensorMode():
            a = torch.ones(2**20, 2**20); b = a @ a
            big = torch.nn.Linear(2**20, 2**20, bias=False)(a)
        """
    )
    assert notebook.error is None
    (product,) = [o for o in recording.ops if o.op == "aten::mm" and o.span == 0]
    assert product.flops == 2.0**61
    assert product.bytes_read == 2.0**42
    assert recording.notes == ()
