"""A plan in force: calls of its stages go to places, wherever the backend has put these."""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import MutableMapping, Sequence
from typing import Any

from gimlet_lab.backends.base import Deployment
from gimlet_lab.backends.binding import Placement, bind, shape
from gimlet_lab.backends.caches import HostCaches
from gimlet_lab.backends.chains import is_chain
from gimlet_lab.backends.functions import Function
from gimlet_lab.backends.layers import Layers, join
from gimlet_lab.backends.modules import Module, Route
from gimlet_lab.backends.places import Place, Places
from gimlet_lab.backends.remote import Remote
from gimlet_lab.backends.trampoline import twin
from gimlet_lab.backends.usage import Entry, Usage
from gimlet_lab.boundary import Ledger
from gimlet_lab.errors import GimletError
from gimlet_lab.model import Plan
from gimlet_lab.progress import Progress, silent

#: Looking at what a function reads is worth a word from this part of its time on, and this long a call.
_WORTH_SAYING, _WORTH_SAYING_S = 0.2, 1e-3

#: Entries of a journal that are kept.
_JOURNAL = 10_000

#: Deployments to be undone when the kernel ends.
_in_force: set[Any] = set()


class PlacedDeployment(Deployment):
    """A plan in force, over the places that a backend makes for its devices.

    Parameters
    ----------
    plan : Plan
    namespace : mapping
        The notebook's.
    makes : Places
        Makes the places; of this deployment alone.
    """

    def __init__(
        self, plan: Plan, namespace: MutableMapping[str, Any], makes: Places, progress: Progress = silent
    ) -> None:
        self._namespace = namespace
        self._makes = makes
        self._plan = plan
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._ledger = Ledger()
        self._placements: list[Placement] = []
        self._places: dict[str, Place] = {}
        self._functions: dict[int, Function] = {}
        self._modules: dict[int, Module] = {}
        self._usages: dict[str, Usage] = {}
        self._journal: deque[Entry] = deque(maxlen=_JOURNAL)
        self._caches = HostCaches()
        self._stale: list[str] = []
        self._said: set[str] = set()
        self._closed = False
        _in_force.add(self)
        try:
            self._put(plan, bind(plan, namespace, makes.check), progress)
        except BaseException:
            self.rollback()
            raise

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self._plan

    def stats(self) -> dict[str, dict[str, Any]]:
        """What happened so far, by stage that the plan puts elsewhere."""
        return {stage: usage.to_dict() for stage, usage in self._usages.items()}

    def journal(self) -> list[Entry]:
        """What became of the calls, the last ones last."""
        return list(self._journal)

    def processes(self) -> dict[int, str]:
        """Worker processes by their number, and the device each stands for."""
        return {place.pid: place.device for place in self._places.values() if place.pid}

    def stale(self) -> list[str]:
        """Why the plan no longer fits the notebook; empty while it does."""
        return list(self._stale)

    # -- putting in force --------------------------------------------------------------------------------

    def migrate(self, plan: Plan, *, progress: Progress = silent) -> None:
        """Put another plan in force; workers, weights and functions that are where they should be stay."""
        with self._lock:
            if self._closed:
                raise GimletError("this deployment was rolled back: apply the plan instead")
            self._put(plan, bind(plan, self._namespace, self._makes.check), progress)
            self._stale = []

    def _put(self, plan: Plan, placements: list[Placement], progress: Progress) -> None:
        """Make everything ready beside what is in force, then switch; a failure changes nothing."""
        moving = [placement for placement in placements if placement.elsewhere]
        staying = [p for p in placements if p.stage.kind == "function" and not p.elsewhere]
        places = self._open_places(moving, progress)
        functions: dict[int, Function] = {}
        modules: dict[int, Module] = {}
        routes: dict[int, dict[str, Route]] = {}
        usages: dict[str, Usage] = {}
        try:
            for done, placement in enumerate(moving):
                progress(0.5 + 0.5 * done / len(moving), f"loading {placement.stage.target}")
                stage, place, key = placement.stage, places[placement.device.id], id(placement.thing)
                usage = self._usages.get(stage.id)
                if usage is None or usage.device != placement.device.id:
                    usage = Usage(stage.id, placement.device.id, self._journal)
                usages[stage.id] = usage
                if stage.kind == "function":
                    assert isinstance(place, Remote)
                    functions[key] = self._function(placement, place, usage)
                    functions[key].ship()
                else:
                    if key not in modules:
                        kind = Layers if is_chain(placement.thing) else Module
                        modules[key] = self._modules.get(key) or kind(placement.thing, self._caches)
                        routes[key] = {p.role: Route() for p in placements if p.thing is placement.thing}
                    routes[key][placement.role] = Route(place, usage, placement.route(plan))
                    modules[key].ship([place], [usage])
            for placement in staying:
                usage = Usage(placement.stage.id, placement.device.id)
                functions[id(placement.thing)] = self._function(placement, None, usage)
        except BaseException:
            self._drop(functions, modules, places)
            raise
        # The switch: nothing here waits or is likely to fail.
        old_functions, old_modules, old_places = self._functions, self._modules, self._places
        self._ledger.undo()
        self._functions, self._modules, self._places = functions, modules, places
        self._plan, self._placements, self._usages = plan, placements, usages
        for placement in [*moving, *staying]:
            if placement.stage.kind == "function":
                functions[id(placement.thing)].redirect(self._ledger, placement.route(plan))
        for key, module in modules.items():
            module.redirect(self._ledger, routes[key])
        join(modules.values())
        self._drop(old_functions, old_modules, old_places)
        progress(1.0, "in force")

    def _function(self, placement: Placement, worker: Remote | None, usage: Usage) -> Function:
        known = self._functions.get(id(placement.thing))
        if known is not None and known.worker is worker and known.usage is usage:
            return known
        original = known.original if known is not None else twin(placement.thing)
        return Function(
            placement.thing, original, worker, usage, pure=placement.pure, idempotent=placement.idempotent
        )

    def _open_places(self, moving: Sequence[Placement], progress: Progress) -> dict[str, Place]:
        """Places that are there already, and new ones."""
        devices = {placement.device.id: placement.device for placement in moving}
        known = {
            name: place
            for name, place in self._places.items()
            if name in devices and self._makes.still(place, devices[name])
        }
        missing = [device for name, device in devices.items() if name not in known]
        progress(0.0, "starting workers")
        return {**known, **self._makes.open(missing, [placement.thing for placement in moving])}

    def _drop(
        self, functions: dict[int, Function], modules: dict[int, Module], places: dict[str, Place]
    ) -> None:
        """Give up what is not in force."""
        for place in places.values():
            if self._places.get(place.device) is not place:
                place.close()
        for key, function in functions.items():
            if self._functions.get(key) is not function:
                function.forget()
        for key, module in modules.items():
            kept = self._modules.get(key) is module
            module.leave([place for place in places.values() if not kept or place not in module.places])
            if not kept:
                module.close()

    # -- following the notebook --------------------------------------------------------------------------

    def refresh(self) -> list[str]:
        """Follow what the notebook defined again; lines that say what was done, or why the plan is stale."""
        with self._lock:
            if self._closed or self._pid != os.getpid():
                return []
            stale: list[str] = []
            placements = bind(self._plan, self._namespace, self._makes.check, stale)
            before = {placement.stage.id: placement for placement in self._placements}
            placements = [p for p in placements if self._alike(before.get(p.stage.id), p, stale)]
            things = {placement.stage.id: id(placement.thing) for placement in placements}
            lines: list[str] = []
            try:
                if things != {stage: id(placement.thing) for stage, placement in before.items()}:
                    self._put(self._plan, placements, silent)
                    lines += [
                        f"{p.stage.target} was defined again: {p.stage.id} runs on {p.device.id} again"
                        for p in placements
                        if p.elsewhere and p.stage.id in before and before[p.stage.id].thing is not p.thing
                    ]
                lines += self._freshen()
            except GimletError as error:
                stale.append(str(error))
            self._stale = stale
            return [*lines, *(f"plan {self._plan.id} is stale: {reason}" for reason in stale), *self._news()]

    def _alike(self, before: Placement | None, now: Placement, stale: list[str]) -> bool:
        """Whether a module can take the place of the one that was bound."""
        if before is None or before.thing is now.thing or now.stage.kind != "module":
            return True
        if shape(before.thing) == shape(now.thing):
            return True
        if now.elsewhere:
            stale.append(
                f"{now.stage.target} is another model than the plan was made for: profile and advise again"
            )
        return False

    def _freshen(self) -> list[str]:
        lines = []
        for worker in self._places.values():
            if isinstance(worker, Remote) and worker.alive and not worker.running:
                worker.start()
                lines.append(f"the worker of {worker.device} had ended; it was started again")
        for module in self._modules.values():
            if module.stays is None and module.changed_deeply():
                module.ship(module.places)
                lines.append(f"{module.name} has changed: its weights were sent again")
        for function in self._functions.values():
            function.drop_started()
            if function.stays is None:
                function.ship()
        return lines

    def _news(self) -> list[str]:
        """What was found out about stages, said once."""
        news: dict[str, str] = {}
        redirected: list[Function | Module] = [*self._functions.values(), *self._modules.values()]
        for kept in redirected:
            for usage in kept.usages if kept.stays is not None else ():
                news[f"stays {usage.stage} {kept.stays}"] = (
                    f"{usage.stage} runs on the host, not on {usage.device}: {kept.stays}"
                )
        for usage in self._usages.values():
            if usage.calls and usage.checked_s > max(
                _WORTH_SAYING * usage.seconds, _WORTH_SAYING_S * usage.calls
            ):
                news[f"checked {usage.stage}"] = (
                    f"{usage.stage} is not declared pure, so that every call looks at all it reads "
                    f"({1e3 * usage.checked_s / usage.calls:.0f} ms): "
                    "@gimlet.stage(pure=True) saves that, if its result depends on its arguments only"
                )
        fresh = [line for key, line in news.items() if key not in self._said]
        self._said.update(news)
        return fresh

    # -- the end -----------------------------------------------------------------------------------------

    def rollback(self) -> None:
        """Restore every object and end every process; once rolled back it does nothing more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            failures = self._ledger.undo()
            _in_force.discard(self)
            functions, modules, places = self._functions, self._modules, self._places
            self._functions, self._modules, self._places = {}, {}, {}
            if self._pid == os.getpid():
                self._drop(functions, modules, places)
                self._makes.close()
            if failures:
                raise GimletError(f"not everything could be restored: {failures[0]}") from failures[0]


@atexit.register
def _rollback_all() -> None:
    for deployment in list(_in_force):
        deployment.rollback()
