"""Profiles: the TOML files that devices and prices are read from, each number with source, date and tier.

They ship with the package. A person's own lie in their configuration folder and in ``profiles/`` of the
folder they work in; each later place extends and overrides the ones before it.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from gimlet_lab.errors import GimletError
from gimlet_lab.model.device import Quantity

#: How a number is known, the best first.
TIERS = ("measured", "vendor", "third-party", "derived")

_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")


class ProfileError(GimletError, ValueError):
    """A profile that says something it must not: the file, the key and the reason."""


def shipped() -> Path:
    """Where the profiles of the package are: inside it in a wheel, beside it in a source tree."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "profiles", package.parent / "profiles"):
        if (place / "devices").is_dir():
            return place
    raise GimletError(f"no device profiles beside {package}: reinstall gimlet_lab")


def own() -> tuple[Path, ...]:
    """Where a person's own profiles are, if they have any: their configuration's, then the project's."""
    import platformdirs

    places = (platformdirs.user_config_path("gimlet_lab") / "profiles", Path.cwd() / "profiles")
    known = shipped()
    return tuple(place for place in places if place.resolve() != known and (_has(place, "devices", "prices")))


def files(place: Path, kind: str) -> list[Path]:
    """The profiles of a kind (``devices`` or ``prices``) in one place, by name."""
    return sorted((place / kind).glob("*.toml"))


def stamp(places: tuple[Path, ...]) -> tuple[tuple[str, int], ...]:
    """What changes when a profile in these places does."""
    found = [path for place in places for kind in ("devices", "prices") for path in files(place, kind)]
    return tuple((str(path), path.stat().st_mtime_ns) for path in found)


def read(path: Path) -> dict[str, Any]:
    """The file as a dict.

    Raises
    ------
    ProfileError
        If it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path.name}: not TOML: {error}{_where(path)}") from None


def quantity(entry: object, path: Path, key: str) -> Quantity:
    """One number of a profile.

    Raises
    ------
    ProfileError
        If it lacks its source, date or tier, or is not a positive number.
    """
    names = [field.name for field in fields(Quantity)]
    if not isinstance(entry, dict) or sorted(entry) != sorted(names):
        fail(path, key, f"needs exactly {', '.join(names)}")
    value, source, date, tier = (entry[name] for name in names)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        fail(path, key, f"value must be a positive number, not {value!r}")
    if not source or not isinstance(source, str):
        fail(path, key, "source is empty")
    if not isinstance(date, str) or not _DATE.fullmatch(date):
        fail(path, key, f"date must be YYYY, YYYY-MM or YYYY-MM-DD, not {date!r}")
    if tier not in TIERS:
        fail(path, key, f"tier {tier!r} is none of {', '.join(TIERS)}")
    return Quantity(float(value), source, date, tier)


def fail(path: Path, key: str, reason: str) -> NoReturn:
    """Raise the one line that says which file, which key and why."""
    raise ProfileError(f"{path.name}: {key}: {reason}{_where(path)}")


def _where(path: Path) -> str:
    """Which of the places, where it is not the package's own."""
    return "" if path.is_relative_to(shipped()) else f" (in {path.parent})"


def _has(place: Path, *kinds: str) -> bool:
    return any((place / kind).is_dir() for kind in kinds)
