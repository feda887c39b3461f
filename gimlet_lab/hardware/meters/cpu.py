"""The processor: psutil, and the kernel's files for its energy (RAPL) and memory bandwidth (resctrl)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gimlet_lab.hardware import machine
from gimlet_lab.hardware.meters.meter import Card, Probe, Rates, Readings, Seldom

#: Files that say a little and cost a lot are read this seldom.
SELDOM_S = 1.0


class CpuMeter:
    """The processor and each core that this process may use.

    Parameters
    ----------
    root : Path
        Where the system's files are.
    """

    name = "cpu"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def open(self) -> tuple[Sequence[Probe], Sequence[str]]:
        """The processor; its energy may be for the administrator only."""
        energy = Rapl(self._root / "sys/class/powercap")
        return [CpuProbe(energy, self._root / "sys/fs/resctrl/mon_data")], energy.notes


class CpuProbe:
    """Reads the processor as ``cpu``, and its cores as ``core:0``, ….

    Utilization is of the cores that this process may use; disk, network, energy and memory bandwidth are of
    the machine, whoever causes them.
    """

    #: The kernel's files answer at once.
    prompt = True

    def __init__(self, energy: Rapl, bandwidth: Path) -> None:
        import psutil

        self._psutil: Any = psutil
        self._cores = machine.cores()
        self._process = psutil.Process()
        self._energy = energy
        self._bandwidth = sorted(bandwidth.glob("mon_L3_*/mbm_total_bytes")) if bandwidth.is_dir() else []
        self._rates = Rates()
        self._before: dict[int, tuple[float, float]] = {}
        self._io = Seldom(self._counters, SELDOM_S)
        self._clock = Seldom(self._frequency, SELDOM_S)
        self._memory = Seldom(lambda _: psutil.virtual_memory(), SELDOM_S)

    @property
    def devices(self) -> tuple[str, ...]:
        """The processor and its cores."""
        return ("cpu", *(f"core:{core}" for core in self._cores))

    @property
    def cards(self) -> tuple[Card, ...]:
        """None: torch knows the processor by the same name."""
        return ()

    def read(self, now_s: float) -> Mapping[str, Readings]:
        """Read everything; what one file does not say is missing, no more."""
        spent = self._spent()
        cores = {core: _share(busy, total) for core, (busy, total) in spent.items()}
        joules = self._energy.joules()
        memory = _quiet(self._memory, now_s)
        whole: dict[str, Any] = {
            "utilization": _share(*(sum(part) for part in zip(*spent.values(), strict=True))),
            "clock_hz": self._clock(now_s),
            "load": _quiet(lambda: self._psutil.getloadavg()[0]),
            "memory_used_bytes": float(memory.total - memory.available) if memory else None,
            "memory_total_bytes": float(memory.total) if memory else None,
            "process_memory_bytes": _quiet(lambda: float(self._process.memory_info().rss)),
            # Cores' worth of work that this process did.
            "process_cores": self._rates.of("process", time.process_time(), now_s),
            "energy_j": joules,
            "power_w": self._rates.of("energy", joules, now_s),
            "dram_bytes_per_s": self._rates.of("dram", self._moved_bytes(), now_s),
            **self._io(now_s),
        }
        return {
            "cpu": whole,
            **{f"core:{core}": {"utilization": value} for core, value in cores.items()},
        }

    def _spent(self) -> dict[int, tuple[float, float]]:
        """Seconds that each core was busy since the last reading, and all its seconds."""
        found: dict[int, tuple[float, float]] = {}
        times = _quiet(lambda: self._psutil.cpu_times(percpu=True)) or []
        for core in self._cores:
            if core >= len(times):
                continue
            now = times[core]
            idle = now.idle + getattr(now, "iowait", 0.0)
            # A guest's time is in its host's user time already.
            total = sum(now) - getattr(now, "guest", 0.0) - getattr(now, "guest_nice", 0.0)
            idle_before, total_before = self._before.get(core, (idle, total))
            self._before[core] = (idle, total)
            spent = total - total_before
            found[core] = (spent - (idle - idle_before), spent)
        return found

    def _counters(self, now_s: float) -> dict[str, float | None]:
        disk, network = _quiet(self._psutil.disk_io_counters), _quiet(self._psutil.net_io_counters)
        counts = {
            "disk_read_bytes_per_s": disk and disk.read_bytes,
            "disk_write_bytes_per_s": disk and disk.write_bytes,
            "network_rx_bytes_per_s": network and network.bytes_recv,
            "network_tx_bytes_per_s": network and network.bytes_sent,
        }
        return {name: self._rates.of(name, count, now_s) for name, count in counts.items()}

    def _frequency(self, _now_s: float) -> float | None:
        found = _quiet(self._psutil.cpu_freq)
        return found.current * 1e6 if found is not None and found.current else None

    def _moved_bytes(self) -> float | None:
        """Bytes that moved between memory and all caches since the machine started."""
        total = 0.0
        for file in self._bandwidth:
            try:
                total += int(file.read_text(encoding="ascii"))
            except (OSError, ValueError):  # "Unavailable", "Error", or no permission
                return None
        return total if self._bandwidth else None


class Rapl:
    """Energy of all packages and their memory by the kernel's powercap files.

    Parameters
    ----------
    folder : Path
        ``/sys/class/powercap``.
    """

    def __init__(self, folder: Path) -> None:
        self.notes: list[str] = []
        self._zones: dict[Path, float | None] = {}
        self._last: dict[Path, float] = {}
        self._sum_j = 0.0
        for zone in sorted(folder.glob("intel-rapl:*")) if folder.is_dir() else []:
            try:
                name = (zone / "name").read_text(encoding="ascii").strip()
                if not name.startswith(("package", "dram")):
                    continue  # core and uncore are in the package, psys has all of it again
                (zone / "energy_uj").read_text(encoding="ascii")
                wraps = (zone / "max_energy_range_uj").read_text(encoding="ascii")
                self._zones[zone] = float(wraps) * 1e-6
            except PermissionError:
                self.notes = [f"cpu: its energy is not known: {folder} may be read by the administrator only"]
            except (OSError, ValueError):
                continue

    def joules(self) -> float | None:
        """Joules since the first reading; None where there is no counter, or one cannot be read."""
        if not self._zones or self.notes:
            return None
        for zone, wraps_j in self._zones.items():
            try:
                now = int((zone / "energy_uj").read_text(encoding="ascii")) * 1e-6
            except (OSError, ValueError):
                return None
            spent = now - self._last.get(zone, now)
            self._last[zone] = now
            if spent < 0 and wraps_j:
                spent += wraps_j
            self._sum_j += max(spent, 0.0)
        return self._sum_j


def _share(busy: float = 0.0, total: float = 0.0) -> float | None:
    """A share between 0 and 1; None where no time has passed by the kernel's clock."""
    return min(max(busy / total, 0.0), 1.0) if total > 0 else None


def _quiet(call: Any, *args: Any) -> Any:
    """The answer, or None where the system has none."""
    with contextlib.suppress(Exception):
        return call(*args)
    return None
