"""Fleets: devices to plan for, how many of each, and the links between them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from gimlet_lab.errors import UnknownNameError, UsageError
from gimlet_lab.hardware import catalogue, discovery, link
from gimlet_lab.model.device import Device, Fleet, Link
from gimlet_lab.progress import Progress, silent

#: Of a PCIe link's rate, what a large copy from torch gets: headers and flow control take the rest. It is the
#: factor that aiconfigurator applies to memory rates; pinned copies do a little better, pageable ones worse.
PCIE_EFFICIENCY = 0.8

#: Seconds to start a copy between host and accelerator: aiconfigurator's figure for a PCIe card (l40s.yaml).
PCIE_LATENCY_S = 10e-6

#: Between two hosts that are not one machine, where nobody said what connects them: 10 Gbit/s Ethernet.
NETWORK_BYTES_PER_S = 1.25e9
NETWORK_LATENCY_S = 50e-6

#: Seconds to hand a message to another process, where it could not be measured.
PIPE_S = 20e-6


def fleet(*specs: str, local: tuple[Device, ...] | None = None, progress: Progress = silent) -> Fleet:
    """Build a fleet of the devices named, present or not.

    Parameters
    ----------
    *specs : str
        ``"h100-sxm:2"``, ``"cpu"``, ``"cpu/0"``; several in one by spaces or commas. Without a count there is
        one; naming a device again adds to its count. Live devices go before the catalogue's of that name.
    local : tuple of Device, optional
        The live devices; where left out and one of them is named: those of this machine, discovered and
        calibrated, and what is connected.

    Raises
    ------
    UnknownNameError
        If there is no such device; says which are near.
    UsageError
        If a count is not a whole number above 0, or a live device is wanted more often than it is here.

    Examples
    --------
    >>> two = fleet("h100-sxm:2, mi300x", local=())
    >>> [device.id for device in two], dict(two.counts)
    (['h100-sxm', 'mi300x'], {'h100-sxm': 2, 'mi300x': 1})
    """
    counts: dict[str, int] = {}
    for name, count in parse(*specs):
        counts[name] = counts.get(name, 0) + count
    if not counts:
        raise UsageError("a fleet needs a device: for example 'h100-sxm:2 cpu'")
    connected = _connected[0] if _connected and local is None else None
    if connected is not None:
        local = connected.devices
    elif local is None:
        needed = any(_maybe_live(name) for name in counts)
        local = discovery.local_devices(progress=progress) if needed else ()
    chosen: dict[str, Device] = {}
    total: dict[str, int] = {}
    for name, count in counts.items():
        device = _resolve(name, local)
        total[device.id] = total.get(device.id, 0) + count
        if device.live and total[device.id] > 1:
            raise UsageError(f"{device.id!r} is one device of this machine, not {total[device.id]}")
        chosen[device.id] = device
    devices = tuple(chosen.values())
    measured = {(one.src, one.dst): one for one in connected.links} if connected is not None else {}
    rest = {(one.src, one.dst): one for one in links(devices)}
    between = {pair: one for pair, one in (rest | measured).items() if set(pair) <= set(chosen)}
    return Fleet(devices, total, tuple(between.values()))


def local_fleet(*, recalibrate: bool = False, progress: Progress = silent) -> Fleet:
    """The devices of this machine, calibrated, one of each.

    Cards that torch cannot use are left out: nothing can be placed on them.
    """
    found = discovery.local_devices(recalibrate=recalibrate, progress=progress)
    devices = tuple(device for device in found if device.torch_device is not None)
    return Fleet(devices, {device.id: 1 for device in devices}, links(devices))


#: What a backend has connected: devices of this machine and others, with the links between them.
_connected: list[Fleet] = []


def connect(fleet: Fleet) -> None:
    """From now on these are the live devices of this process."""
    _connected[:] = [fleet]


def disconnect() -> None:
    """From now on the live devices are those of this machine."""
    _connected.clear()


def connected_devices() -> tuple[Device, ...]:
    """Devices of connected nodes, which are not this machine."""
    return tuple(device for fleet in _connected for device in fleet if device.node)


def live_fleet(*, progress: Progress = silent) -> Fleet:
    """The live devices, local and connected."""
    return _connected[0] if _connected else local_fleet(progress=progress)


def parse(*specs: str) -> list[tuple[str, int]]:
    """Split specs into names and counts.

    Examples
    --------
    >>> parse("h100-sxm:2, cpu", "cpu/0")
    [('h100-sxm', 2), ('cpu', 1), ('cpu/0', 1)]
    """
    found = []
    for spec in itertools.chain.from_iterable(re.split(r"[\s,]+", text.strip()) for text in specs):
        if not spec:
            continue
        name, colon, count = spec.rpartition(":")
        # cuda:0 is a name; cuda:0:1 is one of it.
        if not colon or name in ("cuda", "xpu", "nvidia", "amd"):
            found.append((spec, 1))
            continue
        if not (count.isascii() and count.isdigit()) or int(count) < 1:
            raise UsageError(f"{spec!r}: a count is a whole number above 0, not {count!r}")
        found.append((name, int(count)))
    return found


def links(devices: Sequence[Device], latency_s: float | None = None) -> tuple[Link, ...]:
    """All one-way links between devices of a fleet, as far as their rates are known.

    Parameters
    ----------
    devices : sequence of Device
    latency_s : float, optional
        Of a message between two processes of this machine; measured where left out and needed.
    """
    if latency_s is None and sum(device.is_host and device.live for device in devices) > 1:
        latency_s = link.pipe_s()
    found = []
    for first, second in itertools.permutations(devices, 2):
        connection = _link(first, second, latency_s)
        if connection is not None:
            found.append(connection)
    return tuple(found)


def _link(first: Device, second: Device, pipe_s: float | None) -> Link | None:
    if first.is_host and second.is_host:
        if not (first.live and second.live):
            return Link(
                first.id, second.id, NETWORK_BYTES_PER_S, NETWORK_LATENCY_S, "assumed: 10 Gbit/s Ethernet"
            )
        copies = [d.copy_bandwidth_bytes_per_s for d in (first, second) if d.copy_bandwidth_bytes_per_s]
        if not copies:
            return None
        # A copy's rate counts bytes read and bytes written; moved are half of them.
        rate = min(quantity.value for quantity in copies) / 2
        return Link(first.id, second.id, rate, PIPE_S if pipe_s is None else pipe_s, "measured")
    direct = first.peers.get(second.id)
    if direct is not None and direct.value > 0:
        # NVLink and XGMI have no figures of their own here: headers are taken to cost as much as on PCIe.
        return Link(first.id, second.id, direct.value * PCIE_EFFICIENCY, PCIE_LATENCY_S, direct.source)
    rates = [d.link_bytes_per_s for d in (first, second) if not d.is_host]
    known = [quantity.value * PCIE_EFFICIENCY for quantity in rates if quantity is not None]
    if len(known) < len(rates):
        return None
    # Between two accelerators data goes through the host's memory, one link after the other.
    rate = 1 / sum(1 / one for one in known)
    return Link(first.id, second.id, rate, PCIE_LATENCY_S * len(known), "model")


def _maybe_live(name: str) -> bool:
    return re.fullmatch(r"(cpu|host)(/\d+)?|(cuda|xpu|nvidia|amd):\d+(/\d+)?|mps", name) is not None


def _resolve(name: str, local: tuple[Device, ...]) -> Device:
    for device in local:
        if name in (device.id, *device.aliases):
            return device
    try:
        return catalogue.find(name)
    except UnknownNameError:
        raise UnknownNameError(
            "device", name, [*catalogue.devices(), *(device.id for device in local)]
        ) from None
