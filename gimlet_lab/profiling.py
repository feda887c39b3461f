"""The core under the magic: record a cell, a block or a function and make it a :class:`Run`.

Road: :class:`~gimlet_lab.capture.Recorder` → :func:`~gimlet_lab.analysis.analyse` → ``Run`` → its display
form. One profile runs at a time in a process: what it watches (torch, functions) is the process's own.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import os
import sys
import threading
import time
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import PurePath
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, overload

from gimlet_lab.assembly import assemble
from gimlet_lab.errors import UsageError
from gimlet_lab.hardware.machine import Load
from gimlet_lab.model import Device, Recording, Run, Span
from gimlet_lab.model.collector import uncollected
from gimlet_lab.tracebacks import clean

if TYPE_CHECKING:
    from gimlet_lab.backends.base import Deployment
    from gimlet_lab.capture import FakeWorld, Recorder
    from gimlet_lab.capture.stacks import StackOptions

Function = Callable[..., Any]

_lock = threading.Lock()
_active: Profile | None = None


def active() -> Profile | None:
    """The profile that is running in this process; None in a forked child, which inherits only its shadow."""
    return _active if _active is not None and _active.pid == os.getpid() else None


class Profile:
    """One block to profile; ``run`` is there when it has ended.

    Parameters
    ----------
    name : str
    namespace : mapping
        Where stages' functions and models are found again.
    is_cell_file : callable
        Whether a file's functions are the notebook's own.
    exact : bool
        Look closely at every call (slow).
    stacks, native : bool
        Sample call stacks, those of native code too.
    text : str or None
        Source to keep in the run; None keeps none.
    dry : bool
        Run it on fake tensors.
    device : Device, optional
        Of a dry run: whose times it gets; this machine's processor where left out.
    clock : callable
        Seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        namespace: Mapping[str, Any],
        is_cell_file: Callable[[str], bool],
        *,
        exact: bool = False,
        stacks: bool = False,
        native: bool = False,
        text: str | None = None,
        dry: bool = False,
        device: Device | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = name
        self.run: Run | None = None
        self.pid = os.getpid()
        self._namespace = namespace
        self._is_cell_file = is_cell_file
        self._exact = exact
        self._stacks = stacks or native
        self._native = native
        self._text = text
        self._device = device
        self.world: FakeWorld | None = None
        if dry:
            from gimlet_lab.capture import FakeWorld

            self.world = FakeWorld(namespace, is_cell_file)
        self._clock = clock
        self._recorder: Recorder | None = None
        self._began = ("", 0.0)
        self._deployment: Deployment | None = None
        self._crossed_bytes = 0.0
        self._load: Load | None = None

    def start(self) -> None:
        """Begin to record.

        Raises
        ------
        UsageError
            If another profile is running.
        """
        global _active  # one per process, as the things it watches
        with _lock:
            running = active()
            if running is not None:
                raise UsageError(
                    f"profile {running.name!r} is running already, and only one can at a time; "
                    "let it end first, or leave this one out: its work is in the other's run"
                )
            _active = self
        try:
            from gimlet_lab.capture import Recorder
            from gimlet_lab.hardware.meters import shared

            self.pid = os.getpid()
            self._deployment = _deployment()
            self._crossed_bytes = _transferred_bytes(self._deployment)
            self._recorder = Recorder(
                self._namespace,
                self._is_cell_file,
                exact=self._exact or self.world is not None,
                stacks=self._stack_options() if self._stacks and self.world is None else None,
                clock=self._clock,
                world=self.world,
                meters=shared() if self.world is None else None,
                processes=self._processes(),
            )
            self._load = Load()
            self._began = (datetime.now(UTC).isoformat(timespec="milliseconds"), self._clock())
            self._recorder.start()
        except BaseException:
            _active = None
            raise

    def _stack_options(self) -> StackOptions:
        from gimlet_lab.capture.stacks import StackOptions

        return StackOptions(cell_name, self._native, self._processes())

    def _processes(self) -> Mapping[int, str]:
        return self._deployment.processes() if self._deployment is not None else {}

    def glimpse(self, most: int = 60) -> dict[str, Any] | None:
        """What is known while the block runs; None before it and afterwards.

        Returns
        -------
        dict or None
            ``name``, ``elapsed_s`` and ``stretches``: calls of one kind in a row, each with its ``name``,
            ``start_s``, ``end_s`` and ``calls``; the last ``most`` of them.
        """
        recorder = self._recorder
        if recorder is None:
            return None
        elapsed_s, stretches = recorder.glimpse(most)
        keys = ("name", "start_s", "end_s", "calls")
        return {
            "name": self.name,
            "elapsed_s": elapsed_s,
            "stretches": [dict(zip(keys, stretch, strict=True)) for stretch in stretches],
        }

    def finish(self, error: BaseException | None = None) -> Run | None:
        """End the recording and compute the run, whatever became of the block.

        Returns
        -------
        Run or None
            None in a forked child: the run is its parent's.
        """
        if os.getpid() != self.pid or self._recorder is None:
            return None
        recorder, self._recorder = self._recorder, None
        with uncollected():
            return self._finish(recorder, error)

    def _finish(self, recorder: Recorder, error: BaseException | None) -> Run:
        global _active
        started, began_s = self._began
        try:
            recording = recorder.stop(error)
        except (Exception, KeyboardInterrupt) as failure:  # noqa: BLE001 - the user's block must not fail for it
            span = Span(0, "cell", "cell", 0.0, self._clock() - began_s)
            recording = Recording((span,), notes=(f"capture failed: {failure!r}",))
        finally:
            _active = None
        others = self._load.others() if self._load is not None else None
        recording = replace(recording, status=_status(error), error=_error(error))
        crossed_bytes = _transferred_bytes(self._deployment) - self._crossed_bytes
        from gimlet_lab.progress import bar

        with bar("gimlet") as progress:
            run = assemble(
                recording,
                name=self.name,
                started=started,
                text=self._text,
                progress=progress,
                dry=self.world is not None,
                device=self._device,
                others=others,
            )
        self.run = replace(
            run,
            deployment=_placed(self._deployment, recording),
            transferred_bytes=max(0.0, crossed_bytes),
        )
        return self.run

    def __enter__(self) -> Profile:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        clean(error)
        run = self.finish(error)
        if run is not None:
            _remember(run)

    async def __aenter__(self) -> Profile:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, function: Function) -> Function:
        """Profile every call of a function; ``run`` is the last call's.

        A call made while another profile is running is part of that one.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise UsageError(
                f"{function.__name__} is a generator: it runs while others consume it; "
                "put `with gimlet.profile():` around the loop that does"
            )
        decorated: Any
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def profiled_async(*args: Any, **options: Any) -> Any:
                if active() is not None:
                    return await function(*args, **options)
                with self:
                    return await function(*args, **options)

            decorated = profiled_async
        else:

            @functools.wraps(function)
            def profiled(*args: Any, **options: Any) -> Any:
                if active() is not None:
                    return function(*args, **options)
                with self:
                    return function(*args, **options)

            decorated = profiled
        decorated.recorder = self
        return decorated  # type: ignore[no-any-return]


@overload
def profile(name: Function, /) -> Function: ...
@overload
def profile(
    name: str | None = None,
    *,
    exact: bool = False,
    dry: bool = False,
    stacks: bool = False,
    native: bool = False,
    keep_text: bool = False,
    namespace: Mapping[str, Any] | None = None,
) -> Profile: ...
def profile(
    name: str | Function | None = None,
    *,
    exact: bool = False,
    dry: bool = False,
    stacks: bool = False,
    native: bool = False,
    keep_text: bool = False,
    namespace: Mapping[str, Any] | None = None,
) -> Any:
    """Profile a block, or every call of a function, plain or async.

    Parameters
    ----------
    name : str, optional
        What the run is called.
    exact : bool
        Look closely at every call, not only at the first of each shape (slow).
    dry : bool
        Run it on fake tensors: no weights, no device, and the namespace is as it was afterwards.
    stacks : bool
        Sample call stacks (slower: a decode loop on all cores takes a third longer).
    native : bool
        Those of native code too (slower: the process is stopped for each look).
    keep_text : bool
        Keep the source text in the run.
    namespace : mapping, optional
        Where stages' functions and models are found again; the caller's globals.

    Returns
    -------
    Profile
        A context manager (``with``, ``async with``) and a decorator; ``.run`` when it has ended. A block that
        fails has its run too, marked so, and its exception goes on.

    Examples
    --------
    >>> import gimlet_lab as gimlet
    >>> with gimlet.profile("sum") as recorder:
    ...     total = sum(range(10))
    >>> recorder.run.name, recorder.run.status
    ('sum', 'ok')

    >>> @gimlet.profile
    ... def answer(): return 42
    >>> answer(), answer.recorder.run.name
    (42, 'answer')
    """
    options = {"exact": exact, "dry": dry, "stacks": stacks, "native": native}
    frame = inspect.currentframe()
    caller = frame.f_back if frame is not None else None
    if callable(name):
        return _profile_at(caller, name.__name__, keep_text, namespace, options)(name)
    return _profile_at(caller, name or "block", keep_text, namespace, options)


def _profile_at(
    caller: FrameType | None,
    name: str,
    keep_text: bool,
    namespace: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> Profile:
    file = caller.f_code.co_filename if caller else ""
    if namespace is None:
        namespace = caller.f_globals if caller else {}
    text = "".join(linecache.getlines(file)) or None if keep_text else None
    return Profile(name, namespace, cell_files(file), text=text, **options)


def cell_files(*files: str) -> Callable[[str], bool]:
    """Say which file names hold the user's own code: the given ones and the notebook's cells."""
    names = {*files, "<timed exec>", "<timed eval>"}
    folders = set()
    shell = running_shell()
    if shell is not None:
        # ipykernel compiles each cell as a file of one folder, the terminal under a common prefix.
        cell = PurePath(shell.compile.get_code_name("", "", 0))
        names.add(str(cell))
        if cell.is_absolute():
            folders.add(str(cell.parent))
    return lambda name: (
        name in names or name.startswith("<ipython-input-") or os.path.dirname(name) in folders  # noqa: PTH120 - called for every frame: no Path
    )


def cell_name(file: str) -> str | None:
    """What IPython calls a cell by its file: ``In[3]``; None for a file of another kind."""
    shell = running_shell()
    named = shell.compile.format_code_name(file) if shell is not None else None
    return str(named[1]) if named and named[0] == "Cell" else None


def running_shell() -> Any:
    """The IPython that runs this code; None in a plain program. Never imports IPython."""
    find = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return find() if find else None


def _status(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    return "interrupted" if isinstance(error, KeyboardInterrupt | CancelledError) else "failed"


def _error(error: BaseException | None) -> str | None:
    return None if error is None else type(error).__name__


def _deployment() -> Deployment | None:
    from gimlet_lab import notebook

    held = notebook.current()
    return held.deployment if held is not None else None


def _transferred_bytes(deployment: Deployment | None) -> float:
    """Bytes sent to workers and back since the plan came into force."""
    stages = deployment.stats().values() if deployment is not None else ()
    return float(sum(stage["sent_bytes"] + stage["received_bytes"] for stage in stages))


def _placed(deployment: Deployment | None, recording: Recording) -> dict[str, str]:
    """Stage to device of the plan in force; in a plain program, of the calls that were seen redirected."""
    if deployment is not None:
        return dict(deployment.plan.assignment)
    placed = [span.attributes for span in recording.spans if "stage" in span.attributes]
    return {str(seen["stage"]): str(seen["device"]) for seen in placed if "device" in seen}


def _remember(run: Run) -> None:
    """A block profiled in a notebook is one of its runs, like a cell."""
    from gimlet_lab import notebook

    held = notebook.current()
    if held is not None:
        held.add_run(run)
        held.keep(run)
