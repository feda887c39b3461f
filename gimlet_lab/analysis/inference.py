"""Operators of calls that were not looked at, from calls of the same signature that were.

What grows with the KV cache lies on a line between two looked-at lengths. Calls in a row become one set of
rows at their mean length: counts and sums are exact where growth is linear, and a decode loop stays a few
rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from gimlet_lab.analysis.calls import Call, likeness, past
from gimlet_lab.model import Op, Recording, Span, Work
from gimlet_lab.work import formulas


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of a call that was not looked at.

    Attributes
    ----------
    like : int
        Span id of the looked-at call that it is nearest to.
    flops, bytes : float or None
    """

    like: int
    flops: float | None
    bytes: float | None

    @classmethod
    def of(cls, span: int, ops: Sequence[Op]) -> Model:
        """Sum up a looked-at call."""
        moved = [_plus(op.bytes_read, op.bytes_written) for op in ops]
        return cls(span, _known([op.flops for op in ops]), _known(moved))


@dataclass(frozen=True, slots=True)
class Inference:
    """Rows for calls not looked at, and what each of them did.

    Attributes
    ----------
    rows : tuple of Op
    models : mapping of span id to Model
    """

    rows: tuple[Op, ...]
    models: Mapping[int, Model]


@dataclass(frozen=True, slots=True)
class _Template:
    """A looked-at call: its operators, what they sum to, and the seconds their durations are a share of."""

    call: Call
    ops: tuple[Op, ...]
    at: float
    busy_s: float
    sum: Model

    @classmethod
    def of(cls, call: Call, ops: Sequence[Op]) -> _Template:
        # The whole call, or its operators where the looking made those longer.
        busy_s = max(call.warm_s, sum(op.duration_s for op in ops), 1e-12)
        return cls(call, tuple(ops), past(call.span), busy_s, Model.of(call.span.id, ops))


def infer(recording: Recording, calls: Mapping[int, Call]) -> Inference:
    """Work out the operators of every call with a signature that was not looked at."""
    ops: dict[int, list[Op]] = defaultdict(list)
    for op in recording.ops:
        ops[op.span].append(op)
    groups: dict[tuple[object, ...], list[Call]] = defaultdict(list)
    for call in sorted(calls.values(), key=lambda call: call.span.start_s):
        # Of a call that failed nobody knows how far it came.
        whole = "error" not in call.span.attributes
        if whole and (call.span.kind == "module" or call.span.signature is not None):
            groups[likeness(call.span)].append(call)
    rows: list[Op] = []
    models: dict[int, Model] = {}
    for group in groups.values():
        if all(_is_known(call.span) for call in group):
            continue
        templates = [
            _Template.of(call, ops[call.span.id])
            for call in group
            if _is_known(call.span) and ops[call.span.id]
        ]
        if not templates:
            continue
        templates.sort(key=lambda template: template.at)
        for stretch, pair in _stretches(group, templates):
            rows += _rows(stretch, pair)
            for call in stretch:
                models[call.span.id] = _model(call, pair)
    rows.sort(key=lambda op: op.start_s)
    return Inference(tuple(rows), models)


def _is_known(span: Span) -> bool:
    """Whether its own operators were recorded, or its compiled code's were counted."""
    return span.looked or "counted" in span.attributes


_Pair = tuple[_Template, _Template]


def _stretches(group: Sequence[Call], templates: Sequence[_Template]) -> list[tuple[list[Call], _Pair]]:
    """Calls in a row that were not looked at and lie between the same two templates."""
    found: list[tuple[list[Call], _Pair]] = []
    current: tuple[list[Call], _Pair] | None = None
    for call in group:
        if _is_known(call.span):
            current = None
            continue
        pair = _around(past(call.span), templates)
        grows = current is not None and past(call.span) >= past(current[0][-1].span)
        if current is None or current[1] != pair or not grows:
            current = ([], pair)
            found.append(current)
        current[0].append(call)
    return found


def _around(at: float, templates: Sequence[_Template]) -> _Pair:
    """The two templates whose lengths lie around a length, or the two nearest on one side."""
    above = next((index for index, template in enumerate(templates) if template.at >= at), len(templates) - 1)
    above = max(above, min(1, len(templates) - 1))
    return templates[max(above - 1, 0)], templates[above]


def _rows(stretch: Sequence[Call], pair: _Pair) -> list[Op]:
    count = len(stretch)
    seconds = sum(call.clean_s for call in stretch)
    at = sum(past(call.span) for call in stretch) / count
    first = stretch[0].span
    ops, busy_s = _at(pair, at)
    merged: dict[tuple[object, ...], Op] = {}
    for op in ops:
        key = (op.op, op.module, op.work, op.dtype, op.device, op.flops is None, op.bytes_read is None)
        seen = merged.get(key)
        merged[key] = op if seen is None else _sum(seen, op)
    # Not by dataclasses.replace, which takes twice as long: there are thousands.
    return [
        Op(
            op=op.op,
            span=first.id,
            module=op.module,
            work=op.work,
            start_s=first.start_s,
            duration_s=op.duration_s / busy_s * seconds,
            flops=_times(op.flops, count),
            bytes_read=_times(op.bytes_read, count),
            bytes_written=_times(op.bytes_written, count),
            dtype=op.dtype,
            device=op.device,
            count=op.count * count,
            weight_bytes=op.weight_bytes * count,
            kv_bytes=op.kv_bytes * count,
            device_timed=op.device_timed,
            gradient_bytes=op.gradient_bytes * count,
            state_bytes=op.state_bytes * count,
        )
        for op in merged.values()
    ]


def _model(call: Call, pair: _Pair) -> Model:
    at = past(call.span)
    near = min(pair, key=lambda template: abs(template.at - at))
    weight, (low, high) = _weight(pair, at), pair
    return Model(
        near.call.span.id,
        _between(low.sum.flops, high.sum.flops, weight),
        _between(low.sum.bytes, high.sum.bytes, weight),
    )


def _known(values: Sequence[float | None]) -> float | None:
    """Sum what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _weight(pair: _Pair, at: float) -> float:
    low, high = pair[0].at, pair[1].at
    return (at - low) / (high - low) if high != low else 0.0


def _at(pair: _Pair, at: float) -> tuple[list[Op], float]:
    """The operators of one call at a KV length, and the seconds their durations are a share of."""
    low, high = pair
    alike = len(low.ops) == len(high.ops) and all(
        (a.op, a.module, a.count) == (b.op, b.module, b.count) for a, b in zip(low.ops, high.ops, strict=True)
    )
    if alike and low.at != high.at:
        weight = _weight(pair, at)
        ops = [_blend(a, b, weight) for a, b in zip(low.ops, high.ops, strict=True)]
        return ops, max(_between(low.busy_s, high.busy_s, weight) or 0.0, sum(op.duration_s for op in ops))
    near = min(pair, key=lambda template: abs(template.at - at))
    return [_longer(op, near.at, at - near.at) for op in near.ops], near.busy_s


def _blend(a: Op, b: Op, weight: float) -> Op:
    return replace(
        a,
        work=_blend_work(a.work, b.work, weight),
        duration_s=_between(a.duration_s, b.duration_s, min(max(weight, 0.0), 1.0)) or 0.0,
        flops=_between(a.flops, b.flops, weight),
        bytes_read=_between(a.bytes_read, b.bytes_read, weight),
        bytes_written=_between(a.bytes_written, b.bytes_written, weight),
        weight_bytes=_between(a.weight_bytes, b.weight_bytes, weight) or 0.0,
        kv_bytes=_between(a.kv_bytes, b.kv_bytes, weight) or 0.0,
    )


def _blend_work(a: Work | None, b: Work | None, weight: float) -> Work | None:
    if a is None or b is None or a == b or a.op != b.op or [n for n, _ in a.dims] != [n for n, _ in b.dims]:
        return a
    dims = tuple(
        (name, max(0, round(x + (y - x) * weight))) for (name, x), (_, y) in zip(a.dims, b.dims, strict=True)
    )
    return replace(a, dims=dims)


def _longer(op: Op, past: float, more: float) -> Op:
    """The operator at a longer KV cache, as far as its work says what that changes."""
    work = op.work
    if not more or work is None:
        return op
    if work.get("kv_len", 0) <= 0:
        return _copied(op, op.kv_bytes * more / past) if work.op == "copy" and past > 0 else op
    at = max(1.0, work["kv_len"] + more)
    low, high = _with_kv_len(work, int(at)), _with_kv_len(work, int(at) + 1)

    def grown(value: float | None, formula: Callable[[Work], float | None]) -> float | None:
        before, after = formula(work), _between(formula(low), formula(high), at - int(at))
        return value if not value or not before or after is None else value * after / before

    return replace(
        op,
        work=_with_kv_len(work, round(at)),
        flops=grown(op.flops, formulas.flops),
        bytes_read=grown(op.bytes_read, formulas.bytes_read),
        kv_bytes=op.kv_bytes * at / work["kv_len"],
    )


def _copied(op: Op, more_bytes: float) -> Op:
    """A copy of the cache, so many bytes longer on both sides."""
    if not more_bytes or op.bytes_read is None or op.bytes_written is None:
        return op
    return replace(
        op,
        bytes_read=op.bytes_read + more_bytes,
        bytes_written=op.bytes_written + more_bytes,
        kv_bytes=op.kv_bytes + more_bytes,
    )


def _with_kv_len(work: Work, kv_len: int) -> Work:
    return replace(
        work, dims=tuple((name, kv_len if name == "kv_len" else value) for name, value in work.dims)
    )


def _sum(a: Op, b: Op) -> Op:
    return replace(
        a,
        duration_s=a.duration_s + b.duration_s,
        flops=_plus(a.flops, b.flops),
        bytes_read=_plus(a.bytes_read, b.bytes_read),
        bytes_written=_plus(a.bytes_written, b.bytes_written),
        count=a.count + b.count,
        weight_bytes=a.weight_bytes + b.weight_bytes,
        kv_bytes=a.kv_bytes + b.kv_bytes,
        gradient_bytes=a.gradient_bytes + b.gradient_bytes,
        state_bytes=a.state_bytes + b.state_bytes,
    )


def _between(a: float | None, b: float | None, weight: float) -> float | None:
    return None if a is None or b is None else max(0.0, a + (b - a) * weight)


def _plus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _times(value: float | None, count: int) -> float | None:
    return None if value is None else value * count
