"""A function's code swapped for one that calls somebody else, while the function stays the object it is.

Identity, signature, defaults, source, closure and whether it is async stay: the new code has the old
one's parameters, free variables, file, line and names.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gimlet_lab.errors import GimletError

_DISPATCH = "<gimlet dispatch>"


def trampoline(function: types.FunctionType, dispatch: Callable[..., Any]) -> types.CodeType:
    """Make code for ``function`` that hands its arguments to ``dispatch`` and returns what that returns.

    Raises
    ------
    GimletError
        If the function is a generator: it would have to run here and there in turns.

    Examples
    --------
    >>> def add(a, b=1, *, c=0): return a + b + c
    >>> add.__code__ = trampoline(add, lambda *args, **kwargs: (args, kwargs))
    >>> add(2), str(inspect.signature(add))
    (((2, 1), {'c': 0}), '(a, b=1, *, c=0)')
    """
    code = function.__code__
    if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR):
        raise GimletError(f"{function.__qualname__} is a generator, which cannot run in another process")
    parameters, arguments = _parameters(code)
    coroutine = bool(code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE))
    name = code.co_name if code.co_name.isidentifier() else "function"
    lines = [
        # The free variables are parameters of a function around it, and named where they are never reached.
        f"def outer({', '.join(code.co_freevars)}):",
        f"  {'async ' if coroutine else ''}def {name}({parameters}):",
        f"    return {'await ' if coroutine else ''}{_DISPATCH!r}.__call__({arguments})",
        f"    ({', '.join(code.co_freevars)})",
    ]
    made = _nested(_nested(compile("\n".join(lines), code.co_filename, "exec")))
    if made.co_freevars != code.co_freevars:
        raise GimletError(
            f"{function.__qualname__} reads variables around it in a way that cannot be redirected"
        )
    return made.replace(
        co_consts=tuple(dispatch if constant == _DISPATCH else constant for constant in made.co_consts),
        co_firstlineno=code.co_firstlineno,
        co_name=code.co_name,
        co_qualname=code.co_qualname,
        co_flags=made.co_flags | code.co_flags & inspect.CO_ITERABLE_COROUTINE,
    )


def _nested(code: types.CodeType) -> types.CodeType:
    return next(constant for constant in code.co_consts if isinstance(constant, types.CodeType))


def _parameters(code: types.CodeType) -> tuple[str, str]:
    """The parameter list as source, and the argument list that hands all of it on."""
    names = iter(code.co_varnames)
    positional = [next(names) for _ in range(code.co_argcount)]
    keyword_only = [next(names) for _ in range(code.co_kwonlyargcount)]
    parameters, arguments = [*positional], [*positional]
    if code.co_posonlyargcount:
        parameters.insert(code.co_posonlyargcount, "/")
    if code.co_flags & inspect.CO_VARARGS:
        rest = f"*{next(names)}"
        parameters.append(rest)
        arguments.append(rest)
    elif keyword_only:
        parameters.append("*")
    parameters += keyword_only
    arguments += [f"{name}={name}" for name in keyword_only]
    if code.co_flags & inspect.CO_VARKEYWORDS:
        rest = f"**{next(names)}"
        parameters.append(rest)
        arguments.append(rest)
    return ", ".join(parameters), ", ".join(arguments)


def forget_frames(error: BaseException) -> None:
    """Take our frames off the top of a traceback: the user sees their program as it would be without us.

    To be followed by a bare ``raise``, which adds none.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    error.__traceback__ = trace


_OURS = str(Path(__file__).parent)


def twin(function: types.FunctionType) -> types.FunctionType:
    """Make the same function once more, to be called while the first is redirected."""
    copy = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__qualname__ = function.__qualname__
    copy.__module__ = function.__module__
    copy.__doc__ = function.__doc__
    copy.__dict__.update(function.__dict__)
    return copy
