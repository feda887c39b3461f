"""An accelerator of this process as a place for modules: a copy of the module there, inputs in, outputs back.

The notebook's module stays where it is, so that undoing is exact. Not tested on hardware: the tests use
torch's ``cpu`` under another name.
"""

from __future__ import annotations

import weakref
from typing import Any

from gimlet_lab.backends import caches
from gimlet_lab.backends.packing import Packed, unpack


class Resident:
    """One torch device.

    Parameters
    ----------
    device : str
        Its id in the fleet.
    torch_device : str
        Where torch finds it.
    """

    alive = True
    far = False
    pid = 0

    def __init__(self, device: str, torch_device: str) -> None:
        self.device = device
        self.torch_device = torch_device
        self.contents: dict[str, Packed] = {}
        self._modules: dict[str, Any] = {}
        self._moved: weakref.WeakSet[Any] = weakref.WeakSet()

    def keep(self, key: str, packed: Packed) -> None:
        """Copy a module there (a packed ``("keep", key, module)``)."""
        module = unpack(packed)[2]
        self._modules[key] = module.to(self.torch_device)
        self.contents[key] = packed

    def drop(self, key: str) -> None:
        """Free one."""
        self._modules.pop(key, None)
        self.contents.pop(key, None)

    def call(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any], cache: Any, home: Any) -> Any:
        """Make one call there; tensors of the result come back to ``home``, the cache stays."""
        if cache is not None:
            caches.move(cache, self.torch_device)
            self._moved.add(cache)
        result = self._modules[key](*to(args, self.torch_device), **to(kwargs, self.torch_device))
        return to(result, home)

    def close(self, home: Any = "cpu") -> None:
        """Free everything; caches that are still in use come home."""
        for cache in list(self._moved):
            caches.move(cache, home)
        self._moved.clear()
        self._modules, self.contents = {}, {}


def to(value: Any, device: Any) -> Any:
    """Move the tensors in a value; everything else stays the object it is."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        moved = {key: to(item, device) for key, item in value.items()}
        # An output of transformers is made of keywords, other dictionaries of one that they copy.
        kind: Any = type(value)
        return moved if kind is dict else kind(**moved) if hasattr(value, "to_tuple") else kind(moved)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to(item, device) for item in value))
    if type(value) in (list, tuple):
        return type(value)(to(item, device) for item in value)
    return value
