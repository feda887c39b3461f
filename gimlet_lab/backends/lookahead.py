"""Pure stages side by side: while one runs, those that the program calls next are started.

When a pure function is called, the source of its caller is read: as long as the statements behind it in
the same block are plain calls of pure functions, those whose arguments are there already are started on
their own workers. When the program comes to such a call with the very same arguments, the result is handed
over; if it never does, the result is dropped. So it is never wrong, only sometimes faster.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import linecache
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gimlet_lab.backends.base import PLACED

#: Values that are the same when they are equal: constants in two places of the source are two objects.
_CONSTANTS = (int, str, bytes, bool, float, complex, types.NoneType)


@dataclass(frozen=True)
class Ahead:
    """A call behind another one: names and constants only.

    Attributes
    ----------
    function : str
    args, kwargs
        Each argument as ``(name, None)`` or ``(None, constant)``.
    changed : frozenset of str
        Names that the statements in between assign.
    """

    function: str
    args: tuple[tuple[str | None, Any], ...]
    kwargs: tuple[tuple[str, tuple[str | None, Any]], ...]
    changed: frozenset[str]

    @property
    def names(self) -> list[str]:
        """The names its arguments are read from."""
        return [name for name, _ in (*self.args, *(value for _, value in self.kwargs)) if name is not None]


class Started:
    """A call that was started ahead."""

    def __init__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Callable[[list[tuple[str, str]]], Any]
    ) -> None:
        self.args = args
        self.kwargs = kwargs
        self.printed: list[tuple[str, str]] = []
        self._value: Any = None
        self._error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, name="gimlet ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call(self.printed)
        except BaseException as error:  # noqa: BLE001 - raised where the program calls
            self._error = error

    def result(self) -> Any:
        """Wait for it; what the call gave, or raise what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value

    def same(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether these are the very arguments it was started with."""
        return (
            len(args) == len(self.args)
            and kwargs.keys() == self.kwargs.keys()
            and all(map(_same, args, self.args))
            and all(_same(kwargs[name], value) for name, value in self.kwargs.items())
        )


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    # By their text, so that 0.0 is not -0.0.
    return type(one) is type(other) and isinstance(one, _CONSTANTS) and repr(one) == repr(other)


def behind(frame: types.FrameType) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Calls of pure functions that follow the one ``frame`` is making, and whose arguments are there already.

    Yields
    ------
    redirect, args, kwargs
        What redirects the function (see :class:`~gimlet_lab.backends.base.Placed`); its arguments as bound.
    """
    for call in _calls_behind(frame.f_code, frame.f_lasti):
        redirect = _pure(frame, call.function)
        if redirect is None or call.function in call.changed:
            return  # anything else may do anything
        if not call.changed.isdisjoint(call.names):
            continue
        try:
            args = [_value(frame, argument) for argument in call.args]
            kwargs = {name: _value(frame, argument) for name, argument in call.kwargs}
            bound = inspect.signature(redirect.original, follow_wrapped=False).bind(*args, **kwargs)
        except (NameError, TypeError, ValueError):
            continue
        bound.apply_defaults()
        yield redirect, bound.args, bound.kwargs


def _pure(frame: types.FrameType, name: str) -> Any:
    """The redirect of a pure function by its name in a frame; None for anything else."""
    try:
        function = _value(frame, (name, None))
    except NameError:
        return None
    placed = getattr(function, "__dict__", {}).get(PLACED)
    redirect = getattr(placed, "redirect", None)
    return redirect if redirect is not None and redirect.ahead else None


def _value(frame: types.FrameType, argument: tuple[str | None, Any]) -> Any:
    name, constant = argument
    if name is None:
        return constant
    code = frame.f_code
    if name in frame.f_locals:
        return frame.f_locals[name]
    if name in code.co_varnames or name in code.co_cellvars or name in code.co_freevars:
        raise NameError(name)
    for names in (frame.f_globals, frame.f_builtins):
        if name in names:
            return names[name]
    raise NameError(name)


@lru_cache(maxsize=4096)
def _calls_behind(code: types.CodeType, instruction: int) -> tuple[Ahead, ...]:
    """Plain calls in the statements behind the one that an instruction belongs to."""
    position = next(itertools.islice(code.co_positions(), instruction // 2, None), None)
    tree = _tree(code.co_filename)
    if tree is None or position is None or None in position:
        return ()
    for node in ast.walk(tree):
        for block in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            if not isinstance(block, list):
                continue
            for index, statement in enumerate(block):
                call = _plain(statement)
                if call is not None and _position(call[1]) == position:
                    return tuple(_follow(block[index:]))
    return ()


def _follow(statements: list[ast.stmt]) -> Iterator[Ahead]:
    changed: set[str] = set()
    for index, statement in enumerate(statements):
        plain = _plain(statement)
        if plain is None:
            return
        name, call, target = plain
        if index:
            arguments = [_argument(node) for node in call.args]
            keywords = [(given.arg, _argument(given.value)) for given in call.keywords]
            if None in arguments or any(word is None or value is None for word, value in keywords):
                return
            yield Ahead(
                name,
                tuple(argument for argument in arguments if argument is not None),
                tuple((word, value) for word, value in keywords if word is not None and value is not None),
                frozenset(changed),
            )
        if target is not None:
            changed.add(target)


def _plain(statement: ast.stmt) -> tuple[str, ast.Call, str | None] | None:
    """Match ``name = function(...)`` and ``function(...)``."""
    target = None
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        if not isinstance(statement.targets[0], ast.Name):
            return None
        target = statement.targets[0].id
    elif not isinstance(statement, ast.Expr):
        return None
    call = statement.value
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
        return call.func.id, call, target
    return None


def _argument(node: ast.expr) -> tuple[str | None, Any] | None:
    if isinstance(node, ast.Name):
        return node.id, None
    return (None, node.value) if isinstance(node, ast.Constant) else None


def _position(node: ast.expr) -> tuple[int, int | None, int, int | None]:
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


def _tree(filename: str) -> ast.Module | None:
    source = "".join(linecache.getlines(filename))
    try:
        return _parse(source) if source else None
    except (SyntaxError, ValueError, RecursionError):
        return None


@lru_cache(maxsize=64)
def _parse(source: str) -> ast.Module:
    return ast.parse(source)
