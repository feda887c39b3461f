"""Which card of a driver is which device of torch: their orders differ, and a process may see only some."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gimlet_lab.hardware.meters.meter import Card


@dataclass(frozen=True, slots=True)
class Seen:
    """A device of torch, ``cuda:0``, with what tells which card it is."""

    name: str
    uuid: str | None
    pci: str | None


def torch_names(cards: Sequence[Card], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Names by which torch knows the drivers' cards: of those that it sees, as far as that is certain.

    Where this process uses CUDA already, torch is asked; it is never made to begin with it. Else it is worked
    out as CUDA does, as far as that is certain.

    Examples
    --------
    >>> pair = [Card("nvidia:0", 0, "H100", "GPU-aa"), Card("nvidia:1", 1, "H100", "GPU-bb")]
    >>> torch_names(pair, {"CUDA_VISIBLE_DEVICES": "1"}), torch_names(pair, {"CUDA_VISIBLE_DEVICES": "GPU-b"})
    ({'nvidia:1': 'cuda:0'}, {'nvidia:1': 'cuda:0'})
    """
    seen = seen_by_torch()
    if seen:
        return match(cards, seen)
    hip = bool(getattr(getattr(sys.modules.get("torch"), "version", None), "hip", None))
    nvidia = [card for card in cards if card.id.startswith("nvidia:")]
    amd = [card for card in cards if card.id.startswith("amd:")]
    variables = os.environ if environ is None else environ
    if nvidia and not hip:
        return by_environment(
            nvidia, variables.get("CUDA_VISIBLE_DEVICES"), variables.get("CUDA_DEVICE_ORDER")
        )
    wish = next(
        (variables[name] for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES") if name in variables),
        None,
    )
    if "ROCR_VISIBLE_DEVICES" in variables:
        return {}  # a second choice below the first
    return by_environment(amd, wish, None)


def match(cards: Sequence[Card], seen: Sequence[Seen]) -> dict[str, str]:
    """Names by what torch itself says of its devices."""
    found: dict[str, str] = {}
    for device in seen:
        for card in cards:
            if device.uuid is not None and _bare(card.uuid) == _bare(device.uuid):
                found[card.id] = device.name
                break
        else:
            here = [card for card in cards if card.parent is None and card.pci and card.pci == device.pci]
            if len(here) == 1:
                found[here[0].id] = device.name
    return found


def by_environment(cards: Sequence[Card], visible: str | None, order: str | None) -> dict[str, str]:
    """Names as CUDA gives them by ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER``.

    CUDA puts the fastest card first unless told otherwise: then numbers are certain only among equal cards.
    """
    whole = [card for card in cards if card.parent is None]
    parts: dict[str, list[Card]] = {card.id: [] for card in whole}
    for card in cards:
        if card.parent is not None:
            parts[card.parent.id].append(card)
    numbered = order == "PCI_BUS_ID" or len({card.name for card in whole}) <= 1
    # A card that is cut into instances stands for its first one, and a process sees only one instance.
    ordered = [(parts[card.id] or [card])[0] for card in whole]
    chosen: list[Card] = []
    for wish in [str(index) for index in range(len(ordered))] if visible is None else visible.split(","):
        word = wish.strip()
        if word.isdecimal():
            if int(word) >= len(ordered):
                break  # CUDA sees nothing behind a number that it does not know
            if not numbered:
                return {}
            chosen.append(ordered[int(word)])
        else:
            near = [card for card in cards if card.uuid and word and card.uuid.startswith(word)]
            if len(near) != 1:
                break
            chosen.append(near[0])
    if any(card.parent is not None for card in chosen):
        chosen = [card for card in chosen if card.parent is not None][:1]
    return {card.id: f"cuda:{index}" for index, card in enumerate(chosen)}


def seen_by_torch() -> list[Seen]:
    """The devices of torch where it uses CUDA in this process already; else none."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    try:
        if cuda is None or not cuda.is_initialized():
            return []
        return [seen(index, cuda.get_device_properties(index)) for index in range(cuda.device_count())]
    except Exception:  # noqa: BLE001 - whatever torch's driver meets, its devices have no names here
        return []


def seen(index: int, facts: object) -> Seen:
    """What torch's properties of a device say of which it is."""
    uuid = getattr(facts, "uuid", None)
    bus = getattr(facts, "pci_bus_id", None)
    pci = None
    if bus is not None:
        domain, device = getattr(facts, "pci_domain_id", 0), getattr(facts, "pci_device_id", 0)
        pci = f"{domain:04x}:{bus:02x}:{device:02x}.0"
    return Seen(f"cuda:{index}", None if uuid is None else str(uuid), pci)


def _bare(uuid: str | None) -> str | None:
    return None if uuid is None else uuid.removeprefix("GPU-").removeprefix("MIG-").lower()
