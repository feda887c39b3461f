"""The models of a graph that are served by engines: which stages, what is asked of them, and their cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gimlet_lab.costs import roles
from gimlet_lab.costs.decoder import Decoder, decoder, dtypes
from gimlet_lab.costs.roles import Traffic
from gimlet_lab.errors import UsageError
from gimlet_lab.hardware import architectures
from gimlet_lab.model import Edge, Graph, Stage

#: What a run calls the cache that decode reads of prefill.
CACHES = ("past_key_values", "kv", "cache")


@dataclass(frozen=True)
class Served:
    """A model of the graph that is served: its two stages, its dimensions and what is asked of it."""

    prefill: Stage
    decode: Stage
    model: Decoder
    dtype: str
    traffic: Traffic


def served_models(
    graph: Graph,
    rate_per_s: float,
    *,
    model: str | Path | Mapping[str, Any] | None = None,
    dtype: str | None = None,
    isl: int | None = None,
    osl: int | None = None,
) -> list[Served]:
    """The models of a graph that prefill and decode, the one with the most work first."""
    found = []
    for decode in graph.stages:
        if decode.role != "decode" or decode.kind != "module":
            continue
        same = [s for s in graph.stages if s.role == "prefill" and s.target == decode.target]
        if not same:
            continue
        prefill = same[0]
        if model is None:
            dims = roles.decoder_of(prefill, decode.target or decode.id)
        else:
            name = str(model) if isinstance(model, (str, Path)) else "given"
            dims = decoder(name, architectures.config(model))
        served_in = dtype or roles.served_dtype(decode)
        dtypes(served_in)
        turns = max(prefill.calls, 1)
        tokens_in = isl if isl is not None else _prompt_tokens(prefill)
        tokens_out = osl if osl is not None else max(round(decode.calls / turns) + 1, 1)
        found.append(
            Served(prefill, decode, dims, served_in, Traffic(rate_per_s * turns, tokens_in, tokens_out))
        )
    return sorted(found, key=lambda one: -one.model.weight_bytes(one.dtype))


def _prompt_tokens(prefill: Stage) -> int:
    """Tokens of one prompt, by the rows that are embedded."""
    rows = sum(work["rows"] * work.count for work in prefill.works if work.op == "embedding")
    if not rows:
        raise UsageError(
            f"stage {prefill.id!r}: its operators do not show how long prompts are; say it (isl=…)"
        )
    return max(1, round(rows / max(prefill.calls, 1)))


def turns_of(one: Served) -> int:
    """Decode turns of one request."""
    return max(one.prefill.calls, 1) * max(one.traffic.osl - 1, 1)


def resized(graph: Graph, served: Sequence[Served]) -> Graph:
    """The graph with the KV cache of what is served in place of the cache of what ran.

    The cache is an edge even where the run shows none: without it the roles would have nothing in common.
    """
    pairs = {(one.prefill.id, one.decode.id) for one in served}
    edges = [
        edge
        for edge in graph.edges
        if edge.back or (edge.src, edge.dst) not in pairs or edge.tensor not in CACHES
    ]
    for one in served:
        cache = one.model.kv_bytes_per_token(one.dtype) * one.traffic.isl
        turns = max(one.prefill.calls, 1)
        edges.append(Edge(one.prefill.id, one.decode.id, CACHES[0], cache, turns, "tensor"))
    return Graph(graph.stages, tuple(edges))


def retime(limits: dict[str, Any], one: Served, tpot_s: float | None) -> None:
    """A limit on a decode turn covers as many turns as are planned for."""
    for path in limits.get("paths", ()):
        if path["from"] == path["to"] == one.decode.id and tpot_s is not None:
            path["seconds"] = tpot_s * turns_of(one)
