"""What the drivers know of their cards that torch does not: identity, versions, links between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gimlet_lab.hardware.meters.amd import AmdSmi
from gimlet_lab.hardware.meters.meter import Card
from gimlet_lab.hardware.meters.nvidia import Nvml

#: A driver that has not answered by then has no cards for us.
DEADLINE_S = 5.0

#: Bytes per second of one PCIe lane and direction, by generation, after line coding.
LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}

#: NVML's levels of PCIe topology up to which cards reach each other without a processor in between.
_NEAR = {0: "on one board", 10: "through one switch", 20: "through switches", 30: "through one host bridge"}

#: NVML: speed of a common NVLink in MB/s; and what is at the other end of one.
_NVLINK_SPEED, _SWITCH, _GPU = 90, 2, 0


@dataclass(frozen=True, slots=True)
class Path:
    """How fast data gets somewhere, one direction, and over what."""

    bytes_per_s: float
    over: str


@dataclass(frozen=True, slots=True)
class Found:
    """A card as its driver describes it.

    Attributes
    ----------
    card : Card
    vendor : str
    memory_bytes : int or None
    details : mapping
        ``uuid``, ``pci``, ``driver``, …: what tells it from others, and versions.
    host : Path or None
        To the processor's memory.
    peers : mapping of card id to Path
        To other cards, without a processor in between.
    whole : bool
        Not cut into instances, so that programs can use it as it is.
    """

    card: Card
    vendor: str
    memory_bytes: int | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    host: Path | None = None
    peers: Mapping[str, Path] = field(default_factory=dict)
    whole: bool = True


def cards(deadline_s: float = DEADLINE_S) -> tuple[Found, ...]:
    """All cards of all drivers. A driver that is missing, fails or hangs has none."""
    return tuple(found for look in (nvidia_cards, amd_cards) for found in _in_time(look, deadline_s))


def nvidia_cards() -> Sequence[Found]:
    """NVIDIA's cards, and MIG instances beside the card that they are cut from."""
    nvml = Nvml()
    known = list(nvml.cards())
    versions = {
        "driver": nvml.ask(None, "nvmlSystemGetDriverVersion"),
        "library": f"NVML {nvml.ask(None, 'nvmlSystemGetNVMLVersion')}",
        "cuda": _cuda(nvml.ask(None, "nvmlSystemGetCudaDriverVersion_v2")),
    }
    links = {card.id: _nvlinks(nvml, card) for card in known if card.parent is None}
    found = []
    for card in known:
        memory = nvml.get(card, "nvmlDeviceGetMemoryInfo")
        one = Found(
            card,
            "NVIDIA",
            int(memory.total) if memory else None,
            _details(card, versions),
            host=_pcie(nvml, card.parent or card),
            whole=not any(other.parent is card for other in known),
        )
        if card.parent is None:
            others = [other for other in known if other.parent is None and other is not card]
            one = replace(one, peers=dict(_nvidia_peers(nvml, card, links, others)))
        found.append(one)
    return found


def amd_cards() -> Sequence[Found]:
    """AMD's cards, and the partitions that are devices of their own."""
    smi = AmdSmi()
    known = list(smi.cards())
    version = smi.ask(None, "amdsmi_get_lib_version") or {}
    library = ".".join(str(version[part]) for part in ("major", "minor", "release") if part in version)
    found = []
    for card in known:
        driver = smi.ask(card, "amdsmi_get_gpu_driver_info") or {}
        memory = smi.ask(card, "amdsmi_get_gpu_memory_total", smi.lib.AmdSmiMemoryType.VRAM)
        versions = {
            "driver": driver.get("driver_version"),
            "library": f"AMD SMI {library}" if library else None,
            "partition": smi.ask(card, "amdsmi_get_gpu_compute_partition"),
        }
        peers = dict(_amd_peers(smi, card, [other for other in known if other is not card]))
        found.append(Found(card, "AMD", memory or None, _details(card, versions), peers=peers))
    return found


def _nvlinks(nvml: Nvml, card: Card) -> tuple[tuple[int, str | None], ...]:
    """For each active NVLink what is at its other end: a kind, and a PCI address."""
    found = []
    for link in range(getattr(nvml.lib, "NVML_NVLINK_MAX_LINKS", 18)):
        active = nvml.get(card, "nvmlDeviceGetNvLinkState", link)
        if active is None:
            break
        if active:
            kind = nvml.get(card, "nvmlDeviceGetNvLinkRemoteDeviceType", link)
            remote = nvml.get(card, "nvmlDeviceGetNvLinkRemotePciInfo", link)
            where = nvml.address(remote) if remote else None
            found.append((_GPU if kind is None else kind, where))
    return tuple(found)


def _nvidia_peers(
    nvml: Nvml, card: Card, links: Mapping[str, Sequence[tuple[int, str | None]]], others: Sequence[Card]
) -> Iterator[tuple[str, Path]]:
    mine = links[card.id]
    speed = nvml.get(card, "nvmlDeviceGetFieldValues", [_NVLINK_SPEED]) if mine else None
    link_bytes_per_s = speed[0].value.uiVal * 1e6 if speed and speed[0].nvmlReturn == 0 else 0.0
    own = _pcie(nvml, card)
    for other in others:
        direct = sum(kind == _GPU and where == other.pci for kind, where in mine)
        # A switch gives all links to whichever card is talked to, as far as that one has as many.
        to_switch = [sum(kind == _SWITCH for kind, _ in ends) for ends in (mine, links[other.id])]
        count = direct or min(to_switch)
        if count and link_bytes_per_s:
            how = "NVSwitch" if not direct else "NVLink"
            yield other.id, Path(count * link_bytes_per_s, f"{how}, {count} links")
            continue
        level = nvml.get(card, "nvmlDeviceGetTopologyCommonAncestor", other.handle)
        readable = nvml.get(card, "nvmlDeviceGetP2PStatus", other.handle, 0) == 0
        theirs = _pcie(nvml, other)
        if readable and level in _NEAR and own and theirs:
            slower = min(own, theirs, key=lambda path: path.bytes_per_s)
            yield other.id, Path(slower.bytes_per_s, f"{slower.over}, {_NEAR[level]}")


def _amd_peers(smi: AmdSmi, card: Card, others: Sequence[Card]) -> Iterator[tuple[str, Path]]:
    xgmi = int(smi.lib.AmdSmiLinkType.AMDSMI_LINK_TYPE_XGMI)
    for other in others:
        link = smi.ask(card, "amdsmi_topo_get_link_type", other.handle)
        rate = smi.ask(card, "amdsmi_get_minmax_bandwidth_between_processors", other.handle)
        if link and link["type"] == xgmi and rate and rate["max_bandwidth"]:
            hops = link["hops"]
            yield other.id, Path(rate["max_bandwidth"] * 1e6, f"XGMI, {hops} hop{'s' if hops > 1 else ''}")


def _pcie(nvml: Nvml, card: Card) -> Path | None:
    generation = nvml.get(card, "nvmlDeviceGetMaxPcieLinkGeneration")
    lanes = nvml.get(card, "nvmlDeviceGetMaxPcieLinkWidth")
    if generation not in LANE_BYTES_PER_S or not lanes:
        return None
    return Path(lanes * LANE_BYTES_PER_S[generation], f"PCIe {generation}.0 ×{lanes}")


def _details(card: Card, versions: Mapping[str, str | None]) -> dict[str, str]:
    facts = {"uuid": card.uuid, "pci": card.pci, "card": card.id, **versions}
    return {name: value for name, value in facts.items() if value}


def _cuda(number: int | None) -> str | None:
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _in_time(look: Callable[[], Sequence[Found]], deadline_s: float) -> Sequence[Found]:
    answers: list[Sequence[Found]] = []

    def ask() -> None:
        try:
            answers.append(look())
        except Exception:  # noqa: BLE001 - no library, no driver, no permission: each means no card
            return

    thread = threading.Thread(target=ask, name="gimlet-cards", daemon=True)
    thread.start()
    thread.join(deadline_s)
    return answers[0] if answers else ()
