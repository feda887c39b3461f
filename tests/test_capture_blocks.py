"""Blocks that are alike: two are looked at, all are counted, and what differs is not taken to be the same."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from capturing import Notebook, spans

from gimlet_lab.model import Op, Recording

torch: Any = pytest.importorskip("torch")


class Block(torch.nn.Module):
    """A block that says whether its operators are watched."""

    def __init__(self, layer_idx: int, **attributes: Any) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.up, self.down = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Any) -> Any:
        WATCHED.append((self.layer_idx, torch._C._len_torch_dispatch_stack() > 0))
        if getattr(self, "choosy", False) and x.sum().item() > 1e9:
            return x
        for _ in range(getattr(self, "times", 1)):
            x = x + self.down(torch.relu(self.up(x)))
        if self.layer_idx in FAILING:
            raise ValueError("half way")
        return x


WATCHED: list[tuple[int, bool]] = []
FAILING: set[int] = set()


class Model(torch.nn.Module):
    def __init__(self, *blocks: Any) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(blocks)
        self.head = torch.nn.Linear(16, 4)

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def watched(
    model: Any, cell: str = "with torch.no_grad(): model(x)", **options: Any
) -> tuple[Recording, list[int]]:
    """The recording of a cell, and the blocks whose operators were watched."""
    WATCHED.clear()
    recording = Notebook(torch=torch, model=model, x=torch.ones(3, 16)).profile(cell, **options)
    return recording, [index for index, seen in WATCHED if seen]


Key = tuple[str, str]


def counted(recording: Recording) -> dict[Key, list[float]]:
    """Per module and operator: how often, FLOPs, bytes by kind."""
    found: dict[Key, list[float]] = defaultdict(lambda: [0.0] * 6)
    for op in recording.ops:
        numbers = (op.count, op.flops, op.bytes_read, op.bytes_written, op.weight_bytes, op.kv_bytes)
        of = found[op.module, op.op]
        found[op.module, op.op] = [a + (b or 0.0) for a, b in zip(of, numbers, strict=True)]
    return dict(found)


def plain(count: int = 6, **attributes: Any) -> Any:
    torch.manual_seed(0)
    return Model(*(Block(index, **attributes) for index in range(count)))


def test_two_blocks_are_looked_at_and_all_are_counted():
    exact, everything = watched(plain(), exact=True)
    found, some = watched(plain())
    assert everything == [0, 1, 2, 3, 4, 5]
    assert some == [0, 1]
    assert counted(found) == counted(exact)


def test_operators_of_a_block_left_out_lie_inside_it_in_their_order():
    found, _ = watched(plain())
    (call,) = spans(found, "module")
    ops = [op for op in found.ops if op.span == call.id]
    names = [op.op for op in ops if op.module.startswith("blocks.4")]
    assert names == [op.op for op in ops if op.module.startswith("blocks.0")]
    ends = call.start_s
    for op in sorted(ops, key=lambda op: op.start_s):
        assert op.start_s >= ends - 1e-9, op
        ends = op.start_s + op.duration_s
    assert ends <= call.start_s + call.duration_s + 1e-9


@pytest.mark.parametrize(
    "different",
    [
        pytest.param({"times": 2}, id="a number of its own"),
        pytest.param({"choosy": True}, id="values that decide"),
    ],
)
def test_a_block_that_is_not_like_the_others_is_looked_at(different):
    def make() -> Any:
        torch.manual_seed(0)
        return Model(*(Block(index, **(different if index == 4 else {})) for index in range(6)))

    exact, _ = watched(make(), exact=True)
    found, some = watched(make())
    assert 4 in some
    assert counted(found) == counted(exact)


def test_blocks_in_which_values_decide_are_all_looked_at():
    assert watched(plain(choosy=True))[1] == [0, 1, 2, 3, 4, 5]


def test_a_hooked_block_is_looked_at_whenever_it_was_hooked():
    def make() -> Any:
        model = plain()
        model.blocks[3].register_forward_hook(lambda _module, _args, out: out * 2.0)
        return model

    exact, _ = watched(make(), exact=True)
    found, some = watched(make())
    assert 3 in some
    assert counted(found) == counted(exact)
    # In the middle of a cell too.
    hook = "model.blocks[5].register_forward_hook(lambda *a: a[2] * 2.0)"
    _, some = watched(plain(), f"with torch.no_grad(): model(x); {hook}; model(x[:2])")
    assert some == [0, 1, 0, 1, 5]


def test_a_block_with_a_forward_of_its_own_is_looked_at():
    model = plain()
    model.blocks[4].forward = lambda x: x.exp()
    found, _ = watched(model)
    assert ("blocks.4", "aten::exp") in counted(found)


def test_blocks_given_other_shapes_are_looked_at():
    class Growing(Model):
        def forward(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(torch.cat([x, x[:1]]))
            return self.head(x)

    def make() -> Any:
        torch.manual_seed(0)
        return Growing(*(Block(index) for index in range(5)))

    exact, _ = watched(make(), exact=True)
    found, some = watched(make())
    assert some == [0, 1, 2, 3, 4]
    assert counted(found) == counted(exact)


def test_a_block_that_raises_while_nobody_looks_leaves_everything_in_order():
    cell = """
    with torch.no_grad():
        failing.add(4)
        try:
            model(x)
        except ValueError:
            failing.clear()
        model(x)
    """
    WATCHED.clear()
    notebook = Notebook(torch=torch, model=plain(), x=torch.ones(3, 16), failing=FAILING)
    recording = notebook.profile(cell)
    assert [index for index, seen in WATCHED if seen] == [0, 1, 0, 1]
    assert torch._C._len_torch_dispatch_stack() == 0
    first, second = spans(recording, "module")
    assert first.attributes["error"] == "ValueError"
    assert second.looked
    exact, _ = watched(plain(), exact=True)
    whole = tuple(op for op in recording.ops if op.span == second.id)
    assert counted(Recording((), ops=whole)) == counted(exact)


def test_with_gradients_the_way_back_is_as_ever():
    code = "model(x).sum().backward()"
    exact, _ = watched(plain(), code, exact=True)
    found, some = watched(plain(), code)
    assert some == [0, 1, 2]  # what comes into the first one needs no gradient
    assert counted(found) == counted(exact)


def test_threads_leave_out_blocks_of_their_own():
    code = """
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(model, [torch.ones(n, 16) for n in range(1, 9)]))
    """
    exact, _ = watched(plain(), code, exact=True)
    found, _ = watched(plain(), code)

    def inside(recording: Recording) -> dict[Key, list[float]]:
        of = {span.id for span in spans(recording, "module")}
        ops: list[Op] = [op for op in recording.ops if op.span in of]
        return counted(Recording(recording.spans, ops=tuple(ops)))

    assert inside(found) == inside(exact)


@pytest.mark.parametrize(
    "given", [{}, {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 2}]
)
def test_the_cache_of_a_model_in_layers_is_counted_to_the_byte(given):
    """Storages that are given out again in blocks nobody watches must not be taken for the cache's."""
    transformers = pytest.importorskip("transformers")
    small = {
        "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    family = ("Qwen2Config", "Qwen2ForCausalLM") if given else ("LlamaConfig", "LlamaForCausalLM")
    config, model = (getattr(transformers, name) for name in family)
    llm = model(config(**small, **given)).eval()
    cell = """
    with torch.inference_mode():
        llm.generate(ids, attention_mask=torch.ones_like(ids), **greedy)
    """
    greedy = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    for length in range(5, 13):
        notebook = Notebook(
            torch=torch, llm=llm, greedy=greedy, ids=torch.arange(1, 1 + length).view(1, length)
        )
        exact, found = (notebook.profile(cell, exact=exact) for exact in (True, False))
        looked = {s.start_s: s for s in spans(found, "module") if s.looked}
        assert len(looked) == 2
        for call in looked.values():
            (like,) = [
                s for s in spans(exact, "module") if s.attributes["past_len"] == call.attributes["past_len"]
            ]

            def of(recording: Recording, span: int) -> dict[Key, list[float]]:
                return counted(Recording((), ops=tuple(op for op in recording.ops if op.span == span)))

            assert of(found, call.id) == of(exact, like.id)


def take_down(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every block from now on: whether its operators are watched. A hook would have it watched."""
    watched: list[bool] = []
    names = ("input_layernorm", "ln_1", "attention")
    first = {part for name, part in model.named_modules() if name.rpartition(".")[2] in names}
    for kind in {type(part) for part in first}:
        own = kind.forward

        def forward(self: Any, *args: Any, _own: Any = own, **kwargs: Any) -> Any:
            if self in first:
                watched.append(torch._C._len_torch_dispatch_stack() > 0)
            return _own(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", forward)
    return watched


SIZES = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6,
    "num_attention_heads": 4, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma2": ("ForCausalLM", {**SIZES, "head_dim": 8, "sliding_window": 4, "num_key_value_heads": 2}),
    "Mixtral": ("ForCausalLM", {**SIZES, "num_local_experts": 4, "num_key_value_heads": 2}),
    "Bert": ("Model", SIZES),
    "GPT2": ("LMHeadModel", {"n_embd": 32, "n_head": 4, "n_layer": 6, "eos_token_id": 0}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_models_are_counted_as_if_all_was_looked_at(family, monkeypatch):
    """Layers of two kinds in turn, experts, layers without a cache: fewer are watched, as much is counted."""
    transformers = pytest.importorskip("transformers")
    kind, sizes = FAMILIES[family]
    config, made = (getattr(transformers, family + ending) for ending in ("Config", kind))
    torch.manual_seed(0)
    model = made(config(**sizes)).eval()
    watched = take_down(model, monkeypatch)
    notebook = Notebook(torch=torch, model=model, ids=torch.arange(1, 17).view(2, 8))
    cell = "with torch.no_grad(): model(input_ids=ids)"
    exact, found = (notebook.profile(cell, exact=exact) for exact in (True, False))
    assert notebook.error is None
    assert counted(found) == counted(exact)
    assert sum(watched[:6]) == 6
    assert 2 <= sum(watched[6:]) <= 4
