"""What this machine has: its processor, slices of it, and accelerators, each with its calibration."""

from __future__ import annotations

import datetime
import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gimlet_lab.hardware import calibration, catalogue, machine
from gimlet_lab.hardware.accelerators import accelerators, driver
from gimlet_lab.hardware.calibration import Bench, Beside, Calibration
from gimlet_lab.hardware.theory import theory
from gimlet_lab.model.device import Device, Quantity
from gimlet_lab.progress import Progress, silent

#: Parts a processor with several cores is offered in.
SLICES = 2

#: Below this share of what its slices do at once, a processor's threads were disturbed.
KEEPS_UP = 0.7


def local_devices(
    *,
    progress: Progress = silent,
    recalibrate: bool = False,
    long: bool = False,
    slices: int | None = None,
    cache_dir: Path | None = None,
) -> tuple[Device, ...]:
    """The devices of this machine: ``cpu``, its slices ``cpu/0``, ``cpu/1``, …, then accelerators.

    The first time, each kind of device is measured (at most ten seconds for a processor and its slices);
    afterwards the measurement kept for this machine is used, until what it depends on changes: clocks,
    governor, driver, threads, quota, torch. Slices share the cores of ``cpu``, so their
    ``resources`` say that they do not run beside it; each is offered an even part of the memory.

    Parameters
    ----------
    progress : callable
    recalibrate : bool
        Measure again.
    long : bool
        Measure more, and longer: a minute for a processor and its slices. Says ``recalibrate`` too.
    slices : int, optional
        How many; by default two where there are two cores or more.
    cache_dir : Path, optional
        Where measurements are kept.
    """
    here = _processors(slices)
    found = accelerators(_today())
    usable = [device for device in found if device.torch_device]
    budget_s = _budget_s(here, long)
    benches = [_bench(device, budget_s, long) for device in here]
    benches += [
        _bench(device, calibration.LONG_BUDGET_S if long else calibration.BUDGET_S, long) for device in usable
    ]
    again = recalibrate or long
    results = _calibrations([*here, *usable], benches, again, cache_dir, progress)
    beside = _beside(here, benches, again, cache_dir)
    results = _second_try(here, benches, results, beside, again, cache_dir)
    unusable = [device for device in found if not device.torch_device]
    measured = map(apply, [*here, *usable], _sound(results, len(here)))
    return (*(_with(device, beside) for device in measured), *unusable)


def host_device(
    *, progress: Progress = silent, recalibrate: bool = False, cache_dir: Path | None = None
) -> Device:
    """The processor alone, calibrated as among :func:`local_devices`."""
    here = _processors(None)
    benches = [_bench(device, _budget_s(here, long=False), long=False) for device in here]
    results = _calibrations(here, benches, recalibrate, cache_dir, progress)
    return apply(here[0], _sound(results, len(here))[0])


def apply(device: Device, measured: Calibration | None) -> Device:
    """Put the measured figures in place of the catalogue's; the name says where there are none."""
    if measured is None:
        return replace(device, name=f"{device.name}, not measured")
    source = f"measured here ({measured.threads} threads)" if device.is_host else "measured here"
    if measured.disturbed:
        source += f", under load: others used {measured.others:.0%} of the cores"

    def quantity(value: float) -> Quantity:
        return Quantity(value, source, measured.date, "measured")

    gemv = {dtype: quantity(rate) for dtype, rate in measured.gemv_bytes_per_s.items()}
    flops = {dtype: quantity(rate) for dtype, rate in measured.flops.items()}
    return replace(
        device,
        achieved_flops={**device.achieved_flops, **flops},
        gemv_bytes_per_s=gemv,
        # Whatever reads fastest shows what the memory can give.
        achieved_bandwidth_bytes_per_s=quantity(
            max(measured.read_bytes_per_s, *measured.gemv_bytes_per_s.values(), 0.0)
        ),
        copy_bandwidth_bytes_per_s=quantity(measured.copy_bytes_per_s),
        launch_s=quantity(measured.launch_s),
        link_bytes_per_s=quantity(measured.link_bytes_per_s)
        if measured.link_bytes_per_s
        else device.link_bytes_per_s,
        tiers=measured.tiers,
    )


def _beside(
    here: Sequence[Device], benches: Sequence[Bench], again: bool, cache_dir: Path | None
) -> Beside | None:
    """How the slices slow each other; None without slices, or where it cannot be measured."""
    parts = [device.cores for device in here[1:]]
    if len(parts) < 2 or importlib.util.find_spec("torch") is None:
        return None
    from gimlet_lab.hardware.beside import measure_beside

    key = {**_facts(here[0]), "slices": [list(part) for part in parts]}

    def measure() -> Beside | None:
        return measure_beside(parts, benches[0].array_bytes)

    found = calibration.beside(key, measure, recalibrate=again, directory=cache_dir)
    # With others on the cores, what a slice lost was not lost to its neighbour.
    return None if found is None or found.disturbed else found


def _second_try(
    here: Sequence[Device],
    benches: Sequence[Bench],
    results: tuple[Calibration | None, ...],
    beside: Beside | None,
    again: bool,
    cache_dir: Path | None,
) -> tuple[Calibration | None, ...]:
    """Measure the whole processor once more where its threads did not keep up with its slices.

    Threads of one operator wait for each other: where another program has one of their cores they are slower
    by far than slices that do not wait, and that is no property of the machine.
    """
    whole, part = results[0], results[1] if len(here) > 2 else None
    if whole is None or part is None or beside is None or whole.threads < len(here[0].cores):
        return results
    slices = len(here) - 1
    expected = part.flops.get("float32", 0.0) * slices * beside.flops_share
    if whole.flops.get("float32", 0.0) >= KEEPS_UP * expected or (whole.disturbed and not again):
        return results
    bench = replace(benches[0], budget_s=benches[0].budget_s / 2, tiers=())
    (better,) = _calibrations(here[:1], [bench], False, cache_dir, silent, once_more=True)
    return (better or whole, *results[1:])


def _with(device: Device, beside: Beside | None) -> Device:
    """A slice knows what it keeps beside the others."""
    if beside is None or "/" not in device.id:
        return device
    source = "measured here: all slices at once over each alone"
    flops, bandwidth = (
        Quantity(share, source, beside.date, "measured")
        for share in (beside.flops_share, beside.bandwidth_share)
    )
    return replace(device, beside_flops=flops, beside_bandwidth=bandwidth)


def _processors(slices: int | None) -> list[Device]:
    """The processor, then its slices."""
    cores = machine.cores()
    wanted = min(SLICES, len(cores)) if slices is None else min(max(slices, 0), len(cores))
    whole = _processor(cores)
    parts = _split(cores, wanted) if wanted > 1 else ()
    return [whole, *(_slice(whole, index, part, wanted) for index, part in enumerate(parts))]


def _budget_s(here: Sequence[Device], long: bool) -> float:
    """Seconds for each: all processors' measurements together keep to their time, however many kinds."""
    kinds = len({len(device.cores) for device in here})
    return (calibration.LONG_BUDGET_S if long else calibration.BUDGET_S) * min(1.0, 2 / kinds)


def _sound(results: Sequence[Calibration | None], processors: int) -> list[Calibration | None]:
    """A processor is at least as fast as its slices: what is less was disturbed.

    Threads that wait for each other suffer most from a busy machine, so it shows in the whole first.
    """
    whole, *parts = results
    if whole is not None:
        for part in parts[: processors - 1]:
            if part is not None and part.threads <= whole.threads:
                whole = whole.merged(part)
    return [whole, *parts]


def _processor(cores: tuple[int, ...]) -> Device:
    template = catalogue.devices()["cpu"]
    memory = Quantity(
        float(machine.memory_bytes()),
        "psutil: installed memory, or the container's limit where lower",
        _today(),
        "measured",
    )
    return replace(
        template,
        name=f"{machine.processor()} ({len(cores)} cores)",
        vendor=machine.processor().split()[0].replace("(R)", ""),
        memory_bytes=memory,
        live=True,
        resources=tuple(f"core:{core}" for core in cores),
        torch_device="cpu",
        cores=cores,
        **theory(cores, _today()),
    )


def _slice(whole: Device, index: int, part: tuple[int, ...], of: int) -> Device:
    memory = whole.memory_bytes
    return replace(
        whole,
        id=f"cpu/{index}",
        name=f"{whole.name.rsplit(' (', 1)[0]} (core{'s' if len(part) > 1 else ''} {_ranges(part)})",
        aliases=(),
        memory_bytes=replace(memory, value=memory.value / of, source=f"1/{of} of {memory.source}")
        if memory
        else None,
        resources=tuple(f"core:{core}" for core in part),
        cores=part,
        **theory(part, _today()),
    )


def _calibrations(
    devices: Sequence[Device],
    benches: Sequence[Bench],
    recalibrate: bool,
    cache_dir: Path | None,
    progress: Progress,
    *,
    once_more: bool = False,
) -> tuple[Calibration | None, ...]:
    """The devices' calibrations; None without torch, by which nothing could run there either."""
    if importlib.util.find_spec("torch") is None:
        return (None,) * len(devices)
    from gimlet_lab.hardware.measurement import measure

    asked = [(bench, _facts(device)) for device, bench in zip(devices, benches, strict=True)]
    return calibration.calibrations(
        asked,
        measure,
        recalibrate=recalibrate,
        once_more=once_more,
        directory=cache_dir,
        progress=progress,
    )


def _facts(device: Device) -> Mapping[str, object]:
    # Slices of equal size are one measurement, so the key has the count of cores, not which.
    import torch

    facts: dict[str, object] = {
        "name": device.name if not device.is_host else machine.processor(),
        "cores": len(machine.cores()),
        "torch": torch.__version__,
    }
    if device.is_host:
        facts |= {**machine.clocks(), "quota": machine.cpu_quota()}
    else:
        facts["driver"] = driver()
    return {name: value for name, value in facts.items() if value is not None}


def _bench(device: Device, budget_s: float, long: bool) -> Bench:
    array = calibration.ARRAY_BYTES
    if device.is_host:
        # Out of cache, but never more than an eighth of what is free: the user's models are in there too.
        array = max(array, 4 * (machine.last_cache_bytes() or 0))
        array = min(array, max(machine.available_bytes() // 8, 2**20))
    threads = _threads(device) if device.is_host else 1
    bench = Bench(device.torch_device or "cpu", threads, array, budget_s=budget_s, name=device.id)
    if not long:
        return bench
    tiers = _tiers(device, threads, array) if device.is_host else ()
    return replace(bench, ladder=calibration.LONG_LADDER, few_rows=calibration.LONG_FEW_ROWS, tiers=tiers)


def _tiers(device: Device, threads: int, array: int) -> tuple[tuple[str, int], ...]:
    """Working sets: half of each cache that the device's threads have, and what is out of all of them.

    The first level is left out: an operator of torch takes longer to call than such an array to read.
    """
    caches = {level: size for level, size in machine.caches().items() if level != "L1"}
    last = max(caches, default="")
    share = len(device.cores) / max(len(machine.cores()), 1)
    sets = [(level, int(size * (share if level == last else threads) / 2)) for level, size in caches.items()]
    return (*sets, ("memory", array))


def _threads(device: Device) -> int:
    """The threads torch uses there: all of a slice's cores, but of the whole what the user has set."""
    if device.id != "cpu" or importlib.util.find_spec("torch") is None:
        return len(device.cores)
    import torch

    return int(torch.get_num_threads())


def _split(cores: tuple[int, ...], parts: int) -> tuple[tuple[int, ...], ...]:
    """Cut neighbours together, sizes that differ by one at most."""
    size, more = divmod(len(cores), parts)
    cuts = [index * size + min(index, more) for index in range(parts + 1)]
    return tuple(cores[start:end] for start, end in itertools.pairwise(cuts))


def _ranges(cores: tuple[int, ...]) -> str:
    """``0-3,8`` for cores 0, 1, 2, 3 and 8."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _today() -> str:
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()
