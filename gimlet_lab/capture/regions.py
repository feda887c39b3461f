"""What compiled code computes: its original, run once more on fake tensors when the cell has ended.

The compiled code itself is never looked into. FLOPs are the original's; bytes are what even a perfect fusion
moves: what comes from outside is read once, what goes out is written once.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gimlet_lab.capture.fakes import FakeWorld
from gimlet_lab.capture.kinds import is_composite, kind_of, tensors_in
from gimlet_lab.capture.mode import mode_class
from gimlet_lab.capture.timeline import OpenSpan, Timeline
from gimlet_lab.model import Op, Span, Work

#: What an argument may be besides tensors, lists and dictionaries: anything else may keep tensors.
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


@dataclass(frozen=True)
class _Shape:
    """A tensor that was given, without its values."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: Any
    device: Any

    @classmethod
    def of(cls, tensor: Any) -> _Shape:
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device)


@dataclass(frozen=True)
class _Called:
    """The first call of a kind."""

    span: OpenSpan
    function: Callable[..., Any]
    given: tuple[Any, ...]
    named: dict[str, Any]
    device: str


class Regions:
    """Compiled calls of one recording.

    Parameters
    ----------
    torch
        The module, imported by the user's code.
    timeline
        Where it is said what could not be counted.
    namespace : mapping
        The notebook's: what its modules and names are afterwards, they were before.
    is_cell_file : callable
    """

    def __init__(
        self,
        torch: Any,
        timeline: Timeline,
        namespace: Mapping[str, Any],
        is_cell_file: Callable[[str], bool],
    ) -> None:
        self.torch = torch
        self.timeline = timeline
        self.namespace = namespace
        self.is_cell_file = is_cell_file
        self._calls: dict[tuple[int, str], _Called] = {}

    def called(
        self,
        span: OpenSpan,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        device: str,
    ) -> None:
        """Keep the shapes of what a compiled call is given, once for each kind; it gets a signature."""
        try:
            given, named = self._shapes(args), self._shapes(kwargs)
        except (TypeError, RuntimeError) as error:
            self.timeline.note(f"{span.name}: compiled, and not counted: {error}")
            return
        if span.signature is None:
            span.signature = f"{given} {named}"
        key = id(function), span.signature
        if key not in self._calls:
            self._calls[key] = _Called(span, function, given, named, device)

    def count(self, spans: tuple[Span, ...]) -> Iterator[Op]:
        """One row for each kind of compiled call whose original runs on fake tensors."""
        if not self._calls:
            return
        world = FakeWorld(self.namespace, self.is_cell_file)
        for called in self._calls.values():
            span = called.span
            if not 0 <= span.number < len(spans) or "error" in span.attributes:
                continue
            try:
                world.enter()
                try:
                    row = self._count(called, spans[span.number])
                finally:
                    world.leave()
            except Exception as error:  # noqa: BLE001 - the user's code, on what it was not written for
                reason = str(error).partition("\n")[0]
                self.timeline.note(f"{span.name}: compiled, and not counted on fake tensors: {reason}")
                continue
            span.attributes["counted"] = "on fake tensors"
            yield row

    def _shapes(self, value: Any) -> Any:
        if isinstance(value, self.torch.Tensor):
            return _Shape.of(value)
        if type(value) in (list, tuple):
            return type(value)(self._shapes(item) for item in value)
        if type(value) is dict:
            return {name: self._shapes(item) for name, item in value.items()}
        if isinstance(value, (*_PLAIN, self.torch.dtype, self.torch.device)):
            return value
        raise TypeError(f"a {type(value).__name__} among its arguments may keep tensors")

    def _made(self, value: Any) -> Any:
        if isinstance(value, _Shape):
            return self.torch.empty_strided(value.size, value.stride, dtype=value.dtype, device=value.device)
        if type(value) in (list, tuple):
            return type(value)(self._made(item) for item in value)
        if type(value) is dict:
            return {name: self._made(item) for name, item in value.items()}
        return value

    def _count(self, called: _Called, span: Span) -> Op:
        counter = _Counter(self.torch)
        given, named = self._made(called.given), self._made(called.named)
        quiet = contextlib.redirect_stdout(io.StringIO())
        with quiet, self.torch.no_grad(), self.torch.compiler.set_stance("force_eager"), counter.mode:
            out = called.function(*given, **named)
        if counter.unknown:
            names = ", ".join(sorted(counter.unknown)[:4])
            self.timeline.note(f"{span.name}: compiled; FLOPs unknown, no formula: {names}")
        dtype = max(counter.flops, key=lambda name: counter.flops[name], default="float32")
        flops = sum(counter.flops.values())
        read, written = sum(counter.outside.values()), counter.result_bytes(out)
        work = Work.of(
            "other", dtype, flops=round(flops), bytes_read=round(read), bytes_written=round(written)
        )
        return Op(
            op="compiled",
            span=span.id,
            module="",
            work=work,
            start_s=span.start_s,
            duration_s=span.duration_s,
            flops=flops,
            bytes_read=read,
            bytes_written=written,
            dtype=dtype,
            device=called.device,
            weight_bytes=read - counter.given_bytes((given, named)),
            device_timed=not called.device.startswith(("cpu", "meta")),
        )


class _Counter:
    """Sums up operators, and what of their operands came from outside."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.flops: dict[str, float] = defaultdict(float)
        self.unknown: set[str] = set()
        #: Bytes read of each storage that no operator made.
        self.outside: dict[int, float] = {}
        self._inside: dict[int, Any] = {}
        self.mode = mode_class(torch)(self.dispatch, Timeline(float).lane())

    def dispatch(self, _lane: object, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator and count it."""
        if is_composite(func):
            with self.mode:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        kind = kind_of(func, args, kwargs, out, self.torch.Tensor)
        if kind.flops is None:
            self.unknown.add(kind.name)
        elif kind.flops:
            self.flops[kind.dtype] += kind.flops
        for tensor, nbytes in zip(
            tensors_in([*args, *kwargs.values()], self.torch.Tensor), kind.reads, strict=False
        ):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._inside:  # noqa: SLF001 - as torch.multiprocessing does
                seen = self.outside.get(storage._cdata, 0.0)  # noqa: SLF001 - see above
                self.outside[storage._cdata] = max(seen, nbytes)  # noqa: SLF001 - see above
        for tensor in tensors_in(out, self.torch.Tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.outside and not kind.view:  # noqa: SLF001 - see above
                self._inside[storage._cdata] = storage  # noqa: SLF001 - kept, so that none takes its place
        return out

    def result_bytes(self, out: Any) -> float:
        """Bytes of what operators made and the call gives out."""
        found = {
            tensor.untyped_storage()._cdata: float(tensor.nbytes)  # noqa: SLF001 - see above
            for tensor in self._tensors(out)
        }
        return sum(nbytes for address, nbytes in found.items() if address in self._inside)

    def given_bytes(self, given: Any) -> float:
        """Bytes read of the arguments."""
        addresses = {tensor.untyped_storage()._cdata for tensor in self._tensors(given)}  # noqa: SLF001 - see above
        return sum(nbytes for address, nbytes in self.outside.items() if address in addresses)

    def _tensors(self, value: Any) -> list[Any]:
        leaves = self.torch.utils._pytree.tree_leaves(value)  # noqa: SLF001 - results are what torch.export takes as well
        return [leaf for leaf in leaves if isinstance(leaf, self.torch.Tensor)]
