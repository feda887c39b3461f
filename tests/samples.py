"""Nouns shaped like the demo agent's, with plausible numbers, for any test that needs a whole run or plan.

``sample_run()`` and ``sample_plan()`` are what the rest of the program would have made of a cell that runs
``agent("…")`` on two CPU cores: embed → search → calculate → prefill → decode, twice around.
"""

from __future__ import annotations

from dataclasses import replace

from gimlet_lab.model import (
    Device,
    Edge,
    Estimate,
    Fleet,
    Graph,
    Link,
    ModuleInfo,
    Op,
    Phase,
    Plan,
    Quantity,
    Run,
    Span,
    Stage,
    Work,
)
from gimlet_lab.model.stacks import Frame, Stacks, StackSample, StackThread

LAYERS = 30
HIDDEN = 576
LAYER_BYTES = 14_156_000
HEAD_BYTES = 113_246_208


def measured(value: float) -> Quantity:
    return Quantity(value, "measured here", "2026-09-01", "measured")


def vendor(value: float) -> Quantity:
    return Quantity(value, "datasheet", "2024-11-01", "vendor")


def sample_device() -> Device:
    return Device(
        id="cpu",
        name="AMD EPYC 7B13, 2 cores",
        vendor="AMD",
        kind="cpu",
        achieved_flops={"float32": measured(98e9), "bfloat16": measured(21e9)},
        memory_bytes=measured(16.8e9),
        achieved_bandwidth_bytes_per_s=measured(10.6e9),
        copy_bandwidth_bytes_per_s=measured(14.1e9),
        launch_s=measured(2.1e-6),
        live=True,
        resources=("core0", "core1"),
        torch_device="cpu",
        cores=(0, 1),
    )


def sample_gpu() -> Device:
    return Device(
        id="l4",
        name="NVIDIA L4",
        vendor="NVIDIA",
        kind="gpu",
        peak_flops={"float32": vendor(30.3e12), "bfloat16": vendor(121e12)},
        achieved_flops={"float32": Quantity(24e12, "mlcommons", "2025-03-01", "third-party")},
        memory_bytes=vendor(24e9),
        bandwidth_bytes_per_s=vendor(300e9),
        link_bytes_per_s=vendor(32e9),
        launch_s=Quantity(4e-6, "literature", "2025-01-01", "third-party"),
        idle_w=vendor(16),
        max_w=vendor(72),
        usd_per_hour=Quantity(0.71, "cloud list price", "2026-08-01", "third-party"),
        resources=("l4",),
    )


def sample_fleet() -> Fleet:
    return Fleet(
        (sample_device(), sample_gpu()),
        {"cpu": 1, "l4": 1},
        (Link("cpu", "l4", 2.4e10, 1e-5, "model"), Link("l4", "cpu", 2.4e10, 1e-5, "model")),
    )


def llm_weights() -> dict[str, int]:
    layers = {f"llm.model.layers.{i}": LAYER_BYTES for i in range(LAYERS)}
    return {"llm.model.embed_tokens": HEAD_BYTES, **layers, "llm.model.norm": HIDDEN * 4}


def sample_graph(tokens: int = 48) -> Graph:
    """Two turns: prefill twice, decode ``tokens`` times in all."""
    weights = llm_weights()
    model_bytes = float(sum(weights.values()))
    decode_works = (
        Work.of("gemm", count=tokens * LAYERS, m=1, n=1536, k=HIDDEN),
        Work.of("gemm", count=tokens, m=1, n=49152, k=HIDDEN),
    )
    return Graph(
        stages=(
            Stage(
                "embed", "module", "embedder", "embed", 2, 0.0214, 0.0711, "compute",
                works=(Work.of("gemm", count=72, m=12, n=384, k=384),),
                ops=640, flops=1.02e9, bytes_read=1.81e8, bytes_written=6.4e6,
                weights={"embedder.encoder": 42_600_000, "embedder.embeddings": 47_700_000},
                dtype="float32", device="cpu", turns=2, warmup_s=0.0283,
            ),
            Stage(
                "search", "function", "search", None, 2, 0.0019, 0.0038, "bandwidth",
                bytes_read=None, bytes_written=None, device="cpu", turns=2,
            ),
            Stage(
                "calculate", "function", "calculate", None, 1, 0.00041, 0.00041, "overhead",
                device="cpu", pure=True,
            ),
            Stage("build_prompt", "glue", None, None, 2, 0.0007, 0.0014, "overhead", device="cpu", turns=2),
            Stage(
                "prefill", "module", "llm", "prefill", 2, 0.712, 1.4410, "compute",
                works=(Work.of("gemm", count=60, m=214, n=1536, k=HIDDEN),),
                ops=3600, flops=1.15e11, bytes_read=2 * model_bytes + 9e7, bytes_written=2.1e8,
                weights=weights, state_bytes=9_860_000, dtype="float32", device="cpu", turns=2,
                warmup_s=0.017,
            ),
            Stage(
                "decode", "module", "llm", "decode", tokens, 0.0552, tokens * 0.0552, "bandwidth",
                works=decode_works, ops=2244 * tokens, flops=tokens * 2.71e8,
                bytes_read=tokens * (model_bytes + 8e6), bytes_written=tokens * 3.1e6,
                weights=weights, state_bytes=12_900_000, dtype="float32", device="cpu", turns=2,
            ),
        ),
        edges=(
            Edge("embed", "search", "vector", 1536.0, 2, "tensor"),
            Edge("search", "calculate", "passages", 2210.0, 1, "def-use"),
            Edge("search", "build_prompt", "passages", 2210.0, 2, "object"),
            Edge("calculate", "build_prompt", "result", 41.0, 1, "def-use"),
            Edge("build_prompt", "prefill", "prompt", 3424.0, 2, "def-use"),
            Edge("prefill", "decode", "past_key_values", 9_860_000.0, 2, "tensor"),
            Edge("prefill", "decode", "logits", 196_608.0, 2, "tensor"),
            Edge("decode", "decode", "past_key_values", 9_900_000.0, tokens - 2, "tensor", back=True),
            Edge("decode", "embed", "answer", None, 1, "def-use", back=True),
        ),
    )  # fmt: skip


def _spans(tokens: int) -> tuple[tuple[Span, ...], dict[int, str]]:
    spans = [Span(0, "cell", "cell", 0.0, 0.0)]
    stage_of: dict[int, str] = {}
    now = 0.004

    def add(stage: str, name: str, kind: str, seconds: float, **more: object) -> None:
        nonlocal now
        span = Span(len(spans), name, kind, now, seconds, parent=0, **more)  # type: ignore[arg-type]
        spans.append(span)
        stage_of[span.id] = stage
        now += seconds + 0.0006

    for turn in range(2):
        add("embed", "BertModel", "module", 0.0497 if turn == 0 else 0.0214, role="embed",
            target="embedder", looked=turn == 0, signature="1x12")  # fmt: skip
        add("search", "search", "function", 0.0019, target="search")
        if turn == 0:
            add("calculate", "calculate", "function", 0.00041, target="calculate")
        add("build_prompt", "build_prompt", "function", 0.0007, target="build_prompt")
        add("prefill", "LlamaForCausalLM", "module", 0.729 if turn == 0 else 0.712, role="prefill",
            target="llm", looked=turn == 0, attributes={"q_len": 214, "past_len": 0, "batch": 1},
            signature=f"1x{214 + 40 * turn}")  # fmt: skip
        for step in range(tokens // 2):
            jitter = 0.0011 * ((step * 7919) % 5 - 2)
            add("decode", "LlamaForCausalLM", "module", 0.0552 + jitter, role="decode", target="llm",
                looked=step in (0, 16), attributes={"q_len": 1, "past_len": 214 + step, "batch": 1},
                signature="1x1")  # fmt: skip
    spans[0] = replace(spans[0], duration_s=now + 0.003)
    return tuple(spans), stage_of


def _phases(spans: tuple[Span, ...], stage_of: dict[int, str], graph: Graph) -> tuple[Phase, ...]:
    phases: list[Phase] = []
    for span in spans[1:]:
        stage = graph[stage_of[span.id]]
        flops = None if stage.flops is None else stage.flops / stage.calls
        moved = None if stage.bytes is None else stage.bytes / stage.calls
        warm = stage.id == "embed" and span.looked
        last = phases[-1] if phases else None
        if last and last.stage == stage.id and last.bound == stage.bound:
            phases[-1] = replace(
                last, duration_s=span.end_s - last.start_s,
                flops=None if last.flops is None or flops is None else last.flops + flops,
                bytes=None if last.bytes is None or moved is None else last.bytes + moved,
            )  # fmt: skip
        else:
            phases.append(Phase(span.start_s, span.duration_s, stage.bound, stage.id, stage.role,
                                flops, moved, warm))  # fmt: skip
    return (Phase(0.0, 0.004, "wait", None, None, None, None), *phases)


def _operators(spans: tuple[Span, ...], stage_of: dict[int, str]) -> list[tuple[Op, bool, str]]:
    rows: list[tuple[Op, bool, str]] = []
    for span in spans[1:]:
        stage = stage_of[span.id]
        if span.role is None:
            continue
        m = {"embed": 12, "prefill": 214, "decode": 1}[stage]
        for layer in range(0, LAYERS, 10):
            start = span.start_s + layer / LAYERS * span.duration_s
            work = Work.of("gemm", m=m, n=1536, k=HIDDEN)
            rows.append(
                (
                    Op("aten::mm", span.id, f"model.layers.{layer}.mlp.up_proj", work, start,
                       span.duration_s / 4, 30 * 2.0 * m * 1536 * HIDDEN, 30 * 3.5e6, 30 * m * 6144.0,
                       "float32", "cpu", 30, 30 * 3.5e6),
                    not span.looked,
                    stage,
                )
            )  # fmt: skip
            rows.append(
                (
                    Op("aten::silu", span.id, f"model.layers.{layer}.mlp.act_fn",
                       Work.of("elementwise", elements=m * 1536, inputs=1, outputs=1), start,
                       span.duration_s / 20, None, m * 6144.0, m * 6144.0, "float32", "cpu", 10),
                    not span.looked,
                    stage,
                )
            )  # fmt: skip
    return rows


def sample_run(name: str = "agent", tokens: int = 48) -> Run:
    graph = sample_graph(tokens)
    spans, stage_of = _spans(tokens)
    rows = _operators(spans, stage_of)
    phases = _phases(spans, stage_of, graph)
    return Run(
        name=name,
        status="ok",
        error=None,
        started="2026-09-20T10:11:12Z",
        duration_s=spans[0].duration_s,
        overhead_s=0.094,
        device=sample_device(),
        environment={
            "python": "3.11.9", "torch": "2.13.0", "gimlet_lab": "0.1.0", "platform": "Linux-6.8-x86_64",
            "threads": 2, "cores": 2,
        },
        operators=tuple(row[0] for row in rows),
        inferred=tuple(row[1] for row in rows),
        stage_of=tuple(row[2] for row in rows),
        span_list=spans,
        span_stage=stage_of,
        phase_list=phases,
        sampled=sample_stacks(phases),
        graph=graph,
        modules=(
            ModuleInfo("embedder", "BertModel", {"embedder.encoder": 42_600_000}, "float32", "cpu"),
            ModuleInfo("llm", "LlamaForCausalLM", llm_weights(), "float32", "cpu"),
        ),
        min_phase_s=0.0004,
        notes=("faiss: its operators are not torch's; only its time is known",),
    )  # fmt: skip


def sample_stacks(phases: tuple[Phase, ...]) -> Stacks:
    """Each phase in one stack: Python in the agent's own line, all else below the model's call."""
    frames = (
        Frame("<module>", "In[5]", 2, cell=True),
        Frame("agent", "In[4]", 12, cell=True),
        Frame("generate", "transformers/generation/utils.py", 3007),
        Frame("Linear.forward", "torch/nn/modules/linear.py", 134),
    )
    samples = tuple(
        StackSample(
            phase.start_s, phase.duration_s, 0.0 if phase.bound in ("wait", "idle") else phase.duration_s,
            0, 1 if phase.bound in ("overhead", "wait", "idle") else 3, phase.stage, number,
        )
        for number, phase in enumerate(phases)
    )  # fmt: skip
    nodes = ((-1, 0), (0, 1), (1, 2), (2, 3))
    return Stacks(frames, nodes, (StackThread("MainThread", 0),), samples, 100.0, "in-process, py-spy")


def sample_plan(name: str = "agent") -> Plan:
    """The language model moves to an L4; Python, tools and the small embedder stay on the host."""
    graph = sample_graph()
    here = {stage.id: "cpu" for stage in graph.stages}
    assignment = {**here, "prefill": "l4", "decode": "l4"}
    estimates: dict[str, dict[str, Estimate]] = {}
    for stage in graph.stages:
        seconds = stage.call_s
        estimates[stage.id] = {
            "cpu": Estimate(seconds, seconds * 0.94, seconds * 1.08, stage.bound, "measured", 30 * seconds)
        }
    estimates["embed"]["l4"] = Estimate(0.0024, 0.0012, 0.0049, "overhead", "model", 0.17)
    estimates["prefill"]["l4"] = Estimate(0.0118, 0.0081, 0.0171, "overhead", "model", 0.85)
    estimates["decode"]["l4"] = Estimate(0.0094, 0.0079, 0.0127, "overhead", "model", 0.68)
    problem = {
        "schema": "gimlet.problem/1",
        "objective": "latency",
        "devices": [
            {"id": "cpu", "memory_bytes": 1.68e10, "host": True, "resources": ["core0", "core1"]},
            {"id": "l4", "memory_bytes": 2.4e10, "usd_per_hour": 0.71, "resources": ["l4"]},
        ],
        "stages": [
            {
                "id": stage.id,
                "calls": stage.calls,
                "weights": dict(stage.weights),
                "options": {
                    device: {"seconds": e.seconds, "seconds_high": e.high, "joules": e.joules or 0.0}
                    for device, e in estimates[stage.id].items()
                },
            }
            for stage in graph.stages
        ],
        "edges": [
            {"from": e.src, "to": e.dst, "tensor": e.tensor, "bytes": e.bytes or 0.0, "calls": e.calls}
            for e in graph.edges
            if not e.back
        ],
        "links": [{"from": a, "to": b, "bytes_per_s": 2.4e10, "latency_s": 1e-5}
                  for a, b in (("cpu", "l4"), ("l4", "cpu"))],
        "transfer": "direct",
    }  # fmt: skip
    schedule, now = [], 0.0
    for stage in graph.stages:
        device = assignment[stage.id]
        end = now + stage.calls * estimates[stage.id][device].seconds
        schedule.append({"stage": stage.id, "device": device, "start_s": now, "end_s": end})
        now = end + (1.1e-5 if stage.id == "build_prompt" else 0.0)
    stay = sum(stage.calls * stage.call_s for stage in graph.stages)
    return Plan(
        id="3f9c1d20",
        name=name,
        assignment=assignment,
        latency_s=schedule[-1]["end_s"],
        interval_s=(schedule[-1]["end_s"] * 0.84, schedule[-1]["end_s"] * 1.33),
        usd=9.9e-5,
        joules=36.0,
        bound=schedule[-1]["end_s"],
        gap=0.0,
        status="optimal",
        objective="latency",
        baselines={
            "stay as it is": {"latency_s": stay, "assignment": here, "why_not": None},
            "everything on l4": {
                "latency_s": None,
                "assignment": None,
                "why_not": "search, calculate, build_prompt are Python and need a host",
            },
            "accelerate's automatic map": {
                "latency_s": schedule[-1]["end_s"] * 1.004,
                "assignment": {**assignment, "embed": "l4"},
                "why_not": None,
            },
        },
        estimates=estimates,
        why=(
            "decode moves from cpu to l4: 55.2 ms → 9.4 ms per call: it reads 0.54 GB a token.",
            "prefill follows decode: their KV cache of 9.9 MB stays where both run.",
            "embed stays on cpu: 43 ms in all is less than the interval of what moving it would save.",
        ),
        problem=problem,
        solution={
            "schema": "gimlet.solution/1", "status": "optimal", "objective": schedule[-1]["end_s"],
            "bound": schedule[-1]["end_s"], "gap": 0.0, "assignment": assignment,
            "count": {"cpu": 1, "l4": 1}, "latency_s": schedule[-1]["end_s"], "schedule": schedule,
            "method": "cp-sat", "seconds_spent": 0.21,
        },
        graph=graph,
        fleet=sample_fleet(),
    )  # fmt: skip


def empty_run(**changes: object) -> Run:
    """A cell in which nothing was seen."""
    run = Run("nothing", "ok", None, "2026-09-20T10:11:12Z", 0.0, 0.0, Device("cpu", "CPU", "", "cpu"), {})
    return replace(run, **changes)  # type: ignore[arg-type]


#: Names that break pages and terminals.
HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    "x" * 10_000,
    "שלום עולם מרחב",
    "🚀 launch 🧠 — naïve 埋め込み検索ステージ",
    "a\"b'c&d</svg><img src=x onerror=alert(2)>",
    "line\nbreak\x1b[31m\u202eevil\x00 ]]> {{x}} $x^2$ \\frac",
    "\ud800 lone",
    "",
)


def hostile_run() -> Run:
    """Every kind of bad name and number in every place."""
    numbers = (float("nan"), float("inf"), 1e-320, 1e300, 0.0, None, -1.0, 5.0)
    stages, edges, spans, phases, rows = [], [], [], [], []
    for index, (name, number) in enumerate(zip(HOSTILE_NAMES, numbers, strict=True)):
        seconds = 0.2 if number is None else number
        stages.append(
            Stage(name, "module", name, name, index, seconds, seconds, "compute", ops=index, flops=number,
                  bytes_read=number, bytes_written=number, weights={name: index * 10**15}, dtype=name,
                  device=name, state_bytes=index)
        )  # fmt: skip
        spans.append(Span(index, name, "function", index * 0.1, seconds, 0, attributes={name: number}))
        phases.append(Phase(index * 0.1, seconds, name if index % 2 else "wait", name, name, number, number))
        rows.append(Op(name, index, name, None, index * 0.1, seconds, number, number, number, name, name))
        known = "tensor" if index % 3 else name
        edges += [Edge(other, name, name, number, index, known) for other in HOSTILE_NAMES[:index]]
        edges.append(Edge(name, HOSTILE_NAMES[0], name, number, 1, "object", back=True))
    edges.append(Edge("not", "there", "x", 1.0, 1, "order"))
    names = HOSTILE_NAMES
    frames = tuple(Frame(name, name, index or None, cell=index % 3 == 0) for index, name in enumerate(names))
    samples = tuple(
        StackSample(index * 0.1, 0.2 if number is None else number, number, index % 2, index, name, index)
        for index, (name, number) in enumerate(zip(names, numbers, strict=True))
    )
    stacks = Stacks(
        frames, tuple((index - 1, index) for index in range(8)),
        (StackThread(names[0], 0), StackThread(names[5], None, names[4])), samples, float("inf"), names[0],
    )  # fmt: skip
    return Run(
        name=names[0], status="failed", error=names[4], started=names[5], duration_s=1.0,
        overhead_s=float("nan"), device=replace(sample_device(), name=names[5], id=names[1]),
        environment={names[0]: names[5], "n": 1.5},
        operators=tuple(rows), inferred=(False,) * 8, stage_of=names, span_list=tuple(spans),
        span_stage=dict(enumerate(names)), phase_list=tuple(phases), graph=Graph(tuple(stages), tuple(edges)),
        sampled=stacks, notes=names, deployment={names[0]: names[1]}, text=names[4] + names[5],
    )  # fmt: skip


def hostile_plan() -> Plan:
    plan = sample_plan(HOSTILE_NAMES[0])
    rename = dict(zip((stage.id for stage in plan.graph.stages), HOSTILE_NAMES, strict=False))
    stages = tuple(replace(stage, id=rename[stage.id]) for stage in plan.graph.stages)
    bad = float("nan")
    return replace(
        plan,
        id=HOSTILE_NAMES[4],
        assignment={rename[stage]: HOSTILE_NAMES[1] for stage in plan.assignment},
        latency_s=bad, interval_s=(bad, float("inf")), usd=bad, joules=1e300, bound=bad, gap=float("inf"),
        baselines={name: {"latency_s": bad, "assignment": None, "why_not": name} for name in HOSTILE_NAMES},
        estimates={name: {HOSTILE_NAMES[1]: Estimate(bad, bad, bad, name, name)} for name in HOSTILE_NAMES},
        why=HOSTILE_NAMES,
        graph=Graph(stages, ()),
        solution={"schedule": [
            {"stage": rename["embed"], "device": HOSTILE_NAMES[1], "start_s": bad, "end_s": bad},
            {"stage": rename["search"], "device": HOSTILE_NAMES[1], "start_s": 0.0, "end_s": 1.0},
        ]},
    )  # fmt: skip
