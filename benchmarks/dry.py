"""What a dry run costs: Llama-3.1-70B, 4,096 tokens of prefill and a decode step, each time in a new process.

Wall time and CPU time from the start of Python to the finished run, and the most memory the process ever held.

    python benchmarks/dry.py [--model llama-3.1-70b] [--prompt 4096] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

_ONE = """
import sys
import torch
torch.set_num_threads(1)
import gimlet_lab as gimlet
run = gimlet.dry_run(sys.argv[1], prompt_tokens=int(sys.argv[2]), new_tokens=2, device="h100-sxm")
assert run.status == "ok" and [stage.calls for stage in run.graph.stages] == [1, 1], run.notes
print(run.weight_bytes)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama-3.1-70b")
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one object only")
    options = parser.parse_args()

    wall: list[float] = []
    cpu: list[float] = []
    weights = 0
    for number in range(options.rounds):
        before, started = _children_cpu_s(), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _ONE, options.model, str(options.prompt)],
            check=True,
            capture_output=True,
            text=True,
        )
        wall.append(time.perf_counter() - started)
        cpu.append(_children_cpu_s() - before)
        weights = int(done.stdout)
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    # Linux counts in KiB; the largest of all children, which did all the same.
    peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    result = {
        "dry_70b_s": statistics.median(wall),
        "dry_70b_range_s": [min(wall), max(wall)],
        "dry_70b_cpu_s": statistics.median(cpu),
        "dry_70b_cpu_range_s": [min(cpu), max(cpu)],
        "dry_70b_gib": peak_gib,
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{options.model}, {weights / 1e9:.0f} GB of weights, {options.prompt:,} tokens and a decode step:")
    print(f"{statistics.median(wall):.1f} s ({min(wall):.1f} – {max(wall):.1f}), CPU", end=" ")
    print(f"{statistics.median(cpu):.1f} s ({min(cpu):.1f} – {max(cpu):.1f}), {peak_gib:.2f} GiB")


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
