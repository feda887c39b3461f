"""Cells run under a recorder, as a notebook would run them."""

from __future__ import annotations

import ast
import itertools
import linecache
import textwrap
from typing import Any

from gimlet_lab.capture import Recorder
from gimlet_lab.model import Recording, Span

_numbers = itertools.count(1)


def is_cell_file(filename: str) -> bool:
    return filename.startswith("<test cell ")


class Notebook:
    """A namespace and the cells that ran in it."""

    def __init__(self, **names: Any) -> None:
        self.namespace: dict[str, Any] = {"__name__": "__main__", **names}
        self.error: BaseException | None = None

    def __getitem__(self, name: str) -> Any:
        return self.namespace[name]

    def compile(self, source: str) -> Any:
        source = textwrap.dedent(source).lstrip("\n")
        filename = f"<test cell {next(_numbers)}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        return compile(source, filename, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    def run(self, source: str) -> None:
        exec(self.compile(source), self.namespace)

    def profile(self, source: str, **options: Any) -> Recording:
        """Run a cell under a recorder; what it raises is kept in ``error``."""
        code = self.compile(source)
        recorder = Recorder(self.namespace, is_cell_file, **options)
        self.error = None
        recorder.start()
        try:
            exec(code, self.namespace)
        except BaseException as error:  # noqa: BLE001 - the cell's, whatever it is
            self.error = error
            return recorder.stop(error)
        return recorder.stop()


def spans(recording: Recording, kind: str | None = None, name: str | None = None) -> list[Span]:
    return [s for s in recording.spans if kind in (None, s.kind) and name in (None, s.name)]


def edges(recording: Recording) -> set[tuple[str, str]]:
    """Transfers by the names of their spans."""
    return {(recording.spans[t.producer].name, recording.spans[t.consumer].name) for t in recording.transfers}
