"""Module stages on CPU slices: the same tokens, the same cache, whatever happens in between."""

from __future__ import annotations

import copy
import inspect
import os

import pytest
from placing import cell, device, module, notebook, plan
from small_llm import DECODE, IDS, PREFILL, SMALL, SPLIT, generate, make_llm, torch, transformers

from gimlet_lab.backends import backend
from gimlet_lab.errors import GimletError
from gimlet_lab.model import Fleet

LOCAL = backend("local")


@pytest.fixture(scope="module", autouse=True)
def _template():
    from gimlet_lab.backends.process import TEMPLATE

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a slice of one core has: equal to the last bit
    TEMPLATE.hold()
    yield
    TEMPLATE.release()
    torch.set_num_threads(threads)


@pytest.fixture
def llm():
    return make_llm()


OPTIONS = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 3, "do_sample": False},
    "lookup": {"prompt_lookup_num_tokens": 3, "do_sample": False},
    "scores": {
        "do_sample": False,
        "output_scores": True,
        "output_hidden_states": True,
        "return_dict_in_generate": True,
    },
}


def test_split_generation_gives_the_same_tokens(placer, llm):
    ids = {name: IDS[:1] if name == "lookup" else IDS for name in OPTIONS}
    expected = {name: generate(llm, ids[name], **options) for name, options in OPTIONS.items()}
    with placer.deploy(SPLIT, {"llm": llm}) as deployment:
        before = {"prefill": 0, "decode": 0}
        for name, options in OPTIONS.items():
            got = generate(llm, ids[name], **options)
            stats = deployment.stats()
            assert stats["prefill"]["on_host"] == stats["decode"]["on_host"] == {}
            calls = {role: stats[role]["calls"] - before[role] for role in before}
            before = {role: stats[role]["calls"] for role in before}
            assert calls["prefill"] >= 1
            assert calls["decode"] >= (0 if name == "lookup" else 9)
            if name != "scores":
                assert torch.equal(got, expected[name]), name
    theirs = expected["scores"]
    assert type(got) is type(theirs)
    assert torch.equal(got.sequences, theirs.sequences)
    for one, other in zip(got.hidden_states, theirs.hidden_states, strict=True):
        assert all(map(torch.equal, one, other))
    for one, other in zip(got.past_key_values.layers, theirs.past_key_values.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


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


def test_only_what_the_other_side_lacks_travels(placer, llm):
    ids = torch.arange(1, 65).view(1, 64)
    kv = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, bytes: of one token
    with placer.deploy(SPLIT, {"llm": llm}) as deployment:
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


@pytest.mark.parametrize("change", ["rollback", "migrate", "host in between", "crop"])
def test_nothing_is_lost_between_two_tokens(llm, change):
    expected = steps(llm, 12)[0]
    with LOCAL.deploy(SPLIT, {"llm": llm}) as deployment:
        tokens, cache, token = steps(llm, 5)
        same = cache
        if change == "rollback":
            deployment.rollback()
        elif change == "migrate":
            deployment.migrate(plan((PREFILL, "cpu/1"), (DECODE, "cpu/0")))
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
        if change == "host in between":
            assert next(iter(stats["decode"]["on_host"])).startswith("it is in training mode")


def test_a_worker_killed_between_two_tokens_loses_nothing(placer, llm):
    expected = steps(llm, 12)[0]
    with placer.deploy(SPLIT, {"llm": llm}) as deployment:
        tokens, cache, token = steps(llm, 5)
        (decoding,) = [pid for pid, device in deployment.processes().items() if device == "cpu/1"]
        os.kill(decoding, 9)
        assert tokens + steps(llm, 7, cache, token)[0] == expected
        stats = deployment.stats()["decode"]
    # The next worker was sent the cache, and made all the calls that were left.
    assert (stats["calls"], stats["on_host"], sum(stats["lost"].values())) == (11, {}, 1)


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
