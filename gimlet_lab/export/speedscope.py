"""A run as a speedscope profile: the flame graph over time of https://www.speedscope.app.

Evented profiles, one a thread, of spans and the operators timed inside them; the file format of speedscope's
``file-format-schema.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gimlet_lab.export.tracks import Track, tracks, walk
from gimlet_lab.model.columns import dumps
from gimlet_lab.model.run import Run
from gimlet_lab.model.store import write_atomic, writer

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def write(run: Run, path: Path, _options: Mapping[str, Any]) -> Path:
    """Write the profile."""
    return write_atomic(path, dumps(speedscope(run)) + b"\n")


def speedscope(run: Run) -> dict[str, Any]:
    """The profile as plain data.

    Examples
    --------
    >>> from gimlet_lab.model import Device, Run, Span
    >>> spans = (Span(0, "cell", "cell", 0.0, 2.0), Span(1, "search", "function", 0.5, 1.0, 0))
    >>> run = Run("r", "ok", None, "", 2.0, 0.0, Device("cpu", "CPU", "", "cpu"), {}, span_list=spans)
    >>> [(event["type"], event["at"]) for event in speedscope(run)["profiles"][0]["events"]]
    [('O', 0.0), ('O', 0.5), ('C', 1.5), ('C', 2.0)]
    """
    frames: dict[str, int] = {}
    profiles = [_profile(track, frames) for track in tracks(run)]
    return {
        "$schema": _SCHEMA,
        "exporter": writer(),
        "name": run.name,
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": name} for name in frames]},
        "profiles": profiles,
    }


def _profile(track: Track, frames: dict[str, int]) -> dict[str, Any]:
    events = [
        {
            "type": "O" if begins else "C",
            "frame": frames.setdefault(entry.name, len(frames)),
            "at": entry.start_s if begins else entry.end_s,
        }
        for entry, begins in walk(track.slices)
    ]
    return {
        "type": "evented",
        "name": _name(track),
        "unit": "seconds",
        "startValue": min(entry.start_s for entry in track.slices),
        "endValue": max(entry.end_s for entry in track.slices),
        "events": events,
    }


def _name(track: Track) -> str:
    thread = "cell" if track.thread == 0 else f"thread {track.thread}"
    return thread if track.number == 0 else f"{thread}, at the same time ({track.number + 1})"
