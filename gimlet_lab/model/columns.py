"""Rows of nouns as columns, and JSON that holds any number: how run files and exports are written."""

from __future__ import annotations

import base64
import json
import math
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gimlet_lab.model.collector import uncollected
from gimlet_lab.model.phase import Phase
from gimlet_lab.model.recording import Op, Span
from gimlet_lab.model.work import Work

if TYPE_CHECKING:
    import pandas

_Row = TypeVar("_Row")

#: Columns longer than this are bytes, not lists of numbers.
DENSE_ROWS = 4096

#: Values looked at to see whether a column has few of them.
_PROBE = 2048

#: Unsigned integers by their width: array's letters for them.
_WIDTHS = {"u1": "B", "u2": "H"}

#: Columns of text, whichever noun they belong to; ``stage`` is also the column beside the operators.
_TEXT = {
    "stage",
    *(f.name for noun in (Op, Span, Phase) for f in fields(noun) if f.type in ("str", "str | None")),
}


def pack(rows: Sequence[Any], kind: type, beside: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Rows as columns; strings and works by their number in a table."""
    strings: dict[str, int] = {}
    works: dict[Work, int] = {}
    columns: dict[str, Any] = {}
    for name, values in [
        *((f.name, list(map(attrgetter(f.name), rows))) for f in fields(kind)),
        *beside.items(),
    ]:
        if len(values) != len(rows):
            raise ValueError(f"{name} has {len(values)} entries for {len(rows)} rows")
        known: dict[Any, int] | None = strings if name in _TEXT else works if name == "work" else None
        columns[name] = _dense(list(values), known)
    packed: dict[str, Any] = {"rows": len(rows), "strings": list(strings), "columns": columns}
    if works:
        packed["works"] = [work.to_json() for work in works]
    return packed


def unpack(
    packed: Mapping[str, Any], kind: type[_Row], beside: Iterable[str]
) -> tuple[tuple[_Row, ...], dict[str, list[Any]]]:
    """Rows of ``kind``: a column it does not know is left aside, one the file lacks takes its default."""
    rows, strings = packed["rows"], packed["strings"]
    works = [Work.from_json(entry) for entry in packed.get("works", ())]
    columns: dict[str, list[Any]] = {}
    for name, held in packed["columns"].items():
        values = _listed(held, strings if name in _TEXT else works if name == "work" else None)
        if len(values) != rows:
            raise ValueError(f"column {name!r} has {len(values)} entries for {rows} rows")
        columns[name] = values
    with uncollected():
        made = _rows(kind, rows, columns)
    return made, {name: columns[name] for name in beside}


def _rows(kind: type[_Row], count: int, columns: Mapping[str, list[Any]]) -> tuple[_Row, ...]:
    """Instances of a frozen noun, slot by slot: a million calls of its ``__init__`` take thrice as long."""
    made: list[Any] = list(map(object.__new__, repeat(kind, count)))
    for column in fields(cast("Any", kind)):
        put = getattr(kind, column.name).__set__
        deque(map(put, made, columns.get(column.name) or _defaults(column, count)), maxlen=0)
    return tuple(made)


def _defaults(column: Field[Any], rows: int) -> list[Any]:
    if column.default is not MISSING:
        return [column.default] * rows
    if column.default_factory is not MISSING:
        return [column.default_factory() for _ in range(rows)]
    if rows:
        raise KeyError(column.name)
    return []


def _dense(values: list[Any], known: dict[Any, int] | None) -> list[Any] | dict[str, Any]:
    """A column; a long one as bytes (base64, little-endian): floats as they are, few values by their number.

    ``{"f8": BYTES}``, or ``{"table": [VALUE, …], "u1" or "u2": BYTES}``. Values of ``known`` are given by
    their numbers in it, and added to it.
    """

    def told(value: Any) -> Any:
        return value if known is None or value is None else known.setdefault(value, len(known))

    if len(values) >= DENSE_ROWS:
        if values.count(values[0]) == len(values) and not isinstance(values[0], dict):
            return {"table": [told(values[0])], "u1": _bytes("B", bytes(len(values)))}
        # Rows of one shape share their work: told apart by identity, each is compared but once.
        keys = list(map(id, values)) if known is not None and not isinstance(values[0], str) else values
        try:
            few = len(set(keys[:_PROBE])) < _PROBE // 2
            distinct = dict(zip(keys, values, strict=True)) if few else {}
        except TypeError:  # values that do not hash
            distinct = {}
        if 0 < len(distinct) <= 1 << 16:
            codes = {key: code for code, key in enumerate(distinct)}
            width = "u1" if len(codes) <= 1 << 8 else "u2"
            numbers = list(map(codes.__getitem__, keys))
            return {"table": list(map(told, distinct.values())), width: _bytes(_WIDTHS[width], numbers)}
        if set(map(type, values)) == {float}:
            return {"f8": _bytes("d", values)}
    return values if known is None else list(map(told, values))


def _listed(held: Any, known: Sequence[Any] | None) -> list[Any]:
    """The inverse of :func:`_dense`."""

    def value(number: Any) -> Any:
        return number if known is None or number is None else known[number]

    if not isinstance(held, dict):
        return held if known is None else list(map(value, held))
    if "f8" in held:
        return _numbers("d", held["f8"])
    width = "u1" if "u1" in held else "u2"
    table = list(map(value, held["table"]))
    return list(map(table.__getitem__, _numbers(_WIDTHS[width], held[width])))


def _bytes(typecode: str, values: Sequence[Any]) -> str:
    made = array(typecode, values)
    if sys.byteorder == "big":
        made.byteswap()
    return base64.b64encode(made.tobytes()).decode("ascii")


def _numbers(typecode: str, text: str) -> list[Any]:
    made = array(typecode)
    made.frombytes(base64.b64decode(text, validate=True))
    if sys.byteorder == "big":
        made.byteswap()
    return made.tolist()


def frame(columns: Mapping[str, list[Any]]) -> pandas.DataFrame:
    """Columns as a DataFrame. Half of a surrogate pair, which Arrow refuses, is spelt out."""
    import pandas

    return pandas.DataFrame({_spelt(name): list(map(_spelt, values)) for name, values in columns.items()})


def _spelt(value: Any) -> Any:
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-8", "backslashreplace").decode()


def dumps(value: Any, indent: int | None = None) -> bytes:
    """JSON of any value: numbers it has no word for as ``{"$float": "nan"}``, other things by their text."""
    separators = (",", ":") if indent is None else None
    try:
        text = json.dumps(value, allow_nan=False, separators=separators, indent=indent)
    except (TypeError, ValueError):
        text = json.dumps(plain(value), allow_nan=False, separators=separators, indent=indent)
    return text.encode("ascii")


def loads(data: bytes) -> Any:
    """The inverse of :func:`dumps`; ValueError or RecursionError where it is not JSON."""
    return json.loads(data, object_hook=_number)


def _tagged(number: float) -> Any:
    return {"$float": str(number)}


def plain(value: Any, not_finite: Callable[[float], Any] = _tagged) -> Any:
    """What JSON can hold; numbers that are not finite by ``not_finite``, other things by their text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else not_finite(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, not_finite) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, not_finite) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of numpy's or torch's
        return plain(value.item(), not_finite)
    return str(value)


def _number(data: dict[str, Any]) -> Any:
    return float(data["$float"]) if data.keys() == {"$float"} else data
