"""Errors for people: one line that says what was wrong, where, and what to do.

Commands show the message of a :class:`GimletError` without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class GimletError(Exception):
    """Something the user can mend; its message is one line."""


class UsageError(GimletError, ValueError):
    """A command or an option that is not there, or not so."""


class UnknownNameError(GimletError, LookupError):
    """A device, run, target or backend that is not there.

    Examples
    --------
    >>> print(UnknownNameError("device", "h100-smx", ["h100-sxm", "t4"]))
    no device 'h100-smx'; did you mean 'h100-sxm'?
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(set(known))
        near = difflib.get_close_matches(name, names, n=8, cutoff=0.5)
        # Who types "h100" means one of its kinds, however close "mi100" is in letters.
        near = sorted(near, key=lambda one: not one.startswith(name))[:3]
        if near:
            hint = "did you mean " + " or ".join(repr(n) for n in near) + "?"
        elif names:
            shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            hint = f"there are: {shown}"
        else:
            hint = "there are none"
        super().__init__(f"no {kind} {name!r}; {hint}")
        self.near = near


class RunFileError(GimletError, ValueError):
    """A file that is not a whole run of a version this program reads."""


class StalePlanError(GimletError):
    """A plan that no longer fits the notebook or the fleet."""


class DryRunError(GimletError, RuntimeError):
    """What a run without data cannot do: it needs a tensor's values, or changes something outside."""


class InfeasibleError(GimletError):
    """No placement meets the limits.

    Attributes
    ----------
    solution : mapping
        The solver's answer; ``relax`` says by how much each limit would have to give.
    """

    def __init__(self, message: str, solution: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.solution = dict(solution or {})
