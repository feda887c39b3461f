"""Accelerators that are here: by torch where it drives them, by their driver where it does not.

Each finder answers with nothing where its library or its device is missing.
"""

from __future__ import annotations

import contextlib
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gimlet_lab.errors import UnknownNameError
from gimlet_lab.hardware import catalogue, topology
from gimlet_lab.hardware.meters.naming import torch_names
from gimlet_lab.hardware.topology import Found
from gimlet_lab.model.device import Device, Quantity


def accelerators(today: str) -> tuple[Device, ...]:
    """All accelerators of this machine: those torch can use, then those only a driver knows."""
    by_torch = tuple(_torch(today))
    found = topology.cards()
    names = torch_names([one.card for one in found])
    here = {device.id for device in by_torch}
    # Without torch's own CUDA, the names that it would give are nobody's.
    names = {card: name for card, name in names.items() if name in here}
    by_name = {names[one.card.id]: one for one in found if one.card.id in names}
    devices = [_known(device, by_name.get(device.id), names, today) for device in by_torch]
    if all(device.id in by_name for device in by_torch if device.id.startswith("cuda")):
        # Where a device of torch could not be told, a card left over may be that one.
        devices += [
            _known(describe(one.card.name, one.card.id, one.memory_bytes, today, "driver"), one, names, today)
            for one in found
            if one.whole and one.card.id not in names
        ]
    return tuple(devices)


def _known(device: Device, found: Found | None, names: Mapping[str, str], today: str) -> Device:
    """The device with what its driver says of it."""
    if found is None:
        return device

    def quantity(path: topology.Path) -> Quantity:
        return Quantity(path.bytes_per_s, f"{path.over}, by the driver", today, "vendor")

    return replace(
        device,
        vendor=found.vendor,
        details=found.details,
        link_bytes_per_s=quantity(found.host) if found.host else device.link_bytes_per_s,
        peers={names.get(card, card): quantity(path) for card, path in found.peers.items()},
    )


def describe(name: str, device_id: str, memory_bytes: int | None, today: str, source: str) -> Device:
    """Describe a live accelerator by its driver's name: with the catalogue's figures, or with none.

    The price is left out: what is here is not rented by the hour until its owner says so.
    """
    memory = Quantity(float(memory_bytes), source, today, "measured") if memory_bytes else None
    known = lookup(name)
    if known is None:
        vendor = name.split()[0] if name.split() else "unknown"
        return Device(device_id, name, vendor, "gpu", memory_bytes=memory, live=True, resources=(device_id,))
    return replace(
        known,
        id=device_id,
        name=name,
        memory_bytes=memory or known.memory_bytes,
        usd_per_hour=None,
        live=True,
        resources=(device_id,),
    )


def lookup(name: str) -> Device | None:
    """The catalogue's device of a driver's name; None where it has none: never a near one."""
    with contextlib.suppress(UnknownNameError):
        return catalogue.find(name)
    return None


def driver() -> str | None:
    """The accelerators' driver, of which a measurement depends; None where nothing says."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no library, no driver, no permission: nobody says
        with contextlib.suppress(OSError):
            return Path("/sys/module/amdgpu/version").read_text(encoding="ascii").strip()
        return None
    try:
        version = pynvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)
    finally:
        pynvml.nvmlShutdown()


def _torch(today: str) -> Iterator[Device]:
    try:
        import torch
    except ImportError:
        return
    for kind in ("cuda", "xpu"):
        module: Any = getattr(torch, kind, None)
        if module is None or not module.is_available():
            continue
        for index in range(module.device_count()):
            facts = module.get_device_properties(index)
            where = f"{kind}:{index}"
            device = describe(facts.name, where, int(facts.total_memory), today, f"torch.{kind}")
            yield replace(device, torch_device=where)
    if torch.backends.mps.is_available():
        memory = int(torch.mps.recommended_max_memory())
        device = describe(_apple_chip(), "mps", memory, today, "torch.mps recommended_max_memory")
        yield replace(device, torch_device="mps")


def _apple_chip() -> str:
    try:
        answer = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"],
            capture_output=True,
            text=True,
            check=False,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return platform.processor() or "Apple GPU"
    return answer.stdout.strip() or "Apple GPU"
