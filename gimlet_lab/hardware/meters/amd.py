"""AMD's devices by AMD SMI (``amdsmi``), which ROCm brings.

The binding fails at import in ways of its own where ROCm is not there, and prints; so it is imported only
where its library can be loaded, and what it prints is for nobody.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gimlet_lab.hardware.meters.meter import Card, CardProbe, Probe, Readings, Seldom, UnreadableError

LIBRARY = "libamd_smi.so"

#: Unpacking a device's metrics takes the binding a millisecond: not for every reading. Counters go on.
METRICS_S = 0.5

#: Counters of the time that each cause held the clocks down.
THROTTLE_REASONS = {
    "prochot_residency_acc": "processor hot",
    "ppt_residency_acc": "power cap",
    "socket_thm_residency_acc": "temperature",
    "vr_thm_residency_acc": "voltage regulator's temperature",
    "hbm_thm_residency_acc": "memory's temperature",
}

#: AMD SMI's errors after which a call is never made again: not supported, not implemented, no permission.
_NEVER = (2, 3, 10)


class AmdSmi:
    """AMD SMI's calls, each with None where it has no answer.

    Raises
    ------
    ImportError
        Without the binding, or without the library that it needs.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("amdsmi") is None or not library_loads():
            raise ImportError("no amdsmi, or no ROCm")
        with muted():
            import amdsmi

            amdsmi.amdsmi_init()
        self.lib: Any = amdsmi
        self._never: set[tuple[object, ...]] = set()

    def ask(self, card: Card | None, name: str, *args: Any) -> Any:
        """Call for a card, or for none; ``"N/A"`` is None, and so is every error."""
        key = (name, card.id if card else None)
        if key in self._never:
            return None
        try:
            return known(getattr(self.lib, name)(*((card.handle,) if card else ()), *args))
        except Exception as error:  # noqa: BLE001 - the binding raises whatever its parsing meets
            code = error.get_error_code() if hasattr(error, "get_error_code") else None
            if code in _NEVER or isinstance(error, AttributeError):
                self._never.add(key)
        return None

    def cards(self) -> Iterator[Card]:
        """All devices."""
        for index, handle in enumerate(self.ask(None, "amdsmi_get_processor_handles") or ()):
            bare = Card(f"amd:{index}", handle, "AMD device")
            asic = self.ask(bare, "amdsmi_get_gpu_asic_info") or {}
            yield replace(
                bare,
                name=asic.get("market_name") or bare.name,
                uuid=self.ask(bare, "amdsmi_get_gpu_device_uuid"),
                pci=self.ask(bare, "amdsmi_get_gpu_device_bdf"),
            )


class AmdMeter:
    """All devices that AMD SMI knows."""

    name = "amd"

    def __init__(self) -> None:
        self._warned = False

    def open(self) -> tuple[Sequence[Probe], Sequence[str]]:
        """Every device, and every partition that is a device of its own."""
        if importlib.util.find_spec("amdsmi") is None:
            return (), ()
        if not library_loads():
            # Ray imports it wherever it is, and falls over: said once, because it is nobody's fault here.
            line = f"amd: amdsmi is installed, its library {LIBRARY} (ROCm) is not: whatever imports it fails"
            warned, self._warned = self._warned, True
            return (), [] if warned else [line]
        try:
            smi = AmdSmi()
        except Exception as error:  # noqa: BLE001 - no driver, no device, no permission, a library of another version
            return (), [f"amd: AMD SMI cannot be used: {' '.join(str(error).split())[:120]}"]
        return [AmdProbe(smi, card) for card in smi.cards()], ()


class AmdProbe(CardProbe):
    """Reads one device."""

    def __init__(self, smi: AmdSmi, card: Card) -> None:
        super().__init__(card)
        self._smi = smi
        self._held_back: dict[str, float] = {}
        self._metrics = Seldom(self._read_metrics, METRICS_S)

    def read(self, now_s: float) -> Mapping[str, Readings]:
        """Read it.

        Raises
        ------
        UnreadableError
            If it does not answer any more.
        """
        use = self._ask("amdsmi_get_gpu_activity") or {}
        kind = self._smi.lib.AmdSmiMemoryType.VRAM
        found = {
            "utilization": _scaled(use.get("gfx_activity"), 0.01),
            # The memory controller's share of busy time, not its bandwidth.
            "memory_busy": _scaled(use.get("umc_activity"), 0.01),
            "memory_used_bytes": self._ask("amdsmi_get_gpu_memory_usage", kind),
            "memory_total_bytes": self._ask("amdsmi_get_gpu_memory_total", kind),
            "power_w": self._power(),
            "energy_j": self._energy(),
        }
        # A device that is gone answers every call with an error of its own; the metrics may be of before.
        if not _any(found) and not _any(self._read_metrics(now_s)):
            raise UnreadableError("AMD SMI does not reach it any more")
        return {self._card.id: {**found, **self._metrics(now_s)}}

    def _ask(self, name: str, *args: Any) -> Any:
        return self._smi.ask(self._card, name, *args)

    def _read_metrics(self, now_s: float) -> dict[str, Any]:
        metrics = self._ask("amdsmi_get_gpu_metrics_info") or {}
        clocks = [metrics.get("current_gfxclk"), *(metrics.get("current_gfxclks") or ())]
        return {
            "sm_clock_hz": _scaled(max((c for c in clocks if c is not None), default=None), 1e6),
            "memory_clock_hz": _scaled(metrics.get("current_uclk"), 1e6),
            "temperature_c": metrics.get("temperature_hotspot"),
            "throttle_reasons": self._throttled(metrics),
            **{
                f"xgmi_{way}_bytes_per_s": self._rates.of(way, self._xgmi(metrics, way), now_s)
                for way in ("read", "write")
            },
        }

    def _power(self) -> float | None:
        # Which one a device reports differs by its kind and the library's version; others are N/A, or 0.
        power = self._ask("amdsmi_get_power_info") or {}
        names = ("socket_power", "current_socket_power", "average_socket_power")
        return next((float(power[name]) for name in names if power.get(name)), None)

    def _energy(self) -> float | None:
        count = self._ask("amdsmi_get_energy_count")
        if not count or not count.get("energy_accumulator") or not count.get("counter_resolution"):
            return None
        return float(count["energy_accumulator"] * count["counter_resolution"] * 1e-6)

    def _throttled(self, metrics: Mapping[str, Any]) -> str | None:
        """The causes whose counters went on since the last reading; None the first time."""
        now = {
            reason: float(metrics[name])
            for name, reason in THROTTLE_REASONS.items()
            if metrics.get(name) is not None
        }
        before, self._held_back = self._held_back, now
        known = [reason for reason in now if reason in before]
        if known:
            return ", ".join(reason for reason in known if now[reason] > before[reason])
        return None

    def _xgmi(self, metrics: Mapping[str, Any], way: str) -> float | None:
        links = [value for value in metrics.get(f"xgmi_{way}_data_acc") or () if value is not None]
        return sum(links) * 1024.0 if links else None


def library_loads() -> bool:
    """Whether the binding will find its library: it looks in the same places, in the same order."""
    spec = importlib.util.find_spec("amdsmi")
    roots = [os.environ.get("ROCM_HOME"), os.environ.get("ROCM_PATH"), "/opt/rocm"]
    places = [f"{root}/lib/{LIBRARY}" for root in roots if root] + [LIBRARY]
    if spec is not None and spec.origin is not None:
        places.append(str(Path(spec.origin).parent / LIBRARY))
    for place in places:
        with contextlib.suppress(OSError):
            ctypes.CDLL(place)
            return True
    return False


def known(value: Any) -> Any:
    """The binding's answer with None for what is not there.

    Examples
    --------
    >>> known({"power": "N/A", "links": [3, "N/A"]})
    {'power': None, 'links': [3, None]}
    """
    if isinstance(value, dict):
        return {key: known(item) for key, item in value.items()}
    if isinstance(value, list):
        return [known(item) for item in value]
    return None if value in ("N/A", "") else value


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """What this thread prints goes nowhere meanwhile; what others print goes on."""
    swap = {name: _Muted(getattr(sys, name)) for name in ("stdout", "stderr")}
    for name, stream in swap.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in swap.items():
            # Somebody may have put a stream of theirs there since: it stays.
            if getattr(sys, name) is stream:
                setattr(sys, name, stream.through)


class _Muted:
    """A stream for all threads but the one that made it."""

    def __init__(self, through: Any) -> None:
        self.through = through
        self._silent = threading.get_ident()

    def write(self, text: str) -> int:
        if self.through is None or threading.get_ident() == self._silent:
            return len(text)
        return int(self.through.write(text))

    def flush(self) -> None:
        if self.through is not None and threading.get_ident() != self._silent:
            self.through.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.through, name)


def _any(readings: Mapping[str, Any]) -> bool:
    return any(value is not None for value in readings.values())


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit
