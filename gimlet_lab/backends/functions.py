"""Function stages: calls of a notebook's function sent to a worker.

The function runs there on a copy of what it reads: its arguments, and the objects of the notebook that
its code names. So that a plan is never wrong, only sometimes slower: before a call the copy is brought up
to date where the notebook has changed, and after it the worker says whether the function changed its copy
or drew random numbers. Then its result does not count, the call is made on the host, and the stage stays
there. Functions declared ``pure`` are spared both.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import sys
import threading
import time
import traceback
import types
from pathlib import Path
from typing import Any

from gimlet_lab.backends.ambient import ambient
from gimlet_lab.backends.base import PLACED, Placed
from gimlet_lab.backends.lookahead import Started, behind
from gimlet_lab.backends.packing import Packed, describe, fingerprint, pack
from gimlet_lab.backends.remote import Remote, WorkerDiedError, WorkerLostError, again, emit
from gimlet_lab.backends.trampoline import forget_frames, trampoline
from gimlet_lab.backends.usage import Usage
from gimlet_lab.boundary import Ledger
from gimlet_lab.errors import GimletError

_keys = itertools.count()


class RemoteError(GimletError):
    """A function that may run once only, and could not be finished in a worker."""


class Function:
    """One redirected function.

    Without a worker it stays on the host, and is redirected only to start others beside it.

    Parameters
    ----------
    function : function
        Of the notebook; it stays the object it is.
    original : function
        Its twin, which is never redirected.
    worker : Remote or None
    usage : Usage
    pure, idempotent : bool
        As declared.
    """

    def __init__(
        self,
        function: types.FunctionType,
        original: types.FunctionType,
        worker: Remote | None,
        usage: Usage,
        *,
        pure: bool,
        idempotent: bool,
    ) -> None:
        self.function = function
        self.original = original
        self.worker = worker
        self.usage = usage
        self.pure = pure
        self.idempotent = idempotent
        #: Why all calls stay on the host; None while they do not.
        self.stays: str | None = None
        self._is_async = inspect.iscoroutinefunction(original)
        self._pending: dict[int, list[Started]] = {}
        self._key = f"function {next(_keys)}"
        self._shipped: tuple[int, int] | None = None

    @property
    def usages(self) -> list[Usage]:
        """Where its calls are counted."""
        return [self.usage]

    # -- on and off --------------------------------------------------------------------------------------

    def ship(self) -> None:
        """Send the function to its worker, where it has not what the notebook has now.

        Raises
        ------
        GimletError
            If it cannot travel; says what to do.
        """
        if self.worker is None:
            return
        try:
            mark = fingerprint(self.original)
            if mark == self._shipped and self._key in self.worker.contents:
                return
            packed = pack(("keep", self._key, self.original))
        except Exception as error:  # noqa: BLE001 - pickling runs the user's code
            raise GimletError(
                f"{self.function.__qualname__} cannot travel to a worker: {describe(error)}"
            ) from None
        self.worker.keep(self._key, packed)
        self.usage.loaded(packed.nbytes)
        self._shipped = mark

    def redirect(self, ledger: Ledger, route: dict[str, str]) -> None:
        """Let its calls come here."""
        code = trampoline(self.original, self._call_async if self._is_async else self._call)
        ledger.set(self.function, PLACED, Placed({"*": route}, self.original, self))
        ledger.set(self.function, "__code__", code)

    def forget(self) -> None:
        """Free what the worker keeps of it."""
        if self.worker is not None:
            self.worker.drop(self._key)

    # -- calls -------------------------------------------------------------------------------------------

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        try:
            if self.worker is None:
                self._look_ahead(sys._getframe(2))  # noqa: SLF001 - the caller's source says what comes next
                return self.original(*args, **kwargs)
            if self.ahead:
                started = self._started(args, kwargs)
                self._look_ahead(sys._getframe(2))  # noqa: SLF001 - the caller's source says what comes next
                done, value = self._take(started) if started is not None else self.remote(args, kwargs)
            else:
                done, value = self.remote(args, kwargs)
            return value if done else self.original(*args, **kwargs)
        except BaseException as error:
            forget_frames(error)
            raise

    async def _call_async(self, *args: Any, **kwargs: Any) -> Any:
        try:
            done, value = await asyncio.to_thread(self.remote, args, kwargs)
        except BaseException as error:
            error.__traceback__ = None
            raise
        try:
            return value if done else await self.original(*args, **kwargs)
        except BaseException as error:
            forget_frames(error)
            raise

    def remote(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], printed: list[tuple[str, str]] | None = None
    ) -> tuple[bool, Any]:
        """Make a call on the worker: its result, or that it is to be made on the host.

        Parameters
        ----------
        printed : list, optional
            Takes what it prints.

        Raises
        ------
        BaseException
            What the function raised.
        """
        started, worker = time.perf_counter(), self.worker
        if worker is None:
            return False, None
        if self.stays is not None:
            return self._on_host(self.stays)
        if not worker.alive:
            return self._on_host(f"the worker of {worker.device} is gone")
        try:
            if not self.pure:
                self.ship()
                self.usage.checked(time.perf_counter() - started)
            request = pack(
                (
                    "function",
                    self._key,
                    args,
                    kwargs,
                    ambient(),
                    str(Path.cwd()),
                    not self.pure,
                    self.idempotent,
                )
            )
        except WorkerDiedError as error:
            return self._on_host(str(error))
        except Exception as error:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
            return self._on_host(f"an argument cannot travel: {describe(error)}")
        try:
            answer, received = self._ask(worker, request, printed)
        except WorkerLostError:
            raise
        except WorkerDiedError as error:
            return self._on_host(str(error))
        kind, value, *more = answer
        name = self.function.__qualname__
        if kind == "host":
            return self._on_host(str(value))
        if kind == "redo":
            if not self.idempotent:
                raise RemoteError(
                    f"{name} is declared idempotent=False and cannot run on {worker.device}: {value}"
                )
            self.stays = f"{name}: {value}"
            return self._on_host(self.stays)
        self.usage.placed(time.perf_counter() - started, request.nbytes, received)
        if kind == "error":
            value.add_note(self._note(worker, more[0]))
            raise value
        if more[0] is not None:
            # Not repeatable, so its result stands; what it changed there is not changed here.
            self.stays = f"{name}: {more[0]}, which was lost once"
        return True, (*args, *kwargs.values())[value] if kind == "argument" else value

    def _ask(
        self, worker: Remote, request: Packed, printed: list[tuple[str, str]] | None
    ) -> tuple[tuple[Any, ...], int]:
        """Call the worker; a second one where the first is lost and the function may run twice."""
        name = self.function.__qualname__
        if self.idempotent:
            return again(lambda: worker.call(request, printed=printed), name, self.usage.lost)
        try:
            return worker.call(request, printed=printed, once=True)
        except WorkerLostError as error:
            self.usage.lost(str(error))
            raise WorkerLostError(
                f"{error} while it ran {name}, which is declared idempotent=False: "
                "whether it was done is not known, and it was not tried again"
            ) from None

    # -- ahead of the program ----------------------------------------------------------------------------

    @property
    def ahead(self) -> bool:
        """Whether it may be started before the program calls it; never in a thread of the kernel's own."""
        return self.worker is not None and self.pure and not self._is_async and self.stays is None

    def _look_ahead(self, frame: types.FrameType) -> None:
        busy = {id(self.worker)}
        for redirect, args, kwargs in behind(frame):
            if id(redirect.worker) not in busy:
                busy.add(id(redirect.worker))
                redirect.start(args, kwargs)

    def start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start a call that this thread will make, unless it is started already."""
        calls = self._pending.setdefault(threading.get_ident(), [])
        if not any(call.same(args, kwargs) for call in calls):
            calls.append(Started(args, kwargs, lambda printed: self.remote(args, kwargs, printed)))
            self.usage.started_ahead()

    def _started(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Started | None:
        """The call that was started ahead for this one; those the thread did not come to are dropped."""
        calls = self._pending.pop(threading.get_ident(), [])
        return next((call for call in calls if call.same(args, kwargs)), None)

    def _take(self, started: Started) -> tuple[bool, Any]:
        try:
            done, value = started.result()
        finally:
            for stream, text in started.printed:
                emit(stream, text)
        return done, value

    def drop_started(self) -> None:
        """Drop calls that were started ahead and never made."""
        self._pending.clear()

    def _on_host(self, why: str) -> tuple[bool, Any]:
        self.usage.kept(why)
        return False, None

    def _note(self, worker: Remote, frames: list[tuple[str, int, str]]) -> str:
        # The lines of a cell's source are known here, not there.
        summary = [traceback.FrameSummary(file, line, name) for file, line, name in frames]
        return f"On {worker.device}, traceback there:\n" + "".join(traceback.format_list(summary)).rstrip()
