"""NVIDIA's devices by NVML (``nvidia-ml-py``), with GPM where the device has it, and MIG instances.

Every call may be missing in an old driver, unsupported by a device or forbidden in a container: each answers
None then, and one that will never answer is not made again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gimlet_lab.hardware.meters.meter import Card, CardProbe, Probe, Readings, Seldom, UnreadableError

#: PCIe throughput takes NVML 20 ms a direction, processes need the driver's lock.
SELDOM_S = 1.0

#: What holds clocks down although there is work: not idling, and not clocks that somebody set.
THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "temperature",
    0x40: "hardware temperature",
    0x80: "power brake",
}

#: NVML's errors after which a call is never made again: unsupported, forbidden, not in this driver.
_NEVER = (3, 4, 13, 25, 26)
_LOST = 15
_UNINITIALIZED = 1

#: GPM's metrics: number, name, and what one unit is.
_GPM = (
    (2, "sm_utilization", 0.01),
    (3, "sm_occupancy", 0.01),
    (5, "tensor_utilization", 0.01),
    (10, "dram_utilization", 0.01),
    (11, "fp64_utilization", 0.01),
    (12, "fp32_utilization", 0.01),
    (13, "fp16_utilization", 0.01),
    (20, "pcie_tx_bytes_per_s", 2.0**20),
    (21, "pcie_rx_bytes_per_s", 2.0**20),
    (60, "nvlink_rx_bytes_per_s", 2.0**20),
    (61, "nvlink_tx_bytes_per_s", 2.0**20),
)
#: GPM wants at least this long between two samples.
_GPM_S = 0.09

#: Fields of NVML: data sent and received by all NVLinks, in KiB.
_NVLINK_TX, _NVLINK_RX, _ALL_LINKS = 138, 139, 0xFFFFFFFF


class Nvml:
    """NVML's calls, each with None where it has no answer."""

    def __init__(self) -> None:
        import pynvml

        self.lib: Any = pynvml
        pynvml.nvmlInit()
        self._never: set[tuple[object, ...]] = set()

    def ask(self, card: Card | None, name: str, *args: object) -> Any:
        """Call for a card, or for none.

        Raises
        ------
        UnreadableError
            If the device is lost, or somebody has shut the library down.
        """
        key = (name, card.id if card else None, *(arg for arg in args if isinstance(arg, int)))
        if key in self._never:
            return None
        try:
            return getattr(self.lib, name)(*((card.handle,) if card else ()), *args)
        except self.lib.NVMLError as error:
            code = getattr(error, "value", None)
            if code == _LOST:
                raise UnreadableError("its driver has lost it (it may have fallen off the bus)") from None
            if code == _UNINITIALIZED:
                raise UnreadableError("NVML was shut down by somebody in this process") from None
            if code in _NEVER:
                self._never.add(key)
        except Exception:  # noqa: BLE001 - a binding older or newer than the call
            self._never.add(key)
        return None

    def get(self, card: Card | None, name: str, *args: object) -> Any:
        """Call for a card, or for none; None also where it is lost."""
        try:
            return self.ask(card, name, *args)
        except UnreadableError:
            return None

    def cards(self) -> Iterator[Card]:
        """All devices, each followed by its MIG instances. One that cannot be opened is left out."""
        for index in range(self.get(None, "nvmlDeviceGetCount") or 0):
            handle = self.get(None, "nvmlDeviceGetHandleByIndex", index)
            if handle is None:
                continue
            card = self._card(f"nvidia:{index}", handle, None)
            yield card
            yield from self._instances(card)

    @staticmethod
    def address(pci: Any) -> str:
        """Where a device is, as Linux writes it."""
        return f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"

    def _instances(self, card: Card) -> Iterator[Card]:
        mode = self.get(card, "nvmlDeviceGetMigMode")
        if not mode or mode[0] != 1:
            return
        for index in range(self.get(card, "nvmlDeviceGetMaxMigDeviceCount") or 0):
            handle = self.get(card, "nvmlDeviceGetMigDeviceHandleByIndex", index)
            if handle is not None:
                yield self._card(f"{card.id}/{index}", handle, card)

    def _card(self, name: str, handle: Any, parent: Card | None) -> Card:
        bare = Card(name, handle, "NVIDIA device", parent=parent)
        pci = None if parent else self.get(bare, "nvmlDeviceGetPciInfo")
        return replace(
            bare,
            name=_text(self.get(bare, "nvmlDeviceGetName")) or bare.name,
            uuid=_text(self.get(bare, "nvmlDeviceGetUUID")),
            pci=parent.pci if parent else self.address(pci) if pci else None,
        )


class NvidiaMeter:
    """All devices that NVML knows."""

    name = "nvidia"

    def open(self) -> tuple[Sequence[Probe], Sequence[str]]:
        """Every device, and every MIG instance."""
        try:
            nvml = Nvml()
        except ImportError:
            return (), ()
        except Exception as error:  # noqa: BLE001 - no library, no driver, no permission: each means no device
            forbidden = getattr(error, "value", None) in (4, 18)
            return (), ([f"nvidia: {error}"] if forbidden else [])
        return [NvidiaProbe(nvml, card) for card in nvml.cards()], ()


class NvidiaProbe(CardProbe):
    """Reads one device."""

    def __init__(self, nvml: Nvml, card: Card) -> None:
        super().__init__(card)
        self._nvml = nvml
        self._peak_bytes_per_s: float | None = None
        self._gpm = Gpm(nvml, card)
        self._pcie = Seldom(self._pcie_throughput, SELDOM_S)
        self._processes = Seldom(self._running, SELDOM_S)

    def read(self, now_s: float) -> Mapping[str, Readings]:
        """Read it.

        Raises
        ------
        UnreadableError
            If it is lost.
        """
        return {self._card.id: self._instance(now_s) if self._card.parent else self._whole(now_s)}

    def _whole(self, now_s: float) -> dict[str, Any]:
        ask = self._ask
        use = ask("nvmlDeviceGetUtilizationRates")
        gpm = self._gpm.read(now_s)
        found: dict[str, Any] = {
            "utilization": use and use.gpu / 100,
            # The share of the time in which memory was read or written at all: not its bandwidth.
            "memory_busy": use and use.memory / 100,
            **self._memory(),
            "power_w": _scaled(ask("nvmlDeviceGetPowerUsage"), 1e-3),
            "energy_j": _scaled(ask("nvmlDeviceGetTotalEnergyConsumption"), 1e-3),
            "sm_clock_hz": _scaled(ask("nvmlDeviceGetClockInfo", 1), 1e6),
            "memory_clock_hz": _scaled(ask("nvmlDeviceGetClockInfo", 2), 1e6),
            "temperature_c": ask("nvmlDeviceGetTemperature", 0),
            "throttle_reasons": self._throttled(),
            **self._nvlink(now_s),
            **self._processes(now_s),
            **gpm,
        }
        if found.get("pcie_rx_bytes_per_s") is None and not self._gpm.works:
            found |= self._pcie(now_s)
        share = gpm.get("dram_utilization")
        if share is not None:
            found["dram_bytes_per_s"] = _scaled(self._peak(), share)
        return found

    def _instance(self, now_s: float) -> dict[str, Any]:
        """Of a MIG instance; power, clocks and temperature are its whole device's."""
        return {**self._memory(), **self._processes(now_s), **self._gpm.read(now_s)}

    def _ask(self, name: str, *args: object) -> Any:
        return self._nvml.ask(self._card, name, *args)

    def _memory(self) -> dict[str, Any]:
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        if memory is None:
            return {}
        return {"memory_used_bytes": memory.used, "memory_total_bytes": memory.total}

    def _throttled(self) -> str | None:
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")  # before driver 535
        if bits is None:
            return None
        return ", ".join(reason for bit, reason in THROTTLE_REASONS.items() if bits & bit)

    def _pcie_throughput(self, _now_s: float) -> dict[str, Any]:
        return {
            "pcie_tx_bytes_per_s": _scaled(self._ask("nvmlDeviceGetPcieThroughput", 0), 1e3),
            "pcie_rx_bytes_per_s": _scaled(self._ask("nvmlDeviceGetPcieThroughput", 1), 1e3),
        }

    def _nvlink(self, now_s: float) -> dict[str, Any]:
        if self._gpm.works:
            return {}
        fields = [(_NVLINK_TX, _ALL_LINKS), (_NVLINK_RX, _ALL_LINKS)]
        values = self._ask("nvmlDeviceGetFieldValues", fields)
        names = ("nvlink_tx_bytes_per_s", "nvlink_rx_bytes_per_s")
        return {
            name: self._rates.of(name, value.value.ullVal * 1024.0 if value.nvmlReturn == 0 else None, now_s)
            for name, value in zip(names, values or (), strict=False)
        }

    def _running(self, _now_s: float) -> dict[str, Any]:
        found = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return {} if found is None else {"processes": float(len(found))}

    def _peak(self) -> float | None:
        """Bytes per second of its memory by bus width and highest clock, twice a cycle."""
        if self._peak_bytes_per_s is None:
            width, clock = self._ask("nvmlDeviceGetMemoryBusWidth"), self._ask("nvmlDeviceGetMaxClockInfo", 2)
            self._peak_bytes_per_s = 2 * width / 8 * clock * 1e6 if width and clock else None
        return self._peak_bytes_per_s


class Gpm:
    """What the device counted between two samples: memory bandwidth, tensor and floating-point activity."""

    def __init__(self, nvml: Nvml, card: Card) -> None:
        self._nvml = nvml
        self._card = card
        self._samples: list[Any] = []
        self._at_s = 0.0
        self._answer: dict[str, Any] = {}
        whole = card.parent or card
        support = nvml.get(whole, "nvmlGpmQueryDeviceSupport")
        self.works = bool(support and support.isSupportedDevice)
        self._instance = nvml.get(card, "nvmlDeviceGetGpuInstanceId") if card.parent else None

    def read(self, now_s: float) -> dict[str, Any]:
        """The metrics since the last reading; none the first time."""
        if not self.works or (self._samples and now_s - self._at_s < _GPM_S):
            return self._answer
        sample = self._sample()
        if sample is None:
            # A card that is cut has none for the whole of it: its first answer says so.
            self.works = bool(self._samples)
            return {}
        self._at_s = now_s
        self._samples.append(sample)
        if len(self._samples) == 1:
            return {}
        before = self._samples.pop(0)
        self._answer = self._compare(before, sample)
        self._nvml.ask(None, "nvmlGpmSampleFree", before)
        return self._answer

    def _sample(self) -> Any:
        sample = self._nvml.ask(None, "nvmlGpmSampleAlloc")
        if sample is None:
            return None
        if self._card.parent is None:
            taken = self._nvml.ask(self._card, "nvmlGpmSampleGet", sample)
        else:
            taken = self._nvml.ask(self._card.parent, "nvmlGpmMigSampleGet", self._instance, sample)
        if taken is None:
            self._nvml.ask(None, "nvmlGpmSampleFree", sample)
        return taken

    def _compare(self, before: Any, after: Any) -> dict[str, Any]:
        lib = self._nvml.lib
        wanted = lib.c_nvmlGpmMetricsGet_t()
        wanted.version = lib.NVML_GPM_METRICS_GET_VERSION
        wanted.numMetrics = len(_GPM)
        wanted.sample1, wanted.sample2 = before, after
        for place, (number, _, _) in enumerate(_GPM):
            wanted.metrics[place].metricId = number
        if self._nvml.ask(None, "nvmlGpmMetricsGet", wanted) is None:
            return {}
        answers = wanted.metrics
        return {
            name: answers[place].value * unit if answers[place].nvmlReturn == 0 else None
            for place, (_, name, unit) in enumerate(_GPM)
        }


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace") or None
    return str(value) if value else None
