"""A bound on latency for graphs of any size: prices on time, memory and the longest path.

Priced, placement falls apart into one choice a unit. Any prices give a bound (Lagrange); better ones are
found by subgradients. It comes within a few percent of the linear relaxation, in seconds for 100,000 units.
"""

from __future__ import annotations

from collections.abc import Sequence

from gimlet_lab.advisor.instance import Instance

#: Rounds of pricing.
ROUNDS = 150


def priced_bound_s(instance: Instance, rounds: int = ROUNDS) -> float:
    """A proved bound on the makespan, in seconds.

    For weights λ of the devices' loads and α of the path with α + Σλ = 1, and prices μ of memory, no
    placement is below Σ over units of min over devices of (α·[on the path] + λ)·work + μ·bytes, less what
    the memory there is costs.
    """
    import numpy as np

    devices = list(instance.machines)
    number = {name: i for i, name in enumerate(devices)}
    shape = (len(instance.units), len(devices))
    work, held = np.full(shape, np.inf), np.zeros(shape)
    holders: dict[str, int] = {}
    for unit in instance.units.values():
        for block in unit.weights:
            holders[block] = holders.get(block, 0) + 1
    for i, unit in enumerate(instance.units.values()):
        own = sum(size / holders[block] for block, size in unit.weights.items())
        for key, option in unit.options.items():
            d, seconds = number[option.device], unit.work_s(key)
            held[i, d] = own + (
                option.memory_bytes if work[i, d] == np.inf else min(option.memory_bytes, held[i, d] - own)
            )
            work[i, d] = min(work[i, d], seconds)
    able = np.isfinite(work)
    work = np.where(able, work, 0.0)
    room = np.array(
        [np.inf if m.memory_bytes is None else m.memory_bytes for m in instance.machines.values()]
    )
    serial = np.array([not m.parallel for m in instance.machines.values()], dtype=float)
    scale = held.sum() / max(len(devices), 1) or 1.0
    held, room = held / scale, room / scale
    tight = np.isfinite(room)
    on_path = np.zeros(len(instance.units))
    on_path[_longest(instance, np.where(able, work, np.inf).min(axis=1))] = 1.0
    whole = float((on_path * np.where(able, work, np.inf).min(axis=1)).sum())
    weight = np.concatenate([[0.5], serial * 0.5 / max(serial.sum(), 1.0)])
    price = np.zeros(len(devices))
    best, rows = 0.0, np.arange(len(instance.units))
    best_at, stale, step = (weight, price), 0, 0.5
    for _ in range(rounds):
        cost = (weight[0] * on_path[:, None] + weight[1:]) * work + price * held
        chosen = np.where(able, cost, np.inf).argmin(axis=1)
        value = float(cost[rows, chosen].sum() - (price[tight] * room[tight]).sum())
        if value > best:
            best, best_at, stale = value, (weight, price), 0
        else:
            stale += 1
            if stale >= 8:
                (weight, price), stale, step = best_at, 0, step / 2
                continue
        took = work[rows, chosen]
        load = np.bincount(chosen, took, len(devices)) * serial
        path = float((on_path * took).sum())
        used = np.bincount(chosen, held[rows, chosen], len(devices))
        slope = np.concatenate([[path], load])
        weight = weight * np.exp(step * (slope / max(slope.max(), 1e-300) - 1))
        weight = weight / weight.sum()
        over = np.where(tight, (used - np.where(tight, room, 0.0)) / np.where(tight, room, 1.0), 0.0)
        price = np.maximum(0.0, price + step * max(whole, best) * over / max(len(devices), 1))
    return best * (1 - 1e-9)


def _longest(instance: Instance, least: Sequence[float]) -> list[int]:
    """The units of a path that is longest where each takes its least time."""
    number = {name: i for i, name in enumerate(instance.units)}
    end, before = [0.0] * len(number), [-1] * len(number)
    for name in instance.order:
        i = number[name]
        for producer in instance.producers[name]:
            j = number[producer]
            if end[j] > end[i]:
                end[i], before[i] = end[j], j
        end[i] += float(least[i])
    at = max(range(len(end)), key=end.__getitem__, default=-1)
    path = []
    while at >= 0:
        path.append(at)
        at = before[at]
    return path
