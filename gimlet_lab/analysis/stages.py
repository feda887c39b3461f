"""Which spans belong to which stage.

A module call is a stage in its role. A function of the notebook that calls no module, however deep, is a
stage with all that it calls; one that does is a container: its stages are what it calls, and the Python
left over is glue.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gimlet_lab.model import Recording, Span

#: An undeclared function quicker than this is glue: handing a call to another process costs about as much.
SHORTEST_CALL_S = 100e-6

#: … unless all its calls together take this share of the cell; and glue is a stage of its own only above it.
SMALL_SHARE = 0.02

#: A function in which at least this share of the cell runs and that calls several others is the program.
PROGRAM_SHARE = 0.9

Key = tuple[str, str, str | None]


@dataclass(frozen=True, slots=True)
class Member:
    """A stage before anything is summed up.

    Attributes
    ----------
    id, kind, target, role
        As of :class:`~gimlet_lab.model.Stage`.
    calls : tuple of Span
        Outermost spans, by start; none for glue.
    declared : mapping
        What ``@gimlet.stage`` said.
    """

    id: str
    kind: str
    target: str | None
    role: str | None
    calls: tuple[Span, ...] = ()
    declared: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Membership:
    """All stages of a recording, in the order they first ran, and the stage of each span.

    Attributes
    ----------
    members : tuple of Member
    stage_of : mapping of span id to stage id
        Spans of glue too small to be a stage are left out.
    call_of : mapping of span id to span id
        The outermost span of its stage that a span ran in.
    glue : frozenset of int
        Spans that are glue: the cell, containers, tiny functions.
    """

    members: tuple[Member, ...]
    stage_of: Mapping[int, str]
    call_of: Mapping[int, int]
    glue: frozenset[int]


class Tree:
    """The spans of a recording by parent."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.by_id = {span.id: span for span in recording.spans}
        self.children: dict[int, list[Span]] = defaultdict(list)
        for span in recording.spans:
            if span.id != 0:
                self.children[0 if span.parent not in self.by_id else span.parent or 0].append(span)

    def ancestors(self, span: Span) -> Iterator[Span]:
        """Walk up from the parent to the cell."""
        parent = span.parent
        while parent is not None and parent in self.by_id:
            yield self.by_id[parent]
            parent = self.by_id[parent].parent

    def key(self, span: Span) -> Key:
        """What makes two spans calls of the same thing."""
        if span.attributes.get("stage"):
            return ("placed", str(span.attributes["stage"]), None)
        if span.kind == "module":
            return ("module", module_of(span), span.role)
        place = self.recording.functions.get(span.id)
        where = span.target or (f"{place[0]}:{place[1]}" if place else "")
        return ("function", f"{span.name}@{where}", None)


def module_of(span: Span) -> str:
    """Which module a call was of: the target of its :class:`~gimlet_lab.model.ModuleInfo`."""
    return str(span.target or span.attributes.get("module") or span.name)


def membership(recording: Recording) -> Membership:
    """Find the stages of a recording and say for each span where it belongs."""
    tree = Tree(recording)
    containers = _containers(tree)
    calls: dict[Key, list[Span]] = {}
    call_of: dict[int, int] = {}
    glue = {0}
    # Depth first, in the order of starts; a stage owns all that runs inside its calls.
    stack: list[tuple[Span, int | None]] = [(span, None) for span in _latest_first(tree.children[0])]
    while stack:
        span, owner = stack.pop()
        if owner is None and span.kind in ("module", "function"):
            key = tree.key(span)
            if key in containers:
                glue.add(span.id)
            else:
                calls.setdefault(key, []).append(span)
                owner = span.id
        elif owner is None:
            glue.add(span.id)
        if owner is not None:
            call_of[span.id] = owner
        stack.extend((child, owner) for child in _latest_first(tree.children.get(span.id, [])))
    tiny = {key for key, spans in calls.items() if _is_tiny(recording, spans)}
    names = _names(recording, {key: spans for key, spans in calls.items() if key not in tiny})
    of_call: dict[int, str] = {}
    members: list[Member] = []
    for key, spans in calls.items():
        if key in tiny:
            glue.update(span.id for span in spans)
            continue
        first = spans[0]
        ordered = tuple(sorted(spans, key=lambda span: span.start_s))
        kind = "module" if first.kind == "module" else "function"
        declared = _declared(recording, first)
        members.append(Member(names[key], kind, first.target, first.role, ordered, declared))
        of_call.update((span.id, names[key]) for span in spans)
    glue_calls = {call for call in call_of.values() if call not in of_call}
    glue.update(span for span, call in call_of.items() if call in glue_calls)
    members.sort(key=lambda member: member.calls[0].start_s)
    return Membership(
        tuple(members),
        {span: of_call[call] for span, call in call_of.items() if call in of_call},
        {span: call for span, call in call_of.items() if call in of_call},
        frozenset(glue),
    )


def _latest_first(spans: list[Span]) -> list[Span]:
    return sorted(spans, key=lambda span: span.start_s, reverse=True)


def _containers(tree: Tree) -> set[Key]:
    """Functions that cannot be placed as one: they call modules or declared functions, or are the program."""
    recording = tree.recording
    containers: set[Key] = set()
    for span in recording.spans:
        if span.kind == "module" or span.attributes.get("stage") or _is_declared(recording, span):
            key = tree.key(span)
            for above in tree.ancestors(span):
                if above.kind == "function" and tree.key(above) != key and not above.attributes.get("stage"):
                    containers.add(tree.key(above))
    while True:
        program = _program(tree, containers)
        if program is None:
            return containers
        containers.add(program)


def _program(tree: Tree, containers: set[Key]) -> Key | None:
    """The function in which nearly all of the cell runs, if it calls several others."""
    total: dict[Key, float] = defaultdict(float)
    called: dict[Key, set[Key]] = defaultdict(set)
    stack = list(tree.children[0])
    while stack:
        span = stack.pop()
        if span.kind != "function":
            continue
        key = tree.key(span)
        if key in containers:
            stack.extend(tree.children.get(span.id, []))
        elif not _is_declared(tree.recording, span) and not span.attributes.get("stage"):
            total[key] += span.duration_s
            called[key].update(
                tree.key(child) for child in tree.children.get(span.id, []) if _is_callable(tree, child, key)
            )
    cell_s = tree.recording.spans[0].duration_s
    for key, seconds in total.items():
        if seconds >= PROGRAM_SHARE * cell_s and len(called[key]) > 1:
            return key
    return None


def _is_callable(tree: Tree, span: Span, caller: Key) -> bool:
    """Whether a call could be a stage: a function found from the notebook, not a closure of its caller."""
    return span.kind == "function" and "<locals>" not in span.name and tree.key(span) != caller


def _declared(recording: Recording, span: Span) -> Mapping[str, Any]:
    return recording.declared.get(span.target or span.name, {}) if span.kind == "function" else {}


def _is_declared(recording: Recording, span: Span) -> bool:
    return bool(_declared(recording, span))


def _is_tiny(recording: Recording, spans: list[Span]) -> bool:
    first = spans[0]
    if first.kind != "function" or _is_declared(recording, first) or first.attributes.get("stage"):
        return False
    total_s = sum(span.duration_s for span in spans)
    return total_s < SHORTEST_CALL_S * len(spans) and total_s < SMALL_SHARE * recording.spans[0].duration_s


def _names(recording: Recording, calls: Mapping[Key, list[Span]]) -> dict[Key, str]:
    """Name stages: modules by role where one has it, functions by their own name; all different."""
    roles: dict[str, int] = defaultdict(int)
    for kind, _, role in calls:
        if kind == "module":
            roles[role or "forward"] += 1
    names: dict[Key, str] = {}
    taken: set[str] = set()
    for key, spans in calls.items():
        kind, what, role = key
        if kind == "module":
            if role in (None, "forward"):
                name = what
            else:
                name = role if roles[role] == 1 and role is not None else f"{role}:{what}"
        elif kind == "placed":
            name = what
        else:
            own = spans[0].name.rsplit("<locals>.", 1)[-1]
            name = str(_declared(recording, spans[0]).get("name") or own)
        base, copy = name, 2
        while name in taken:
            name, copy = f"{base}:{copy}", copy + 1
        taken.add(name)
        names[key] = name
    return names
