"""What one notebook holds: its runs, fleet, plans and the deployment in force.

Runs stay in memory. With ``%gimlet config save=on`` each is also written to the user's data folder: the
working folder may be read-only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from gimlet_lab import boundary
from gimlet_lab.errors import GimletError, UnknownNameError, UsageError
from gimlet_lab.model import Device, Fleet, Plan, Run
from gimlet_lab.progress import Progress, silent

if TYPE_CHECKING:
    from gimlet_lab.backends.base import Deployment

Noun = TypeVar("Noun", Run, Plan, Fleet)

#: Runs and plans kept in memory, the latest; older ones live on where a variable holds them.
KEPT = 50


@dataclass
class Settings:
    """Settings of one notebook, ``%gimlet config``.

    Attributes
    ----------
    exact, native, keep_text, quiet : bool
        Defaults of the options of ``%%gimlet``.
    stacks : bool
        Sample call stacks.
    live : bool
        Show below a profiled cell what it is doing, where widgets are shown.
    save : bool
        Write every run to the user's data folder.
    """

    exact: bool = False
    stacks: bool = False
    live: bool = True
    native: bool = False
    keep_text: bool = False
    quiet: bool = False
    save: bool = False


def runs_folder() -> Path:
    """Where runs are kept for this user."""
    import platformdirs

    return Path(platformdirs.user_data_dir("gimlet_lab", appauthor=False)) / "runs"


@dataclass
class Notebook:
    """What one notebook holds.

    Attributes
    ----------
    namespace : mapping
        The notebook's variables.
    folder : callable
        Where saved runs go.
    runs, plans : dict
        By name, the last one last.
    fleet : Fleet or None
        The devices to plan for, where they were named.
    devices : tuple of Device
        The live ones, where they were looked at.
    deployment : Deployment or None
        The plan in force.
    """

    namespace: MutableMapping[str, Any]
    folder: Callable[[], Path] = runs_folder
    runs: dict[str, Run] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    fleet: Fleet | None = None
    devices: tuple[Device, ...] = ()
    deployment: Deployment | None = None
    settings: Settings = field(default_factory=Settings)
    pid: int = field(default_factory=os.getpid)
    _stale: tuple[str, ...] = ()

    def add_run(self, run: Run) -> None:
        """Hold a run as the last one."""
        _put_last(self.runs, run.name, run)

    def keep(self, run: Run) -> Path | None:
        """Write a run into the user's data folder, where the notebook is set so.

        Raises
        ------
        GimletError
            If the folder cannot be written.
        """
        if not self.settings.save:
            return None
        stamp = "".join(character for character in run.started if character.isalnum())
        folder = self.folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GimletError(f"cannot write {folder}: {error.strerror or error}") from None
        return run.save(folder / f"{file_name(run.name)}-{stamp}.gimlet")

    def add_plan(self, plan: Plan) -> None:
        """Hold a plan as the last one."""
        _put_last(self.plans, plan.id, plan)

    def saved_runs(self) -> list[Path]:
        """Files of the user's data folder, the latest last."""
        written = {}
        for path in self.folder().glob("*.gimlet"):
            with contextlib.suppress(OSError):  # somebody else may take it away meanwhile
                written[path] = path.stat().st_mtime
        return sorted(written, key=written.__getitem__)

    def find_run(self, reference: str | None = None) -> Run:
        """A run by variable, name or path, in that order; the last one where left out.

        Raises
        ------
        UnknownNameError
            If there is none; the message has the nearest names.
        """
        if reference is None:
            if not self.runs:
                raise GimletError("no run yet: put %%gimlet above a cell, or name a .gimlet file")
            return next(reversed(self.runs.values()))
        return self._find(Run, reference, self.runs, ".gimlet", Run.load)

    def find_plan(self, reference: str | None = None) -> Plan:
        """A plan by variable, id or name of its run, or path; the last one where left out."""
        if reference is None:
            if not self.plans:
                raise GimletError("no plan yet: %gimlet advise makes one")
            return next(reversed(self.plans.values()))
        from gimlet_lab.export import load_plan

        named = {plan.name: plan for plan in self.plans.values()} | self.plans
        return self._find(Plan, reference, named, ".json", load_plan)

    def find_fleet(self, words: Sequence[str] = (), progress: Progress = silent) -> Fleet:
        """A fleet by a variable or a list of devices; the one named before, else the live devices."""
        from gimlet_lab.hardware.fleet import fleet, live_fleet

        if not words:
            return self.fleet or live_fleet(progress=progress)
        held = self._variable(Fleet, words[0]) if len(words) == 1 else None
        return held or fleet(*words)

    def plan_behind(self, run: Run) -> Plan | None:
        """The plan that a run ran under, where this notebook still holds it."""
        if not run.deployment:
            return None
        same = [plan for plan in self.plans.values() if dict(plan.assignment) == dict(run.deployment)]
        return same[-1] if same else None

    def refresh(self) -> list[str]:
        """Let the plan in force follow what the user defined again.

        Returns
        -------
        list of str
            What was rebound, and why the plan is stale, where it has become so.
        """
        if self.deployment is None or os.getpid() != self.pid:
            return []
        rebound = self.deployment.refresh()
        stale = tuple(self.deployment.stale())
        fresh = [f"plan {self.deployment.plan.id} is stale: {why}" for why in stale if why not in self._stale]
        self._stale = stale
        return [*rebound, *fresh]

    def rollback(self) -> bool:
        """Undo the plan in force; False where there is none."""
        deployment, self.deployment, self._stale = self.deployment, None, ()
        if deployment is None:
            return False
        deployment.rollback()
        return True

    def names(self, kind: type) -> list[str]:
        """Names and variables by which something of a kind can be reached."""
        held = self.runs if kind is Run else self.plans if kind is Plan else ()
        found = [
            name
            for name, value in list(self.namespace.items())
            if isinstance(value, kind) and not name.startswith("_")
        ]
        return [*found, *held]

    def _variable(self, kind: type[Noun], reference: str) -> Noun | None:
        try:
            value = boundary.resolve(reference, self.namespace)
        except LookupError:
            return None
        return value if isinstance(value, kind) else None

    def _find(
        self,
        kind: type[Noun],
        reference: str,
        held: MutableMapping[str, Noun],
        suffix: str,
        read: Callable[[Path], Noun],
    ) -> Noun:
        value = self._variable(kind, reference)
        if value is None:
            value = held.get(reference)
        if value is not None:
            return value
        path = Path(reference).expanduser()
        if path.is_file() or path.suffix == suffix:
            return read(path)
        raise UnknownNameError(kind.__name__.lower(), reference, {*self.names(kind), *held})


def file_name(name: str) -> str:
    """A name as part of a file's name.

    Examples
    --------
    >>> file_name("my run/2")
    'my-run-2'
    """
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".") or "run"


def check_variable(name: str) -> str:
    """A name that can be assigned to.

    Raises
    ------
    UsageError
        If it cannot.
    """
    import keyword

    if not name.isidentifier() or keyword.iskeyword(name):
        raise UsageError(f"{name!r} is not a name for a variable")
    return name


def _put_last(held: dict[str, Any], name: str, value: object) -> None:
    held.pop(name, None)
    held[name] = value
    while len(held) > KEPT:
        del held[next(iter(held))]


_notebooks: WeakKeyDictionary[Any, Notebook] = WeakKeyDictionary()


def of(shell: Any) -> Notebook:
    """The notebook of a shell: the same one however often the extension is loaded."""
    if shell not in _notebooks:
        _notebooks[shell] = Notebook(shell.user_ns)
    return _notebooks[shell]


def current() -> Notebook | None:
    """The notebook that runs this code; None where the extension is not loaded."""
    from gimlet_lab.profiling import running_shell

    shell = running_shell()
    return _notebooks.get(shell) if shell is not None else None
