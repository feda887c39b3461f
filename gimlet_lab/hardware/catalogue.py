"""The catalogue: devices from ``profiles/devices/*.toml``, the package's and a person's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from gimlet_lab.errors import UnknownNameError
from gimlet_lab.hardware import lint, prices, profiles
from gimlet_lab.hardware.profiles import fail
from gimlet_lab.model.device import QUANTITIES, Device

_NEEDED = ("id", "name", "vendor", "kind")
_TEXTS = (*_NEEDED, "architecture", "memory_kind", "note")
_BY_DTYPE = ("peak_flops", "half_sum_flops", "sparse_flops", "achieved_flops")
#: Prices are profiles of their own, and what slices lose beside each other is measured.
_NUMBERS = tuple(
    name for name in QUANTITIES if name not in ("usd_per_hour", "beside_flops", "beside_bandwidth")
)


def devices() -> dict[str, Device]:
    """All devices of the catalogue by id, with the rent they are planned with (see :mod:`.prices`).

    Raises
    ------
    ProfileError
        If a person's own profile says something it must not.

    Examples
    --------
    >>> devices()["h100-sxm"].peak_flops["bfloat16"].value
    989000000000000.0
    """
    places = profiles.own()
    return dict(_load(places, profiles.stamp(places)))


def find(name: str) -> Device:
    """The device of that id, name or alias (as a driver reports it); upper and lower case are the same.

    Raises
    ------
    UnknownNameError
        With the nearest ids.

    Examples
    --------
    >>> find("NVIDIA H100 80GB HBM3").id
    'h100-sxm'
    """
    places = profiles.own()
    stamp = profiles.stamp(places)
    device = _names(places, stamp).get(_plain(name))
    if device is None:
        raise UnknownNameError("device", name, _load(places, stamp))
    return device


def read_device(path: Path) -> Device:
    """Read one whole profile.

    Raises
    ------
    ProfileError
        If a key is unknown or missing, or a number lacks its source, date or tier.
    """
    return _device(_values(path), path)


@cache
def _load(places: tuple[Path, ...], _stamp: tuple[tuple[str, int], ...]) -> Mapping[str, Device]:
    """The package's devices, then those of a person's own places over them."""
    values = {path.stem: _values(path) for path in profiles.files(profiles.shipped(), "devices")}
    found = {name: _device(one, Path(f"{name}.toml")) for name, one in values.items()}
    for place in places:
        for path in profiles.files(place, "devices"):
            mine = _values(path)
            values[path.stem] = _merged(values.get(path.stem, {}), mine)
            found[path.stem] = device = _device(values[path.stem], path)
            # A ratio of two numbers is first the fault of the one that this file gives.
            wrong = sorted(lint.findings(device), key=lambda one: one.key.split(".")[0] not in mine)
            if wrong:
                fail(path, wrong[0].key, wrong[0].reason)
    offers = prices.offers()
    return {name: replace(one, usd_per_hour=prices.price(one, "rent", offers)) for name, one in found.items()}


@cache
def _names(places: tuple[Path, ...], stamp: tuple[tuple[str, int], ...]) -> Mapping[str, Device]:
    """Devices by id, name and alias; of two with one name the first counts."""
    found: dict[str, Device] = {}
    for device in _load(places, stamp).values():
        for name in (device.id, device.name, *device.aliases):
            found.setdefault(_plain(name), device)
    return found


def _values(path: Path) -> dict[str, Any]:
    """The checked fields of one file, which may be a part of a device that is known already."""
    data = profiles.read(path)
    for key in data:
        if key not in (*_TEXTS, "aliases", *_BY_DTYPE, *_NUMBERS):
            fail(path, key, "no such field of a device")
    for key in _TEXTS:
        if key in data and not isinstance(data[key], str):
            fail(path, key, "must be a text")
    if "id" in data and data["id"] != path.stem:
        fail(path, "id", f"{data['id']!r} is not the file's name")
    if data.get("kind", "cpu") not in ("cpu", "gpu"):
        fail(path, "kind", f"{data['kind']!r} is neither 'cpu' nor 'gpu'")
    values: dict[str, Any] = {key: data[key] for key in _TEXTS if key in data and key != "note"}
    if "aliases" in data:
        values["aliases"] = tuple(data["aliases"])
    for key in _BY_DTYPE:
        if key in data:
            table = data[key]
            values[key] = {d: profiles.quantity(table[d], path, f"{key}.{d}") for d in table}
    for key in _NUMBERS:
        if key in data:
            values[key] = profiles.quantity(data[key], path, key)
    return values


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One device's fields over another's; tables by dtype entry by entry."""
    tables = {key: {**below.get(key, {}), **above[key]} for key in _BY_DTYPE if key in above}
    return {**below, **above, **tables}


def _device(values: Mapping[str, Any], path: Path) -> Device:
    for key in _NEEDED:
        if key not in values:
            fail(path, key, "missing")
    return Device(**values)


def _plain(name: str) -> str:
    """Fold what differs between drivers and people: case, and spaces for hyphens and underscores."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
