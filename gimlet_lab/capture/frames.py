"""Frames of call stacks: found in this process as it runs, named so that they mean something to the user."""

from __future__ import annotations

import os
import sys
import threading
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from gimlet_lab.model.stacks import Frame

#: Distinct places in stacks that are told apart, and frames of one stack that are looked at.
_MAX_PLACES, _DEEPEST = 200_000, 2_000

_OURS = str(Path(__file__).parents[1]) + os.sep

#: What runs cells, and magics in them: no work of the user's.
_SHELL = ("IPython/", "ipykernel/")

#: What is above a thread's own work.
_BOOTSTRAP = frozenset(("_bootstrap", "_bootstrap_inner", "run"))


class Raw(NamedTuple):
    """One frame as it was found."""

    function: str
    file: str
    line: int | None


class LiveStacks:
    """Stacks of this process, kept by code and position while it runs, and read when it has ended.

    Examples
    --------
    >>> import sys
    >>> stacks = LiveStacks()
    >>> node = stacks.add(sys._getframe())
    >>> stacks.read(node)[-1].function
    '<module>'
    """

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int, int], int] = {}
        self._places: list[tuple[int, types.CodeType, int]] = []  # holds the code: its number stays its own

    def add(self, frame: types.FrameType | None) -> int:
        """The number of a stack by its innermost frame. Called a hundred times a second: no name is made."""
        chain: list[tuple[types.CodeType, int]] = []
        while frame is not None and len(chain) < _DEEPEST:
            chain.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back
        node = -1
        for code, at in reversed(chain):
            key = (node, id(code), at)  # a code's own hash is slow
            known = self._nodes.get(key)
            if known is None:
                if len(self._places) >= _MAX_PLACES:
                    break
                known = self._nodes[key] = len(self._places)
                self._places.append((node, code, at))
            node = known
        return node

    def read(self, node: int) -> list[Raw]:
        """The frames of a stack, the outermost first."""
        found = []
        while node >= 0:
            node, code, at = self._places[node]
            found.append(Raw(code.co_qualname, code.co_filename, _line(code, at)))
        return found[::-1]


def _line(code: types.CodeType, at: int) -> int | None:
    return next((line for start, end, line in code.co_lines() if start <= at < end), code.co_firstlineno)


class Names:
    """What frames are called, and which of them are the user's to see.

    Parameters
    ----------
    is_cell_file : callable
    cell_name : callable
    folders : iterable of str
        Where packages lie: what is below one is named from there.

    Examples
    --------
    >>> names = Names(lambda file: file == "<cell>", lambda file: "In[3]", ["/lib"])
    >>> raw = [Raw("run_cell", "/lib/IPython/shell.py", 9), Raw("<module>", "<cell>", 2), Raw("f", "/lib/a/b.py", 4)]
    >>> [(frame.file, frame.line) for frame in names.path(raw, own=True)]
    [('In[3]', 2), ('a/b.py', 4)]
    """  # noqa: E501

    def __init__(
        self,
        is_cell_file: Callable[[str], bool],
        cell_name: Callable[[str], str | None],
        folders: Iterable[str] | None = None,
    ) -> None:
        self._is_cell_file = is_cell_file
        self._cell_name = cell_name
        paths = sys.path if folders is None else folders
        self._folders = sorted({path.rstrip(os.sep) + os.sep for path in paths if path}, key=len)[::-1]
        self._files: dict[str, tuple[str, bool]] = {}

    def path(self, raw: Iterable[Raw], *, own: bool) -> list[Frame]:
        """A stack as it is shown: it begins at the cell, and frames of ours are left out.

        Parameters
        ----------
        raw : iterable of Raw
            The outermost first.
        own : bool
            Whether the thread works for the cell, so that a stack without a frame of the notebook counts.
        """
        found: list[Frame] = []
        inside = False
        for function, file, line in raw:
            if file.startswith(_OURS):
                continue
            name, cell = self._file(file)
            if name.startswith(_SHELL):
                continue
            if cell and not inside:
                found, inside = [], True
            if not inside and file == threading.__file__ and function.rpartition(".")[2] in _BOOTSTRAP:
                continue
            found.append(Frame(function, name, line, cell))
        return found if inside or own else []

    def _file(self, file: str) -> tuple[str, bool]:
        known = self._files.get(file)
        if known is None:
            cell = self._is_cell_file(file)
            name = self._cell_name(file) if cell else None
            known = self._files[file] = (name or self._short(file), cell)
        return known

    def _short(self, file: str) -> str:
        """Without the folders of this machine."""
        folder = next((folder for folder in self._folders if file.startswith(folder)), None)
        if folder is not None:
            return file[len(folder) :].replace(os.sep, "/")
        return "/".join(file.replace(os.sep, "/").split("/")[-2:]) if os.sep in file else file


def served(frames: Sequence[Raw]) -> Sequence[Raw]:
    """What a worker does for the cell: below what of ours called it."""
    ours = [frame.file.startswith(_OURS) for frame in frames]
    if True not in ours:
        return ()
    below = ours[ours.index(True) :]
    return frames[len(ours) - len(below) + (below.index(False) if False in below else len(below)) :]
