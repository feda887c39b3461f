"""Who made a tensor or an object, and who reads it.

A tensor is known by its storage, a numpy array by the array that owns its memory, Arrow data by the memory it
lies in, anything else by its identity. An identity counts only while the thing lives: it is watched through
weak references, and what cannot be watched (strings, plain lists) is held, but only if it holds nothing of
weight itself. So a recycled address never makes an edge, and no tensor lives longer than the user wants.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from gimlet_lab.capture.arrow import memories
from gimlet_lab.capture.sizes import ATOMS, CONTAINERS, DEPTH, carried_size, items_of, plain_size
from gimlet_lab.capture.timeline import OpenSpan
from gimlet_lab.model import Transfer

#: Shorter strings are likely to be shared by accident.
SHORTEST_TEXT = 16

#: Plain objects that we may hold on to, in bytes: each, and all together.
HELD_EACH = 16 << 20
HELD_ALL = 64 << 20

#: Data that one tensor is made of, at most.
MAX_SOURCES = 64

#: Data remembered before those that are gone are forgotten.
SWEEP_AT = 8192


class Weak(Protocol):
    """What says whether a thing is still there, and keeps its identity from being given out again."""

    def expired(self) -> bool:
        """Whether it is gone."""


class Made:
    """One datum somebody made.

    Attributes
    ----------
    serial : int
        Its number among all data.
    span : OpenSpan
        Who made it.
    known : str
        ``tensor`` or ``object``.
    weak : Weak or None
        None: we hold it ourselves.
    nbytes, length
        Of an object: bytes it carries, and items of a container that can grow.
    sources : tuple of (Made, float)
        Of what operators between stages made: the data that they made it of, and their bytes.
    """

    __slots__ = ("known", "length", "nbytes", "serial", "sources", "span", "weak")

    def __init__(self, serial: int, span: OpenSpan, known: str, weak: Weak | None) -> None:
        self.serial = serial
        self.span = span
        self.known = known
        self.weak = weak
        self.nbytes: float | None = None
        self.length = -1
        self.sources: Sources = ()

    @property
    def key(self) -> str:
        """Its name in transfers."""
        return f"{self.known}{self.serial}"

    def alive(self) -> bool:
        """Whether what is found under its identity is still this datum."""
        return self.weak is None or not self.weak.expired()


#: Data, each with its bytes.
Sources = tuple[tuple[Made, float], ...]


class _WatchedTensor:
    """A weak reference to a tensor, as long as it has the storage it had."""

    __slots__ = ("_address", "_reference", "_storage")

    def __init__(self, tensor: Any, address: int, storage: Callable[[Any], int]) -> None:
        self._reference = weakref.ref(tensor)
        self._address = address
        self._storage = storage

    def expired(self) -> bool:
        tensor = self._reference()
        return tensor is None or self._storage(tensor) != self._address


class _Watched:
    """A weak reference to any object."""

    __slots__ = ("_reference",)

    def __init__(self, value: object) -> None:
        self._reference = weakref.ref(value)

    def expired(self) -> bool:
        return self._reference() is None


class Dataflow:
    """The last writer of everything seen, and the transfers that follow from it."""

    def __init__(self) -> None:
        self._made: dict[object, Made] = {}
        self._held: dict[object, tuple[object, float]] = {}
        self._held_bytes = 0.0
        self._sweep_at = SWEEP_AT
        self._serial = 0
        self._found: dict[tuple[int, int, str], tuple[Transfer, OpenSpan]] = {}
        #: Whether some numpy array was made: then a tensor may share its memory.
        self._memory = False
        self._tensor: type | None = None
        self._storage: Callable[[Any], int] = id
        self._weak_storage: Any = None

    def watch_torch(self, torch: Any) -> None:
        """Tell tensors by their storages from now on."""
        from torch.multiprocessing.reductions import StorageWeakRef

        self._tensor = torch.Tensor
        self._weak_storage = StorageWeakRef
        self._storage = storage_address(torch)

    def weakly(self, tensor: Any) -> Weak | None:
        """Hold a storage so that its address stays its own, but not its memory; None where there is none."""
        try:
            weak: Weak = self._weak_storage(tensor.untyped_storage())
        except Exception:  # noqa: BLE001 - torch raises what it likes here (lazy parameters, sparse tensors)
            return None
        return weak

    # -- writing -----------------------------------------------------------------------------------------

    def wrote(self, tensor: Any, span: OpenSpan) -> None:
        """A span wrote a tensor's storage, just now."""
        address = self.address(tensor)
        made = self._made.get(address)
        if address and (made is None or made.span is not span or not made.alive()):
            weak = self.weakly(tensor)
            if weak is not None:
                self._remember(address, Made(self._number(), span, "tensor", weak))

    def wrote_in_passing(
        self, tensor: Any, span: OpenSpan, sources: Sources, *, in_place: bool = False
    ) -> None:
        """Likewise, for the results of every single operator: costs a quarter, and ends with the tensor.

        One that is written in place may be a view that nobody keeps: its storage is watched.
        """
        address = self.address(tensor)
        made = self._made.get(address)
        if not address:
            return
        if made is None or made.span is not span or not made.alive():
            weak = self.weakly(tensor) if in_place else _WatchedTensor(tensor, address, self._storage)
            if weak is None:
                return
            made = Made(self._number(), span, "tensor", weak)
            self._remember(address, made)
        made.sources = sources

    def sources(self, addresses: Sequence[int], tensors: Sequence[Any]) -> Sources:
        """Give the data that these tensors are, or are made of."""
        found: dict[int, tuple[Made, float]] = {}
        for address, tensor in zip(addresses, tensors, strict=False):
            made = self.writer(address)
            if made is None:
                continue
            if made.sources:
                found.update((source.serial, (source, nbytes)) for source, nbytes in made.sources)
            elif made.span.number > 0 and made.span.end is not None:
                found[made.serial] = (made, float(tensor.nbytes))
        return tuple(found.values())[:MAX_SOURCES]

    def lost(self, tensor: Any) -> None:
        """Somebody wrote a tensor's storage, just now, whose data is nobody's."""
        if self._made:
            self._made.pop(self.address(tensor), None)

    def gave(self, tensor: Any, span: OpenSpan, incoming: dict[int, int]) -> None:
        """A module gave a tensor out: it wrote it, unless it came in and nothing was written to it since."""
        address = self.address(tensor)
        version = incoming.get(address, -1)
        if version < 0 or version != _version(tensor):
            self.wrote(tensor, span)

    def made(self, value: object, span: OpenSpan, depth: int = DEPTH) -> None:
        """A function returned this: it made whatever nobody is known to have made before."""
        if isinstance(value, ATOMS) or depth < 0:
            return
        if self._is_tensor(value):
            if self._current(value) is None:
                self.wrote(value, span)
            return
        address, owner = self._identify(value)
        if self._is_tensor(owner):
            self.made(owner, span)
            made = self._current(owner)
            if made is not None:  # so that a tensor made of this array is known by the memory they share
                self._remember(("memory", _data_pointer(owner)), made)
                self._memory = True
        elif address is not None:
            known = self._made.get(address)
            lies_in = memories(value)
            new = [one for one in lies_in if self._in_memory(one) is None]
            if lies_in and not new:  # a column of somebody's table, say
                return
            if known is None or not known.alive() or known.length != _length(value):
                self._keep(address, owner, value, span)
            for one in new:
                self._remember(("memory", one), self._made[address])
                self._memory = True
        for item in items_of(value):
            self.made(item, span, depth - 1)

    def watched(self, value: object, span: OpenSpan) -> Made:
        """Make a record of tensors' common owner, for the caller to keep.

        Raises
        ------
        TypeError
            If it cannot be watched.
        """
        return Made(self._number(), span, "tensor", _Watched(value))

    def grew(self, value: object, length: int, span: OpenSpan) -> None:
        """A function was given a container of that length: where it has another one now, it wrote it."""
        if _length(value) != length:
            address, owner = self._identify(value)
            if address is not None:
                self._keep(address, owner, value, span)

    # -- reading -----------------------------------------------------------------------------------------

    def read(
        self, value: object, span: OpenSpan, name: str, kind: str | None = None, depth: int = DEPTH
    ) -> None:
        """A span was given this: an edge from whoever made it, or from those who made its parts."""
        if isinstance(value, ATOMS) or depth < 0:
            return
        made = self._current(value)
        if made is not None:
            # What lies in memory may be a part of what was made there.
            part = made.known == "tensor" or isinstance(getattr(value, "nbytes", None), int)
            nbytes = carried_size(value, 0) if part else made.nbytes
            kind = kind or ("activation" if made.known == "tensor" else "object")
            self.transfer(made, span, name, kind, nbytes)
            return
        for item in items_of(value):
            self.read(item, span, name, kind, depth - 1)

    def tensors(self, value: object, depth: int = DEPTH) -> Iterator[tuple[int, Any]]:
        """Every tensor in a value, with its storage."""
        if isinstance(value, ATOMS) or depth < 0:
            return
        if self._is_tensor(value):
            address = self.address(value)
            if address:
                yield address, value
            return
        for item in items_of(value):
            yield from self.tensors(item, depth - 1)

    def versions(self, value: object) -> dict[int, int]:
        """Every storage in a value, and how often it has been written to."""
        return {address: _version(tensor) for address, tensor in self.tensors(value)}

    def writer(self, address: int) -> Made | None:
        """Give who last wrote a storage, if it is still the same one."""
        made = self._made.get(address)
        return made if made is not None and made.alive() else None

    def transfer(self, made: Made, reader: OpenSpan, name: str, kind: str, nbytes: float | None) -> None:
        """Record that a finished span's datum was read by another one.

        What was made between stages, or by a function that calls modules, passes on what it was made of.
        """
        if made.sources and (made.span.end is None or made.span.holds):
            for source, size in made.sources:
                self.transfer(source, reader, name, kind, size)
        producer, key = made.span, made.key
        if producer.end is None or producer is reader or producer.number <= 0 or reader.number <= 0:
            return
        if producer.inside(reader):  # what a span made inside itself and reads again is no edge
            return
        where = (producer.number, reader.number, key)
        if where not in self._found:
            found = Transfer(producer.number, reader.number, name, kind, made.known, nbytes, key)
            self._found[where] = (found, reader)

    def finish(self) -> tuple[Transfer, ...]:
        """All transfers, each to the innermost span that was given the datum; nothing is held any more."""
        readers: dict[tuple[int, str], list[OpenSpan]] = {}
        for (producer, _, key), (_, reader) in self._found.items():
            readers.setdefault((producer, key), []).append(reader)
        kept = tuple(
            found
            for (producer, _, key), (found, reader) in self._found.items()
            if not any(other.inside(reader) for other in readers[producer, key])
        )
        self._made.clear()
        self._held.clear()
        self._found.clear()
        return kept

    # -- identity ----------------------------------------------------------------------------------------

    def address(self, tensor: Any) -> int:
        """Where a tensor's storage is described; 0 where it has none of its own (sparse, wrapped)."""
        try:
            return self._storage(tensor)
        except Exception:  # noqa: BLE001 - torch raises what it likes here
            return 0

    def _is_tensor(self, value: object) -> bool:
        return self._tensor is not None and isinstance(value, self._tensor)

    def _identify(self, value: object) -> tuple[object, object]:
        """What tells this object from others, and what owns it; None where nothing tells."""
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray):
            owner: Any = value
            while isinstance(owner.base, numpy.ndarray):
                owner = owner.base
            if self._is_tensor(owner.base):
                return self.address(owner.base), owner.base
            return ("memory", int(owner.ctypes.data)), owner
        if isinstance(value, str | bytes):
            return (("object", id(value)) if len(value) >= SHORTEST_TEXT else None), value
        if callable(value) or (isinstance(value, CONTAINERS) and not value):
            return None, value
        return ("object", id(value)), value

    def _current(self, value: object) -> Made | None:
        """The living record of this very datum."""
        if self._is_tensor(value):
            made = self.writer(self.address(value))
            if made is None and self._memory:
                made = self._in_memory(_data_pointer(value))
        else:
            address, _ = self._identify(value)
            made = self._made.get(address) if address is not None else None
        if made is not None and made.alive():
            return made
        return next((found for one in memories(value) if (found := self._in_memory(one)) is not None), None)

    def _in_memory(self, address: int) -> Made | None:
        made = self._made.get(("memory", address))
        return made if made is not None and made.alive() else None

    def _keep(self, address: object, owner: object, value: object, span: OpenSpan) -> None:
        try:
            weak: Weak | None = _Watched(owner)
        except TypeError:
            size = plain_size(owner)
            if size is None or size > HELD_EACH:
                return
            self._hold(address, owner, size)
            weak = None
        memory = isinstance(address, tuple) and address[0] == "memory"
        self._memory = self._memory or memory
        made = Made(self._number(), span, "tensor" if memory else "object", weak)
        made.nbytes, made.length = carried_size(value), _length(value)
        self._remember(address, made)

    def _hold(self, address: object, owner: object, size: float) -> None:
        while self._held and self._held_bytes + size > HELD_ALL:
            oldest = next(iter(self._held))
            self._made.pop(oldest, None)
            self._held_bytes -= self._held.pop(oldest)[1]
        self._held_bytes += size - self._held.pop(address, (None, 0.0))[1]
        self._held[address] = (owner, size)

    def _number(self) -> int:
        self._serial += 1
        return self._serial

    def _remember(self, address: object, made: Made) -> None:
        self._made[address] = made
        if len(self._made) > self._sweep_at:
            for where, found in list(self._made.items()):
                if not found.alive():
                    self._made.pop(where, None)
            self._sweep_at = max(SWEEP_AT, 2 * len(self._made))


def storage_address(torch: Any) -> Callable[[Any], int]:
    """Give the function that tells a tensor's storage by the address of its description."""
    quick: Callable[[Any], int] | None = getattr(torch._C, "_storage_address", None)  # noqa: SLF001 - half the time
    if quick is not None:
        return quick
    return lambda tensor: int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - as torch.multiprocessing does


def _version(tensor: Any) -> int:
    if tensor.is_inference():  # keeps no count, and to be told so by an exception takes 50 µs
        return 0
    return int(tensor._version)  # noqa: SLF001 - the only word on writes in place


def _data_pointer(tensor: Any) -> int:
    try:
        return int(tensor.untyped_storage().data_ptr())
    except (RuntimeError, NotImplementedError):  # fake and sparse tensors have none
        return 0


def _length(value: object) -> int:
    return len(value) if isinstance(value, list | dict | set | bytearray) else -1
