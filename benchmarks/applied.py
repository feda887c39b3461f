"""Plans applied on two CPU slices of this machine and measured: is the prediction right, and the ranking kept?

The demo's agent and three graphs of this file are profiled once in a kernel of their own. For each, the plan and two
others (all heavy stages on one slice, and forced apart) are predicted from that profile, applied and measured in turns.

    python benchmarks/applied.py [--rounds 5] [--only chain] [--json]

``applied_error_max``: the largest error of a predicted makespan against the median of its rounds. ``ranking_kept``:
whether any two plans whose predictions differ by more than 15% rank when measured as they were predicted to.
Timings mean something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys

from agent import demo_cells, execute

#: Differences that count: closer predictions have no order.
APART = 0.15

HEAD = """
%load_ext gimlet_lab
import torch
torch.manual_seed(0)
wide = torch.randn(1200, 1200)
deep = torch.randn(900, 900)
def grind(x, weights, turns):
    for _ in range(turns):
        x = torch.tanh(x @ weights / 30)
    return x
"""

#: Graphs by name: what they define, what is called, and which stages are heavy.
GRAPHS = {
    "chain": (
        """
def first(x):
    return grind(x, wide, 12)
def second(x):
    return grind(x, wide, 8)
def third(x):
    return grind(x, wide, 4)
def work():
    return float(third(second(first(wide))).sum())
""",
        "work()",
        ("first", "second", "third"),
    ),
    "fan": (
        """
def left(x):
    return grind(x, wide, 8)
def right(x):
    return grind(x, deep, 14)
def join(a, b):
    return float(a.sum() + b.sum())
def work():
    return join(left(wide), right(deep))
""",
        "work()",
        ("left", "right", "join"),
    ),
    "loop": (
        """
def step(x):
    return grind(x, deep, 3)
def look(x):
    return float(x.abs().mean())
def work():
    x, seen = deep, []
    for _ in range(6):
        x = step(x)
        seen.append(look(x))
    return round(sum(seen), 3)
""",
        "work()",
        ("step", "look"),
    ),
}

PROFILE = "%%gimlet -o run --quiet\n{call}"
PLAN = """
import json as _json
_seconds = {{"plan": [], "one": [], "apart": []}}
%gimlet advise run --on "cpu cpu/0 cpu/1" -o plan
%gimlet advise run --on "cpu cpu/0 cpu/1" {one} -o one
%gimlet advise run --on "cpu cpu/0 cpu/1" {apart} -o apart
"""
MEASURE = "%%gimlet -o _run --quiet\n{call}"
REPORT = """
print(_json.dumps({
    "predicted": {"plan": plan.latency_s, "one": one.latency_s, "apart": apart.latency_s},
    "seconds": _seconds,
}))
"""


def cells(name: str, rounds: int) -> list[str]:
    """A notebook that profiles a graph once, plans it three ways, and measures each in every round."""
    if name == "agent":
        *setup, first = demo_cells()
        call, heavy = "agent(question)", ("prefill", "decode")
        found = [*setup, first, PROFILE.format(call=call)]
    else:
        source, call, heavy = GRAPHS[name]
        found = [HEAD + source, call, PROFILE.format(call=call)]
    one = " ".join(f"--pin {stage}=cpu/0" for stage in heavy)
    apart = " ".join(f"--pin {stage}=cpu/{number % 2}" for number, stage in enumerate(heavy))
    found.append(PLAN.format(one=one, apart=apart))
    for _ in range(rounds):
        for way in ("plan", "one", "apart"):
            found += [f"%gimlet apply {way}", MEASURE.format(call=call)]
            found += [f'_seconds["{way}"].append(_run.net_s)', "%gimlet rollback"]
    return [*found, REPORT]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("agent", *GRAPHS), help="else all four")
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    result: dict = {"applied": {}}
    errors: list[float] = []
    kept = True
    for name in [options.only] if options.only else ["agent", *GRAPHS]:
        found = execute(cells(name, options.rounds))
        measured = {way: statistics.median(rounds) for way, rounds in found["seconds"].items()}
        predicted = found["predicted"]
        error = {way: abs(predicted[way] - measured[way]) / measured[way] for way in measured}
        errors += error.values()
        for a, b in itertools.combinations(measured, 2):
            if abs(predicted[a] - predicted[b]) > APART * max(predicted[a], predicted[b]):
                kept &= (predicted[a] < predicted[b]) == (measured[a] < measured[b])
        result["applied"][name] = {"predicted_s": predicted, "seconds": found["seconds"], "error": error}
        for way in measured:
            line = f"{name:8}{way:8}predicted {predicted[way]:.3f} s, measured {measured[way]:.3f} s, {error[way]:.1%} off"
            print(line, file=sys.stderr if options.json else sys.stdout)
    result |= {"applied_error_max": max(errors), "ranking_kept": kept}
    print(json.dumps(result) if options.json else f"largest error {max(errors):.1%}, ranking kept: {kept}")


if __name__ == "__main__":
    main()
