"""A recording that is being made of a trace: rows and spans that later steps still move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from gimlet_lab.capture.signatures import Meaning, Signatures
from gimlet_lab.capture.timeline import MAX_SPANS
from gimlet_lab.model import Op, Span, Work

#: Rows kept: those after them are counted and left out.
MAX_ROWS = 1_000_000


@dataclass(slots=True)
class Row:
    """An operator, or a kernel that none launched.

    Attributes
    ----------
    rf_id : int
        Of the execution trace; −1: none.
    on_device : bool
        Its time is a device's, not the host's.
    moved : float or None
        Bytes, where it is a copy between host and device.
    live : bool
        Not found to be only made of others.
    """

    meaning: Meaning
    span: int
    thread: int
    path: str
    start_s: float
    duration_s: float
    rf_id: int = -1
    device: str = "cpu"
    on_device: bool = False
    moved: float | None = None
    live: bool = True


@dataclass(slots=True)
class Launch:
    """Calls that launched work, by column: correlation id, row, span, moment."""

    correlation: list[int] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    span: list[int] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Draft:
    """What is known so far.

    Attributes
    ----------
    launches : Launch
    outer : mapping of External id to row
        The row that an operator is, or lies in.
    accelerated : set of int
        Spans with work on an accelerator.
    backward : bool
        There is a backward pass in it.
    """

    signatures: Signatures
    rows: list[Row] = field(default_factory=list)
    spans: list[Span] = field(default_factory=lambda: [Span(0, "cell", "cell", 0.0, 0.0)])
    launches: Launch = field(default_factory=Launch)
    outer: dict[int, int] = field(default_factory=dict)
    accelerated: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    backward: bool = False
    dropped_rows: int = 0
    dropped_spans: int = 0

    def add_row(self, row: Row) -> int:
        """Keep a row and give its number; −1 where there are too many."""
        if len(self.rows) >= MAX_ROWS:
            self.dropped_rows += 1
            return -1
        self.rows.append(row)
        return len(self.rows) - 1

    def has_room(self) -> bool:
        """Whether one more span is kept."""
        self.dropped_spans += len(self.spans) >= MAX_SPANS
        return len(self.spans) < MAX_SPANS

    def live(self) -> list[Row]:
        """Rows that stay, by start."""
        return sorted((row for row in self.rows if row.live), key=lambda row: row.start_s)

    def ops(self) -> tuple[Op, ...]:
        """Rows as the noun, equal ones back to back as one."""
        groups = groupby(
            self.live(), key=lambda row: (id(row.meaning), row.span, row.path, row.device, row.on_device)
        )
        return tuple(_op(list(group), weighed=not self.backward) for _, group in groups)

    def said(self) -> list[str]:
        """Notes, and what was left out."""
        said = list(self.notes)
        if not any(span.kind == "module" for span in self.spans):
            said.append("no module calls in the trace: torch.profiler writes them with with_stack=True")
        for count, what, limit in (
            (self.dropped_rows, "operators", MAX_ROWS),
            (self.dropped_spans, "spans", MAX_SPANS),
        ):
            if count:
                said.append(f"truncated: {count:,} {what} after the first {limit:,} were left out")
        if self.signatures.left_out:
            said.append(
                f"{self.signatures.left_out:,} operators with too many different shapes: FLOPs unknown"
            )
        return said


def _op(rows: Sequence[Row], *, weighed: bool) -> Op:
    first, count = rows[0], len(rows)
    meaning, kind = first.meaning, first.meaning.kind
    work, read, written = kind.work, kind.read, kind.written
    moved = [row.moved for row in rows if row.moved is not None]
    if len(moved) == count:
        mean = sum(moved) / count
        work, read, written = Work.of("send", kind.dtype or "uint8", bytes=round(mean)), mean, mean
    return Op(
        op=kind.name,
        span=first.span,
        module=first.path,
        work=work,
        start_s=first.start_s,
        duration_s=sum(row.duration_s for row in rows),
        flops=None if kind.flops is None else kind.flops * count,
        bytes_read=None if read is None else read * count,
        bytes_written=None if written is None else written * count,
        dtype=kind.dtype,
        device=first.device,
        count=count,
        weight_bytes=meaning.weight_bytes * count if weighed else 0.0,
        kv_bytes=meaning.kv_bytes * count,
        device_timed=first.on_device,
    )
