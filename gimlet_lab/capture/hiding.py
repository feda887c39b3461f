"""Staying out of sight: of torch.compile, and of the user's tracebacks."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any


def hide_from_dynamo(torch: Any, function: Callable[..., Any], *, deep: bool) -> None:
    """Keep torch.compile off a function of ours (``deep``: and what it calls), where it can be told."""
    try:
        # What torch._dynamo.disable does, without the seconds that importing dynamo takes.
        core: Any = torch._C._dynamo.eval_frame  # noqa: SLF001 - see above
        action = core._FrameAction  # noqa: SLF001 - see above
        strategy = core._FrameExecStrategy(action.SKIP, action.SKIP if deep else action.DEFAULT)  # noqa: SLF001 - see above
        core.set_code_exec_strategy(function.__code__, strategy)
    except AttributeError:  # an older torch: dynamo's own list of files it skips must do
        return


def forget_frames(error: BaseException) -> None:
    """Take our frames off the top of a traceback: the user sees their cell as it would be without us."""
    traceback = error.__traceback__
    while traceback is not None and _is_ours(traceback):
        traceback = traceback.tb_next
    error.__traceback__ = traceback


def _is_ours(traceback: TracebackType) -> bool:
    names = traceback.tb_frame.f_globals
    # Operators are called a second time by us, from Python.
    return names.get("__package__") == __package__ or names.get("__name__") == "torch._ops"
