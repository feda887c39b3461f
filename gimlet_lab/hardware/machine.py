"""Facts about the machine we run on, without torch: processor, cores, caches, memory, where to keep files."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
from pathlib import Path

#: Set to keep calibrations somewhere else than in the user's cache folder.
CACHE_VARIABLE = "GIMLET_LAB_CACHE"


def cache_dir() -> Path:
    """Where calibrations are kept: ``$GIMLET_LAB_CACHE``, or the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    import platformdirs

    return platformdirs.user_cache_path("gimlet_lab")


@functools.cache
def processor() -> str:
    """What the processor calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"


def cores() -> tuple[int, ...]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def memory_bytes() -> int:
    """Installed memory, or what the container may use where that is less."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return total


def available_bytes() -> int:
    """Memory that can be taken now without swapping."""
    import psutil

    return min(int(psutil.virtual_memory().available), memory_bytes())


def last_cache_bytes() -> int | None:
    """Last-level cache of all usable cores together; None where the system does not say."""
    caches: dict[str, int] = {}
    for core in cores():
        folder = Path(f"/sys/devices/system/cpu/cpu{core}/cache")
        try:
            last = max(folder.glob("index*"), key=lambda index: int((index / "level").read_text()))
            size = (last / "size").read_text().strip()
            shared = (last / "shared_cpu_list").read_text().strip()
            caches[shared] = int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]]
        except (OSError, ValueError, KeyError):
            continue
    return sum(caches.values()) or None


def caches() -> dict[str, int]:
    """Data caches by level, ``L1`` … ``L3``: bytes of the one that the first usable core has or shares."""
    found: dict[str, int] = {}
    for core in cores()[:1]:
        for index in Path(f"/sys/devices/system/cpu/cpu{core}/cache").glob("index*"):
            try:
                level, kind = (index / "level").read_text().strip(), (index / "type").read_text().strip()
                size = (index / "size").read_text().strip()
                if kind != "Instruction":
                    found[f"L{level}"] = int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]]
            except (OSError, ValueError, KeyError):
                continue
    return dict(sorted(found.items()))


def clocks() -> dict[str, object]:
    """What decides how fast the cores run: the governor and the highest clock, where the system says so."""
    folder = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    found: dict[str, object] = {}
    for name, file in (("governor", "scaling_governor"), ("max_clock_khz", "scaling_max_freq")):
        with contextlib.suppress(OSError):
            found[name] = (folder / file).read_text(encoding="ascii").strip()
    return found


def cpu_quota() -> float | None:
    """How many processors' time the container may use; None where it has no limit."""
    groups = _own_groups()
    for folder in (groups.get("", ""), "/sys/fs/cgroup"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (Path(folder) / "cpu.max").read_text(encoding="ascii").split()
            return int(quota) / int(period)  # "max" is no number
    for folder in (groups.get("cpu", ""), "/sys/fs/cgroup/cpu"):  # the first version of control groups
        with contextlib.suppress(OSError, ValueError):
            microseconds = int((Path(folder) / "cpu.cfs_quota_us").read_text(encoding="ascii"))
            if microseconds > 0:
                period = (Path(folder) / "cpu.cfs_period_us").read_text(encoding="ascii")
                return microseconds / int(period)
    return None


def threads(count: int) -> int:
    """Threads worth having on so many cores: no more than the time that the container may use.

    Threads beyond the quota use it up at once, and then all wait for the next period.
    """
    quota = cpu_quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def _own_groups() -> dict[str, str]:
    """Folders of this process's own control groups by controller; of the second version by ``""``."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            found[name] = f"/sys/fs/cgroup/{name}{path}" if name else f"/sys/fs/cgroup{path}"
    return found


class Load:
    """What others do on our cores from now on: their share of the cores' time.

    A measurement that shares its cores says how fast the machine was then, not how fast it is. Steal counts:
    to the one who waits, another machine's work is others' work.
    """

    def __init__(self) -> None:
        self._before = self._counted()

    def others(self) -> float | None:
        """The share between 0 and 1 since then; None where the system does not count it."""
        before, now = self._before, self._counted()
        if before is None or now is None or now[0] <= before[0]:
            return None
        total, busy, own = (after - first for first, after in zip(before, now, strict=True))
        return min(max((busy - own) / total, 0.0), 1.0)

    def _counted(self) -> tuple[float, float, float] | None:
        """Seconds of all usable cores together, the busy ones among them, and our own."""
        import psutil

        try:
            every = psutil.cpu_times(percpu=True)
            mine = [every[core] for core in cores()]
        except (OSError, IndexError, RuntimeError):
            return None
        total = sum(sum(times) - getattr(times, "guest", 0.0) for times in mine)
        idle = sum(times.idle + getattr(times, "iowait", 0.0) for times in mine)
        return total, total - idle, _own_s()


def _own_s() -> float:
    """Processor seconds of this process and of all it started: a plan's workers are not others."""
    import psutil

    me = psutil.Process()
    ended, seconds = me.cpu_times(), 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:  # ended meanwhile
            continue
        seconds += times.user + times.system
    return seconds + float(getattr(ended, "children_user", 0.0) + getattr(ended, "children_system", 0.0))
