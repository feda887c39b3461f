"""Threads and tasks at once: every operator and every edge belongs to its own caller."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from capturing import Notebook, spans

from gimlet_lab.model import Recording

torch: Any = pytest.importorskip("torch")

THREADS, TASKS, TURNS = 16, 100, 5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def module(width: int) -> Any:
    """A model whose operators can be told from every other's by their FLOPs."""
    return torch.nn.Sequential(torch.nn.Linear(width, 8), torch.nn.ReLU(), torch.nn.Linear(8, width)).eval()


def products(recording: Recording, span: int) -> list[float | None]:
    return [
        op.flops
        for op in recording.ops
        if op.span == span and op.op == "aten::addmm"
        for _ in range(op.count)
    ]


def test_operators_of_sixteen_threads_stay_apart() -> None:
    models = [module(4 + i) for i in range(THREADS)]
    notebook = Notebook(torch=torch, models=models, threading=threading, gate=threading.Barrier(THREADS))
    recording = notebook.profile(
        f"""
        def work(index):
            x = torch.ones(3, 4 + index)
            gate.wait()
            for _ in range({TURNS}): x = models[index](x)
        pool = [threading.Thread(target=work, args=(i,)) for i in range({THREADS})]
        for t in pool: t.start()
        for t in pool: t.join()
        """,
        exact=True,
    )
    assert notebook.error is None
    calls = spans(recording, "module")
    assert len(calls) == THREADS * TURNS
    owners = {s.id: s for s in spans(recording, "function", "work")}
    assert len(owners) == THREADS
    threads = set()
    for call in calls:
        index = int(str(call.target).removeprefix("models[").removesuffix("]"))
        width = 4 + index
        assert products(recording, call.id) == [2.0 * 3 * width * 8] * 2
        owner = owners[call.parent or 0]
        assert owner.thread == call.thread
        threads.add((call.thread, index))
    assert len(threads) == THREADS  # one thread, one model
    # Each call reads what the one before it gave, in its own thread.
    by_id = {s.id: s for s in calls}
    for transfer in recording.transfers:
        if transfer.producer in by_id and transfer.consumer in by_id:
            assert by_id[transfer.producer].target == by_id[transfer.consumer].target
    between = [t for t in recording.transfers if t.producer in by_id and t.consumer in by_id]
    assert len(between) == THREADS * (TURNS - 1)


def test_a_hundred_tasks_stay_apart() -> None:
    import asyncio

    models = [module(4 + i) for i in range(TASKS)]
    notebook = Notebook(torch=torch, models=models, asyncio=asyncio)
    recording = notebook.profile(
        f"""
        async def request(index):
            x = torch.ones(3, 4 + index)
            for _ in range(2):
                await asyncio.sleep(0)
                x = models[index](x)
            await asyncio.sleep(0)
            return x + 1

        async def serve():
            return await asyncio.gather(*(request(i) for i in range({TASKS})))

        answers = asyncio.run(serve())
        """
    )
    assert notebook.error is None
    requests = {s.id: s for s in spans(recording, "function", "request")}
    assert len(requests) == TASKS
    callers: dict[int, set[str]] = {}
    for call in spans(recording, "module"):
        assert call.parent in requests
        callers.setdefault(call.parent or 0, set()).add(str(call.target))
        if call.looked:
            index = int(str(call.target).removeprefix("models[").removesuffix("]"))
            assert products(recording, call.id) == [2.0 * 3 * (4 + index) * 8] * 2
    assert sorted(len(targets) for targets in callers.values()) == [1] * TASKS
    # The loose operators of each request are its own: one array of ones and one sum.
    for number in requests:
        names = sorted(op.op for op in recording.ops if op.span == number)
        assert names == ["aten::add", "aten::ones"]


@pytest.mark.slow
def test_a_compiled_function_stays_compiled_a_thousand_times() -> None:
    torch._dynamo.reset()
    made, ran = [], []

    def backend(graph: Any, _inputs: Any) -> Any:
        made.append(graph)

        def run(*args: Any) -> Any:
            ran.append(1)
            return graph.forward(*args)

        return run

    notebook = Notebook(f=torch.compile(lambda x: (x * 2).relu().sum(), backend=backend), x=torch.ones(4))
    notebook.run("f(x)")
    for _ in range(1000):
        notebook.profile("f(x)")
    notebook.run("f(x)")
    assert (len(made), len(ran)) == (1, 1002)
    torch._dynamo.reset()
