"""See what holds each part of an agent back, and move each part to the hardware that suits it.

In a notebook::

    %load_ext gimlet_lab

    %%gimlet -o run
    agent("a question")

In a program::

    import gimlet_lab as gimlet

    with gimlet.profile("rag") as recorder:
        agent("a question")
    plan = gimlet.advise(recorder.run, gimlet.fleet("h100-sxm", "cpu"))

Names are found when first used: importing this package loads no torch, and registers nothing but a
display form for runs and plans where IPython is running already.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping, MutableMapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gimlet_lab.advisor import solve
    from gimlet_lab.backends.base import Deployment
    from gimlet_lab.backends.weights import weights
    from gimlet_lab.boundary import stage
    from gimlet_lab.costs import estimate, estimate_serving
    from gimlet_lab.dry import dry_run
    from gimlet_lab.errors import GimletError
    from gimlet_lab.export import export
    from gimlet_lab.hardware.fleet import local_fleet
    from gimlet_lab.hardware.meters.outlets import meters_to_file, meters_to_opentelemetry, read_meters
    from gimlet_lab.model import Device, Estimate, Fleet, Graph, Phase, Plan, Run, Stage, Work
    from gimlet_lab.profiling import profile
    from gimlet_lab.progress import Progress
    from gimlet_lab.traces import import_trace
    from gimlet_lab.work.custom import register_flops

    __version__: str

__all__ = [
    "Device",
    "Estimate",
    "Fleet",
    "GimletError",
    "Graph",
    "Phase",
    "Plan",
    "Run",
    "Stage",
    "Work",
    "__version__",
    "advise",
    "alternatives",
    "apply",
    "connect",
    "disconnect",
    "dry_run",
    "estimate",
    "estimate_serving",
    "export",
    "fleet",
    "import_trace",
    "load_ipython_extension",
    "local_fleet",
    "meters_to_file",
    "meters_to_opentelemetry",
    "pairs",
    "pareto",
    "profile",
    "read_meters",
    "register_flops",
    "solve",
    "stage",
    "unload_ipython_extension",
    "weights",
]

_MODEL = ("Device", "Estimate", "Fleet", "Graph", "Phase", "Plan", "Run", "Stage", "Work")

#: Where each name of the facade lives.
_HOMES = {
    **dict.fromkeys(_MODEL, "gimlet_lab.model"),
    "GimletError": "gimlet_lab.errors",
    "alternatives": "gimlet_lab.advisor",
    "dry_run": "gimlet_lab.dry",
    "estimate": "gimlet_lab.costs",
    "import_trace": "gimlet_lab.traces",
    "estimate_serving": "gimlet_lab.costs",
    "local_fleet": "gimlet_lab.hardware.fleet",
    "meters_to_file": "gimlet_lab.hardware.meters.outlets",
    "meters_to_opentelemetry": "gimlet_lab.hardware.meters.outlets",
    "pairs": "gimlet_lab.advisor",
    "pareto": "gimlet_lab.advisor",
    "profile": "gimlet_lab.profiling",
    "read_meters": "gimlet_lab.hardware.meters.outlets",
    "register_flops": "gimlet_lab.work.custom",
    "solve": "gimlet_lab.advisor",
    "stage": "gimlet_lab.boundary",
    "weights": "gimlet_lab.backends.weights",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("gimlet-lab")
    if name == "export":
        return import_module("gimlet_lab.export")
    if name not in _HOMES:
        raise AttributeError(f"module 'gimlet_lab' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def fleet(*specs: str) -> Fleet:
    """Name the devices to plan for, present or not.

    Parameters
    ----------
    *specs : str
        ``ID`` or ``ID:COUNT``, the ids of ``gimlet devices`` and of the catalogue; none: the live devices.

    Raises
    ------
    UnknownNameError
        If there is no such device; the message has the nearest names.

    Examples
    --------
    >>> import gimlet_lab as gimlet
    >>> devices = gimlet.fleet("h100-sxm:2", "t4")
    >>> [device.id for device in devices], devices.counts["h100-sxm"]
    (['h100-sxm', 't4'], 2)
    """
    from gimlet_lab.hardware.fleet import fleet, live_fleet

    return fleet(*specs) if specs else live_fleet()


def connect(
    backend: str = "ray",
    address: str | None = None,
    *,
    recalibrate: bool = False,
    progress: Progress | None = None,
) -> Fleet:
    """Reach remote devices: from now on they are live devices, to be profiled on, planned for and placed on.

    Parameters
    ----------
    backend : str
        Whose devices: ``ray``.
    address : str, optional
        ``HOST:PORT`` of the cluster's head, or ``auto`` for the one on this machine; left out, a cluster of
        this machine alone is started, which lets in only who has its token.
    recalibrate : bool
        Measure devices and links again.

    Returns
    -------
    Fleet
        The devices of this machine and of every other node, calibrated where they are, and the links.

    Raises
    ------
    GimletError
        If the backend's package is missing, or the cluster refuses; nothing is connected then.
    """
    from gimlet_lab import notebook
    from gimlet_lab.backends import backend as find_backend
    from gimlet_lab.progress import silent

    chosen = find_backend(backend)
    held = notebook.current()
    if held is not None:
        held.rollback()
    return chosen.connect(address, recalibrate=recalibrate, progress=progress or silent)


def disconnect() -> bool:
    """Roll back the plan in force and leave what :func:`connect` reached; whether there was anything."""
    from gimlet_lab import notebook
    from gimlet_lab.backends import backend as find_backend
    from gimlet_lab.backends import backends

    held = notebook.current()
    if held is not None:
        held.rollback()
    left = [find_backend(name).disconnect() for name in backends()]
    return any(left)


def advise(
    run: Run | Graph,
    fleet: Fleet | None = None,
    *,
    objective: str = "latency",
    slo: Mapping[str, float] | None = None,
    pin: Mapping[str, str] | None = None,
    forbid: Mapping[str, Sequence[str] | str] | None = None,
    measured_on: Device | None = None,
    robust: bool = False,
    rate_per_s: float | None = None,
    max_usd_per_hour: float | None = None,
    serving: Mapping[str, Any] | None = None,
    layers: Mapping[str, int] | None = None,
    time_limit_s: float = 30.0,
    progress: Progress | None = None,
) -> Plan:
    """Find the placement of a run's stages that is best on a fleet, with its proof and its reasons.

    Parameters
    ----------
    run : Run or Graph
        A graph needs ``measured_on``.
    fleet : Fleet, optional
        The live devices where left out.
    objective : str
        ``latency``, ``throughput``, ``cost`` or ``energy``.
    slo : mapping of str to float, optional
        ``{"latency_s": 2.0, "ttft_s": 0.25, "tpot_s": 0.02}``, in seconds.
    pin, forbid : mapping of stage id to device id, optional
        Where a stage must run, and where it must not (several: a list).
    robust : bool
        Plan with the slow end of every estimate's interval.
    rate_per_s : float, optional
        Requests a second: under ``cost`` and ``energy``, how many of which devices serve them.
    max_usd_per_hour : float, optional
        What the devices in use may cost together.
    serving : mapping, optional
        With a rate: ``model``, ``dtype``, ``isl`` and ``osl`` of what is served, in place of the run's.
    layers : mapping of str to int, optional
        Of a run: modules, and in how many stretches of layers each may be taken apart: ``{"llm": 4}``. They
        are stages of their own, ``llm.model.layers[0:8]``; what is in no layer stays with the notebook.
    time_limit_s : float
        Seconds for the solver.

    Raises
    ------
    InfeasibleError
        If no placement meets the limits; it says which of them, and by how much.

    Examples
    --------
    >>> import gimlet_lab as gimlet
    >>> with gimlet.profile("a sum") as recorder:
    ...     total = sum(range(100_000))
    >>> plan = gimlet.advise(recorder.run, gimlet.fleet("cpu"))
    >>> plan.status, set(plan.assignment.values())
    ('optimal', {'cpu'})
    """
    from gimlet_lab.advisor import advise
    from gimlet_lab.errors import UsageError
    from gimlet_lab.hardware.fleet import live_fleet
    from gimlet_lab.model import Run
    from gimlet_lab.progress import silent

    graph, name, device = (
        (run.graph, run.name, run.measured_on) if isinstance(run, Run) else (run, "graph", measured_on)
    )
    if device is None and not isinstance(run, Run):
        raise UsageError("advise: a graph alone does not say where it was measured; give measured_on=DEVICE")
    if layers:
        from gimlet_lab.analysis.layers import in_layers

        if not isinstance(run, Run):
            raise UsageError("advise: a graph alone does not say what is in which layer; give the run")
        graph = in_layers(run, layers)
    report = progress or silent
    return advise(
        graph,
        live_fleet(progress=report) if fleet is None else fleet,
        name=name,
        measured_on=device,
        objective=objective,
        slo=slo,
        pin=pin,
        forbid=forbid,
        robust=robust,
        rate_per_s=rate_per_s,
        max_usd_per_hour=max_usd_per_hour,
        serving=serving,
        progress=report,
        time_limit_s=time_limit_s,
    )


def apply(
    plan: Plan,
    backend: str | None = None,
    namespace: MutableMapping[str, Any] | None = None,
    *,
    progress: Progress | None = None,
) -> Deployment:
    """Put a plan in force: from now on its stages run where it says.

    Parameters
    ----------
    plan : Plan
    backend : str, optional
        Where left out: ``ray`` for a plan that uses devices of a cluster, else ``local``.
    namespace : mapping, optional
        Where the stages' functions and models are found; the notebook's, or the caller's globals.

    Returns
    -------
    Deployment
        A context manager: leaving it rolls everything back.

    Examples
    --------
    >>> import gimlet_lab as gimlet
    >>> with gimlet.profile("a sum") as recorder:
    ...     total = sum(range(100_000))
    >>> plan = gimlet.advise(recorder.run, gimlet.fleet("cpu"))
    >>> with gimlet.apply(plan) as deployment:
    ...     deployment.stale()
    []
    """
    import inspect

    from gimlet_lab import notebook
    from gimlet_lab.backends import backend as find_backend
    from gimlet_lab.backends import backend_of
    from gimlet_lab.progress import silent

    held = notebook.current()
    if namespace is None and held is not None:
        namespace = held.namespace
    elif namespace is None:
        frame = inspect.currentframe()
        namespace = frame.f_back.f_globals if frame and frame.f_back else {}
    if held is not None:
        held.rollback()
    deployment = find_backend(backend or backend_of(plan)).deploy(
        plan, namespace, progress=progress or silent
    )
    if held is not None:
        held.deployment = deployment
    return deployment


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext gimlet_lab``: add ``%gimlet`` and ``%%gimlet``."""
    from gimlet_lab import magics

    magics.load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext gimlet_lab``: take them away again."""
    from gimlet_lab import magics

    magics.unload(shell)


class _CallablePackage(types.ModuleType):
    """``gimlet_lab.export`` is a package and, as ``gimlet.export(plan, target, path)``, its main function."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.export(*args, **options)


class _Facade(types.ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # The import system binds a package to its parent's name when anybody first imports it.
        if name == "export" and isinstance(value, types.ModuleType):
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


def _run_bundle(run: Run) -> dict[str, Any]:
    from gimlet_lab.render.bundle import run_bundle

    return run_bundle(run)


def _plan_bundle(plan: Plan) -> dict[str, Any]:
    from gimlet_lab.render.bundle import plan_bundle

    return plan_bundle(plan)


def _show_nouns() -> None:
    """Where IPython is running, runs and plans show as pictures and tables."""
    find_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = find_shell() if find_shell else None
    if shell is not None:
        formatter = shell.display_formatter.mimebundle_formatter
        formatter.for_type_by_name("gimlet_lab.model.run", "Run", _run_bundle)
        formatter.for_type_by_name("gimlet_lab.model.plan", "Plan", _plan_bundle)


sys.modules[__name__].__class__ = _Facade
_show_nouns()
