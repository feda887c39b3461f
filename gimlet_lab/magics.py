"""``%gimlet`` and ``%%gimlet``: thin over :mod:`gimlet_lab.commands` and :mod:`gimlet_lab.cell`."""

from __future__ import annotations

from typing import Any

from gimlet_lab import commands, notebook
from gimlet_lab.actions import Answer, view
from gimlet_lab.cell import CellWatch
from gimlet_lab.errors import GimletError
from gimlet_lab.model import Run
from gimlet_lab.page import Page
from gimlet_lab.parser import split

_watches: dict[int, tuple[CellWatch, Page]] = {}


def load(shell: Any) -> None:
    """Add the magics, their completion and the watch over cells to a shell, once."""
    from IPython.core.magic import no_var_expand

    if id(shell) in _watches:
        return
    held = notebook.of(shell)
    parser = commands.parser("%gimlet")

    @no_var_expand
    def gimlet(line: str) -> None:
        show(_answer(line, held, shell))

    @no_var_expand
    def gimlet_cell(line: str, cell: str) -> None:
        _run_cell(shell, line, cell)

    gimlet.__doc__ = parser.document()
    gimlet_cell.__doc__ = parser.document("profile")
    shell.register_magic_function(gimlet, "line", "gimlet")
    shell.register_magic_function(gimlet_cell, "cell", "gimlet")

    def complete(_shell: Any, event: Any) -> list[str]:
        return commands.complete(event.line, held)

    shell.set_hook("complete_command", complete, re_key=r"%%?gimlet")
    watch = CellWatch(shell, held, commands.read_cell_options, _show_run)
    watch.install()
    page = Page(held, watch.arm)
    page.install(shell)
    # After the watch: then the run of the cell is there.
    shell.events.register("post_run_cell", page.ran)
    _watches[id(shell)] = watch, page


def unload(shell: Any) -> None:
    """Take everything that :func:`load` added away; what the notebook holds is there again after a load."""
    found = _watches.pop(id(shell), None)
    if found is None:
        return
    watch, page = found
    watch.remove()
    shell.events.unregister("post_run_cell", page.ran)
    page.remove()
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("gimlet", None)
    hooks = shell.strdispatchers["complete_command"].regexs
    for key in [key for key in hooks if key.pattern == r"%%?gimlet"]:
        del hooks[key]


def show(answer: Answer, place: str = "") -> None:
    """Show an answer below the cell: pictures and tables where it has any, else its text.

    ``place``: the name of a display that is there already; a new one where it is empty.
    """
    if answer.bundle is None:
        text = answer.text()
        if text:
            print(text)
        return
    from IPython.display import display, update_display

    if place:
        update_display(answer.bundle(), display_id=place, raw=True)
    else:
        display(answer.bundle(), raw=True)


def _answer(line: str, held: notebook.Notebook, shell: Any) -> Answer:
    from IPython.core.error import UsageError

    try:
        answer, variable = commands.run_line(split(line), held)
    except GimletError as error:
        raise UsageError(str(error)) from None
    if variable:
        shell.user_ns[variable] = answer.value
    return answer


def _run_cell(shell: Any, line: str, cell: str) -> None:
    """``%%gimlet`` as a call: a line with an error in it, or ``run_cell_magic('gimlet', …)``."""
    import asyncio

    from IPython.core.error import UsageError

    try:
        commands.read_cell_options(line)
    except GimletError as error:
        raise UsageError(str(error)) from None
    text = f"%%gimlet {line}\n{cell}"
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        if shell.should_run_async(text, transformed_cell=shell.transform_cell(text)):
            raise UsageError(
                "gimlet: a cell with await cannot be run by a call; write %%gimlet into its first line"
            )
    shell.run_cell(text).raise_error()


def _show_run(run: Run, place: str) -> None:
    show(view(run, "summary"), place)
