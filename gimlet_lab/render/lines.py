"""Which line of the notebook it is: in words, for each phase, and where Python holds the cell back."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from gimlet_lab.model.run import Run
from gimlet_lab.model.stacks import Frame, Stacks, StackSample
from gimlet_lab.render.marks import OTHER
from gimlet_lab.render.units import clip, label, percent, seconds

#: Phases seen for fewer looks than that name no line.
_LOOKS = 3
#: Overhead below this share of the run is not worth a sentence.
_WORTH_SAYING = 0.02


def own_file(stacks: Stacks) -> str | None:
    """The file of the profiled cell itself: that in which most of its thread's stacks begin."""
    weight: dict[str, float] = defaultdict(float)
    for sample in stacks.samples:
        if stacks.of_cell(sample):
            weight[stacks.path(sample.node)[0].file] += sample.duration_s
    return max(weight, key=lambda file: weight[file], default=None)


def place(frame: Frame, here: str | None) -> str:
    """``line 7 of the cell``, ``line 7 of the cell, in search``, ``line 4 of In[3], in search``.

    Examples
    --------
    >>> place(Frame("search", "In[3]", 4, True), "In[3]")
    'line 4 of the cell, in search'
    """
    where = "the cell" if frame.file == here else frame.file
    inside = "" if frame.function == "<module>" else f", in {frame.function}"
    return f"line {frame.line} of {where}{inside}"


def of_phases(run: Run) -> dict[int, str]:
    """The line of the notebook in which most of each phase was spent, where it was seen often enough."""
    least_s = _LOOKS / run.sampled.rate_hz if run.sampled.rate_hz else 0.0
    here = own_file(run.sampled)
    return {
        phase: label(place(most, here))
        for phase, weight in _own_time(run, lambda sample: sample.phase).items()
        if sum(weight.values()) >= least_s
        for most in [max(weight, key=lambda frame: weight[frame])]
    }


def sentences(run: Run) -> list[str]:
    """Which line it is where Python holds the cell back: a sentence for each stage of which that is so."""
    stacks, here = run.sampled, own_file(run.sampled)

    def stage(sample: StackSample) -> str | None:
        held = sample.phase is not None and run.phase_list[sample.phase].bound == "overhead"
        return (sample.stage or OTHER) if held else None

    lines = []
    found = _own_time(run, stage)
    for name in sorted(found, key=lambda name: -sum(found[name].values())):
        weight = found[name]
        total = sum(weight.values())
        if total < _WORTH_SAYING * run.duration_s:
            continue
        most = max(weight, key=lambda frame: weight[frame])
        text = f"{clip(name, 40)}: of its {seconds(total)} held back by Python, "
        text += f"{percent(weight[most] / total)} is {place(most, here)}{_source(run, most, here)}"
        inner = _innermost(stacks, most)
        lines.append(f"{text}{f', most of it in {named(inner)}' if inner != most else ''}.")
    return [label(line) for line in lines[:3]]


def _own_time(run: Run, key: Any) -> dict[Any, dict[Frame, float]]:
    """Time of the cell's thread by a key of the sample and by the notebook's own line."""
    stacks = run.sampled
    found: dict[Any, dict[Frame, float]] = {}
    for sample in stacks.samples:
        own, name = stacks.own(sample.node), key(sample)
        if own is not None and name is not None and stacks.of_cell(sample):
            weight = found.setdefault(name, defaultdict(float))
            weight[own] += sample.duration_s
    return found


def _innermost(stacks: Stacks, own: Frame) -> Frame:
    """The function that a line of the notebook spent most of its time in."""
    weight: dict[tuple[str, str], float] = defaultdict(float)
    frames: dict[tuple[str, str], Frame] = {}
    for sample in stacks.samples:
        if stacks.own(sample.node) == own:
            leaf = stacks.frames[stacks.nodes[sample.node][1]]
            weight[leaf.function, leaf.file] += sample.duration_s
            frames.setdefault((leaf.function, leaf.file), leaf)
    leaf = frames[max(weight, key=lambda name: weight[name])]
    return own if (leaf.function, leaf.file) == (own.function, own.file) else leaf


def _source(run: Run, frame: Frame, here: str | None) -> str:
    """The line itself, where the run holds the cell's text."""
    lines = run.text.splitlines() if run.text and frame.file == here else []
    if frame.line is None or not 0 < frame.line <= len(lines):
        return ""
    return f" `{clip(lines[frame.line - 1].strip(), 60)}`"


def named(frame: Frame) -> str:
    """``search (In[3]:4)``."""
    function = "cell" if frame.cell and frame.function == "<module>" else frame.function
    return f"{function} ({frame.file}{'' if frame.line is None else f':{frame.line}'})"
