"""What compiled code computes: its original, run once more on fake tensors when the cell has ended.

The compiled code itself is never looked into. FLOPs are the original's; bytes are what even a perfect fusion
moves: what comes from outside is read once, what goes out is written once. A backward pass over compiled
calls gets those of autograd's way back through the same originals.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

from gimlet_lab.capture.devices import is_away
from gimlet_lab.capture.fakes import FakeWorld
from gimlet_lab.capture.kinds import is_composite, kind_of, tensors_in
from gimlet_lab.capture.mode import mode_class
from gimlet_lab.capture.timeline import Lane, OpenSpan, Timeline
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
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Any) -> _Shape:
        return cls(
            tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device, tensor.requires_grad
        )


@dataclass(frozen=True)
class _Called:
    """The first call of a kind."""

    span: OpenSpan
    function: Callable[..., Any]
    given: tuple[Any, ...]
    named: dict[str, Any]
    device: str


@dataclass(frozen=True)
class _Cache:
    """A KV cache or a layer of one that was given, without its values."""

    kind: type
    held: dict[str, Any]


_Key = tuple[int, str]


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
        self._calls: dict[_Key, _Called] = {}
        #: By thread, what was called since its last backward pass; and passes looked at, with these.
        self._since: dict[int, Counter[_Key]] = defaultdict(Counter)
        self._backward: list[tuple[OpenSpan, Counter[_Key]]] = []

    def called(
        self,
        span: OpenSpan,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        device: str,
        *,
        again: bool = False,
    ) -> None:
        """Keep the shapes of what a compiled call is given, once for each kind; it gets a signature.

        ``again``: it has grown since, and is to be counted once more.
        """
        key = id(function), span.signature or ""
        if again and key in self._calls:
            key = id(function), f"{span.signature}, {span.number}"
        if not span.signature or key not in self._calls:
            try:
                given, named = self._shapes(args), self._shapes(kwargs)
            except (TypeError, RuntimeError) as error:
                self.timeline.note(f"{span.name}: compiled, and not counted: {error}")
                return
            if not span.signature:
                span.signature = f"{given} {named}"
                key = id(function), span.signature
            self._calls.setdefault(key, _Called(span, function, given, named, device))
        if self.torch.is_grad_enabled():
            lane = self.timeline.lane()
            lane.history = hash((lane.history, key))
            self._since[lane.index][key] += 1

    def went_back(self, lane: Lane, span: OpenSpan, roots: Sequence[Any]) -> bool:
        """A backward pass begins, over the compiled calls of its thread since the one before.

        Returns
        -------
        bool
            Whether it runs compiled code: not all that is compiled has a way back that is.
        """
        over = self._since.pop(lane.index, None)
        if not over or not span.looked:
            return False
        if not any(node.name() == "CompiledFunctionBackward" for node in _nodes(roots)):
            return False
        self._backward.append((span, over))
        return True

    def count(self, spans: tuple[Span, ...], rows: Sequence[Op]) -> Iterator[Op]:
        """One row for each kind of compiled call, and of backward pass, whose originals run on fake tensors.

        Parameters
        ----------
        spans : tuple of Span
            Numbered by their place.
        rows : sequence of Op
            What was seen of the backward passes: the rest of their time is the compiled code's.
        """
        if not self._calls:
            return
        gone_back = {key for _, over in self._backward for key in over}
        found: dict[_Key, _Counted] = {}
        world = FakeWorld(self.namespace, self.is_cell_file)
        for key, called in self._calls.items():
            span = called.span
            if not 0 <= span.number < len(spans) or "error" in span.attributes:
                continue
            try:
                world.enter()
                try:
                    found[key] = self._count(called, back=key in gone_back)
                finally:
                    world.leave()
            except Exception as error:  # noqa: BLE001 - the user's code, on what it was not written for
                reason = str(error).partition("\n")[0]
                self.timeline.note(f"{span.name}: compiled, and not counted on fake tensors: {reason}")
                continue
            span.attributes["counted"] = "on fake tensors"
            here = spans[span.number]
            yield found[key].forward.row(here, called.device, here.duration_s)
        for span, over in self._backward:
            if not 0 <= span.number < len(spans):
                continue
            seen_s = sum(row.duration_s for row in rows if row.span == span.number)
            rest_s = max(0.0, spans[span.number].duration_s - seen_s)
            for key, times in over.items():
                back = found[key].backward if key in found else None
                if back is not None:
                    share_s = rest_s * times / over.total()
                    yield back.row(spans[span.number], self._calls[key].device, share_s, times)

    def _shapes(self, value: Any) -> Any:
        if isinstance(value, self.torch.Tensor):
            return _Shape.of(value)
        if type(value) in (list, tuple):
            return type(value)(self._shapes(item) for item in value)
        if type(value) is dict:
            return {name: self._shapes(item) for name, item in value.items()}
        if isinstance(value, (*_PLAIN, self.torch.dtype, self.torch.device)):
            return value
        if hasattr(value, "get_seq_length") and hasattr(value, "__dict__"):
            return _Cache(type(value), {name: self._held(item) for name, item in vars(value).items()})
        raise TypeError(f"a {type(value).__name__} among its arguments may keep tensors")

    def _held(self, value: Any) -> Any:
        """What a cache holds; an object that is neither a tensor nor a layer (its config) is itself."""
        try:
            return self._shapes(value)
        except TypeError:
            if type(value) in (list, tuple, dict):
                raise
            return value

    def _made(self, value: Any, cached: list[Any]) -> Any:
        """Fake tensors in the place of those that were given; a cache's are ``cached``."""
        if isinstance(value, _Cache):
            made: Any = object.__new__(value.kind)
            inside = {name: self._made(item, cached) for name, item in value.held.items()}
            vars(made).update(inside)
            cached += [item for item in inside.values() if isinstance(item, self.torch.Tensor)]
            return made
        if isinstance(value, _Shape):
            made = self.torch.empty_strided(
                value.size,
                value.stride,
                dtype=value.dtype,
                device=value.device,
                requires_grad=value.requires_grad,
            )
            # The original may write into what some operator made, but not into a leaf of autograd's graph.
            return made.clone() if value.requires_grad else made
        if type(value) in (list, tuple):
            return type(value)(self._made(item, cached) for item in value)
        if type(value) is dict:
            return {name: self._made(item, cached) for name, item in value.items()}
        return value

    def _count(self, called: _Called, *, back: bool) -> _Counted:
        """What one call's original computes on fake tensors, and autograd on its way back."""
        torch, forward, backward = self.torch, _Counter(self.torch), _Counter(self.torch)
        cached: list[Any] = []
        given, named = self._made(called.given, cached), self._made(called.named, cached)
        cache = {_where(tensor) for tensor in cached}
        kept: list[Any] = []

        def keep(tensor: Any) -> Any:
            kept.append(tensor)
            return tensor

        with contextlib.ExitStack() as around:
            around.enter_context(contextlib.redirect_stdout(io.StringIO()))
            around.enter_context(torch.compiler.set_stance("force_eager"))
            around.enter_context(torch.set_grad_enabled(back))
            around.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
            with forward.mode:
                out = _tensors(torch, called.function(*given, **named))
            roots = [tensor for tensor in out if tensor.requires_grad]
            # The graph's ends gather gradients.
            leaves = [node.variable for node in _nodes(roots) if hasattr(node, "variable")]
            seeds = [torch.empty_like(root) for root in roots]
            gradients: Sequence[Any] = ()
            if leaves:
                with backward.mode:
                    gradients = torch.autograd.grad(roots, leaves, seeds, allow_unused=True)
        unknown = forward.unknown | backward.unknown
        if unknown:
            names = ", ".join(sorted(unknown)[:4])
            self.timeline.note(f"{called.span.name}: compiled; FLOPs unknown, no formula: {names}")
        weights = (
            set(forward.outside) - {_where(tensor) for tensor in _tensors(torch, (given, named))} - cache
        )
        # What is kept for the way back was written as well.
        again = backward.total(_tensors(torch, gradients), weights, set()) if leaves else None
        return _Counted(forward.total([*out, *kept], weights, cache), again)


class _Total(NamedTuple):
    """Sums over the operators of one call."""

    dtype: str
    flops: float
    read: float
    written: float
    weights: float
    cache: float

    def row(self, span: Span, device: str, duration_s: float, count: int = 1) -> Op:
        """So many calls of it as one operator."""
        read, written = round(self.read), round(self.written)
        return Op(
            op="compiled",
            span=span.id,
            module="",
            work=Work.of(
                "other", self.dtype, flops=round(self.flops), bytes_read=read, bytes_written=written
            ),
            start_s=span.start_s,
            duration_s=duration_s,
            flops=self.flops * count,
            bytes_read=self.read * count,
            bytes_written=self.written * count,
            dtype=self.dtype,
            device=device,
            count=count,
            weight_bytes=self.weights * count,
            kv_bytes=self.cache * count,
            device_timed=is_away(device),
        )


class _Counted(NamedTuple):
    """One call, and the way back over it, if a backward pass took it."""

    forward: _Total
    backward: _Total | None


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
            where = _where(tensor)
            if where not in self._inside:
                self.outside[where] = max(self.outside.get(where, 0.0), nbytes)
        for tensor in tensors_in(out, self.torch.Tensor):
            if _where(tensor) not in self.outside and not kind.view:
                # Kept, so that none takes its place.
                self._inside[_where(tensor)] = tensor.untyped_storage()
        return out

    def total(self, given_out: Iterable[Any], weights: set[int], cache: set[int]) -> _Total:
        """All of it; what operators made and gave out was written, the rest stayed inside."""
        written = {_where(tensor): float(tensor.nbytes) for tensor in given_out}
        return _Total(
            dtype=max(self.flops, key=lambda name: self.flops[name], default="float32"),
            flops=sum(self.flops.values()),
            read=sum(self.outside.values()),
            written=sum(nbytes for where, nbytes in written.items() if where in self._inside),
            weights=sum(nbytes for where, nbytes in self.outside.items() if where in weights),
            cache=sum(nbytes for where, nbytes in self.outside.items() if where in cache),
        )


def is_way_back(frame: FrameType | None) -> bool:
    """Whether what runs in this frame is a compiled backward pass."""
    while frame is not None:
        if frame.f_code.co_filename.endswith("_aot_autograd/runtime_wrappers.py"):
            return True
        frame = frame.f_back
    return False


def _nodes(roots: Sequence[Any]) -> list[Any]:
    """Autograd's graph behind these tensors."""
    seen: dict[Any, None] = {}
    ahead = [root.grad_fn for root in roots]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen[node] = None
            ahead += [following for following, _ in node.next_functions]
    return list(seen)


def _tensors(torch: Any, value: Any) -> list[Any]:
    leaves = torch.utils._pytree.tree_leaves(value)  # noqa: SLF001 - results are what torch.export takes as well
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _where(tensor: Any) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - as torch.multiprocessing does
