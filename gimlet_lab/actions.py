"""What each command does: a notebook and the parsed options in, an answer out."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gimlet_lab.errors import GimletError, UnknownNameError, UsageError
from gimlet_lab.model import Plan, Run
from gimlet_lab.notebook import Notebook
from gimlet_lab.progress import bar


@dataclass(frozen=True)
class Answer:
    """What a command has to show, made when it is shown.

    Attributes
    ----------
    text : callable
        For a terminal.
    value : object
        For ``-o``.
    bundle : callable or None
        Forms for a notebook, by MIME type.
    failed : bool
        A shell must see that something is wrong.
    """

    text: Callable[[], str]
    value: object = None
    bundle: Callable[[], Mapping[str, Any]] | None = None
    failed: bool = False


def not_built(what: str) -> GimletError:
    """The one line for what the contract names and this version lacks."""
    return GimletError(f"{what}: not built yet in this version of gimlet_lab")


def status(notebook: Notebook) -> str:
    """What this notebook holds, in a few lines."""
    run = next(reversed(notebook.runs.values()), None)
    plan = next(reversed(notebook.plans.values()), None)
    deployment = notebook.deployment
    fleet = ", ".join(device.id for device in notebook.fleet) if notebook.fleet else "the live devices"
    placed = "none"
    if deployment is not None:
        stale = deployment.stale()
        placed = f"plan {deployment.plan.id} in force" + (f", stale: {'; '.join(stale)}" if stale else "")
    lines = {
        "devices": ", ".join(device.id for device in notebook.devices)
        or "not looked at yet: %gimlet devices",
        "fleet": fleet,
        "last run": f"{run.name}, {_seconds(run.net_s)}, {_status(run)}"
        if run
        else "none: put %%gimlet above a cell",
        "plan": f"{plan.id}, {_seconds(plan.latency_s)} predicted, {plan.status}"
        if plan
        else "none: %gimlet advise",
        "deployment": placed,
    }
    return "\n".join(f"{name:<11} {value}" for name, value in lines.items())


def view(run: Run, name: str) -> Answer:
    """One view of a run."""

    def text() -> str:
        from gimlet_lab.render.text import run_text

        return run_text(run, name)

    def bundle() -> Mapping[str, Any]:
        from gimlet_lab.render.bundle import run_bundle

        return run_bundle(run, name)

    return Answer(text, run, bundle)


def show_plan(plan: Plan) -> Answer:
    """A plan, its baselines and why."""

    def text() -> str:
        from gimlet_lab.render.text import plan_text

        return plan_text(plan)

    def bundle() -> Mapping[str, Any]:
        from gimlet_lab.render.bundle import plan_bundle

        return plan_bundle(plan)

    return Answer(text, plan, bundle)


def said(text: str, value: object = None) -> Answer:
    """A plain text."""
    return Answer(lambda: text, value)


def profile(notebook: Notebook, options: Namespace) -> Answer:
    """Run a notebook and profile some of its cells."""
    if not hasattr(options, "notebook"):
        raise UsageError("profile goes above a cell: %%gimlet")
    from gimlet_lab.execution import profile_notebook

    paths = profile_notebook(
        Path(options.notebook),
        cells=options.cells,
        output=Path(options.output) if options.output else notebook.folder(),
        words=_cell_words(options),
        progress_to=sys.stderr,
    )
    options.output = None  # written already
    runs = [Run.load(path) for path in paths]
    texts = [view(run, "summary").text() for run in runs]
    return said("\n\n".join([*texts, "\n".join(str(path) for path in paths)]), runs)


def _cell_words(options: Namespace) -> str:
    import shlex

    words = ["--name", options.name] if options.name else []
    for option in ("exact", "stacks", "native", "keep-text", "dry"):
        words += [f"--{option}"] * getattr(options, option.replace("-", "_"))
    words += ["--repeat", str(options.repeat)] if options.repeat else []
    return shlex.join(words)


def dry(notebook: Notebook, options: Namespace) -> Answer:
    """Run a model without its weights."""
    from gimlet_lab.dry import dry_run

    run = dry_run(
        options.model,
        prompt_tokens=options.prompt,
        new_tokens=options.new,
        batch=options.batch,
        dtype=options.dtype,
        device=options.on,
    )
    notebook.add_run(run)
    return view(run, "summary")


def devices(notebook: Notebook, options: Namespace) -> Answer:
    """List the live devices."""
    from gimlet_lab.costs.measured import describe
    from gimlet_lab.hardware.discovery import local_devices
    from gimlet_lab.hardware.fleet import connected_devices
    from gimlet_lab.render.text import devices_text

    with bar("calibrating") as progress:
        found = local_devices(progress=progress, long=options.calibrate)
    found = (*found, *connected_devices())
    notebook.devices = found
    now = _readings({device.id for device in found})
    if options.json:
        rows = [{**device.to_json(), "now": now.get(device.id)} for device in found]
        return said(json.dumps(rows, indent=1), found)
    learned = [line for device in found if (line := describe(device)) is not None]
    return said("\n".join([devices_text(found, now), *learned]), found)


def _readings(known: Collection[str]) -> dict[str, dict[str, Any]]:
    """What the meters say now, by the names that the devices are listed with."""
    from gimlet_lab.hardware.meters import shared

    sampler = shared()
    rows = sampler.look()
    names = {card: name for card, name in sampler.names().items() if name in known}
    return {names.get(device, device): dict(row.readings) for device, row in rows.items()}


def fleet(notebook: Notebook, options: Namespace) -> Answer:
    """Name the devices to plan for, or show them."""
    from gimlet_lab.hardware.prices import priced
    from gimlet_lab.render.text import devices_text

    with bar("calibrating") as progress:
        fleet = notebook.find_fleet(options.devices, progress)
    if options.price:
        fleet = priced(fleet, options.price)
    if options.devices or options.price:
        notebook.fleet = fleet
    return said(devices_text(fleet.devices), fleet)


def connect(notebook: Notebook, options: Namespace) -> Answer:
    """Reach remote devices."""
    import gimlet_lab
    from gimlet_lab.render.text import devices_text

    address = notebook.namespace.get(options.address, options.address)
    with bar("connecting") as progress:
        fleet = gimlet_lab.connect(options.backend, address, recalibrate=options.calibrate, progress=progress)
    notebook.devices = fleet.devices
    notebook.fleet = None
    return said(devices_text(fleet.devices), fleet)


def disconnect(notebook: Notebook, _options: Namespace) -> Answer:
    """Leave remote devices."""
    import gimlet_lab

    left = gimlet_lab.disconnect()
    notebook.fleet = None
    return said("disconnected: the live devices are this machine's" if left else "nothing is connected")


def viewed(name: str) -> Callable[[Notebook, Namespace], Answer]:
    """The action that shows one view."""
    return lambda notebook, options: view(notebook.find_run(options.run), name)


def advise(notebook: Notebook, options: Namespace) -> Answer:
    """Find a plan."""
    import gimlet_lab

    run = notebook.find_run(options.run)
    with bar("advise") as progress:
        plan = gimlet_lab.advise(
            run,
            notebook.find_fleet(options.on, progress),
            objective=options.objective,
            slo=options.slo,
            pin={stage: devices[0] for stage, devices in _by_stage(options.pin).items()},
            forbid=_by_stage(options.forbid),
            robust=options.robust,
            rate_per_s=options.rate,
            max_usd_per_hour=options.max_price,
            serving={
                name: value
                for name in ("model", "dtype", "isl", "osl")
                if (value := getattr(options, name)) is not None
            },
            layers=dict(options.layers),
            time_limit_s=options.time_limit,
            progress=progress,
        )
    notebook.add_plan(plan)
    return show_plan(plan)


def _by_stage(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for stage, device in pairs:
        found.setdefault(stage, []).append(device)
    return found


def apply(notebook: Notebook, options: Namespace) -> Answer:
    """Put a plan in force, or say what that would change."""
    import gimlet_lab
    from gimlet_lab.backends import backend, backend_of

    plan = notebook.find_plan(options.plan)
    if options.dry_run:
        changes = backend(options.backend or backend_of(plan)).diff(plan, notebook.namespace)
        return said("\n".join(changes) or "nothing would change", plan)
    with bar("apply") as progress:
        deployment = gimlet_lab.apply(plan, options.backend, notebook.namespace, progress=progress)
    placed = ", ".join(f"{stage} → {device}" for stage, device in plan.assignment.items())
    return said(f"plan {plan.id} in force ({placed}); %gimlet rollback undoes it", deployment)


def rollback(notebook: Notebook, _options: Namespace) -> Answer:
    """Undo the plan in force."""
    undone = notebook.rollback()
    return said(
        "rolled back: everything is as it was" if undone else "no plan is in force: nothing to roll back"
    )


def export_noun(notebook: Notebook, options: Namespace) -> Answer:
    """Write a plan or a run for another tool, or list the targets."""
    from gimlet_lab.comparison import table
    from gimlet_lab.export import export, targets

    known = targets()
    if options.target is None:
        rows = [(name, target.takes, target.summary) for name, target in known.items()]
        return said(table(("target", "takes", "what it is"), rows, left=3))
    if options.target not in known:
        raise UnknownNameError("target", options.target, known)
    if options.path is None:
        raise UsageError(f"export {options.target}: needs PATH, where to write it")
    wants_run = known[options.target].takes == "run"
    noun = notebook.find_run(options.run) if wants_run else notebook.find_plan(options.plan)
    path = export(noun, options.target, Path(options.path).expanduser(), **dict(options.option))
    return said(f"wrote {path}", path)


def runs(notebook: Notebook, _options: Namespace) -> Answer:
    """List the runs."""
    from gimlet_lab.comparison import table

    rows = [
        (run.name, run.started, _seconds(run.net_s), _status(run), str(len(run.phase_list)))
        for run in notebook.runs.values()
    ]
    parts = [table(("run", "started", "time", "status", "phases"), rows)] if rows else []
    saved = notebook.saved_runs()
    if saved:
        parts.append("saved:\n" + "\n".join(f"  {path}" for path in saved))
    return said("\n".join(parts) or "no runs yet: put %%gimlet above a cell", list(notebook.runs.values()))


def save(notebook: Notebook, options: Namespace) -> Answer:
    """Write a run to a file."""
    path = notebook.find_run(options.run).save(Path(options.path).expanduser())
    return said(f"wrote {path}", path)


def load(notebook: Notebook, options: Namespace) -> Answer:
    """Read a run or a plan."""
    path = Path(options.path).expanduser()
    if path.suffix == ".json":
        from gimlet_lab.export import load_plan

        plan = load_plan(path)
        notebook.add_plan(plan)
        return show_plan(plan)
    run = Run.load(path)
    notebook.add_run(run)
    return view(run, "summary")


def import_trace(notebook: Notebook, options: Namespace) -> Answer:
    """Make a run of somebody's trace."""
    from gimlet_lab.traces import import_trace

    paths = [Path(trace).expanduser() for trace in options.traces]
    with bar("import") as progress:
        run = import_trace(paths, options.device, name=options.name, progress=progress)
    notebook.add_run(run)
    return view(run, "summary")


def compare(notebook: Notebook, options: Namespace) -> Answer:
    """Put two runs side by side."""
    from gimlet_lab.comparison import compare

    before, after = notebook.find_run(options.before), notebook.find_run(options.after)
    found = compare(before, after, notebook.plan_behind(after))
    return Answer(found.text, found, lambda: {"text/plain": found.text(), "text/html": found.html()})


def report(notebook: Notebook, options: Namespace) -> Answer:
    """Write a run as one page."""
    from gimlet_lab.model.store import write_atomic
    from gimlet_lab.render.html import page

    path = write_atomic(Path(options.path).expanduser(), page(notebook.find_run(options.run)).encode())
    return said(f"wrote {path}", path)


def config(notebook: Notebook, options: Namespace) -> Answer:
    """Change a setting, or list them."""
    settings = notebook.settings
    if options.setting is not None:
        given, value = options.setting
        key, values = given.replace("-", "_"), {"on": True, "off": False}
        if key not in asdict(settings):
            raise UnknownNameError("setting", given, asdict(settings))
        if value not in values:
            raise UsageError(f"config {given}: on or off, not {value!r}")
        setattr(settings, key, values[value])
    return said("\n".join(f"{key}={'on' if value else 'off'}" for key, value in asdict(settings).items()))


def solve(_notebook: Notebook, options: Namespace) -> Answer:
    """Solve a placement problem."""
    from gimlet_lab.advisor import solve

    problem = _json(options.problem)
    try:
        with bar("solving") as progress:
            solution = solve(problem, progress=progress)
    except ValueError as error:
        raise GimletError(f"{options.problem}: {error}") from None
    return said(json.dumps(solution, indent=1), solution)


def _status(run: Run) -> str:
    return f"{run.status}, dry" if run.dry else run.status


def check(_notebook: Notebook, options: Namespace) -> Answer:
    """Judge a solution of a placement problem."""
    from gimlet_lab.advisor.claims import complaints

    problem, solution = _json(options.problem), _json(options.solution)
    try:
        found, verdict = complaints(problem, solution)
    except ValueError as error:
        raise GimletError(f"{options.problem}, {options.solution}: {error}") from None
    figures = [
        f"{name}: {verdict[name]:.9g}"
        for name in ("objective", "latency_s", "usd", "usd_per_hour", "joules")
        if verdict[name] is not None
    ]
    head = "every rule holds" if not found else f"{len(found)} wrong:"
    answer = said("\n".join([head, *(f"  {line}" for line in found), *figures]), verdict)
    return replace(answer, failed=bool(found))


def _json(name: str) -> Any:
    try:
        found = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise GimletError(f"{name}: {error.strerror or error}") from None
    except ValueError as error:
        raise GimletError(f"{name}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise GimletError(f"{name}: not an object")
    return found


def _seconds(value: float | None) -> str:
    from gimlet_lab.render.units import seconds

    return seconds(value)
