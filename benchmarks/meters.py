"""What the devices' meters cost, and whether they hold on bad days.

Three groups: `faults` runs what vendors' libraries do on bad days (tests/meter_faults.py: their own Python
bindings over libraries that stand in for drivers), `meters` a decode loop bare and with the meters read ten
times a second: on a machine without cards, and on one of eight stand-in cards, there beside nvitop's collector
at the same rate where it is installed (`pip install --no-deps --target DIR nvitop`, DIR in PEERS). No real card
is read by either. `stacks` is `stacks.py`, what sampling stacks costs beside py-spy (and Scalene, with --peers), and how
well it tells where time went.

Each round runs every variant once, in a new order; a ratio is against the bare run of the same round.

    python benchmarks/meters.py [--only faults|meters|stacks] [--rounds 9] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
for folder in ("tests", "examples"):
    sys.path.insert(0, str(HERE.parents[1] / folder))

CARDS = 8
TOKENS = 24


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=GROUPS, help="one group of figures")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peers", metavar="DIR", help="where Scalene is (see stacks.py)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.rounds)))
        return
    result: dict[str, Any] = {}
    for name, group in GROUPS.items():
        if options.only in (None, name):
            result |= group(options)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    if "faults_passed" in result:
        print(f"bad days: {result['faults_passed']} of {result['faults']} as they must be")
        print("".join(f"  failed: {name}\n" for name in result["faults_failed"]), end="")
    for machine, rows in result.get("meters_overhead", {}).items():
        for name, row in rows.items():
            low, high = row["cpu_range"]
            own = "" if row["own_cpu"] is None else f", of its own threads {row['own_cpu']:.2%} of a core"
            print(f"{machine:10} {name:20} CPU {row['cpu_ratio']:.3f} ({low:.3f} – {high:.3f}){own}")
    if "attribution_error_max" in result:
        cpu, wall = result["overhead"]["cpu_ratio"], result["overhead"]["wall_ratio"]
        print(
            f"stacks: CPU {cpu:.3f}, wall {wall:.3f} times; {result['attribution_error_max']:.1f} points off at most"
        )


def faults(_options: argparse.Namespace) -> dict[str, Any]:
    """How many bad days end as they must."""
    import meter_faults

    failed = []
    for fault in meter_faults.faults():
        try:
            fault.passes()
        except (AssertionError, subprocess.SubprocessError) as error:
            failed.append(f"{fault.name}: {' '.join(str(error).split())[:200]}")
    total = len(meter_faults.faults())
    return {"faults_passed": total - len(failed), "faults": total, "faults_failed": failed}


def meters(options: argparse.Namespace) -> dict[str, Any]:
    """What reading costs, in processes with and without cards."""
    from fake_drivers import environment

    command = [sys.executable, str(HERE), "--measure", "--rounds", str(options.rounds)]
    result = {}
    for name, cards in {"no card": None, f"{CARDS} cards": f"devices={CARDS} nvlink=1"}.items():
        own = environment(cards)
        if cards is not None:
            own["PYTHONPATH"] += os.pathsep + os.environ.get("PEERS", "")
        done = subprocess.run(command, env=own, stdout=subprocess.PIPE, text=True, check=True)
        result[name] = json.loads(done.stdout.splitlines()[-1])
    return {"meters_overhead": result}


def stacks(options: argparse.Namespace) -> dict[str, Any]:
    """What sampling costs and tells."""
    more = ["--peers", options.peers] if options.peers else []
    command = [
        sys.executable,
        str(HERE.with_name("stacks.py")),
        "--json",
        "--rounds",
        str(options.rounds),
        *more,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


GROUPS = {"faults": faults, "meters": meters, "stacks": stacks}


def measure(rounds: int) -> dict[str, Any]:
    """The ratios, measured in this process."""
    import torch
    from models import load_llm

    from gimlet_lab.hardware.meters import Record, shared

    torch.set_num_threads(1)
    _, llm = load_llm()
    ids = torch.randint(0, llm.config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(0))
    spent: dict[str, float] = {}

    def generate() -> None:
        with torch.inference_mode():
            llm.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=TOKENS,
                min_new_tokens=TOKENS,
                do_sample=False,
            )

    @contextmanager
    def meters() -> Iterator[None]:
        before = shared().cpu_s
        with shared().subscribe(sink=Record().add):
            yield
        spent["meters"] = shared().cpu_s - before

    @contextmanager
    def nothing() -> Iterator[None]:
        yield

    variants: dict[str, Callable[[], Any]] = {"bare": nothing, "meters": meters}
    try:
        from nvitop import Device, ResourceMetricCollector
    except ImportError:
        print("nvitop is not installed: not compared", file=sys.stderr)
    else:

        @contextmanager
        def nvitop() -> Iterator[None]:
            collector = ResourceMetricCollector(Device.all(), interval=0.1)
            going = [True]
            thread = collector.daemonize(lambda _metrics: going[0], interval=0.1)
            yield
            going[0] = False
            thread.join()

        variants["nvitop's collector"] = nvitop

    for variant in variants.values():
        with variant():
            generate()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    own: list[float] = []
    order, shuffle = list(variants), random.Random(0)
    for number in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            with variants[name]():
                wall, cpu = time.perf_counter(), time.process_time()
                generate()
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            if name == "meters":
                own.append(spent["meters"] / taken[name][-1][0])
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    result = {}
    for name, times in taken.items():
        wall = [mine[0] / bare[0] for mine, bare in zip(times, taken["bare"], strict=True)]
        cpu = [mine[1] / bare[1] for mine, bare in zip(times, taken["bare"], strict=True)]
        result[name] = {
            "wall_ratio": statistics.median(wall),
            "wall_range": [min(wall), max(wall)],
            "cpu_ratio": statistics.median(cpu),
            "cpu_range": [min(cpu), max(cpu)],
            "own_cpu": statistics.median(own) if name == "meters" else None,
            "median_s": statistics.median(each[0] for each in times),
        }
    return result


if __name__ == "__main__":
    main()
