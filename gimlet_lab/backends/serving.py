"""What a worker does with the calls it is sent."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, cast

from gimlet_lab.backends.ambient import applied
from gimlet_lab.backends.packing import Packed, describe, fingerprint, pack, unpack
from gimlet_lab.backends.replicas import Replicas
from gimlet_lab.backends.resident import to

#: Found out about a module, and about a function, by the parts of what is compared before and after a call.
_KEEPS = ("it keeps state from call to call", "it draws random numbers")
_CHANGES = ("it changes its arguments", "it changes objects of the notebook", "it draws random numbers")

#: Raised for what is there in a notebook and not in a plain process: display, get_ipython, some module.
_MISSING = (NameError, ImportError)

#: Output of one function is sent on when it has this many characters, or a line is complete.
_OUTPUT_CHARACTERS = 8192


class Sends(Protocol):
    """Takes messages."""

    def send(self, packed: Packed) -> None:
        """Take one."""


class NeedsHostError(Exception):
    """A call that, as it turned out, can only be made where the notebook is."""


class NotMadeError(NeedsHostError):
    """The same, found out before anything was done."""


class Server:
    """Modules and functions by key, and the calls of them.

    Parameters
    ----------
    channel
        Takes what is printed; of a worker of this machine, the messages too.
    device : str
        torch's name of where modules are.
    far : bool
        On another machine, which has other files.
    """

    def __init__(self, channel: Sends, device: str = "cpu", *, far: bool = False) -> None:
        self.device = device
        self.far = far
        self.outputs = _Output(channel, "stdout"), _Output(channel, "stderr")
        self.objects: dict[str, Any] = {}
        self.digests: dict[str, Any] = {}
        self.caches = Replicas(f"worker {os.getpid()}", device)

    def take_streams(self) -> None:
        """Send on what is printed from now on."""
        sys.stdout, sys.stderr = cast(Any, self.outputs)
        sys.stdin = cast(Any, _NoInput())

    def reply(self, packed: Packed) -> Packed:
        """Answer one message; what it prints is sent before."""
        # Nothing of the call before may stay referenced here: its memory is to be used again.
        try:
            reply, counts = self._reply(packed), True
        except BaseException as error:  # noqa: BLE001 - whatever the function raised belongs to the caller
            reply, counts = _failure(error, self.far)
        for output in self.outputs:
            output.end(counts)
        return reply

    def _reply(self, packed: Packed) -> Packed:
        self.caches.begin()
        try:
            command, *values = unpack(packed, self.caches.find)
        except Exception as error:  # noqa: BLE001 - unpickling runs the user's code
            raise NotMadeError(f"it cannot be made again in a worker: {describe(error)}") from None
        if command == "module":
            return self._module(*values)
        if command == "function":
            return self._function(*values)
        key = values[0]
        if command == "echo":
            return pack(("ok", key))
        self.digests.pop(key, None)
        if command == "keep":
            self.objects[key] = self._put(_registered(values[1]))
        else:
            self.objects.pop(key, None)
        return pack(("ok", None))

    def _module(
        self,
        key: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        settings: dict[str, Any] | None,
        dropped: list[str],
    ) -> Packed:
        module = self.objects[key]
        self.caches.drop(dropped)
        # Looking once is enough: a module that keeps something from call to call begins to with the first.
        first = key not in self.digests
        try:
            before = _mark(module) if first else None, _dice()
            with applied(settings):
                result = self._run(module, args, kwargs)
            after = _mark(module) if first else None, _dice()
            _compare(before, after)
            self.digests[key] = True
            return _packed("ok", result, list(self.caches.updates()), name=self.caches.name)
        except BaseException:
            self.caches.failed()
            raise

    def _function(
        self,
        key: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        settings: dict[str, Any] | None,
        folder: str,
        check: bool,
        repeatable: bool,
    ) -> Packed:
        if folder != str(Path.cwd()) and (Path(folder).is_dir() or not self.far):
            os.chdir(folder)
        for output in self.outputs:
            output.held = check
        function = self.objects[key]
        before: tuple[Any, ...] = self._state(key, args, kwargs) if check else ()
        with applied(settings):
            result = function(*args, **kwargs)
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
        changes = None
        if check:
            self.digests.pop(key, None)
            after = self._state(key, args, kwargs)
            changes = next((what for what, a, b in zip(_CHANGES, before, after, strict=True) if a != b), None)
            if changes is not None and repeatable:
                raise NeedsHostError(changes)
        for position, argument in enumerate((*args, *kwargs.values())):
            if argument is result and not isinstance(result, str | int | float | bool | None):
                return pack(("argument", position, changes))
        return _packed("ok", result, changes)

    def _put(self, kept: Any) -> Any:
        return kept.to(self.device) if self.device != "cpu" and hasattr(kept, "forward") else kept

    def _run(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.device == "cpu":
            return module(*args, **kwargs)
        return to(module(*to(args, self.device), **to(kwargs, self.device)), "cpu")

    def _state(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
        """What a function may change and not return: its arguments, what else it reads, dice."""
        if key not in self.digests:
            self.digests[key] = _mark(self.objects[key])
        return _mark((args, kwargs)), self.digests[key], _dice()


def _registered(kept: Any) -> Any:
    """Make up for what models of transformers do when they are built, and not when they are unpickled."""
    library = sys.modules.get("transformers.utils.output_capturing")
    registry = getattr(library, "_CAN_RECORD_REGISTRY", None)
    if registry is not None and hasattr(kept, "modules"):
        for part in kept.modules():
            if hasattr(part, "_can_record_outputs"):
                registry[part] = part._can_record_outputs  # noqa: SLF001 - as PreTrainedModel.__init__ does
    return kept


def _compare(before: tuple[Any, Any], after: tuple[Any, Any]) -> None:
    for what, one, other in zip(_KEEPS, before, after, strict=True):
        if one != other:
            raise NeedsHostError(what)


def _mark(value: object) -> object:
    try:
        return fingerprint(value)
    except Exception:  # noqa: BLE001 - pickling runs the user's code
        return object()  # what cannot be compared counts as changed


def _dice() -> tuple[Any, ...]:
    numpy: Any = sys.modules.get("numpy.random")
    torch: Any = sys.modules.get("torch")
    return (
        random.getstate(),
        _plain(numpy.get_state()) if numpy else b"",
        bytes(torch.get_rng_state().numpy()) if hasattr(torch, "get_rng_state") else b"",
    )


def _plain(state: Any) -> tuple[Any, ...]:
    return (state[1].tobytes(), *state[2:])


def _packed(kind: str, result: object, *more: Any, name: Callable[[Any], Any] | None = None) -> Packed:
    try:
        return pack((kind, result, *more), name)
    except Exception as error:  # noqa: BLE001 - pickling runs the user's code
        raise NeedsHostError(f"its result cannot travel: {describe(error)}") from None


def _failure(error: BaseException, far: bool) -> tuple[Packed, bool]:
    """The error as it will reach the caller, and whether it is the function's own; else the host tries."""
    if isinstance(error, NotMadeError):
        return pack(("host", str(error))), False
    if isinstance(error, NeedsHostError):
        return pack(("redo", str(error))), False
    frames = [
        (frame.filename, frame.lineno, frame.name)
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__
    ]
    if isinstance(error, _MISSING) or (far and isinstance(error, FileNotFoundError)):
        return pack(("redo", f"there it fails with {describe(error)}")), False
    try:
        packed = pack(("error", error.with_traceback(None), frames))
        unpack(packed)
        return packed, True
    except BaseException:  # noqa: BLE001 - an exception class can do anything when it is made again
        return pack(("redo", f"its error cannot travel: {describe(error)}")), False


class _Output:
    """``sys.stdout`` of a worker: what is printed appears in the cell.

    While it is held, a call that is made again on the host has printed nothing.
    """

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, channel: Sends, name: str) -> None:
        self.channel = channel
        self.name = name
        self.held = True
        self._text: list[str] = []
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            self._text.append(text)
        if "\n" in text or len(text) > _OUTPUT_CHARACTERS:
            self.flush()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self.held:
            return
        with self._lock:
            text, self._text = "".join(self._text), []
        if text:
            self.channel.send(pack(("output", self.name, text)))

    def end(self, counts: bool) -> None:
        """A call has ended; what it printed counts, or the host will print it."""
        if self.held and not counts:
            self._text.clear()
        self.held = False
        self.flush()
        self.held = True

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True


class _NoInput:
    """``sys.stdin`` of a worker, as far as ``input`` uses it."""

    encoding = "utf-8"
    errors = "strict"

    def readline(self, *_: Any) -> str:
        raise NeedsHostError("it asks for input")

    read = readline

    def fileno(self) -> int:
        raise OSError("a worker has no input")
