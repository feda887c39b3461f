"""The text of the cell and of the notebook's functions, and who calls whom in it."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from gimlet_lab.analysis.stages import Membership, module_of
from gimlet_lab.model import Recording, Span

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Sources:
    """The parsed sources of a recording. Only calls that were seen to happen are calls here."""

    def __init__(self, recording: Recording, membership: Membership) -> None:
        self.membership = membership
        self.recording = recording
        self.trees = {
            file: tree for file, text in recording.sources.items() if (tree := _parse(text)) is not None
        }
        self.functions = {file: _functions(tree) for file, tree in self.trees.items()}
        self.by_id = {span.id: span for span in recording.spans}
        #: Functions seen to be called, by the place of the call.
        self.called_at: dict[tuple[str, int], dict[str, Span]] = defaultdict(dict)
        for number, place in recording.frames.items():
            span = self.by_id.get(number)
            if span is not None:
                self.called_at[place].setdefault(_simple(span.name), span)
        #: Functions seen to run, but not who called them: a pool's thread, an event loop.
        self.called_somewhere: dict[str, dict[object, Span]] = defaultdict(dict)
        for span in recording.spans:
            if span.kind == "function" and span.id not in recording.frames:
                key = recording.functions.get(span.id, span.name)
                self.called_somewhere[_simple(span.name)].setdefault(key, span)
        #: Module stages by the function that called them: their target, the first and the last that ran.
        self.modules: dict[tuple[str, int], dict[str, tuple[str, str]]] = defaultdict(dict)
        for span in sorted(recording.spans, key=lambda span: span.start_s):
            stage = membership.stage_of.get(span.id)
            if span.kind == "module" and stage is not None:
                where = self._definition(span)
                first, _ = self.modules[where].get(module_of(span), (stage, stage))
                self.modules[where][module_of(span)] = (first, stage)

    def _definition(self, span: Span) -> tuple[str, int]:
        """Where the function is defined that a span ran in; the cell's own body is nowhere."""
        parent = span.parent
        while parent is not None and parent in self.by_id:
            if parent in self.recording.functions:
                return self.recording.functions[parent]
            parent = self.by_id[parent].parent
        return ("", 0)

    def roots(self) -> Iterator[tuple[str, ast.AST]]:
        """The bodies that calls come from and that no call was seen of: the cell."""
        seen: set[int] = set()
        for number, (file, line) in sorted(self.recording.frames.items()):
            span = self.by_id.get(number)
            tree = self.trees.get(file)
            if span is None or tree is None or span.parent not in (0, None):
                continue
            node = self._around(file, line)
            if id(node) not in seen:
                seen.add(id(node))
                yield file, node

    def _around(self, file: str, line: int) -> ast.AST:
        """The innermost function whose text holds a line, or the whole."""
        found: ast.AST = self.trees[file]
        for node in self.functions[file]:
            if node.body[0].lineno <= line <= (node.end_lineno or line):
                found = node  # breadth first: the last one found is the innermost
        return found

    def called(self, node: ast.Call, file: str) -> Span | None:
        """The notebook's function that was seen to be called here, by name."""
        parts = names_in(node.func)
        return self._at(parts[-1], node, file) if parts else None

    def _at(self, name: str, node: ast.expr, file: str) -> Span | None:
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
            span = self.called_at.get((file, line), {}).get(name)
            if span is not None:
                return span
        somewhere = self.called_somewhere.get(name, {})
        return next(iter(somewhere.values())) if len(somewhere) == 1 else None

    def handed(self, argument: ast.expr, node: ast.Call, file: str) -> str | None:
        """The stage that an argument of a call names, seen to be run by it."""
        parts = names_in(argument)
        span = self._at(parts[-1], node, file) if parts else None
        return None if span is None else self.membership.stage_of.get(span.id)

    def function(self, span: Span) -> Function | None:
        """The definition of the function that a span was a call of."""
        place = self.recording.functions.get(span.id)
        if place is None:
            return None
        functions = self.functions.get(place[0], ())
        return next((node for node in functions if place[1] == _first_line(node)), None)

    def modules_of(self, node: ast.Call, file: str, around: ast.AST) -> tuple[str, str] | None:
        """The stages of a module that this call runs: the first and the last of them."""
        where = (file, _first_line(around)) if isinstance(around, Function) else ("", 0)
        here = self.modules.get(where, {})
        parts = names_in(node.func)
        for target, stages in here.items():
            path = target.split(".")
            # llm.generate(…), self.llm(…) where the notebook says agent.llm, pipe(…) where it is pipe.model.
            if parts and (path[-1] in parts or path[: len(parts)] == parts):
                return stages
        return None


def _parse(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _functions(tree: ast.Module) -> list[Function]:
    """All of a file, breadth first."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def _first_line(node: ast.AST) -> int:
    """Where Python says a function begins: at its first decorator."""
    if not isinstance(node, Function):
        return 0
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _simple(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def names_in(node: ast.expr) -> list[str]:
    """``a.b[0].c`` as its names; empty for anything that is not reached from a name."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        inner = names_in(node.value)
        return [*inner, node.attr] if inner else []
    if isinstance(node, ast.Subscript):
        return names_in(node.value)
    return []
