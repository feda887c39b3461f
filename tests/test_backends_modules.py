"""Module stages on CPU slices: the same tokens, the same cache, whatever happens in between."""

from __future__ import annotations

import copy
import inspect
import os

import pytest
from placing import cell, device, held, module, notebook, plan

from gimlet_lab.backends import backend
from gimlet_lab.errors import GimletError
from gimlet_lab.model import Fleet

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LOCAL = backend("local")
PREFILL, DECODE = module("prefill", "llm", "prefill"), module("decode", "llm", "decode")
SPLIT = plan((PREFILL, "cpu/0"), (DECODE, "cpu/1"))
SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}


@pytest.fixture(scope="module", autouse=True)
def _template():
    from gimlet_lab.backends.process import TEMPLATE

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a slice of one core has: equal to the last bit
    TEMPLATE.hold()
    yield
    TEMPLATE.release()
    torch.set_num_threads(threads)


def make_llm(seed=0, **more):
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SMALL, **more})).eval()


@pytest.fixture
def llm():
    return make_llm()


IDS = torch.arange(1, 23).view(2, 11)


def generate(llm, ids=IDS, **options):
    torch.manual_seed(1)
    return llm.generate(ids, attention_mask=torch.ones_like(ids), **{"max_new_tokens": 10, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "top_k": 20},
        {"num_beams": 3, "do_sample": False},
        {"prompt_lookup_num_tokens": 3, "do_sample": False},
        {
            "do_sample": False,
            "output_scores": True,
            "output_hidden_states": True,
            "return_dict_in_generate": True,
        },
    ],
    ids=["greedy", "sampled", "beams", "lookup", "scores"],
)
def test_split_generation_gives_the_same_tokens(llm, options):
    ids = IDS[:1] if "prompt_lookup_num_tokens" in options else IDS
    expected = generate(llm, ids, **options)
    with LOCAL.deploy(SPLIT, {"llm": llm}) as deployment:
        got = generate(llm, ids, **options)
        stats = deployment.stats()
    assert stats["prefill"]["on_host"] == {}
    assert stats["decode"]["on_host"] == {}
    assert stats["prefill"]["calls"] >= 1
    assert stats["decode"]["calls"] >= (0 if "prompt_lookup_num_tokens" in options else 9)
    if "return_dict_in_generate" in options:
        assert type(got) is type(expected)
        assert torch.equal(got.sequences, expected.sequences)
        for ours, theirs in zip(got.hidden_states, expected.hidden_states, strict=True):
            assert all(map(torch.equal, ours, theirs))
        for ours, theirs in zip(got.past_key_values.layers, expected.past_key_values.layers, strict=True):
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)
    else:
        assert torch.equal(got, expected)


def test_the_module_stays_what_it_is(llm):
    own, signature = dict(vars(llm)), inspect.signature(llm.forward)
    parameters = dict(llm.named_parameters())
    with torch.no_grad():
        expected = llm(IDS)
        with LOCAL.deploy(SPLIT, {"llm": llm}):
            placed = vars(llm)["forward"].__gimlet_placed__
            assert placed["prefill"] == {"device": "cpu/0", "bound": "bandwidth", "stage": "prefill"}
            assert placed["decode"]["device"] == "cpu/1"
            assert inspect.signature(llm.forward) == signature
            got = llm(IDS)
            assert type(got) is type(expected)
            assert list(got) == list(expected)
            assert torch.equal(got.logits, expected.logits)
            assert got.logits.dtype == expected.logits.dtype
            # A copy, or a pickle, of what is redirected is a plain model.
            assert type(llm).forward is not vars(llm)["forward"]
    assert vars(llm) == own
    assert dict(llm.named_parameters()) == parameters
    assert inspect.signature(llm.forward) == signature


def test_only_what_the_other_side_lacks_travels(llm):
    ids = torch.arange(1, 65).view(1, 64)
    kv = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, bytes: of one token
    with LOCAL.deploy(SPLIT, {"llm": llm}) as deployment:
        generate(llm, ids, max_new_tokens=2, do_sample=False)
        first = deployment.stats()
        generate(llm, ids, max_new_tokens=12, do_sample=False)
        second = deployment.stats()
    assert first["prefill"]["sent_bytes"] < 3000
    assert first["prefill"]["received_bytes"] > 64 * kv
    assert first["decode"]["calls"] == 1
    assert first["decode"]["sent_bytes"] > 64 * kv  # all of it, once
    more = second["decode"]["sent_bytes"] - first["decode"]["sent_bytes"]
    assert 64 * kv < more < 2 * 64 * kv + 11 * 2500
    assert second["decode"]["received_bytes"] < 12 * 3000


def steps(llm, count, cache=None, token=None):
    """Greedy decoding by hand: the tokens, and what is needed to go on."""
    tokens = []
    with torch.no_grad():
        for _ in range(count):
            given = IDS[:1] if cache is None else token
            output = llm(given, past_key_values=cache, use_cache=True)
            cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
            tokens.append(int(token))
    return tokens, cache, token


@pytest.mark.parametrize("change", ["rollback", "migrate", "kill", "host in between", "crop"])
def test_nothing_is_lost_between_two_tokens(llm, change):
    expected = steps(llm, 12)[0]
    with LOCAL.deploy(SPLIT, {"llm": llm}) as deployment:
        tokens, cache, token = steps(llm, 5)
        same = cache
        if change == "rollback":
            deployment.rollback()
        elif change == "migrate":
            deployment.migrate(plan((PREFILL, "cpu/1"), (DECODE, "cpu/0")))
        elif change == "kill":
            os.kill(deployment._places["cpu/1"].pid, 9)
        elif change == "host in between":
            llm.train()
            more, cache, token = steps(llm, 2, cache, token)
            tokens += more
            llm.eval()
        else:
            more, cache, token = steps(llm, 3, cache, token)
            cache.crop(-3)
            token = torch.tensor([[tokens[-1]]])
        more, cache, _ = steps(llm, 12 - len(tokens), cache, token)
        assert tokens + more == expected
        assert cache is same
        assert cache.get_seq_length() == 11 + 11
        stats = deployment.stats()
        if change == "kill":
            assert "SIGKILL" in next(iter(stats["decode"]["on_host"]))
            assert stats["decode"]["calls"] == 4 + 6  # started again for the next token
        if change == "host in between":
            assert next(iter(stats["decode"]["on_host"])).startswith("it is in training mode")


def test_two_looks_at_one_cache_stay_apart(llm):
    with LOCAL.deploy(SPLIT, {"llm": llm}):
        _, cache, token = steps(llm, 4)
        fork = copy.deepcopy(cache)
        shallow = copy.copy(cache)
        shallow.layers = [copy.copy(layer) for layer in cache.layers]
        one = steps(llm, 4, cache, token)[0]
        two = steps(llm, 4, fork, token)[0]
        three = steps(llm, 4, shallow, token)[0]
    assert one == two == three == steps(llm, 8)[0][4:]


def test_sliding_windows_and_other_caches():
    torch.manual_seed(0)
    config = transformers.MistralConfig(**SMALL, sliding_window=6)
    llm = transformers.MistralForCausalLM(config).eval()
    expected = generate(llm, do_sample=False)
    static = generate(llm, do_sample=False, cache_implementation="static")
    with LOCAL.deploy(SPLIT, {"llm": llm}) as deployment:
        assert torch.equal(generate(llm, do_sample=False), expected)
        assert deployment.stats()["decode"]["on_host"] == {}
        assert torch.equal(generate(llm, do_sample=False, cache_implementation="static"), static)
        assert "StaticCache" in next(iter(deployment.stats()["decode"]["on_host"]))


def test_embedding():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    bert = transformers.BertModel(config).eval()
    with torch.inference_mode():
        expected = bert(IDS)
    with LOCAL.deploy(plan((module("embed", "bert", "embed"), "cpu/1")), {"bert": bert}) as deployment:
        assert set(vars(bert)["forward"].__gimlet_placed__) == {"*"}
        with torch.inference_mode():
            got = bert(input_ids=IDS)
        assert type(got) is type(expected)
        assert got.last_hidden_state.is_inference()
        assert all(torch.equal(got[name], expected[name]) for name in expected)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(bert(IDS).pooler_output, type(bert).forward(bert, IDS).pooler_output)
        # Gradients are the program's: nothing of the graph may be lost.
        bert(IDS).pooler_output.sum().backward()
        assert bert.pooler.dense.weight.grad is not None
        stats = deployment.stats()["embed"]
        assert stats["calls"] == 2
        assert list(stats["on_host"]) == [
            "gradients are on: call it under torch.inference_mode() or torch.no_grad()"
        ]


OWN = """
import torch
class Net(torch.nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.linear = torch.nn.Linear(width, width)
        self.register_buffer("scale", torch.tensor(2.0))
        self.tied = self.linear
    def forward(self, x, *, twice=False):
        y = self.linear(x) * self.scale
        return {"y": y, "list": [y, (y + 1,)], "n": 3} if twice else y
class Counter(Net):
    def forward(self, x):
        self.seen = getattr(self, "seen", 0) + 1
        return super().forward(x) + self.seen
class Noise(Net):
    def forward(self, x): return x + torch.randn_like(x)
torch.manual_seed(0)
net = Net().eval()
x = torch.ones(3, 8)
"""

NET = plan((module("net", "net", "forward"), "cpu/0"))


def test_a_module_of_the_notebook():
    book = notebook(OWN)
    net, x = book["net"], book["x"]
    with torch.no_grad():
        expected = net(x, twice=True)
        with LOCAL.deploy(NET, book) as deployment:
            got = net(x, twice=True)
            assert torch.equal(got["list"][1][0], expected["list"][1][0])
            assert got["n"] == 3
            assert deployment.stats()["net"]["calls"] == 1
            # The weights change in place, between two calls of one cell.
            net.linear.weight.mul_(2)
            assert torch.equal(net(x), book["Net"].forward(net, x))
            net.scale.fill_(5)
            assert torch.equal(net(x), book["Net"].forward(net, x))
            assert deployment.stats()["net"]["calls"] == 3
            assert deployment.stats()["net"]["on_host"] == {}
            # An attribute, between two cells.
            net.linear.extra = 3
            assert deployment.refresh() == ["Net has changed: its weights were sent again"]
            assert deployment.refresh() == []


def test_what_a_worker_would_not_see_runs_on_the_host():
    book = notebook(OWN)
    net, x = book["net"], book["x"]
    seen = []
    with torch.no_grad(), LOCAL.deploy(NET, book) as deployment:
        handle = net.linear.register_forward_hook(lambda *_: seen.append(1))
        net(x)
        handle.remove()
        own = net.register_forward_hook(lambda *_: seen.append(2))
        net(x)
        own.remove()
        assert seen == [1, 2]
        net.train()
        net(x)
        net.eval()
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            net(x)
        assert counter.get_total_flops() > 0
        reasons = deployment.stats()["net"]["on_host"]
    assert sorted(reasons.values()) == [1, 1, 1]
    assert deployment.stats()["net"]["calls"] == 1


@pytest.mark.parametrize(("kind", "why"), [("Counter", "keeps state"), ("Noise", "draws random numbers")])
def test_modules_that_keep_state_stay(kind, why):
    book = notebook(OWN)
    cell(book, f"net = {kind}().eval()")
    net, x = book["net"], book["x"]
    plain = copy.deepcopy(net)
    with torch.no_grad(), LOCAL.deploy(NET, book) as deployment:
        torch.manual_seed(3)
        got = [net(x) for _ in range(3)]
        torch.manual_seed(3)
        assert all(map(torch.equal, got, [plain(x) for _ in range(3)]))
        assert why in str(deployment.refresh())


def test_a_model_defined_again():
    book = notebook(OWN)
    old, x = book["net"], book["x"]
    with torch.no_grad(), LOCAL.deploy(NET, book) as deployment:
        cell(book, "torch.manual_seed(5)\nnet = Net().eval()")
        assert deployment.refresh() == ["net was defined again: net runs on cpu/0 again"]
        assert "forward" not in vars(old)
        net = book["net"]
        assert torch.equal(net(x), book["Net"].forward(net, x))
        assert deployment.stats()["net"]["calls"] == 1
        cell(book, "net = Net(4).eval()")
        assert "net is another model than the plan was made for" in str(deployment.refresh())
        assert len(deployment.stale()) == 1
        assert "forward" not in vars(net)
        assert "forward" not in vars(book["net"])
        book["net"] = net
        deployment.refresh()
        assert deployment.stale() == []
        assert "forward" in vars(net)


def test_what_cannot_be_placed_is_said():
    book = notebook(OWN)
    book["net"].forward = lambda x: x
    with pytest.raises(GimletError, match="stage 'net': net has a forward of its own"):
        LOCAL.deploy(NET, book)
    book = notebook(OWN)
    cell(book, "import threading\nnet.lock = threading.Lock()")
    with pytest.raises(GimletError, match="Net cannot travel to a worker: TypeError: cannot pickle"):
        LOCAL.deploy(NET, book)
    book["net"] = 3
    with pytest.raises(GimletError, match="net is a int, not a torch module"):
        LOCAL.deploy(NET, book)


def test_the_diff_names_the_weights_once(llm):
    lines = LOCAL.diff(plan((PREFILL, "cpu/0"), (DECODE, "cpu/0")), {"llm": llm})
    assert lines[0].startswith("prefill: llm (LlamaForCausalLM, prefill) cpu → cpu/0 (core ")
    assert lines[0].endswith("MB of weights copied")
    assert lines[1].endswith("the same copy")


def test_a_role_that_stays(llm):
    expected = generate(llm, do_sample=False)
    placed = plan((PREFILL, "cpu"), (DECODE, "cpu/1"))
    with LOCAL.deploy(placed, {"llm": llm}) as deployment:
        assert torch.equal(generate(llm, do_sample=False), expected)
        assert set(deployment.stats()) == {"decode"}
        assert deployment.stats()["decode"]["calls"] == 9


def test_an_accelerator_of_this_process(llm):
    """torch's ``cpu`` under another name: the road, not the hardware."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    fleet = Fleet(
        (
            device("cpu", cores),
            device("cpu/0", cores[:1]),
            device("card", (), kind="gpu", torch_device="cpu:0"),
        )
    )
    expected = generate(llm, do_sample=False)
    own = dict(vars(llm))
    for placed in ((PREFILL, "card"), (DECODE, "card")), ((PREFILL, "card"), (DECODE, "cpu/0")):
        with LOCAL.deploy(plan(*placed, over=fleet), {"llm": llm}) as deployment:
            assert torch.equal(generate(llm, do_sample=False), expected)
            assert [stats["calls"] for stats in deployment.stats().values()] == [1, 9]
        assert vars(llm) == own


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
    from placing import function

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
