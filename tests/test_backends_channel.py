"""How objects travel, and that worker processes end with the process that started them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placing import held

from gimlet_lab.backends.channel import Channel, ChannelClosedError
from gimlet_lab.backends.packing import LARGE_BYTES, fingerprint, pack, unpack


@pytest.fixture
def ends():
    one, two = (Channel(sock) for sock in socket.socketpair())
    yield one, two
    one.close()
    two.close()


def travel(sender, receiver, value):
    """Send from a thread: the system's buffer of a socket is small."""
    thread = threading.Thread(target=sender.send, args=(pack(value),))
    thread.start()
    received = unpack(receiver.receive())
    thread.join()
    return received


SIZES = st.one_of(
    st.integers(0, 300), st.integers(LARGE_BYTES - 2, LARGE_BYTES + 2), st.just(3 * LARGE_BYTES)
)


@settings(max_examples=40, deadline=None)
@given(st.lists(SIZES, max_size=6), st.binary(max_size=100))
def test_any_mix_of_sizes(sizes, text):
    value = [np.arange(size, dtype=np.uint8) for size in sizes], text
    one, two = (Channel(sock) for sock in socket.socketpair())
    try:
        for sender, receiver in ((one, two), (two, one)):
            arrays, same = travel(sender, receiver, value)
            assert same == text
            assert [array.tobytes() for array in arrays] == [array.tobytes() for array in value[0]]
            assert all(array.flags.writeable for array in arrays)
    finally:
        one.close()
        two.close()


def test_memory_is_used_again_but_never_under_a_result(ends):
    one, two = ends
    for _ in range(2):
        travel(one, two, np.zeros(2**20))
        travel(two, one, None)
    before = held()
    for number in range(20):
        assert travel(one, two, np.full(2**20, number))[0] == number
        travel(two, one, None)  # tells what was released
    assert held()["descriptors"] == before["descriptors"]
    kept = [travel(one, two, np.full(2**18, number)) for number in range(6)]
    for number, array in enumerate(kept):
        assert (array == number).all()
        array[:] = -1  # its own memory: nothing else sees it
    travel(two, one, None)
    assert (travel(one, two, np.full(2**18, 9)) == 9).all()
    assert all((array == -1).all() for array in kept)


def test_results_outlive_the_channel(ends):
    one, two = ends
    before = Path("/proc/self/maps").read_text().count("memfd:gimlet")
    array = travel(one, two, np.arange(2.0**18))
    one.close()
    two.close()
    assert array.sum() == np.arange(2.0**18).sum()
    del array
    assert Path("/proc/self/maps").read_text().count("memfd:gimlet") == before


def test_a_closed_end_is_an_error_of_its_own(ends):
    one, two = ends
    one.close()
    with pytest.raises(ChannelClosedError):
        two.receive()
    with pytest.raises(ChannelClosedError):
        two.send(pack(1))


def test_what_was_shared_goes_to_many():
    value = pack(np.arange(2.0**18)).share()
    try:
        for _ in range(2):
            one, two = (Channel(sock) for sock in socket.socketpair())
            one.send(value)
            array = unpack(two.receive())
            assert (array == np.arange(2.0**18)).all()
            array[:] = 0  # a copy of its own from here on
            one.close()
            two.close()
    finally:
        value.close()


def test_fingerprints_see_changes():
    torch = pytest.importorskip("torch")
    tensor, array, table = torch.zeros(3), np.zeros(3), {"a": [1]}
    value = [tensor, array, table]
    before = fingerprint(value)
    assert fingerprint(value) == before
    for change in (lambda: tensor.add_(1), lambda: array.fill(2), lambda: table["a"].append(2)):
        change()
        after = fingerprint(value)
        assert after != before
        before = after


SCRIPT = """
import sys, os, time
sys.path.insert(0, {tests!r})
from placing import notebook, functions
from gimlet_lab.backends import backend
book = notebook(
    "import os, time\\ndef pid(): return os.getpid()\\ndef stuck():\\n    while True: time.sleep(1)\\n"
)
deployment = backend("local").deploy(functions(pid="cpu_0", stuck="cpu_1"), book)
from gimlet_lab.backends.process import TEMPLATE
print(book["pid"](), deployment._places["cpu/1"].pid, TEMPLATE._process.pid, flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("os.kill(os.getpid(), 9)", -9),
        ("import threading; threading.Thread(target=book['stuck'], daemon=True).start(); os._exit(5)", 5),
        (
            # A child that holds copies of all descriptors.
            "if os.fork() == 0: time.sleep(60)\nos.kill(os.getpid(), 9)",
            -9,
        ),
    ],
    ids=["exit", "SystemExit", "killed", "in a call", "killed with a child"],
)
def test_workers_end_with_the_kernel(end, status):
    script = SCRIPT.format(tests=str(Path(__file__).parent), end=textwrap.dedent(end))
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        handles = [handle for pid in pids if (handle := watch(pid)) is not None]
        assert len(pids) == 3
        assert process.wait(60) == status
        for handle in handles:
            assert select.select([handle], [], [], 60)[0], "a process of ours is left over"
            os.close(handle)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        said = process.stderr.read() if process.stderr else ""
        process.stdout.close()
        process.stderr.close()
    assert said == ""


def watch(pid):
    """Something that becomes readable when a process ends; None where it has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
