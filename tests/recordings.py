"""Recordings made by hand: a clock that only moves when told, spans that nest as functions do.

>>> tape = Tape()
>>> with tape.function("search"):
...     tape.wait(0.1)
>>> tape.recording().spans[1].duration_s
0.1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gimlet_lab.model import Device, ModuleInfo, Op, Quantity, Recording, Sample, Span, Transfer, Work

#: What the tests' device reaches: round numbers, so that expectations can be worked out in the head.
FLOPS = 100e9
BYTES_PER_S = 10e9
LAUNCH_S = 1e-6


def device(**more: Any) -> Device:
    def known(value: float) -> Quantity:
        return Quantity(value, "made up", "2026-01-01", "measured")

    values: dict[str, Any] = {
        "achieved_flops": {"float32": known(FLOPS)},
        "achieved_bandwidth_bytes_per_s": known(BYTES_PER_S),
        "copy_bandwidth_bytes_per_s": known(BYTES_PER_S),
        "launch_s": known(LAUNCH_S),
        **more,
    }
    return Device("cpu", "test", "test", "cpu", live=True, **values)


class Tape:
    """What a recorder would have seen of a program that we act out."""

    def __init__(self) -> None:
        self.now = 0.0
        self.spans: list[Span] = [Span(0, "cell", "cell", 0.0, 0.0)]
        self.ops: list[Op] = []
        self.transfers: list[Transfer] = []
        self.samples: list[Sample] = []
        self.frames: dict[int, tuple[str, int]] = {}
        self.functions: dict[int, tuple[str, int]] = {}
        self._stack = [0]

    # -- time --------------------------------------------------------------------------------------------

    def run(
        self, seconds: float, *, runnable: float = 0.0, blocked: float = 0.0, others: float = 0.0
    ) -> None:
        """Let time pass; what is neither runnable nor blocked runs on a core."""
        running = seconds - runnable - blocked
        self.samples.append(Sample(self.now, seconds, running, runnable, blocked, others))
        self.now += seconds

    def wait(self, seconds: float) -> None:
        self.run(seconds, blocked=seconds)

    def stop(self, seconds: float) -> None:
        """The whole process stands still."""
        self.samples.append(Sample(self.now, seconds, 0.0, 0.0, 0.0, 0.0))
        self.now += seconds

    # -- spans -------------------------------------------------------------------------------------------

    @contextmanager
    def span(self, name: str, kind: str, **fields: Any) -> Iterator[int]:
        number = len(self.spans)
        began = self.now
        self.spans.append(Span(number, name, kind, began, 0.0, self._stack[-1], **fields))
        self._stack.append(number)
        try:
            yield number
        finally:
            self._stack.pop()
            self.spans[number] = Span(
                number, name, kind, began, self.now - began, self.spans[number].parent, **fields
            )

    @contextmanager
    def function(
        self,
        name: str,
        *,
        called_at: tuple[str, int] | None = None,
        defined_at: tuple[str, int] | None = None,
        **fields: Any,
    ) -> Iterator[int]:
        with self.span(name, "function", **{"target": name, **fields}) as number:
            if called_at is not None:
                self.frames[number] = called_at
            if defined_at is not None:
                self.functions[number] = defined_at
            yield number

    @contextmanager
    def module(
        self, target: str, role: str = "forward", *, looked: bool = False, **attributes: Any
    ) -> Iterator[int]:
        shape = f"{attributes.get('q_len')}"
        with self.span(
            target.title(),
            "module",
            target=target,
            role=role,
            looked=looked,
            signature=shape,
            attributes=attributes,
        ) as number:
            yield number

    # -- operators and data ------------------------------------------------------------------------------

    def op(
        self,
        seconds: float,
        *,
        flops: float | None = 0.0,
        moved: float | None = 0.0,
        count: int = 1,
        name: str = "aten::mm",
        work: Work | None = None,
        kv: float = 0.0,
        dtype: str = "float32",
        module: str = "",
    ) -> None:
        """An operator of the innermost span; of the bytes moved, nearly all are read."""
        read = None if moved is None else moved
        written = None if moved is None else 0.0
        self.ops.append(
            Op(
                name,
                self._stack[-1],
                module,
                work,
                self.now,
                seconds,
                flops,
                read,
                written,
                dtype,
                "cpu",
                count,
                0.0,
                kv,
            )
        )
        self.run(seconds)

    def move(
        self,
        producer: int,
        consumer: int,
        name: str = "x",
        *,
        size: float | None = 8.0,
        kind: str = "activation",
        known: str = "tensor",
        key: str | None = None,
    ) -> None:
        """The consumer is given what the producer made; one key, one datum."""
        label = key or f"{producer}:{name}"
        self.transfers.append(Transfer(producer, consumer, name, kind, known, size, label))

    def recording(
        self,
        *,
        modules: tuple[ModuleInfo, ...] = (),
        sources: Mapping[str, str] | None = None,
        declared: Mapping[str, Mapping[str, Any]] | None = None,
        sampled: bool = True,
    ) -> Recording:
        self.spans[0] = Span(0, "cell", "cell", 0.0, self.now)
        return Recording(
            tuple(self.spans),
            tuple(self.ops),
            tuple(self.transfers),
            tuple(self.samples) if sampled else (),
            modules,
            sources or {},
            self.frames,
            self.functions,
            declared or {},
        )
