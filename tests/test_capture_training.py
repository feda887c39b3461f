"""Backward passes and optimizer steps: seen once for each kind, and nothing of them lost."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from capturing import Notebook, spans

from gimlet_lab.analysis import analyse
from gimlet_lab.model import Device, Recording

torch: Any = pytest.importorskip("torch")

STEPS = """
for step in range(6):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def notebook() -> Notebook:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    return Notebook(
        torch=torch,
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), foreach=False),
        x=torch.randn(3, 8),
        y=torch.tensor([0, 1, 2]),
    )


def counted(recording: Recording) -> tuple[Counter[str], float]:
    """Calls and FLOPs of all operators, seen and inferred."""
    found = analyse(recording, Device("cpu", "cpu", "unknown", "cpu", live=True))
    counts: Counter[str] = Counter()
    for op in found.operators:
        counts[op.op] += op.count
    return counts, sum(op.flops or 0.0 for op in found.operators)


def test_a_training_loop_is_looked_at_once_and_counted_whole(notebook: Notebook) -> None:
    notebook.run(STEPS)  # the optimizer's state is there
    sampled = notebook.profile(STEPS)
    assert notebook.error is None
    found = [(s.name, s.looked) for s in sampled.spans[1:]]
    first = [("Sequential", True), ("backward", True), ("AdamW.step", True)]
    assert found == first + [(name, False) for name, _ in first] * 5
    exact = notebook.profile(STEPS, exact=True)
    assert all(span.looked for span in exact.spans[1:])
    assert counted(sampled) == counted(exact)
    assert sampled.notes == exact.notes == ()


def test_the_first_step_makes_the_state_and_is_of_its_own_kind(notebook: Notebook) -> None:
    recording = notebook.profile(STEPS)
    assert [s.looked for s in spans(recording, "function", "AdamW.step")] == [True, True] + [False] * 4


def test_a_gradient_that_is_added_to_is_another_kind(notebook: Notebook) -> None:
    recording = notebook.profile("for _ in range(4): model(x).sum().backward()")
    assert [s.looked for s in spans(recording, "function")] == [True, True, False, False]


def test_other_work_before_it_is_another_backward(notebook: Notebook) -> None:
    recording = notebook.profile(
        """
        for size in (1, 2, 1, 2):
            optimizer.zero_grad()
            (model(x) @ torch.ones(4, size)).sum().backward()
        """
    )
    assert [s.looked for s in spans(recording, "function")] == [True, True, False, False]


def test_what_goes_back_over_no_module_is_always_looked_at(notebook: Notebook) -> None:
    recording = notebook.profile(
        "w = torch.ones(4, requires_grad=True)\nfor _ in range(3): (w * 2).sum().backward()"
    )
    assert [s.looked for s in spans(recording, "function")] == [True] * 3


def test_a_closure_is_seen_from_inside(notebook: Notebook) -> None:
    recording = notebook.profile(
        """
        solver = torch.optim.LBFGS(model.parameters(), max_iter=3)
        def closure():
            solver.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            return loss
        solver.step(closure)
        """
    )
    assert notebook.error is None
    assert len(spans(recording, "module")) == len(spans(recording, "function", "backward")) > 1
    assert spans(recording, "function", "LBFGS.step") == []


def test_steps_that_raise_leave_the_rest_as_it_is(notebook: Notebook) -> None:
    recording = notebook.profile(
        """
        model(x).sum().backward()
        held, model[0].weight.grad = model[0].weight.grad, torch.ones(1, 1).expand(16, 8).to_sparse()
        try: optimizer.step()
        except RuntimeError: failed = True
        model[0].weight.grad = held
        optimizer.step()
        z = x.tan()
        model(x)
        """
    )
    assert notebook.error is None
    assert notebook["failed"]
    assert [s.name for s in spans(recording)[1:]] == [
        "Sequential",
        "backward",
        "AdamW.step",
        "AdamW.step",
        "Sequential",
    ]
    assert [op.span for op in recording.ops if op.op == "aten::tan"] == [0]


def test_everything_is_put_back(notebook: Notebook) -> None:
    engine = torch.autograd._engine_run_backward
    hooks = sys.modules["torch.optim.optimizer"]
    before = len(hooks._global_optimizer_pre_hooks), len(hooks._global_optimizer_post_hooks)
    notebook.profile(STEPS)
    assert torch.autograd._engine_run_backward is engine
    assert (len(hooks._global_optimizer_pre_hooks), len(hooks._global_optimizer_post_hooks)) == before


def test_gradients_and_state_are_told_from_weights(notebook: Notebook) -> None:
    notebook.run(STEPS)
    recording = notebook.profile(STEPS)
    (step,) = [s.id for s in spans(recording, "function", "AdamW.step") if s.looked]
    ops = [op for op in recording.ops if op.span == step]
    parameters = 4 * sum(p.numel() for p in notebook["model"].parameters())
    # The gradient goes into both means, each mean into its own update and into the step.
    assert sum(op.gradient_bytes for op in ops) == 2 * parameters
    assert sum(op.state_bytes for op in ops) >= 4 * parameters
    assert sum(op.weight_bytes for op in ops) >= parameters
