"""Roles, signatures and the KV cache, by what goes into a call and comes out of it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
from capturing import Notebook, spans

from gimlet_lab.model import Recording, Span

torch: Any = pytest.importorskip("torch")


class Cache:
    """A growing cache, as transformers' ``DynamicCache`` does it."""

    def __init__(self) -> None:
        self.keys: list[Any] = []
        self.values: list[Any] = []

    def get_seq_length(self) -> Any:
        return torch.tensor(self.keys[0].shape[2] if self.keys else 0)  # static caches answer with a tensor

    def update(self, layer: int, key: Any, value: Any) -> tuple[Any, Any]:
        if layer == len(self.keys):
            self.keys.append(key)
            self.values.append(value)
        else:
            self.keys[layer] = torch.cat([self.keys[layer], key], 2)
            self.values[layer] = torch.cat([self.values[layer], value], 2)
        return self.keys[layer], self.values[layer]


class Output(dict):  # type: ignore[type-arg]
    pass


class Attention(torch.nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.qkv = torch.nn.Linear(16, 48, bias=False)

    def forward(self, x: Any, cache: Any) -> Any:
        q, k, v = (t.reshape(x.shape[0], x.shape[1], 2, 8).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if cache is not None:
            k, v = cache.update(self.index, k, v)
        causal = q.shape[2] > 1 and q.shape[2] == k.shape[2]
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return x + out.transpose(1, 2).reshape(x.shape)


class LM(torch.nn.Module):
    def __init__(self, head: bool = True) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(32, 16)
        self.layers = torch.nn.ModuleList([Attention(i) for i in range(2)])
        self.head = torch.nn.Linear(16, 32, bias=False) if head else None

    def forward(self, input_ids: Any = None, attention_mask: Any = None, past_key_values: Any = None) -> Any:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, past_key_values)
        if self.head is None:
            return Output(last_hidden_state=x)
        return Output(logits=self.head(x[:, -1:]), past_key_values=past_key_values)


GENERATE = """
def generate(ids, tokens, cache, step=None):
    for _ in range(tokens):
        mask = torch.ones(ids.shape[0], cache.get_seq_length() + ids.shape[1])
        out = llm(input_ids=ids, attention_mask=mask, past_key_values=cache)
        ids = out["logits"].argmax(-1)
    return ids
"""


@pytest.fixture
def notebook() -> Notebook:
    torch.manual_seed(0)
    notebook = Notebook(torch=torch, llm=LM(), embedder=LM(head=False), Cache=Cache)
    notebook.run(GENERATE)
    return notebook


def modules(recording: Recording) -> list[Span]:
    return spans(recording, "module")


def test_prefill_and_decode_are_told_apart_and_measured(notebook: Notebook) -> None:
    recording = notebook.profile("out = generate(torch.ones(2, 10, dtype=torch.long), 4, Cache())")
    calls = modules(recording)
    assert [s.role for s in calls] == ["prefill", "decode", "decode", "decode"]
    assert [(s.attributes["batch"], s.attributes["q_len"], s.attributes["past_len"]) for s in calls] == [
        (2, 10, 0), (2, 1, 10), (2, 1, 11), (2, 1, 12),
    ]  # fmt: skip
    token = 2 * 2 * 2 * 16 * 4  # batch, layers, keys and values, hidden, bytes
    assert [s.attributes["kv_bytes"] for s in calls] == [token * n for n in (10, 11, 12, 13)]
    assert len({s.signature for s in calls[1:]}) == 1


def test_a_growing_past_is_looked_at_each_time_it_has_doubled(notebook: Notebook) -> None:
    recording = notebook.profile("generate(torch.ones(1, 5, dtype=torch.long), 30, Cache())")
    looked = [s.attributes["past_len"] for s in modules(recording) if s.looked]
    assert looked == [0, 5, 10, 20]


def test_chunks_of_a_prompt_are_prefill(notebook: Notebook) -> None:
    recording = notebook.profile(
        """
        cache = Cache()
        for n in (8, 8, 3): llm(input_ids=torch.ones(1, n, dtype=torch.long), past_key_values=cache)
        """
    )
    assert [s.role for s in modules(recording)] == ["prefill"] * 3
    assert [s.attributes["past_len"] for s in modules(recording)] == [0, 8, 16]


def test_a_prompt_of_one_token_is_prefill(notebook: Notebook) -> None:
    recording = notebook.profile("generate(torch.ones(1, 1, dtype=torch.long), 2, Cache())")
    assert [s.role for s in modules(recording)] == ["prefill", "decode"]


def test_hidden_states_without_logits_or_cache_are_an_embedding(notebook: Notebook) -> None:
    recording = notebook.profile(
        """
        ids = torch.ones(3, 7, dtype=torch.long)
        embedder(input_ids=ids, attention_mask=torch.ones(3, 7))
        llm(ids)
        torch.nn.Linear(7, 2)(ids.float())
        """
    )
    assert [s.role for s in modules(recording)] == ["embed", "forward", "forward"]


def test_attention_and_the_bytes_of_the_cache_are_counted(notebook: Notebook) -> None:
    recording = notebook.profile("generate(torch.ones(1, 10, dtype=torch.long), 2, Cache())")
    prefill, decode = modules(recording)
    works = {
        s.id: [o for o in recording.ops if o.span == s.id and "scaled_dot" in o.op] for s in (prefill, decode)
    }
    assert [o.work.op for o in works[prefill.id] if o.work] == ["attention_prefill"] * 2
    assert [o.work.op for o in works[decode.id] if o.work] == ["attention_decode"] * 2
    assert [o.flops for o in works[prefill.id]] == [4.0 * 2 * 8 * (10 * 11 / 2)] * 2
    assert [o.flops for o in works[decode.id]] == [4.0 * 2 * 8 * 11] * 2
    # A decode step reads the past to copy it, and the whole to attend to it.
    kv = sum(o.kv_bytes for o in recording.ops if o.span == decode.id)
    assert kv == prefill.attributes["kv_bytes"] + decode.attributes["kv_bytes"]
    # Prefill made all its keys and values itself, and read them once.
    assert sum(o.kv_bytes for o in recording.ops if o.span == prefill.id) == prefill.attributes["kv_bytes"]
    weights = sum(o.weight_bytes for o in recording.ops if o.span == decode.id)
    assert weights == 16 * 4 + 2 * 16 * 48 * 4 + 16 * 32 * 4


def test_the_cache_goes_from_call_to_call(notebook: Notebook) -> None:
    recording = notebook.profile("generate(torch.ones(1, 10, dtype=torch.long), 3, Cache())")
    ids = [s.id for s in modules(recording)]
    kv = [t for t in recording.transfers if t.kind == "kv"]
    assert [(t.producer, t.consumer) for t in kv] == [(ids[0], ids[1]), (ids[1], ids[2])]
    assert kv[0].bytes == recording.spans[ids[0]].attributes["kv_bytes"]
    assert {(t.known, t.name) for t in kv} == {("tensor", "past_key_values")}


def test_two_conversations_keep_their_caches_apart(notebook: Notebook) -> None:
    recording = notebook.profile(
        """
        a, b = Cache(), Cache()
        p, q = (generate(torch.ones(1, 4, dtype=torch.long), 1, c) for c in (a, b))
        generate(p, 1, a); generate(q, 1, b)
        """
    )
    first, second, third, fourth = (s.id for s in modules(recording))
    kv = {(t.producer, t.consumer) for t in recording.transfers if t.kind == "kv"}
    assert kv == {(first, third), (second, fourth)}


def test_the_cache_is_not_kept_alive(notebook: Notebook) -> None:
    notebook.namespace["weakref"] = weakref
    notebook.profile(
        """
        c = Cache(); generate(torch.ones(1, 4, dtype=torch.long), 2, c)
        refs = [weakref.ref(c), weakref.ref(c.keys[0])]
        del c
        alive = [r() is not None for r in refs]
        """
    )
    assert notebook["alive"] == [False, False]


def test_the_answer_is_the_one_without_us(notebook: Notebook) -> None:
    notebook.run("bare = generate(torch.ones(1, 9, dtype=torch.long), 12, Cache())")
    notebook.profile("profiled = generate(torch.ones(1, 9, dtype=torch.long), 12, Cache())")
    assert torch.equal(notebook["bare"], notebook["profiled"])


def test_guesses_that_are_verified_are_no_prompt(notebook: Notebook) -> None:
    recording = notebook.profile(
        """
        cache, ids = Cache(), torch.ones(1, 8, dtype=torch.long)
        out = llm(input_ids=ids[:, :5], past_key_values=cache)
        out = llm(input_ids=ids[:, 5:], past_key_values=cache)
        for _ in range(3):
            token = out["logits"].argmax(-1)
            out = llm(input_ids=torch.cat([token, token, token], 1), past_key_values=cache)
        """
    )
    assert [s.role for s in modules(recording)] == ["prefill"] * 2 + ["verify"] * 3


# -- real ones ------------------------------------------------------------


@pytest.mark.slow
def test_generate_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    llm = transformers.LlamaForCausalLM(config).eval()
    bert = transformers.BertModel(
        transformers.BertConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    ).eval()
    notebook = Notebook(llm=llm, bert=bert, torch=torch)
    recording = notebook.profile(
        """
        ids = torch.ones(1, 12, dtype=torch.long)
        bert(input_ids=ids, attention_mask=torch.ones_like(ids))
        options = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
        llm.generate(ids, **options)
        llm.generate(ids, cache_implementation="static", **options)
        llm.generate(ids, num_beams=2, **options)
        """
    )
    assert notebook.error is None
    calls = modules(recording)
    assert [s.role for s in calls] == ["embed"] + ["prefill", "decode", "decode"] * 3
    assert [s.attributes["past_len"] for s in calls[1:]] == [0, 12, 13] * 3
    kv = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head, bytes
    assert [s.attributes["kv_bytes"] for s in calls[1:4]] == [kv * n for n in (12, 13, 14)]
    assert {o.flops is not None for o in recording.ops if "scaled_dot" in o.op} == {True}
    assert recording.notes == ()


@pytest.mark.slow
def test_chunks_guesses_and_turns_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    llm, draft = (transformers.LlamaForCausalLM(config).eval() for _ in range(2))
    notebook = Notebook(llm=llm, draft=draft, torch=torch, Cache=transformers.DynamicCache)
    notebook.run(
        """
        ids = torch.arange(24)[None] % 8
        options = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
        """
    )

    def roles(cell: str) -> list[str | None]:
        recording = notebook.profile(cell)
        assert notebook.error is None
        return [s.role for s in modules(recording) if s.target == "llm"]

    assert roles("llm.generate(ids, prefill_chunk_size=10, **options)") == ["prefill"] * 3 + ["decode"] * 5
    looked_up = roles("llm.generate(ids, prompt_lookup_num_tokens=3, **options)")
    assert looked_up[0] == "prefill"
    assert set(looked_up[1:]) <= {"verify", "decode"}
    assert "verify" in looked_up
    assisted = roles("llm.generate(ids, assistant_model=draft, **options)")
    assert assisted[0] == "prefill"
    assert set(assisted[1:]) <= {"verify", "decode"}
    turns = roles(
        """
        cache = Cache(config=llm.config)
        first = llm.generate(ids, past_key_values=cache, **options)
        more = torch.cat([first, ids], 1)
        second = llm.generate(more, past_key_values=cache, **options)
        """
    )
    assert turns == (["prefill"] + ["decode"] * 5) * 2
