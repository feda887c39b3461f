"""By which expression the notebook reaches a function whose code runs."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from gimlet_lab import boundary


def find_function(code: types.CodeType, namespace: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Find the expression and the function itself, through decorators, ``torch.compile`` and class names.

    Examples
    --------
    >>> def search(question): return question
    >>> find_function(search.__code__, {"search": search})[0]
    'search'
    """
    name = code.co_qualname
    head, _, rest = name.partition(".")
    if "<locals>" not in name and head in namespace:
        value: Any = namespace[head]
        for part in rest.split(".") if rest else ():
            value = getattr(value, part, None)
        found = _behind(value, code)
        if found is not None:
            return name, found
    for other, value in list(namespace.items()):
        if not other.startswith("_") and isinstance(value, types.FunctionType | types.MethodType):
            found = _behind(value, code)
            if found is not None:
                return other, found
    return None


def find_compiled(original: object, namespace: Mapping[str, Any]) -> str | None:
    """Find the name of what torch.compile made of a function."""
    for name, value in list(namespace.items()):
        made_of = (
            getattr(value, "_torchdynamo_orig_callable", None)
            if isinstance(value, types.FunctionType)
            else None
        )
        if made_of is original and not name.startswith("_"):
            return name
    return None


def find_method(code: types.CodeType, owner: object, namespace: Mapping[str, Any]) -> str | None:
    """Find the expression of a method by the object it was called on."""
    if owner is None or _behind(getattr(type(owner), code.co_name, None), code) is None:
        return None
    where = boundary.locate(owner, namespace)
    return None if where is None else f"{where}.{code.co_name}"


def _behind(value: Any, code: types.CodeType) -> Any:
    """The function with this code behind decorators and bound methods."""
    for _ in range(16):
        if isinstance(value, type) or value is None:
            return None
        if getattr(value, "__code__", None) is code:
            return value
        following = (
            getattr(value, name, None) for name in ("__wrapped__", "__func__", "_torchdynamo_orig_callable")
        )
        value = next((inner for inner in following if inner is not None), None)
    return None
