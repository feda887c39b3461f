"""Traces of other tools as runs: real ones of this CPU, hand-made ones of accelerators, damaged ones."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from kineto_traces import MI300X, ZERO_US, Made, served

import gimlet_lab as gimlet
from gimlet_lab import commands
from gimlet_lab.cli import main
from gimlet_lab.errors import GimletError, UnknownNameError
from gimlet_lab.model import Device, Run
from gimlet_lab.notebook import Notebook

torch: Any = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- recorded here, on the CPU -----------------------------------------------------------------------------


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(32)
        self.up = torch.nn.Linear(32, 64)
        self.down = torch.nn.Linear(64, 32)

    def forward(self, x: Any) -> Any:
        heads = self.norm(x).view(x.shape[0], -1, 2, 16).transpose(1, 2)
        seen = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        x = torch.cat([x, seen.transpose(1, 2).reshape(x.shape)], dim=1)[:, : x.shape[1]]
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(100, 32)
        self.layers = torch.nn.ModuleList([Block(), Block()])

    def forward(self, ids: Any) -> Any:
        x = self.table(ids)
        for layer in self.layers:
            x = layer(x)
        return x.softmax(-1).argmax(-1)


def record(folder: Path, work: Callable[[], object], **options: Any) -> tuple[Path, Path]:
    """A Kineto trace and the execution trace of the same run."""
    kineto, execution = folder / "kineto.json", folder / "execution.json"
    observer = torch.profiler.ExecutionTraceObserver().register_callback(str(execution))
    settings = {"record_shapes": True, "with_stack": True, **options}
    with (
        torch.no_grad(),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], execution_trace_observer=observer, **settings
        ) as profiler,
    ):
        work()
    profiler.export_chrome_trace(str(kineto))
    return kineto, execution


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, Path, Path]:
    torch.manual_seed(0)
    net, ids = Net(), torch.zeros(1, 8, dtype=torch.long)

    def work() -> None:
        with torch.profiler.record_function("retrieve"):
            torch.ones(64) * 2
        net(ids)
        net(ids)

    return (net, *record(tmp_path_factory.mktemp("trace"), work))


def of_stage(run: Run, stage: str) -> list[Any]:
    return [op for op, own in zip(run.operators, run.stage_of, strict=True) if own == stage]


def counted(run: Run, stage: str) -> Counter[Any]:
    """Operators of a stage that compute or move something: name, FLOPs, bytes."""
    found: Counter[Any] = Counter()
    for op in of_stage(run, stage):
        if op.flops or op.bytes_read or op.bytes_written:
            one = tuple(
                None if value is None else value / op.count
                for value in (op.flops, op.bytes_read, op.bytes_written)
            )
            found[op.op, *one] += op.count
    return found


def test_an_imported_trace_counts_what_our_own_capture_counts(recorded: tuple[Net, Path, Path]) -> None:
    net, kineto, execution = recorded
    ids = torch.zeros(1, 8, dtype=torch.long)
    with gimlet.profile("own", exact=True, namespace={"net": net}) as recorder, torch.no_grad():
        net(ids)
        net(ids)
    own, run = recorder.run, gimlet.import_trace([kineto, execution])
    assert own is not None
    mine = next(stage for stage in own.graph.stages if stage.kind == "module")
    theirs = next(stage for stage in run.graph.stages if stage.kind == "module")
    assert counted(run, theirs.id) == counted(own, mine.id)
    assert theirs.flops == mine.flops
    assert theirs.flops
    assert theirs.bytes_read == mine.bytes_read
    assert theirs.calls == mine.calls == 2
    weights = sum(p.numel() * p.element_size() for p in net.parameters() if p.dim() > 1)
    assert theirs.weight_bytes == weights, "matrices and tables; vectors are not told from other operands"


def test_a_kineto_trace_alone_leaves_unknown_what_it_does_not_say(recorded: tuple[Net, Path, Path]) -> None:
    _, kineto, execution = recorded
    alone, both = gimlet.import_trace(kineto), gimlet.import_trace([kineto, execution])
    (cat,) = {(op.flops, op.bytes_read) for op in alone.operators if op.op == "aten::cat"}
    assert cat == (0.0, None), "a list of tensors is recorded without its dtype"
    assert all(op.bytes_read for op in both.operators if op.op == "aten::cat")
    assert {edge.known for edge in alone.graph.edges} <= {"order"}
    stage = next(stage for stage in alone.graph.stages if stage.kind == "module")
    assert stage.target is None
    assert alone.device.name.startswith("the CPU of ")
    assert any("does not name its CPU" in note for note in alone.notes)


def test_module_paths_and_annotations_are_kept(recorded: tuple[Net, Path, Path]) -> None:
    run = gimlet.import_trace(recorded[1])
    assert {span.name for span in run.span_list if span.kind == "function"} == {"retrieve"}
    assert [span.name for span in run.span_list if span.kind == "module"] == ["Net", "Net"]
    paths = {op.module for op in run.operators if op.op == "aten::addmm"}
    assert paths == {f"Block_{block}.Linear_{2 * block + line}" for block in (0, 1) for line in (0, 1)}
    assert all(op.start_s >= 0 for op in run.operators)
    last = max(op.start_s + op.duration_s for op in run.operators)
    assert run.duration_s >= last - 1e-6
    assert sum(phase.duration_s for phase in run.phase_list) == pytest.approx(run.duration_s)


def test_tensors_make_edges_where_an_execution_trace_is_beside(tmp_path: Path) -> None:
    encoder, decoder = torch.nn.Linear(16, 16), torch.nn.Sequential(torch.nn.Linear(16, 4))

    def work() -> None:
        with torch.profiler.record_function("encode"):
            hidden = encoder(torch.ones(3, 16))
        with torch.profiler.record_function("tool"):
            torch.ones(5).sum()
        with torch.profiler.record_function("decode"):
            decoder(hidden)

    paths = record(tmp_path, work, with_stack=False)
    run = gimlet.import_trace(list(paths))
    edges = {(edge.src, edge.dst): edge for edge in run.graph.edges if edge.known == "tensor"}
    assert set(edges) == {("encode", "decode")}
    assert edges["encode", "decode"].bytes == 3 * 16 * 4


def test_an_execution_trace_alone_has_no_times(recorded: tuple[Net, Path, Path]) -> None:
    execution = recorded[2]
    with pytest.raises(GimletError, match="an execution trace has no times: name the Kineto trace") as caught:
        gimlet.import_trace(execution)
    assert "\n" not in str(caught.value)
    run = gimlet.import_trace(execution, device="h100-sxm")
    assert run.device.id == "h100-sxm"
    assert all(run.inferred)
    assert (
        "an execution trace has no times: these are what the roofline of h100-sxm allows at best" in run.notes
    )
    peak = max(quantity.value for quantity in run.device.peak_flops.values())
    for op in run.operators:
        if op.op == "aten::addmm" and op.flops is not None:
            assert op.duration_s >= op.flops / peak > 0
    assert run.duration_s == pytest.approx(sum(op.duration_s for op in run.operators))


def test_a_trace_without_shapes_has_times_and_no_flops(tmp_path: Path) -> None:
    kineto, _ = record(tmp_path, lambda: torch.ones(8, 8) @ torch.ones(8, 8), record_shapes=False)
    run = gimlet.import_trace(kineto)
    (mm,) = [op for op in run.operators if op.op == "aten::mm"]
    assert mm.flops is mm.bytes_read is mm.work is None
    assert mm.duration_s > 0
    assert "recorded without record_shapes=True: FLOPs and bytes are unknown" in run.notes


def test_a_training_step_guesses_no_weights(tmp_path: Path) -> None:
    layer = torch.nn.Linear(16, 16)

    def work() -> None:
        with torch.enable_grad():
            layer(torch.ones(4, 16)).sum().backward()

    run = gimlet.import_trace(record(tmp_path, work)[0])
    assert (
        sum(op.flops or 0 for op in run.operators if op.op in ("aten::mm", "aten::addmm"))
        >= 2 * 2 * 4 * 16 * 16
    )
    assert not any(module.weights for module in run.modules)


# -- accelerators, by the documented format ----------------------------------------------------------------


def imported(made: Made, tmp_path: Path, **options: Any) -> Run:
    return gimlet.import_trace(made.write(tmp_path / "gpu.json"), **options)


def microseconds(op: Any) -> float:
    """As exactly as the clock of a trace tells."""
    return round(op.duration_s * 1e6, 1)


def test_operators_on_an_accelerator_take_their_kernels_time(tmp_path: Path) -> None:
    run = imported(served(Made()), tmp_path)
    assert run.device.id == "h100-sxm"
    assert run.device.torch_device == "cuda:0"
    products = [op for op in run.operators if op.op == "aten::mm"]
    assert {(op.device, op.device_timed) for op in products} == {("cuda:0", True)}
    assert {microseconds(op) for op in products} == {95.0, 40.0}
    first = products[0]
    assert first.flops == 2 * 512 * 14336 * 4096
    assert first.dtype == "bfloat16"
    assert first.module == "LlamaDecoderLayer_0.Linear_0"
    assert first.weight_bytes == 4096 * 14336 * 2


def test_calls_are_told_apart_and_bound_by_the_devices_roofs(tmp_path: Path) -> None:
    run = imported(served(Made(), tokens=20), tmp_path)
    stages = {stage.id: stage for stage in run.graph.stages}
    assert {"prefill", "decode"} <= set(stages)
    prefill, decode = stages["prefill"], stages["decode"]
    assert (prefill.calls, decode.calls) == (1, 20)
    assert (prefill.bound, decode.bound) == ("compute", "bandwidth")
    assert prefill.device == decode.device == "cuda:0"
    assert decode.weight_bytes == 2 * 4096 * 14336 * 2
    lengths = [span.attributes["past_len"] for span in run.span_list if span.role == "decode"]
    assert lengths == [512 + step for step in range(20)]
    # From the first launch to the last kernel: 5 µs until the device begins, then 210 µs of kernels.
    assert prefill.total_s == pytest.approx(216e-6, rel=0.01)
    calls = [span for span in run.span_list if span.kind == "module"]
    assert all(before.end_s <= after.start_s for before, after in pairwise(calls))


def test_a_host_that_runs_ahead_does_not_shorten_calls(tmp_path: Path) -> None:
    made = Made()
    for _ in range(3):  # launched within 15 µs, run for 300 µs
        with made.module("Net_0"):
            made.mm(512, 4096, 4096, device_us=100.0)
    run = imported(made, tmp_path)
    calls = [span for span in run.span_list if span.kind == "module"]
    assert [span.duration_s for span in calls] == [
        pytest.approx(seconds, rel=0.01) for seconds in (106e-6, 100e-6, 100e-6)
    ]
    assert run.duration_s == pytest.approx(306e-6, rel=0.01)


def test_overlapping_kernels_count_once(tmp_path: Path) -> None:
    made = Made()
    half = "c10::BFloat16"
    with made.module("Net_0"), made.op("aten::bmm", [[2, 64, 64], [2, 64, 64]], [half, half]):
        made.kernel("left", 100.0, stream=7)
        made.kernel("right", 100.0, stream=9)  # 3 µs later on another stream
    run = imported(made, tmp_path)
    (op,) = [op for op in run.operators if op.op == "aten::bmm"]
    assert op.duration_s == pytest.approx(103e-6, rel=1e-4)
    assert any(
        "kernels on 2 streams kept it busy for 0.000103 s (0.0002 s of kernels" in note for note in run.notes
    )


def test_copies_are_transfers_as_far_as_nothing_hides_them(tmp_path: Path) -> None:
    made = Made()
    with made.annotation("load"):
        made.copy("HtoD", 8_000_000, 400.0)
    made.synchronize()
    with made.annotation("overlap"):
        made.mm(512, 4096, 4096, device_us=500.0)
        made.copy("HtoD", 4_000_000, 200.0, stream=9)
    made.synchronize()
    with made.annotation("fetch"):
        made.copy("DtoH", 4000, 10.0)
    made.synchronize()
    run = imported(made, tmp_path)
    transfers = [span for span in run.span_list if span.kind == "transfer"]
    parents = {span.id: span.name for span in run.span_list}
    assert [(parents[span.parent or 0], span.attributes["bytes"]) for span in transfers] == [
        ("load", 8_000_000),
        ("fetch", 4000),
    ]
    (sent, *_) = [op for op in run.operators if op.op == "aten::copy_"]
    assert sent.work is not None
    assert sent.work.op == "send"
    assert sent.bytes_read == 8_000_000
    spent: dict[str, float] = {}
    for stage in run.graph.stages:
        spent[stage.id] = stage.total_s
    assert {stage.id: stage.bound for stage in run.graph.stages}["load"] == "transfer"


def test_streams_of_a_run_ahead_keep_their_phases(tmp_path: Path) -> None:
    run = imported(served(Made(), tokens=200), tmp_path)
    assert sum(phase.duration_s for phase in run.phase_list) == pytest.approx(run.duration_s)
    seconds: dict[tuple[str | None, str], float] = {}
    for phase in run.phase_list:
        seconds[phase.stage, phase.bound] = seconds.get((phase.stage, phase.bound), 0.0) + phase.duration_s
    assert max(seconds, key=lambda key: seconds[key]) == ("decode", "bandwidth")


def test_a_launch_bound_call_is_overhead(tmp_path: Path) -> None:
    made = Made()
    for _ in range(100):
        with made.module("Net_0"):
            for _ in range(5):
                made.mm(1, 32, 32, device_us=1.5)
                made.host(20.0)
        made.synchronize()
    run = imported(made, tmp_path)
    (stage,) = [stage for stage in run.graph.stages if stage.kind == "module"]
    assert stage.bound == "overhead"


def test_kernels_without_an_operator_are_rows_of_their_own(tmp_path: Path) -> None:
    made = Made()
    with made.annotation("graph"):
        made.correlation += 1
        made.event("cuda_runtime", "cudaGraphLaunch", 1.0, 3.0, args={"correlation": made.correlation})
        for number in range(3):
            made.event(
                "kernel", f"graph_kernel_{number}", 10.0 + 10 * number, 18.0 + 10 * number, pid=0, tid=7,
                args={"device": 0, "stream": 7, "correlation": made.correlation},
            )  # fmt: skip
        made.now = 50.0
    made.event("kernel", "lost", 60.0, 65.0, pid=0, tid=7, args={"device": 0, "stream": 7})
    run = imported(made, tmp_path)
    rows = {op.op: op for op in run.operators}
    assert set(rows) == {"graph_kernel_0", "graph_kernel_1", "graph_kernel_2", "lost"}
    assert all(op.flops is op.work is None and op.device_timed for op in run.operators)
    named = {span.id: span.name for span in run.span_list}
    assert named[rows["graph_kernel_1"].span] == "graph"
    assert named[rows["lost"].span] == "cell"
    assert any("1 kernels and copies name no call that launched them" in note for note in run.notes)


def test_an_older_trace_ties_by_external_id(tmp_path: Path) -> None:
    made = served(Made())
    made.events = [event for event in made.events if event["cat"] != "cuda_runtime"]
    run = imported(made, tmp_path)
    assert {microseconds(op) for op in run.operators if op.op == "aten::mm"} == {95.0, 40.0}


@pytest.mark.parametrize(
    ("name", "runtime", "launch", "device", "where"),
    [
        (MI300X, "cuda_runtime", "hipExtModuleLaunchKernel", "mi300x", "cuda:0"),
        ("Intel(R) Data Center GPU Max 1550", "xpu_runtime", "urEnqueueKernelLaunch", "xpu:0", "xpu:0"),
    ],
)
def test_other_vendors(tmp_path: Path, name: str, runtime: str, launch: str, device: str, where: str) -> None:
    run = imported(served(Made(name, runtime=runtime, launch=launch)), tmp_path)
    assert (run.device.id, run.device.torch_device) == (device, where)
    assert {microseconds(op) for op in run.operators if op.op == "aten::mm"} == {95.0, 40.0}


def test_an_accelerator_that_nobody_knows_has_no_roofs(tmp_path: Path) -> None:
    made = served(Made("NVIDIA Unheard-of 9000"))
    run = imported(made, tmp_path)
    assert run.device.name == "NVIDIA Unheard-of 9000"
    assert not run.device.peak_flops
    assert run.device.memory_bytes is not None
    assert any("'NVIDIA Unheard-of 9000' is not in the catalogue: --device ID" in note for note in run.notes)
    assert imported(made, tmp_path, device="t4").device.id == "t4"
    with pytest.raises(UnknownNameError, match="did you mean 'h100-sxm'"):
        imported(made, tmp_path, device="h100-smx")


def test_an_imported_run_is_a_run_like_any_other(tmp_path: Path) -> None:
    run = imported(served(Made(), tokens=20), tmp_path)
    assert Run.load(run.save(tmp_path / "r")) == run
    plan = gimlet.advise(run, gimlet.fleet("h100-sxm", "cpu", "l4"))
    assert set(plan.assignment) == {stage.id for stage in run.graph.stages}
    for target in ("perfetto", "speedscope", "csv"):
        assert gimlet.export(run, target, tmp_path / target).exists()


# -- damage ------------------------------------------------------------------------------------------------


def test_a_trace_that_is_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    whole = served(Made(), tokens=20).write(tmp_path / "t.json").read_bytes()
    cut = tmp_path / "cut.json"
    cut.write_bytes(whole[: len(whole) // 2])
    run = gimlet.import_trace(cut)
    assert run.operators
    assert "the trace is cut short: what stands before the cut was read" in run.notes
    squeezed = tmp_path / "cut.json.gz"
    squeezed.write_bytes(gzip.compress(whole)[:-200])
    assert (
        "the trace is cut short: what stands before the cut was read" in gimlet.import_trace(squeezed).notes
    )


def test_damaged_events_are_left_out_and_counted(tmp_path: Path) -> None:
    made = served(Made(), tokens=20)
    text = json.dumps({**made.head, "traceEvents": made.events}, indent=1)
    text = text.replace('"name": "gemm_bf16"', '"name": "gemm\x01\x02\tbf16"', 1)  # control characters: read
    text = text.replace('"name": "flash_fwd_kernel"', '"name": "flash" fwd_kernel"', 2)  # not JSON: left out
    path = tmp_path / "t.json"
    path.write_bytes(text.encode() + b"\xff\xfe")
    run = gimlet.import_trace(path)
    assert "2 damaged events were left out" in run.notes
    assert len(run.operators) > 50


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dur": -5.0}, "1 events without a name, a time or a duration were left out"),
        ({"dur": float("nan")}, "1 events without a name, a time or a duration were left out"),
        ({"ts": float("inf")}, "1 events without a name, a time or a duration were left out"),
        ({"ts": "soon"}, "1 events without a name, a time or a duration were left out"),
        ({"name": None}, "1 events without a name, a time or a duration were left out"),
    ],
)
def test_times_that_cannot_be(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    made = served(Made())
    made.events[0] |= change
    run = imported(made, tmp_path)
    assert said in run.notes
    assert all(math.isfinite(op.duration_s) and op.duration_s >= 0 for op in run.operators)


@pytest.mark.parametrize(
    "dims",
    [
        [[-1, 4096], [4096, 8]],
        [["a"], [3]],
        [[float("nan"), 4096], [4096, 8]],
        [[3, 4], [5, 6]],
        [[2**62, 2**62], [2**62, 2]],
    ],
)
def test_shapes_that_cannot_be(tmp_path: Path, dims: Any) -> None:
    made = served(Made())
    made.events[0]["args"]["Input Dims"] = dims
    run = imported(made, tmp_path)
    odd = min((op for op in run.operators if op.op == "aten::mm"), key=lambda op: op.start_s)
    assert odd.duration_s > 0
    assert odd.flops is None or math.isfinite(odd.flops)


def test_operators_of_another_torch_are_unknown(tmp_path: Path) -> None:
    made = Made()
    with made.op("aten::mm_of_the_future", [[4, 4], [4, 4]], ["float", "float"]):
        made.kernel("k", 10.0)
    with made.op("image::write_file", [[], [4]], ["Scalar", "unsigned char"], ["/tmp/never", ""]):
        made.kernel("k", 10.0)
    with made.op("aten::mm", [[4, 4], [4, 4], []], ["c10::Int7", "float", "Scalar"], ["", "", "new"]):
        made.kernel("k", 10.0)
    run = imported(made, tmp_path)
    assert [op.flops for op in run.operators] == [None, None, None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON, not a trace"),
        ("not json", "is not JSON, not a trace"),
        ("{}", "is no trace: it has neither"),
        ('{"traceEvents": 3}', "has no operator and no kernel of torch.profiler's"),
        ('{"traceEvents": []}', "is no trace: it has neither"),
        ('[{"ph": "X", "cat": "viz", "name": "f", "ts": 1, "dur": 2}]', r"\(it has events of: viz\)"),
        ('{"schema": "9", "nodes": [{"id": 1, "name": "x"}]}', "of schema 9, of which no node could be read"),
        ('{"nodes": [1, 2]}', "is an execution trace of schema unknown"),
    ],
)  # fmt: skip
def test_what_is_no_trace_is_one_line_and_no_run(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    notebook = Notebook({})
    with pytest.raises(GimletError, match=said) as caught:
        commands.run_line(["import", str(path)], notebook)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert not notebook.runs


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(GimletError, match="there is no such file"):
        gimlet.import_trace(tmp_path / "none.json")
    with pytest.raises(GimletError, match="is a folder"):
        gimlet.import_trace(tmp_path)
    made = served(Made()).write(tmp_path / "t.json")
    with pytest.raises(GimletError, match="is a second Kineto trace"):
        gimlet.import_trace([made, made])


# -- commands ----------------------------------------------------------------------------------------------


def test_the_command_holds_the_run(tmp_path: Path) -> None:
    path = served(Made(), tokens=20).write(tmp_path / "server.json.gz")
    notebook = Notebook({})
    answer, _ = commands.run_line(["import", str(path), "--name", "served"], notebook)
    assert list(notebook.runs) == ["served"]
    assert "decode" in answer.text()
    answer, variable = commands.run_line(["import", str(path), "-o", "run"], notebook)
    assert variable == "run"
    assert isinstance(answer.value, Run)
    assert answer.value.name == "server"


def test_the_shell_writes_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = served(Made(), tokens=20).write(tmp_path / "server.json")
    out = tmp_path / "run.gimlet"
    assert main(["import", str(path), "-o", str(out)]) == 0
    assert "wrote" in capsys.readouterr().out
    run = Run.load(out)
    assert run.environment["imported"] == "server.json"
    assert run.started.startswith("2026-")
    assert main(["import", str(tmp_path / "none.json")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_device_may_be_given(tmp_path: Path) -> None:
    made = served(Made())
    given = Device("mine", "Mine", "me", "gpu", torch_device="cuda:0")
    assert imported(made, tmp_path, device=given).device == given
    assert ZERO_US > 0


# -- recorded on an H100 -----------------------------------------------------------------------------------


def test_a_trace_of_an_h100_is_the_run_that_it_was() -> None:
    """Two prompts of 1,024 tokens and three new ones, a Llama of two layers in bfloat16, PyTorch 2.11."""
    run = gimlet.import_trace(Path(__file__).parent / "traces" / "h100_generate.json.gz")
    assert run.device.id == "h100-sxm"
    stages = {stage.id: stage for stage in run.graph.stages}
    assert [(name, stages[name].calls) for name in ("prefill", "decode")] == [("prefill", 1), ("decode", 2)]
    hidden, inter, layers, heads, kv, dim, vocab, batch, prompt = 2048, 5632, 2, 16, 4, 128, 32000, 2, 1024
    weights = layers * (2 * hidden * hidden + 2 * hidden * kv * dim + 3 * hidden * inter)
    attention = layers * 4 * batch * heads * dim * prompt * (prompt + 1) // 2
    products = 2 * batch * prompt * weights + attention + 2 * batch * hidden * vocab
    assert stages["prefill"].flops == pytest.approx(products, rel=0.001)
    kernels = [op for op in run.operators if op.device_timed]
    assert sum(op.duration_s for op in kernels) == pytest.approx(0.00205042, rel=0.02)
