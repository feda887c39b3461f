"""What a live processor does in theory: by its datasheet where one is known, else by its instructions.

At the nominal clock, where the system names no higher one: a processor that boosts goes beyond it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from gimlet_lab.errors import UnknownNameError
from gimlet_lab.hardware import catalogue, machine
from gimlet_lab.model.device import Quantity

#: float32 FLOP of one core in a cycle, with two units that multiply and add; the widest vectors first.
_PER_CYCLE = (("avx512f", 64, "AVX-512"), ("avx2", 32, "AVX2"), ("asimd", 16, "NEON"))


def theory(cores: tuple[int, ...], today: str) -> dict[str, Any]:
    """Fields of a :class:`Device`: peak FLOP/s of these cores, and the socket's bandwidth where it is known.

    A virtual machine may name no model: then only the peak of its vector instructions at its clock is known.
    """
    physical = _physical(cores)
    with contextlib.suppress(UnknownNameError):
        known = catalogue.find(machine.processor())
        if known.kind == "cpu" and known.compute_units is not None and known.id != "cpu":
            share = min(physical / known.compute_units.value, 1.0)
            peaks = {dtype: _scaled(peak, share, physical) for dtype, peak in known.peak_flops.items()}
            return {"peak_flops": peaks, "bandwidth_bytes_per_s": known.bandwidth_bytes_per_s}
    flags, (hertz, clock) = _flags(), _hertz()
    found = next((entry for entry in _PER_CYCLE if entry[0] in flags), None)
    if found is None or hertz is None:
        return {}
    _, per_cycle, name = found
    source = (
        f"{physical} cores x {per_cycle} FLOP/cycle ({name}, two FMA units) x {hertz / 1e9:.2f} GHz, {clock}"
    )
    return {"peak_flops": {"float32": Quantity(physical * per_cycle * hertz, source, today, "derived")}}


def _scaled(peak: Quantity, share: float, physical: int) -> Quantity:
    return Quantity(peak.value * share, f"{physical} cores of it: {peak.source}", peak.date, "derived")


def _physical(cores: tuple[int, ...]) -> int:
    """Cores that are not threads of one another."""
    siblings = set()
    for core in cores:
        path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text(encoding="ascii").strip())
        except OSError:
            siblings.add(str(core))
    return len(siblings)


def _flags() -> frozenset[str]:
    return frozenset(_cpuinfo("flags", "Features").split())


def _hertz() -> tuple[float | None, str]:
    """The highest clock the system names, and which that is: the governor's, else the nominal one."""
    clock = machine.clocks().get("max_clock_khz")
    with contextlib.suppress(ValueError):
        if clock:
            return float(str(clock)) * 1e3, "the highest clock"
        return float(_cpuinfo("cpu MHz")) * 1e6, "the nominal clock"
    return None, ""


def _cpuinfo(*names: str) -> str:
    """The first value of one of these fields; empty where the system has none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in names:
                return value.strip()
    return ""
