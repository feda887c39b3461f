"""On a real GPU: does the device's time reach the run, what does profiling cost, how far off are the estimates?

    python benchmarks/accelerator.py [--pairs 5] [--json]

``kernels``: estimates of the fitted model for the catalogue's entry of this card beside kernels timed by the card
(cold L2, median of 12). ``capture``: a decoder's ``generate`` bare and under a profile, in turns, and the seconds
of kernels that the run has for it beside those that ``torch.profiler`` has. ``meters``: bytes counted beside those
that the card's memory says it moved. Needs ``transformers``; nothing of it runs on a CPU.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

import gimlet_lab as gimlet
from gimlet_lab.capture.activities import TorchActivities
from gimlet_lab.capture.intervals import seconds
from gimlet_lab.hardware.accelerators import lookup
from gimlet_lab.hardware.meters.nvidia import NvidiaMeter

F = torch.nn.functional
TRIES = 12

Shape = dict[str, Any]


def shapes(rng: random.Random) -> Iterator[tuple[Shape, Callable[[], Any]]]:
    """Kernels of decoders and encoders: what they are, and a call that launches one."""

    def made(*size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*size, device="cuda", dtype=dtype)

    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        for _ in range(60):
            m = 2 ** rng.randrange(14)
            n, k = (
                rng.choice((1024, 2048, 4096, 5120, 11008, 14336, 28672)),
                rng.choice((1024, 2048, 4096, 8192, 14336)),
            )
            if dtype == torch.float32 and m * n * k > 1e12:
                continue
            x, w = made(m, k, dtype=dtype), made(n, k, dtype=dtype)
            yield {"op": "gemm", "m": m, "n": n, "k": k, "dtype": name}, lambda x=x, w=w: F.linear(x, w)
    for _ in range(30):
        b, m = rng.choice((8, 32, 64, 128)), rng.choice((128, 256, 512, 1024, 2048))
        n, k = rng.choice((128, 512, 1024, 2048)), rng.choice((64, 128, 512))
        x, w = made(b, m, k), made(b, k, n)
        yield {"op": "bmm", "b": b, "m": m, "n": n, "k": k}, lambda x=x, w=w: torch.bmm(x, w)
    for batch, heads, kv_heads, length, dim in (
        (1, 32, 8, 512, 128), (1, 32, 8, 2048, 128), (4, 32, 8, 2048, 128), (1, 32, 8, 8192, 128),
        (8, 32, 32, 1024, 128), (2, 64, 8, 4096, 128), (1, 16, 16, 4096, 64), (16, 12, 12, 512, 64),
    ):  # fmt: skip
        for op, rows in (("attention_prefill", length), ("attention_decode", 1)):
            q = made(batch, heads, rows, dim)
            k, v = made(batch, kv_heads, length, dim), made(batch, kv_heads, length, dim)
            shape = {
                "op": op, "batch": batch, "heads": heads, "kv_heads": kv_heads, "q_len": rows, "kv_len": length,
                "head_dim": dim,
            }  # fmt: skip
            yield (
                shape,
                lambda q=q, k=k, v=v: F.scaled_dot_product_attention(
                    q, k, v, is_causal=q.shape[2] > 1, enable_gqa=q.shape[1] != k.shape[1]
                ),
            )
    for rows, cols in ((1, 4096), (64, 4096), (2048, 4096), (8192, 8192), (16384, 14336)):
        x, y, w = made(rows, cols), made(rows, cols), made(cols)
        grid = {"rows": rows, "cols": cols}
        yield {"op": "elementwise", "elements": rows * cols, "inputs": 2}, lambda x=x, y=y: x + y
        yield {"op": "elementwise", "elements": rows * cols}, lambda x=x: F.silu(x)
        yield {"op": "softmax", **grid}, lambda x=x: torch.softmax(x, -1)
        yield {"op": "layer_norm", **grid}, lambda x=x, w=w, c=cols: F.layer_norm(x, (c,), w, w)


def kernels() -> dict[str, Any]:
    """Estimates beside measured kernels, by op and dtype."""
    device = lookup(torch.cuda.get_device_name(0))
    if device is None:
        return {}
    flush = torch.empty(2**26, device="cuda")
    found: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for shape, call in shapes(random.Random(1)):
        call()
        source = TorchActivities(torch, time.perf_counter)
        source.start()
        for number in range(TRIES):
            flush.zero_()
            with source.mark(number):
                call()
        took = [seconds(worked) for worked in source.stop()().values()]
        estimate = gimlet.estimate({"dtype": "bfloat16", **shape}, device, "model")
        if took and estimate is not None:
            took_s = statistics.median(took)
            within = estimate.low <= took_s <= estimate.high
            found[f"{shape['op']} {shape.get('dtype', 'bfloat16')}"].append(
                (estimate.seconds / took_s - 1, within)
            )
    return {
        name: {
            "kernels": len(errors),
            "mean_error": statistics.mean(abs(error) for error, _ in errors),
            "median_error": statistics.median(abs(error) for error, _ in errors),
            "bias": statistics.mean(error for error, _ in errors),
            "interval_coverage": statistics.mean(within for _, within in errors),
        }
        for name, errors in found.items()
    }


def decoder() -> Callable[[], Any]:
    """A decoder of four billion weights and eight prompts of 2,048 tokens; 64 tokens each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, eos_token_id=None,
    )  # fmt: skip
    with torch.device("cuda"):
        llm = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    prompts = torch.randint(0, 32000, (8, 2048), device="cuda")

    def generate() -> None:
        llm.generate(prompts, max_new_tokens=64, do_sample=False)
        torch.cuda.synchronize()

    return generate


def capture(pairs: int) -> dict[str, Any]:
    """What profiling costs, and the seconds of kernels that the run knows of."""
    generate = decoder()
    generate()
    ratios, overheads = [], []
    for _ in range(pairs):
        began = time.perf_counter()
        generate()
        bare_s = time.perf_counter() - began
        with gimlet.profile("generate") as recorder:
            began = time.perf_counter()
            generate()
            profiled_s = time.perf_counter() - began
        ratios.append(profiled_s / bare_s)
        overheads.append(recorder.run.overhead_s / bare_s)
    run = recorder.run
    with torch.profiler.profile() as theirs:
        generate()
    kernel_s = 1e-9 * sum(
        event.duration_ns()
        for event in theirs.profiler.kineto_results.events()
        if not str(event.device_type()).endswith("CPU") and not event.is_user_annotation()
    )
    ours_s = sum(
        op.duration_s
        for op, stage in zip(run.operators, run.stage_of, strict=True)
        if op.device.startswith("cuda") and stage is not None
    )
    return {
        "ratio": statistics.median(ratios),
        "ratios": sorted(ratios),
        "said_overhead": statistics.median(overheads),
        "kernels_over_theirs": ours_s / kernel_s,
        "stages": {
            stage.id: {"bound": stage.bound, "call_s": stage.call_s, "joules": stage.joules}
            for stage in run.graph.stages
        },
    }


def meters() -> dict[str, float]:
    """Bytes that a copy must move over those that the card's memory says it moved."""
    probes, _ = NvidiaMeter().open()
    source, target = (torch.zeros(2**30, device="cuda") for _ in range(2))
    ratios = []
    for probe in probes:
        probe.read(time.monotonic())
        for _ in range(4):
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < 1.0:
                for _ in range(20):
                    target.copy_(source)
                torch.cuda.synchronize()
                count += 20
            rate = count * 2 * source.nbytes / (time.perf_counter() - began)
            said = probe.read(time.monotonic())[probe.devices[0]].get("dram_bytes_per_s")
            if said:
                ratios.append(rate / said)
    return {"counted_over_metered": statistics.median(ratios[1:])} if len(ratios) > 1 else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU that torch can use: this measures one")
    with torch.no_grad():
        result = {
            "device": torch.cuda.get_device_name(0),
            "torch": torch.__version__,
            "meters": meters(),
            "kernels": kernels(),
            "capture": capture(options.pairs),
        }
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
