"""Money: dated offers from ``profiles/prices/*.toml``, and what an hour of a device costs by each basis.

A price is data: who offers it, when, and how it is paid. No function here knows one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from gimlet_lab.errors import UnknownNameError
from gimlet_lab.hardware import profiles
from gimlet_lab.hardware.profiles import fail
from gimlet_lab.model.device import Device, Fleet, Quantity

#: Offers by the hour, and which basis of a plan's prices takes them. ``owning`` is somebody's own study of
#: all that an hour costs an owner.
HOURLY = {"on-demand": "rent", "spot": "spot", "reserved": "reserved", "owning": "amortised"}

#: What a device is planned with: what it rents for, or what it costs who owns it.
BASES = ("rent", "spot", "reserved", "amortised", "operating")

#: How interest is added: by the month, or at every moment.
COMPOUNDING = ("monthly", "continuous")

_HOURS_A_YEAR = 8760.0


@dataclass(frozen=True, slots=True)
class Terms:
    """How a bought device is paid for and run.

    Attributes
    ----------
    years, rate_per_year : Quantity
        Of the loan; the device is worth nothing after it.
    usd_per_kwh, pue : Quantity
        Of electricity, and what the building takes on top as a factor.
    utilisation : Quantity
        Share of the hours that are used: these carry the capital of all.
    compounding : str
        ``monthly`` or ``continuous``.
    """

    years: Quantity
    rate_per_year: Quantity
    usd_per_kwh: Quantity
    pue: Quantity
    utilisation: Quantity
    compounding: str = "monthly"

    def growth(self) -> float:
        """What one dollar owed grows to by the end."""
        rate, years = self.rate_per_year.value, self.years.value
        if self.compounding == "continuous":
            return math.exp(rate * years)
        return float((1 + rate / 12) ** (12 * years))

    def energy_usd_per_hour(self, watts: float) -> float:
        """Electricity of one hour at a power."""
        return self.usd_per_kwh.value * watts / 1000 * self.pue.value

    def interest_usd_per_hour(self, capex_usd: float) -> float:
        """Interest of one used hour, the loan being paid back at its end: the principal is not in it."""
        return capex_usd * (self.growth() - 1) / self._hours()

    def annuity_usd_per_hour(self, capex_usd: float) -> float:
        """Interest and principal of one used hour, the loan being paid back in equal parts."""
        rate, years = self.rate_per_year.value, self.years.value
        if self.compounding == "continuous":
            yearly = capex_usd * rate / (1 - math.exp(-rate * years))
        else:
            yearly = 12 * capex_usd * (rate / 12) / (1 - (1 + rate / 12) ** (-12 * years))
        return yearly * years / self._hours()

    def _hours(self) -> float:
        return self.years.value * _HOURS_A_YEAR * self.utilisation.value


@dataclass(frozen=True, slots=True)
class Offer:
    """One dated price of one device: by the hour, or to buy, with the terms."""

    device: str
    provider: str
    kind: str
    usd_per_hour: Quantity | None = None
    capex_usd: Quantity | None = None
    terms: Terms | None = None


@dataclass(frozen=True, slots=True)
class TokenOffer:
    """One dated price of a model behind an API."""

    model: str
    provider: str
    usd_per_input_token: Quantity
    usd_per_output_token: Quantity


def offers(places: tuple[Path, ...] | None = None) -> tuple[Offer, ...]:
    """All dated prices of devices, by place, file and order in it.

    Raises
    ------
    ProfileError
        If a file says something it must not.
    """
    found = _read(places)
    return tuple(offer for offer in found if isinstance(offer, Offer))


def token_price(model: str, known: Iterable[TokenOffer] | None = None) -> TokenOffer:
    """What a model behind an API costs, by its latest offer.

    Raises
    ------
    UnknownNameError
        Where nobody's price of it is known; says which names are near.

    Examples
    --------
    >>> round(token_price("gpt-4o").usd_per_output_token.value * 1e6, 2)
    10.0
    """
    everything = [o for o in _read(None) if isinstance(o, TokenOffer)] if known is None else list(known)
    mine = [offer for offer in everything if offer.model == model]
    if not mine:
        raise UnknownNameError("model with a price per token", model, (o.model for o in everything))
    return max(mine, key=lambda offer: offer.usd_per_output_token.date)


def price(device: Device, basis: str, known: Iterable[Offer] | None = None) -> Quantity | None:
    """What an hour of a device costs by a basis: the latest offer's, the cheapest where dates tie.

    Parameters
    ----------
    device : Device
    basis : str
        ``rent``, ``spot`` and ``reserved`` are offers by the hour. ``amortised`` is what an owner pays:
        interest, principal and electricity at the power cap. ``operating`` leaves the principal out.
    known : iterable of Offer, optional
        All offers where left out.

    Returns
    -------
    Quantity or None
        None where there is no such offer.

    Raises
    ------
    UnknownNameError
        For a basis that does not exist.
    """
    if basis not in BASES:
        raise UnknownNameError("price basis", basis, BASES)
    mine = [offer for offer in (offers() if known is None else known) if offer.device == device.id]
    found = [quantity for offer in mine if (quantity := _hourly(offer, device, basis)) is not None]
    if not found:
        return None
    latest = max(quantity.date for quantity in found)
    return min((q for q in found if q.date == latest), key=lambda q: q.value)


def priced(fleet: Fleet, basis: str) -> Fleet:
    """The fleet with its devices' prices by a basis; what is here costs nothing by the hour.

    Raises
    ------
    UnknownNameError
        For a basis that does not exist.
    """
    known = offers()
    devices = tuple(
        device if device.live else replace(device, usd_per_hour=price(device, basis, known))
        for device in fleet.devices
    )
    return replace(fleet, devices=devices)


def implied_capex_usd(usd_per_hour: float, watts: float, terms: Terms) -> float:
    """The purchase price by which :attr:`operating cost <price>` would be what somebody prints."""
    return (usd_per_hour - terms.energy_usd_per_hour(watts)) / terms.interest_usd_per_hour(1.0)


def _hourly(offer: Offer, device: Device, basis: str) -> Quantity | None:
    if offer.usd_per_hour is not None:
        return offer.usd_per_hour if HOURLY[offer.kind] == basis else None
    if basis not in ("amortised", "operating") or offer.capex_usd is None or offer.terms is None:
        return None
    if device.max_w is None:  # no electricity bill without a power
        return None
    terms, capex = offer.terms, offer.capex_usd
    capital = terms.annuity_usd_per_hour if basis == "amortised" else terms.interest_usd_per_hour
    return Quantity(
        capital(capex.value) + terms.energy_usd_per_hour(device.max_w.value),
        f"{basis}: {capex.value:,.0f} USD ({capex.source}) over {terms.years.value:g} years at "
        f"{terms.rate_per_year.value:.3g} a year, {terms.usd_per_kwh.value:g} USD/kWh at "
        f"{device.max_w.value:g} W, PUE {terms.pue.value:g}, {terms.utilisation.value:.0%} used",
        capex.date,
        "derived",
    )


def _read(places: tuple[Path, ...] | None) -> list[Offer | TokenOffer]:
    everywhere = (profiles.shipped(), *profiles.own()) if places is None else places
    return [
        offer for place in everywhere for path in profiles.files(place, "prices") for offer in _file(path)
    ]


def _file(path: Path) -> list[Offer | TokenOffer]:
    data = profiles.read(path)
    kinds: Mapping[str, Callable[[dict[str, Any], Path], list[Offer | TokenOffer]]] = {
        **dict.fromkeys(HOURLY, _hours),
        "capex": _purchases,
        "api": _tokens,
    }
    kind = str(data.get("kind"))
    if kind not in kinds:
        fail(path, "kind", f"{kind!r} is none of {', '.join(kinds)}")
    return kinds[kind](data, path)


def _hours(data: dict[str, Any], path: Path) -> list[Offer | TokenOffer]:
    return [
        Offer(
            str(entry["device"]),
            _provider(data, path),
            data["kind"],
            _number(entry, "usd_per_hour", path, at),
        )
        for at, entry in _entries(data, path, "device", "usd_per_hour")
    ]


def _purchases(data: dict[str, Any], path: Path) -> list[Offer | TokenOffer]:
    compounding = data.get("compounding", COMPOUNDING[0])
    if compounding not in COMPOUNDING:
        fail(path, "compounding", f"{compounding!r} is none of {', '.join(COMPOUNDING)}")
    given = data.get("terms", {})
    names = [field.name for field in fields(Terms) if field.name != "compounding"]
    if not isinstance(given, dict) or sorted(given) != sorted(names):
        fail(path, "terms", f"needs exactly {', '.join(names)}")
    numbers = {name: profiles.quantity(given[name], path, f"terms.{name}") for name in names}
    for name, high in (("rate_per_year", 1.0), ("utilisation", 1.0), ("pue", 3.0), ("years", 20.0)):
        if numbers[name].value > high:
            fail(
                path, f"terms.{name}", f"{numbers[name].value:g} is above {high:g}: a percentage, or months?"
            )
    terms = Terms(**numbers, compounding=compounding)
    return [
        Offer(
            str(entry["device"]),
            _provider(data, path),
            "capex",
            capex_usd=_number(entry, "capex_usd", path, at),
            terms=terms,
        )
        for at, entry in _entries(data, path, "device", "capex_usd")
    ]


def _tokens(data: dict[str, Any], path: Path) -> list[Offer | TokenOffer]:
    keys = ("usd_per_input_token", "usd_per_output_token")
    found: list[Offer | TokenOffer] = []
    for at, entry in _entries(data, path, "model", *keys):
        numbers = [_number(entry, key, path, at) for key in keys]
        for key, number in zip(keys, numbers, strict=True):
            if number.value > 0.01:
                fail(path, f"{at}.{key}", f"{number.value:g} USD for one token: a price of a million?")
        found.append(TokenOffer(str(entry["model"]), _provider(data, path), *numbers))
    return found


def _entries(data: dict[str, Any], path: Path, *keys: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for index, entry in enumerate(data.get("offers", ())):
        at = f"offers[{index}]"
        if set(entry) != set(keys):
            fail(path, at, f"needs {' and '.join(keys)}, has {', '.join(entry)}")
        found.append((at, entry))
    return found


def _number(entry: Mapping[str, Any], key: str, path: Path, at: str) -> Quantity:
    return profiles.quantity(entry[key], path, f"{at}.{key}")


def _provider(data: Mapping[str, Any], path: Path) -> str:
    return str(data.get("provider", path.stem))
