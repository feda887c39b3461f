"""Blocks of a model that are alike, as its decoder layers are: some are looked at, the rest only timed.

During a look at a call the blocks of a list are entered one after the other. Where the last two of one form
and one input ran the same operators, those that follow run free of us and are taken to run them too, in the
time that they themselves took. Nothing is taken for granted of a block in which operators' results decide
what is computed (a router's loop over experts), of one that somebody has hooked or given a ``forward`` of its
own, or of a compiled one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from gimlet_lab.capture.kinds import sign
from gimlet_lab.capture.operators import Operators, Row
from gimlet_lab.capture.timeline import Lane
from gimlet_lab.model import Op

#: Fewer blocks of one class in a list are all looked at: two have to be.
FEWEST = 3

_EMPTY = {dict, OrderedDict, set, list, tuple, type(None)}


@dataclass(slots=True)
class Seen:
    """A block that was looked at: what it ran, and what that took.

    Attributes
    ----------
    watched, spent
        Operators watched, and the seconds inside our own clock that this took.
    sure : bool
        The block before it was the same.
    """

    path: str
    rows: list[Row]
    start: float
    took: float
    watched: int
    spent: float
    sure: bool = False

    def like(self, other: Seen) -> bool:
        """Whether both ran the same operators at the same places."""
        return len(self.rows) == len(other.rows) and all(
            a.kind is b.kind
            and a.count == b.count
            and a.path.removeprefix(self.path) == b.path.removeprefix(other.path)
            for a, b in zip(self.rows, other.rows, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Repeat:
    """A block that was not looked at, like one that was."""

    of: Seen
    path: str
    start: float
    took: float

    def __len__(self) -> int:
        return len(self.of.rows)

    def ops(self, dispatch_s: float) -> Iterator[Op]:
        """Its operators: their shares of the time it took, one after the other.

        ``dispatch_s``: what watching an operator takes outside our own clock.
        """
        of = self.of
        if not of.rows or of.rows[0].span.number < 0:  # nothing ran, or there were too many calls to keep
            return
        busy_s = sum(row.took for row in of.rows)
        bare_s = max(of.took - of.spent - of.watched * dispatch_s, busy_s, 1e-9)
        scale = self.took / bare_s
        # What lies between operators was stretched by the looking.
        idle = (self.took - busy_s * scale) / max(of.took - busy_s, 1e-9)
        now, ended = self.start, of.start
        for row in of.rows:
            now += max(0.0, row.start - ended) * idle
            ended, took = row.start + row.took, row.took * scale
            yield row.elsewhere(self.path + row.path.removeprefix(of.path), now, took)
            now += took


class Blocks:
    """The blocks of one look.

    Parameters
    ----------
    operators : Operators
    members : dict
        The blocks by identity, with the names of attributes that only say which one it is.
    """

    def __init__(self, operators: Operators, members: Members) -> None:
        self.operators = operators
        self.members = members
        self._seen: dict[object, Seen] = {}

    def run(
        self,
        lane: Lane,
        original: Callable[..., Any],
        module: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a block: looked at, or where it is known to be like the ones before it, only timed."""
        operators, timeline = self.operators, self.operators.timeline
        entered = timeline.clock()
        key = self._key(module, args, kwargs)
        if key is None:
            return original(module, *args, **kwargs)
        like = self._seen.get(key)
        spared = like is not None and like.sure and operators.pop(lane)
        # Blocks inside this one are not compared; rows at its edges are not merged with its own.
        lane.looking, lane.blocks = not spared, None
        first = operators.apart = len(operators.rows)
        calls, spent = lane.calls, lane.spent
        returned = False
        started = timeline.clock()
        lane.spent += started - entered
        lane.learning += started - entered
        try:
            output = original(module, *args, **kwargs)
            returned = True
            return output
        finally:
            ended = timeline.clock()
            start, took = started - timeline.zero, ended - started
            if spared:
                operators.push(lane)
            if spared and returned and like is not None:
                operators.repeat(Repeat(like, lane.path, start, took))
            elif returned:
                rows, watched = operators.rows[first:], lane.calls - calls
                seen = Seen(lane.path, rows, start, took, watched, lane.spent - spent)
                whole = all(row.span is lane.stack[-1] and not row.kind.depends for row in seen.rows)
                seen.sure = whole and like is not None and seen.like(like)
                self._seen[key] = seen
            operators.apart = len(operators.rows)
            lane.looking, lane.blocks = True, self
            done = timeline.clock() - ended
            lane.spent += done
            lane.learning += done

    def _key(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """What has to be equal for two blocks to be alike; None: nobody can say."""
        torch = self.operators.torch
        parts: list[Any] = [torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), *kwargs]
        tensors: list[Any] = []
        try:
            parts.append(form(module, self.members[id(module)]))
            sign((args, tuple(kwargs.values())), parts, tensors, torch.Tensor)
            key = (*parts, *(tensor.requires_grad for tensor in tensors))
            hash(key)
        except Exception:  # noqa: BLE001 - an argument that does not hash, whatever a tensor's class raises
            return None
        return key


Members = dict[int, frozenset[str]]


def members(module: Any) -> Members:
    """Blocks of a model's lists that may be alike: by identity, the names under which they keep their place.

    A number that counts the blocks of a list (transformers' ``layer_idx``) only says which one it is.
    """
    found: Members = {}
    for part in module.modules():
        # Of ModuleList and Sequential the children go by their numbers.
        listed = [child for name, child in part.named_children() if name.isdecimal()]
        classes = [type(child) for child in listed]
        alike = [
            c for c in listed if next(c.children(), None) is not None and classes.count(type(c)) >= FEWEST
        ]
        if alike:
            places = _holding(listed[0], 0) & _holding(listed[-1], len(listed) - 1)
            found.update((id(child), places) for child in alike)
    return found


def _holding(module: Any, number: int) -> frozenset[str]:
    """Names of attributes, of a module and what is in it, that are this number."""
    held = (item for part in module.modules() for item in vars(part).items())
    return frozenset(name for name, value in held if value.__class__ is int and value == number)


def form(module: Any, places: frozenset[str]) -> object:
    """What two blocks share that are alike: classes, shapes of weights, and everything plain they hold."""
    return tuple(_part(part, places) for part in module.modules())


def _part(module: Any, places: frozenset[str]) -> object:
    found: list[object] = [type(module)]
    for name, value in vars(module).items():
        kind = value.__class__
        if kind in _EMPTY and not value:  # most of what torch keeps: no hooks, no buffers
            found.append(kind)
        elif name in ("_parameters", "_buffers"):
            found += [
                None
                if tensor is None
                else (
                    own,
                    tensor.__class__,
                    tensor.shape,
                    tensor.dtype,
                    tensor.stride(),
                    tensor.requires_grad,
                )
                for own, tensor in value.items()
            ]
        elif name == "_modules":
            found.append(tuple(value))
        elif name in places:
            found.append(name)
        elif isinstance(value, int | float | str | tuple):
            found.append((name, value))
        elif kind is partial:
            found.append((name, value.func, value.args, *sorted(value.keywords.items())))
        elif kind is set or kind is list:
            found.append((name, frozenset(value) if kind is set else tuple(value)))
        else:
            found.append((name, id(value)))
    return tuple(found)
