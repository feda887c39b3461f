"""``%%gimlet --dry`` in a real kernel: the cell runs on fake tensors, and the notebook is as it was."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from kernel import Kernel, Shown
from nbclient import NotebookClient

_SETUP = """
import torch
torch.set_num_threads(1)
%load_ext gimlet_lab
from gimlet_lab import notebook as _notebook
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, vocab_size=200, eos_token_id=None)
torch.manual_seed(0)
llm = LlamaForCausalLM(config).eval()
_before = {name: id(tensor) for name, tensor in llm.state_dict(keep_vars=True).items()}

class Tokenizer:
    def __call__(self, text):
        return torch.tensor([[ord(c) % 200 for c in text]])

tokenizer = Tokenizer()
def ask(question):
    return llm.generate(tokenizer(question), max_new_tokens=30)
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    started = Kernel()
    shown = started.run(_SETUP)
    assert shown.status == "ok", shown
    yield started
    started.close()


def last_run(kernel: Kernel, expression: str) -> Any:
    return ast.literal_eval(kernel.get(f"(lambda r: {expression})(_notebook.current().find_run())"))


def assert_untouched(kernel: Kernel) -> None:
    same = "{name: id(tensor) for name, tensor in llm.state_dict(keep_vars=True).items()} == _before"
    assert kernel.get(same) == "True"
    assert kernel.get("type(torch.zeros(1)).__name__") == "'Tensor'"


def text_of(shown: Shown) -> str:
    return "".join(shown.streams.values()) + str(shown.displays)


def test_a_cell_runs_dry_and_leaves_nothing(kernel: Kernel) -> None:
    kernel.run("answer = 'before'")
    shown = kernel.run(
        "%%gimlet --dry --name asked -o dry\nanswer = ask('what is it?')\nnew = 1\nanswer.shape"
    )
    assert (shown.status, shown.value) == ("ok", "torch.Size([1, 41])"), shown
    assert "no time was measured" in text_of(shown)
    assert kernel.get("(answer, 'new' in globals(), dry.dry, dry.name)") == "('before', False, True, 'asked')"
    assert last_run(kernel, "[(s.role, s.calls) for s in r.graph.stages if s.kind == 'module']") == [
        ("prefill", 1), ("decode", 29),
    ]  # fmt: skip
    assert_untouched(kernel)


def test_its_stages_are_placed(kernel: Kernel) -> None:
    kernel.run("%%gimlet --dry --quiet\nask('where?')")
    shown = kernel.run("%gimlet advise --on 'h100-sxm mi300x cpu'")
    assert shown.status == "ok", shown
    assert "the run was dry" in text_of(shown)


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (
            "answer = ask('x')\nif answer[0, -1].item() == 3:\n    pass",
            "line 3: a Python number or condition",
        ),
        ("ask('x')\n\nopen('/tmp/never', 'w')", "line 4: opening '/tmp/never' for writing"),
        ("!ls", "line 2: "),
    ],
)
def test_what_cannot_be_is_one_line(kernel: Kernel, cell: str, says: str) -> None:
    shown = kernel.run(f"%%gimlet --dry\n{cell}")
    assert shown.status == "error"
    assert shown.error is not None
    assert shown.error[0] == "DryRunError"
    assert says in shown.error[1]
    assert "gimlet_lab/capture" not in shown.traceback
    assert last_run(kernel, "(r.status, r.error)") == ("failed", "DryRunError")
    assert_untouched(kernel)
    plain = kernel.run("ask('y').shape[1]")
    assert (plain.status, plain.value) == ("ok", "31")


def test_a_model_made_in_the_cell_needs_no_memory(kernel: Kernel) -> None:
    shown = kernel.run(
        "%%gimlet --dry\n"
        "large = LlamaConfig(num_hidden_layers=2, hidden_size=32768, intermediate_size=131072,\n"
        "                    num_attention_heads=256, vocab_size=200)\n"
        "huge = LlamaForCausalLM(large).to(torch.bfloat16)\n"
        "huge.generate(torch.zeros(1, 100, dtype=torch.int64), max_new_tokens=3)"
    )
    assert shown.status == "ok", shown
    assert last_run(kernel, "r.weight_bytes") > 60e9
    assert kernel.get("'huge' in globals()") == "False"


@pytest.mark.slow
def test_the_example_runs() -> None:
    path = Path(__file__).parents[1] / "examples" / "dry_run.ipynb"
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()


def test_plain_cells_and_other_profiles_are_as_before(kernel: Kernel) -> None:
    shown = kernel.run("%%gimlet\nask('z').shape[1]")
    assert (shown.status, shown.value) == ("ok", "31")
    assert last_run(kernel, "(r.dry, r.measured_on.id)") == (False, "cpu")
