"""The JSON form of problems: its schema, and a checker that names the place.

Every complaint is a :class:`~gimlet_lab.errors.UsageError` (a ``ValueError``) of one line that begins with
the place: ``stages[3].options.gpu9: no such device``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gimlet_lab.errors import UsageError

PROBLEM = "gimlet.problem/1"
SOLUTION = "gimlet.solution/1"

#: Products of two numbers must stay finite; what only limits may be as large as it likes.
_MOST = 1e30

_LIMIT = {"type": ["number", "null"], "minimum": 0}
_NUMBER = {**_LIMIT, "maximum": _MOST}
_FLAG = {"type": ["boolean", "null"]}
_NAME = {"type": "string", "minLength": 1}
_NAMES = {"type": ["array", "null"], "items": _NAME}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


_OPTION = _object(
    {
        "seconds": {"type": "number", "minimum": 0, "maximum": _MOST},
        "seconds_high": _NUMBER,
        "memory_bytes": _NUMBER,
        "usd": _NUMBER,
        "joules": _NUMBER,
        "load": _NUMBER,
        "devices_used": {"type": "integer", "minimum": 1},
    },
    "seconds",
)

#: JSON schema (draft 2020-12) of a problem.
JSON_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": PROBLEM,
    "type": "object",
    **_object(
        {
            "schema": {"const": PROBLEM},
            "objective": {"enum": ["latency", "throughput", "cost", "energy"]},
            "devices": {
                "type": "array",
                "items": _object(
                    {
                        "id": _NAME,
                        "memory_bytes": _LIMIT,
                        "usd_per_hour": _NUMBER,
                        "max_count": {"type": ["integer", "null"], "minimum": 0},
                        "host": _FLAG,
                        "parallel": _FLAG,
                        "resources": _NAMES,
                    },
                    "id",
                ),
            },
            "stages": {
                "type": "array",
                "items": _object(
                    {
                        "id": _NAME,
                        "calls": _NUMBER,
                        "colocate": {"type": ["string", "null"]},
                        "weights": {"type": ["object", "null"], "additionalProperties": _NUMBER},
                        "options": {
                            "type": "object",
                            "minProperties": 1,
                            "additionalProperties": _OPTION,
                        },
                        "pin": _NAMES,
                        "forbid": _NAMES,
                        "backward": _FLAG,
                    },
                    "id",
                    "options",
                ),
            },
            "edges": {
                "type": ["array", "null"],
                "items": _object(
                    {
                        "from": _NAME,
                        "to": _NAME,
                        "tensor": {"type": ["string", "null"]},
                        "bytes": _NUMBER,
                        "seconds": _NUMBER,
                        "calls": _NUMBER,
                    },
                    "from",
                    "to",
                ),
            },
            "links": {
                "type": ["array", "null"],
                "items": _object(
                    {
                        "from": _NAME,
                        "to": _NAME,
                        "bytes_per_s": _LIMIT,
                        "latency_s": _NUMBER,
                        "seconds": _NUMBER,
                        "usd": _NUMBER,
                        "exclusive": _FLAG,
                    },
                    "from",
                    "to",
                ),
            },
            "transfer": {"enum": ["direct", "host"]},
            "contiguous": _FLAG,
            "robust": _FLAG,
            "limits": {
                **_object(
                    {
                        "latency_s": _LIMIT,
                        "usd": _LIMIT,
                        "usd_per_hour": _LIMIT,
                        "paths": {
                            "type": ["array", "null"],
                            "items": _object(
                                {"from": _NAME, "to": _NAME, "seconds": {"type": "number", "minimum": 0}},
                                "from",
                                "to",
                                "seconds",
                            ),
                        },
                    }
                ),
                "type": ["object", "null"],
            },
            "time_limit_s": _LIMIT,
            "gap": _NUMBER,
        },
        "objective",
        "devices",
        "stages",
    ),
}


def check(value: Any, rule: Mapping[str, Any], path: tuple[object, ...] = ()) -> None:
    """Check a value by a JSON schema of the few keywords used here, in one pass over a million edges too.

    Two things a JSON schema does not say are said as well: numbers are finite, and a name that is nearly
    one of ours is a slip (other unknown names are welcome).

    Raises
    ------
    UsageError
        Names the first place that is wrong.
    """
    allowed = rule.get("type")
    if allowed is not None:
        names = (allowed,) if isinstance(allowed, str) else allowed
        if not any(_IS[name](value) for name in names):
            what = " or ".join(name for name in names if name != "null")
            raise UsageError(f"{place(path)}: {_shown(value)} is not {_ARTICLE.get(what[0], 'a')} {what}")
    if "enum" in rule and value not in rule["enum"]:
        raise UsageError(f"{place(path)}: {_shown(value)} is none of {', '.join(rule['enum'])}")
    if "const" in rule and value != rule["const"]:
        raise UsageError(f"{place(path)}: {_shown(value)} is not {rule['const']!r}")
    if isinstance(value, Mapping):
        _check_object(value, rule, path)
    elif isinstance(value, list | tuple):
        items = rule.get("items", {})
        fine = _flat(items)
        for index, child in enumerate(value):
            # A million edges are seen to be right at a glance; others are looked at, to say what is wrong.
            if not (fine and fine(child)):
                check(child, items, (*path, index))
    elif isinstance(value, str):
        if len(value) < rule.get("minLength", 0):
            raise UsageError(f"{place(path)}: is empty")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UsageError(f"{place(path)}: {value} is not a finite number")
        if value < rule.get("minimum", value):
            raise UsageError(f"{place(path)}: {value} is below {rule['minimum']}")
        if value > rule.get("maximum", value):
            raise UsageError(f"{place(path)}: {value} is above {rule['maximum']:g}")


def _flat(rule: Mapping[str, Any]) -> Callable[[object], bool] | None:
    """A quick test that says yes only to what :func:`check` lets pass: plain objects of names and numbers."""
    known, required = rule.get("properties"), set(rule.get("required", ()))
    if known is None or not all(_is_plain(one) for one in known.values()):
        return None
    texts = {name for name, one in known.items() if "string" in one["type"]}
    tests = {
        name: (one.get("minimum", -math.inf), one.get("maximum", math.inf)) for name, one in known.items()
    }

    def fine(value: object) -> bool:
        if type(value) is not dict or not required <= value.keys():
            return False
        for name, child in value.items():
            if name not in tests:
                return False
            if name in texts:
                if type(child) is not str or not child:
                    return False
            elif type(child) is float or type(child) is int:
                low, high = tests[name]
                if not (low <= child <= high and child < math.inf):
                    return False
            else:
                return False
        return True

    return fine


def _is_plain(rule: Mapping[str, Any]) -> bool:
    names = rule.get("type")
    kinds = {names} if isinstance(names, str) else set(names or ())
    return kinds - {"null"} in ({"string"}, {"number"})


def _check_object(value: Mapping[str, Any], rule: Mapping[str, Any], path: tuple[object, ...]) -> None:
    for name in rule.get("required", ()):
        if name not in value:
            raise UsageError(f"{place(path)}: {name} is missing{near(name, value)}")
    if len(value) < rule.get("minProperties", 0):
        raise UsageError(f"{place(path)}: no option: the stage can run nowhere")
    known, others = rule.get("properties", {}), rule.get("additionalProperties")
    for name, child in value.items():
        if name in known:
            check(child, known[name], (*path, name))
        elif others is not None:
            check(child, others, (*path, name))
        elif close := difflib.get_close_matches(str(name), known, n=1, cutoff=0.85):
            raise UsageError(f"{place((*path, name))}: no such field; did you mean {close[0]!r}?")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"


_ARTICLE = {"a": "an", "i": "an", "o": "an"}
_IS: dict[str, Callable[[object], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list | tuple),
    "object": lambda value: isinstance(value, Mapping),
}


def place(path: Iterable[object]) -> str:
    """A path into the problem as a person writes it: ``stages[3].options.gpu9``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text or "problem"


def near(name: str, known: Iterable[str]) -> str:
    """The end of a message: the nearest known name, where one is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
