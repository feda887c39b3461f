"""Cells on a real NVIDIA GPU: what its own clocks make of them. Skipped where there is none, as in CI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from capturing import Notebook, spans

import gimlet_lab as gimlet
from gimlet_lab.model import Run

torch: Any = pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")


class Products(torch.nn.Module):
    """So large that the device works long after the host has gone on."""

    def __init__(self, side: int = 8192, count: int = 12) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(side, side, bias=False, device="cuda", dtype=torch.bfloat16) for _ in range(count)
        )

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def products() -> Iterator[Any]:
    with torch.no_grad():
        yield Products()
    torch.cuda.empty_cache()


def run_of(source: str, **names: Any) -> Run:
    namespace = {"torch": torch, **names}
    code = Notebook().compile(source)
    with torch.no_grad(), gimlet.profile("cell", namespace=namespace) as recorder:
        exec(code, namespace)
    assert recorder.run is not None
    return recorder.run


def seconds_by_bound(run: Run, stage: str | None = None) -> dict[str, float]:
    found: dict[str, float] = {}
    for phase in run.phase_list:
        if stage is None or phase.stage == stage:
            found[phase.bound] = found.get(phase.bound, 0.0) + phase.duration_s
    return found


def test_a_call_lasts_as_long_as_the_device_works_for_it(products: Any) -> None:
    x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    products(x)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    notebook = Notebook(torch=torch, net=products, x=x, events=events)
    recording = notebook.profile(
        """
        with torch.no_grad():
            net(x)
            events[0].record()
            net(x)
            events[1].record()
            last = net(x)
        """
    )
    calls = spans(recording, "module")
    assert [call.looked for call in calls] == [True, False, False]
    took_s = events[0].elapsed_time(events[1]) * 1e-3
    assert calls[1].duration_s == pytest.approx(took_s, rel=0.02)
    assert recording.spans[0].end_s >= calls[2].end_s >= calls[2].start_s >= calls[1].end_s - 1e-4
    looked = [op for op in recording.ops if op.span == calls[0].id and op.op == "aten::mm"]
    assert sum(op.count for op in looked) == 12
    assert all(op.device_timed for op in looked)
    assert sum(op.duration_s for op in looked) == pytest.approx(took_s, rel=0.2)
    assert not [note for note in recording.notes if "host's" in note], recording.notes


def test_a_decode_loop_that_the_host_cannot_feed_is_overhead_and_a_large_prefill_computes() -> None:
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=4, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=32000, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        llm = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    ids = torch.randint(0, 32000, (4, 4096), device="cuda")
    llm.generate(ids, max_new_tokens=4, do_sample=False)
    run = run_of("llm.generate(ids, max_new_tokens=24, do_sample=False)", llm=llm, ids=ids)
    stages = {stage.id: stage for stage in run.graph.stages}
    assert stages["prefill"].device == stages["decode"].device == "cuda:0"
    assert stages["prefill"].bound == "compute", seconds_by_bound(run, "prefill")
    assert stages["decode"].bound in ("overhead", "bandwidth"), seconds_by_bound(run, "decode")
    bare = [op for op in run.operators if op.op == "aten::mm" and op.device_timed]
    assert bare


@pytest.mark.parametrize(
    ("source", "bound"),
    [
        ("a = torch.randn(8192, 8192, device='cuda').bfloat16()\nfor _ in range(60): b = a @ a", "compute"),
        ("a = torch.ones(2**28, device='cuda')\nfor _ in range(100): b = a.clone()", "bandwidth"),
        ("a = torch.ones(1, device='cuda')\nfor _ in range(20_000): a.add_(1)", "overhead"),
        ("a = torch.ones(2**28)\nfor _ in range(4): b = a.to('cuda')", "transfer"),
        ("import time\na = torch.ones(8, device='cuda')\ntorch.cuda.synchronize()\ntime.sleep(0.4)", "wait"),
    ],
)  # fmt: skip
def test_known_kernels_are_held_back_by_what_they_are(source: str, bound: str) -> None:
    run_of(source)  # once for what only the first time takes
    found = seconds_by_bound(run_of(source))
    assert max(found, key=lambda name: found[name]) == bound, found


def test_energy_and_bandwidth_are_the_cards_own(products: Any) -> None:
    x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    run = run_of("for _ in range(20): net(x)", net=products, x=x)
    card = next(series for series in run.meter_list if series.device == "cuda:0")
    assert any(value for value in card.readings["power_w"])
    stage = next(stage for stage in run.graph.stages if stage.kind == "module")
    assert run.phase_list[0].bound
    assert stage.device == "cuda:0"


def test_a_graph_is_captured_and_replayed_as_without_us(products: Any) -> None:
    x = torch.randn(256, 8192, device="cuda", dtype=torch.bfloat16)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        expected = products(x)
    torch.cuda.synchronize()
    run = run_of(
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = net(x)
        graph.replay()
        torch.cuda.synchronize()
        """,
        net=products,
        x=x,
        kept=(kept := {}),
    )
    assert run.status == "ok", (run.error, run.notes)
    assert expected.shape == (256, 8192)
    assert not kept


def test_a_profiler_of_the_users_goes_on(products: Any) -> None:
    x = torch.randn(256, 8192, device="cuda", dtype=torch.bfloat16)
    notebook = Notebook(torch=torch, net=products, x=x)
    recording = notebook.profile(
        """
        with torch.profiler.profile() as theirs, torch.no_grad():
            net(x)
            torch.cuda.synchronize()
        """
    )
    assert notebook.error is None
    names = {event.key for event in notebook["theirs"].key_averages()}
    assert "aten::mm" in names
    assert spans(recording, "module")[0].looked
    looked = [op for op in recording.ops if op.op == "aten::mm"]
    assert all(op.device_timed for op in looked), "timed by events instead"


def test_training_steps_are_the_devices() -> None:
    net = Products(2048, 4)
    optimizer = torch.optim.AdamW(net.parameters())
    x = torch.randn(4096, 2048, device="cuda", dtype=torch.bfloat16)
    notebook = Notebook(torch=torch, net=net, optimizer=optimizer, x=x)
    source = """
        for _ in range(3):
            optimizer.zero_grad()
            net(x).float().sum().backward()
            optimizer.step()
        """
    notebook.run(source.replace("        ", "", 1).replace("\n        ", "\n"))
    recording = notebook.profile(source)
    assert notebook.error is None
    names = [span.name for span in recording.spans if span.kind in ("module", "function")]
    assert names.count("backward") == 3
    backward = next(span for span in recording.spans if span.name == "backward")
    worked = [op for op in recording.ops if op.span == backward.id and op.op == "aten::mm"]
    assert sum(op.count for op in worked) == 7, "the input needs no gradient"
    assert all(op.device_timed and op.duration_s > 0 for op in worked)
