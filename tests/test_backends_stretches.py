"""Stretches of a model's layers on several places: the same tokens and cache as in one."""

from __future__ import annotations

import pytest
from placing import module, plan
from small_llm import IDS, generate, make_llm, torch

from gimlet_lab.errors import GimletError

FIRST = module("first", "llm.model.layers[0:2]", "forward")
SECOND = module("second", "llm.model.layers[2:4]", "forward")
LAYERS = plan((FIRST, "cpu/0"), (SECOND, "cpu/1"))


@pytest.fixture(scope="module", autouse=True)
def _threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a slice of one core has: equal to the last bit
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def llm():
    return make_llm(num_hidden_layers=4)


@pytest.mark.parametrize(
    "options",
    [{"do_sample": False}, {"do_sample": True, "top_k": 20}, {"num_beams": 3, "do_sample": False}],
    ids=["greedy", "sampled", "beams"],
)
def test_a_model_over_two_places_gives_the_same_tokens(placer, llm, options):
    expected = generate(llm, **options, return_dict_in_generate=True)
    with placer.deploy(LAYERS, {"llm": llm}) as deployment:
        got = generate(llm, **options, return_dict_in_generate=True)
        stats = deployment.stats()
    assert torch.equal(got.sequences, expected.sequences)
    calls = {found["calls"] for found in stats.values()}
    assert len(calls) == 1, "as many of each stretch"
    assert calls.pop() > 10, "the prompts went in parts, every token after them at once"
    assert all(found["on_host"] == {} for found in stats.values())
    for one, other in zip(got.past_key_values.layers, expected.past_key_values.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)
    assert not any("forward" in vars(part) for part in llm.modules()), "all put back"


def test_a_batch_without_a_cache_goes_in_parts(placer, llm):
    ids = torch.arange(1, 57).view(8, 7) % 99
    with torch.inference_mode(), placer.deploy(LAYERS, {"llm": llm}) as deployment:
        got = llm(ids, use_cache=False).logits
        stats = deployment.stats()
        with torch.no_grad():
            again = llm(ids[:1], use_cache=False).logits
    with torch.inference_mode():
        expected = llm(ids, use_cache=False).logits
    assert torch.allclose(got, expected, atol=1e-6)
    assert torch.allclose(again, expected[:1], atol=1e-6)
    assert {found["calls"] for found in stats.values()} == {4}, "two parts for each place"


def test_what_must_see_every_layer_stays_on_the_host(placer, llm):
    with torch.no_grad():
        expected = llm(IDS, output_hidden_states=True)
    with placer.deploy(LAYERS, {"llm": llm}) as deployment:
        with torch.no_grad():
            got = llm(IDS, output_hidden_states=True)
            llm.train()
            llm(IDS)
            llm.eval()
        llm(IDS)  # gradients are on
        (first, second) = (deployment.stats()[stage] for stage in ("first", "second"))
    assert len(got.hidden_states) == 5
    assert all(map(torch.equal, got.hidden_states, expected.hidden_states))
    assert first["calls"] == second["calls"] == 0
    assert first["on_host"] == second["on_host"]
    assert {reason.split(":")[0] for reason in first["on_host"]} == {
        "it is asked for what its layers give one by one", "it is in training mode", "gradients are on",
    }  # fmt: skip


def test_one_stretch_may_move_and_a_layer_is_still_called_by_itself(placer, llm):
    expected = generate(llm)
    hidden = torch.randn(2, 5, 32)
    position = llm.model.rotary_emb(hidden, torch.arange(5)[None])
    with torch.no_grad():
        alone = llm.model.layers[3](hidden, position_embeddings=position)
    with placer.deploy(plan((SECOND, "cpu/0")), {"llm": llm}) as deployment:
        assert torch.equal(generate(llm), expected)
        assert deployment.stats()["second"]["calls"] == 10
        with torch.no_grad():
            assert torch.equal(llm.model.layers[3](hidden, position_embeddings=position), alone)


def test_stretches_of_two_lists_of_layers_do_not_follow_each_other(placer):
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.early, self.late = (
                torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(4)) for _ in range(2)
            )

        def forward(self, x):
            for layer in self.early:
                x = layer(x)
            x = x + 1
            for layer in self.late:
                x = layer(x)
            return x

    two, x = Two().eval(), torch.ones(6, 2, 4)
    parts = [module(name, f"two.{name}", "forward") for name in ("early[0:2]", "late[2:4]")]
    with torch.no_grad():
        expected = two(x)
        with placer.deploy(plan((parts[0], "cpu/0"), (parts[1], "cpu/1")), {"two": two}) as deployment:
            assert torch.allclose(two(x), expected)
            assert [found["calls"] for found in deployment.stats().values()] == [1, 1]


def test_a_call_that_ended_half_way_leaves_nothing(placer, llm):
    ids = torch.arange(1, 57).view(8, 7) % 99
    with torch.no_grad():
        expected = llm(ids, use_cache=False).logits
    with placer.deploy(LAYERS, {"llm": llm}), torch.no_grad():
        layer = llm.model.layers[0]  # the batch has gone through all of them, and the model gets no further
        layer(llm.model.embed_tokens(ids), position_embeddings=(torch.ones(1, 7, 8),) * 2)
        assert torch.allclose(llm(ids[:1], use_cache=False).logits, expected[:1], atol=1e-6)
        assert torch.allclose(llm(ids, use_cache=False).logits, expected, atol=1e-6)


def test_a_model_that_does_something_between_its_layers_is_refused(placer):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x) + 1
            return x

    odd, x = Odd().eval(), torch.ones(1, 2, 4)
    stretch = module("odd", "odd.layers[0:3]", "forward")
    with torch.no_grad():
        expected = odd(x)
        placed = plan((stretch, "cpu/0"))
        wrong = pytest.raises(GimletError, match="does not hand on from Linear to Linear")
        with placer.deploy(placed, {"odd": odd}), wrong:
            odd(x)
        assert torch.equal(odd(x), expected)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("llm.model.layers[0:9]", None),
        ("llm.model.layers[9:12]", "no stretch of a model's layers"),
        ("llm.config[0:1]", "this notebook has no"),
        ("mixed[0:2]", "several kinds"),
    ],
)
def test_what_is_no_stretch_is_said(placer, llm, target, says):
    mixed = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.ReLU()])
    placed = plan((module("part", target, "forward"), "cpu/0"))
    names = {"llm": llm, "mixed": mixed}
    if says is None:
        placer.deploy(placed, names).rollback()  # as Python slices: to the end
        return
    with pytest.raises(GimletError, match=says):
        placer.deploy(placed, names)


def test_a_layer_goes_to_one_place(placer, llm):
    overlap = module("overlap", "llm.model.layers[1:3]", "forward")
    with pytest.raises(GimletError, match="layers in common"):
        placer.deploy(plan((FIRST, "cpu/0"), (overlap, "cpu/1")), {"llm": llm})
    whole = module("prefill", "llm", "prefill")
    with pytest.raises(GimletError, match="layers in common"):
        placer.deploy(plan((whole, "cpu/0"), (FIRST, "cpu/1")), {"llm": llm})
    assert not any("forward" in vars(part) for part in llm.modules())


def test_a_worker_that_is_lost_loses_no_token(placer, llm):
    expected = generate(llm, max_new_tokens=20)
    with placer.deploy(LAYERS, {"llm": llm}) as deployment:
        generate(llm)
        place = deployment._places["cpu/1"]
        place._end()
        assert torch.equal(generate(llm, max_new_tokens=20), expected)


def test_other_weights_are_sent_again_and_the_cell_s_own_model_is_profiled_around_them(placer, llm):
    with placer.deploy(LAYERS, {"llm": llm}) as deployment:
        generate(llm)
        loaded = deployment.stats()["second"]["loaded_bytes"]
        with torch.no_grad():
            llm.model.layers[2].mlp.up_proj.weight.mul_(0.5)
        got = generate(llm)
        assert deployment.refresh() == []
        assert deployment.stats()["second"]["loaded_bytes"] >= loaded
    assert torch.equal(got, generate(llm))
