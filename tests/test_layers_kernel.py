"""A model over two places, by magics in a real kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel import Kernel

SETUP = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
%load_ext gimlet_lab
from small_llm import IDS, generate, make_llm, torch
torch.set_num_threads(1)
llm = make_llm(num_hidden_layers=4)
expected = generate(llm)
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    started = Kernel()
    assert started.run(SETUP).status == "ok"
    yield started
    started.close()


def test_a_model_is_taken_apart_placed_and_put_back(kernel: Kernel) -> None:
    assert kernel.run("%%gimlet --quiet -o run\ngot = generate(llm)").status == "ok"
    shown = kernel.run(
        "%gimlet advise --layers llm=2 --on cpu cpu/0 cpu/1 "
        "--pin llm.model.layers[0:2]=cpu/0 --pin llm.model.layers[2:4]=cpu/1 -o plan"
    )
    assert shown.status == "ok", shown
    said = kernel.run("%gimlet apply plan --dry-run").streams["stdout"]
    assert "llm.model.layers[0:2] (2 × LlamaDecoderLayer, forward) cpu → cpu/0" in said, said
    assert kernel.run("%gimlet apply plan").status == "ok"
    assert kernel.run("%%gimlet -o placed\ngot = generate(llm)").status == "ok"
    assert kernel.run("torch.equal(got, expected)").value == "True"
    assert kernel.run("placed.deployment['llm.model.layers[2:4]']").value == "'cpu/1'"
    assert kernel.run("[n for n in placed.notes if 'other programs' not in n]").value == "[]"
    assert kernel.run("%gimlet rollback").status == "ok"
    assert kernel.run("any('forward' in vars(m) for m in llm.modules())").value == "False"


@pytest.mark.parametrize(
    ("options", "says"),
    [("--layers llm", "NAME=VALUE"), ("--layers llm=0", "1, 2, …"), ("--layers llm=9", "4 numbered layers"),
     ("--layers net=2", "llm"), ("--layers llm=2 --pin prefil=cpu", "prefill")],
)  # fmt: skip
def test_what_cannot_be_taken_apart_is_one_line(kernel: Kernel, options: str, says: str) -> None:
    shown = kernel.run(f"%gimlet advise {options}")
    assert shown.error is not None
    assert shown.error[0] == "UsageError"
    assert says in shown.error[1]
