"""Where the stages of a graph are drawn: layers by longest path, order by first run.

Layer and slot are unit coordinates (one slot is one box); whoever draws turns them into pixels.
Edges that skip layers get a narrow place of their own in each layer they cross, so that no edge runs
through a box.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: How wide a crossing edge is, in boxes.
CROSSING = 0.45


@dataclass(frozen=True, slots=True)
class Layout:
    """Places of nodes, and the places between its ends that each edge goes through.

    Attributes
    ----------
    layers : int
    place : mapping of node to (layer, slot)
    via : mapping of (source, target) to places
        Forward edges only; empty for neighbours.
    back : mapping of (source, target) to int
        Edges that go up or stay, by their lane beside the graph (0 is the innermost).
    """

    layers: int
    place: dict[str, tuple[int, float]]
    via: dict[tuple[str, str], list[tuple[int, float]]]
    back: dict[tuple[str, str], int]


def layered(nodes: Sequence[str], edges: Iterable[tuple[str, str, bool]]) -> Layout:
    """Lay out a graph.

    Parameters
    ----------
    nodes : sequence of str
        In the order they first ran.
    edges : iterable of (source, target, back)
        Edges to or from nodes that are not there are left out; ones that would close a cycle are
        taken for back edges.
    """
    import networkx

    first = {node: index for index, node in enumerate(nodes)}
    pairs = list(dict.fromkeys((a, b, back) for a, b, back in edges if a in first and b in first))
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    graph.add_nodes_from(first)
    graph.add_edges_from((a, b) for a, b, back in pairs if not back and a != b)
    if not networkx.is_directed_acyclic_graph(graph):
        graph.remove_edges_from([(a, b) for a, b in graph.edges if first[a] > first[b]])
    layer = {
        node: depth
        for depth, generation in enumerate(networkx.topological_generations(graph))
        for node in generation
    }
    forward = set(graph.edges)
    # A place is a node's name, or (edge, layer) where an edge crosses.
    rows: dict[int, list[object]] = {}
    above: dict[object, list[object]] = {}
    for node in nodes:
        rows.setdefault(layer[node], []).append(node)
    for a, b in sorted(forward, key=lambda edge: (first[edge[0]], first[edge[1]])):
        before: object = a
        for depth in range(layer[a] + 1, layer[b]):
            crossing = ((a, b), depth)
            rows[depth].append(crossing)
            above.setdefault(crossing, []).append(before)
            before = crossing
        above.setdefault(b, []).append(before)
    slot: dict[object, float] = {}
    for depth in range(len(rows)):
        _settle(rows[depth], above, slot)
    lanes = [(a, b) for a, b, _ in pairs if (a, b) not in forward]
    lanes.sort(key=lambda edge: layer[edge[0]] - layer[edge[1]])
    return Layout(
        layers=len(rows),
        place={node: (layer[node], slot[node]) for node in nodes},
        via={
            (a, b): [(depth, slot[((a, b), depth)]) for depth in range(layer[a] + 1, layer[b])]
            for a, b in sorted(forward)
        },
        back={edge: lane for lane, edge in enumerate(dict.fromkeys(e for e in lanes if e[0] != e[1]))}
        | {edge: -1 for edge in lanes if edge[0] == edge[1]},
    )


def _settle(row: list[object], above: dict[object, list[object]], slot: dict[object, float]) -> None:
    """Give each place of a row its slot: below what it comes from, boxes before crossing edges."""

    def wish(place: object) -> float:
        parents = above.get(place, [])
        parents = [parent for parent in parents if isinstance(parent, str)] or parents
        return sum(slot[parent] for parent in parents) / len(parents) if parents else 0.0

    def breadth(place: object) -> float:
        return 1.0 if isinstance(place, str) else CROSSING

    # Stable: where wishes are equal, the order is that of the first run.
    row.sort(key=lambda place: (wish(place), not isinstance(place, str)))
    before: object | None = None
    for place in row:
        wished = wish(place)
        if before is not None:
            wished = max(wished, slot[before] + (breadth(before) + breadth(place)) / 2)
        slot[place] = wished
        before = place
    boxes = [place for place in row if isinstance(place, str)] or row
    shift = sum(slot[place] - wish(place) for place in boxes) / len(boxes)
    for place in row:
        slot[place] -= shift
