"""What a served model answers with: time to first token, time per token, throughput and how many fit.

Continuous batching in its steady state: ``batch`` requests are always under way, each with ``isl`` tokens in
and ``osl`` out. An engine's steps carry the decoding of all of them, and every ``osl/batch`` steps one more
request's prompt. The time per token is the mean step; the first token waits for half a step, for part of the
others' prompts (:data:`AHEAD`), and for its own prompt's step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gimlet_lab.costs import kernels
from gimlet_lab.costs.decoder import Decoder, decoder, dtypes, step
from gimlet_lab.costs.kv import egress_bytes_per_s
from gimlet_lab.costs.tiers import TIERS, price
from gimlet_lab.errors import UnknownNameError, UsageError
from gimlet_lab.hardware import architectures, catalogue
from gimlet_lab.model.device import Device
from gimlet_lab.model.estimate import Estimate

#: Seconds between two steps of an engine: scheduling, sampling, handing tokens out.
BETWEEN_STEPS_S = 3e-4

#: Tokens that engines read in one step at most; longer prompts go in pieces.
CHUNK_TOKENS = 8192

#: Share of the batch's prompts that a new one waits for. Requests that start together and are as long stay
#: together (half of them would be ahead); spread evenly none would be. See docs/costs.md.
AHEAD = 0.15

#: Share of memory that engines use, and what they keep of it for activations, graphs and libraries.
MEMORY_SHARE, RESERVE_BYTES = 0.9, 3.5e9

#: Batches tried when a rate is asked for.
MOST_BATCH = 1024

#: Bounds of the 90% interval as multiples of the estimate, by where the kernels are from (see docs/costs.md).
TPOT = {"kernel table": (0.75, 1.4), "model": (0.65, 1.5)}
TTFT = {"kernel table": (0.5, 2.5), "model": (0.45, 2.7)}


@dataclass(frozen=True, slots=True)
class Serving:
    """A served model in its steady state.

    Attributes
    ----------
    ttft_s, tpot_s : float
        Time to the first token and between two later ones, mean. With a ``rate_per_s`` above
        what can be served both are infinite.
    ttft, tpot : Estimate
        The same with intervals and source.
    tokens_per_s, requests_per_s : float
        Tokens put out, and requests finished, by all its devices together.
    batch : float
        Requests under way at a time: as asked for, as the rate makes them, or as many as fit.
    kv_capacity_tokens : float
        Positions that the devices' memory holds beside the weights.
    weight_bytes, kv_bytes_per_token : float
        Of the whole model.
    utilisation, wait_s : float or None
        Share of what can be served, and the mean wait for a place, where a rate was given.
    kv_transfer_s, kv_link_bytes_per_s : float or None
        Where another device prefills: what a prompt's cache takes on the way (it delays the second
        token), and the link it would need to be there with the first.
    joules_per_token, usd_per_million_tokens : float or None
    notes : tuple of str
        What makes it less sure, or was changed.
    """

    ttft_s: float
    tpot_s: float
    ttft: Estimate
    tpot: Estimate
    tokens_per_s: float
    requests_per_s: float
    batch: float
    kv_capacity_tokens: float
    weight_bytes: float
    kv_bytes_per_token: float
    utilisation: float | None = None
    wait_s: float | None = None
    kv_transfer_s: float | None = None
    kv_link_bytes_per_s: float | None = None
    joules_per_token: float | None = None
    usd_per_million_tokens: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Engine:
    """A model on devices of one kind: what prices its steps."""

    model: Decoder
    device: Device
    tp: int
    pp: int
    dtype: str
    tier: str | None

    def steps_s(
        self, shapes: list[dict[str, int]]
    ) -> tuple[np.ndarray[Any, np.dtype[np.float64]], str, set[str]]:
        """Seconds of some steps, the tier that priced most of their time, and what there is to say."""
        works, ends = [], []
        for shape in shapes:
            works += step(self.model, self.dtype, self.tp, **shape)
            ends.append(len(works))
        found = price(works, self.device, self.tier)
        if np.isnan(found.seconds).any():
            missing = works[int(np.flatnonzero(np.isnan(found.seconds))[0])]
            raise UsageError(f"{self.device.id}: nothing is known of {missing.op} in {missing.dtype} there")
        sums = np.add.reduceat(found.seconds, [0, *ends[:-1]])
        # Pipeline stages take turns at one token; each hands it on.
        hop = (
            max(shape.get("decode", 0) + shape.get("prefill", 0) * shape.get("prompt", 0) for shape in shapes)
            * self.model.hidden
            * 2
        )
        link = kernels.link(self.device)
        between = (self.pp - 1) * (1e-5 + (hop / link[0] if link else 0.0))
        tables = float(found.seconds[found.source == "kernel table"].sum()) > 0.5 * float(found.seconds.sum())
        notes = {str(note) for note in found.note if note}
        return sums + between + BETWEEN_STEPS_S, "kernel table" if tables else "model", notes

    @property
    def devices(self) -> int:
        """How many share the model."""
        return self.tp * self.pp

    def capacity_tokens(self) -> float:
        """Positions that fit beside the weights."""
        memory = self.device.memory_bytes
        if memory is None:
            return np.inf
        room = self.devices * (memory.value * MEMORY_SHARE - RESERVE_BYTES) - self.model.weight_bytes(
            self.dtype
        )
        # Devices beyond the number of KV heads keep copies.
        copies = max(self.tp / self.model.kv_heads, 1.0)
        return max(room, 0.0) / (self.model.kv_bytes_per_token(self.dtype) * copies)


def estimate_serving(
    model: str | Path | Mapping[str, Any],
    device: Device | str,
    tp: int = 1,
    pp: int = 1,
    batch: int = 16,
    isl: int = 1024,
    osl: int = 1024,
    dtype: str = "fp8",
    prefill_device: Device | str | None = None,
    rate_per_s: float | None = None,
    tier: str | None = None,
) -> Serving:
    """Estimate how a model is served on a device, or prefilled on one and decoded on another.

    Parameters
    ----------
    model : str, Path or dict
        A Hugging Face config, its path, or a name of the shipped list.
    device : Device or str
        What serves it, or only decodes where there is a ``prefill_device``.
    tp, pp : int
        Devices that share each layer, and pipeline stages.
    batch : int
        Requests under way at a time (ignored where a rate is given).
    isl, osl : int
        Tokens in and out.
    dtype : str
        ``bf16``, ``fp16``, ``fp8`` (weights, products and KV cache), ``fp4``.
    prefill_device : Device or str, optional
        Prefills alone; the KV cache then moves over the network.
    rate_per_s : float, optional
        Requests that come in a second, at random: sets the batch and how long they wait.
    tier : str, optional
        ``kernel table`` or ``model`` for the kernels.

    Raises
    ------
    UnknownNameError, UsageError
        For a model, device or dtype that does not exist, or a model that does not fit.

    Examples
    --------
    >>> served = estimate_serving("llama-3.1-8b", "h100-sxm", batch=16, isl=1024, osl=256, tier="model")
    >>> served.tpot.low < served.tpot_s < served.tpot.high, 0.002 < served.tpot_s < served.ttft_s
    (True, True)
    """
    if tier not in (None, *TIERS):
        raise UnknownNameError("tier", str(tier), TIERS)
    for name, value in (("tp", tp), ("pp", pp), ("batch", batch), ("isl", isl), ("osl", osl)):
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} must be a positive integer, not {value!r}")
    if rate_per_s is not None and not rate_per_s > 0:
        raise UsageError(f"rate_per_s must be above 0, not {rate_per_s!r}")
    dtypes(dtype)
    name = model if isinstance(model, str) else str(model) if isinstance(model, Path) else "given"
    dims = decoder(name, architectures.config(model))
    engine = Engine(dims, _find(device), tp, pp, dtype, tier)
    first = None if prefill_device is None else Engine(dims, _find(prefill_device), tp, pp, dtype, tier)
    fit = _fitting(engine, isl + osl, isl + osl // 2)
    notes: set[str] = set()
    if rate_per_s is None and batch > fit:
        notes.add(f"{batch} requests of {isl + osl} tokens do not fit: {fit} at a time, the others wait")
    if rate_per_s is None:
        return _steady(engine, first, min(batch, fit), batch, isl, osl, notes)
    return _at_rate(engine, first, rate_per_s, fit, isl, osl, notes)


def _steady(
    engine: Engine, first: Engine | None, batch: int, asked: int, isl: int, osl: int, notes: set[str]
) -> Serving:
    """So many requests under way, always."""
    tpot_s, prompt_s, source, said = tokens(engine, first, batch, isl, osl)
    request_s = prompt_s + (osl - 1) * tpot_s
    requests_per_s = batch / request_s
    # Requests beyond those that fit wait for a place.
    place_s = request_s * (asked - batch) / batch
    ttft_s = prompt_s + place_s
    return _answer(
        engine,
        first,
        batch,
        isl,
        osl,
        ttft_s,
        tpot_s,
        requests_per_s,
        source,
        notes | said,
        None,
        place_s or None,
    )


def _at_rate(
    engine: Engine, first: Engine | None, rate: float, fit: int, isl: int, osl: int, notes: set[str]
) -> Serving:
    """Requests come at random at a rate: as many are under way as Little's law says."""
    most = min(fit, MOST_BATCH)

    def served(batch: int) -> float:
        tpot_s, prompt_s, _, _ = tokens(engine, first, batch, isl, osl)
        return batch / (prompt_s + (osl - 1) * tpot_s)

    capacity = served(most)
    if first is not None:
        capacity = min(capacity, 1 / tokens(engine, first, 1, isl, osl)[1])
    if rate >= capacity:
        notes.add(f"saturated: at most {capacity:.3g} requests a second")
        return _answer(
            engine, first, most, isl, osl, np.inf, np.inf, capacity, "model", notes, rate / capacity, np.inf
        )
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if served(middle) >= rate else (middle + 1, high)
    tpot_s, prompt_s, source, said = tokens(engine, first, low, isl, osl)
    busy = rate / capacity
    # Places are servers: the wait of M/M/c by Sakasegawa's formula, halved for services that all last alike.
    request_s = prompt_s + (osl - 1) * tpot_s
    wait_s = busy ** (np.sqrt(2 * (most + 1)) - 1) / (1 - busy) * request_s / most / 2
    return _answer(
        engine,
        first,
        low,
        isl,
        osl,
        prompt_s + wait_s,
        tpot_s,
        rate,
        source,
        notes | said,
        busy,
        float(wait_s),
    )


def tokens(
    engine: Engine, first: Engine | None, batch: int, isl: int, osl: int
) -> tuple[float, float, str, set[str]]:
    """Seconds between tokens and to the first one, without waiting for a place."""
    if first is None:
        ((tpot_s, prompt_s),), source, said = mixed_tokens(engine, [batch], isl, osl)
        return tpot_s, prompt_s, source, said
    piece = min(isl, CHUNK_TOKENS)
    (step_s,), source, said = engine.steps_s([{"decode": batch, "context": isl + osl // 2}])
    (prompt_s,), other, more = first.steps_s([{"prefill": 1, "prompt": piece}])
    prompt_s = float(prompt_s * isl / piece)
    return float(step_s), prompt_s, source if source == other else "model", said | more


def mixed_tokens(
    engine: Engine, batches: Sequence[int], isl: int, osl: int
) -> tuple[list[tuple[float, float]], str, set[str]]:
    """The same of engines that read prompts between the steps of decoding, for several batches at once."""
    context = isl + osl // 2
    piece = min(isl, CHUNK_TOKENS)
    pieces = isl / piece
    # Requests end evenly spread: each step so many prompts begin on average.
    begins = [batch / osl * pieces for batch in batches]
    together = [max(1, round(begin)) for begin in begins]
    shapes = []
    for batch, prompts in zip(batches, together, strict=True):
        shapes.append({"decode": batch, "context": context})
        decode = max(batch - prompts, 0)
        shapes.append({"prefill": prompts, "prompt": piece, "decode": decode, "context": context})
    steps, source, said = engine.steps_s(shapes)
    found = []
    for index, (batch, begin, prompts) in enumerate(zip(batches, begins, together, strict=True)):
        plain_s, mixed_s = float(steps[2 * index]), float(steps[2 * index + 1])
        share = min(begin / prompts, 1.0)
        tpot_s = (1 - share) * plain_s + share * mixed_s
        # Loads come in bunches: part of the batch's prompts lies before one's own.
        ahead_s = AHEAD * (batch - 1) * mixed_s * pieces / prompts
        found.append((tpot_s, 0.5 * tpot_s + ahead_s + mixed_s * pieces))
    return found, source, said


def _answer(
    engine: Engine,
    first: Engine | None,
    batch: int,
    isl: int,
    osl: int,
    ttft_s: float,
    tpot_s: float,
    requests_per_s: float,
    source: str,
    notes: set[str],
    busy: float | None,
    wait_s: float | None,
) -> Serving:
    devices = [engine.device] * engine.devices + ([first.device] * first.devices if first else [])
    tokens_per_s = requests_per_s * osl
    prices = [one.usd_per_hour for one in devices]
    usd = (
        None
        if any(one is None for one in prices)
        else sum(one.value for one in prices if one) / 3600 / tokens_per_s * 1e6
    )
    watts = [one.max_w for one in devices]
    joules = (
        None if any(one is None for one in watts) else sum(one.value for one in watts if one) / tokens_per_s
    )
    cache = engine.model.kv_bytes_per_token(engine.dtype) * isl
    transfer = link = None
    if first is not None:
        rates = [one.network_bytes_per_s or one.link_bytes_per_s for one in (engine.device, first.device)]
        slowest = min((one.value for one in rates if one is not None), default=None)
        transfer = None if slowest is None else cache / (slowest * min(engine.devices, first.devices))
        link = egress_bytes_per_s(cache, ttft_s, first.devices)
    if source == "model" and engine.tier is None:
        notes = notes | {"no kernel tables of this device here: the model's own kernels"}
    return Serving(
        ttft_s,
        tpot_s,
        Estimate(ttft_s, ttft_s * TTFT[source][0], ttft_s * TTFT[source][1], None, source),
        Estimate(tpot_s, tpot_s * TPOT[source][0], tpot_s * TPOT[source][1], None, source),
        tokens_per_s,
        requests_per_s,
        batch,
        engine.capacity_tokens(),
        engine.model.weight_bytes(engine.dtype),
        engine.model.kv_bytes_per_token(engine.dtype),
        busy,
        wait_s,
        transfer,
        link,
        joules,
        usd,
        tuple(sorted(notes)),
    )


def _fitting(engine: Engine, tokens: int, usual: int) -> int:
    """Requests that fit at a time: one must with all its tokens, many hold as many as usual."""
    capacity = engine.capacity_tokens()
    if capacity < tokens:
        need = engine.model.weight_bytes(engine.dtype) / 1e9
        raise UsageError(
            f"{engine.model.name} ({need:.0f} GB in {engine.dtype}) with one request of {tokens} tokens "
            f"does not fit on {engine.devices} × {engine.device.id}: raise tp"
        )
    return int(max(1, min(capacity // usual, 10 * MOST_BATCH)))


def _find(device: Device | str) -> Device:
    return catalogue.find(device) if isinstance(device, str) else device
