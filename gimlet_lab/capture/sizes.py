"""How big things are, and what they carry: as far as looking takes no time."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from typing import Any

#: How far into containers we look for what they carry, and how many items of each.
DEPTH = 3
ITEMS = 64

#: What carries nothing worth an edge.
ATOMS = (int, float, complex, bool, type(None), type, type(Ellipsis))

CONTAINERS = (list, tuple, dict, set, frozenset)

_PLAIN = (str, bytes, int, float, complex, bool, type(None))


def items_of(value: object) -> list[Any]:
    """What a container carries: the first items."""
    if isinstance(value, dict):
        return list(itertools.islice(value.values(), ITEMS))
    if isinstance(value, list | tuple | set | frozenset):
        return list(itertools.islice(value, ITEMS))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)][:ITEMS]
    # A tokenizer's answer and its like: mappings that are no dict.
    inner = getattr(value, "data", None) if type(value).__name__ == "BatchEncoding" else None
    return list(inner.values())[:ITEMS] if isinstance(inner, dict) else []


def plain_size(value: object, budget: int = 1000) -> float | None:
    """Memory of strings, numbers and containers of them, in bytes; None for anything that holds more.

    Of long containers the first items speak for all.

    Examples
    --------
    >>> plain_size(["ab", "cd"]) == sys.getsizeof([1, 2]) + 2 * sys.getsizeof("ab")
    True
    >>> plain_size([object()]) is None
    True
    """
    if isinstance(value, _PLAIN):
        return float(sys.getsizeof(value))
    if type(value) not in CONTAINERS or budget <= 0:
        return None
    carried: Any = value.items() if isinstance(value, dict) else value
    items = list(itertools.islice(carried, budget))
    sizes = [plain_size(item, budget // max(len(items), 1) + 8) for item in items]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    return sys.getsizeof(value) + (sum(known) * _count(value) / len(items) if items else 0.0)


def carried_size(value: object, depth: int = DEPTH) -> float | None:
    """Bytes of data that an object carries, as far as we look; None where nothing tells.

    Examples
    --------
    >>> carried_size({"a": b"12345678", "b": [1.0, 2.0]})
    24.0
    """
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return float(size)
    if isinstance(value, str | bytes | bytearray):
        return float(len(value))
    if isinstance(value, int | float | complex):
        return 8.0
    if value is None or depth < 0:
        return 0.0
    if type(value).__module__.startswith("pandas."):
        used: Any = value.memory_usage(deep=False) if hasattr(value, "memory_usage") else None
        return None if used is None else float(used.sum() if hasattr(used, "sum") else used)
    items = items_of(value)
    if not items:
        if isinstance(value, CONTAINERS):
            return 0.0
        own = getattr(value, "__dict__", None)
        items = list(itertools.islice(own.values(), ITEMS)) if isinstance(own, dict) else []
    sizes = [carried_size(item, depth - 1) for item in items]
    known = [size for size in sizes if size is not None]
    if not known:
        return None
    return sum(known) * (_count(value) if isinstance(value, CONTAINERS) else len(items)) / len(items)


def _count(container: Any) -> int:
    return len(container)
