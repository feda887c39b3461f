"""Devices of other nodes, and plans over them: a real Ray cluster of three nodes on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_drivers import AMDSMI, NO_AMDSMI, has_amdsmi
from nodes import cluster, start
from placing import actors, function, module, notebook, plan

import gimlet_lab as gimlet
from gimlet_lab.backends import backend
from gimlet_lab.errors import GimletError

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray"),
]
RAY = backend("ray")


@pytest.fixture(scope="module")
def nodes():
    with cluster("small", "large") as made:
        yield made


@pytest.fixture(scope="module")
def fleet(nodes):
    found = gimlet.connect("ray", nodes.address)
    yield found
    gimlet.disconnect()


def test_every_nodes_devices_join_the_fleet(fleet):
    by_id = {device.id: device for device in fleet}
    assert {"cpu", "small/cpu", "large/cpu"} <= set(by_id)
    assert not by_id["cpu"].node
    there = by_id["small/cpu"]
    assert there.live
    assert there.node != by_id["large/cpu"].node != ""
    assert there.achieved_bandwidth_bytes_per_s.tier == "measured"
    links = {(link.src, link.dst): link for link in fleet.links}
    one, two, both = (
        links[pair] for pair in [("cpu", "small/cpu"), ("large/cpu", "cpu"), ("small/cpu", "large/cpu")]
    )
    assert 1e-5 < one.latency_s < 1
    assert 1e7 < one.bytes_per_s < 1e11
    # What goes from node to node goes through this process, which the program's values belong to.
    assert both.latency_s == pytest.approx(one.latency_s + two.latency_s)
    assert 1 / both.bytes_per_s == pytest.approx(1 / one.bytes_per_s + 1 / two.bytes_per_s)
    assert [d.id for d in gimlet.fleet()] == [d.id for d in fleet]
    assert [d.id for d in gimlet.fleet("cpu", "small/cpu")] == ["cpu", "small/cpu"]
    assert gimlet.fleet("cpu", "small/cpu").links == tuple(
        link for link in fleet.links if {link.src, link.dst} == {"cpu", "small/cpu"}
    )


def test_stages_run_on_their_nodes(fleet):
    book = notebook(
        "import os\n"
        "def where(x):\n"
        "    import ray\n"
        "    return ray.get_runtime_context().get_node_id(), x\n"
        "also = lambda: None\n"
        "def also(x): return where(x)\n"
    )
    placed = plan((function("where"), "small/cpu"), (function("also"), "large/cpu"), over=fleet)
    with gimlet.apply(placed, namespace=book) as deployment:
        assert book["where"](1) == (fleet["small/cpu"].node, 1)
        assert book["also"](2) == (fleet["large/cpu"].node, 2)
        assert {entry["device"] for entry in deployment.stats().values()} == {"small/cpu", "large/cpu"}
        assert len(actors()) == 2
    assert actors() == []


def test_a_split_over_nodes_gives_the_same_tokens(fleet):
    from small_llm import generate, make_llm, torch

    threads = torch.get_num_threads()
    torch.set_num_threads(len(fleet["small/cpu"].cores))
    llm = make_llm()
    expected = generate(llm, do_sample=False)
    placed = plan(
        (module("prefill", "llm", "prefill"), "small/cpu"),
        (module("decode", "llm", "decode"), "large/cpu"),
        over=fleet,
    )
    try:
        with gimlet.apply(placed, namespace={"llm": llm}) as deployment:
            assert torch.equal(generate(llm, do_sample=False), expected)
            stats = deployment.stats()
    finally:
        torch.set_num_threads(threads)
    assert [(stats[role]["calls"], stats[role]["on_host"]) for role in ("prefill", "decode")] == [
        (1, {}),
        (9, {}),
    ]


def test_weights_are_read_on_the_node_where_that_was_said(fleet, tmp_path):
    from small_llm import generate, make_llm, torch

    llm = make_llm(hidden_size=64, intermediate_size=256)
    llm.save_pretrained(tmp_path)
    gimlet.weights(llm, tmp_path)
    with torch.no_grad():  # what is not in the files is sent
        llm.model.layers[0].mlp.up_proj.weight.mul_(0.5)
    expected = generate(llm, do_sample=False)
    placed = plan((module("decode", "llm", "decode"), "large/cpu"), over=fleet)
    assert f"weights read from {tmp_path}" in RAY.diff(placed, {"llm": llm})[0]
    with gimlet.apply(placed, namespace={"llm": llm}) as deployment:
        assert torch.equal(generate(llm, do_sample=False), expected)
        found = deployment.stats()["decode"]
    assert found["calls"]
    assert not found["on_host"]
    changed = llm.model.layers[0].mlp.up_proj.weight.nbytes
    assert changed <= found["loaded_bytes"] < changed + 0.1 * sum(p.nbytes for p in llm.parameters())


def test_files_of_this_machine_are_read_here(fleet, tmp_path, monkeypatch):
    """A node's files are not the notebook's: what is not there is read where it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").write_text("here")
    book = notebook("def read(name):\n    with open(name) as file: return file.read()\n")
    with gimlet.apply(plan((function("read"), "small/cpu"), over=fleet), namespace=book) as deployment:
        assert book["read"]("data.txt") == "here"  # all nodes of this cluster are this machine
        with pytest.raises(FileNotFoundError):
            book["read"]("nowhere.txt")
        assert "FileNotFoundError" in str(deployment.stats()["read"]["on_host"])


def test_a_lost_node_loses_no_result(nodes, fleet):
    spare = start(nodes, "spare")
    wider = gimlet.connect("ray", nodes.address)
    book = notebook("def tool(x): return x + 1\n")
    placed = plan((function("tool"), "spare/cpu"), over=wider)
    with gimlet.apply(placed, namespace=book) as deployment:
        assert book["tool"](1) == 2
        nodes.remove_node(spare, allow_graceful=False)
        x = 1
        while not deployment.stats()["tool"]["on_host"]:  # its worker may outlive the node for a moment
            x += 1
            assert book["tool"](x) == x + 1
        (why,) = deployment.stats()["tool"]["on_host"]
        assert "spare/cpu" in why
    with pytest.raises(GimletError, match=r"no node of the cluster.*advise again"):
        gimlet.apply(placed, namespace=book)
    gimlet.connect("ray", nodes.address)


def test_what_is_refused_is_said_in_a_line(nodes, fleet):
    book = notebook("def tool(): return 1\n")
    placed = plan((function("tool"), "small/cpu"), over=fleet)
    with pytest.raises(GimletError, match="a device of a Ray cluster: apply it with --backend ray"):
        gimlet.apply(placed, "local", book)
    with pytest.raises(GimletError, match=r"connected to Ray at .* already"):
        backend("ray").__class__.connect.__globals__["Cluster"]("127.0.0.1:1")
    gimlet.disconnect()
    with pytest.raises(GimletError, match="no Ray cluster is connected: %gimlet connect ray"):
        gimlet.apply(placed, "ray", book)
    with pytest.raises(GimletError, match="Ray Client is not supported"):
        gimlet.connect("ray", "ray://somewhere:10001")
    gimlet.connect("ray", nodes.address)


def test_another_version_is_refused_with_the_fix(nodes, fleet, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "99.0")
    with pytest.raises(GimletError, match=r"node '\w+' has gimlet-lab .*, this notebook 99.0: pip install"):
        gimlet.connect("ray", nodes.address)
    monkeypatch.undo()
    assert {device.id for device in gimlet.connect("ray", nodes.address)} >= {"cpu", "small/cpu"}


def test_without_ray_a_line_says_what_to_install(monkeypatch):
    from gimlet_lab.backends.ray.library import library

    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(GimletError, match=r"Ray is not installed: pip install 'gimlet-lab\[ray\]'"):
        library()


@pytest.mark.skipif(not has_amdsmi(), reason=NO_AMDSMI)
def test_amds_binding_without_rocm_breaks_nothing():
    bare = "import ray\nray.init(address='local', include_dashboard=False)"
    ours = (
        "import gimlet_lab as gimlet\n"
        "from placing import functions, notebook\n"
        "gimlet.connect('ray')\n"
        "book = notebook('def tool(): return 42')\n"
        "with gimlet.apply(functions(tool='cpu_0'), 'ray', book): print(book['tool']())\n"
    )
    path = os.pathsep.join([str(AMDSMI), str(Path(__file__).parent)])
    own = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", ours], env=own, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["42"], done.stderr[-2000:]
    assert subprocess.run([sys.executable, "-c", bare], env=own, capture_output=True).returncode != 0


def connecting(address: str, **environment: str) -> str:
    """What a new process is told that connects."""
    code = (
        "import gimlet_lab as gimlet\n"
        f"try: gimlet.connect('ray', {address!r})\n"
        "except gimlet.GimletError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    return done.stdout.strip().splitlines()[-1]


def test_a_wrong_token_is_refused(nodes):
    assert "token is missing or wrong" in connecting(nodes.address, RAY_AUTH_TOKEN="0" * 64)


def test_a_cluster_speaks_tls_where_it_is_told_to(tmp_path):
    program = Path(__file__).parent / "tls.py"
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "elsewhere": True,
        "value": 7,
        "with key": True,
        "without key": False,
    }
