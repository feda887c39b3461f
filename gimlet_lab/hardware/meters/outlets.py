"""Live readings for those who watch with other tools: Prometheus' text in a file, OpenTelemetry's metrics.

Nothing listens on a port: Prometheus' node exporter collects files (``--collector.textfile.directory``), and
OpenTelemetry's metrics go where the user's own provider sends them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gimlet_lab.errors import GimletError
from gimlet_lab.hardware.meters.meter import Readings
from gimlet_lab.hardware.meters.sampler import Sampler, Subscription, shared
from gimlet_lab.model.store import write_atomic

#: Ends of our names, as both tools' conventions spell them, and the unit that OpenTelemetry writes.
_UNITS = (
    ("_bytes_per_s", "_bytes_per_second", "By/s"),
    ("_bytes", "_bytes", "By"),
    ("_w", "_watts", "W"),
    ("_j", "_joules_total", "J"),
    ("_hz", "_hertz", "Hz"),
    ("_c", "_celsius", "Cel"),
    ("utilization", "utilization_ratio", "1"),
    ("occupancy", "occupancy_ratio", "1"),
    ("_busy", "_busy_ratio", "1"),
)


class Outlet:
    """Readings that go somewhere until it is closed."""

    def __init__(self, subscription: Subscription, at_close: Callable[[], None]) -> None:
        self._subscription = subscription
        self._at_close = at_close

    def close(self) -> None:
        """Stop; a second time it does nothing."""
        self._subscription.close()
        self._at_close()

    def __enter__(self) -> Outlet:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def read_meters(sampler: Sampler | None = None) -> dict[str, Readings]:
    """What every device is doing now, by torch's names where they are certain.

    Returns
    -------
    mapping of device to mapping of name to number or text
        Names end with their unit; None, or no entry, is unknown.

    Examples
    --------
    >>> import gimlet_lab as gimlet
    >>> now = gimlet.read_meters()
    >>> now["cpu"]["memory_used_bytes"] > 0
    True
    """
    source = sampler or shared()
    return _named(source, {device: row.readings for device, row in source.look().items()})


def prometheus_text(now: Mapping[str, Readings]) -> str:
    """Readings in Prometheus' text format; what is not known is left out.

    Examples
    --------
    >>> row = {"power_w": 352.0, "sm_clock_hz": None, "throttle_reasons": "heat"}
    >>> print(prometheus_text({"cuda:0": row}))
    # TYPE gimlet_power_watts gauge
    gimlet_power_watts{device="cuda:0"} 352.0
    # TYPE gimlet_throttled gauge
    gimlet_throttled{device="cuda:0",reasons="heat"} 1
    <BLANKLINE>
    """
    lines: dict[str, list[str]] = {}
    for device, row in now.items():
        for name, value in row.items():
            if isinstance(value, str):
                labels = f'device="{_escaped(device)}",reasons="{_escaped(value)}"'
                lines.setdefault("gimlet_throttled", []).append(f"{{{labels}}} {int(bool(value))}")
            elif value is not None:
                label = f'device="{_escaped(device)}"'
                lines.setdefault(f"gimlet_{_spelled(name)[0]}", []).append(f"{{{label}}} {value!r}")
    parts = []
    for name, samples in sorted(lines.items()):
        parts.append(f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}")
        parts += [name + sample for sample in samples]
    return "\n".join([*parts, ""])


def meters_to_file(path: str | Path, every_s: float = 15.0, sampler: Sampler | None = None) -> Outlet:
    """Keep a file of Prometheus' text up to date, written whole each time; it is removed at the end.

    Parameters
    ----------
    path : str or Path
        Where the node exporter looks for files, and ending in ``.prom`` for it.
    every_s : float
    sampler : Sampler, optional

    Returns
    -------
    Outlet
        Close it to end; also a context manager.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import gimlet_lab as gimlet
    >>> path = tempfile.mkdtemp() + "/gimlet.prom"
    >>> with gimlet.meters_to_file(path):
    ...     "gimlet_memory_used_bytes" in Path(path).read_text()
    True

    Raises
    ------
    GimletError
        If it cannot be written.
    """
    source, target = sampler or shared(), Path(path)
    subscription = source.subscribe(min(every_s, 1.0))
    ended = threading.Event()

    def write() -> None:
        rows = {device: row.readings for device, row in source.latest().items()}
        write_atomic(target, prometheus_text(_named(source, rows)).encode())

    def keep() -> None:
        sys.setprofile(None)
        while not ended.wait(every_s):
            try:
                write()
            except GimletError as error:
                source.note(str(error))

    def close() -> None:
        ended.set()
        thread.join(timeout=1.0)
        # A file of a program that has ended would say for ever what was last.
        target.unlink(missing_ok=True)

    try:
        write()  # a place that cannot be written is said here, where somebody reads it
    except BaseException:
        subscription.close()
        raise
    thread = threading.Thread(target=keep, name="gimlet-meters-file", daemon=True)
    thread.start()
    return Outlet(subscription, close)


def meters_to_opentelemetry(
    provider: Any = None, every_s: float = 1.0, sampler: Sampler | None = None
) -> Outlet:
    """Let OpenTelemetry observe the meters, by the user's provider.

    Parameters
    ----------
    provider : opentelemetry.metrics.MeterProvider, optional
        The global one where left out.

    Raises
    ------
    GimletError
        Without OpenTelemetry.
    """
    try:
        from opentelemetry import metrics
    except ImportError:
        raise GimletError("no OpenTelemetry here: pip install opentelemetry-sdk") from None
    source = sampler or shared()
    subscription = source.subscribe(every_s)
    going = [True]
    meter = metrics.get_meter("gimlet_lab") if provider is None else provider.get_meter("gimlet_lab")

    def observing(name: str) -> Callable[[Any], Iterable[Any]]:
        def observe(_options: Any) -> Iterable[Any]:
            rows = {device: row.readings for device, row in source.latest().items()} if going else {}
            for device, row in _named(source, rows).items():
                value = row.get(name)
                if isinstance(value, str):
                    yield metrics.Observation(int(bool(value)), {"device": device, "reasons": value})
                elif value is not None:
                    yield metrics.Observation(value, {"device": device})

        return observe

    source.look()  # rates are known after a second reading
    for name in sorted({name for row in source.latest().values() for name in row.readings}):
        spelled, unit = ("throttled", "1") if name == "throttle_reasons" else _spelled(name)
        make = (
            meter.create_observable_counter if spelled.endswith("_total") else meter.create_observable_gauge
        )
        make(f"gimlet.{spelled.removesuffix('_total')}", [observing(name)], unit)
    return Outlet(subscription, going.clear)


def _spelled(name: str) -> tuple[str, str]:
    """A name as other tools write it, and its unit."""
    for ours, theirs, unit in _UNITS:
        if name.endswith(ours):
            return name.removesuffix(ours) + theirs, unit
    return name, "1"


def _named(sampler: Sampler, rows: Mapping[str, Readings]) -> dict[str, Readings]:
    names = sampler.names()
    return {names.get(device, device): row for device, row in rows.items()}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
