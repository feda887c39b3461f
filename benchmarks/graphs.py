"""Random placement problems, made from a seed: layered graphs and transformer-like ones.

Four or eight unlike devices, links of different speeds, and memory for about three quarters of the graph on any
half of the devices: nothing fits on one. The same arguments always give the same problem.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

#: The seeds of what ``placement.py`` reports.
SEEDS = (1, 2, 3)

#: Room on all devices together, as a multiple of what the graph needs.
ROOM = 1.5


def layered(units: int, devices: int = 4, seed: int = 1, seconds: float = 30.0) -> dict[str, Any]:
    """Layers of two to eight stages; each reads one to three of the layer before."""
    dice = random.Random(f"layered {units} {devices} {seed}")
    layers: list[list[str]] = []
    names: list[str] = []
    while len(names) < units:
        width = min(dice.randint(2, 8), units - len(names))
        layers.append([f"s{len(names) + i}" for i in range(width)])
        names += layers[-1]
    edges = [
        (src, dst)
        for above, below in itertools.pairwise(layers)
        for dst in below
        for src in dice.sample(above, min(len(above), dice.randint(1, 3)))
    ]
    work = {name: dice.lognormvariate(-4.6, 0.7) for name in names}
    size = {name: dice.lognormvariate(17.5, 0.7) for name in names}
    weights = {name: {name: dice.lognormvariate(18.4, 0.6)} for name in names}
    return _problem(dice, work, size, weights, edges, devices, seconds)


def transformer_like(units: int, devices: int = 4, seed: int = 1, seconds: float = 30.0) -> dict[str, Any]:
    """Blocks of attention with parallel projections and of a gated MLP, each around a residual."""
    dice = random.Random(f"transformer {units} {devices} {seed}")
    shapes = {  # relative work, relative output, relative weights, whom it reads
        "norm": (0.1, 1.0, 0.0, ("add2",)),
        "q": (1.0, 1.0, 1.0, ("norm",)),
        "k": (0.5, 0.5, 0.5, ("norm",)),
        "v": (0.5, 0.5, 0.5, ("norm",)),
        "attention": (1.5, 1.0, 0.0, ("q", "k", "v")),
        "proj": (1.0, 1.0, 1.0, ("attention",)),
        "add1": (0.1, 1.0, 0.0, ("proj", "add2")),
        "norm2": (0.1, 1.0, 0.0, ("add1",)),
        "gate": (3.0, 3.0, 3.0, ("norm2",)),
        "up": (3.0, 3.0, 3.0, ("norm2",)),
        "down": (3.0, 1.0, 3.0, ("gate", "up")),
        "add2": (0.1, 1.0, 0.0, ("down", "add1")),
    }
    work, size, weights, edges = {}, {}, {}, []
    previous = ""
    for number in range(units):
        block, part = divmod(number, len(shapes))
        name, (each, out, held, reads) = list(shapes.items())[part]
        unit = f"b{block}.{name}"
        work[unit] = 4e-3 * each * dice.uniform(0.8, 1.25)
        size[unit] = 2.5e7 * out
        weights[unit] = {unit: 5e7 * held} if held else {}
        for producer in reads:
            # The block's first readers of "add2" read the block before.
            src = previous if producer == "add2" else f"b{block}.{producer}"
            if src and src in work:
                edges.append((src, unit))
        if name == "add2":
            previous = unit
    return _problem(dice, work, size, weights, edges, devices, seconds)


def _problem(
    dice: random.Random,
    work: dict[str, float],
    size: dict[str, float],
    weights: dict[str, dict[str, float]],
    edges: list[tuple[str, str]],
    devices: int,
    seconds: float,
) -> dict[str, Any]:
    names = [f"d{i}" for i in range(devices)]
    slower = {name: 1.0 + 2.0 * i / devices for i, name in enumerate(names)}
    total = sum(sum(one.values()) for one in weights.values())
    share = {name: dice.uniform(0.7, 1.3) for name in names}
    whole = sum(share.values())
    stages = [
        {
            "id": name,
            "weights": weights[name],
            "options": {d: {"seconds": one * slower[d] * dice.uniform(0.85, 1.15)} for d in names},
        }
        for name, one in work.items()
    ]
    return {
        "schema": "gimlet.problem/1",
        "objective": "latency",
        "devices": [{"id": d, "memory_bytes": ROOM * total * share[d] / whole} for d in names],
        "stages": stages,
        "edges": [{"from": a, "to": b, "tensor": "out", "bytes": size[a]} for a, b in edges],
        "links": [
            {"from": a, "to": b, "bytes_per_s": dice.choice([2e9, 5e9, 1e10, 2.5e10]), "latency_s": 2e-5}
            for a in names
            for b in names
            if a != b
        ],
        "time_limit_s": seconds,
        "gap": 1e-3,
    }


KINDS = {"layered": layered, "transformer": transformer_like}
