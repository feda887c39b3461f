"""A PyTorch execution trace (Chakra's schema): every operator's tensors by identity, and no times.

``torch.profiler.ExecutionTraceObserver`` writes them. Their ``rf_id`` is Kineto's ``Record function id``:
joined with a Kineto trace of the same run they add to it who made each tensor, and on which device it lay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

from gimlet_lab.capture.kineto import OPERATOR, SPAN, Kineto
from gimlet_lab.capture.signatures import DTYPES, Recorded, TensorInfo
from gimlet_lab.capture.tracefile import TraceFile, TraceFileError

#: Nodes kept; the rest of a longer trace is left out, and said so.
MAX_NODES = 2_000_000

_USER_SCOPE = 7

#: A storage, and the bytes of it that are meant.
Piece = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Node:
    """One operator.

    Attributes
    ----------
    recorded : Recorded
    reads, writes : tuple of (storage, bytes)
    device : str
        Of its tensors; empty where it has none.
    """

    recorded: Recorded
    reads: tuple[Piece, ...]
    writes: tuple[Piece, ...]
    device: str


@dataclass(slots=True)
class Execution:
    """An execution trace in memory.

    Attributes
    ----------
    nodes : mapping of rf_id to Node
    order : list
        Each node as (id, parent's id, rf_id, name, thread, whether it is an annotation), as they began.
    notes : list of str
    """

    nodes: dict[int, Node] = field(default_factory=dict)
    order: list[tuple[int, int, int, str, int, bool]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read(file: TraceFile) -> Execution:
    """Read an execution trace; what is damaged in it is left out and counted.

    Raises
    ------
    TraceFileError
        If it cannot be read, or is of a schema that this program does not know.
    """
    execution, signatures = Execution(), dict[Recorded, Recorded]()
    bad = more = 0
    schema = ""
    for key, value in file.entries(frozenset({"nodes"})):
        if key == "schema":
            schema = str(value)[:60]
        if key != "nodes":
            continue
        if len(execution.order) >= MAX_NODES:
            more += 1
            continue
        try:
            _node(execution, value, signatures)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            bad += 1
    if not execution.nodes:
        raise TraceFileError(_refusal(file.path, schema, bad))
    if file.cut_short:
        execution.notes.append("the execution trace is cut short: what stands before the cut was read")
    if bad or file.skipped:
        execution.notes.append(f"{bad + file.skipped:,} damaged nodes of the execution trace were left out")
    if more:
        execution.notes.append(f"truncated: {more:,} nodes after the first {MAX_NODES:,} were left out")
    execution.order.sort()
    return execution


def timeless(execution: Execution) -> Kineto:
    """The trace as host events one unit of time apart: their order and nesting, no durations."""
    trace = Kineto(shapes=True)
    host, place = trace.host, {entry[0]: index for index, entry in enumerate(execution.order)}
    ends = [index + 1.0 for index in range(len(place))]
    for index in range(len(ends) - 1, -1, -1):
        parent = place.get(execution.order[index][1], -1)
        if 0 <= parent < index:
            ends[parent] = max(ends[parent], ends[index])
    recorded: dict[Recorded, int] = {}
    for index, (_, _, rf_id, name, thread, annotation) in enumerate(execution.order):
        node = execution.nodes.get(rf_id)
        if node is None and not annotation:
            continue
        host.kind.append(SPAN if node is None else OPERATOR)
        host.start_s.append(float(index))
        host.duration_s.append(ends[index] - index)
        host.thread.append(thread)
        host.ident.append(-1)
        host.rf_id.append(rf_id)
        if node is None:
            host.what.append(len(trace.names))
            trace.names.append(name)
        else:
            host.what.append(recorded.setdefault(node.recorded, len(recorded)))
    trace.recorded.extend(recorded)
    return trace


def _refusal(path: Path, schema: str, bad: int) -> str:
    if bad:
        return (
            f"{path}: is an execution trace of schema {schema or 'unknown'}, of which no node could be read"
        )
    return f"{path}: has no nodes, it is not an execution trace"


def _node(execution: Execution, node: Any, signatures: dict[Recorded, Recorded]) -> None:
    name, attributes = str(node["name"]), {entry["name"]: entry["value"] for entry in node["attrs"]}
    rf_id, parent = int(attributes["rf_id"]), int(node.get("ctrl_deps") or 0)
    schema = attributes.get("op_schema")
    thread = int(attributes.get("tid") or 0)
    annotation = not schema and attributes.get("scope") == _USER_SCOPE and not name.startswith("[")
    if schema or "::" in name:
        given, made = node["inputs"], node["outputs"]
        recorded = Recorded(name, tuple(_arguments(given)))
        recorded = signatures.setdefault(recorded, recorded)
        reads, writes = tuple(_pieces(given)), tuple(_pieces(made))
        execution.nodes[rf_id] = Node(recorded, reads, writes, _device(made) or _device(given))
    elif not annotation:
        return
    execution.order.append((int(node["id"]), parent, rf_id, name, thread, annotation))


def _arguments(given: Mapping[str, Any]) -> Iterator[Any]:
    seen: dict[int, int] = {}
    for value, shape, kind, strides in zip(
        given["values"], given["shapes"], given["types"], given.get("strides") or given["shapes"], strict=True
    ):
        yield _argument(value, shape, kind, strides, seen)


def _argument(value: Any, shape: Any, kind: str, strides: Any, seen: dict[int, int]) -> Any:
    if kind.startswith("Tensor(") and isinstance(value, list):
        # A tensor that is not there (an undefined optional one) has no dtype.
        dtype = DTYPES.get(kind[7:-1])
        if dtype is None:
            return None
        sizes = tuple(int(size) for size in shape)
        if any(size < 0 for size in sizes):
            raise ValueError(f"no shape: {shape}")
        steps = tuple(int(step) for step in strides) if len(strides) == len(sizes) else None
        # Ids differ from call to call; which arguments share one does not.
        place = seen.setdefault(int(value[0]), len(seen))
        return TensorInfo(dtype, sizes, steps if steps is None or min(steps, default=0) >= 0 else None, place)
    if kind.startswith("GenericList[") and isinstance(value, list):
        kinds = _split(kind[len("GenericList[") : -1])
        shapes = shape if isinstance(shape, list) and len(shape) == len(value) else [[]] * len(value)
        steps_of = strides if isinstance(strides, list) and len(strides) == len(value) else shapes
        return tuple(map(_argument, value, shapes, kinds, steps_of, repeat(seen)))
    if value == "<None>" or isinstance(value, dict | list):
        return None
    return value


def _split(kinds: str) -> list[str]:
    """The kinds of a list's items; those of ``Tensor(c10::complex<float>)`` hold no comma."""
    return kinds.split(",") if kinds else []


def _pieces(given: Mapping[str, Any]) -> Iterator[Piece]:
    """``[tensor, storage, offset, elements, bytes an element, device]``, wherever in the values."""
    pending = list(reversed(given["values"]))
    while pending:
        value = pending.pop()
        if not isinstance(value, list):
            continue
        if _is_tensor(value):
            yield int(value[1]), float(value[3]) * float(value[4])
        else:
            pending.extend(reversed(value))


def _device(given: Mapping[str, Any]) -> str:
    pending = list(reversed(given["values"]))
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            if _is_tensor(value):
                if value[5]:
                    return str(value[5])
            else:
                pending.extend(reversed(value))
    return ""


def _is_tensor(value: list[Any]) -> bool:
    return len(value) == 6 and isinstance(value[5], str) and all(isinstance(v, int) for v in value[:5])
