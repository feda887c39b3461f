"""Nodes of Ray in network namespaces of this machine: links of a set rate, cores and quotas of their own.

Needs root, iproute2 and taskset; what it makes (namespaces, a bridge, control groups) it takes away again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

BRIDGE, NET = "gimlet0", "10.213.77"
RAY = str(Path(sys.executable).with_name("ray"))
STORE_BYTES = 400 * 2**20


@dataclass(frozen=True)
class Shape:
    """What a node has.

    Attributes
    ----------
    cores : str
        As of ``taskset -c``.
    rate : str
        Of its link, each way, as of ``tc``.
    quota : float or None
        Processors' time, in periods of 10 ms.
    """

    cores: str
    rate: str = "1gbit"
    quota: float | None = None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def cluster(shapes: Mapping[str, Shape], head_cores: str = "0") -> Iterator[str]:
    """A head on this machine and a node for each shape; where to connect."""
    if os.geteuid() != 0:
        raise SystemExit("network namespaces need root")
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": os.environ.setdefault("RAY_AUTH_MODE", "token"),
        "RAY_AUTH_TOKEN": os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32)),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    processes: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        stack.callback(_run, "ip", "link", "del", BRIDGE)
        _run("ip", "addr", "add", f"{NET}.1/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        common = ["--block", "--num-cpus=1", f"--object-store-memory={STORE_BYTES}"]
        address = f"{NET}.1:26379"
        head = [
            RAY,
            "start",
            "--head",
            f"--node-ip-address={NET}.1",
            "--port=26379",
            "--include-dashboard=false",
        ]
        stack.callback(_stop, processes)
        processes.append(_start(["taskset", "-c", head_cores, *head, *common], environment))
        _wait(address, 1)
        for number, (name, shape) in enumerate(shapes.items(), 2):
            space, here, there = f"gimlet-{name}", f"gl{number}", f"gl{number}p"
            _run("ip", "netns", "add", space)
            stack.callback(_leave, space, here)
            _run("ip", "link", "add", here, "type", "veth", "peer", "name", there)
            _run("ip", "link", "set", there, "netns", space)
            _run("ip", "link", "set", here, "master", BRIDGE, "up")
            inside = ["ip", "netns", "exec", space]
            _run(*inside, "ip", "addr", "add", f"{NET}.{number}/24", "dev", there)
            _run(*inside, "ip", "link", "set", there, "up")
            _run(*inside, "ip", "link", "set", "lo", "up")
            limit = ["root", "tbf", "rate", shape.rate, "burst", "1mb", "latency", "100ms"]
            _run("tc", "qdisc", "add", "dev", here, *limit)
            _run(*inside, "tc", "qdisc", "add", "dev", there, *limit)
            node = [RAY, "start", f"--address={address}", f"--node-ip-address={NET}.{number}"]
            group = _group(stack, space, shape.quota)
            pinned = [*inside, "taskset", "-c", shape.cores, *node, f"--labels=gimlet/name={name}", *common]
            joined = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"] if group else []
            processes.append(_start([*joined, *pinned], environment))
            _wait(address, number)
        yield address


def cut(*names: str) -> None:
    """Nothing goes to these nodes any more, nor comes from them."""
    for name in names:
        # The other end of what is a node's only link.
        shown = subprocess.run(
            ["ip", "netns", "exec", f"gimlet-{name}", "ip", "-o", "link", "show", "type", "veth"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        there = shown.split(":")[1].strip().partition("@")[0]
        _run("ip", "link", "set", there.removesuffix("p"), "down")


def _wait(address: str, nodes: int) -> None:
    """Until so many nodes have joined; one after the other, since they would take each other's sockets."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    for _ in range(120):
        time.sleep(0.5)
        with contextlib.suppress(Exception):
            if len(GcsClient(address=address).get_all_node_info()) >= nodes:
                return
    raise SystemExit(f"node {nodes} did not join the cluster in a minute")


def _group(stack: contextlib.ExitStack, name: str, quota: float | None) -> Path | None:
    """A control group with a quota, in the first version of control groups."""
    if quota is None:
        return None
    group = Path("/sys/fs/cgroup/cpu") / name
    group.mkdir()
    stack.callback(_empty, group)
    (group / "cpu.cfs_period_us").write_text("10000")
    (group / "cpu.cfs_quota_us").write_text(str(int(quota * 10_000)))
    return group


def _empty(group: Path) -> None:
    """Take a group away, with what is still in it."""
    for _ in range(100):
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)


def _start(command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _leave(space: str, link: str) -> None:
    """Take a namespace away, and what would keep it: what runs in it, and connections that were cut off."""
    found = subprocess.run(["ip", "netns", "pids", space], check=True, capture_output=True, text=True)
    for pid in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _run("ip", "netns", "del", space)
    subprocess.run(["ip", "link", "del", link], check=False, capture_output=True)


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in reversed(processes):
        process.terminate()
    for process in reversed(processes):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(40)
    time.sleep(2)
