"""What a module holds: bytes of parameters and buffers by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gimlet_lab.model import ModuleInfo


def module_info(module: Any, target: str) -> ModuleInfo:
    """Describe a module; storage that several parameters share is counted once, where it comes first."""
    weights: dict[str, int] = {}
    seen: set[int] = set()
    dtypes: dict[str, int] = {}
    device = ""
    original = getattr(module, "_orig_mod", module)
    held = (*original.named_parameters(), *original.named_buffers())
    for name, tensor in ((name, part) for name, whole in held for part in stored(whole)):
        try:
            storage = tensor.untyped_storage()
            address, nbytes = int(storage._cdata), int(storage.nbytes())  # noqa: SLF001 - as torch.multiprocessing does
        except (RuntimeError, NotImplementedError, AttributeError, ValueError):  # lazy or sparse
            address, nbytes = id(tensor), 0
        if address in seen:
            continue
        seen.add(address)
        block = block_of(name)
        weights[block] = weights.get(block, 0) + nbytes
        dtype = str(tensor.dtype).removeprefix("torch.")
        dtypes[dtype] = dtypes.get(dtype, 0) + nbytes
        device = device or str(tensor.device)
    return ModuleInfo(
        target=target,
        class_name=type(original).__name__,
        weights=weights,
        dtype=max(dtypes, key=lambda name: dtypes[name]) if dtypes else "float32",
        device=device or "cpu",
        compiled=is_compiled(module),
    )


def stored(tensor: Any) -> Iterator[Any]:
    """What lies in memory for a tensor: itself, or the parts of one that is only made of others.

    A quantised weight is a tensor of its logical dtype over one of int8 and its scales; a distributed one is
    its local shard.
    """
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for part in (getattr(tensor, name) for name in flatten()[0]):
        if hasattr(part, "untyped_storage"):  # a distributed one names its mesh as well
            yield from stored(part)


def block_of(name: str) -> str:
    """Give the block a parameter belongs to: up to the first number in its path, or its own module.

    Examples
    --------
    >>> block_of("model.layers.3.mlp.up_proj.weight"), block_of("lm_head.weight"), block_of("scale")
    ('model.layers.3', 'lm_head', '')
    """
    parts = name.split(".")[:-1]
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return ".".join(parts)


def is_compiled(module: Any) -> bool:
    """Whether a module has parts that torch.compile made: never looked into."""
    for part in module.modules():
        if type(part).__name__ == "OptimizedModule" or getattr(part, "_compiled_call_impl", None) is not None:
            return True
        forward = part.forward
        disabled = getattr(forward, "_torchdynamo_disable", False)
        if hasattr(forward, "_torchdynamo_orig_callable") and not disabled:
            return True
    return False
