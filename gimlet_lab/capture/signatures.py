"""What recorded operator calls computed: their shapes run through torch's own operators without memory.

A trace has the shapes and dtypes that went in, by position. torch knows the names of an operator's arguments
and, on its ``meta`` device, what comes out; from there a recorded call is counted exactly as a live one is.
What this torch does not know (another version's operators, custom ones) stays unknown.
"""

from __future__ import annotations

import ast
import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gimlet_lab.capture.kinds import Kind, kind_of
from gimlet_lab.model import Work
from gimlet_lab.work import formulas
from gimlet_lab.work.arithmetic import arithmetic
from gimlet_lab.work.aten import Operand, base_name, is_view
from gimlet_lab.work.operand import EMPTIES, FILLS, RANDOM

#: Signatures worked out; an endless stream of new shapes must not take hours.
MAX_SIGNATURES = 100_000

#: Dtypes as traces spell C++ types, to torch's names.
DTYPES = {
    "float": "float32", "double": "float64", "int": "int32", "long int": "int64", "long": "int64",
    "short int": "int16", "short": "int16", "signed char": "int8", "unsigned char": "uint8", "bool": "bool",
    "c10::Half": "float16", "c10::BFloat16": "bfloat16", "c10::complex<float>": "complex64",
    "c10::complex<double>": "complex128", "c10::Float8_e4m3fn": "float8_e4m3fn",
    "c10::Float8_e5m2": "float8_e5m2", "c10::Float8_e4m3fnuz": "float8_e4m3fnuz",
    "c10::Float8_e5m2fnuz": "float8_e5m2fnuz", "c10::Float8_e8m0fnu": "float8_e8m0fnu",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as a trace recorded it.

    Attributes
    ----------
    dtype : str or None
        torch's name; None where the trace does not say (lists of tensors).
    shape : tuple of int
    strides : tuple of int or None
    place : int or None
        Arguments of one call with one place are the same tensor; None where the trace does not tell.
    """

    dtype: str | None
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    place: int | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """One operator with one input signature.

    Attributes
    ----------
    name : str
        ``aten::addmm``.
    inputs : tuple or None
        By position: :class:`TensorInfo`, tuples of them, plain values; None where shapes were not recorded.
    """

    name: str
    inputs: tuple[Any, ...] | None


@dataclass(frozen=True, slots=True)
class Attended:
    """How many positions an attention went over.

    Attributes
    ----------
    batch, q_len, kv_len : int
    causal : bool
        As its argument says; a mask is not looked into.
    exact : bool
        An attention operator; not only a softmax that looks like one.
    """

    batch: int
    q_len: int
    kv_len: int
    causal: bool = False
    exact: bool = True

    @property
    def decodes(self) -> bool:
        """Whether one query looked back at others."""
        return self.q_len == 1 and self.kv_len > 1


@dataclass(frozen=True, slots=True, eq=False)
class Meaning:
    """What a recorded call is.

    Attributes
    ----------
    kind : Kind
    composite : bool
        Made of other operators, which do the work: ``aten::linear`` of ``aten::addmm``.
    weight_bytes : float
        Bytes read of the operand that a product's weights are, where it has them.
    table_bytes : float
        Bytes of all of that operand.
    kv_bytes : float
        Bytes of an attention's keys and values.
    attended : Attended or None
    """

    kind: Kind
    composite: bool
    weight_bytes: float = 0.0
    table_bytes: float = 0.0
    kv_bytes: float = 0.0
    attended: Attended | None = None


class Signatures:
    """Works out recorded signatures, each once."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self._known: dict[Recorded, Meaning] = {}
        self._composite: dict[str, bool] = {}
        self.left_out = 0

    def meaning(self, recorded: Recorded) -> Meaning:
        """Look a signature up, or work it out."""
        found = self._known.get(recorded)
        if found is None:
            if len(self._known) >= MAX_SIGNATURES:
                self.left_out += 1
                return Meaning(_unknown(recorded.name, recorded.inputs), self.is_composite(recorded.name))
            found = self._known[recorded] = self._work_out(recorded)
        return found

    def kernel(self, name: str) -> Meaning:
        """A kernel of which only the name is known."""
        recorded = Recorded(name, None)
        if recorded not in self._known:
            kind = Kind(name, None, None, (), None, "", "", view=False, writes=True)
            self._known[recorded] = Meaning(kind, composite=False)
        return self._known[recorded]

    def is_composite(self, name: str) -> bool:
        """Whether all of an operator's overloads are made of other operators."""
        if name not in self._composite:
            made = self.torch._C._dispatch_has_kernel_for_dispatch_key  # noqa: SLF001 - torch has no public question
            try:
                schemas = self.torch._C._jit_get_schemas_for_operator(name)  # noqa: SLF001 - see above
                named = [f"{name}.{s.overload_name}" if s.overload_name else name for s in schemas]
                own = [full for full in named if not full.endswith("out")] or named
                self._composite[name] = bool(own) and made(own[0], "CompositeImplicitAutograd")
            except RuntimeError:
                self._composite[name] = False
        return self._composite[name]

    def _work_out(self, recorded: Recorded) -> Meaning:
        name, inputs = recorded.name, recorded.inputs
        composite = self.is_composite(name)
        if inputs is None:
            return Meaning(_unknown(name, None), composite)
        with contextlib.suppress(Exception):  # torch raises what it likes for shapes that cannot be
            for func in self._overloads(name, inputs):
                kind = self._run(func, inputs)
                if kind is not None:
                    return _meaning(kind, composite, inputs)
        return _meaning(_by_inputs(name, inputs, self.torch), composite, inputs)

    def _overloads(self, name: str, inputs: Sequence[Any]) -> list[Any]:
        """Overloads that take such arguments, torch's order."""
        space, _, base = name.partition("::")
        made = base in EMPTIES or base in FILLS or base in RANDOM
        # A trace is somebody else's text: it names only torch's own operators, on tensors, that run here.
        if space != "aten" or not (made or any(_is_tensor(value) for value in inputs)):
            return []
        packet = getattr(self.torch.ops.aten, base)
        found = [getattr(packet, overload) for overload in packet.overloads()]
        return [func for func in found if _fits(func._schema, inputs)]  # noqa: SLF001 - torch's own tools read it

    def _run(self, func: Any, inputs: Sequence[Any]) -> Kind | None:
        """Run one overload on the meta device; None where these arguments are not its own."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        guessed, made = False, dict[int, Any]()
        for argument, value in zip(func._schema.arguments, inputs, strict=False):  # noqa: SLF001 - see above
            if value is None and argument.has_default_value():
                value = argument.default_value
            elif argument.name == "device":
                value = "meta"
            elif argument.name == "pin_memory":
                value = None
            else:
                guessed = guessed or _is_guess(value)
                value = self._live(value, made)
            if argument.kwarg_only:
                kwargs[argument.name] = value
            else:
                args.append(value)
        if "device" in {argument.name for argument in func._schema.arguments}:  # noqa: SLF001 - see above
            kwargs["device"] = "meta"
        try:
            with self.torch.no_grad():
                out = func(*args, **kwargs) if _gives_tensors(func) else None
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            return None
        kind = kind_of(func, tuple(args), kwargs, out, self.torch.Tensor)
        if guessed:  # shapes but no dtype: what moved is unknown, what was computed is not
            moves_only = kind.work is None or kind.flops == 0.0
            kind.work, kind.flops = None, 0.0 if moves_only and kind.flops is not None else None
            kind.read, kind.written, kind.reads, kind.dtype = None, None, (), ""
        return kind

    def _live(self, value: Any, made: dict[int, Any]) -> Any:
        if isinstance(value, tuple):
            return [self._live(item, made) for item in value]
        if not isinstance(value, TensorInfo):
            return value
        if value.place in made:
            return made[value.place]
        dtype = getattr(self.torch, value.dtype or "float32")
        if value.strides is not None and len(value.strides) == len(value.shape):
            tensor = self.torch.empty_strided(value.shape, value.strides, dtype=dtype, device="meta")
        else:
            tensor = self.torch.empty(value.shape, dtype=dtype, device="meta")
        if value.place is not None:
            made[value.place] = tensor
        return tensor


def recorded_value(type_name: str, dims: Any, strides: Any, concrete: Any) -> Any:
    """An argument from what a Kineto trace says of it: its type, shape, strides and text.

    Examples
    --------
    >>> recorded_value("float", [8, 4], [4, 1], "")
    TensorInfo(dtype='float32', shape=(8, 4), strides=(4, 1), place=None)
    >>> recorded_value("ScalarList", [], [], "[1, 2]"), recorded_value("Scalar", [], [], "False")
    ((1, 2), False)
    """
    if type_name in DTYPES:
        return TensorInfo(DTYPES[type_name], _sizes(dims), _strides(strides, dims))
    if type_name in ("TensorList", "GenericList") and isinstance(dims, list) and dims:
        each = strides if isinstance(strides, list) and len(strides) == len(dims) else [None] * len(dims)
        return tuple(
            TensorInfo(None, _sizes(shape), _strides(step, shape))
            for shape, step in zip(dims, each, strict=True)
        )
    return literal(concrete)


def literal(text: Any) -> Any:
    """A plain value from its text; None where it says nothing, the text itself where it is no literal."""
    if not isinstance(text, str) or text == "":
        return text if isinstance(text, int | float) else None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return tuple(value) if isinstance(value, list) else value


def _sizes(dims: Any) -> tuple[int, ...]:
    """Sizes as they must be.

    Raises
    ------
    ValueError
        If one is negative or no integer.
    """
    if not isinstance(dims, list) or any(
        isinstance(size, bool) or not isinstance(size, int) or size < 0 for size in dims
    ):
        raise ValueError(f"no shape: {str(dims)[:60]}")
    return tuple(dims)


def _strides(strides: Any, dims: Any) -> tuple[int, ...] | None:
    if not isinstance(strides, list) or len(strides) != len(dims):
        return None
    return tuple(strides) if all(isinstance(step, int) and step >= 0 for step in strides) else None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, TensorInfo) or (isinstance(value, tuple) and any(map(_is_tensor, value)))


def _is_guess(value: Any) -> bool:
    if isinstance(value, TensorInfo):
        return value.dtype is None
    return isinstance(value, tuple) and any(_is_guess(item) for item in value)


def _fits(schema: Any, inputs: Sequence[Any]) -> bool:
    arguments = schema.arguments
    if len(inputs) > len(arguments) or any(
        not argument.has_default_value() for argument in arguments[len(inputs) :]
    ):
        return False
    for argument, value in zip(arguments, inputs, strict=False):
        wanted = str(argument.type)
        is_tensor = isinstance(value, TensorInfo)
        if is_tensor and wanted not in ("Tensor", "Optional[Tensor]"):
            return False
        if value is not None and not is_tensor and wanted in ("Tensor", "Optional[Tensor]"):
            return False
        is_list = isinstance(value, tuple)
        if is_list != wanted.removeprefix("Optional[").startswith("List") and value is not None:
            return False
    return True


def _gives_tensors(func: Any) -> bool:
    return any("Tensor" in str(result.type) for result in func._schema.returns)  # noqa: SLF001 - torch's own tools read it


def _by_inputs(name: str, inputs: Sequence[Any], torch: Any) -> Kind:
    """What the inputs alone tell of an operator that could not be run: the FLOPs of a product."""
    try:
        schemas = torch._C._jit_get_schemas_for_operator(name)  # noqa: SLF001 - torch has no public question
        schema = next(schema for schema in schemas if _fits(schema, inputs))
        named = {
            argument.name: Operand(value.shape, value.dtype, int(formulas.DTYPE_BYTES[value.dtype]))
            if isinstance(value, TensorInfo) and value.dtype in formulas.DTYPE_BYTES
            else value
            for argument, value in zip(schema.arguments, inputs, strict=False)
        }
        work = arithmetic(base_name(name), named, ())
    except Exception:  # noqa: BLE001 - an operator or a form of it that nobody here knows
        return _unknown(name, inputs)
    if work is None or not formulas.flops(work):
        return _unknown(name, inputs)
    return _kind(name, work, work.dtype)


def _kind(name: str, work: Work, dtype: str) -> Kind:
    read = formulas.bytes_read(work)
    kind = Kind(
        name, work, formulas.flops(work), (), formulas.bytes_written(work), dtype, "", view=False, writes=True
    )
    kind.read = read
    return kind


def _unknown(name: str, inputs: Sequence[Any] | None) -> Kind:
    first = next((value for value in inputs or () if isinstance(value, TensorInfo)), None)
    dtype = first.dtype or "" if first is not None else ""
    view = is_view(name)
    done = 0.0 if view else None
    return Kind(name, None, done, (), done, dtype, "", view=view, writes=not view)


#: Where among their tensors products have their weights.
_WEIGHTS = {"addmm": 2, "mm": 1, "_scaled_mm": 1, "_int_mm": 1, "linear": 1, "embedding": 0, "convolution": 1}


def _meaning(kind: Kind, composite: bool, inputs: Sequence[Any]) -> Meaning:
    base = base_name(kind.name)
    tensors = [value for value in inputs if isinstance(value, TensorInfo)]
    weight, table, kv, attended = 0.0, 0.0, 0.0, None
    place = _WEIGHTS.get(base)
    if kind.work is not None and place is not None and place < len(tensors):
        table = _nbytes(tensors[place])
        weight = kind.reads[place] if place < len(kind.reads) else table
    if kind.work is not None and kind.work.op.startswith("attention") and len(tensors) >= 3:
        query, key, value = tensors[:3]
        kv = _nbytes(key) + _nbytes(value)
        attended = Attended(
            query.shape[0], query.shape[2], key.shape[2], bool(kind.work.get("causal", 0)), exact=True
        )
    elif base in ("_softmax", "softmax", "_safe_softmax") and tensors and len(tensors[0].shape) in (3, 4):
        shape = tensors[0].shape
        attended = Attended(shape[0] if len(shape) == 4 else 1, shape[-2], shape[-1], exact=False)
    return Meaning(kind, composite, weight, table, kv, attended)


def _nbytes(tensor: TensorInfo) -> float:
    size = formulas.DTYPE_BYTES.get(tensor.dtype or "", 0.0)
    return float(math.prod(tensor.shape)) * size
