"""A decoder-only model as works: one step of a serving engine, on one of the devices that share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gimlet_lab.errors import UnknownNameError, UsageError
from gimlet_lab.model.work import Work

#: What people call the dtypes that models are served in, and what computes, stores weights and keeps the
#: cache.
DTYPES = {
    "bf16": ("bfloat16", "bfloat16"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "fp16": ("float16", "float16"),
    "float16": ("float16", "float16"),
    "fp32": ("float32", "float32"),
    "float32": ("float32", "float32"),
    "fp8": ("float8_e4m3fn", "float8_e4m3fn"),
    "float8_e4m3fn": ("float8_e4m3fn", "float8_e4m3fn"),
    "fp4": ("float4_e2m1fn_x2", "float8_e4m3fn"),
    "nvfp4": ("float4_e2m1fn_x2", "float8_e4m3fn"),
    "int8": ("int8", "bfloat16"),
}

#: Bytes of a weight, with its scales (nvfp4: one of eight bits for 16 weights).
WEIGHT_BYTES = {
    "bfloat16": 2.0,
    "float16": 2.0,
    "float32": 4.0,
    "float8_e4m3fn": 1.0,
    "float4_e2m1fn_x2": 0.5625,
    "int8": 1.0,
}

_PLAIN = "bfloat16"


@dataclass(frozen=True, slots=True)
class Decoder:
    """The dimensions of a decoder that its costs go by; from a Hugging Face config by :func:`decoder`."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inter: int
    vocabulary: int
    experts: int
    top_k: int
    window: int
    tied: bool

    def weights(self) -> tuple[float, float]:
        """Parameters of the layers' matrices, and of embedding and head (which stay in 16 bits)."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        mlp = 3 * self.hidden * self.inter * max(self.experts, 1)
        return float(self.layers * (attention + mlp)), float(
            self.vocabulary * self.hidden * (1 if self.tied else 2)
        )

    def weight_bytes(self, dtype: str) -> float:
        """Bytes of all weights, served in a dtype."""
        compute = dtypes(dtype)[0]
        matrices, tables = self.weights()
        return matrices * WEIGHT_BYTES[compute] + tables * max(WEIGHT_BYTES[compute], 2.0)

    def kv_bytes_per_token(self, dtype: str) -> float:
        """Bytes of keys and values of one position in all layers."""
        return 2.0 * self.layers * self.kv_heads * self.head_dim * WEIGHT_BYTES[dtypes(dtype)[1]]


def decoder(name: str, config: Mapping[str, Any]) -> Decoder:
    """Read the dimensions of a decoder from its config.

    Raises
    ------
    UsageError
        For a config without them: an encoder, say.
    """
    config = {**config, **config.get("text_config", {})}
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
        experts = int(config.get("num_local_experts") or config.get("num_experts") or 0)
        return Decoder(
            name=name,
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            inter=int(
                (config.get("moe_intermediate_size") if experts else None) or config["intermediate_size"]
            ),
            vocabulary=int(config["vocab_size"]),
            experts=experts,
            top_k=int(config.get("num_experts_per_tok") or 0) if experts else 0,
            window=int(window or 0),
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise UsageError(
            f"model {name}: its config has no {error.args[0]}: serving is estimated of decoders only"
        ) from None


def dtypes(dtype: str) -> tuple[str, str]:
    """What computes, and what the KV cache is kept in.

    Raises
    ------
    UnknownNameError
    """
    try:
        return DTYPES[dtype]
    except KeyError:
        raise UnknownNameError("dtype to serve in", dtype, DTYPES) from None


def step(
    model: Decoder,
    dtype: str,
    tp: int,
    *,
    decode: int = 0,
    context: int = 0,
    prefill: int = 0,
    prompt: int = 0,
) -> list[Work]:
    """One step of an engine.

    All layers, on one of ``tp`` devices: ``decode`` sequences of ``context`` positions each make a token,
    while ``prefill`` prompts of ``prompt`` tokens are read.
    """
    compute, kept = dtypes(dtype)
    plain = "float32" if compute == "float32" else _PLAIN if compute != "float16" else "float16"
    tokens, layers = decode + prefill * prompt, model.layers
    heads, kv_heads = max(model.heads // tp, 1), max(model.kv_heads // tp, 1)
    dim, hidden, inter = model.head_dim, model.hidden, max(model.inter // tp, 1)
    # Engines launch one kernel for a residual sum with its norm, for the cache's update with its rotation,
    # and for quantising with whatever came before.
    works = [
        Work.of("elementwise", plain, 2 * layers, elements=tokens * hidden, inputs=2, outputs=2),
        Work.of("gemm", compute, layers, m=tokens, n=(heads + 2 * kv_heads) * dim, k=hidden),
        Work.of(
            "elementwise", plain, layers, elements=tokens * (heads + 2 * kv_heads) * dim, inputs=1, outputs=1
        ),
        Work.of("gemm", compute, layers, m=tokens, n=hidden, k=heads * dim),
    ]
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": dim, "window": model.window}
    kv_dtype = None if kept == plain else kept
    if decode:
        works.append(
            Work.of(
                "attention_decode",
                plain,
                layers,
                kv_dtype=kv_dtype,
                batch=decode,
                q_len=1,
                kv_len=max(context, 1),
                **shape,
            )
        )
    if prefill:
        works.append(
            Work.of(
                "attention_prefill",
                plain,
                layers,
                kv_dtype=kv_dtype,
                batch=prefill,
                q_len=prompt,
                kv_len=prompt,
                **shape,
            )
        )
    if model.experts:
        works.append(Work.of("gemm", plain, layers, m=tokens, n=model.experts, k=hidden))
        works.append(
            Work.of(
                "moe",
                compute,
                layers,
                tokens=tokens,
                hidden=hidden,
                inter=model.inter,
                experts=model.experts,
                top_k=model.top_k,
                tp=tp,
                ep=1,
            )
        )
    else:
        works += [
            Work.of("gemm", compute, layers, m=tokens, n=2 * inter, k=hidden),
            Work.of("elementwise", plain, layers, elements=tokens * inter, inputs=2, outputs=1),
            Work.of("gemm", compute, layers, m=tokens, n=hidden, k=inter),
        ]
    if tp > 1:
        works.append(Work.of("all_reduce", plain, 2 * layers, bytes=2 * tokens * hidden, devices=tp))
    works += [
        Work.of("embedding", plain, rows=tokens, cols=hidden),
        Work.of("gemm", plain, m=decode + prefill, n=max(model.vocabulary // tp, 1), k=hidden),
    ]
    if tp > 1:
        works.append(
            Work.of("all_gather", plain, bytes=2 * (decode + prefill) * model.vocabulary, devices=tp)
        )
    return works
