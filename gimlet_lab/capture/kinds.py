"""What one operator computes and moves with one input signature: from its schema and tensors, once."""

from __future__ import annotations

import sys
from typing import Any

from gimlet_lab.capture.devices import is_away
from gimlet_lab.model import Work
from gimlet_lab.work import aten, formulas
from gimlet_lab.work.custom import registered

#: torch's tags of operators whose results decide shapes, or become numbers of Python.
_DEPENDENT = {"data_dependent_output", "dynamic_output_shape"}


class Kind:
    """What is the same for all calls of one operator with one input signature.

    Attributes
    ----------
    name : str
        ``aten::mm``.
    work, flops, written
        Of one call; None where nobody knows.
    reads : tuple of float
        Bytes read of each tensor among the arguments, in their order.
    view : bool
        Nothing is computed and nothing moves.
    depends : bool
        What comes after it may hang on the values it gives: a number for Python, a shape. Of an unknown one
        nobody knows.
    writes : bool
        Its results are data somebody made.
    """

    __slots__ = (
        "depends", "device", "dtype", "flops", "name", "read", "reads", "view", "work", "writes", "written",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        work: Work | None,
        flops: float | None,
        reads: tuple[float, ...],
        written: float | None,
        dtype: str,
        device: str,
        *,
        view: bool,
        writes: bool,
        depends: bool = False,
    ) -> None:
        self.name = name
        self.work = work
        self.flops = flops
        self.reads = reads
        read = None if work is None else formulas.bytes_read(work)
        self.read: float | None = None if written is None else sum(reads) if read is None else read
        self.written = written
        self.dtype = dtype
        self.device = device
        self.view = view
        self.writes = writes
        self.depends = depends


def sign(values: Any, parts: list[Any], tensors: list[Any], tensor_type: type) -> None:
    """Add to ``parts`` what of an operator's arguments decides its work, and to ``tensors`` the tensors."""
    for value in values:
        kind = value.__class__
        if isinstance(value, tensor_type):
            tensor: Any = value
            same = -1
            for index, other in enumerate(tensors):
                if other is value:
                    same = index
            tensors.append(value)
            try:
                # A sparse tensor has strides of no meaning or none; its work depends on its entries.
                strides = _nnz(tensor) if tensor.is_sparse else tensor.stride()
                parts += (tensor.shape, tensor.dtype, strides, same)
            except RuntimeError:  # nested and compressed tensors
                parts += (str(tensor.layout), tensor.dtype, tensor.numel(), _nnz(tensor), same)
        elif kind is list or kind is tuple:
            parts.append(len(value))
            sign(value, parts, tensors, tensor_type)
        elif kind is float:
            parts.append(float)
        else:
            parts.append(value)


def is_composite(func: Any) -> bool:
    """Whether an operator is made of others and has no formula of its own.

    Under ``inference_mode`` nobody takes such operators apart before a dispatch mode sees them.
    """
    schema = getattr(func, "_schema", None)
    if schema is None or not hasattr(func, "decompose") or not schema.name.startswith("aten::"):
        return False
    return not aten.is_known(schema.name) and _has_composite_kernel(func)


def _has_composite_kernel(func: Any) -> bool:
    keys: Any = getattr(sys.modules.get("torch"), "_C", None)
    try:
        return bool(func.has_kernel_for_dispatch_key(keys.DispatchKey.CompositeImplicitAutograd))
    except (AttributeError, RuntimeError):
        return False


def tensors_in(value: Any, tensor_type: type) -> list[Any]:
    """Tensors among an operator's results or arguments."""
    if isinstance(value, tensor_type):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item, tensor_type)]
    return []


def kind_of(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, tensor_type: type, top_k: int = 1
) -> Kind:
    """Work out what one operator call computes and moves.

    ``top_k``: how many the last choice of the largest took before it. So a router sends each token to several
    groups of a grouped product.
    """
    schema = getattr(func, "_schema", None)
    name = schema.name if schema is not None else str(func)
    outputs = [_operand(tensor) for tensor in tensors_in(out, tensor_type)]
    inputs: dict[str, object] = {
        argument: _plain(value, tensor_type) for argument, value in _arguments(schema, args, kwargs).items()
    }
    inputs["top_k"] = top_k
    mutated: set[str] = set()
    view = name.startswith(("prim::", "profiler::")) or aten.is_view(name)
    if schema is not None:
        for argument in schema.arguments:
            if argument.name not in inputs and argument.has_default_value():
                inputs[argument.name] = argument.default_value
            if argument.alias_info is not None and argument.alias_info.is_write:
                mutated.add(argument.name)
        shared = [result.alias_info for result in schema.returns if result.alias_info is not None]
        view = view or (bool(shared) and not mutated and not any(alias.is_write for alias in shared))
    writes, fixed = frozenset(mutated), not view
    tags = {getattr(tag, "name", "") for tag in getattr(func, "tags", ())}
    pointwise = "pointwise" in tags
    try:
        work = aten.describe(name, inputs, outputs, view=view, pointwise=pointwise, mutated=writes)
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):
        work = None  # a form of the operator that we do not know
    if work is None and not view:
        work = _said(func, name, args, kwargs, out, tensor_type)
    # What an operator that is not torch's own reads and writes inside, its schema does not tell.
    known = work is not None or view or name.startswith("aten::")
    given = tensors_in([*args, *kwargs.values()], tensor_type)
    made = tensors_in(out, tensor_type)
    # Where an accelerator and the host both have a part in it, it is the accelerator's.
    first = min([*made, *given], key=lambda tensor: not is_away(tensor.device.type), default=None)
    if name in ("aten::copy_", "aten::_to_copy") and len({str(one.device) for one in (*made, *given)}) > 1:
        if made[0].device.type == "meta":  # a tensor gives up its memory: nothing moves
            return Kind(name, None, 0.0, (), 0.0, dtype_name(made[0]), "cpu", view=False, writes=True)
        work = Work.of("send", dtype_name(made[0]), bytes=int(made[0].nbytes))
    return Kind(
        name=name,
        work=work,
        flops=formulas.flops(work) if work is not None else 0.0 if view else None,
        reads=tuple(aten.read_bytes(name, inputs, outputs, writes, view=view)),
        written=aten.written_bytes(name, inputs, outputs, writes, view=view) if known else None,
        dtype=work.dtype if work is not None else "" if first is None else dtype_name(first),
        device="cpu" if first is None else str(first.device),
        view=view,
        writes=fixed and bool(outputs),
        depends=bool(tags & _DEPENDENT) and not (name == "aten::index" and _by_places(given)),
    )


def _by_places(indexed: list[Any]) -> bool:
    """Whether an index names places, as many as it has; a mask picks as many as are true in it."""
    return not any(dtype_name(tensor) in ("bool", "uint8") for tensor in indexed[1:])


def _said(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, tensor_type: type
) -> Work | None:
    """What the author of an operator says it computes, to us or to torch."""
    formula, counter = registered(name), sys.modules.get("torch.utils.flop_counter")
    if formula is not None:

        def shaped(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(shaped(item) for item in value)
            tensor: Any = value
            return tuple(tensor.shape) if isinstance(value, tensor_type) else value

        given = [shaped(value) for value in args]
        named = {key: shaped(value) for key, value in kwargs.items()}
        flops = formula(*given, out_shape=shaped(out), **named)
    elif counter is not None and not name.startswith("aten::"):
        theirs = counter.flop_registry.get(getattr(func, "_overloadpacket", None))
        if theirs is None:
            return None
        flops = theirs(*args, **kwargs, out_val=out)
    else:
        return None
    first = next(iter(tensors_in(out, tensor_type)), None)
    return Work.of("other", "float32" if first is None else dtype_name(first), flops=int(flops))


def unknown_kind(func: Any) -> Kind:
    """Say of an operator only that it ran."""
    schema = getattr(func, "_schema", None)
    name = schema.name if schema is not None else str(func)
    return Kind(name, None, None, (), None, "", "cpu", view=False, writes=True, depends=True)


def dtype_name(tensor: Any) -> str:
    """Give torch's name of a tensor's dtype, without ``torch.``."""
    return str(tensor.dtype).removeprefix("torch.")


def _arguments(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    if schema is None:
        return {f"input{index}": value for index, value in enumerate(args)} | kwargs
    return dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs


def _operand(tensor: Any) -> aten.Operand:
    try:
        strides: tuple[int, ...] | None = tuple(int(s) for s in tensor.stride())
    except RuntimeError:  # see sign
        strides = None
    shape = tuple(int(n) for n in tensor.shape)
    nnz = _nnz(tensor)
    strides = strides if nnz is None else None
    return aten.Operand(shape, dtype_name(tensor), int(tensor.element_size()), strides, id(tensor), nnz)


def _nnz(tensor: Any) -> int | None:
    """Entries of a sparse tensor; None for one of another layout."""
    return int(tensor._nnz()) if str(tensor.layout).startswith("torch.sparse") else None  # noqa: SLF001 - torch has no other word


def _plain(value: Any, tensor_type: type) -> object:
    if isinstance(value, tensor_type):
        return _operand(value)
    if isinstance(value, list | tuple):
        return [_plain(item, tensor_type) for item in value]
    return value
