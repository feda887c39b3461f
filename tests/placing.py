"""Small notebooks, plans for them, and a count of what a process holds: for the tests of backends."""

from __future__ import annotations

import gc
import itertools
import linecache
import os
import threading
from pathlib import Path
from typing import Any

from gimlet_lab.model import Device, Fleet, Graph, Plan, Stage

_numbers = itertools.count()


def cell(namespace: dict[str, Any], source: str) -> None:
    """Run a cell as a kernel would: under a file name of its own, in ``__main__``."""
    namespace.setdefault("__name__", "__main__")
    name = f"<cell {next(_numbers)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), namespace)


def notebook(source: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    cell(namespace, source)
    return namespace


def device(name: str, cores: tuple[int, ...], **more: Any) -> Device:
    values = {"vendor": "x", "kind": "cpu", "live": True, "torch_device": "cpu", **more}
    resources = tuple(f"core:{core}" for core in cores)
    return Device(name, name, cores=cores, resources=resources, **values)


def fleet() -> Fleet:
    cores = tuple(sorted(os.sched_getaffinity(0)))
    # On a machine with one core both slices are that core.
    return Fleet((device("cpu", cores), device("cpu/0", cores[:1]), device("cpu/1", cores[-1:])))


def function(name: str, **more: Any) -> Stage:
    return Stage(name, "function", name, None, 1, 0.1, 0.1, "compute", **more)


def module(stage: str, target: str, role: str) -> Stage:
    return Stage(stage, "module", target, role, 1, 0.1, 0.1, "bandwidth")


def plan(*placed: tuple[Stage, str], over: Fleet | None = None, name: str = "plan") -> Plan:
    return Plan(
        id=name,
        name="run",
        assignment={stage.id: where for stage, where in placed},
        latency_s=1.0,
        interval_s=(0.5, 2.0),
        usd=None,
        joules=None,
        bound=1.0,
        gap=0.0,
        status="optimal",
        objective="latency",
        baselines={},
        estimates={},
        why=(),
        problem={},
        solution={},
        graph=Graph(tuple(stage for stage, _ in placed)),
        fleet=over or fleet(),
    )


def functions(**where: str) -> Plan:
    """A plan for functions of the notebook by their names."""
    return plan(*((function(name), place.replace("_", "/")) for name, place in where.items()))


def held() -> dict[str, Any]:
    """What this process holds that a deployment could leave behind."""
    gc.collect()
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    return {
        "descriptors": sorted(
            str(fd.readlink()).split(":")[0] for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()
        ),
        "children": children.read_text().split() if children.exists() else [],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "shared memory": sorted(path.name for path in Path("/dev/shm").iterdir()),
        "mappings": Path("/proc/self/maps").read_text().count("memfd:gimlet"),
    }


def actors() -> list[dict[str, Any]]:
    """Living actors of the Ray cluster."""
    from ray._private.state import actors as every  # the public way needs the dashboard

    return [actor for actor in every().values() if actor["State"] == "ALIVE"]
