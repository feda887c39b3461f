"""Objects made ready to travel: one pickle stream and its large data apart, by pickle protocol 5.

cloudpickle, so that functions and classes of the notebook go by value; tensors as plain memory, in their
own layout. What is redirected travels as it was before.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cloudpickle

from gimlet_lab.backends.base import PLACED
from gimlet_lab.backends.memory import Segment, layout
from gimlet_lab.backends.weights import Store, reduce_known

#: Buffers from here on go through shared memory.
LARGE_BYTES = 128 * 1024


@dataclass(frozen=True)
class Packed:
    """An object ready to travel.

    Attributes
    ----------
    stream : bytes
        The pickle.
    buffers : tuple of memoryview
        Data of its tensors and arrays, still the sender's memory.
    shared : Segment or None
        Holds the large buffers already, for all who are sent this.
    """

    stream: bytes
    buffers: tuple[memoryview, ...] = ()
    shared: Segment | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that travel."""
        return len(self.stream) + sum(buffer.nbytes for buffer in self.buffers)

    def share(self) -> Packed:
        """Copy the large buffers to shared memory once, so that every worker maps the same pages."""
        large = tuple(b for b in self.buffers if b.nbytes >= LARGE_BYTES)
        if not large:
            return self
        offsets, size = layout(large)
        segment = Segment(size)
        segment.write(large, offsets)
        return Packed(self.stream, self.buffers, segment)

    def close(self) -> None:
        """Give shared memory back; who has it mapped keeps it."""
        if self.shared is not None:
            self.shared.close()


class _Packer(cloudpickle.Pickler):
    def __init__(
        self,
        file: io.BytesIO,
        buffers: list[memoryview],
        name: Callable[[Any], Any] | None = None,
        reduce_tensor: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=lambda buffer: buffers.append(buffer.raw()))
        self.reduce_tensor = reduce_tensor or _reduce_tensor
        if name is not None:
            # The pickler looks it up on itself; a method that is always there would slow all others down.
            setattr(self, "persistent_id", name)  # noqa: B010 - mypy refuses to assign to a method
        torch: Any = sys.modules.get("torch")
        self.torch = torch if hasattr(torch, "Tensor") else None  # half imported: no tensors yet

    def reducer_override(self, obj: Any) -> Any:
        torch = self.torch
        if torch is not None:
            if isinstance(obj, torch.Tensor):
                reduced = self.reduce_tensor(obj, torch)
                if reduced is not None:
                    return reduced
            elif isinstance(obj, torch.nn.Module):
                left_out = _left_out(obj)
                if left_out:
                    return _reduce_without(obj, left_out)
        if isinstance(obj, types.FunctionType):
            placed = obj.__dict__.get(PLACED)
            if placed is not None:
                # The copy is bound to what the function was before it was redirected.
                return super().reducer_override(placed.original)
        return super().reducer_override(obj)


def pack(
    value: object,
    name: Callable[[Any], Any] | None = None,
    known: Mapping[int, tuple[Store, str, bytes]] | None = None,
) -> Packed:
    """Pickle ``value``; tensors and arrays stay where they are until it is sent.

    Parameters
    ----------
    name : callable, optional
        Gives the persistent id of an object that the receiver already knows, or None.
    known : mapping, optional
        Tensors that the receiver reads for itself; see :func:`~gimlet_lab.backends.weights.references`.

    Raises
    ------
    Exception
        Whatever pickling it raises; nothing was sent.
    """
    file, buffers = io.BytesIO(), list[memoryview]()
    _Packer(file, buffers, name, reduce_known(known, _reduce_tensor) if known else None).dump(value)
    return Packed(file.getvalue(), tuple(buffers))


def fingerprint(value: object) -> tuple[int, int]:
    """Tell whether an object, or what it refers to, has changed: a checksum and a size.

    Tensors count by where they are and by their version, which every in-place operation raises; everything
    else by its contents.

    Raises
    ------
    Exception
        Whatever pickling the object raises.
    """
    file, buffers = io.BytesIO(), list[memoryview]()
    _Packer(file, buffers, reduce_tensor=_mark_tensor).dump(value)
    checksum = zlib.crc32(file.getbuffer())
    for buffer in buffers:
        checksum = zlib.crc32(buffer, checksum)
    return checksum, file.tell() + sum(buffer.nbytes for buffer in buffers)


class _Unpacker(pickle.Unpickler):
    def __init__(self, packed: Packed, find: Callable[[Any], Any] | None) -> None:
        super().__init__(io.BytesIO(packed.stream), buffers=packed.buffers)
        self.known: set[Any] = set()
        if find is not None:
            setattr(self, "persistent_load", find)  # noqa: B010 - mypy refuses to assign to a method

    def find_class(self, module: str, name: str) -> Any:
        # A class of the notebook that comes back must not be written over with its own copy.
        if module == "cloudpickle.cloudpickle":
            if name in ("_make_skeleton_class", "_make_skeleton_enum"):
                return lambda *args: self._skeleton(super(_Unpacker, self).find_class(module, name), args)
            if name == "_class_setstate":
                return lambda made, state: self._set_state(
                    super(_Unpacker, self).find_class(module, name), made, state
                )
        return super().find_class(module, name)

    def _skeleton(self, make: Any, args: tuple[Any, ...]) -> Any:
        before = set(cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID)  # noqa: SLF001 - no public way to ask
        made = make(*args)
        if any(arg in before for arg in args if isinstance(arg, str)):
            self.known.add(made)
        return made

    def _set_state(self, set_state: Any, made: Any, state: Any) -> Any:
        return made if made in self.known else set_state(made, state)


def unpack(packed: Packed, find: Callable[[Any], Any] | None = None) -> Any:
    """The inverse of :func:`pack`; ``find`` gives the object of a persistent id."""
    return _Unpacker(packed, find).load()


def _reduce_tensor(tensor: Any, torch: Any) -> Any:
    kind = type(tensor)
    if kind not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer) or tensor.layout is not torch.strided:
        return None
    if tensor.device.type != "cpu" or tensor.is_quantized:
        return None
    if tensor.grad_fn is not None:
        raise TypeError("a tensor with gradients to come would lose them")
    data = tensor.detach().resolve_conj().resolve_neg()
    order: tuple[int, ...] | None = None
    if not data.is_contiguous():
        # Kept in its own order (channels last, transposed): arithmetic may depend on it in the last bits.
        order = tuple(sorted(range(data.dim()), key=lambda dim: -data.stride(dim)))
        data = data.permute(order)
        if not data.is_contiguous():
            order, data = None, tensor.detach().contiguous()
    shape = tuple(data.shape)
    raw = data.reshape(-1).view(torch.uint8).numpy()
    made_of = (pickle.PickleBuffer(raw), str(data.dtype).removeprefix("torch."), shape, order)
    state = None if kind is torch.Tensor and not tensor.requires_grad else (kind, tensor.requires_grad)
    return _rebuild_tensor, (*made_of, state)


def _mark_tensor(tensor: Any, torch: Any) -> Any:
    if tensor.is_inference() or tensor.device.type != "cpu":
        return _reduce_tensor(tensor, torch)  # these have no version
    try:
        where = tensor.data_ptr()
    except RuntimeError:
        return None
    return str, (f"{where} {tensor._version} {tuple(tensor.shape)} {tensor.stride()} {tensor.dtype}",)  # noqa: SLF001 - torch has no public name for it


def _rebuild_tensor(
    buffer: Any, dtype_name: str, shape: tuple[int, ...], order: tuple[int, ...] | None, state: Any
) -> Any:
    import torch

    dtype = getattr(torch, dtype_name)
    if not len(memoryview(buffer)):
        tensor = torch.empty(shape, dtype=dtype)
    else:
        tensor = torch.frombuffer(buffer, dtype=dtype).view(shape)
    if order is not None:
        tensor = tensor.permute(tuple(order.index(dim) for dim in range(len(order))))
    if state is None:
        return tensor
    kind, requires_grad = state
    if kind is torch.nn.Parameter:
        return torch.nn.Parameter(tensor, requires_grad=requires_grad)
    if kind is torch.nn.Buffer:
        return torch.nn.Buffer(tensor)
    return tensor.requires_grad_(requires_grad)


def own_hooks(hooks: Mapping[int, Any]) -> dict[int, Any]:
    """The hooks of a module, without those that transformers leaves where hidden states were asked for.

    These do nothing until it is asked for them again, and a worker's copy then sets its own.
    """
    return {
        key: hook for key, hook in hooks.items() if getattr(hook, "__module__", "") != _TRANSFORMERS_HOOKS
    }


_TRANSFORMERS_HOOKS = "transformers.utils.output_capturing"


def _left_out(module: Any) -> dict[str, Any]:
    """Attributes of a module that do not travel, each with what travels in its place; None: nothing."""
    state = module.__dict__
    left_out: dict[str, Any] = {}
    if hasattr(state.get("forward"), PLACED):
        left_out["forward"] = None
    if "_output_capturing_hooks_installed" in state:
        left_out["_output_capturing_hooks_installed"] = None
    hooks = state.get("_forward_hooks")
    if hooks:
        own = own_hooks(hooks)
        if len(own) != len(hooks):
            left_out["_forward_hooks"] = type(hooks)(own)
    return left_out


def _reduce_without(owner: Any, left_out: Mapping[str, Any]) -> Any:
    reduced = owner.__reduce_ex__(5)
    state = reduced[2]
    if isinstance(state, dict):
        state = {
            key: left_out.get(key, value) for key, value in state.items() if left_out.get(key, "") is not None
        }
    return (*reduced[:2], state, *reduced[3:])


def describe(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
