"""Plans over a Ray cluster of this machine: nodes in network namespaces, their links and cores held back.

``fast`` has a core of its own and 1 Gbit/s, ``slow`` a quota of half a core and 200 Mbit/s, ``near`` the same core
as ``fast`` and 10 Gbit/s; the notebook keeps to the other core. Needs root (namespaces, control groups).

    python benchmarks/cluster.py [--only overhead transfer equality latency throughput faults] [--json]

``stage_overhead_ms``: what a stage's call costs over a bare actor call, medians of interleaved rounds.
``transfer_ratio``: seconds that a bare ``ray.put`` and ``get`` of a 100 MB tensor take there and back, over ours.
``equality``: prompts whose tokens differ, split over two nodes, and while decode's worker is killed.
``latency``, ``throughput``: predicted and measured, and the gain over the best of three placements.
``faults``: of ``tests/chaos.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from agent import execute
from shaped import Shape, cluster

ROOT = Path(__file__).parents[1]
SHAPES = {
    "fast": Shape("1", "1gbit"),
    "slow": Shape("1", "200mbit", 0.5),
    "near": Shape("1", "10gbit"),
}
CONNECT = """
import json, statistics, time
import gimlet_lab as gimlet
%load_ext gimlet_lab
%gimlet connect ray {address}
"""

SECONDS = """
def seconds(call):
    started = time.perf_counter(); call(); return time.perf_counter() - started
"""
OVERHEAD = """
import ray, torch
from gimlet_lab.backends.ray import backend as _backend

@ray.remote
class Bare:
    def same(self, x): return x

@gimlet.stage(pure=True)
def same(x): return x

node = gimlet.fleet()["near/cpu"].node
bare = Bare.options(**_backend._connected[-1].on(node)).remote()
"""
OVERHEAD_PLAN = """
%%gimlet -o run --quiet
same(1)
"""
SMALL = """
rounds = []
for _ in range(20):
    ours = statistics.median(seconds(lambda: same(1)) for _ in range(50))
    theirs = statistics.median(seconds(lambda: ray.get(bare.same.remote(1))) for _ in range(50))
    rounds.append(1e3 * (ours - theirs))
print(json.dumps({"rounds_ms": rounds}))
"""
LARGE = """
x = torch.randn(25_000_000)

@gimlet.stage(pure=True)
def more(x): return x + 1

@ray.remote
class More:
    def more(self, x): return x + 1

bare_more = More.options(**_backend._connected[-1].on(node)).remote()
"""
LARGE_PLAN = """
%%gimlet -o run --quiet
more(x)
"""
LARGE_MEASURE = """
rounds = {"ours": [], "bare": []}
for _ in range(6):
    rounds["ours"].append(seconds(lambda: more(x)))
    rounds["bare"].append(seconds(lambda: ray.get(bare_more.more.remote(ray.put(x)))))
print(json.dumps({name: times[1:] for name, times in rounds.items()}))
"""

LLM = """
import os, signal, threading, torch
from models import load_llm
tokenizer, llm = load_llm()
torch.set_num_threads(1)

def generate(prompt, new=16):
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        return llm.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False).tolist()

topics = ["light", "sea", "wind", "ship", "stone", "fog", "tide", "lamp", "coast", "night"]
prompts = [f"Write {n} sentences on the {topic} of a lighthouse." for n in range(1, 6) for topic in topics]
"""
EQUAL = """
expected = [generate(prompt) for prompt in prompts]
%gimlet apply split
"""
EQUAL_MEASURE = """
from gimlet_lab import notebook
differ = sum(generate(prompt) != tokens for prompt, tokens in zip(prompts, expected))
decoding = notebook.current().deployment._places["near/cpu"]
killed = wrong = 0
for prompt, tokens in list(zip(prompts, expected))[::5]:
    pid = ray.get(decoding._actor.ready.remote())
    timer = threading.Timer(0.6, lambda pid=pid: os.kill(pid, signal.SIGKILL))
    timer.start()
    wrong += generate(prompt) != tokens
    timer.join()
    killed += 1
    notebook.current().deployment.refresh()
print(json.dumps({"prompts": len(prompts), "differ": differ, "killed": killed, "differ_killed": wrong}))
"""

BRANCHES = """
import torch
torch.set_num_threads(1)
wide = torch.randn(700, 700)

def grind(x, turns):
    for _ in range(turns):
        x = torch.tanh(x @ x / 700)
    return x

@gimlet.stage(pure=True)
def left(x): return grind(x, 40).sum().item()

@gimlet.stage(pure=True)
def right(x): return grind(x, 36).mean().item()

@gimlet.stage(pure=True)
def ahead(x): return grind(x, 6)

def work():
    x = ahead(wide)
    a = left(x)
    b = right(x)
    return a + b
work()
"""

REQUESTS = """
from concurrent.futures import ThreadPoolExecutor

notes = " ".join(f"Lamp {n} is seen {3 * n % 29} miles off." for n in range(24))

def serve(count=8):
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda prompt: generate(notes + prompt, 10), prompts[:count]))
"""

WAYS = """
import random
stages = {stages!r}
fleet = {fleet!r}
places = {{"plan": {{}}, "driver": dict.fromkeys(stages, "cpu"), "fastest": dict.fromkeys(stages, "fast/cpu"),
          "random": {{stage: random.Random(3).choice(fleet.split()) for stage in stages}}}}
plans = {{name: gimlet.advise(run, gimlet.fleet(*fleet.split()), pin=pin or None, **{options}) for name, pin in places.items()}}
taken = {{name: [] for name in plans}}
for _ in range({rounds}):
    for name, one in plans.items():
        with gimlet.apply(one):
            {call}
            taken[name].append(seconds(lambda: {call}))
print(json.dumps({{"predicted": {{n: {predicted} for n, p in plans.items()}}, "seconds": taken,
                  "assignment": {{n: dict(p.assignment) for n, p in plans.items()}}}}))
"""


def overhead(connect: str) -> dict:
    plan = "%gimlet advise run --pin same=near/cpu -o there\n%gimlet apply there"
    found = execute([connect, SECONDS, OVERHEAD, OVERHEAD_PLAN, plan, "for _ in range(50): same(1)", SMALL])
    return {"stage_overhead_ms": statistics.median(found["rounds_ms"]), **found}


def transfer(connect: str) -> dict:
    plan = "%gimlet advise run --pin more=near/cpu -o there\n%gimlet apply there"
    found = execute([connect, OVERHEAD, LARGE, LARGE_PLAN, plan, LARGE_MEASURE])
    ratios = [bare / ours for bare, ours in zip(found["bare"], found["ours"], strict=True)]
    return {"transfer_ratio": statistics.median(ratios), "ratios": ratios, **found}


def equality(connect: str) -> dict:
    plan = "%gimlet advise run --pin prefill=fast/cpu --pin decode=near/cpu -o split"
    return execute(
        [
            connect,
            LLM,
            "import ray",
            "%%gimlet -o run --quiet\ngenerate(prompts[0])",
            plan,
            EQUAL,
            EQUAL_MEASURE,
        ]
    )


def latency(connect: str) -> dict:
    ways = WAYS.format(
        stages=["ahead", "left", "right"], options={}, rounds=5, call="work()", predicted="p.latency_s",
        fleet="cpu fast/cpu slow/cpu near/cpu",
    )  # fmt: skip
    return gains(execute([connect, BRANCHES, "%%gimlet -o run --quiet\nwork()", SECONDS, ways]))


def throughput(connect: str) -> dict:
    # Only what has a core of its own here: two nodes on one core would be planned as two.
    ways = WAYS.format(
        stages=["prefill", "decode"], options={"objective": "throughput"}, rounds=3, call="serve()",
        predicted='8 * p.solution["objective"]', fleet="cpu fast/cpu",
    )  # fmt: skip
    request = "%%gimlet -o run --quiet\ngenerate(notes + prompts[0], 10)"
    cells = [connect, LLM, REQUESTS, request, request, SECONDS, ways]
    return gains(execute(cells))


def gains(found: dict) -> dict:
    measured = {name: statistics.median(times) for name, times in found["seconds"].items()}
    others = min(measured[name] for name in ("driver", "fastest", "random"))
    error = abs(found["predicted"]["plan"] - measured["plan"]) / measured["plan"]
    return {"predicted_error": error, "gain": others / measured["plan"], "measured": measured, **found}


def faults(_connect: str) -> dict:
    command = [sys.executable, str(ROOT / "tests" / "chaos.py"), "--runs", "200", "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[-1])[
        "faults"
    ]


PARTS = {part.__name__: part for part in (overhead, transfer, equality, latency, throughput, faults)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    result: dict = {}
    if set(options.only) - {"faults"}:
        with cluster(SHAPES) as address:
            os.sched_setaffinity(0, {0})  # the notebook's core; its kernel inherits it
            os.environ["OMP_NUM_THREADS"] = "1"
            for name in options.only:
                if name != "faults":
                    result[name] = PARTS[name](CONNECT.format(address=address))
                    print(
                        name,
                        {k: v for k, v in result[name].items() if not isinstance(v, list | dict)},
                        file=sys.stderr,
                    )
    if "faults" in options.only:
        result["faults"] = faults("")
    keys = {
        "stage_overhead_ms": ("overhead", "stage_overhead_ms"),
        "transfer_ratio": ("transfer", "transfer_ratio"),
        "predicted_error": ("latency", "predicted_error"),
        "gain_latency": ("latency", "gain"),
        "gain_throughput": ("throughput", "gain"),
    }
    result |= {key: result[part][value] for key, (part, value) in keys.items() if part in result}
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
