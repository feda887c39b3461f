"""Progress for whatever takes over two seconds: a bar that stays away until then and leaves no trace."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, NoReturn, Protocol

#: ``report(fraction_done, what)``; steps take one and never know how it is shown.
Progress = Callable[[float, str], None]

AFTER_S = 2.0
EVERY_S = 0.25


def silent(_fraction: float, _what: str) -> None:
    """Show nothing."""


class _Shown(Protocol):
    def update(self, fraction: float, what: str) -> None: ...

    def close(self) -> None: ...


class _Terminal:
    def __init__(self, title: str) -> None:
        from tqdm import tqdm

        shape = "{desc}: {percentage:3.0f}% |{bar}|{postfix}"
        self._bar: tqdm[NoReturn] = tqdm(total=100, desc=title, leave=False, bar_format=shape)

    def update(self, fraction: float, what: str) -> None:
        self._bar.n = round(100 * fraction)
        self._bar.set_postfix_str(what)

    def close(self) -> None:
        self._bar.close()


class _Notebook:
    """A display updated in place: a stream would be saved with the notebook, a widget be dead."""

    def __init__(self, title: str) -> None:
        from IPython.display import display

        self._title = title
        self._handle: Any = display({"text/plain": title}, raw=True, display_id=True)

    def update(self, fraction: float, what: str) -> None:
        text = f"{self._title}: {fraction:.0%} {what}"
        html = f"<progress max='1' value='{fraction:.2f}'></progress> <small>{escape(text)}</small>"
        self._handle.update({"text/plain": text, "text/html": html}, raw=True)

    def close(self) -> None:
        self._handle.update({"text/plain": "", "text/html": ""}, raw=True)


def _in_kernel() -> bool:
    find = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return hasattr(find(), "kernel")


@contextmanager
def bar(
    title: str, clock: Callable[[], float] = time.monotonic, after_s: float = AFTER_S
) -> Iterator[Progress]:
    """Show a progress bar in the notebook or the terminal once the work has lasted ``after_s`` seconds."""
    started = clock()
    shown: _Shown | None = None
    last = started

    def report(fraction: float, what: str) -> None:
        nonlocal shown, last
        now = clock()
        if shown is None:
            if now - started < after_s:
                return
            shown = _Notebook(title) if _in_kernel() else _Terminal(title)
        elif now - last < EVERY_S:
            return
        last = now
        shown.update(min(max(fraction, 0.0), 1.0), what)

    try:
        yield report
    finally:
        if shown is not None:
            shown.close()
