"""The analysis of what the real recorder saw of real programs."""

from __future__ import annotations

import linecache
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import count, pairwise
from typing import Any

import pytest
from recordings import device

from gimlet_lab.analysis import Analysis, analyse
from gimlet_lab.capture import Recorder
from gimlet_lab.model import Device, Recording

pytestmark = pytest.mark.slow

_cells = count(1)


def run(source: str, namespace: dict[str, Any], measured_on: Device) -> tuple[Analysis, Recording]:
    name = f"<test-cell-{next(_cells)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    recorder = Recorder(namespace, lambda file: file.startswith("<test-cell-"))
    recorder.start()
    try:
        exec(compile(source, name, "exec"), namespace)
    finally:
        recording = recorder.stop()
    return analyse(recording, measured_on), recording


KERNELS = """
a, b = torch.randn(2500, 2500), torch.randn(2500, 2500)
source = torch.ones(250_000_000)
copy = torch.empty_like(source)
x = torch.ones(4)
mark("gemm")
c = a @ b
mark("copy")
copy.copy_(source)
mark("tiny")
for _ in range(10_000):
    x = x + 1
mark("sleep")
time.sleep(0.3)
mark("socket")
client.recv(16)
mark("end")
"""

EXPECTED = {"gemm": "compute", "copy": "bandwidth", "tiny": "overhead", "sleep": "wait", "socket": "wait"}


@pytest.fixture(scope="module")
def host() -> Device:
    from gimlet_lab.hardware.discovery import host_device

    return host_device()


@pytest.fixture
def answered() -> Iterator[tuple[socket.socket, threading.Event]]:
    """A socket whose other end answers a while after it is asked to."""
    server, client = socket.socketpair()
    asked = threading.Event()

    def answer() -> None:
        asked.wait(60)
        time.sleep(0.25)  # the wait under test
        server.send(b"hello")

    thread = threading.Thread(target=answer)
    thread.start()
    yield client, asked
    asked.set()
    thread.join()
    server.close()
    client.close()


def test_known_kernels_are_classified_right(host, answered):
    import torch

    client, asked = answered
    marks: list[tuple[str, float]] = []
    began = time.perf_counter()

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter() - began))
        if name == "socket":
            asked.set()

    found, _ = run(KERNELS, {"torch": torch, "time": time, "client": client, "mark": mark}, host)
    for (name, start_s), (_, end_s) in pairwise(marks):
        seconds: dict[str, float] = {}
        for phase in found.phases:
            inside = min(end_s, phase.start_s + phase.duration_s) - max(start_s, phase.start_s)
            seconds[phase.bound] = seconds.get(phase.bound, 0.0) + max(0.0, inside)
        assert max(seconds, key=lambda bound: seconds[bound]) == EXPECTED[name], (name, seconds)


AGENT = """
def embed(text):
    with torch.inference_mode():
        return encoder(torch.tensor([[len(text)] * 8])).mean(1).numpy()

def search(vector):
    total = sum(range(40_000))
    return [f"passage {total} {vector.shape[1]}", "another passage of some length"]

def calculate(passages):
    return sum(i * len(p) for i in range(20_000) for p in passages)

def answer(prompt):
    ids = torch.tensor([[len(prompt) % 100] * 12])
    with torch.inference_mode():
        tokens = llm.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    return f"{prompt} {tokens.shape[1]}"

def agent(question):
    query = question
    for turn in range(2):
        passages = search(embed(query))
        result = calculate(passages)
        reply = answer(f"{question} {result}")
        query = reply + "?"
    return reply

value = agent("how many?")
"""


@pytest.fixture(scope="module")
def models() -> Mapping[str, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(100, 256)
            self.layers = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(8)])

        def forward(self, input_ids: Any) -> Any:
            return self.layers(self.table(input_ids))

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return {"torch": torch, "encoder": Encoder().eval(), "llm": LlamaForCausalLM(config).eval()}


def test_an_agent_with_a_language_model_becomes_its_graph(models):
    found, recording = run(AGENT, dict(models), device())
    graph = found.graph
    names = [stage.id for stage in graph.stages if stage.kind != "glue"]
    assert names[1:] == ["search", "calculate", "prefill", "decode"]
    first = names[0]
    assert graph[first].target == "encoder"
    kinds = {(edge.src, edge.dst): edge.known for edge in graph.edges if not edge.back}
    assert kinds[first, "search"] == "def-use"
    assert kinds["search", "calculate"] in ("object", "def-use")
    assert kinds["calculate", "prefill"] == "def-use"
    assert kinds["prefill", "decode"] == "tensor"
    assert any(edge.back and (edge.src, edge.dst) == ("decode", first) for edge in graph.edges)
    prefill, decode = graph["prefill"], graph["decode"]
    assert (prefill.calls, prefill.turns, decode.calls, decode.turns) == (2, 2, 22, 2)
    assert prefill.weights == decode.weights
    llm = models["llm"]
    assert decode.weight_bytes == sum(t.nbytes for t in (*llm.parameters(), *llm.buffers()))
    handed = {edge.tensor: edge for edge in graph.edges if (edge.src, edge.dst) == ("prefill", "decode")}
    # The first new token, picked from prefill's logits, and the cache.
    assert set(handed) == {"input_ids", "past_key_values"}
    cache = handed["past_key_values"]
    assert cache.bytes == 2 * 4 * 12 * 2 * 64 * 4, "keys and values, 4 layers, 12 tokens, 2 heads of 64"
    assert decode.state_bytes == cache.bytes * 23 // 12
    seconds = sum(phase.duration_s for phase in found.phases)
    assert seconds == pytest.approx(recording.spans[0].duration_s)


def test_inferred_operators_sum_to_what_an_exact_recording_sees(models):
    """Look at a few calls, then at all: FLOPs, bytes and calls of each stage are the same."""
    source = "llm.generate(ids, max_new_tokens=20, min_new_tokens=20, do_sample=False)\n"
    totals = []
    for exact in (False, True):
        namespace = {**models, "ids": models["torch"].full((1, 9), 7)}
        name = f"<test-cell-{next(_cells)}>"
        recorder = Recorder(namespace, lambda file: file.startswith("<test-cell-"), exact=exact)
        recorder.start()
        try:
            exec(compile(source, name, "exec"), namespace)
        finally:
            recording = recorder.stop()
        graph = analyse(recording, device()).graph
        totals.append({s.id: (s.calls, s.ops, s.flops, s.bytes_read, s.bytes_written) for s in graph.stages})
    few, every = totals
    for stage in ("prefill", "decode"):
        assert few[stage][:2] == every[stage][:2]
        assert few[stage][2:] == pytest.approx(every[stage][2:], rel=0.002)


def test_a_cell_without_torch_is_analysed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_is_not_needed", None)
    found, _ = run("total = sum(range(100_000))\n", {}, device())
    assert [stage.kind for stage in found.graph.stages] == ["glue"]
    assert found.phases
