"""A Ray cluster of several nodes on this machine, which stand in for several machines."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import Any

#: Memory of each node's object store.
STORE_BYTES = 150 * 2**20

OPTIONS = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}


def start(made: Any, name: str) -> Any:
    """Start another node, which is called so."""
    return made.add_node(**OPTIONS, labels={"gimlet/name": name})


@contextlib.contextmanager
def cluster(*names: str) -> Iterator[Any]:
    """A head and a node for each name, guarded by a token; ``address`` is where to connect."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=OPTIONS)
    try:
        made.named = {name: start(made, name) for name in names}
        yield made
    finally:
        ray.shutdown()  # a cluster does not end under who is connected to it
        made.shutdown()
