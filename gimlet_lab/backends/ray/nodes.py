"""Devices of a cluster's nodes, and what lies between them and this process."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from gimlet_lab.backends.packing import pack
from gimlet_lab.backends.ray.actor import use_threads
from gimlet_lab.backends.ray.cluster import Cluster, Node, NodeLostError
from gimlet_lab.backends.ray.worker import RayWorker
from gimlet_lab.model import Device, Fleet, Link
from gimlet_lab.progress import Progress, silent

#: A message that costs its way only, and how often it is sent.
_SMALL_BYTES, _ROUNDS = 64, 40

#: A message that costs its bytes, and how often it is sent. Above what Ray moves inside its calls.
_LARGE_BYTES, _LARGE_ROUNDS = 16 * 2**20, 3

#: How long a node may take to measure its devices.
_MEASURE_S = 300.0


#: Seconds one way, and bytes per second.
_Way = tuple[float, float]

#: Where nothing has to go.
_NO_WAY: _Way = 0.0, float("inf")


def devices(cluster: Cluster, node: Node, *, recalibrate: bool = False) -> list[tuple[Device, _Way]]:
    """Devices of a node, calibrated there and named after it, and the way from its host to each.

    Raises
    ------
    GimletError
        If the node does not answer, or has other versions than this process.
    """
    cluster.check(node)
    found = Fleet.from_json(cluster.ask(node, _measured, recalibrate, timeout_s=_MEASURE_S))
    return [
        (_named(device, node), _NO_WAY if device.is_host else _way_to(device, found.links))
        for device in found
    ]


def _reached(cluster: Cluster, node: Node, recalibrate: bool) -> list[tuple[Device, _Way]] | None:
    """None for a node that has left: the cluster notices that some seconds later."""
    try:
        return devices(cluster, node, recalibrate=recalibrate)
    except NodeLostError:
        return None


def _measured(recalibrate: bool) -> dict[str, Any]:
    """Runs on the node."""
    from gimlet_lab.hardware.fleet import local_fleet
    from gimlet_lab.hardware.machine import cores

    use_threads(len(cores()))
    return local_fleet(recalibrate=recalibrate).to_json()


def _id(device: str, node: Node) -> str:
    return f"{node.name}/{device}"


def _named(device: Device, node: Node) -> Device:
    return replace(
        device,
        id=_id(device.id, node),
        name=f"{device.name} of {node.name}",
        aliases=(),
        resources=tuple(f"{node.name}/{resource}" for resource in device.resources),
        node=node.id,
        peers={_id(peer, node): rate for peer, rate in device.peers.items()},
    )


def measure_link(cluster: Cluster, node: Node, clock: Callable[[], float] = time.perf_counter) -> _Way:
    """What a call between this process and a node costs: seconds one way, and bytes per second.

    Measured by messages to a worker there and back, by the very path that a plan's calls take: packed here,
    through Ray, unpacked there.
    """
    worker = RayWorker(cluster, f"{node.name}/cpu", node.id, ())
    try:
        worker.start()

        def seconds(nbytes: int, rounds: int) -> list[float]:
            message = pack(("echo", np.zeros(nbytes, dtype=np.uint8)))
            taken = []
            for _ in range(rounds):
                started = clock()
                worker.call(message)
                taken.append(clock() - started)
            return taken

        seconds(_SMALL_BYTES, _ROUNDS // 4)
        small = statistics.median(seconds(_SMALL_BYTES, _ROUNDS))
        seconds(_LARGE_BYTES, 1)
        large = statistics.median(seconds(_LARGE_BYTES, _LARGE_ROUNDS))
    finally:
        worker.close()
    return small / 2, 2 * _LARGE_BYTES / max(large - small, 1e-9)


def fleet(cluster: Cluster, local: Fleet, *, recalibrate: bool = False, progress: Progress = silent) -> Fleet:
    """The devices of this machine and of all other nodes, with the links between them.

    A plan's calls start from this process and their results come back to it, so that what goes from node to
    node goes through here.

    Raises
    ------
    GimletError
        If a node cannot take part; says which, and what to do there.
    """
    others = [node for node in cluster.nodes() if not node.here]
    found, ways = list(local.devices), {device.id: _way_to(device, local.links) for device in local}
    progress(0.0, f"measuring {', '.join(node.name for node in others)}")
    with ThreadPoolExecutor(max(len(others), 1)) as pool:
        measured = list(pool.map(lambda node: _reached(cluster, node, recalibrate), others))
    for done, (node, reached) in enumerate(zip(others, measured, strict=True)):
        if reached is None:
            continue
        progress(0.5 + 0.5 * done / len(others), f"measuring the link to {node.name}")
        way = measure_link(cluster, node)
        for device, inner in reached:
            found.append(device)
            ways[device.id] = _sum(way, inner)
    joined = tuple(
        _joined(first.id, second.id, ways)
        for first, second in itertools.permutations(found, 2)
        if first.node or second.node
    )
    return Fleet(tuple(found), {device.id: 1 for device in found}, (*local.links, *joined))


def _way_to(device: Device, links: Sequence[Link]) -> _Way:
    """From its machine's host to a device."""
    one = next((link for link in links if link.src == "cpu" and link.dst == device.id), None)
    return _NO_WAY if one is None else (one.latency_s, one.bytes_per_s)


def _joined(src: str, dst: str, ways: Mapping[str, _Way]) -> Link:
    latency_s, rate = _sum(ways[src], ways[dst])
    return Link(src, dst, rate, latency_s, "measured through Ray")


def _sum(first: _Way, second: _Way) -> _Way:
    return first[0] + second[0], 1 / (1 / first[1] + 1 / second[1])
