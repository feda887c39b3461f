"""The model tier on accelerators: kernels by :mod:`gimlet_lab.costs.kernels`, corrected by what was fitted.

The coefficients come from ``benchmarks/fit_costs.py``; what they reach on devices left out of the fit is in
``docs/costs.md``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gimlet_lab.costs import kernels
from gimlet_lab.costs.columns import Group, element_bytes
from gimlet_lab.costs.network import forward
from gimlet_lab.costs.roofline import datasheet
from gimlet_lab.costs.silicon import silicon
from gimlet_lab.model.device import Device
from gimlet_lab.model.phase import BOUNDS

Array = NDArray[np.float64]

#: Dtypes that matrix kernels were fitted on; others run at their own rate by the same curves, and are less
#: sure.
FITTED_DTYPES = ("bfloat16", "float16", "float32", "tf32")

#: What widens an interval, as factors of its lower and upper bound.
BEYOND = (0.75, 1.4)  # a shape outside those that were measured
OTHER_DTYPE = (0.85, 2.0)  # quantising the activations first is not counted
OTHER_VENDOR = (0.7, 1.5)  # every card of the fit is NVIDIA's
INSTEAD = (1.0, 1.5)  # computed in another dtype: conversions are not counted

_BOUNDS = np.array(BOUNDS)


@dataclass(frozen=True)
class Prices:
    """What some works take, each call once: arrays of one length."""

    seconds: Array
    low: Array
    high: Array
    bound: NDArray[np.str_]
    note: list[str]


def predict(group: Group, device: Device) -> Prices | None:
    """Seconds of each call of a group of works; None where only the roofline can say anything.

    That is: processors, chips the catalogue knows too little of, operators of no family, dtypes nobody runs.
    """
    if group.op in ("all_reduce", "all_gather", "send"):
        return _collective(group, device)
    family = family_of(group)
    table = coefficients()["families"].get(family)
    if family is None or table is None:
        return None
    rate = datasheet(device, group.dtype)
    if family == "gemm" and rate is not None and rate[1] == "float32" and rate[2]:
        return _in_float32(group, device)
    tf32 = group.dtype == "float32" and group.op in ("gemm", "bmm") and bool(group.dims["tf32"].any())
    found = silicon(device, "tf32" if tf32 else group.dtype if family != "vector" else "float32")
    size = element_bytes(group.dtype)
    if found is None or np.isnan(size):
        return None
    chip, instead = found
    columns = _columns(group, size)
    base, features = kernels.FAMILIES[family](columns, size, chip)
    lowest, highest = np.array(table["lowest"]), np.array(table["highest"])
    slack = 0.05 * (highest - lowest) + 1e-6
    beyond = ((features < lowest - slack) | (features > highest + slack)).any(axis=1)
    inside = np.clip(features, lowest, highest)
    logs = np.mean([forward(inside, *net) for net in _networks(family)], axis=0)
    own = table["factors"].get(device.id)
    seconds = base * np.exp(logs + (own or 0.0))
    if own is not None:
        low, high = (np.full(len(base), bound) for bound in table["interval_known"])
    else:
        bounds = np.array(table["interval"])[kernels.size(family, base, chip)]
        low, high = bounds[:, 0], bounds[:, 1]
    notes = _notes(group, device, family, instead)
    for applies, (down, up) in (
        (instead, INSTEAD),
        (group.dtype not in FITTED_DTYPES and family != "vector", OTHER_DTYPE),
        (device.vendor != "NVIDIA", OTHER_VENDOR),
    ):
        if applies:
            low, high = low * down, high * up
    low, high = np.where(beyond, low * BEYOND[0], low), np.where(beyond, high * BEYOND[1], high)
    out = f"{notes}; " if notes else ""
    return Prices(
        seconds,
        seconds * low,
        seconds * high,
        _BOUNDS[_bound(features, family)],
        [f"{out}outside the shapes that were fitted" if one else notes for one in beyond],
    )


def _in_float32(group: Group, device: Device) -> Prices | None:
    """Products of a dtype that the device computes in float32."""
    found = predict(replace(group, dtype="float32", kv_dtype=None), device)
    if found is None:
        return None
    said = f"{device.id} has no {group.dtype}: computed in float32"
    notes = [f"{said}; {one}" if one else said for one in found.note]
    return replace(found, low=found.low * INSTEAD[0], high=found.high * INSTEAD[1], note=notes)


def family_of(group: Group) -> str | None:
    """The family of kernels that an op belongs to."""
    if group.op in ("gemm", "bmm"):
        plain = group.dtype in ("float32", "float64") and not group.dims["tf32"].any()
        return "gemm32" if plain else "gemm"
    if group.op in ("elementwise", "copy", "softmax", "layer_norm", "rms_norm", "embedding"):
        return "vector"
    return group.op if group.op in kernels.FAMILIES else None


@cache
def coefficients() -> Mapping[str, Any]:
    """What ``benchmarks/fit_costs.py`` wrote."""
    text = (resources.files("gimlet_lab.costs") / "coefficients.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@cache
def _networks(family: str) -> tuple[tuple[Array, Array, list[tuple[Array, Array]]], ...]:
    return tuple(
        (
            np.array(net["mean"]),
            np.array(net["scale"]),
            [(np.array(layer["weight"]), np.array(layer["bias"])) for layer in net["layers"]],
        )
        for net in coefficients()["families"][family]["networks"]
    )


def _columns(group: Group, size: float) -> dict[str, Array]:
    """The columns that the group's family reads."""
    x = dict(group.dims)
    if group.op in ("gemm", "bmm"):
        return {name: np.maximum(x[name], 1) for name in ("b", "m", "n", "k")}
    if group.op.startswith("attention"):
        return _attention(group, size)
    if group.op == "conv2d":
        return _conv(x, size)
    if group.op == "moe":
        return {name: np.maximum(value, 1) for name, value in x.items()}
    return _vector(group.op, x, size)


def _attention(group: Group, size: float) -> dict[str, Array]:
    x = group.dims
    q, kv = np.maximum(x["q_len"], 1), np.maximum(x["kv_len"], 1)
    limit = np.where(x["window"] > 0, x["window"], kv)

    def below(position: Array) -> Array:
        ramp = np.minimum(position, limit)
        return np.asarray(ramp * (ramp + 1) / 2 + (position - ramp) * limit)

    causal = x["causal"] > 0
    kv_bytes = element_bytes(group.kv_dtype) if group.kv_dtype else size
    return {
        "batch": x["batch"],
        "q_len": q,
        "kv_len": kv,
        "heads": x["heads"],
        "head_dim": x["head_dim"],
        "kv_heads": np.where(x["kv_heads"] > 0, x["kv_heads"], x["heads"]),
        "pairs": np.maximum(
            np.where(causal, below(kv) - below(np.maximum(kv - q, 0)), q * np.minimum(kv, limit)), 1
        ),
        "touched": np.minimum(kv, limit + q - 1),
        "kv_bytes": np.full(len(q), kv_bytes),
    }


def _conv(x: Mapping[str, Array], size: float) -> dict[str, Array]:
    height, width = (
        (x[side] + 2 * x["padding"] - x["kernel"]) // np.maximum(x["stride"], 1) + 1
        for side in ("height", "width")
    )
    groups = np.maximum(x["groups"], 1)
    places = np.maximum(x["batch"] * height * width, 1)
    taps = x["in_channels"] / groups * x["kernel"] ** 2
    moved = (
        x["batch"] * x["in_channels"] * x["height"] * x["width"]
        + x["out_channels"] * taps
        + places * x["out_channels"]
    )
    return {
        "b": groups,
        "m": places,
        "n": np.maximum(x["out_channels"] / groups, 1),
        "k": np.maximum(taps, 1),
        "moved": moved * size,
        "kernel": x["kernel"],
        "stride": np.maximum(x["stride"], 1),
        "side": np.sqrt(np.maximum(x["height"] * x["width"], 1)),
    }


def _vector(op: str, x: Mapping[str, Array], size: float) -> dict[str, Array]:
    if op == "elementwise":
        rows, cols, moved = (
            x["elements"],
            np.ones_like(x["elements"]),
            x["elements"] * (x["inputs"] + x["outputs"]) * size,
        )
        flops = x["elements"] * x["outputs"]
    elif op == "copy":
        rows = np.where(x["elements"] >= 0, x["elements"], x["bytes"] / size)
        cols, moved, flops = np.ones_like(rows), 2 * rows * size, 0 * rows
    else:
        rows, cols = x["rows"], x["cols"]
        moved = 2 * rows * cols * size
        flops = {"softmax": 5, "layer_norm": 7, "rms_norm": 4, "embedding": 0}[op] * rows * cols
    counted = (x["bytes_read"] >= 0) & (x["bytes_written"] >= 0)
    moved = np.where(counted, x["bytes_read"] + x["bytes_written"], moved)
    kind = np.full(len(rows), {"softmax": 1.0, "layer_norm": 2.0, "rms_norm": 2.0}.get(op, 0.0))
    return {
        "rows": np.maximum(rows, 1),
        "cols": np.maximum(cols, 1),
        "moved": moved,
        "flops": flops,
        "kind": kind,
    }


def _bound(features: Array, family: str) -> NDArray[np.int64]:
    """Which of arithmetic, memory and the start takes longest, from the features every family begins with."""
    start = kernels.start_cycles(family)
    compute, memory = (2 ** features[:, column] - start / 10 for column in (0, 1))
    return np.asarray(np.argmax(np.stack([compute, memory, np.full(len(compute), start)]), axis=0))


def _notes(group: Group, device: Device, family: str, instead: bool) -> str:
    said = []
    if instead and family != "vector":
        rate = datasheet(device, group.dtype)
        said.append(f"{device.id} has no {group.dtype}: computed in {rate[1] if rate else '?'}")
    elif group.dtype not in FITTED_DTYPES and family != "vector":
        said.append(f"no kernel in {group.dtype} was fitted; quantising its inputs is not counted")
    if device.vendor != "NVIDIA":
        said.append(f"no kernel of {device.vendor}'s was fitted")
    return "; ".join(said)


def _collective(group: Group, device: Device) -> Prices | None:
    found = kernels.link(device)
    fitted = coefficients().get("collectives", {})
    if found is None or not fitted:
        return None
    size, devices = group.dims["bytes"], np.maximum(group.dims["devices"], 1)
    rate, kind = found
    terms = fitted[f"{'all_reduce' if group.op == 'all_reduce' else 'all_gather'} {kind}"]
    share = {"all_reduce": 2 * (devices - 1) / devices, "all_gather": (devices - 1) / devices}.get(
        group.op, np.ones_like(devices)
    )
    start = terms["latency_s"] + terms["per_doubling_s"] * np.log2(devices)
    transfer = share * size / rate / terms["share"]
    seconds = np.where(devices > 1, start + transfer, 0.0)
    bound = np.where(transfer > start, "transfer", "overhead")
    return Prices(seconds, seconds * terms["low"], seconds * terms["high"], bound, [""] * len(seconds))
