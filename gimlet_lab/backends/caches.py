"""KV caches of calls that are made in workers.

The notebook's own cache object is the one that counts: after every call it holds all keys and values, so
that a plan can be changed or undone between two tokens. A worker keeps a replica, and is sent only what
the replica lacks: nothing from one token to the next, everything once where decode runs elsewhere than
prefill. A worker sends back what a call has added.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping
from typing import Any

#: Room for more tokens when a cache's memory is made again, as a part of what it holds, and at least.
_SPARE, _SPARE_TOKENS = 0.25, 64


def whole(cache: Any) -> dict[str, Any]:
    """All of a cache, ready to be pickled."""
    return {
        "class": type(cache),
        "state": {name: value for name, value in vars(cache).items() if name != "layers"},
        "layers": [(type(layer), dict(vars(layer))) for layer in cache.layers],
    }


def restore(cache: Any, content: Mapping[str, Any]) -> Any:
    """Make a cache, or make one be, what :func:`whole` gave; layers stay the objects they are."""
    if cache is None:
        cache = content["class"].__new__(content["class"])
        cache.layers = []
    vars(cache).update(content["state"])
    del cache.layers[len(content["layers"]) :]
    for index, (kind, state) in enumerate(content["layers"]):
        if index == len(cache.layers):
            cache.layers.append(kind.__new__(kind))
        elif type(cache.layers[index]) is not kind:
            cache.layers[index] = kind.__new__(kind)
        vars(cache.layers[index]).clear()
        vars(cache.layers[index]).update(state)
    return cache


def why_not(cache: Any) -> str | None:
    """Why a cache cannot be replicated; None where it can."""
    if not is_cache(cache):
        return f"its cache is a {type(cache).__name__}"
    if getattr(cache, "offloading", False):
        return "its cache is offloaded"
    for layer in cache.layers:
        if not _known(layer):
            return f"its cache has a {type(layer).__name__}"
    return None


def move(cache: Any, device: Any) -> None:
    """Move a cache to a device of torch, where it is not there yet."""
    for layer in getattr(cache, "layers", ()):
        if layer.keys is not None and layer.keys.device != torch_device(device):
            layer.keys, layer.values = layer.keys.to(device), layer.values.to(device)
            layer.device = layer.keys.device


def torch_device(device: Any) -> Any:
    """A torch device by its name."""
    import torch

    return torch.device(device)


def is_cache(value: Any) -> bool:
    """Whether it is a dynamic cache of transformers."""
    kind = type(value)
    return kind.__name__ == "DynamicCache" and kind.__module__ == "transformers.cache_utils"


def _known(layer: Any) -> bool:
    return type(layer).__module__ == "transformers.cache_utils" and type(layer).__name__ in (
        "DynamicLayer",
        "DynamicSlidingWindowLayer",
    )


def grows(layer: Any) -> bool:
    """Whether a call only adds to it, at its end."""
    return type(layer).__name__ == "DynamicLayer" and layer.keys is not None and layer.keys.dim() == 4


def length(layer: Any) -> int:
    """Tokens in a layer of a cache."""
    return int(layer.keys.shape[-2]) if layer.keys is not None and layer.keys.dim() == 4 else 0


class _Mark:
    """What a replica holds of one layer: tensors of the notebook's cache as they were."""

    __slots__ = ("keys", "pointers", "values", "versions")

    def __init__(self, layer: Any) -> None:
        # Held, so that their addresses are not given to others.
        self.keys, self.values = layer.keys, layer.values
        self.versions = _version(self.keys), _version(self.values)
        self.pointers = self.keys.data_ptr(), self.values.data_ptr()

    def holds(self, layer: Any) -> int:
        """Tokens from the start that are still the same."""
        keys, values = layer.keys, layer.values
        if keys is self.keys and values is self.values:
            if (_version(keys), _version(values)) == self.versions:
                return int(keys.shape[-2])
            return 0
        # A cropped cache is a shorter look at the same memory.
        if None in self.versions or keys.is_inference() or values.is_inference():
            return 0
        same = (
            (keys.data_ptr(), values.data_ptr()) == self.pointers
            and (_version(keys), _version(values)) == self.versions
            and (keys.stride(), values.stride()) == (self.keys.stride(), self.values.stride())
            and (keys.shape[:2], keys.shape[-1]) == (self.keys.shape[:2], self.keys.shape[-1])
            and keys.shape[-2] <= self.keys.shape[-2]
        )
        return int(keys.shape[-2]) if same else 0


def _version(tensor: Any) -> int | None:
    return None if tensor.is_inference() else tensor._version  # noqa: SLF001 - torch has no public name for it


class _Record:
    def __init__(self, token: str) -> None:
        self.token = token
        #: Worker and its generation to the marks of its replica.
        self.marks: dict[tuple[str, int], list[_Mark | None]] = {}
        #: Memory with room for more tokens: keys and values of all layers, and the tokens in it.
        self.buffer: Any = None
        self.filled = 0
        self.views: list[Any] = []


class HostCaches:
    """The notebook's caches that workers have replicas of."""

    _tokens = itertools.count()

    def __init__(self) -> None:
        self._records: weakref.WeakKeyDictionary[Any, _Record] = weakref.WeakKeyDictionary()
        self._dropped: dict[str, list[str]] = {}

    def name(self, cache: Any, worker: str, generation: int) -> tuple[str, str, Any]:
        """Give the persistent id of a cache: its token and what the worker's replica lacks."""
        record = self._records.get(cache)
        if record is None:
            record = self._records[cache] = self._record(cache, f"host {next(self._tokens)}")
        marks = record.marks.get((worker, generation))
        if marks is None or len(marks) != len(cache.layers):
            return "cache", record.token, whole(cache)
        tails: dict[int, Any] = {}
        for index, (layer, mark) in enumerate(zip(cache.layers, marks, strict=True)):
            if mark is None or not grows(layer):
                tails[index] = type(layer), dict(vars(layer))
                continue
            held, has = mark.holds(layer), length(layer)
            if held != has or held != mark.keys.shape[-2]:
                tails[index] = held, layer.keys[..., held:, :], layer.values[..., held:, :]
        return "cache", record.token, tails

    def _record(self, cache: Any, token: str) -> _Record:
        record = _Record(token)
        dropped = self._dropped

        def drop() -> None:
            for worker, _ in record.marks:
                dropped.setdefault(worker, []).append(token)

        weakref.finalize(cache, drop).atexit = False
        return record

    def dropped(self, worker: str) -> list[str]:
        """Tokens of caches that are gone, since last asked: their replicas can go too."""
        return self._dropped.pop(worker, [])

    def forget(self, cache: Any, worker: str) -> None:
        """A call failed there: what its replica holds is not known."""
        record = self._records.get(cache)
        if record is not None:
            record.marks = {key: marks for key, marks in record.marks.items() if key[0] != worker}

    def made(self, token: str, content: Mapping[str, Any], worker: str, generation: int) -> Any:
        """A cache that a worker's call has made."""
        cache = restore(None, content)
        record = self._records[cache] = self._record(cache, token)
        self._mark(cache, record, worker, generation)
        return cache

    def grown(self, cache: Any, update: tuple[str, Any], worker: str, generation: int) -> None:
        """Put what a call has added to a replica into the notebook's cache."""
        record = self._records[cache]
        kind, content = update
        if kind == "whole":
            restore(cache, content)
            record.buffer = None
        elif kind == "stacked":
            self._append(cache, record, content)
        else:
            for index, change in content.items():
                layer = cache.layers[index]
                if isinstance(change[0], type):
                    vars(layer).update(change[1])
                else:
                    import torch

                    layer.keys = torch.cat([layer.keys, change[0]], dim=-2)
                    layer.values = torch.cat([layer.values, change[1]], dim=-2)
            record.buffer = None
        self._mark(cache, record, worker, generation)

    def _append(self, cache: Any, record: _Record, tail: Any) -> None:
        """Append to all layers at once, in memory with room for more."""
        import torch

        layers, added = cache.layers, int(tail.shape[-2])
        start = length(layers[0])
        parts = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        # Normal tensors, whatever mode the call was made in: they are written to again, and have versions.
        with torch.inference_mode(False), torch.no_grad():
            # In place only behind exactly what this put there: nobody else's look at the memory may change.
            ours = record.buffer is not None and record.filled == start and len(parts) == len(record.views)
            if not (ours and all(a is b for a, b in zip(parts, record.views, strict=True))) or (
                start + added > record.buffer.shape[-2]
            ):
                room = start + added + max(_SPARE_TOKENS, int(_SPARE * start))
                record.buffer = torch.empty((*tail.shape[:-2], room, tail.shape[-1]), dtype=tail.dtype)
                torch.stack(parts, out=record.buffer[..., :start, :]) if start else None
            record.buffer[..., start : start + added, :] = tail
            record.filled = start + added
            record.views = list(record.buffer[..., : record.filled, :].unbind(0))
        for index, layer in enumerate(layers):
            layer.keys, layer.values = record.views[2 * index], record.views[2 * index + 1]

    def _mark(self, cache: Any, record: _Record, worker: str, generation: int) -> None:
        record.marks = {
            key: marks for key, marks in record.marks.items() if key[0] != worker or key[1] == generation
        }
        record.marks[worker, generation] = [_Mark(layer) if grows(layer) else None for layer in cache.layers]
