"""A node that is there and cannot be reached: its link is cut while it computes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from placing import actors, function, notebook, plan

import gimlet_lab as gimlet
from gimlet_lab.errors import GimletError

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))


def _namespaces() -> bool:
    """Whether network namespaces can be made here."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "gimlet-try"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", "gimlet-try"], capture_output=True, check=False)
    return made.returncode == 0


pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray"),
    pytest.mark.skipif(not _namespaces(), reason="no network namespaces"),
]

CALLS = """
def begun(path, x):
    import pathlib, time
    here = pathlib.Path(path)
    here.touch()
    while not here.with_name("cut").exists(): time.sleep(0.01)
    return x + 1
def again(path, x): return begun(path, x)
def once(path, x): return begun(path, x)
"""


def test_a_node_that_cannot_be_reached_loses_no_result(tmp_path, monkeypatch):
    from shaped import Shape, cluster, cut

    # Ray takes more than a minute to miss a node by itself.
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_timeout_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    book = notebook(CALLS)
    first, second = tmp_path / "again", tmp_path / "once"
    with cluster({"far": Shape("0,1")}) as address:
        fleet = gimlet.connect("ray", address)
        placed = plan(
            (function("again"), "far/cpu/0"), (function("once", idempotent=False), "far/cpu/1"), over=fleet
        )
        try:
            with gimlet.apply(placed, namespace=book) as deployment, ThreadPoolExecutor(2) as pool:
                answer = pool.submit(book["again"], str(first), 1)
                refusal = pool.submit(book["once"], str(second), 1)
                while not (first.exists() and second.exists()):
                    pass
                cut("far")
                (tmp_path / "cut").touch()
                assert answer.result() == 2
                with pytest.raises(GimletError, match="idempotent=False: whether it was done is not known"):
                    refusal.result()
                assert book["once"](str(second), 2) == 3
                kept = {stage: stats["on_host"] for stage, stats in deployment.stats().items()}
                assert kept == {
                    "again": {"far/cpu/0: its node has left the cluster": 1},
                    "once": {"far/cpu/1: its node has left the cluster": 1},
                }
            assert actors() == []
        finally:
            gimlet.disconnect()
