"""Where our code touches the user's objects: stage ↔ live object, and the ledger of every interception.

Capture watches and backends redirect only through a :class:`Ledger`, so that everything is undone in
one place.
"""

from __future__ import annotations

import ast
import difflib
import types
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

#: Where ``@gimlet.stage`` leaves its declaration on a function.
DECLARATION = "__gimlet_stage__"

_ABSENT = object()


class Ledger:
    """Interceptions in the order they were made, undone in the reverse order, once.

    Examples
    --------
    >>> class Thing: pass
    >>> thing, ledger = Thing(), Ledger()
    >>> ledger.set(thing, "colour", "red")
    >>> ledger.undo()
    []
    >>> hasattr(thing, "colour")
    False
    """

    def __init__(self) -> None:
        self._entries: list[tuple[str, Callable[[], object]]] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> tuple[str, ...]:
        """What is intercepted, one line each, the oldest first."""
        return tuple(what for what, _ in self._entries)

    def set(self, owner: object, name: str, value: object) -> None:
        """Set an attribute in the owner's own dictionary; undoing restores or removes it."""
        own: Mapping[str, object] = getattr(owner, "__dict__", {})
        # An attribute found on the class must not become one of the instance when undone; slots,
        # __code__ and other descriptors are not in __dict__ but are the object's own all the same.
        descriptor = hasattr(type(owner), name) and hasattr(getattr(type(owner), name), "__set__")
        before = getattr(owner, name) if descriptor else own.get(name, _ABSENT)
        setattr(owner, name, value)

        def undo() -> None:
            if before is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

        self.add(f"{type(owner).__name__}.{name}", undo)

    def set_item(self, mapping: MutableMapping[Any, Any], key: object, value: object) -> None:
        """Set an item of a mapping; undoing restores or removes it."""
        before = mapping.get(key, _ABSENT)
        mapping[key] = value

        def undo() -> None:
            if before is _ABSENT:
                mapping.pop(key, None)
            else:
                mapping[key] = before

        self.add(f"[{key!r}]", undo)

    def add(self, what: str, undo: Callable[[], object]) -> None:
        """Remember how to undo something that was just done."""
        self._entries.append((what, undo))

    def undo(self) -> list[Exception]:
        """Undo everything; an entry that fails does not keep the others from being undone.

        Returns
        -------
        list of Exception
            What failed.
        """
        failures: list[Exception] = []
        while self._entries:
            _, undo = self._entries.pop()
            try:
                undo()
            except Exception as error:  # noqa: BLE001 - reported by the caller, after the rest is undone
                failures.append(error)
        return failures


def stage(
    function: F | None = None, *, name: str | None = None, pure: bool = False, idempotent: bool = True
) -> Any:
    """Name a function of the notebook as a stage and declare what may be done with it.

    The function itself is returned, not a wrapper: identity, signature and source stay.

    Parameters
    ----------
    name : str, optional
        The stage's name; the function's own where left out.
    pure : bool
        Its result depends on its arguments only and it changes nothing: it may run at the same
        time as other stages.
    idempotent : bool
        It may be run again after a failure.

    Examples
    --------
    >>> @stage(pure=True)
    ... def double(x): return 2 * x
    >>> double(2)
    4
    """

    def declare(target: F) -> F:
        setattr(
            target, DECLARATION, {"name": name or target.__name__, "pure": pure, "idempotent": idempotent}
        )
        return target

    return declare if function is None else declare(function)


def declaration(function: object) -> dict[str, Any] | None:
    """What ``@gimlet.stage`` said of a function; None where it said nothing."""
    return getattr(function, DECLARATION, None)


def locate(thing: object, namespace: Mapping[str, Any], depth: int = 2) -> str | None:
    """Find the expression by which the notebook reaches an object.

    Names first, then attributes, items of lists, tuples and dictionaries, at most ``depth`` steps deep.

    Returns
    -------
    str or None
        ``llm``, ``pipe.model``, ``models[0]``; None where nothing reaches it.
    """
    return next((expression for expression, value in reachable(namespace, depth) if value is thing), None)


def reachable(namespace: Mapping[str, Any], depth: int = 2) -> Iterator[tuple[str, object]]:
    """Everything that :func:`locate` finds, by its expression: names first, then a step deeper each time."""
    level: list[tuple[str, object]] = [
        (name, value) for name, value in list(namespace.items()) if not name.startswith("_")
    ]
    seen = {id(namespace)}
    for step in range(depth + 1):
        yield from level
        if step == depth:
            return
        deeper: list[tuple[str, object]] = []
        for expression, value in level:
            if id(value) in seen or isinstance(value, types.ModuleType | type):
                continue
            seen.add(id(value))
            deeper.extend((expression + suffix, child) for suffix, child in _children(value))
        level = deeper


def _children(value: object, limit: int = 200) -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return [
            (f"[{key!r}]", item) for key, item in list(value.items())[:limit] if isinstance(key, str | int)
        ]
    if isinstance(value, list | tuple):
        return [(f"[{index}]", item) for index, item in enumerate(value[:limit])]
    try:
        own = vars(value)
    except TypeError:
        return []
    found = [(f".{name}", item) for name, item in list(own.items())[:limit] if name.isidentifier()]
    # torch keeps submodules apart from plain attributes, reachable by the same dot.
    modules = own.get("_modules")
    if isinstance(modules, dict):
        found += [(f".{name}", item) for name, item in modules.items() if str(name).isidentifier()]
    return found


def resolve(target: str, namespace: Mapping[str, Any]) -> object:
    """The live object that a target expression names: names, attributes, constant indices and slices only.

    Raises
    ------
    LookupError
        If it is not there; the message has the nearest name.
    """
    try:
        return _walk(ast.parse(target, mode="eval").body, namespace)
    except (SyntaxError, AttributeError, KeyError, IndexError, TypeError, ValueError):
        root = target.split(".", maxsplit=1)[0].split("[", maxsplit=1)[0]
        near = difflib.get_close_matches(root, [n for n in namespace if not n.startswith("_")], n=1)
        hint = f"; did you mean {near[0]!r}?" if near and near[0] != root else ""
        raise LookupError(f"this notebook has no {target!r}{hint}") from None


def _walk(node: ast.expr, namespace: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return namespace[node.id]
    if isinstance(node, ast.Attribute):
        return getattr(_walk(node.value, namespace), node.attr)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return _walk(node.value, namespace)[node.slice.value]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice) and node.slice.step is None:
        ends = [
            None if end is None else ast.literal_eval(end) for end in (node.slice.lower, node.slice.upper)
        ]
        return _walk(node.value, namespace)[slice(*ends)]
    raise ValueError(ast.dump(node))
