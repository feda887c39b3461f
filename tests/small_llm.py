"""A Llama of two layers, and plans that split it."""

from __future__ import annotations

import pytest
from placing import module, plan

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

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


def make_llm(seed=0, **more):
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SMALL, **more})).eval()


IDS = torch.arange(1, 23).view(2, 11)


def generate(llm, ids=IDS, **options):
    torch.manual_seed(1)
    return llm.generate(ids, attention_mask=torch.ones_like(ids), **{"max_new_tokens": 10, **options})
