"""What works take on a device, by the best tier that has something to say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, overload

import numpy as np

from gimlet_lab.costs import kernel_tables, measured, predict, roofline
from gimlet_lab.costs.columns import NEEDED, groups
from gimlet_lab.costs.estimates import Estimates
from gimlet_lab.errors import UnknownNameError
from gimlet_lab.hardware import catalogue
from gimlet_lab.model.device import Device
from gimlet_lab.model.estimate import SOURCES, Estimate
from gimlet_lab.model.phase import BOUNDS
from gimlet_lab.model.work import Work

#: Tiers for single works; the measured one is the model as this machine's own runs correct it.
TIERS = ("measured", "kernel table", "model")

#: Lists this long are not looked through work by work first.
MANY = 2000


@overload
def estimate(
    work: Work | Mapping[str, Any], device: Device | str, tier: str | None = None
) -> Estimate | None: ...


@overload
def estimate(
    work: Iterable[Work | Mapping[str, Any]], device: Device | str, tier: str | None = None
) -> Estimates: ...


def estimate(
    work: Work | Mapping[str, Any] | Iterable[Work | Mapping[str, Any]],
    device: Device | str,
    tier: str | None = None,
) -> Estimate | Estimates | None:
    """Estimate what works take on a device, all ``count`` calls of each.

    Parameters
    ----------
    work : Work, dict or an iterable of them
        Dicts are of the flat JSON form.
    device : Device or str
        A device or a name of the catalogue.
    tier : str, optional
        ``measured`` (what this machine's own runs made of the model), ``kernel table`` (measured kernels of
        the device, where ``gimlet-lab[tables]`` is installed and they have the shape) or ``model``. Left
        out: the first of them that knows.

    Returns
    -------
    Estimate, None, or Estimates
        A list gives :class:`~gimlet_lab.costs.estimates.Estimates`: a sequence with arrays (``.seconds``,
        ``.low``, ``.high``). None (NaN in arrays) where neither FLOPs nor bytes are known, or the device has
        no rate for what is known. ``note`` says what makes an estimate less sure.

    Raises
    ------
    UnknownNameError
        For an op, a device or a tier that does not exist; says which are near.
    UsageError
        For a work without a dimension it needs, or kernel tables that are not there.

    Examples
    --------
    >>> work = {"op": "gemm", "m": 1, "n": 4096, "k": 4096, "dtype": "bfloat16"}
    >>> step = estimate(work, "h100-sxm", "model")
    >>> step.bound, step.source, 10 < step.seconds * 1e6 < 20
    ('bandwidth', 'model', True)
    >>> many = estimate([{"op": "gemm", "m": m, "n": 4096, "k": 4096} for m in (1, 4096)], "h100-sxm")
    >>> bool(many.seconds[0] < many.seconds[1])
    True
    """
    if tier not in (None, *TIERS):
        raise UnknownNameError("tier", str(tier), SOURCES)
    where = catalogue.find(device) if isinstance(device, str) else device
    if isinstance(work, Work | Mapping):
        return price([roofline.as_work(work)], where, tier)[0]
    works = list(work)
    return price(works if len(works) > MANY else [roofline.as_work(one) for one in works], where, tier)


def price(works: list[Any], device: Device, tier: str | None = None) -> Estimates:
    """Price works on a device; the arithmetic of :func:`estimate`, for all works at once."""
    size = len(works)
    seconds, low, high = (np.full(size, np.nan) for _ in range(3))
    bound = np.full(size, "overhead", dtype="U9")
    source = np.full(size, "model", dtype="U12")
    note = np.full(size, "", dtype=object)
    if tier == "kernel table":
        kernel_tables.require(device)
    plain = [place for place, work in enumerate(works) if _op(work) not in NEEDED]
    known = [place for place in range(size) if _op(works[place]) in NEEDED] if plain else list(range(size))
    for group in groups(works[place] for place in known):
        places = np.array(known, dtype=np.int64)[group.index]
        found = kernel_tables.look_up(group, device) if tier in (None, "kernel table") else None
        if found is not None:
            source[places] = "kernel table"
        elif tier == "kernel table":
            continue
        else:
            found = predict.predict(group, device)
        if found is None:
            plain += places.tolist()
            continue
        seconds[places] = found.seconds * group.count
        low[places], high[places] = found.low * group.count, found.high * group.count
        bound[places], note[places] = found.bound, found.note
    if plain and tier != "kernel table":
        chosen = [roofline.as_work(works[place]) for place in plain]
        took, index, widened = roofline.terms(chosen, device)
        seconds[plain], low[plain], high[plain] = took, took * roofline.LOW, took * roofline.HIGH * widened
        bound[plain] = np.array(BOUNDS)[index]
    if tier in (None, "measured"):
        known_here = measured.corrections(device)
        if known_here.entries:
            asked = [roofline.as_work(one) for one in works]
            value, least, most, learned = known_here.factors(asked, [str(one) for one in bound], seconds)
            low, high = np.where(learned, seconds * least, low), np.where(learned, seconds * most, high)
            seconds = np.where(learned, seconds * value, seconds)
            source[learned] = "measured"
        if tier == "measured":
            seconds = np.where(source == "measured", seconds, np.nan)
    watts = device.max_w.value if device.max_w else None
    usd_per_s = device.usd_per_hour.value / 3600 if device.usd_per_hour else None
    return Estimates(seconds, low, high, bound, source, note, watts, usd_per_s)


def _op(work: Work | Mapping[str, Any]) -> str:
    return (
        work.op
        if isinstance(work, Work)
        else str(roofline.as_work(work).op if "op" not in work else work["op"])
    )
