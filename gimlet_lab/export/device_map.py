"""A plan as a Hugging Face ``device_map``: JSON that ``from_pretrained(device_map=...)`` takes as it is.

The map says where each weight lies and nothing else. What a plan says beyond that cannot be expressed; a file
beside the map (``NAME.notes.json``) says what was lost, with the plan's id, its predictions and intervals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gimlet_lab.errors import UnknownNameError, UsageError
from gimlet_lab.model.columns import dumps
from gimlet_lab.model.device import Device
from gimlet_lab.model.graph import Stage
from gimlet_lab.model.plan import Plan
from gimlet_lab.model.store import write_atomic, writer

_CPU = (
    'beside an accelerator, "cpu" would mean weights kept there and computed on the accelerator; '
    "alone, as here, it means computed on the CPU"
)
NOTES_SUFFIX = ".notes.json"


def write(plan: Plan, path: Path, options: Mapping[str, Any]) -> Path:
    """Write the map of one model, and the notes beside it.

    Parameters
    ----------
    plan : Plan
    path : Path
    options : mapping
        ``model``: which of the plan's models, by its name in the notebook; left out: the one with the
        most bytes of weights.
    """
    model = _model(plan, options.get("model"))
    placed, notes = device_map(plan, model)
    write_atomic(path, json.dumps(placed, indent=1).encode() + b"\n")
    low, high = plan.interval_s
    beside = {
        "schema": "gimlet.device-map/1",
        "for": "transformers from_pretrained(device_map=json.load(open(path))), accelerate check_device_map",
        "written_by": writer(),
        "model": model,
        "plan": {"id": plan.id, "name": plan.name, "latency_s": plan.latency_s, "interval_s": [low, high]},
        "notes": notes,
    }
    write_atomic(notes_path(path), dumps(beside, indent=1) + b"\n")
    return path


def notes_path(path: str | Path) -> Path:
    """Where the notes of an exported map lie."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".json") + NOTES_SUFFIX)


def device_map(plan: Plan, model: str) -> tuple[dict[str, int | str], list[str]]:
    """The map of one model, and what it cannot say.

    Where a stage is a whole module in one role, the map has one entry: ``""`` stands for the module and
    all that is in it, every parameter and buffer. Of a model in stretches of layers it stands for what is in
    none, and each layer has an entry of its own.

    Parameters
    ----------
    plan : Plan
    model : str
        Its name in the notebook.

    Returns
    -------
    map : dict
        Module path to the index of an accelerator, ``"cpu"`` or a torch device.
    notes : list of str
    """
    stages = _models(plan)[model]
    notes: list[str] = []
    chosen = max(stages, key=lambda stage: _seconds(plan, stage))
    device = plan.assignment[chosen.id]
    elsewhere = [stage for stage in stages if plan.assignment[stage.id] != device]
    if elsewhere:
        others = ", ".join(f"{stage.id} on {plan.assignment[stage.id]}" for stage in elsewhere)
        notes.append(
            f"a device_map keeps each weight on one device: written for {chosen.id} on {device}, "
            f"which takes the most time; not expressed: {others}"
        )
    where, said = _where(plan, device)
    notes += said
    left_out = [name for name in _models(plan) if name != model]
    if left_out:
        notes.append(f"other models of the plan, each its own map (option model): {', '.join(left_out)}")
    plain = [stage.id for stage in plan.graph.stages if stage.kind != "module" and stage not in stages]
    if plain:
        notes.append(f"not models, not in a device_map: {', '.join(plain)}")
    placed = {"": where}
    for stretch in _stretches(plan, model):
        there, said = _where(plan, plan.assignment[stretch.id])
        notes += [note for note in said if note not in notes]
        placed |= {name.removeprefix(f"{model}."): there for name in stretch.weights}
    return placed, notes


def _models(plan: Plan) -> dict[str, list[Stage]]:
    """The stages of each model, those of its layers aside."""
    found: dict[str, list[Stage]] = {}
    for stage in plan.graph.stages:
        whole = stage.kind in ("module", "glue") and stage.target and not stage.is_stretch
        if whole and stage.id in plan.assignment:
            found.setdefault(str(stage.target), []).append(stage)
    return found


def _stretches(plan: Plan, model: str) -> list[Stage]:
    return [
        stage for stage in plan.graph.stages if stage.is_stretch and str(stage.target).startswith(f"{model}.")
    ]


def _model(plan: Plan, wanted: str | None) -> str:
    models = _models(plan)
    if wanted is not None:
        if wanted not in models:
            raise UnknownNameError("model in this plan", wanted, models)
        return wanted
    if not models:
        raise UsageError("this plan places no model: a device_map has nothing to say")
    return max(models, key=lambda name: max(stage.weight_bytes for stage in models[name]))


def _seconds(plan: Plan, stage: Stage) -> float:
    estimate = plan.estimates.get(stage.id, {}).get(plan.assignment[stage.id])
    return stage.calls * (estimate.seconds if estimate else stage.call_s)


def _where(plan: Plan, option: str) -> tuple[int | str, list[str]]:
    """A device as torch and accelerate name it."""
    device_id = option.partition("@")[0]
    found = next((device for device in plan.fleet if device.id == device_id), None)
    if found is None:
        raise UsageError(f"the plan's fleet has no device {device_id!r}: no device_map can be written")
    if found.kind == "cpu":
        notes = [_CPU]
        if found.id != "cpu":
            notes.append(f"{found.id} is a part of the CPU's cores; a device_map knows only the whole cpu")
        return "cpu", notes
    kind, _, index = (found.torch_device or "").partition(":")
    if kind == "mps":
        return "mps", []
    if found.live and kind:
        return int(index or 0), []
    number = [device.id for device in plan.fleet if device.kind != "cpu"].index(found.id)
    return number, [f"{found.id} ({_name(found)}) is taken to be accelerator {number} of the machine"]


def _name(device: Device) -> str:
    return " ".join(device.name.split())[:60]
