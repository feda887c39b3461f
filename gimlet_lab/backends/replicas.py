"""A worker's replicas of the notebook's KV caches; see :mod:`gimlet_lab.backends.caches`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from gimlet_lab.backends.caches import grows, is_cache, length, move, restore, whole, why_not
from gimlet_lab.backends.resident import to


class Replicas:
    """A worker's replicas, by token.

    Parameters
    ----------
    prefix : str
        Of the tokens of caches that are made here; no other worker's.
    device : str
        torch's name of where they are; they come and go as tensors of the CPU.
    """

    def __init__(self, prefix: str, device: str = "cpu") -> None:
        self._device = device
        self._replicas: dict[str, Any] = {}
        self._prefix = prefix
        self._made = itertools.count()
        self._touched: dict[str, list[int] | None] = {}

    def find(self, name: tuple[str, str, Any]) -> Any:
        """The replica of a persistent id, brought up to date."""
        _, token, content = name
        if "layers" in content:
            # A new object: what an earlier call kept of the old one stays what it was.
            cache = self._replicas[token] = restore(None, content)
            move(cache, self._device)
        else:
            cache = self._replicas[token]
            for index, change in content.items():
                _apply(cache.layers[index], change)
        self._touched[token] = [length(layer) for layer in cache.layers]
        return cache

    def name(self, value: Any) -> tuple[str, str, Any] | None:
        """Give the persistent id of a replica, or of a cache that this call has made; else None."""
        if not is_cache(value):
            return None
        for token in self._touched:
            if self._replicas[token] is value:
                return "cache", token, None
        if why_not(value) is not None:
            return None
        token = f"{self._prefix} {next(self._made)}"
        self._replicas[token] = value
        self._touched[token] = None
        return "cache", token, _home(whole(value))

    def begin(self) -> None:
        """Begin a call."""
        self._touched = {}

    def drop(self, tokens: list[str]) -> None:
        """Forget replicas whose cache is gone."""
        for token in tokens:
            self._replicas.pop(token, None)

    def failed(self) -> None:
        """Forget the replicas of a call that failed half way."""
        for token in self._touched:
            self._replicas.pop(token, None)

    def updates(self) -> Iterator[tuple[str, tuple[str, Any]]]:
        """What the call added to the replicas it was given."""
        for token, before in self._touched.items():
            if before is not None:
                yield token, _update(self._replicas[token], before)


def _home(content: dict[str, Any]) -> dict[str, Any]:
    """A whole cache as the notebook has it: on the CPU."""
    import torch

    layers = [(kind, to(state, "cpu")) for kind, state in content["layers"]]
    for _, state in layers:
        if state.get("device") is not None:
            state["device"] = torch.device("cpu")
    return {**content, "layers": layers}


def _apply(layer: Any, change: tuple[Any, ...]) -> None:
    import torch

    if isinstance(change[0], type):
        device = layer.keys.device if layer.keys is not None else "cpu"
        vars(layer).update(to(change[1], device))
        return
    held, keys, values = change
    layer.keys = torch.cat([layer.keys[..., :held, :], keys.to(layer.keys.device)], dim=-2)
    layer.values = torch.cat([layer.values[..., :held, :], values.to(layer.values.device)], dim=-2)


def _update(cache: Any, before: list[int]) -> tuple[str, Any]:
    import torch

    layers = cache.layers
    if len(layers) != len(before) or not all(grows(layer) for layer in layers) or not all(before):
        return "whole", _home(whole(cache))
    tails = [
        t[..., n:, :] for layer, n in zip(layers, before, strict=True) for t in (layer.keys, layer.values)
    ]
    if len({(tail.shape, tail.dtype) for tail in tails}) == 1 and len(set(before)) == 1:
        return "stacked", torch.stack(tails).cpu()
    changes = {i: (tails[2 * i].cpu(), tails[2 * i + 1].cpu()) for i in range(len(layers))}
    return "each", changes
