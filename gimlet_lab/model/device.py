"""Devices, links between them, and fleets to choose from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with where it is from.

    Attributes
    ----------
    value : float
        In the unit that the name of its field ends with.
    source : str
        Who says so: a document, a page, or ``measured here``.
    date : str
        ISO date of the source.
    tier : str
        ``measured``, ``vendor``, ``third-party`` or ``derived``.
    """

    value: float
    source: str
    date: str
    tier: str


@dataclass(frozen=True, slots=True)
class MemoryTier:
    """A cache or the memory of a live device, as measured.

    Attributes
    ----------
    name : str
        ``L2``, ``L3``, ``memory``.
    working_set_bytes : int
        What was read again and again.
    read_bytes_per_s, copy_bytes_per_s : float
        One after the other; a copy counts bytes read and bytes written.
    random_bytes_per_s : float
        Lines of 64 bytes in no order.
    """

    name: str
    working_set_bytes: int
    read_bytes_per_s: float
    copy_bytes_per_s: float
    random_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Device:
    """A catalogue entry, or a live device with its measured efficiency.

    Attributes
    ----------
    id : str
        ``h100-sxm``, ``cpu``, ``cpu/0``, ``cuda:0``, …
    name, vendor, kind : str
        Kind is ``cpu`` or ``gpu`` (any accelerator). A ``cpu`` is a host: it runs Python.
    peak_flops : mapping of dtype to Quantity
        Dense peak FLOP/s of the matrix units by dtype, by the datasheet (of a live CPU that no datasheet is
        known of, by its vector instructions). Sums are kept in float32 (int32 for integers), as torch does.
    half_sum_flops : mapping of dtype to Quantity
        The same with sums kept in float16, where that is faster.
    sparse_flops : mapping of dtype to Quantity
        With 2:4 structured sparsity: never what a dense model reaches, kept to recognise it by.
    vector_flops : Quantity or None
        float32 FLOP/s of the vector units: what elementwise operators run on.
    achieved_flops : mapping of dtype to Quantity
        FLOP/s reached by large GEMMs, measured here or published.
    gemv_bytes_per_s : mapping of dtype to Quantity
        Measured rate at which a GEMM of one row reads weights out of cache: what decoding meets.
    memory_bytes : Quantity or None
        Usable capacity.
    spec_memory_bytes : Quantity or None
        Capacity by the datasheet, where the usable one is less.
    bandwidth_bytes_per_s : Quantity or None
        Memory bandwidth by the datasheet, read direction.
    achieved_bandwidth_bytes_per_s : Quantity or None
        Measured read bandwidth out of cache.
    copy_bandwidth_bytes_per_s : Quantity or None
        Measured copy bandwidth out of cache (bytes read plus bytes written).
    link_bytes_per_s : Quantity or None
        To the host, one direction.
    pair_bytes_per_s : Quantity or None
        To one device of its scale-up domain, one direction.
    all_to_all_bytes_per_s : Quantity or None
        To all devices of its scale-up domain together, one direction.
    scale_up_devices : Quantity or None
        Devices in that domain.
    network_bytes_per_s : Quantity or None
        Between domains, one direction and for each device, in the maker's usual node.
    compute_units : Quantity or None
        SMs, CUs, cores: what a kernel's blocks are dealt to.
    clock_hz : Quantity or None
        Highest clock by the datasheet (of a CPU: the one its peaks are given at).
    l2_bytes, l3_bytes : Quantity or None
        Caches that all compute units share, the last before memory in ``l3_bytes`` where there are two.
    launch_s : Quantity or None
        Seconds that one operator costs before it does anything.
    idle_w, max_w : Quantity or None
        Power idle and at the cap.
    usd_per_hour : Quantity or None
        The price it is planned with.
    beside_flops, beside_bandwidth : Quantity or None
        Share of its own rates that a slice keeps while the others do the same (live slices only).
    tiers : tuple of MemoryTier
        Measured caches and memory (live CPUs after a long calibration only).
    architecture : str
        ``Hopper``, ``CDNA 3``, …; empty where it is not known.
    memory_kind : str
        ``HBM3``, ``GDDR6``, ``DDR5-4800``, …
    aliases : tuple of str
        Vendor names as drivers report them.
    live : bool
        Present on this machine or a connected one.
    resources : tuple of str
        What it occupies: devices that name a common entry never run at the same time.
    node : str
        Of a connected cluster: the node it is part of; empty on this machine.
    torch_device : str or None
        Where torch finds it (live devices only).
    cores : tuple of int
        The cores a CPU or a slice is pinned to (live CPUs only).
    details : mapping of str to str
        What tells a live accelerator from others, and its versions: ``uuid``, ``pci``, ``driver``, ….
    peers : mapping of device id to Quantity
        Bytes per second to other live accelerators, one direction, without a host in between.
    """

    id: str
    name: str
    vendor: str
    kind: str
    peak_flops: Mapping[str, Quantity] = field(default_factory=dict)
    half_sum_flops: Mapping[str, Quantity] = field(default_factory=dict)
    sparse_flops: Mapping[str, Quantity] = field(default_factory=dict)
    vector_flops: Quantity | None = None
    achieved_flops: Mapping[str, Quantity] = field(default_factory=dict)
    gemv_bytes_per_s: Mapping[str, Quantity] = field(default_factory=dict)
    memory_bytes: Quantity | None = None
    spec_memory_bytes: Quantity | None = None
    bandwidth_bytes_per_s: Quantity | None = None
    achieved_bandwidth_bytes_per_s: Quantity | None = None
    copy_bandwidth_bytes_per_s: Quantity | None = None
    link_bytes_per_s: Quantity | None = None
    pair_bytes_per_s: Quantity | None = None
    all_to_all_bytes_per_s: Quantity | None = None
    scale_up_devices: Quantity | None = None
    network_bytes_per_s: Quantity | None = None
    compute_units: Quantity | None = None
    clock_hz: Quantity | None = None
    l2_bytes: Quantity | None = None
    l3_bytes: Quantity | None = None
    launch_s: Quantity | None = None
    idle_w: Quantity | None = None
    max_w: Quantity | None = None
    usd_per_hour: Quantity | None = None
    beside_flops: Quantity | None = None
    beside_bandwidth: Quantity | None = None
    tiers: tuple[MemoryTier, ...] = ()
    architecture: str = ""
    memory_kind: str = ""
    aliases: tuple[str, ...] = ()
    live: bool = False
    resources: tuple[str, ...] = ()
    node: str = ""
    torch_device: str | None = None
    cores: tuple[int, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    peers: Mapping[str, Quantity] = field(default_factory=dict)

    @property
    def is_host(self) -> bool:
        """Whether Python functions can run here."""
        return self.kind == "cpu"

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Device:
        """The inverse of :meth:`to_json`."""
        values = dict(data)
        for name in (*_BY_DTYPE, "peers"):
            values[name] = {k: Quantity(**v) for k, v in (values.get(name) or {}).items()}
        for name in QUANTITIES:
            if values.get(name) is not None:
                values[name] = Quantity(**values[name])
        for name in ("aliases", "resources", "cores"):
            values[name] = tuple(values.get(name, ()))
        values["tiers"] = tuple(MemoryTier(**tier) for tier in values.get("tiers", ()))
        return cls(**values)


_BY_DTYPE = ("peak_flops", "half_sum_flops", "sparse_flops", "achieved_flops", "gemv_bytes_per_s")

#: Fields of a device that are one quantity each.
QUANTITIES = (
    "vector_flops",
    "memory_bytes",
    "spec_memory_bytes",
    "bandwidth_bytes_per_s",
    "achieved_bandwidth_bytes_per_s",
    "copy_bandwidth_bytes_per_s",
    "link_bytes_per_s",
    "pair_bytes_per_s",
    "all_to_all_bytes_per_s",
    "scale_up_devices",
    "network_bytes_per_s",
    "compute_units",
    "clock_hz",
    "l2_bytes",
    "l3_bytes",
    "launch_s",
    "idle_w",
    "max_w",
    "usd_per_hour",
    "beside_flops",
    "beside_bandwidth",
)


@dataclass(frozen=True, slots=True)
class Link:
    """A one-way connection between two devices of a fleet."""

    src: str
    dst: str
    bytes_per_s: float
    latency_s: float
    source: str = "model"


@dataclass(frozen=True, slots=True)
class Fleet:
    """Devices, how many of each, and the links between them.

    Attributes
    ----------
    devices : tuple of Device
    counts : mapping of device id to int or None
        ``None`` is any number.
    links : tuple of Link
        One way each.
    """

    devices: tuple[Device, ...]
    counts: Mapping[str, int | None] = field(default_factory=dict)
    links: tuple[Link, ...] = ()

    def __iter__(self) -> Iterator[Device]:
        return iter(self.devices)

    def __getitem__(self, device_id: str) -> Device:
        for device in self.devices:
            if device.id == device_id:
                return device
        raise KeyError(f"no device {device_id!r} in this fleet: {', '.join(d.id for d in self.devices)}")

    def with_links(self, links: tuple[Link, ...]) -> Fleet:
        """The same fleet with other links."""
        return replace(self, links=links)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "devices": [d.to_json() for d in self.devices],
            "counts": dict(self.counts),
            "links": [asdict(link) for link in self.links],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fleet:
        """The inverse of :meth:`to_json`."""
        return cls(
            tuple(Device.from_json(d) for d in data["devices"]),
            dict(data["counts"]),
            tuple(Link(**link) for link in data["links"]),
        )
