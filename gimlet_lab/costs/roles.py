"""Prefill and decode of a served decoder, apart or together: the ways to run them on a kind of device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gimlet_lab.costs.decoder import DTYPES, Decoder
from gimlet_lab.costs.serving import (
    CHUNK_TOKENS,
    MEMORY_SHARE,
    MOST_BATCH,
    RESERVE_BYTES,
    TPOT,
    TTFT,
    Engine,
    mixed_tokens,
)
from gimlet_lab.errors import UsageError
from gimlet_lab.model.device import Device
from gimlet_lab.model.estimate import Estimate
from gimlet_lab.model.graph import Stage

#: Share of what engines can serve that they are planned for: beyond it, waits grow without bound.
BUSY = 0.8

#: Devices that share each layer at most: those of one box.
MOST_TP = 8


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is asked of a served model.

    Attributes
    ----------
    requests_per_s : float
        Calls of the model, which an agent may make several of.
    isl, osl : int
        Tokens in and out of one call.
    """

    requests_per_s: float
    isl: int
    osl: int


@dataclass(frozen=True, slots=True)
class Way:
    """A way to serve one role of a model, or both, on devices of one kind.

    Attributes
    ----------
    tp, batch : int
        Devices that share each layer; requests at a time.
    ttft, tpot : Estimate or None
        Time to first token, its wait for a free engine included; time per token. None: not of this role.
    devices : int
        All that the traffic takes, whole engines.
    busy : float
        Share of what they can serve that is used.
    memory_bytes : float
        On each device: weights, cache of the batch, and what engines keep back.
    """

    tp: int
    batch: int
    ttft: Estimate | None
    tpot: Estimate | None
    devices: int
    busy: float
    memory_bytes: float

    @property
    def variant(self) -> str:
        """``tp2-b16``."""
        return f"tp{self.tp}-b{self.batch}"


def usable_bytes(device: Device) -> float | None:
    """Memory that an engine may fill."""
    return None if device.memory_bytes is None else device.memory_bytes.value * MEMORY_SHARE


def prefills(
    model: Decoder, device: Device, dtype: str, traffic: Traffic, *, slow: bool = False
) -> list[Way]:
    """Ways to read prompts only; ``slow``: sized for the high end of the interval."""
    found = []
    for engine in _engines(model, device, dtype):
        piece = min(traffic.isl, CHUNK_TOKENS)
        batches = [
            batch
            for batch in (1, 2, 4, 8)
            if (batch == 1 or batch * traffic.isl <= CHUNK_TOKENS)
            and _fits(_memory_bytes(engine, batch * traffic.isl), device)
        ]
        if not batches:
            continue
        steps, source, _ = engine.steps_s([{"prefill": batch, "prompt": piece} for batch in batches])
        low, high = TTFT[source]
        for batch, step_s in zip(batches, steps.tolist(), strict=True):
            service_s = step_s * traffic.isl / piece
            sized_s = service_s * (high if slow else 1.0)
            engines, busy = _engines_for(traffic.requests_per_s, batch / sized_s)
            ttft_s = service_s + _wait_s(busy, engines, service_s)
            ttft = Estimate(ttft_s, ttft_s * low, ttft_s * high, "compute", source)
            memory = _memory_bytes(engine, batch * traffic.isl)
            found.append(Way(engine.tp, batch, ttft, None, engines * engine.tp, busy, memory))
    return _undominated(found)


def decodes(model: Decoder, device: Device, dtype: str, traffic: Traffic, *, slow: bool = False) -> list[Way]:
    """Ways to make tokens only, of prompts that were read elsewhere."""
    found = []
    context = traffic.isl + traffic.osl // 2
    for engine in _engines(model, device, dtype):
        shapes = [
            {"decode": batch, "context": context}
            for batch in _batches()
            if _fits(_memory_bytes(engine, batch * context), device)
        ]
        if not shapes:
            continue
        steps, source, _ = engine.steps_s(shapes)
        low, high = TPOT[source]
        for shape, step_s in zip(shapes, steps.tolist(), strict=True):
            batch = shape["decode"]
            sized_s = step_s * (high if slow else 1.0)
            engines, busy = _engines_for(traffic.requests_per_s, batch / (sized_s * max(traffic.osl - 1, 1)))
            tpot = Estimate(step_s, step_s * low, step_s * high, "bandwidth", source)
            memory = _memory_bytes(engine, batch * context)
            found.append(Way(engine.tp, batch, None, tpot, engines * engine.tp, busy, memory))
    return _undominated(found)


def together(
    model: Decoder, device: Device, dtype: str, traffic: Traffic, *, slow: bool = False
) -> list[Way]:
    """Ways to do both on the same devices, prompts read between the steps of decoding."""
    found = []
    context = traffic.isl + traffic.osl // 2
    for engine in _engines(model, device, dtype):
        batches = [b for b in _batches() if _fits(_memory_bytes(engine, b * context), device)]
        if not batches:
            continue
        answers, source, _ = mixed_tokens(engine, batches, traffic.isl, traffic.osl)
        for batch, (tpot_s, first_s) in zip(batches, answers, strict=True):
            memory = _memory_bytes(engine, batch * context)
            request_s = first_s + (traffic.osl - 1) * tpot_s
            sized_s = request_s * (TPOT[source][1] if slow else 1.0)
            engines, busy = _engines_for(traffic.requests_per_s, batch / sized_s)
            ttft_s = first_s + _wait_s(busy, engines * batch, request_s)
            ttft = Estimate(ttft_s, ttft_s * TTFT[source][0], ttft_s * TTFT[source][1], "compute", source)
            tpot = Estimate(tpot_s, tpot_s * TPOT[source][0], tpot_s * TPOT[source][1], "bandwidth", source)
            found.append(Way(engine.tp, batch, ttft, tpot, engines * engine.tp, busy, memory))
    return _undominated(found)


def decoder_of(stage: Stage, name: str) -> Decoder:
    """The dimensions of a decoder, read off the operators that a stage ran.

    Raises
    ------
    UsageError
        Where they do not say: no embedding, attention or projections among them.
    """
    attention = [w for w in stage.works if w.op in ("attention_prefill", "attention_decode")]
    embedding = next((w for w in stage.works if w.op == "embedding"), None)
    gemms = [w for w in stage.works if w.op == "gemm"]
    if not attention or embedding is None or not gemms or stage.calls < 1:
        raise UsageError(
            f"stage {stage.id!r}: its operators do not show a decoder; say which model it serves (model=…)"
        )
    first, hidden = attention[0], int(embedding["cols"])
    layers = round(sum(w.count for w in attention) / stage.calls)
    heads, head_dim = int(first["heads"]), int(first["head_dim"])
    moe = next((w for w in stage.works if w.op == "moe"), None)
    inner = [int(w["k"]) for w in gemms if int(w["n"]) == hidden and int(w["k"]) != hidden]
    head = [int(w["n"]) for w in gemms if int(w["k"]) == hidden and w.count <= stage.calls]
    return Decoder(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=int(first.get("kv_heads", heads)),
        head_dim=head_dim,
        inter=int(moe["inter"]) if moe else max(inner, default=4 * hidden),
        vocabulary=max(head, default=0),
        experts=int(moe["experts"]) if moe else 0,
        top_k=int(moe["top_k"]) if moe else 0,
        window=int(first.get("window", 0)),
        tied=False,
    )


def served_dtype(stage: Stage) -> str:
    """What a stage is served in where nobody says: what it ran in."""
    return stage.dtype if stage.dtype in DTYPES else "bfloat16"


def _engines(model: Decoder, device: Device, dtype: str) -> Iterator[Engine]:
    domain = 1 if device.scale_up_devices is None else int(device.scale_up_devices.value)
    tp = 1
    while tp <= min(domain, MOST_TP) and model.heads % tp == 0:
        yield Engine(model, device, tp, 1, dtype, None)
        tp *= 2


def _batches() -> Iterator[int]:
    batch = 1
    while batch <= MOST_BATCH:
        yield batch
        batch *= 2


def _memory_bytes(engine: Engine, positions: int) -> float:
    # Devices beyond the number of KV heads keep copies.
    share = min(engine.tp, engine.model.kv_heads)
    cache = positions * engine.model.kv_bytes_per_token(engine.dtype) / share
    return engine.model.weight_bytes(engine.dtype) / engine.tp + cache + RESERVE_BYTES


def _fits(memory: float, device: Device) -> bool:
    usable = usable_bytes(device)
    return usable is None or memory <= usable


def _engines_for(requests_per_s: float, each_per_s: float) -> tuple[int, float]:
    engines = max(1, math.ceil(requests_per_s / (BUSY * each_per_s) * (1 - 1e-9)))
    return engines, requests_per_s / (engines * each_per_s)


def _wait_s(busy: float, servers: int, service_s: float) -> float:
    """Mean wait in M/M/c by Sakasegawa's formula, halved for services that all last alike."""
    return float(busy ** (math.sqrt(2 * (servers + 1)) - 1) / (1 - busy) * service_s / servers / 2)


def _undominated(ways: list[Way]) -> list[Way]:
    """Ways that are not as slow and as dear as another one."""

    def figures(way: Way) -> tuple[float, float, int]:
        ttft = way.ttft.seconds if way.ttft else 0.0
        return ttft, way.tpot.seconds if way.tpot else 0.0, way.devices

    kept: list[Way] = []
    for way in sorted(ways, key=figures):
        if not any(all(a <= b for a, b in zip(figures(o), figures(way), strict=True)) for o in kept):
            kept.append(way)
    return kept
