"""Stages and the data between them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from gimlet_lab.model.work import Work

if TYPE_CHECKING:
    import networkx

#: How an edge is known, the surest first.
EDGE_KINDS = ("tensor", "object", "def-use", "order")

#: How a target ends that is a stretch of a model's layers.
_STRETCH = re.compile(r"\[\d*:\d*\]$")


@dataclass(frozen=True, slots=True)
class Stage:
    """What can be placed by itself.

    Attributes
    ----------
    id : str
        Unique in its graph: ``prefill``, ``decode``, ``embed``, ``search``.
    kind : str
        ``module`` (an outermost module in one role), ``function`` (of the notebook) or ``glue``
        (Python between the others, stays on the host).
    target : str or None
        The expression that finds its live object in the notebook.
    role : str or None
    calls : int
        How often it ran in the cell, all loop turns together.
    call_s : float
        Seconds of one call: median of the calls that are neither warm-up nor looked at, where
        there are any.
    total_s : float
        Seconds of all its calls: inferred time for looked-at calls, warm-up as one more call.
    bound : str
        What holds it back, by time.
    works : tuple of Work
        All its operators of all calls, equal ones counted together.
    ops : int
        Operator calls in all calls together; 0 where none were seen.
    flops, bytes_read, bytes_written : float or None
        Of all calls together. None is unknown.
    weights : mapping of str to int
        Bytes by block. Two stages that name the same block share it on one device.
    state_bytes : int
        KV cache it holds at its largest.
    peak_bytes : int or None
        What it holds besides weights at its fullest: state and activations. None is unknown.
    dtype, device : str or None
    pure, idempotent : bool
        As declared: pure stages may run at the same time as others.
    turns : int
        Turns of the agent's loop it took part in.
    joules : float or None
        Energy that the run's devices spent while it ran, by their meters. None is unknown.
    warmup_s : float
        What its first calls took over the others.
    """

    id: str
    kind: str
    target: str | None
    role: str | None
    calls: int
    call_s: float
    total_s: float
    bound: str
    works: tuple[Work, ...] = ()
    ops: int = 0
    flops: float | None = None
    bytes_read: float | None = None
    bytes_written: float | None = None
    weights: Mapping[str, int] = field(default_factory=dict)
    state_bytes: int = 0
    dtype: str | None = None
    device: str | None = None
    pure: bool = False
    idempotent: bool = True
    turns: int = 1
    warmup_s: float = 0.0
    peak_bytes: int | None = None
    joules: float | None = None

    @property
    def is_stretch(self) -> bool:
        """Whether it is some of a model's layers, ``llm.model.layers[0:16]``, and not a whole module."""
        return self.target is not None and _STRETCH.search(self.target) is not None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all its weights."""
        return sum(self.weights.values())

    @property
    def bytes(self) -> float | None:
        """Bytes read and written by all calls; None is unknown."""
        if self.bytes_read is None or self.bytes_written is None:
            return None
        return self.bytes_read + self.bytes_written

    @property
    def intensity(self) -> float | None:
        """Arithmetic intensity in FLOP per byte; None where either is unknown."""
        if self.flops is None or not self.bytes:
            return None
        return self.flops / self.bytes

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        data = asdict(self)
        data["works"] = [work.to_json() for work in self.works]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Stage:
        """The inverse of :meth:`to_json`."""
        values = dict(data)
        values["works"] = tuple(Work.from_json(work) for work in values["works"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Edge:
    """Data that one stage makes and another one reads.

    Attributes
    ----------
    src, dst : str
        Stage ids.
    tensor : str
        Names the data: edges of one source with one name are one tensor.
    bytes : float or None
        Per crossing. None is unknown; an ``order`` edge carries 0.
    calls : int
        Crossings in the cell.
    known : str
        ``tensor``, ``object``, ``def-use`` or ``order``.
    back : bool
        Closes a loop: from one turn to the next.
    """

    src: str
    dst: str
    tensor: str
    bytes: float | None
    calls: int
    known: str
    back: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """Stages in the order they first ran, and edges. Without its back edges it has no cycle."""

    stages: tuple[Stage, ...] = ()
    edges: tuple[Edge, ...] = ()

    def __getitem__(self, stage_id: str) -> Stage:
        for stage in self.stages:
            if stage.id == stage_id:
                return stage
        raise KeyError(f"no stage {stage_id!r}; there are {', '.join(s.id for s in self.stages)}")

    def to_networkx(self) -> networkx.MultiDiGraph[str]:
        """The graph for networkx: node and edge attributes are the fields of the nouns."""
        import networkx

        graph: networkx.MultiDiGraph[str] = networkx.MultiDiGraph()
        for stage in self.stages:
            graph.add_node(stage.id, **asdict(stage))
        for edge in self.edges:
            graph.add_edge(edge.src, edge.dst, **asdict(edge))
        return graph

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "stages": [stage.to_json() for stage in self.stages],
            "edges": [asdict(edge) for edge in self.edges],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Graph:
        """The inverse of :meth:`to_json`."""
        return cls(
            tuple(Stage.from_json(stage) for stage in data["stages"]),
            tuple(Edge(**edge) for edge in data["edges"]),
        )
