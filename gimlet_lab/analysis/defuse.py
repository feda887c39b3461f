"""Edges that Python glue hides: who defined what a stage is given, by the text of the functions around it.

A tool's result becomes part of a string, the string a prompt: no tensor and no object tells. The text does.
The bodies of the cell and of the notebook's functions are walked in order, with the stages that each name's
value may come from; a call of a function that is no stage is walked in its place; branches join; loops are
walked twice, for what one turn leaves to the next. Only calls that were seen to happen count. What depends
on a stage by control alone is no use of it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gimlet_lab.analysis.sources import Function, Sources, names_in
from gimlet_lab.analysis.stages import Membership
from gimlet_lab.model import Recording, Span

#: How deep calls are followed.
DEPTH = 12

#: Stages that a value may come from, and under which name.
Origins = dict[str, str]


@dataclass(frozen=True, slots=True)
class Use:
    """A stage is given what another one made.

    Attributes
    ----------
    src, dst : str
        Stage ids.
    name : str
        What the program calls it.
    """

    src: str
    dst: str
    name: str


@dataclass
class _Scope:
    """The names of one body while it is walked."""

    file: str
    node: ast.AST
    names: dict[str, Origins]
    outer: _Scope | None = None
    changed: set[str] = field(default_factory=set)
    result: Origins = field(default_factory=dict)

    def get(self, name: str) -> Origins:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return {}


def uses(recording: Recording, membership: Membership) -> list[Use]:
    """Find which stages use what others made, each pair once, in the order of the text."""
    sources = Sources(recording, membership)
    walker = _Walker(sources, membership)
    for file, node in sources.roots():
        walker.body(node, _Scope(file, node, {}), 0)
    return list(walker.found.values())


class _Walker:
    def __init__(self, sources: Sources, membership: Membership) -> None:
        self.sources = sources
        self.membership = membership
        self.found: dict[tuple[str, str], Use] = {}
        self.active: list[ast.AST] = []

    # -- statements --------------------------------------------------------------------------------------

    def body(self, node: ast.AST, scope: _Scope, depth: int) -> None:
        """Walk a body; what it returns is left in the scope."""
        if depth > DEPTH or any(node is other for other in self.active):
            return
        self.active.append(node)
        self._statements(getattr(node, "body", []), scope, depth)
        self.active.pop()

    def _statements(self, statements: Sequence[ast.stmt], scope: _Scope, depth: int) -> None:
        for statement in statements:
            self._statement(statement, scope, depth)

    def _statement(self, node: ast.stmt, scope: _Scope, depth: int) -> None:
        if isinstance(
            node, Function | ast.ClassDef | ast.Import | ast.ImportFrom | ast.Global | ast.Nonlocal
        ):
            return
        if isinstance(node, ast.Assign):
            value = self._value(node.value, scope, depth)
            for target in node.targets:
                self._assign(target, value, scope, depth)
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            value = self._value(node.value, scope, depth) if node.value is not None else {}
            if isinstance(node, ast.AugAssign):
                value = {**self._value(node.target, scope, depth), **value}
                scope.changed.update(_root(node.target))
            self._assign(node.target, value, scope, depth)
        elif isinstance(node, ast.Return):
            if node.value is not None:
                scope.result = {**scope.result, **self._value(node.value, scope, depth)}
        elif isinstance(node, ast.For | ast.AsyncFor):
            for _ in range(2):
                self._assign(node.target, self._value(node.iter, scope, depth), scope, depth)
                self._statements(node.body, scope, depth)
            self._statements(node.orelse, scope, depth)
        elif isinstance(node, ast.While):
            for _ in range(2):
                self._value(node.test, scope, depth)
                self._statements(node.body, scope, depth)
            self._statements(node.orelse, scope, depth)
        elif isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                value = self._value(item.context_expr, scope, depth)
                if item.optional_vars is not None:
                    self._assign(item.optional_vars, value, scope, depth)
            self._statements(node.body, scope, depth)
        elif isinstance(node, ast.If):
            self._value(node.test, scope, depth)
            self._branches([node.body, node.orelse], scope, depth)
        elif isinstance(node, ast.Match):
            self._value(node.subject, scope, depth)
            self._branches([case.body for case in node.cases] + [[]], scope, depth)
        elif isinstance(node, ast.Try | ast.TryStar):
            self._statements([*node.body, *node.orelse], scope, depth)
            self._branches([handler.body for handler in node.handlers] + [[]], scope, depth)
            self._statements(node.finalbody, scope, depth)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self._value(child, scope, depth)

    def _branches(self, branches: Sequence[Sequence[ast.stmt]], scope: _Scope, depth: int) -> None:
        before = {name: dict(origins) for name, origins in scope.names.items()}
        joined: dict[str, Origins] = {}
        for branch in branches:
            scope.names = {name: dict(origins) for name, origins in before.items()}
            self._statements(branch, scope, depth)
            for name, origins in scope.names.items():
                joined[name] = {**joined.get(name, {}), **origins}
        scope.names = joined

    def _assign(self, target: ast.expr, value: Origins, scope: _Scope, depth: int) -> None:
        if isinstance(target, ast.Name):
            # What a stage gave is called by the first name it gets.
            scope.names[target.id] = {stage: name or target.id for stage, name in value.items()}
        elif isinstance(target, ast.Tuple | ast.List):
            for item in target.elts:
                self._assign(item, value, scope, depth)
        elif isinstance(target, ast.Starred):
            self._assign(target.value, value, scope, depth)
        else:  # part of something: the rest of it stays
            for name in _root(target):
                scope.names[name] = {**scope.get(name), **value}
                scope.changed.add(name)

    # -- expressions -------------------------------------------------------------------------------------

    def _value(self, node: ast.expr, scope: _Scope, depth: int) -> Origins:
        """Give the stages that an expression's value may come from, and note the calls in it."""
        if isinstance(node, ast.Name):
            return scope.get(node.id)
        if isinstance(node, ast.Call):
            return self._call(node, scope, depth)
        if isinstance(node, ast.NamedExpr):
            value = self._value(node.value, scope, depth)
            self._assign(node.target, value, scope, depth)
            return value
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            inner = _Scope(scope.file, scope.node, {}, scope)
            for part in node.generators:
                self._assign(part.target, self._value(part.iter, inner, depth), inner, depth)
            made = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
            return _union(self._value(item, inner, depth) for item in made)
        if isinstance(node, ast.IfExp):
            self._value(node.test, scope, depth)
            return _union(self._value(item, scope, depth) for item in (node.body, node.orelse))
        if isinstance(node, ast.Compare):
            # A yes or no: what hangs on it is control, not data.
            for item in (node.left, *node.comparators):
                self._value(item, scope, depth)
            return {}
        if isinstance(node, ast.Lambda):
            return {}
        return _union(
            self._value(child, scope, depth)
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.expr)
        )

    def _call(self, node: ast.Call, scope: _Scope, depth: int) -> Origins:
        given = [self._value(_unstarred(argument), scope, depth) for argument in node.args]
        named = {
            keyword.arg or f"**{index}": self._value(keyword.value, scope, depth)
            for index, keyword in enumerate(node.keywords)
        }
        receiver = self._value(node.func.value, scope, depth) if isinstance(node.func, ast.Attribute) else {}
        everything = _union([*given, *named.values()])
        span = self.sources.called(node, scope.file)
        if span is not None:
            stage = self.membership.stage_of.get(span.id)
            if stage is not None:
                self._use(_union([everything, receiver]), stage)
                return {stage: ""}
            function = self.sources.function(span)
            if function is not None:
                return self._inline(function, span, node, given, named, receiver, scope, depth)
        module = self.sources.modules_of(node, scope.file, scope.node)
        if module is not None:
            first, last = module
            self._use(everything, first)
            return {last: ""}
        if isinstance(node.func, ast.Attribute) and everything:
            # Somebody else's method may keep what it is given: a list that grows, a set, a session.
            for name in _root(node.func.value):
                scope.names[name] = {**scope.get(name), **everything}
                scope.changed.add(name)
        # Named functions may be handed over to be called: map(search, …), pool.submit(search, …).
        handed = [
            stage
            for argument in node.args
            if (stage := self.sources.handed(argument, node, scope.file)) is not None
        ]
        for stage in handed:
            self._use(everything, stage)
        return dict.fromkeys(handed, "") if handed else _union([everything, receiver])

    def _inline(
        self,
        function: Function,
        span: Span,
        node: ast.Call,
        given: Sequence[Origins],
        named: Mapping[str, Origins],
        receiver: Origins,
        scope: _Scope,
        depth: int,
    ) -> Origins:
        file = self.sources.recording.functions[span.id][0]
        parameters = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
        arguments: list[ast.expr] = list(node.args)
        if parameters and parameters[0] in ("self", "cls") and isinstance(node.func, ast.Attribute):
            given, arguments = [receiver, *given], [node.func.value, *arguments]
        names: dict[str, Origins] = {}
        for index, value in enumerate(given):
            starred = index < len(arguments) and isinstance(arguments[index], ast.Starred)
            slots = parameters[index:] if starred else parameters[index : index + 1]
            for slot in slots or ([function.args.vararg.arg] if function.args.vararg else []):
                names[slot] = {**names.get(slot, {}), **value}
        known = {*parameters, *(argument.arg for argument in function.args.kwonlyargs)}
        for name, value in named.items():
            if name in known:
                names[name] = value
            elif name.startswith("**"):
                names.update({slot: {**names.get(slot, {}), **value} for slot in known})
            elif function.args.kwarg is not None:
                slot = function.args.kwarg.arg
                names[slot] = {**names.get(slot, {}), **value}
        inside = any(child is function for child in ast.walk(scope.node))
        inner = _Scope(file, function, names, scope if inside else None)
        self.body(function, inner, depth + 1)
        for slot, argument in zip(parameters, arguments, strict=False):
            if slot in inner.changed:
                for name in _root(argument):
                    scope.names[name] = {**scope.get(name), **inner.names[slot]}
                    scope.changed.add(name)
        return inner.result

    def _use(self, origins: Origins, stage: str) -> None:
        for src, name in origins.items():
            if src != stage:
                self.found.setdefault((src, stage), Use(src, stage, name or "result"))


def _root(node: ast.expr) -> list[str]:
    return names_in(node)[:1]


def _unstarred(node: ast.expr) -> ast.expr:
    return node.value if isinstance(node, ast.Starred) else node


def _union(values: Iterator[Origins] | Sequence[Origins]) -> Origins:
    joined: Origins = {}
    for value in values:
        joined.update({stage: name or joined.get(stage, "") for stage, name in value.items()})
    return joined
