"""``--repeat``: the cell's body some more times before the run that is shown.

The cell is changed as a syntax tree, never as text: its lines, its ``await`` and its last expression stay
where they are. What the runs before print or display is kept back, unless one of them fails.
"""

from __future__ import annotations

import ast
import copy
from types import TracebackType
from typing import Any

_HOME = f"__import__({__name__!r}, fromlist=['more'])"
_LOOP = f"while {_HOME}.more():\n    with {_HOME}.silence():\n        pass"

_left = 0


def more() -> bool:
    """Whether the body runs once more before the run that is shown."""
    global _left  # one profile at a time in a process
    _left -= 1
    return _left >= 0


class silence:  # noqa: N801 - a context manager; one that is a generator would add frames to a traceback
    """Keep back what a run shows; if it fails, it is shown after all."""

    def __enter__(self) -> None:
        from IPython.utils.capture import capture_output

        self._capture = capture_output(stderr=False)
        self._shown = self._capture.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capture.__exit__(kind, error, trace)
        if kind is not None:
            self._shown.show()


class Repeater:
    """An AST transformer for one cell of one shell.

    Parameters
    ----------
    count : int
        Runs before the one that is shown.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def visit(self, node: ast.Module) -> ast.Module:
        """Put the loop before the body, the first time: cells run by the cell stay as they are."""
        global _left  # see more
        if not self.count or not node.body:
            return node
        _left, self.count = self.count, 0
        loop: Any = ast.parse(_LOOP).body[0]
        for part in ast.walk(loop):
            if hasattr(part, "lineno"):
                ast.copy_location(part, node.body[0])
        loop.body[0].body = copy.deepcopy(node.body)
        return ast.Module([loop, *node.body], node.type_ignores)
