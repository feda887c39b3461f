"""A run's stages as the model would have had them, beside what they took; and what it learns from that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from gimlet_lab.costs import measured, roofline
from gimlet_lab.costs.measured import OWN, PYTHON, STAGE, Corrections, Observation
from gimlet_lab.costs.stages import PYTHON_PER_OP_S
from gimlet_lab.model.device import Device
from gimlet_lab.model.estimate import Estimate
from gimlet_lab.model.graph import Stage
from gimlet_lab.model.phase import BOUNDS
from gimlet_lab.model.run import Run
from gimlet_lab.model.work import Work

#: Interval of what no run has corrected yet.
_UNCORRECTED = (roofline.LOW, roofline.HIGH)


@dataclass(frozen=True, slots=True)
class _Part:
    """Seconds of one kind in all calls of a stage, by the model alone."""

    kind: str
    seconds: float
    bound: str
    work: Work | None = None


def predict(run: Run, known: Corrections) -> dict[str, Estimate]:
    """What one call of each stage would take where it ran, by the model and the runs before this one.

    Stages that ran elsewhere (under a plan), that wait, or of whose Python nothing is known yet are left out.
    """
    found = {}
    for stage in _here(run):
        estimate = _estimate(stage, run.device, known)
        if estimate is not None:
            found[stage.id] = estimate
    return found


def observe(run: Run) -> list[Observation]:
    """What a run says of the model: seconds of each kind of operator, and of the Python around them."""
    rows: dict[tuple[str | None, int], float] = defaultdict(float)
    works: dict[int, Work | None] = {}
    for op, stage_id in zip(run.operators, run.stage_of, strict=True):
        # Thousands of rows share a few hundred works.
        works[id(op.work)] = op.work
        rows[stage_id, id(op.work)] += op.duration_s
    took: dict[str, dict[Work, float]] = defaultdict(lambda: defaultdict(float))
    for (stage_id, number), seconds in rows.items():
        work = works[number]
        if stage_id is not None and work is not None:
            took[stage_id][replace(work, count=1)] += seconds
    seen: list[Observation] = []
    for stage in _here(run):
        seen += _seen(stage, run.device, took[stage.id])
    return seen


def error(run: Run, predictions: Mapping[str, Estimate]) -> dict[str, float]:
    """Error of each prediction, as a share of what one call took."""
    return {
        stage.id: abs(predictions[stage.id].seconds - stage.call_s) / stage.call_s
        for stage in run.graph.stages
        if stage.id in predictions and stage.call_s > 0
    }


def remember(run: Run, predictions: Mapping[str, Estimate]) -> None:
    """Let the device's store learn from a run that ended well where it began."""
    if run.status != "ok" or run.deployment:
        return
    total = {
        s.id: (s.call_s * s.calls, predictions[s.id].seconds * s.calls)
        for s in run.graph.stages
        if s.id in predictions
    }
    took, expected = (sum(both[i] for both in total.values()) for i in (0, 1))
    ratio = took / expected if expected > 0 and took > 0 else None
    measured.learn(run.device, run.started, observe(run), ratio)


def _here(run: Run) -> Iterator[Stage]:
    """Stages that ran on the run's device and did not wait for somebody else."""
    at_home = (None, run.device.id, run.device.torch_device)
    for stage in run.graph.stages:
        elsewhere = run.deployment.get(stage.id) or stage.device
        if stage.calls > 0 and stage.call_s > 0 and stage.bound != "wait" and elsewhere in at_home:
            yield stage


def _parts(stage: Stage, device: Device) -> list[_Part]:
    """The operators of a stage by the model, and the Python around them, in all calls."""
    works = list(stage.works)
    if not works:
        return []
    seconds, bound, _ = roofline.terms(works, device)
    parts = [
        _Part(measured.kind_of(work, BOUNDS[index], float(one)), float(one), BOUNDS[index], work)
        for work, index, one in zip(works, bound, seconds, strict=True)
        if np.isfinite(one)
    ]
    priced = sum(part.work.count for part in parts if part.work)
    rest = max(stage.ops - priced, 0) * roofline.launch_s(device)
    return [*parts, _Part("unpriced/launch", rest, "overhead")] if rest > 0 else parts


def _estimate(stage: Stage, device: Device, known: Corrections) -> Estimate | None:
    parts = _parts(stage, device)
    whole = known.factor(_name(stage)) if stage.kind == "module" else None
    raw = [*parts, *_python(stage)]
    if whole is not None and raw:  # nothing of a call was seen whose layers are elsewhere
        by = max({part.bound for part in raw}, key=lambda b: sum(p.seconds for p in raw if p.bound == b))
        each = sum(part.seconds for part in raw) / stage.calls
        return Estimate(each * whole.value, each * whole.low, each * whole.high, by, "measured")
    low = seconds = high = 0.0
    by_bound: dict[str, float] = defaultdict(float)
    corrected = 0.0
    for part in raw:
        factor = known.factor(part.kind)
        if factor is None and part.kind.startswith(f"{OWN}/"):
            return None  # a function's own Python, and no run to know it from
        value = factor.value if factor else 1.0
        bounds = (factor.low, factor.high) if factor else _UNCORRECTED
        seconds += part.seconds * value
        low += part.seconds * bounds[0]
        high += part.seconds * bounds[1]
        by_bound[part.bound] += part.seconds * value
        corrected += part.seconds * value if factor else 0.0
    if seconds <= 0:
        return None
    source = "measured" if corrected > seconds / 2 else "model"
    bound = max(by_bound, key=lambda name: by_bound[name])
    per_call = 1 / stage.calls
    return Estimate(seconds * per_call, low * per_call, high * per_call, bound, source)


def _python(stage: Stage) -> list[_Part]:
    """A module's Python goes by its operators; what a function does itself by its name, in seconds a call."""
    if stage.kind == "module":
        return [_Part(PYTHON, stage.ops * PYTHON_PER_OP_S, "overhead")] if stage.ops else []
    return [_Part(f"{OWN}/{stage.target or stage.id}", float(stage.calls), "overhead")]


def _name(stage: Stage) -> str:
    return f"{STAGE}/{stage.target or stage.id}:{stage.role or ''}"


def _seen(stage: Stage, device: Device, took: Mapping[Work, float]) -> list[Observation]:
    """Split a stage's time over its parts: by the operators' own times, the rest is Python's."""
    total = stage.call_s * stage.calls
    every = _parts(stage, device)
    parts = [part for part in every if part.work is not None and part.seconds > 0]
    times = [took.get(replace(part.work, count=1), 0.0) for part in parts if part.work]
    # A looked-at call's operators may have taken longer than a call does; their shares are what counts.
    scale = min(1.0, total / sum(times)) if sum(times) > 0 else 0.0
    seen = [
        Observation(part.kind, part.seconds, seconds * scale)
        for part, seconds in zip(parts, times, strict=True)
        if seconds > 0
    ]
    rest = total - sum(one.measured_s for one in seen)
    raw = sum(part.seconds for part in [*every, *_python(stage)])
    if stage.kind == "module" and raw > 0:
        seen.append(Observation(_name(stage), raw, total))
    return seen + [Observation(part.kind, part.seconds, rest) for part in _python(stage) if rest > 0]
