"""Sampled stacks for flame graph tools: folded lines, and speedscope's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gimlet_lab.errors import GimletError
from gimlet_lab.model.columns import dumps
from gimlet_lab.model.run import Run
from gimlet_lab.model.stacks import Frame, Stacks
from gimlet_lab.model.store import write_atomic, writer

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def write_folded(run: Run, path: Path, _options: Mapping[str, Any]) -> Path:
    """Write a line for each stack, its frames from the outside in, and its microseconds."""
    return write_atomic(path, folded(_sampled(run)).encode("utf-8", "replace"))


def write_speedscope(run: Run, path: Path, _options: Mapping[str, Any]) -> Path:
    """Write speedscope's JSON: a profile for each thread, in the order of time."""
    return write_atomic(path, dumps(speedscope(_sampled(run), run.name)))


def folded(stacks: Stacks) -> str:
    r"""Thread, stage and frames by semicolons, then microseconds.

    Examples
    --------
    >>> from gimlet_lab.model.stacks import StackSample, StackThread
    >>> sample = StackSample(0.0, 0.25, None, 0, 0, "search")
    >>> frames = (Frame("search", "In[3]", 4, True),)
    >>> folded(Stacks(frames, ((-1, 0),), (StackThread("MainThread", 0),), (sample,)))
    'MainThread;search;search (In[3]:4) 250000\n'
    """
    weight: dict[str, float] = {}
    for sample in stacks.samples:
        names = [stacks.threads[sample.thread].name, *([sample.stage] if sample.stage else [])]
        names += map(str, stacks.path(sample.node))
        line = ";".join(_folded_name(name) for name in names)
        weight[line] = weight.get(line, 0.0) + sample.duration_s
    return "".join(f"{line} {round(1e6 * seconds)}\n" for line, seconds in weight.items())


def speedscope(stacks: Stacks, name: str) -> dict[str, Any]:
    """What speedscope reads: shared frames, and for each thread its samples and their seconds."""
    idle = len(stacks.frames)
    paths: dict[int, list[int]] = {}
    profiles = []
    for number, thread in enumerate(stacks.threads):
        mine = [sample for sample in stacks.samples if sample.thread == number]
        if not mine:
            continue
        rows: list[tuple[list[int], float]] = []
        at_s = mine[0].start_s
        for sample in mine:
            if sample.start_s > at_s:  # its time line has no gaps
                rows.append(([], sample.start_s - at_s))
            at_s = sample.start_s + sample.duration_s
            if sample.node not in paths:
                paths[sample.node] = _numbers(stacks, sample.node)
            path = paths[sample.node]
            rows.append(([*path, idle] if sample.state == "idle" else path, sample.duration_s))
        profiles.append(
            {
                "type": "sampled",
                "name": thread.name,
                "unit": "seconds",
                "startValue": mine[0].start_s,
                "endValue": mine[0].start_s + sum(seconds for _, seconds in rows),
                "samples": [path for path, _ in rows],
                "weights": [seconds for _, seconds in rows],
            }
        )
    return {
        "$schema": _SCHEMA,
        "name": name,
        "exporter": writer(),
        "shared": {"frames": [*map(_frame, stacks.frames), {"name": "(idle)"}]},
        "profiles": profiles,
    }


def _sampled(run: Run) -> Stacks:
    if not run.sampled.samples:
        raise GimletError(f"run {run.name!r} holds no stacks: %gimlet config stacks=on samples them")
    return run.sampled


def _numbers(stacks: Stacks, node: int) -> list[int]:
    found = []
    while node >= 0:
        node, frame = stacks.nodes[node]
        found.append(frame)
    return found[::-1]


def _frame(frame: Frame) -> dict[str, Any]:
    return {
        "name": frame.function,
        "file": frame.file,
        **({} if frame.line is None else {"line": frame.line}),
    }


def _folded_name(name: str) -> str:
    """Semicolons part frames, the last blank parts the number, lines part stacks."""
    return " ".join(name.replace(";", ",").split()) or "?"
