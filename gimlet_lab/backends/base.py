"""What every backend offers: the interface that the local one, the Ray one and third parties implement.

A backend is an entry point of the group ``gimlet_lab.backends``: a name and a class that is made without
arguments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from importlib.metadata import entry_points
from types import TracebackType
from typing import Any, Self

from gimlet_lab.backends.usage import Entry
from gimlet_lab.errors import GimletError, UnknownNameError
from gimlet_lab.model import Fleet, Plan
from gimlet_lab.progress import Progress, silent

GROUP = "gimlet_lab.backends"

#: Where a redirected function or forward carries its :class:`Placed`.
PLACED = "__gimlet_placed__"


class Placed(dict[str, dict[str, str]]):
    """Where the calls of a redirected object go: role (``*``: any) to ``device``, ``bound`` and ``stage``.

    Attributes
    ----------
    original : object
        The function or forward as it was.
    redirect : object
        What its calls come to.
    """

    def __init__(self, routes: dict[str, dict[str, str]], original: Any, redirect: Any = None) -> None:
        super().__init__(routes)
        self.original = original
        self.redirect = redirect


class Deployment(ABC):
    """A plan in force. Leaving it as a context manager rolls it back."""

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """The plan in force."""

    @abstractmethod
    def stats(self) -> dict[str, dict[str, Any]]:
        """What happened so far, by stage.

        Returns
        -------
        dict
            Stage id to ``device``, ``calls``, ``seconds``, ``checked_s`` (of these, to see whether the
            notebook has changed what a function reads; none for pure ones), ``sent_bytes``,
            ``received_bytes``, ``loaded_bytes`` (weights, functions), ``started_ahead``, ``on_host``: why
            calls ran on the host all the same, and how many; and ``lost``: how workers ended under calls.
        """

    def journal(self) -> list[Entry]:
        """What became of the calls, the last ones last, as far back as is kept."""
        return []

    def processes(self) -> dict[int, str]:
        """Worker processes on this machine by their number, and the device each stands for."""
        return {}

    @abstractmethod
    def migrate(self, plan: Plan, *, progress: Progress = silent) -> None:
        """Put another plan in force; what is the same in both stays as it is.

        Raises
        ------
        GimletError
            If it cannot be; the plan before stays in force.
        """

    @abstractmethod
    def rollback(self) -> None:
        """Restore everything; once rolled back it does nothing more."""

    @abstractmethod
    def refresh(self) -> list[str]:
        """Follow what the notebook defined again; lines that say what was done."""

    @abstractmethod
    def stale(self) -> list[str]:
        """Why the plan no longer fits the notebook; empty while it does."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rollback()


class Backend(ABC):
    """Puts plans in force."""

    name: str

    @abstractmethod
    def connect(
        self, address: str | None = None, *, recalibrate: bool = False, progress: Progress = silent
    ) -> Fleet:
        """Reach the devices that it can use, calibrated where they are, and measure the links between them.

        From then on they are live devices of this process, until :meth:`disconnect`.

        Parameters
        ----------
        address : str, optional
            Of what they belong to.
        recalibrate : bool
            Measure again what is known.

        Raises
        ------
        GimletError
            If they cannot be reached; nothing is connected then.
        """

    @abstractmethod
    def disconnect(self) -> bool:
        """Leave what was connected, with nothing in force there any more; whether there was anything."""

    @abstractmethod
    def deploy(
        self, plan: Plan, namespace: MutableMapping[str, Any], *, progress: Progress = silent
    ) -> Deployment:
        """Put a plan in force.

        Parameters
        ----------
        namespace : mapping
            Where the targets of the plan's stages are found: the notebook's.

        Raises
        ------
        GimletError
            If it cannot be; nothing is changed then.
        """

    @abstractmethod
    def diff(self, plan: Plan, namespace: MutableMapping[str, Any]) -> list[str]:
        """Say what :meth:`deploy` would change, a line each; empty where nothing would."""


def backend_of(plan: Plan) -> str:
    """The name of the backend that a plan's devices ask for."""
    nodes = {device.id: device.node for device in plan.fleet}
    return "ray" if any(nodes.get(device) for device in plan.assignment.values()) else "local"


def backends() -> list[str]:
    """Names of the installed backends."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def backend(name: str) -> Backend:
    """An installed backend.

    Raises
    ------
    UnknownNameError
        If there is none of that name; says which are near.
    GimletError
        If it cannot be loaded.

    Examples
    --------
    >>> backend("local").name
    'local'
    """
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        raise UnknownNameError("backend", name, found)
    try:
        made = found[name].load()()
    except Exception as error:  # a third party's code may raise anything
        raise GimletError(f"backend {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(made, Backend):
        raise GimletError(f"backend {name!r} ({found[name].value}) is not a gimlet_lab.backends.Backend")
    return made
