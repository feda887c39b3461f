"""How fast this machine really is: what was measured, and where it is kept.

One small JSON file for each (device, threads, processor, cores, torch). A file that is torn, foreign
or old is as good as none; a folder that cannot be written costs a new measurement in the next process,
nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gimlet_lab.hardware import machine
from gimlet_lab.hardware.files import write_json
from gimlet_lab.model.device import MemoryTier
from gimlet_lab.progress import Progress, silent

SCHEMA = "gimlet.calibration/1"

#: Seconds that measuring one device may take. A processor and one kind of slice, both beside each other and a
#: second try at what was disturbed together stay below 10.
BUDGET_S = 3.0

#: The same for the long calibration, which stays below 60.
LONG_BUDGET_S = 16.0

#: Above this share of the cores' time, others disturbed a measurement: it says so, and is made again when the
#: machine is quieter.
BUSY = 0.2

#: Devices are measured in turns, in so many rounds, and the best counts: what disturbs a shared machine for a
#: few seconds then spoils no device.
ROUNDS = 2

#: Arrays are at least this large, and at least four times the last-level cache.
ARRAY_BYTES = 256 * 2**20

#: Square GEMMs to climb, as far as the budget goes: a large processor needs the large ones.
LADDER = (256, 512, 1024, 2048, 4096, 8192)
LONG_LADDER = (128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)

#: Rows of the GEMMs that read weights out of cache: one is what decoding does.
FEW_ROWS = (1, 16)
LONG_FEW_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)

#: How long to wait for another process that is measuring.
TURN_S = 30.0

#: How long to look whether others still use the cores.
QUIET_S = 0.1

#: Calibrations kept in the folder.
MOST_FILES = 64

_ITEM_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


@dataclass(frozen=True, slots=True)
class Bench:
    """What to measure, and how large.

    Attributes
    ----------
    device : str
        torch's name of it.
    threads : int
        Intra-op threads to measure with; a GPU does not care.
    array_bytes : int
        Size of the arrays for the bandwidths, and of the weights for GEMMs of few rows.
    ladder : tuple of int
        Sides of the square GEMMs.
    few_rows : tuple of int
        Rows of the other GEMMs.
    tiers : tuple of (str, int)
        Names and working sets, in bytes, of the memory tiers to measure besides.
    budget_s : float
    name : str
        For the progress: which device this is.
    """

    device: str = "cpu"
    threads: int = 1
    array_bytes: int = ARRAY_BYTES
    ladder: tuple[int, ...] = LADDER
    budget_s: float = BUDGET_S
    name: str = ""
    few_rows: tuple[int, ...] = FEW_ROWS
    tiers: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Rung:
    """One GEMM of the ladder: (m × k)·(k × n) took ``seconds``."""

    dtype: str
    m: int
    n: int
    k: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Beside:
    """What a slice keeps of its own rate while another slice does the same, between 0 and 1.

    Attributes
    ----------
    flops_share : float
        In GEMMs that fit into cache.
    bandwidth_share : float
        In reading out of cache.
    date : str
    others : float or None
        Share of the cores' time that others used meanwhile.
    """

    flops_share: float
    bandwidth_share: float
    date: str
    others: float | None = None

    @property
    def disturbed(self) -> bool:
        """Whether others used so much of the cores that the shares are theirs as well."""
        return self.others is not None and self.others > BUSY


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured.

    Attributes
    ----------
    threads : int
        torch's intra-op threads while measuring.
    read_bytes_per_s : float
        Reading an array out of cache.
    copy_bytes_per_s : float
        Copying one: bytes read plus bytes written.
    launch_s : float
        Seconds of an operator on one element.
    ladder : tuple of Rung
        All GEMMs, squares and those with few rows. float32 is without TF32 and without bfloat16 shortcuts.
    date : str
    seconds_spent : float
    tiers : tuple of MemoryTier
        Only in the long calibration.
    link_bytes_per_s : float or None
        From host memory to an accelerator.
    others : float or None
        Share of the cores' time that others used meanwhile.
    """

    threads: int
    read_bytes_per_s: float
    copy_bytes_per_s: float
    launch_s: float
    ladder: tuple[Rung, ...]
    date: str
    seconds_spent: float
    tiers: tuple[MemoryTier, ...] = ()
    link_bytes_per_s: float | None = None
    others: float | None = None

    @property
    def disturbed(self) -> bool:
        """Whether others used so much of the cores that this is less than the machine can."""
        return self.others is not None and self.others > BUSY

    @property
    def flops(self) -> dict[str, float]:
        """FLOP/s of the best GEMM by dtype."""
        best: dict[str, float] = {}
        for rung in self.ladder:
            rate = 2.0 * rung.m * rung.n * rung.k / rung.seconds
            best[rung.dtype] = max(best.get(rung.dtype, 0.0), rate)
        return best

    @property
    def gemv_bytes_per_s(self) -> dict[str, float]:
        """Rate at which a GEMM of one row reads weights out of cache, by dtype."""
        return {
            rung.dtype: rung.n * rung.k * _ITEM_BYTES[rung.dtype] / rung.seconds
            for rung in self.ladder
            if rung.m == 1
        }

    def merged(self, other: Calibration) -> Calibration:
        """The best of two measurements of one device."""
        ladder = {(rung.dtype, rung.m, rung.n, rung.k): rung for rung in other.ladder}
        for rung in self.ladder:
            shape = (rung.dtype, rung.m, rung.n, rung.k)
            if shape not in ladder or rung.seconds <= ladder[shape].seconds:
                ladder[shape] = rung
        return replace(
            self,
            read_bytes_per_s=max(self.read_bytes_per_s, other.read_bytes_per_s),
            copy_bytes_per_s=max(self.copy_bytes_per_s, other.copy_bytes_per_s),
            launch_s=min(self.launch_s, other.launch_s),
            ladder=tuple(ladder.values()),
            seconds_spent=self.seconds_spent + other.seconds_spent,
            tiers=_best_tiers(self.tiers, other.tiers),
            link_bytes_per_s=max((self.link_bytes_per_s, other.link_bytes_per_s), key=lambda v: v or 0.0),
            others=min((self.others, other.others), key=lambda v: 1.0 if v is None else v),
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is not a whole calibration with sensible numbers.
        """
        ladder = tuple(Rung(**rung) for rung in data["ladder"])
        tiers = tuple(MemoryTier(**tier) for tier in data.get("tiers", ()))
        found = cls(**{**data, "ladder": ladder, "tiers": tiers})
        numbers = [found.read_bytes_per_s, found.copy_bytes_per_s, found.launch_s]
        numbers += [rate for tier in tiers for rate in (tier.read_bytes_per_s, tier.copy_bytes_per_s)]
        if not all(math.isfinite(number) and number > 0 for number in (*numbers, *found.flops.values())):
            raise ValueError("a measured rate must be a positive number")
        if any(rung.dtype not in _ITEM_BYTES for rung in ladder):
            raise ValueError("a dtype that is never measured")
        return found


def _best_tiers(first: Sequence[MemoryTier], second: Sequence[MemoryTier]) -> tuple[MemoryTier, ...]:
    """The best of each tier's rates."""
    best = {tier.name: tier for tier in second}
    for tier in first:
        other = best.get(tier.name, tier)
        best[tier.name] = replace(
            tier,
            read_bytes_per_s=max(tier.read_bytes_per_s, other.read_bytes_per_s),
            copy_bytes_per_s=max(tier.copy_bytes_per_s, other.copy_bytes_per_s),
            random_bytes_per_s=max(tier.random_bytes_per_s, other.random_bytes_per_s),
        )
    return tuple(best.values())


#: Measures one device: the bench, and where to report progress.
Measure = Callable[[Bench, Progress], Calibration]


def calibrations(
    benches: Sequence[tuple[Bench, Mapping[str, object]]],
    measure: Measure,
    *,
    recalibrate: bool = False,
    once_more: bool = False,
    directory: Path | None = None,
    progress: Progress = silent,
) -> tuple[Calibration | None, ...]:
    """The calibrations of some devices: from memory, from their files, or measured now and kept.

    One that others disturbed is measured again as soon as the machine is quieter, and the best is kept.

    Parameters
    ----------
    benches : sequence of (Bench, mapping)
        Each with the facts its result depends on: processor, cores, torch. Device and threads join them as
        the key; two with one key are measured once.
    measure : callable
    recalibrate : bool
        Measure again.
    once_more : bool
        Measure for one more round and keep the best of that and of what is known.
    directory : Path, optional
        Where files are; :func:`gimlet_lab.hardware.machine.cache_dir` where left out.
    progress : callable

    Returns
    -------
    tuple of Calibration or None
        In the order asked for; None where measuring failed (no memory left for the arrays).
    """
    folder = machine.cache_dir() if directory is None else directory
    keys = [{**facts, "device": bench.device, "threads": bench.threads} for bench, facts in benches]
    paths = [_path(folder, key) for key in keys]
    known = dict(zip(paths, keys, strict=True))
    found: dict[Path, Calibration | None] = {}
    if not recalibrate:
        found = {path: _MEMORY.get(path) or _quiet(read(path, key)) for path, key in known.items()}
    wanted = {path: bench for path, (bench, _) in zip(paths, benches, strict=True)}
    missing = {path: bench for path, bench in wanted.items() if once_more or found.get(path) is None}
    if missing:
        with _turn(folder / "calibration.lock") as waited:
            if waited and not once_more:
                found.update({path: read(path, known[path]) for path in missing})
                missing = {path: bench for path, bench in missing.items() if found[path] is None}
            for path, result in _in_rounds(missing, measure, progress, 1 if once_more else ROUNDS).items():
                before = None if recalibrate else read(path, known[path])
                found[path] = best = result if before is None else result.merged(before)
                write(path, known[path], best)
    _MEMORY.update({path: one for path, one in found.items() if one is not None})
    return tuple(found.get(path) for path in paths)


_MEMORY: dict[Path, Calibration] = {}


def _path(folder: Path, key: Mapping[str, object]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"calibration-{digest}.json"


def _quiet(kept: Calibration | None) -> Calibration | None:
    """What was kept, unless others disturbed it and no longer do: then it is worth measuring again."""
    return None if kept is None or (kept.disturbed and _is_quiet()) else kept


def _is_quiet() -> bool:
    """Whether others leave us the cores now."""
    load = machine.Load()
    time.sleep(QUIET_S)
    others = load.others()
    return others is not None and others <= BUSY / 2


def beside(
    key: Mapping[str, object],
    measure: Callable[[], Beside | None],
    *,
    recalibrate: bool = False,
    directory: Path | None = None,
) -> Beside | None:
    """How slices slow each other: kept beside the calibrations, or measured now; None where it cannot be."""
    folder = machine.cache_dir() if directory is None else directory
    full = {**key, "what": "beside"}
    path = _path(folder, full)
    if not recalibrate:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] == SCHEMA and data["key"] == full:
                found = Beside(**data["beside"])
                sensible = 0 < found.flops_share <= 1 and 0 < found.bandwidth_share <= 1
                if sensible and not (found.disturbed and _is_quiet()):
                    return found
        except (OSError, ValueError, KeyError, TypeError):
            pass
    with _turn(folder / "calibration.lock"):
        result = measure()
    if result is not None:
        write_json(path, {"schema": SCHEMA, "key": full, "beside": asdict(result)})
    return result


def _in_rounds(
    benches: Mapping[Path, Bench], measure: Measure, progress: Progress, rounds: int
) -> dict[Path, Calibration]:
    """Measure devices in turns; those that cannot be measured are left out."""
    best: dict[Path, Calibration] = {}
    turns = [(path, bench) for _ in range(rounds) for path, bench in benches.items()]
    for done, (path, bench) in enumerate(turns):

        def report(fraction: float, what: str, done: int = done, name: str = bench.name) -> None:
            progress((done + fraction) / len(turns), f"{name}: {what}" if name else what)

        try:
            result = measure(replace(bench, budget_s=bench.budget_s / rounds), report)
        except (RuntimeError, MemoryError):
            continue
        best[path] = result if path not in best else best[path].merged(result)
    return best


def read(path: Path, key: Mapping[str, object]) -> Calibration | None:
    """Read a file; None where it is missing, torn, of another machine or of another version."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA or data["key"] != dict(key):
            return None
        return Calibration.from_json(data["calibration"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def write(path: Path, key: Mapping[str, object], calibration: Calibration) -> bool:
    """Write a file whole or not at all; whether it could be written."""
    content = {"schema": SCHEMA, "key": dict(key), "calibration": calibration.to_json()}
    return write_json(path, content, most=("calibration-*.json", MOST_FILES))


@contextlib.contextmanager
def _turn(path: Path, timeout_s: float = TURN_S) -> Iterator[bool]:
    """Measure one process at a time: two at once would each see half a machine.

    Yields whether another process was measuring meanwhile (and may have left its result). The kernel frees
    the lock of a process that dies, so it is never stale; where locks or the folder do not work, nobody
    waits.
    """
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except (ImportError, OSError):
        yield False
        return
    with file:
        waited, ends = False, time.monotonic() + timeout_s
        while time.monotonic() < ends:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = True
                time.sleep(0.05)
            except OSError:
                break
        yield waited
