"""While a cell runs: what it has called so far and what the devices do, wherever widgets are shown.

One widget a kernel, told anew twice a second by a thread of its own. When the cell has ended, its place is
the run's: a widget would be dead when the notebook is opened again.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

from gimlet_lab.boundary import Ledger
from gimlet_lab.page import meter_rows
from gimlet_lab.profiling import Profile

#: A cell that has run for so long is worth a look; how often it is told.
AFTER_S, EVERY_S = 1.0, 0.5

#: What ``make ui`` builds of the page's own code; without it there is no live view.
_STATIC = Path(__file__).parent / "static"


@functools.cache
def _widget() -> Any:
    """The kernel's one widget; None where it cannot be shown."""
    try:
        import anywidget
        import traitlets
    except ImportError:
        return None
    try:
        script, style = ((_STATIC / f"live.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    except OSError:
        return None

    class LiveWidget(anywidget.AnyWidget):
        _esm = script
        _css = style
        seen = traitlets.Dict().tag(sync=True)

    return LiveWidget()


class Live:
    """The live view of one cell.

    Made before the cell is timed: the first one of a kernel imports what it needs.

    Parameters
    ----------
    shell : InteractiveShell
    """

    def __init__(self, shell: Any) -> None:
        self._publisher = shell.display_pub
        self._widget: Any = _widget() if hasattr(shell, "kernel") else None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        #: The name of its place below the cell, once it is there.
        self._place = ""

    def start(self, profile: Profile, ledger: Ledger) -> None:
        """Begin with this profile; where nothing can be shown, do nothing."""
        if self._widget is None:
            return
        clear = self._publisher.clear_output

        def cleared(wait: bool = False) -> None:
            self._ended.set()
            self._place = ""
            clear(wait)

        ledger.set(self._publisher, "clear_output", cleared)
        # What is shown from the thread belongs to the cell.
        run = functools.partial(contextvars.copy_context().run, self._run, profile)
        self._thread = threading.Thread(target=run, name="gimlet-live", daemon=True)
        self._thread.start()

    def end(self) -> str:
        """End. The name of its place, which is free now; empty where there is none."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._place:
            self._widget.seen = {}
            self._show({"text/plain": ""}, update=True)
        return self._place

    def _run(self, profile: Profile) -> None:
        sys.setprofile(None)  # threads started during a cell are listened to; this one is ours
        wait_s = AFTER_S
        # A front end that is gone is no failure of the cell.
        with contextlib.suppress(Exception):
            while not self._ended.wait(wait_s):
                wait_s = EVERY_S
                self._widget.seen = {"running": profile.glimpse(), "meters": meter_rows()}
                if not self._place:
                    self._place = f"gimlet-{uuid.uuid4()}"
                    view = {"version_major": 2, "version_minor": 0, "model_id": self._widget.model_id}
                    said = f"gimlet: {profile.name} is running"
                    self._show({"application/vnd.jupyter.widget-view+json": view, "text/plain": said})

    def _show(self, bundle: dict[str, Any], *, update: bool = False) -> None:
        self._publisher.publish(bundle, transient={"display_id": self._place}, update=update)
