"""Edges between stages: tensors and objects first, then definitions and uses, then order.

An edge from a stage to one that first ran before it closes a loop: ``back``. The others form no cycle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from gimlet_lab.analysis.defuse import Use, uses
from gimlet_lab.analysis.stages import Member, Membership
from gimlet_lab.model import Edge, Recording, Transfer
from gimlet_lab.model.graph import EDGE_KINDS


@dataclass
class _Datum:
    """What crosses from one stage to another under one name."""

    known: str
    keys: set[str] = field(default_factory=set)
    crossings: set[int] = field(default_factory=set)
    total_bytes: float = 0.0
    unknown: bool = False


def edges(recording: Recording, membership: Membership, members: Sequence[Member]) -> tuple[Edge, ...]:
    """Find the edges between the members of a graph, in the order of their sources.

    Parameters
    ----------
    members : sequence of Member
        In the order they first ran, glue included where it is a stage.
    """
    place = {member.id: index for index, member in enumerate(members)}
    glue = next((member.id for member in members if member.kind == "glue"), None)
    by_id = {member.id: member for member in members}
    reach = _Reach(recording, membership)
    used = [reach.edge(use, by_id[use.src], by_id[use.dst]) for use in uses(recording, membership)]
    # What is known to go through glue to a stage is that stage's edge, not also one of the glue's.
    through = {transfer for _, transfers in used for transfer in transfers}
    rest = [transfer for transfer in recording.transfers if transfer not in through]
    found = _observed(rest, membership, place, glue)
    observed = {(edge.src, edge.dst) for edge in found}
    for edge, _ in used:
        if (edge.src, edge.dst) not in observed:
            found.append(replace(edge, back=place[edge.src] > place[edge.dst]))
    found += _order(members, found)
    found += _turns(members, found)
    return tuple(
        sorted(found, key=lambda edge: (place[edge.src], place[edge.dst], EDGE_KINDS.index(edge.known)))
    )


def _observed(
    transfers: Iterable[Transfer], membership: Membership, place: dict[str, int], glue: str | None
) -> list[Edge]:
    """Edges that capture saw, by tensor and by object."""
    data: dict[tuple[str, str, str], _Datum] = {}
    first_reader: dict[tuple[str, str], set[str]] = defaultdict(set)
    for transfer in sorted(transfers, key=lambda transfer: transfer.consumer):
        src = membership.stage_of.get(transfer.producer, glue)
        dst = membership.stage_of.get(transfer.consumer, glue)
        if src is None or dst is None or src == dst or src not in place or dst not in place:
            continue
        if dst in first_reader[src, transfer.key]:
            continue  # the same datum read again where it already is
        first_reader[src, transfer.key].add(dst)
        datum = data.setdefault((src, dst, transfer.name), _Datum(transfer.known))
        datum.keys.add(transfer.key)
        datum.crossings.add(membership.call_of.get(transfer.consumer, transfer.consumer))
        datum.total_bytes += transfer.bytes or 0.0
        datum.unknown |= transfer.bytes is None
        datum.known = max(datum.known, transfer.known, key=EDGE_KINDS.index)
    names = _one_name_a_tensor(data)
    return [
        Edge(
            src,
            dst,
            names[src, dst, name],
            None if datum.unknown else datum.total_bytes / len(datum.crossings),
            len(datum.crossings),
            datum.known,
            place[src] > place[dst],
        )
        for (src, dst, name), datum in data.items()
    ]


def _one_name_a_tensor(data: dict[tuple[str, str, str], _Datum]) -> dict[tuple[str, str, str], str]:
    """Name data so that edges of one source have one name exactly when they carry the same data."""
    names: dict[tuple[str, str, str], str] = {}
    taken: dict[tuple[str, str], set[str]] = {}
    for (src, dst, name), datum in data.items():
        same = next(
            (known for (other, known), keys in taken.items() if other == src and keys == datum.keys), None
        )
        if same is None:
            same = name if (src, name) not in taken else f"{name} to {dst}"
            taken[src, same] = datum.keys
        names[src, dst, name] = same
    return names


class _Reach:
    """What is known of data that pass through glue on their way from one stage to another."""

    def __init__(self, recording: Recording, membership: Membership) -> None:
        self.glue = membership.glue
        self.parents = {span.id: span.parent for span in recording.spans}
        self.transfers: dict[int, list[Transfer]] = defaultdict(list)
        for transfer in recording.transfers:
            self.transfers[membership.call_of.get(transfer.producer, transfer.producer)].append(transfer)
        self.call_of = membership.call_of

    def edge(self, use: Use, src: Member, dst: Member) -> tuple[Edge, list[Transfer]]:
        """Give the edge of a use, and the transfers through glue that it stands for.

        Its size is what was seen to reach the one from the other, or else what the one gave to glue.
        """
        sources, readers = self._around(src), self._around(dst)
        shared = sources & readers
        seen = [
            transfer
            for source in sorted(sources - shared)
            for transfer in self.transfers[source]
            if self.call_of.get(transfer.consumer, transfer.consumer) in readers - shared
        ]
        name = seen[0].name if seen else use.name
        through = [each for each in seen if each.producer in self.glue or each.consumer in self.glue]
        if not seen:
            seen = [
                transfer
                for span in src.calls
                for transfer in self.transfers[span.id]
                if transfer.consumer in self.glue
            ]
        data = {(transfer.producer, transfer.key): transfer.bytes for transfer in seen}
        crossings = len({producer for producer, _ in data})
        known = [size for size in data.values() if size is not None]
        size = sum(known) / crossings if known and len(known) == len(data) else None
        calls = crossings or min(len(src.calls), len(dst.calls))
        return Edge(src.id, dst.id, name, size, calls, "def-use"), through

    def _around(self, member: Member) -> set[int]:
        """The calls of a stage, and the functions around them: what those give, the stage gave to them."""
        found: set[int] = set()
        for span in member.calls:
            number: int | None = span.id
            while number and number not in found:
                found.add(number)
                number = self.parents.get(number)
        return found


def _order(members: Sequence[Member], known: Iterable[Edge]) -> list[Edge]:
    """Edges that keep the program's order where no path does.

    Two stages may run at the same time only where the program was seen to do that, or both are declared pure.
    """
    after: dict[str, set[str]] = defaultdict(set)
    for edge in known:
        if not edge.back:
            after[edge.src].add(edge.dst)
    reached: dict[str, set[str]] = {}  # of each stage, all that come after it
    found: list[Edge] = []
    for index in range(len(members) - 1, -1, -1):
        first = members[index]
        reach: set[str] = set()
        for later in members[index + 1 :]:
            if later.id in after[first.id]:
                reach |= {later.id} | reached[later.id]
        # The nearest first: what follows it need not follow from this one directly.
        for later in members[index + 1 :]:
            if later.id not in reach and not _independent(first, later):
                found.append(Edge(first.id, later.id, "order", 0.0, 1, "order"))
                reach |= {later.id} | reached[later.id]
        reached[first.id] = reach
    return found


def _turns(members: Sequence[Member], known: Iterable[Edge]) -> list[Edge]:
    """Edges from the end of one turn to the start of the next where no datum is known to go that way."""
    place = {member.id: index for index, member in enumerate(members)}
    ran = sorted((span.start_s, member.id) for member in members for span in member.calls)
    closed = {(edge.src, edge.dst) for edge in known if edge.back}
    turns: dict[tuple[str, str], int] = defaultdict(int)
    for (_, before), (_, now) in pairwise(ran):
        if place[before] > place[now] and (before, now) not in closed:
            turns[before, now] += 1
    return [Edge(src, dst, "order", 0.0, calls, "order", back=True) for (src, dst), calls in turns.items()]


def _independent(a: Member, b: Member) -> bool:
    if a.declared.get("pure") and b.declared.get("pure"):
        return True
    # Calls of two stages never nest: those that overlap ran at the same time, in threads or as coroutines.
    return any(
        one.start_s < other.end_s and other.start_s < one.end_s for one in a.calls for other in b.calls
    )
