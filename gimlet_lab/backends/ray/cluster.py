"""The Ray cluster that this process is connected to: joined, or started here and ended with us."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gimlet_lab.backends.ray.library import first_line, library
from gimlet_lab.errors import GimletError

#: How long a node may take to start a worker, which imports torch on a cold machine.
START_S = 120.0

#: Packages that must be the same here and there, since objects travel between them as pickles.
SAME = ("gimlet-lab", "torch", "cloudpickle")

#: An address of this machine alone, for the cluster that is started here. Ray takes 127.0.0.1 for "find one".
_LOOPBACK = "127.0.0.2"

#: Memory of the object store of a cluster that is started here.
_STORE_BYTES = 2 * 2**30

#: The label by which a node says what it is to be called.
NAME_LABEL = "gimlet/name"


@dataclass(frozen=True)
class Node:
    """One machine of the cluster.

    Attributes
    ----------
    id : str
        Ray's.
    name : str
        Its label ``gimlet/name``, its host name, or ``node-1``, ``node-2``, …: whatever is unique.
    here : bool
        The one that this process runs on.
    """

    id: str
    name: str
    here: bool


class NodeLostError(GimletError):
    """A node that has left, whether or not the cluster has noticed."""


class Cluster:
    """A connection to Ray.

    Parameters
    ----------
    address : str, optional
        ``HOST:PORT`` of the head, or ``auto`` for one that runs on this machine; left out, a cluster is
        started here, for this process alone, and ended by :meth:`close`.

    Raises
    ------
    GimletError
        If Ray is not installed, refuses, or is of another version.
    """

    def __init__(self, address: str | None = None) -> None:
        if address is not None and "://" in address:
            raise GimletError(
                f"{address!r}: Ray Client is not supported; run the notebook on a node of the cluster and "
                "connect to HOST:PORT"
            )
        ray = library() if address is not None or _initialized() else _with_token()
        #: Whether it is ours to end.
        self.joined = False
        if not ray.is_initialized():
            _init(ray, address)
            self.joined = True
        elif address not in (None, "auto", ray.get_runtime_context().gcs_address):
            raise GimletError(
                f"this process is connected to Ray at {ray.get_runtime_context().gcs_address} already: "
                "ray.shutdown() leaves it"
            )
        self.ray = ray
        self.address: str = ray.get_runtime_context().gcs_address

    # -- nodes -------------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        """Its machines, this one first."""
        here = self.here()
        alive = sorted(
            (node for node in self.ray.nodes() if node["Alive"]),
            key=lambda node: (node["NodeID"] != here, node["NodeManagerAddress"], node["NodeManagerPort"]),
        )
        names = _names([(node["Labels"].get(NAME_LABEL), node["NodeManagerHostname"]) for node in alive])
        return [
            Node(node["NodeID"], name, node["NodeID"] == here)
            for node, name in zip(alive, names, strict=True)
        ]

    def alive(self, node: str) -> bool:
        """Whether a node is there."""
        return any(one["Alive"] and one["NodeID"] == node for one in self.ray.nodes())

    def here(self) -> str:
        """The node of this process."""
        return str(self.ray.get_runtime_context().get_node_id())

    def on(self, node: str) -> dict[str, Any]:
        """Options that put a task or an actor on a node, whatever else runs there."""
        affinity = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        return {"num_cpus": 0, "scheduling_strategy": affinity(node, soft=False)}

    def ask(self, node: Node, function: Callable[..., Any], *args: Any, timeout_s: float = START_S) -> Any:
        """Run a function on a node.

        Raises
        ------
        NodeLostError
            If the node has left.
        GimletError
            If it fails there, or does not answer.
        """
        task = self.ray.remote(function).options(**self.on(node.id), max_retries=1)
        try:
            return self.ray.get(task.remote(*args), timeout=timeout_s)
        except self.ray.exceptions.GetTimeoutError:
            raise GimletError(f"node {node.name!r} did not answer in {timeout_s:.0f} s") from None
        except (self.ray.exceptions.TaskUnschedulableError, self.ray.exceptions.NodeDiedError):
            raise NodeLostError(f"node {node.name!r} has left the cluster") from None
        except self.ray.exceptions.RayError as error:
            raise GimletError(f"node {node.name!r}: {why(error)}") from None

    def check(self, node: Node) -> None:
        """Check that a node has what this process has, since objects travel between them.

        Raises
        ------
        GimletError
            Which package differs, and what to install.
        """

        def versions(packages: Sequence[str]) -> dict[str, str | None]:
            # A nested function travels by value: a node without our package must be able to say so.
            from importlib import metadata

            found: dict[str, str | None] = {}
            for name in packages:
                try:
                    found[name] = metadata.version(name)
                except metadata.PackageNotFoundError:
                    found[name] = None
            return found

        here = versions(SAME)
        for name, has in self.ask(node, versions, SAME).items():
            if has != here[name]:
                raise GimletError(
                    f"node {node.name!r} has {name} {has or 'not at all'}, this notebook {here[name]}: "
                    f"pip install {name}=={here[name]} there"
                )

    def close(self) -> None:
        """Leave it, where we joined it; what was started here ends."""
        if self.joined:
            self.ray.shutdown()


def _initialized() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _init(ray: Any, address: str | None) -> None:
    options: dict[str, Any] = {"address": address, "logging_level": "error", "log_to_driver": True}
    if address is None:
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        if sys.platform == "linux":
            options["_node_ip_address"] = _LOOPBACK
    try:
        ray.init(**options)
    except Exception as error:  # noqa: BLE001 - Ray raises ConnectionError, RuntimeError, ValueError and its own
        where = "a Ray cluster could not be started here" if address is None else f"Ray at {address!r}"
        raise GimletError(f"{where}: {why(error)}") from None


def _names(labels: Sequence[tuple[str | None, str]]) -> list[str]:
    """Names of nodes, by their label and host name.

    Examples
    --------
    >>> _names([(None, "vm"), ("big", "vm"), (None, "vm"), (None, "gpu-box")])
    ['node-1', 'big', 'node-3', 'gpu-box']
    """
    wanted = [label or host for label, host in labels]
    return [
        name if wanted.count(name) == 1 and "/" not in name and name else f"node-{number}"
        for number, name in enumerate(wanted, 1)
    ]


def _with_token() -> Any:
    """Ray, so that it lets nobody in who has not the token that is made here.

    Ray listens on all of a machine's addresses, and who reaches it can run anything. It reads how to guard
    itself once, when it is loaded.
    """
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
        raise GimletError(
            "ray was imported before, without a token: restart the kernel and connect before importing it "
            "(or set RAY_AUTH_MODE=token first)"
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    return library()


def why(error: BaseException) -> str:
    """What Ray's error means for who connects, in one line."""
    texts, cause = [str(error)], error.__cause__ or error.__context__
    while cause is not None:
        texts.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    if "InvalidAuthToken" in " ".join(texts):
        return "its token is missing or wrong: restart with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN set"
    if "Version mismatch" in texts[0]:
        return " ".join(texts[0].split())
    return first_line(error)
