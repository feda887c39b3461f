"""How kernels meet a chip.

For each family of operators the time physics allows, and what its efficiency goes by.

Every family gives, for arrays of shapes, a base (seconds: arithmetic and memory at the rates the chip
reaches, smoothly the larger of both, plus a start of some thousand cycles) and features without a unit: waves
over the compute units, how well tiles fit, the balance of arithmetic and memory, what the cache can hold. A
small network (:mod:`gimlet_lab.costs.network`) turns the features into the factor between base and truth.
Times go in as cycles, so that a chip the fit never saw is met by what it has in common with those it did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gimlet_lab.costs.silicon import Numbers, Silicon
from gimlet_lab.model.device import Device

Array = NDArray[np.float64]
Columns = Mapping[str, Array]

#: Cycles before a kernel of each family has done anything.
START_CYCLES = {
    "gemm": 4500.0,
    "gemm32": 4500.0,
    "attention": 8000.0,
    "vector": 4000.0,
    "moe": 15000.0,
    "conv2d": 8000.0,
}

#: Share of the cache below which operands are still there from the last call, and above which none are:
#: benchmarks repeat a kernel, those of serving over several copies of its operands.
RESIDENT = {"gemm": (0.1, 0.3), "attention": (0.1, 0.3), "moe": (0.1, 0.3)}
RESIDENT_ELSE = (0.4, 1.2)

#: Bytes that one unit gets from the cache in a cycle.
CACHE_BYTES_PER_CYCLE = 20.0

#: Edges of the tiles that matrix kernels are written for: waves are counted for each.
TILES = ((64, 64), (128, 128), (256, 128))


def gemm(x: Columns, element_bytes: Numbers, chip: Silicon, family: str = "gemm") -> tuple[Array, Array]:
    """(b×) m×n×k products: columns ``b``, ``m``, ``n``, ``k``."""
    b, m, n, k = x["b"], x["m"], x["n"], x["k"]
    moved = b * (m * k + n * k + m * n) * element_bytes
    base, features = _base(family, 2 * b * m * n * k, moved, chip.flops_per_s, chip)
    for rows, cols in TILES:
        features += _waves(b * np.ceil(m / rows) * np.ceil(n / cols), chip)
        features.append(m * n / (np.ceil(m / rows) * np.ceil(n / cols) * rows * cols))
    aligned = ((n % 8 == 0) & (k % 8 == 0)).astype(np.float64)
    features += [_log(m), _log(n), _log(k), np.minimum(_log(b), 10), aligned]
    return base, np.stack(np.broadcast_arrays(*features), axis=1)


def attention_prefill(x: Columns, element_bytes: Numbers, chip: Silicon) -> tuple[Array, Array]:
    """Queries of many positions.

    ``batch``, ``q_len``, ``kv_len``, ``heads``, ``kv_heads``, ``head_dim``, ``pairs`` (of a query and a key,
    a head), ``kv_bytes`` (of one element).
    """
    batch, q, kv, heads, groups, dim = _heads(x)
    flops = 4 * batch * heads * dim * x["pairs"]
    moved = batch * dim * (2 * q * heads * element_bytes + 2 * groups * x["touched"] * x["kv_bytes"])
    base, features = _base("attention", flops, moved, chip.flops_per_s, chip)
    features += _waves(batch * heads * np.ceil(q / 128), chip)
    features += _waves(batch * heads * np.ceil(q / 64), chip)
    features += [
        q / (np.ceil(q / 128) * 128),
        _log(q),
        _log(kv),
        _log(batch * heads),
        _log(heads / groups),
        _log(dim),
    ]
    features += [_log(x["pairs"] / (q * kv)), _log(x["kv_bytes"] / element_bytes)]
    # Softmax runs on the vector units: five operations a pair, and an exponential that takes as long as many.
    features.append(_log(batch * heads * x["pairs"] / chip.vector_flops_per_s / base))
    return base, np.stack(np.broadcast_arrays(*features), axis=1)


def attention_decode(x: Columns, element_bytes: Numbers, chip: Silicon) -> tuple[Array, Array]:
    """One query a sequence over a KV cache; columns as of :func:`attention_prefill`."""
    batch, q, kv, heads, groups, dim = _heads(x)
    flops = 4 * batch * heads * dim * x["pairs"]
    moved = batch * dim * (2 * q * heads * element_bytes + 2 * groups * x["touched"] * x["kv_bytes"])
    base, features = _base("attention", flops, moved, chip.flops_per_s, chip)
    features += _waves(batch * groups, chip)
    features += _waves(batch * groups * np.ceil(x["touched"] / 256), chip)
    features += [_log(x["touched"]), _log(batch), _log(groups), _log(heads / groups), _log(dim)]
    features += [_log(x["touched"] / kv), _log(x["kv_bytes"] / element_bytes)]
    return base, np.stack(np.broadcast_arrays(*features), axis=1)


def moe(x: Columns, element_bytes: Numbers, chip: Silicon) -> tuple[Array, Array]:
    """Gated experts: ``tokens``, ``hidden``, ``inter``, ``experts``, ``top_k``, ``tp``, ``ep``."""
    tokens, hidden, inter, experts, top_k = (
        x[name] for name in ("tokens", "hidden", "inter", "experts", "top_k")
    )
    here, width = experts / x["ep"], inter / x["tp"]
    reached = here * (1 - (1 - top_k / experts) ** tokens)
    rows = tokens * top_k / x["ep"]
    each = rows / np.maximum(reached, 1e-9)
    moved = (3 * reached * hidden * width + rows * (2 * hidden + 3 * width)) * element_bytes
    base, features = _base("moe", 6 * rows * hidden * width, moved, chip.flops_per_s, chip)
    for edge in (64, 128):
        features += _waves(reached * np.ceil(each / edge) * np.ceil(2 * width / 128), chip)
        features.append(each / (np.ceil(each / edge) * edge))
    features += [
        _log(tokens),
        _log(hidden),
        _log(width),
        _log(here),
        _log(top_k),
        _log(each),
        _log(reached / here),
    ]
    features.append(_log(x["ep"]))
    return base, np.stack(np.broadcast_arrays(*features), axis=1)


def vector(x: Columns, element_bytes: Numbers, chip: Silicon) -> tuple[Array, Array]:
    """Elementwise.

    Normalisation, softmax, copies and gathers: ``rows``, ``cols``, ``moved`` (bytes), ``flops``, and ``kind``
    (0 elementwise, 1 softmax, 2 norm).
    """
    rows, cols, kind = x["rows"], x["cols"], x["kind"]
    base, features = _base("vector", x["flops"], x["moved"], chip.vector_flops_per_s, chip)
    features += _waves(rows * cols / 512, chip)
    features += _waves(np.where(kind == 0, rows * cols / 512, rows), chip)
    features += [np.where(kind == 0, 0.0, _log(cols)), np.where(kind == 0, 0.0, _log(rows))]
    features += [(kind == one).astype(np.float64) for one in (1, 2)]
    features.append(x["moved"] / np.maximum(rows * cols * element_bytes, 1))
    return base, np.stack(np.broadcast_arrays(*features), axis=1)


def conv2d(x: Columns, _element_bytes: Numbers, chip: Silicon) -> tuple[Array, Array]:
    """Convolutions as the product they are.

    ``b`` groups of ``m`` places × ``n`` channels × ``k`` taps, with ``kernel``, ``stride``, ``side`` (of the
    input) and ``moved`` (bytes).
    """
    b, m, n, k = x["b"], x["m"], x["n"], x["k"]
    base, features = _base("conv2d", 2 * b * m * n * k, x["moved"], chip.flops_per_s, chip)
    for rows, cols in TILES[:2]:
        features += _waves(b * np.ceil(m / rows) * np.ceil(n / cols), chip)
        features.append(m * n / (np.ceil(m / rows) * np.ceil(n / cols) * rows * cols))
    # Winograd's trick halves the products of 3×3 kernels of stride 1, and libraries use it.
    winograd = ((x["kernel"] == 3) & (x["stride"] == 1)).astype(np.float64)
    features += [_log(m), _log(n), _log(k), _log(x["kernel"]), _log(x["stride"]), _log(x["side"]), winograd]
    features.append(np.minimum(_log(b), 10))
    return base, np.stack(np.broadcast_arrays(*features), axis=1)


FAMILIES: dict[str, Callable[[Columns, Numbers, Silicon], tuple[Array, Array]]] = {
    "gemm": gemm,
    "gemm32": partial(gemm, family="gemm32"),
    "attention_prefill": attention_prefill,
    "attention_decode": attention_decode,
    "moe": moe,
    "vector": vector,
    "conv2d": conv2d,
}


def _base(family: str, flops: Array, moved: Array, rate: Numbers, chip: Silicon) -> tuple[Array, list[Array]]:
    """The time physics allows, and the features every family shares."""
    cycle = 1 / np.asarray(chip.clock_hz)
    low, high = RESIDENT.get(family, RESIDENT_ELSE)
    resident = np.clip(_log(moved / chip.cache_bytes / high) / np.log2(low / high), 0, 1)
    cached = np.maximum(chip.bytes_per_s, chip.units * chip.clock_hz * CACHE_BYTES_PER_CYCLE)
    compute = flops / rate / cycle
    memory = moved * ((1 - resident) / chip.bytes_per_s + resident / cached) / cycle
    start = START_CYCLES[family]
    base = ((compute**3 + memory**3) ** (1 / 3) + start) * cycle
    features = [
        _log(compute + start / 10),
        _log(memory + start / 10),
        np.clip(_log((compute + 1) / (memory + 1)), -8, 8),
        np.clip(_log(moved / chip.cache_bytes), -6, 6),
    ]
    if family != "vector":  # libraries have the same ones of those for all
        features.append(np.asarray(chip.generation) + np.zeros_like(moved))
    return np.asarray(base, dtype=np.float64), [np.asarray(one, dtype=np.float64) for one in features]


def _waves(blocks: Array, chip: Silicon) -> list[Array]:
    """How often all units are filled, and how full they are on average."""
    waves = blocks / chip.units
    return [np.clip(_log(waves), -8, 8), waves / np.ceil(waves)]


def _heads(x: Columns) -> tuple[Array, Array, Array, Array, Array, Array]:
    return x["batch"], x["q_len"], x["kv_len"], x["heads"], x["kv_heads"], x["head_dim"]


def _log(value: Numbers) -> Array:
    return np.log2(np.maximum(value, 1e-12))


def size(family: str, base: Array, chip: Silicon) -> NDArray[np.int64]:
    """0 for kernels that hardly last longer than their start, 1 for some times it, 2 for the rest."""
    starts = base * chip.clock_hz / start_cycles(family)
    return np.asarray(np.digitize(starts, (2.0, 8.0)), dtype=np.int64)


def link(device: Device) -> tuple[float, str] | None:
    """What a device sends to its peers at, and over what: ``scale-up`` links, else the ``host`` one."""
    for one in (device.all_to_all_bytes_per_s, device.pair_bytes_per_s):
        if one is not None:
            return one.value, "scale-up"
    return None if device.link_bytes_per_s is None else (device.link_bytes_per_s.value, "host")


_START_OF = {"attention_prefill": "attention", "attention_decode": "attention"}


def start_cycles(family: str) -> float:
    """Cycles before a kernel of a family has done anything."""
    return START_CYCLES[_START_OF.get(family, family)]
