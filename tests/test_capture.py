"""The recorder as a whole: it starts, it stops, it leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from capturing import Notebook, is_cell_file, spans

from gimlet_lab.capture import Recorder
from gimlet_lab.capture.waits import Sampler

torch: Any = pytest.importorskip("torch")

CALL = torch.nn.Module.__call__


def left_over() -> dict[str, Any]:
    """Everything of ours that may be on torch or sys."""
    return {
        "call": torch.nn.Module.__call__ is not CALL,
        "modes": torch._C._len_torch_dispatch_stack(),
        "profile": sys.getprofile(),
        "thread profile": threading.getprofile(),
        "threads": [t.name for t in threading.enumerate() if t.name.startswith("gimlet")],
        "finders": [f for f in sys.meta_path if "gimlet" in type(f).__module__],
        "current": Recorder.current(),
        "hooks": len(torch.nn.modules.module._global_forward_hooks),
        "callbacks": "torch._dynamo" in sys.modules and torch._dynamo.callback_handler.start_callbacks,
    }


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    clean = left_over()
    yield
    assert left_over() == clean


@pytest.fixture
def recorder() -> Recorder:
    return Recorder({}, is_cell_file)


def test_an_empty_cell_is_a_recording() -> None:
    recording = Notebook().profile("")
    assert [s.kind for s in recording.spans] == ["cell"]
    assert recording.status == "ok"
    assert recording.error is None
    assert recording.samples[0].start_s >= 0
    assert recording.threads == torch.get_num_threads()


def test_samples_cover_the_cell() -> None:
    recording = Notebook().profile("import time; time.sleep(0.05)")
    cell = recording.spans[0]
    covered = sum(s.duration_s for s in recording.samples)
    assert covered == pytest.approx(cell.duration_s, rel=0.2)
    for one, other in zip(recording.samples, recording.samples[1:], strict=False):
        assert other.start_s == pytest.approx(one.start_s + one.duration_s)


@pytest.mark.parametrize(
    "error", ["ValueError('x')", "SystemExit(3)", "KeyboardInterrupt()", "MemoryError()"]
)
def test_a_cell_that_ends_badly_is_recorded_as_far_as_it_got(error: str) -> None:
    notebook = Notebook(torch=torch)
    notebook.run(
        f"""
        class Fails(torch.nn.Module):
            def forward(self, x):
                x + 1
                raise {error}
        fails = Fails()
        def f(): fails(torch.ones(2))
        """
    )
    recording = notebook.profile("f()")
    assert type(notebook.error).__name__ == recording.error == error.partition("(")[0]
    assert recording.status == ("interrupted" if error.startswith("Keyboard") else "failed")
    assert [s.name for s in recording.spans] == ["cell", "f", "Fails"]
    assert spans(recording, "module")[0].attributes["error"] == recording.error
    assert "aten::add" in {o.op for o in recording.ops}


def test_one_recorder_at_a_time_and_each_once(recorder: Recorder) -> None:
    with pytest.raises(RuntimeError):
        recorder.stop()
    recorder.start()
    assert Recorder.current() is recorder
    with pytest.raises(RuntimeError):
        Recorder({}, is_cell_file).start()
    assert Recorder.current() is recorder
    assert recorder.stop() is recorder.stop()
    with pytest.raises(RuntimeError):
        recorder.start()


def test_a_start_that_fails_leaves_nothing(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Sampler) -> None:
        raise OSError("can't start new thread")

    monkeypatch.setattr(Sampler, "start", fail)
    with pytest.raises(OSError, match="thread"):
        recorder.start()


def test_a_hundred_cells_leave_nothing() -> None:
    model = torch.nn.Linear(4, 4)
    before = [dict(vars(model)), sorted(model._forward_hooks)]
    notebook = Notebook(model=model, x=torch.ones(1, 4))
    notebook.run("def f(): return model(x)")
    for _ in range(100):
        notebook.profile("f()")
    assert [dict(vars(model)), sorted(model._forward_hooks)] == before


def test_stopped_from_another_thread_the_cells_own_lets_go_at_its_next_step(recorder: Recorder) -> None:
    recorder.start()
    thread = threading.Thread(target=recorder.stop)
    thread.start()
    thread.join()
    x = torch.ones(3) + 1
    abs(-1)
    assert x.sum() == 6
    assert recorder.stop().status == "ok"


def test_threads_that_outlive_the_cell_are_left_in_peace() -> None:
    notebook = Notebook(torch=torch, model=torch.nn.Linear(4, 4))
    notebook.run(
        """
        import sys, threading
        go, done = threading.Event(), []
        def work():
            model(torch.ones(1, 4))
            go.wait()
            model(torch.ones(1, 4))
            done.append((sys.getprofile(), torch._C._len_torch_dispatch_stack()))
        thread = threading.Thread(target=work)
        """
    )
    notebook.profile("thread.start()")
    notebook["go"].set()
    notebook["thread"].join()
    assert notebook["done"] == [(None, 0)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_left_alone() -> None:
    notebook = Notebook(torch=torch, model=torch.nn.Linear(4, 4), left_over=left_over, os=os)
    notebook.run("def f(): return model(torch.ones(1, 4))")
    recording = notebook.profile(
        """
        import warnings
        f()
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if not child:
            try:
                f()
                found = left_over()
                os.write(write, repr([v for k, v in found.items() if k != "callbacks" and v]).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        said = os.read(read, 1000).decode()
        os.close(read); os.close(write)
        f()
        """
    )
    assert notebook.error is None
    assert notebook["said"] == "[]"
    assert len(spans(recording, name="f")) == 2


def test_overhead_is_measured_and_part_of_the_cell() -> None:
    notebook = Notebook(torch=torch)
    recording = notebook.profile("x = torch.zeros(1)\nfor _ in range(2000): x.add_(1)")
    assert 0 < recording.overhead_s < recording.spans[0].duration_s


def test_the_users_copies_of_a_module_are_clean() -> None:
    import pickle

    notebook = Notebook(model=torch.nn.Linear(4, 4), x=torch.ones(1, 4), pickle=pickle)
    notebook.profile("import copy; model(x); twin = copy.deepcopy(model); data = pickle.dumps(model)")
    assert not notebook["twin"]._forward_hooks
    assert b"gimlet" not in notebook["data"]


def run(source: str) -> str:
    """Run a script in a Python of its own."""
    root = os.path.dirname(__file__)  # noqa: PTH120 - a path for sys.path
    script = f"import sys; sys.path.insert(0, {root!r})\n" + textwrap.dedent(source)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torch_is_not_imported_by_us() -> None:
    assert (
        run(
            """
        from capturing import Notebook
        recording = Notebook().profile("def f(): return 1\\nf()")
        print("torch" in sys.modules, len(recording.spans), recording.threads, recording.notes)
        """
        )
        == "False 2 1 ()"
    )


def test_torch_imported_by_the_cell_is_watched_from_then_on() -> None:
    assert run(
        """
        from capturing import Notebook
        notebook = Notebook()
        recording = notebook.profile("import torch\\nx = torch.ones(2) + 1\\ntorch.nn.ReLU()(x)")
        torch = sys.modules["torch"]
        print([o.op for o in recording.ops], [s.name for s in recording.spans])
        print(torch._C._len_torch_dispatch_stack(), torch.nn.Module.__call__.__qualname__)
        print(type(torch.__spec__.loader).__module__, torch.__loader__ is torch.__spec__.loader)
        print([f for f in sys.meta_path if "gimlet" in type(f).__module__])
        """
    ).splitlines() == [
        "['aten::ones', 'aten::add', 'aten::relu'] ['cell', 'ReLU']",
        "0 Module._wrapped_call_impl",
        "_frozen_importlib_external True",
        "[]",
    ]


@pytest.mark.slow
def test_libraries_imported_in_the_cell_do_not_keep_our_call() -> None:
    assert (
        run(
            """
        import torch
        from capturing import Notebook
        call = torch.nn.Module.__call__
        assert "torch._dynamo" not in sys.modules
        notebook = Notebook(torch=torch, x=torch.ones(1))
        notebook.profile("import torch._dynamo; torch.compile(lambda x: x + 1, backend='eager')(x)")
        print(torch._dynamo.utils.unpatched_nn_module_call is call, notebook.error)
        """
        )
        == "True None"
    )
