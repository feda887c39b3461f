"""What the page in JupyterLab and this kernel say to each other: one comm a page, no port, no route.

The page says ``{"watch": bool}`` (somebody looks at the meters), ``{"id", "line"}`` (a command),
``{"id", "run"}`` (the display form of a run) and ``{"id", "arm": true}`` (profile the next cell). It is told
``{"state"}`` when something has changed, ``{"meters", "running"}`` twice a second while it looks (devices,
and what a profiled cell is doing), and an answer with the ``id`` of each question.

Commands wait for the cell that runs: our page asks for no subshell. Another's messages may come in a thread
of their own all the same, so commands wait for each other too. Meters come meanwhile, from their own thread.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from gimlet_lab import commands, profiling
from gimlet_lab.errors import GimletError
from gimlet_lab.hardware.meters import shared
from gimlet_lab.model import Plan
from gimlet_lab.notebook import Notebook
from gimlet_lab.parser import split
from gimlet_lab.render.text import prediction
from gimlet_lab.render.units import label

TARGET = "gimlet_lab"

#: Of what is said; the page has its own and says so where they differ.
PROTOCOL = 1

#: Meters are sent so often.
INTERVAL_S = 0.5

#: An answer's text is cut after so many characters.
MOST_TEXT = 4_000

#: Baselines of a plan that a page is told of.
_WAYS = 6

#: Runs and plans that a page is told of.
MOST = 50


class Page:
    """All pages that look at one notebook.

    Parameters
    ----------
    notebook : Notebook
    arm : callable
        Has the next cell profiled.
    """

    def __init__(self, notebook: Notebook, arm: Callable[[], None]) -> None:
        self._notebook = notebook
        self._arm = arm
        self._comms: dict[str, Any] = {}
        self._watching: set[str] = set()
        self._meters: _Meters | None = None
        self._told: dict[str, Any] = {}
        self._lock = threading.RLock()
        self._kernel: Any = None

    def install(self, shell: Any) -> None:
        """Answer pages, where the shell is a kernel's."""
        self._kernel = getattr(shell, "kernel", None)
        manager = getattr(self._kernel, "comm_manager", None)
        if manager is not None:
            manager.register_target(TARGET, self._opened)

    @functools.cached_property
    def _targets(self) -> list[dict[str, Any]]:
        """What a plan can be written as. Looking through the installed packages takes long, so once."""
        from gimlet_lab.export import targets

        return [
            {
                "name": name,
                "summary": target.summary,
                "options": dict(target.options),
                "suffix": target.suffix,
            }
            for name, target in targets().items()
            if target.takes == "plan"
        ]

    def remove(self) -> None:
        """Let go of all pages."""
        manager = getattr(self._kernel, "comm_manager", None)
        if manager is not None:
            with contextlib.suppress(KeyError):
                manager.unregister_target(TARGET, self._opened)
        self._watch_none()
        for comm in list(self._comms.values()):
            comm.close()
        self._comms.clear()

    def ran(self, _result: object) -> None:
        """A cell has ended."""
        self.refresh()

    def refresh(self) -> None:
        """Tell all pages what there is now, where that is something else than before."""
        if not self._comms:
            return
        state = self.state()
        if state != self._told:
            self._told = state
            self._say({"state": state})

    def state(self) -> dict[str, Any]:
        """Runs, plans and the plan in force, as plain data."""
        import gimlet_lab

        held = self._notebook
        deployment = held.deployment
        return {
            "protocol": PROTOCOL,
            "version": gimlet_lab.__version__,
            "runs": [
                {
                    "name": label(run.name),
                    "started": run.started,
                    "duration_s": run.net_s,
                    "finding": label(str(run.display.get("finding", ""))),
                }
                for run in list(held.runs.values())[-MOST:]
            ],
            "saved": [{"name": label(path.stem), "path": str(path)} for path in held.saved_runs()[-MOST:]],
            "plans": [
                {
                    "id": plan.id,
                    "name": label(plan.name),
                    "summary": prediction(plan)[0],
                    "assignment": {label(stage): device for stage, device in plan.assignment.items()},
                    "seconds": {label(stage): seconds for stage, seconds in _seconds(plan)},
                    "ways": [
                        [label(name), way.get("latency_s")]
                        for name, way in list(plan.baselines.items())[:_WAYS]
                    ],
                }
                for plan in list(held.plans.values())[-MOST:]
            ],
            "targets": self._targets,
            "settings": asdict(held.settings),
            "deployment": None
            if deployment is None
            else {"id": deployment.plan.id, "assignment": dict(deployment.plan.assignment)},
        }

    # -- pages ---------------------------------------------------------------------------------------------

    def _opened(self, comm: Any, _message: Mapping[str, Any]) -> None:
        self._comms[comm.comm_id] = comm
        comm.on_msg(lambda message: self._heard(comm, message["content"]["data"]))
        comm.on_close(lambda _message: self._closed(comm))
        self._told = self.state()
        comm.send({"state": self._told})

    def _closed(self, comm: Any) -> None:
        self._comms.pop(comm.comm_id, None)
        self._watch(comm.comm_id, wanted=False)

    def _heard(self, comm: Any, said: Mapping[str, Any]) -> None:
        if "watch" in said:
            self._watch(comm.comm_id, wanted=bool(said["watch"]))
        if "id" in said:
            answer = self._answer(said)
            self.refresh()  # before the answer, upon which the page is drawn
            comm.send({"id": said["id"], **answer})

    def _answer(self, said: Mapping[str, Any]) -> dict[str, Any]:
        try:
            if said.get("arm"):
                self._arm()
                return {"ok": True, "text": ""}
            if "run" in said:
                return {
                    "ok": True,
                    "text": "",
                    "form": dict(self._notebook.find_run(str(said["run"])).display),
                }
            return {"ok": True, "text": self._command(str(said.get("line", "")))}
        except GimletError as error:
            return {"ok": False, "text": str(error)}
        except Exception as error:  # noqa: BLE001 - a page gets a line, never a traceback
            return {"ok": False, "text": f"{type(error).__name__}: {error}".partition("\n")[0]}

    def _command(self, line: str) -> str:
        running = profiling.active()
        if running is not None:
            raise GimletError(f"{running.name} is being profiled; let it end first")
        with self._lock:
            answer, _ = commands.run_line(split(line), self._notebook)
            text = answer.text()
        return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}…"

    def _say(self, data: dict[str, Any]) -> None:
        for comm in list(self._comms.values()):
            # A page that went away without a word is no failure of the cell.
            with contextlib.suppress(Exception):
                comm.send(data)

    # -- meters --------------------------------------------------------------------------------------------

    def _watch(self, page: str, *, wanted: bool) -> None:
        with self._lock:
            (self._watching.add if wanted else self._watching.discard)(page)
            if self._watching and self._meters is None:
                self._meters = _Meters(self._say)
                self._meters.start()
            elif not self._watching:
                self._watch_none()

    def _watch_none(self) -> None:
        meters, self._meters = self._meters, None
        if meters is not None:
            meters.stop()


class _Meters(threading.Thread):
    """Sends the devices' last readings, until it is told to stop."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(name="gimlet-page", daemon=True)
        self._send = say
        self._done = threading.Event()

    def run(self) -> None:
        """Read and send, in turns."""
        import sys

        sys.setprofile(None)  # threads started during a cell are listened to; this one is ours
        with shared().subscribe(INTERVAL_S):
            while not self._done.wait(INTERVAL_S):
                running = profiling.active()
                seen = running.glimpse() if running is not None else None
                self._send({"meters": meter_rows(), "running": seen})

    def stop(self) -> None:
        """End; it is not waited for: it may be reading a device that hangs."""
        self._done.set()


def meter_rows() -> list[dict[str, Any]]:
    """What the devices' meters said last, to whoever reads them now."""
    sampler = shared()
    names = sampler.names()
    return [
        _device(names.get(device, device), row.readings)
        for device, row in sampler.latest().items()
        if not device.startswith("core:")
    ]


def _device(name: str, readings: Mapping[str, Any]) -> dict[str, Any]:
    wanted = ("utilization", "memory_used_bytes", "memory_total_bytes", "power_w")
    return {
        "device": name,
        **{key: readings.get(key) for key in wanted},
        "throttled": readings.get("throttle_reasons") or None,
    }


def _seconds(plan: Plan) -> Iterator[tuple[str, float]]:
    """What all calls of each stage are predicted to take where the plan puts it."""
    for stage in plan.graph.stages:
        estimate = plan.estimates.get(stage.id, {}).get(plan.assignment.get(stage.id, ""))
        if estimate is not None:
            yield stage.id, stage.calls * estimate.seconds
