"""A run of a million operators: how long until it is analysed, saved and loaded again, and how large it is.

The recording is made up: 400 calls of one model, prefill and decode, of 2,500 operators each, all looked at,
every row different in time. Reported are CPU seconds of this process for analysis with the display form, saving
and loading; the size of the file; and the size of what the notebook keeps below the cell (all of its forms).

    python benchmarks/scale.py [--operators 1000000] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import resource
import statistics
import tempfile
import time
from pathlib import Path

from gimlet_lab.assembly import assemble
from gimlet_lab.model import Device, ModuleInfo, Op, Quantity, Recording, Run, Span, Work
from gimlet_lab.progress import silent
from gimlet_lab.render.bundle import run_bundle

CALL = 2500


def recording(operators: int) -> Recording:
    """What capture with ``--exact`` would have seen."""
    works = [Work.of("gemm", "bfloat16", m=1, n=4096 + 64 * number, k=4096) for number in range(24)]
    calls, clock = operators // CALL, random.Random(0)
    spans, ops, now = [Span(0, "cell", "cell", 0.0, 0.0)], [], 0.0
    for number in range(1, calls + 1):
        began = now
        q_len = 512 if number % 100 == 1 else 1
        for index in range(CALL):
            work = works[index % 24] if index % 3 else None
            took = 4e-6 + 1e-6 * clock.random()
            size = 8192.0 * (1 + index % 24)
            module = f"model.layers.{index // 80}.mlp"
            ops.append(
                Op(
                    f"aten::op{index % 61}",
                    number,
                    module,
                    work,
                    now,
                    took,
                    2 * size if work else None,
                    size,
                    64.0,
                    "bfloat16",
                    "cpu",
                    weight_bytes=size,
                )
            )
            now += took + 1e-6 * clock.random()
        attributes = {"batch": 1, "q_len": q_len, "past_len": (number - 1) % 100, "look_overhead_s": 0.0}
        role = "prefill" if q_len > 1 else "decode"
        signature = f"ids[1,{q_len}]"
        spans.append(
            Span(
                number, "Llama", "module", began, now - began, 0, 0, role, "llm", signature, True, attributes
            )
        )
    spans[0] = Span(0, "cell", "cell", 0.0, now)
    return Recording(
        tuple(spans), tuple(ops), modules=(ModuleInfo("llm", "Llama", {"llm": 10**9}, "bfloat16", "cpu"),)
    )


def device() -> Device:
    def known(value: float) -> Quantity:
        return Quantity(value, "made up", "2026-01-01", "measured")

    return Device(
        "cpu",
        "made up",
        "made up",
        "cpu",
        achieved_flops={"bfloat16": known(2e11), "float32": known(1e11)},
        achieved_bandwidth_bytes_per_s=known(1e10),
        copy_bandwidth_bytes_per_s=known(1e10),
        launch_s=known(2e-6),
    )


def assembled(made: Recording) -> Run:
    """The run of such a recording, as if it had been made on the made up device."""
    return assemble(
        made,
        name="scale",
        started="2026-01-01T00:00:00Z",
        text=None,
        progress=silent,
        device=device(),
        made_in={},
    )


def output_bytes(run: Run) -> int:
    """What one profiled cell adds to a saved notebook."""
    forms = {
        name: base64.b64encode(form).decode() if isinstance(form, bytes) else form
        for name, form in run_bundle(run).items()
    }
    return len(json.dumps(forms))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operators", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    made = recording(options.operators)
    steps: dict[str, list[float]] = {"analyse": [], "save": [], "load": []}
    size = shown = 0
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            run = assembled(made)
            steps["analyse"].append(time.process_time() - began)
            began = time.process_time()
            path = run.save(Path(folder) / "run")
            steps["save"].append(time.process_time() - began)
            size = path.stat().st_size
            began = time.process_time()
            loaded = Run.load(path)
            steps["load"].append(time.process_time() - began)
            assert len(loaded.operators) == len(made.ops)
            shown = output_bytes(loaded)
    totals = [sum(each) for each in zip(*steps.values(), strict=True)]
    result = {
        "million_ops_s": round(statistics.median(totals), 2),
        "million_ops_s_low": round(min(totals), 2),
        "million_ops_s_high": round(max(totals), 2),
        **{f"{name}_s": round(statistics.median(each), 2) for name, each in steps.items()},
        "million_ops_mb": round(size / 1e6, 1),
        "output_kb": round(shown / 1e3, 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "operators": len(made.ops),
        "rounds": options.rounds,
    }
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<20} {value}")


if __name__ == "__main__":
    main()
