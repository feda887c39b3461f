"""The user's cell: an input transformer and two execution events, nothing else.

``%%gimlet`` becomes a comment in its place, so that everything else about the cell stays as it is; the events
start and end a profile around it.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from asyncio import CancelledError
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gimlet_lab import tracebacks
from gimlet_lab.boundary import Ledger
from gimlet_lab.errors import GimletError
from gimlet_lab.live import Live
from gimlet_lab.model import Run
from gimlet_lab.notebook import Notebook
from gimlet_lab.profiling import Profile, cell_files
from gimlet_lab.repetition import Repeater

_MARK = re.compile(r"(\s*)%%gimlet(?=\s|$)(.*)", re.DOTALL)

#: Reads the words after ``%%gimlet``; raises GimletError.
ReadOptions = Callable[[str], Namespace]


def _first_code(lines: list[str], start: int = 0) -> int:
    """Index of the first line that is neither blank nor a comment; ``len(lines)`` if there is none."""
    indices = (
        i for i in range(start, len(lines)) if lines[i].strip() and not lines[i].lstrip().startswith("#")
    )
    return next(indices, len(lines))


def find_request(cell: str) -> str | None:
    r"""The words after ``%%gimlet`` where that is what a cell begins with.

    Examples
    --------
    >>> find_request("# a note\n\n%%gimlet --name rag\nx = 1")
    '--name rag'
    >>> find_request("%%gimlet?") is None
    True
    """
    lines = cell.splitlines(keepends=True)
    index = _first_code(lines)
    match = _MARK.match(lines[index]) if index < len(lines) else None
    return match[2].strip() if match else None


def misplaced_below(cell: str) -> str | None:
    r"""The other cell magic that stands above ``%%gimlet``, where one does.

    Examples
    --------
    >>> misplaced_below("%%time\n%%gimlet\nx = 1")
    '%%time'
    """
    lines = cell.splitlines(keepends=True)
    index = _first_code(lines)
    if index == len(lines) or not lines[index].startswith("%%") or _MARK.match(lines[index]):
        return None
    below = _first_code(lines, index + 1)
    while below < len(lines) and lines[below].startswith("%%") and not _MARK.match(lines[below]):
        below = _first_code(lines, below + 1)
    return lines[index].split()[0] if below < len(lines) and _MARK.match(lines[below]) else None


class Transformer:
    """Turns a valid ``%%gimlet`` line into a comment in the same place. Pure: same lines in, same lines out.

    A line with an error in it stays a magic: the cell then becomes one call of ``%%gimlet``, which says
    what is wrong, and nothing of the cell runs.
    """

    #: IPython leaves such transformers out when it asks whether a cell is complete, and so takes the cell for
    #: what it looks like, a cell magic: in a terminal Enter after ``%%gimlet`` goes on to the next line.
    has_side_effects = True

    def __init__(self, read_options: ReadOptions) -> None:
        self._read_options = read_options

    def __call__(self, lines: list[str]) -> list[str]:
        """Transform the lines of a cell."""
        from IPython.core.inputtransformer2 import cell_magic

        index = _first_code(lines)
        match = _MARK.match(lines[index]) if index < len(lines) else None
        if match is None:
            return lines
        above, line, below = lines[:index], lines[index], lines[index + 1 :]
        try:
            self._read_options(match[2])
        except GimletError:
            return [*above, *cell_magic([line.lstrip(), *below])]
        indent = match[1]
        comment = f"{indent}# {line[len(indent) :]}"
        # IPython takes a cell magic in the first line only; the one below ours is meant as that.
        other = _first_code(below)
        if other < len(below) and below[other].startswith("%%"):
            below = [*below[:other], *cell_magic(below[other:])]
        return [*above, comment, *below]


@dataclass(frozen=True, slots=True)
class _Session:
    """A profile in progress and the cell it belongs to."""

    profile: Profile
    cell: str
    options: Namespace
    ledger: Ledger
    live: Live | None


class CellWatch:
    """Profiles the cells of one shell that begin with ``%%gimlet``.

    Parameters
    ----------
    shell : InteractiveShell
    notebook : Notebook
        Gets the runs.
    read_options : callable
        Reads the words after ``%%gimlet``.
    show : callable
        Shows a run below its cell: in the place of this name, or in a new one where that is empty.
    """

    def __init__(
        self, shell: Any, notebook: Notebook, read_options: ReadOptions, show: Callable[[Run, str], None]
    ) -> None:
        self._shell = shell
        self._notebook = notebook
        self._read_options = read_options
        self._show = show
        self._transformer = Transformer(read_options)
        self._session: _Session | None = None
        self._misplaced: str | None = None
        self._armed = False
        self._removed = False

    def install(self) -> None:
        """Begin to watch."""
        self._shell.input_transformers_cleanup.insert(0, self._transformer)
        self._shell.events.register("pre_run_cell", self._before)
        self._shell.events.register("post_run_cell", self._after)

    def arm(self) -> None:
        """Profile the next cell as if it began with ``%%gimlet``."""
        self._armed = True

    def remove(self) -> None:
        """Stop watching; a cell that is being profiled right now is still profiled to its end."""
        self._removed = True
        self._shell.input_transformers_cleanup.remove(self._transformer)
        self._shell.events.unregister("pre_run_cell", self._before)
        if self._session is None:
            self._shell.events.unregister("post_run_cell", self._after)

    def _before(self, info: Any) -> None:
        # A nested run_cell fires the events too: the cell that began the profile is the one that ends it.
        if self._session is not None:
            return
        cell = info.raw_cell
        if self._misplaced is None:
            above = misplaced_below(cell)
            if above is not None:
                self._misplaced = cell
                _say(f"%%gimlet works above other cell magics, not below {above}: this cell is not profiled")
        request = None if self._misplaced is not None else find_request(cell)
        if request is None and self._armed:
            request = ""
        self._armed = False
        if request is None:
            return
        try:
            options = self._read_options(request)
        except GimletError:
            return  # the cell says so itself, see Transformer
        settings = self._notebook.settings
        profile = Profile(
            options.name or f"cell-{self._shell.execution_count}",
            self._notebook.namespace,
            cell_files(),
            exact=options.exact or settings.exact,
            stacks=options.stacks or settings.stacks,
            native=options.native or settings.native,
            text=cell if options.keep_text or settings.keep_text else None,
            dry=options.dry,
        )
        live = None if self._is_quiet(options) or options.dry or not settings.live else Live(self._shell)
        try:
            profile.start()
        except Exception as error:  # noqa: BLE001 - the user's cell runs all the same
            _say(f"this cell is not profiled: {error}")
        else:
            ledger = Ledger()
            self._session = _Session(profile, cell, options, ledger, live)
            tracebacks.watch(self._shell, ledger)
            if options.repeat:
                self._repeat(options.repeat, ledger)
            if live is not None:
                live.start(profile, ledger)

    def _is_quiet(self, options: Namespace) -> bool:
        return bool(options.quiet or self._notebook.settings.quiet)

    def _repeat(self, count: int, ledger: Ledger) -> None:
        """Have the body run more often, this once."""
        repeater, transformers = Repeater(count), self._shell.ast_transformers
        transformers.append(repeater)
        ledger.add("ast_transformers", lambda: transformers.remove(repeater))

    def _after(self, result: Any) -> None:
        # Without a result the cell was cancelled; identity, as an equal text may be nested in the cell.
        cell = None if result is None else result.info.raw_cell
        if self._misplaced is not None and (cell is None or cell is self._misplaced):
            self._misplaced = None
        session = self._session
        if (
            session is not None
            and os.getpid() == session.profile.pid
            and (cell is None or cell is session.cell)
        ):
            self._session = None
            before = None if result is None else result.error_before_exec
            during = CancelledError() if result is None else result.error_in_exec
            self._finish(session, during if before is None else before, ran=before is None)
            if self._removed:
                self._shell.events.unregister("post_run_cell", self._after)
        if self._session is None:
            self._refresh()

    def _finish(self, session: _Session, error: BaseException | None, *, ran: bool) -> None:
        session.ledger.undo()
        place = "" if session.live is None else session.live.end()
        try:
            run = session.profile.finish(error)
            if run is None:
                return
            if session.options.output:
                self._notebook.namespace[session.options.output] = run
            self._notebook.add_run(run)
            if ran and not self._is_quiet(session.options):
                self._show(run, place)
            self._notebook.keep(run)
        except GimletError as failure:
            _say(str(failure))
        except (Exception, KeyboardInterrupt) as failure:  # noqa: BLE001 - the user's cell is over and done
            _say(f"the profile of this cell is incomplete: {str(failure) or type(failure).__name__}")

    def _refresh(self) -> None:
        try:
            for line in self._notebook.refresh():
                _say(line)
        except Exception as failure:  # noqa: BLE001 - likewise
            _say(f"the plan in force could not follow this cell: {failure}")


def _say(line: str) -> None:
    print(f"gimlet: {line}", file=sys.stderr)
