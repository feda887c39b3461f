"""Placed functions in a real kernel: their output, Ctrl-C, a restart."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest
from kernel import Kernel

SETUP = f"""
import sys, os
sys.path.insert(0, {str(Path(__file__).parent)!r})
from placing import functions
from gimlet_lab.backends import backend
import time, pathlib
def tool(x):
    print("from the worker", x)
    print("and this", file=sys.stderr)
    return os.getpid()
async def later(x):
    print("later", x)
    return os.getpid()
def stuck(path):
    pathlib.Path(path).touch()
    while True: time.sleep(0.01)
def fails(): return 1 / 0
plan = functions(tool="cpu_0", later="cpu_1", stuck="cpu_0", fails="cpu_0")
deployment = backend("local").deploy(plan, globals())
"""


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel()
    assert kernel.run(SETUP).status == "ok"
    yield kernel
    kernel.close()


def test_output_is_the_cells(kernel):
    shown = kernel.run("tool(1) != os.getpid()")
    assert shown.value == "True"
    assert shown.streams == {"stdout": "from the worker 1\n", "stderr": "and this\n"}
    shown = kernel.run("import asyncio\nawait asyncio.gather(later(1), later(2))")
    assert sorted(shown.streams["stdout"].splitlines()) == ["later 1", "later 2"]


def test_an_error_shows_the_users_lines(kernel):
    shown = kernel.run("fails()").normal()
    assert shown.error is not None
    assert shown.error[0] == "ZeroDivisionError"
    assert "On cpu/0, traceback there:" in shown.traceback
    assert shown.traceback.count("def fails(): return 1 / 0") == 2  # the call here, the line there
    assert "backends/functions.py" not in shown.traceback


def test_interrupting_and_going_on(kernel, tmp_path):
    path = tmp_path / "there"
    shown = kernel.interrupted(f"stuck({str(path)!r})", path)
    assert shown.error is not None
    assert shown.error[0] == "KeyboardInterrupt"
    assert kernel.run("tool(2) != os.getpid()").value == "True"


def test_a_restart_ends_the_workers(kernel):
    pids = kernel.run(
        "from gimlet_lab.backends.process import TEMPLATE\n"
        "[place.pid for place in deployment._places.values()] + [TEMPLATE._process.pid]"
    ).value
    handles = [os.pidfd_open(pid) for pid in eval(pids)]
    kernel.manager.restart_kernel(now=True)
    for handle in handles:
        assert select.select([handle], [], [], 60)[0]
        os.close(handle)
