"""A plan or a run as somebody else's file: one module a target; third parties add theirs by entry point.

An entry point of the group ``gimlet_lab.exporters`` names a :class:`Target`.
"""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gimlet_lab.errors import GimletError, UnknownNameError, UsageError
from gimlet_lab.export import device_map, kuberay, perfetto, plan_json, ray_serve, speedscope, stacks, tables
from gimlet_lab.export.plan_json import PlanFileError, load_plan
from gimlet_lab.model.plan import Plan
from gimlet_lab.model.run import Run

__all__ = ["PlanFileError", "Target", "export", "load_plan", "notes", "targets"]

GROUP = "gimlet_lab.exporters"


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of file that a plan or a run can be written as.

    Attributes
    ----------
    takes : str
        ``plan`` or ``run``.
    summary : str
        One line.
    write : callable
        ``write(noun, path, options) -> Path``; writes atomically.
    options : mapping of str to str
        The options it takes, and what they mean.
    suffix : str
        What a file of it is called by, without the dot.
    """

    takes: str
    summary: str
    write: Callable[[Any, Path, Mapping[str, Any]], Path]
    options: Mapping[str, str] = field(default_factory=dict)
    suffix: str = "json"


_OURS = {
    "plan": Target("plan", "the plan as JSON, with its problem, proof and predictions", plan_json.write),
    "device-map": Target(
        "plan",
        "Hugging Face device_map JSON of one model",
        device_map.write,
        {"model": "which model of the plan, by its name in the notebook"},
    ),
    "ray-serve": Target(
        "plan", "a Ray Serve config: YAML for serve deploy", ray_serve.write, ray_serve.OPTIONS, "yaml"
    ),
    "kuberay": Target(
        "plan", "a KubeRay RayService: YAML for kubectl apply", kuberay.write, kuberay.OPTIONS, "yaml"
    ),
    "perfetto": Target("run", "a Chrome trace for ui.perfetto.dev, compressed as .json.gz", perfetto.write),
    "speedscope": Target("run", "a flame graph over time for speedscope.app", speedscope.write),
    "csv": Target("run", "a folder of tables: ops, phases, spans, edges", tables.write_csv),
    "parquet": Target("run", "the same tables as Parquet (needs pyarrow)", tables.write_parquet),
    "folded": Target("run", "sampled stacks as folded lines, for flame graph tools", stacks.write_folded),
    "speedscope-stacks": Target("run", "sampled stacks as speedscope's JSON", stacks.write_speedscope),
}


def targets() -> dict[str, Target]:
    """Every target by name: ours, then those of installed packages."""
    found = dict(_OURS)
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.name in found:
            continue
        try:
            target = entry.load()
        except Exception as error:  # noqa: BLE001 - somebody else's code; the other targets stay usable
            target = _broken(entry.name, error)
        found[entry.name] = target
    return found


def _broken(name: str, error: Exception) -> Target:
    reason = f"cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:120]}"

    def write(_noun: Any, _path: Path, _options: Mapping[str, Any]) -> Path:
        raise GimletError(f"target {name!r} {reason}")

    return Target("plan", reason, write)


def export(noun: Plan | Run, target: str, path: str | Path, **options: Any) -> Path:
    """Write a plan or a run as a file of another tool.

    Parameters
    ----------
    noun : Plan or Run
    target : str
        A name of :func:`targets`.
    path : str or Path
    **options
        Those of the target.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UnknownNameError
        If there is no such target, or no such model in the plan.
    UsageError
        If the target takes another noun or option.
    GimletError
        If the place cannot be written.
    """
    known = targets()
    if target not in known:
        raise UnknownNameError("target", target, known)
    chosen = known[target]
    given = {Plan: "plan", Run: "run"}.get(type(noun), type(noun).__name__)
    if chosen.takes != given:
        raise UsageError(f"target {target!r} takes a {chosen.takes}, not a {given}")
    for name in options:
        if name not in chosen.options:
            near = difflib.get_close_matches(name, chosen.options, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            takes = ", ".join(chosen.options) or "none"
            raise UsageError(f"target {target!r} has no option {name!r} (it takes: {takes}){hint}")
    return chosen.write(noun, Path(path), options)


def notes(path: str | Path) -> tuple[str, ...]:
    """What an exported file could not say, from the notes beside it; empty where there are none."""
    from gimlet_lab.model.columns import loads

    try:
        return tuple(str(note) for note in loads(device_map.notes_path(path).read_bytes())["notes"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()
