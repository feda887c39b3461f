"""What the local backend leaves behind: nothing."""

from __future__ import annotations

import pytest
from placing import function, held, notebook, plan
from small_llm import DECODE, PREFILL, generate, make_llm, torch

from gimlet_lab.backends import backend

LOCAL = backend("local")


@pytest.fixture(scope="module", autouse=True)
def _template():
    from gimlet_lab.backends.process import TEMPLATE

    TEMPLATE.hold()
    yield
    TEMPLATE.release()


@pytest.fixture
def llm():
    return make_llm()


def test_everything_is_gone_with_the_template(llm):
    """Also the process that workers start from."""
    from gimlet_lab.backends.process import TEMPLATE

    TEMPLATE.release()
    try:
        generate(llm, do_sample=False)
        before = held()
        assert before["children"] == []
        with LOCAL.deploy(plan((DECODE, "cpu/0")), {"llm": llm}):
            generate(llm, do_sample=False)
            assert len(held()["children"]) == 1
        assert held() == before
    finally:
        TEMPLATE.hold()


AGENT = """
index = [[i, i * i] for i in range(50)]
def search(x): return index[x]
def tool(x): return sum(i * i for i in range(x))
def agent(x):
    found = search(x)
    ids = torch.tensor([[1 + v % 90 for v in found + [tool(x) % 90]]])
    with torch.no_grad():
        tokens = llm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    return tokens.tolist()
"""


@pytest.mark.slow
def test_a_hundred_rounds_leave_nothing():
    """Another deployment keeps the template warm, so that 100 × 2 workers start in seconds, not minutes."""

    book = notebook(AGENT)
    book |= {"torch": torch, "llm": make_llm(max_position_embeddings=64)}
    placed = plan(
        (function("search"), "cpu/0"), (function("tool"), "cpu/1"), (PREFILL, "cpu/0"), (DECODE, "cpu/1")
    )
    other = notebook("def other(): return 1\n")
    expected = book["agent"](7)
    with LOCAL.deploy(plan((function("other"), "cpu/0")), other):
        with LOCAL.deploy(placed, book):  # imports and first calls leave caches of their own
            book["agent"](7)
        own = {name: dict(vars(book[name])) for name in ("search", "tool", "llm")}
        hooks = [len(vars(part)["_forward_hooks"]) for part in book["llm"].modules()]
        before = held()
        for number in range(100):
            with LOCAL.deploy(placed, book) as deployment:
                assert book["agent"](7) == expected
                assert all(stats["calls"] and not stats["on_host"] for stats in deployment.stats().values())
            assert book["agent"](7) == expected
            assert {name: dict(vars(book[name])) for name in own} == own
            assert [len(vars(part)["_forward_hooks"]) for part in book["llm"].modules()] == hooks
            if number % 20 == 19:  # collecting all garbage takes longer than a round
                assert held() == before
