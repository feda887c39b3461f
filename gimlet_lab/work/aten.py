"""What torch's operators compute and move: from plain shapes to :class:`~gimlet_lab.model.work.Work`.

Nothing here imports torch. A shape that is known is a shape that can be counted, whether it was captured,
dry-run or read from somebody's trace.
"""

from __future__ import annotations

from gimlet_lab.model.work import Work
from gimlet_lab.work import formulas
from gimlet_lab.work.arithmetic import arithmetic, has_formula
from gimlet_lab.work.gradients import written_in_place
from gimlet_lab.work.operand import (
    EMPTIES,
    FILLS,
    GATHERS,
    RANDOM,
    SCATTERS,
    VIEWS,
    Inputs,
    Operand,
    Outputs,
    operands,
    tensor,
)

__all__ = ["Inputs", "Operand", "Outputs", "base_name", "describe", "is_view", "read_bytes", "written_bytes"]

#: These write an argument without reading it.
_OVERWRITES = frozenset(("copy_", "copy", "_copy_from", "_copy_from_and_resize")) | FILLS | RANDOM

#: Each row meets the weights of its own group.
_GROUPED = frozenset(("_grouped_mm", "_scaled_grouped_mm"))


def base_name(name: str) -> str:
    """Give the operator's name without its namespace and overload.

    Examples
    --------
    >>> base_name("aten::add.Tensor"), base_name("aten::mm")
    ('add', 'mm')
    """
    return name.rpartition("::")[2].partition(".")[0]


def is_view(name: str) -> bool:
    """Whether an operator is known to be another look at the same memory, whatever its schema says."""
    return base_name(name) in VIEWS


def is_known(name: str) -> bool:
    """Whether an operator has a formula, or a known effect on memory, by its name."""
    base = base_name(name)
    return has_formula(base) or base in VIEWS or base in EMPTIES


def describe(
    name: str,
    inputs: Inputs,
    outputs: Outputs,
    *,
    view: bool = False,
    pointwise: bool = False,
    mutated: frozenset[str] = frozenset(),
) -> Work | None:
    """Say what one call of an operator computes and moves.

    Parameters
    ----------
    name : str
        torch's name: ``aten::addmm``.
    inputs, outputs
        Operands and plain values; inputs by the names of the operator's schema.
    view : bool
        The result lies in the memory of an argument and nothing is written.
    pointwise : bool
        torch tags it as pointwise: one operation an element, whatever its name.
    mutated : frozenset of str
        Arguments written in place.

    Returns
    -------
    Work or None
        None where nobody knows the arithmetic. Where what moves differs from the formula of the work (a
        broadcast operand, an argument written in place, a bias), the work says so in ``bytes_read`` and
        ``bytes_written``.

    Examples
    --------
    >>> given = {"self": Operand((1, 576)), "mat2": Operand((576, 64))}
    >>> work = describe("aten::mm", given, [Operand((1, 64))])
    >>> work.op, dict(work.dims)
    ('gemm', {'k': 576, 'm': 1, 'n': 64})
    """
    base = base_name(name)
    if view or base in VIEWS or base in EMPTIES:
        found = [*outputs, *(operand for _, operand in operands(inputs))]
        return Work.of("copy", found[0].dtype if found else "float32", elements=0)
    work = arithmetic(base, inputs, outputs, pointwise=pointwise)
    if work is None:
        return None
    said = dict(work.dims)
    read = sum(read_bytes(name, inputs, outputs, mutated))
    written = written_bytes(name, inputs, outputs, mutated)
    # What the operator knows better than its operands (packed weights), it has said.
    if "bytes_read" not in said and formulas.bytes_read(work) != read:
        said["bytes_read"] = int(read)
    if formulas.bytes_written(work) != written:
        said["bytes_written"] = int(written)
    return Work.of(work.op, work.dtype, work.count, kv_dtype=work.kv_dtype, **said)


def read_bytes(
    name: str, inputs: Inputs, outputs: Outputs, mutated: frozenset[str] = frozenset(), *, view: bool = False
) -> list[float]:
    """Bytes that one call reads of each operand, in the order of its arguments (lists item by item).

    A tensor named twice is read once; one of stride 0 as often as it lies in memory; one that is only written
    not at all. Gathers read the rows they take.

    Examples
    --------
    >>> x = Operand((8, 4), key="x")
    >>> read_bytes("aten::mul.Tensor", {"self": x, "other": x}, [Operand((8, 4))])
    [128.0, 0.0]
    """
    base = base_name(name)
    silent = view or base in VIEWS or base in EMPTIES or base in FILLS or base in RANDOM
    seen: set[object] = set()
    read: list[float] = []
    for argument, operand in operands(inputs):
        count = float(operand.nbytes)
        over = argument in mutated and (base in _OVERWRITES or base in SCATTERS)
        if silent or over or argument in ("out", "grad_input") or operand.key in seen:
            count = 0.0
        elif base in _GROUPED and argument in ("mat2", "mat_b"):
            count *= _share_reached(inputs, operand)
        elif not read:
            count = min(count, _taken(base, inputs, outputs, operand))
        if operand.key is not None:
            seen.add(operand.key)
        read.append(count)
    return read


def written_bytes(
    name: str, inputs: Inputs, outputs: Outputs, mutated: frozenset[str] = frozenset(), *, view: bool = False
) -> float:
    """Bytes that one call writes: each result once, of an argument written in place what is written."""
    base = base_name(name)
    if view or base in VIEWS or base in EMPTIES:
        return 0.0
    target = inputs.get("self")
    if base in SCATTERS and base.endswith("_") and isinstance(target, Operand):
        return min(_places(base, inputs) * target.itemsize, float(target.nbytes))
    if not outputs and base.startswith(("_foreach_", "_fused_")):
        return written_in_place(inputs, mutated)
    seen: set[object] = set()
    total = 0.0
    for operand in outputs:
        if operand.key is None or operand.key not in seen:
            total += operand.nbytes
        seen.add(operand.key)
    return total


def _taken(base: str, inputs: Inputs, outputs: Outputs, first: Operand) -> float:
    """Bytes of its first operand that a gather takes; any number for anything else."""
    if base in ("embedding_bag", "_embedding_bag"):
        indices = inputs.get("indices")
        rows = indices.numel if isinstance(indices, Operand) else 0
        return float(rows * first.shape[-1] * first.itemsize)
    if base in GATHERS or base == "embedding":
        return float(sum(out.numel for out in outputs) * first.itemsize)
    return float("inf")


def _share_reached(inputs: Inputs, weights: Operand) -> float:
    """The share of the groups' weights that some row meets, when rows are routed evenly at random."""
    rows = tensor(inputs, "self", "mat_a")
    if len(weights.shape) != 3 or not weights.shape[0]:
        return 1.0
    groups, top_k = weights.shape[0], max(int(str(inputs.get("top_k", 1))), 1)
    return formulas.experts_reached(rows.shape[0] / top_k, groups, min(top_k, groups)) / groups


def _places(base: str, inputs: Inputs) -> float:
    """Elements that a scatter writes: one value put in many places is written in each."""
    values = inputs.get(SCATTERS[base])
    index = inputs.get("index")
    sized = values if isinstance(values, Operand) else index
    indices = inputs.get("indices")
    many = (
        [place.numel for place in indices if isinstance(place, Operand)] if isinstance(indices, list) else []
    )
    places = max(many, default=0)
    return float(max(places, sized.numel if isinstance(sized, Operand) else 0))
