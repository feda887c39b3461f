"""Operators that are not torch's own: what their authors say they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Formulas by the operator's name without its overload. They take the operator's arguments with each tensor
#: replaced by its shape, and ``out_shape``: torch's own convention (``register_flop_formula``).
_formulas: dict[str, Callable[..., float]] = {}


def register_flops(op: object, formula: Callable[..., float] | None = None) -> Any:
    """Say what a custom operator computes, for this process.

    Parameters
    ----------
    op : str or torch operator
        ``"mylib::attention"``, ``torch.ops.mylib.attention`` or what ``torch.library.custom_op`` made.
    formula : callable, optional
        Gives the FLOPs of one call from its arguments, tensors as shapes, and ``out_shape``, the result's:
        what ``torch.utils.flop_counter.register_flop_formula`` takes. Left out: a decorator.

    Notes
    -----
    What was registered with torch itself is found without this. Bytes are each operand once and each result
    once.

    Examples
    --------
    >>> @register_flops("mylib::scaled_mm")
    ... def scaled_mm(a, b, scale, *, out_shape): return 2 * a[0] * a[1] * b[1]
    >>> registered("mylib::scaled_mm")((2, 3), (3, 4), 1.0, out_shape=(2, 4))
    48
    """
    if formula is None:
        return lambda function: register_flops(op, function) or function
    _formulas[_name(op)] = formula
    return formula


def registered(name: str) -> Callable[..., float] | None:
    """The formula of an operator, by torch's name for it."""
    return _formulas.get(name.partition(".")[0])


def _name(op: object) -> str:
    schema = getattr(op, "_schema", None)
    named = (
        op,
        getattr(op, "_qualname", None),  # of torch.library.custom_op
        getattr(op, "_qualified_op_name", None),  # of torch.ops.mylib.op
        getattr(schema, "name", None),  # of one overload
    )
    name = next((name for name in named if isinstance(name, str)), "")
    if "::" not in name:
        raise ValueError(f"register_flops: {op!r} is no operator; name it like 'mylib::attention'")
    return name.partition(".")[0]
