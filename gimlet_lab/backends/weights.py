"""Weights that a node reads for itself: from files that it has too, or by a function that makes the model.

In their place travels the name and a checksum of each. What is not in the files as the notebook's model has
it travels itself; a node that finds anything else than was named refuses the model.
"""

from __future__ import annotations

import functools
import hashlib
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gimlet_lab.errors import GimletError

#: Files, or a function that makes the model again.
Source = str | Callable[[], Any]

_declared: weakref.WeakKeyDictionary[Any, Store] = weakref.WeakKeyDictionary()


class Store:
    """Tensors by name, where they lie or by whom they are made; found when first asked for.

    Parameters
    ----------
    source : str or callable
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._found: Mapping[str, Callable[[], Any]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.source,)

    def __str__(self) -> str:
        return self.source if isinstance(self.source, str) else getattr(self.source, "__name__", "the loader")

    def tensors(self) -> Mapping[str, Callable[[], Any]]:
        """Names, and what gives the tensor of each."""
        if self._found is None:
            self._found = _in_files(self.source) if isinstance(self.source, str) else _made_by(self.source)
        return self._found


def weights(model: Any, source: str | Path | Callable[[], Any]) -> None:
    """Say where nodes of a cluster find a model's weights, so that these need not be sent.

    From then on, plans that put the model on a node have them read there. What the notebook's model has
    otherwise than the files (a layer that was trained further) is sent. A node that finds other weights
    refuses the model.

    Parameters
    ----------
    model : torch.nn.Module
    source : str, path or callable
        A safetensors file or a folder of them, at the same path here and on the nodes; or a function without
        arguments that makes the model there.

    Raises
    ------
    GimletError
        If there is no such file here, or it has none of the model's weights.

    Examples
    --------
    >>> import tempfile, torch, gimlet_lab as gimlet
    >>> from safetensors.torch import save_model
    >>> net = torch.nn.Linear(4, 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(net, f"{folder}/net.safetensors")
    ...     gimlet.weights(net, folder)
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        raise GimletError(f"weights are a module's, and this is a {type(model).__name__}")
    if not callable(source):
        source = str(Path(source).expanduser().absolute())
    store = Store(source)
    if isinstance(source, str):
        names = {_name(name, model, store.tensors()) for name, _ in _held(model)}
        if names <= {None}:
            raise GimletError(f"{source} has no weight of this {type(model).__name__} by its name")
    _declared[model] = store


def store_of(module: Any) -> Store | None:
    """Where the weights of a model, or of the one that it is a part of, can be read."""
    found = _root(module)
    return None if found is None else found[1]


def references(module: Any) -> dict[int, tuple[Store, str, bytes]]:
    """Tensors of a module that nodes can read: by identity the store, the name in it and a checksum."""
    found = _root(module)
    if found is None:
        return {}
    root, store = found
    mine = {id(tensor) for _, tensor in _held(module)}
    known: dict[int, tuple[Store, str, bytes]] = {}
    for name, tensor in _held(root):
        if id(tensor) not in mine or not _plain(tensor):
            continue
        if not isinstance(store.source, str):
            known[id(tensor)] = store, name, checksum(tensor)
            continue
        there = _name(name, root, store.tensors())
        if there is not None and _same(store.tensors()[there](), tensor):
            known[id(tensor)] = store, there, checksum(tensor)
    return known


def reduce_known(known: Mapping[int, tuple[Store, str, bytes]], other: Callable[[Any, Any], Any]) -> Any:
    """What a pickler does with a tensor: these by their names, all others as before."""

    def reduce_tensor(tensor: Any, torch: Any) -> Any:
        found = known.get(id(tensor))
        if found is None:
            return other(tensor, torch)
        dtype = str(tensor.dtype).removeprefix("torch.")
        return read, (*found, dtype, type(tensor), tensor.requires_grad)

    return reduce_tensor


def read(store: Store, name: str, expected: bytes, dtype: str, kind: Any, requires_grad: bool) -> Any:
    """Read one, on the node.

    Raises
    ------
    ValueError
        If it is not the one that was named.
    """
    import torch

    give = store.tensors().get(name)
    if give is None:
        raise ValueError(f"{store} has no {name!r} here")
    tensor = give().to(getattr(torch, dtype)).contiguous()
    if checksum(tensor) != expected:
        raise ValueError(f"{store} holds other weights here for {name!r} than the notebook's model has")
    return kind(tensor) if kind is not torch.nn.Parameter else kind(tensor, requires_grad=requires_grad)


def checksum(tensor: Any) -> bytes:
    """Of a tensor's bytes and shape."""
    import torch

    data = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(data, digest_size=16, person=str(tuple(tensor.shape)).encode()[:16]).digest()


def _root(module: Any) -> tuple[Any, Store] | None:
    own = _declared.get(module)
    if own is not None:
        return module, own
    for root, store in list(_declared.items()):
        if any(part is module for part in root.modules()):
            return root, store
    return None


def _held(module: Any) -> list[tuple[str, Any]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _plain(tensor: Any) -> bool:
    import torch

    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    return bool(plain and tensor.device.type == "cpu" and tensor.numel() and tensor.is_contiguous())


def _same(there: Any, here: Any) -> bool:
    import torch

    return there.shape == here.shape and torch.equal(there.to(here.dtype), here)


def _name(name: str, model: Any, tensors: Mapping[str, Any]) -> str | None:
    """What a tensor is called in files: checkpoints are of the model with its head, or of the one inside."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in tensors), None)


def _in_files(source: str) -> dict[str, Callable[[], Any]]:
    from safetensors import safe_open

    path = Path(source)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise GimletError(f"no safetensors file at {source}")
    found: dict[str, Callable[[], Any]] = {}
    for file in files:
        try:
            opened: Any = safe_open(file, framework="pt")
        except Exception as error:  # noqa: BLE001 - whatever it says of a file that is none
            raise GimletError(f"{file} cannot be read as safetensors: {error}") from None
        for name in opened.keys():  # noqa: SIM118 - it is no mapping
            found[name] = functools.partial(opened.get_tensor, name)
    return found


def _made_by(loader: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    return {name: tensor.detach for name, tensor in _held(loader())}
