"""Processes that a cell starts, and weights that are made of other tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from capturing import Notebook

from gimlet_lab.capture.workers import Workers

#: Computes for a fifth of a second of its own CPU time, then says so, and waits until its input ends.
_BUSY = (
    "import time, sys\n"
    "while time.process_time() < 0.2: pass\n"
    "print('done', flush=True)\n"
    "sys.stdin.read()"
)  # fmt: skip


def started() -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", _BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    return child


def ended(child: subprocess.Popen[str]) -> None:
    child.communicate()


def test_what_worker_processes_took_is_said() -> None:
    notebook = Notebook(started=started, ended=ended)
    recording = notebook.profile("ended(started())")
    assert notebook.error is None
    said = [note for note in recording.notes if "worker processes" in note]
    assert len(said) == 1, recording.notes
    assert 0.15 < float(said[0].split("used ")[1].split()[0]) < 2
    assert not [note for note in notebook.profile("1 + 1").notes if "worker" in note]


def test_what_was_spent_before_was_not_spent_here_and_stages_of_a_plan_count_elsewhere() -> None:
    child = started()
    try:
        workers = Workers()
        assert workers.note() is None
        ended(child)
        assert workers.note() is None, "it ended here, and had worked before"
        child = started()
        said = Workers.note(workers)
        assert said is not None
        assert "1 of them still running" in said
        assert Workers(known=[child.pid]).note() is None
        assert os.getpid() != child.pid
    finally:
        ended(child)


def test_a_weight_made_of_other_tensors_is_read_as_it_is_stored() -> None:
    torch: Any = pytest.importorskip("torch")
    from torch.utils._python_dispatch import return_and_correct_aliasing

    class Int8(torch.Tensor):  # type: ignore[misc]
        """A weight of float32 over values of int8, as quantisation libraries have it."""

        @staticmethod
        def __new__(cls: Any, values: Any, scale: Any) -> Any:
            return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32)

        def __init__(self, values: Any, scale: Any) -> None:
            self.values, self.scale = values, scale

        def __tensor_flatten__(self) -> tuple[list[str], None]:
            return ["values", "scale"], None

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.t.default:
                out = cls(args[0].values.t(), args[0].scale)
                return return_and_correct_aliasing(func, args, kwargs or {}, out)
            if func is torch.ops.aten.detach.default:
                return return_and_correct_aliasing(
                    func, args, kwargs or {}, cls(args[0].values, args[0].scale)
                )
            if func is torch.ops.aten.mm.default:
                x, weight = args
                return (x @ weight.values.to(x.dtype)) * weight.scale
            raise NotImplementedError(str(func))

    net = torch.nn.Linear(256, 512, bias=False)
    values = torch.randint(-128, 127, (512, 256), dtype=torch.int8)
    net.weight = torch.nn.Parameter(Int8(values, torch.ones(512)), requires_grad=False)
    recording = Notebook(torch=torch, net=net, x=torch.randn(8, 256)).profile("with torch.no_grad(): net(x)")
    (module,) = recording.modules
    assert sum(module.weights.values()) == 512 * 256 + 512 * 4
    inside = [op for op in recording.ops if op.span == 1]
    assert sum(op.flops or 0 for op in inside) == 2 * 8 * 256 * 512 + 8 * 512
    assert sum(op.weight_bytes for op in inside) == 512 * 256 + 512 * 4


def test_a_distributed_weight_is_its_local_shard() -> None:
    torch: Any = pytest.importorskip("torch")
    distributed: Any = pytest.importorskip("torch.distributed")
    from torch.distributed.tensor import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        net = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 64))
        mesh = init_device_mesh("cpu", (1,))
        parallelize_module(net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        notebook = Notebook(torch=torch, net=net, x=torch.randn(8, 256))
        recording = notebook.profile("with torch.no_grad(): net(x)")
        assert notebook.error is None
    finally:
        distributed.destroy_process_group()
    (module,) = recording.modules
    stored = 4 * (256 * 512 + 512 + 512 * 64 + 64)
    assert sum(module.weights.values()) == stored
    products = [op for op in recording.ops if op.op == "aten::addmm"]
    assert [op.flops for op in products] == [2 * 8 * 256 * 512, 2 * 8 * 512 * 64]
    assert sum(op.weight_bytes for op in recording.ops) == stored
