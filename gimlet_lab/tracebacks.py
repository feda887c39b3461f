"""A user's traceback without our frames: it reads as it would have read without us.

Capture's callbacks run between any two of the user's bytecodes: Ctrl-C may arrive in one. An operator that
fails does so below the callback that looks at it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import gimlet_lab
from gimlet_lab.boundary import Ledger

_OURS = str(Path(gimlet_lab.__file__).parent / "capture")

#: What torch does on behalf of a dispatch mode, and only then.
_BELOW_OURS = ("torch/_ops.py", "torch/utils/_python_dispatch.py", "torch/overrides.py")


def clean(error: BaseException | None) -> None:
    """Take our frames out of an exception's traceback and out of those of its causes, in place."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        # The first frame is that which caught it: IPython's, or the user's.
        if error.__traceback__ is not None:
            _unlink(error.__traceback__)
        waiting += [error.__cause__, error.__context__]
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions


def _unlink(entry: TracebackType | None) -> None:
    below = False
    while entry is not None:
        following = entry.tb_next
        while following is not None:
            file = following.tb_frame.f_code.co_filename
            below = file.startswith(_OURS) or (below and file.endswith(_BELOW_OURS))
            if not below:
                break
            following = following.tb_next
        entry.tb_next = following
        entry = following


def watch(shell: Any, ledger: Ledger) -> None:
    """Clean what a shell is about to show, until the ledger is undone."""
    shown: Callable[..., list[str]] = shell.InteractiveTB.structured_traceback

    def structured_traceback(etype: Any, evalue: Any, *rest: Any, **options: Any) -> list[str]:
        if isinstance(evalue, BaseException):
            clean(evalue)
        return shown(etype, evalue, *rest, **options)

    ledger.set(shell.InteractiveTB, "structured_traceback", structured_traceback)
