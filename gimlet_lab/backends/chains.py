"""A stretch of a model's layers as one module: each takes what the one before gives.

So a model that no device holds lies on several. ``llm.model.layers[0:16]`` names such a stretch.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from gimlet_lab.backends.caches import is_cache
from gimlet_lab.boundary import resolve
from gimlet_lab.errors import GimletError

_chains: weakref.WeakValueDictionary[tuple[int, ...], Any] = weakref.WeakValueDictionary()
#: The model that each is of, and where in the notebook its layers are.
_origins: weakref.WeakKeyDictionary[Any, tuple[weakref.ref[Any], str]] = weakref.WeakKeyDictionary()


@functools.cache
def chain_class() -> Any:
    """Make the class of stretches, once torch is there; workers find it by its name in this module."""
    import torch

    class Chain(torch.nn.Module):
        """Layers that are called as one.

        Parameters
        ----------
        layers : sequence of torch.nn.Module
        first : int
            The number of the first one in its model; its KV cache holds the layers from there on.
        """

        def __init__(self, layers: Sequence[Any], first: int) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(layers)
            self.first = first
            self.training = False  # its layers say for themselves

        def forward(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
            """Give each layer what the one before gave, and all of them the same besides."""
            given = [_numbered(value, self.first) for value in args]
            named = {name: _numbered(value, self.first) for name, value in kwargs.items()}
            output = hidden
            for layer in self.layers:
                output = layer(first_of(output), *given, **named)
            return output

    Chain.__qualname__ = "Chain"
    return Chain


def __getattr__(name: str) -> Any:
    if name == "Chain":
        return chain_class()
    raise AttributeError(name)


class _Part:
    """A KV cache of some layers under the numbers that they have in their model."""

    def __init__(self, cache: Any, first: int) -> None:
        self._cache = cache
        self._first = first

    def update(self, keys: Any, values: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        return self._cache.update(keys, values, layer_idx - self._first, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _numbered(value: Any, first: int) -> Any:
    return _Part(value, first) if first and is_cache(value) else value


def first_of(output: Any) -> Any:
    """The hidden states in what a layer gives."""
    return output[0] if isinstance(output, tuple) else output


def chain_of(target: str, namespace: Mapping[str, Any]) -> Any:
    """The stretch of layers that a target names, the same object as long as they are.

    Raises
    ------
    LookupError
        If there is nothing of that name.
    GimletError
        If these layers cannot be called as one.
    """
    path, _, ends = target.removesuffix("]").rpartition("[")
    layers: Any = resolve(target, namespace)
    if type(layers).__name__ != "ModuleList" or not len(layers):
        raise LookupError(f"{target} is no stretch of a model's layers")
    _check(target, list(layers))
    key = tuple(map(id, layers))
    chain = _chains.get(key)
    if chain is None:
        chain = _chains[key] = chain_class()(list(layers), int(ends.partition(":")[0] or 0))
        _origins[chain] = weakref.ref(_root(path, namespace)), path
    return chain


def origin_of(chain: Any) -> tuple[Any, str]:
    """The model that a stretch of layers is of, None where it is gone; and where its layers are."""
    root, path = _origins[chain]
    return root(), path


def is_chain(thing: Any) -> bool:
    """Whether it is a stretch of layers."""
    return "torch" in sys.modules and isinstance(thing, chain_class())


def title(module: Any) -> str:
    """What a person calls a module, or a stretch of layers."""
    if is_chain(module):
        return f"{len(module.layers)} × {type(module.layers[0]).__name__}"
    return type(module).__name__


def _root(path: str, namespace: Mapping[str, Any]) -> Any:
    """The outermost module on the way to the layers."""
    module_type = sys.modules["torch"].nn.Module
    words = path.split(".")
    found = (resolve(".".join(words[:end]), namespace) for end in range(1, len(words) + 1))
    return next(value for value in found if isinstance(value, module_type))


def _check(target: str, layers: Sequence[Any]) -> None:
    kinds = {type(layer).__name__ for layer in layers}
    attention = {str(getattr(layer, "attention_type", "")) for layer in layers}
    if len(kinds) > 1 or len(attention) > 1:
        what = ", ".join(sorted(kinds if len(kinds) > 1 else attention))
        raise GimletError(
            f"{target}: its layers are of several kinds ({what}), and are not called alike: "
            "place the whole model"
        )
