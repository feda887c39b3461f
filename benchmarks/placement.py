"""How good the placements are: published instances with known optima, every answer judged again by ``evaluate``.

    python benchmarks/placement.py --data DIR [--json] [--parts throughput,latency,random,large,exhaustive]
        [--only NAME] [--seconds 60]

DIR holds the files of msr-fiddle/dnn-partitioning (MIT) as ``throughput/*.json`` and ``latency/*.json``. Random
graphs are made by ``graphs.py`` from its seeds. ``applied.py`` applies plans here and measures them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphs import KINDS, SEEDS

from gimlet_lab.advisor import baselines, evaluate, solve
from gimlet_lab.advisor.problem import parse

#: Known values in milliseconds: the contiguous optimum, and the best known or proved without that rule.
KNOWN = {
    "layer_bert24_inference": (17.7899, 17.7147),
    "layer_bert24_training": (41.7458, 39.7895),
    "layer_resnet50_inference": (33.7747, 33.3104),
    "layer_resnet50_training": (78.6318, 76.4817),
    "operator_bert3_inference": (27.9186, 21.9084),
    "operator_bert3_training": (65.3031, 54.2074),
}

#: Known latencies in milliseconds, contiguous: the best known, a human expert's where none is better.
KNOWN_LATENCY = {
    "layer_bert24_inference": 100.2185,
    "layer_resnet50_inference": 1014.927,
    "operator_bert3_inference": 408.474,
}

#: Random graphs: units, devices, seconds.
SIZES = ((10, 4, 30.0), (25, 4, 30.0), (50, 4, 30.0), (200, 8, 60.0), (1000, 8, 60.0))

#: Operators and devices of the largest.
LARGE = (100_000, 8)


def read(path: Path, *, contiguous: bool, seconds: float) -> dict[str, Any]:
    """A throughput instance of dnn-partitioning as ``gimlet.problem/1``."""
    data = json.loads(path.read_text())
    accelerators = [f"accelerator{i}" for i in range(data["maxFPGAs"])]
    cpus = [f"cpu{i}" for i in range(data["maxCPUs"])]
    stages = []
    for node in data["nodes"]:
        options = {name: {"seconds": node["cpuLatency"] / 1e3} for name in cpus}
        if node["supportedOnFpga"]:
            on_one = {"seconds": node["fpgaLatency"] / 1e3, "memory_bytes": node["size"]}
            options |= dict.fromkeys(accelerators, on_one)
        colour = node.get("colorClass")
        stages.append(
            {
                "id": str(node["id"]),
                "options": options,
                "colocate": None if colour is None else str(colour),
                "backward": bool(node["isBackwardNode"]),
            }
        )
    return {
        "schema": "gimlet.problem/1",
        "objective": "throughput",
        "devices": [{"id": name, "memory_bytes": data["maxSizePerFPGA"]} for name in accelerators]
        + [{"id": name, "host": True} for name in cpus],
        "stages": stages,
        "edges": [
            {"from": str(e["sourceId"]), "to": str(e["destId"]), "seconds": e["cost"] / 1e3}
            for e in data["edges"]
        ],
        "transfer": "host",
        "contiguous": contiguous,
        "time_limit_s": seconds,
        "gap": 1e-6,
    }


def read_latency(path: Path, *, seconds: float) -> dict[str, Any]:
    """A latency instance of dnn-partitioning: any number of CPUs, each accelerator one block."""
    data = json.loads(path.read_text())
    accelerators = [f"accelerator{i}" for i in range(data["maxFPGAs"])]
    stages = []
    for node in data["nodes"]:
        options: dict[str, Any] = {"cpu": {"seconds": node["cpuLatency"] / 1e3}}
        if node["supportedOnFpga"]:
            on_one = {"seconds": node["fpgaLatency"] / 1e3, "memory_bytes": node["size"]}
            options |= dict.fromkeys(accelerators, on_one)
        stages.append({"id": str(node["id"]), "options": options})
    return {
        "schema": "gimlet.problem/1",
        "objective": "latency",
        "devices": [{"id": name, "memory_bytes": data["maxSizePerFPGA"]} for name in accelerators]
        + [{"id": "cpu", "host": True, "parallel": True}],
        "stages": stages,
        "edges": [
            {"from": str(e["sourceId"]), "to": str(e["destId"]), "seconds": e["cost"] / 1e3}
            for e in data["edges"]
        ],
        "transfer": "host",
        "contiguous": True,
        "time_limit_s": seconds,
    }


def judged(problem: dict[str, Any]) -> dict[str, Any]:
    """Solve, and believe only what the judge says of the placement."""
    solution = solve(problem)
    verdict = evaluate(problem, solution["assignment"], solution["schedule"] or None)
    assert verdict["feasible"], verdict["violations"]
    return {
        "value": verdict["objective"] * 1e3,
        "bound": solution["bound"] * 1e3,
        "seconds": solution["seconds_spent"],
        "status": solution["status"],
        "method": solution["method"],
    }


def on_random(sizes: Sequence[tuple[int, int, float]], say: Any) -> dict[str, Any]:
    """The worst gap, the time and the least gain over HEFT, m-ETF and greedy, by kind and size."""
    found: dict[str, Any] = {}
    for kind, make in KINDS.items():
        for units, devices, seconds in sizes:
            gaps, gains, took = [], [], []
            for seed in SEEDS:
                problem = make(units, devices, seed, seconds)
                rule = baselines.best(baselines.candidates(parse(problem)))
                answer = judged(problem)
                gaps.append((answer["value"] - answer["bound"]) / answer["value"])
                took.append(answer["seconds"])
                if rule is not None and rule.verdict is not None and rule.verdict.latency_s:
                    gains.append(1 - answer["value"] / 1e3 / rule.verdict.latency_s)
            entry = {"worst_gap": max(gaps), "seconds": max(took), "least_gain": min(gains, default=None)}
            found[f"{kind} {units}"] = entry
            gain = (
                "no rule fits" if entry["least_gain"] is None else f"gain {entry['least_gain']:.1%} or more"
            )
            say(f"{kind:14}{units:6} units: gap {max(gaps):.1%} at most, {gain}, {max(took):.0f} s")
    return found


def on_large(units: int, devices: int, say: Any) -> dict[str, Any]:
    """A plan for the largest graphs beside m-ETF, which takes its own time."""
    found: dict[str, Any] = {}
    for kind, make in KINDS.items():
        problem = make(units, devices, SEEDS[0], 60.0)
        began = time.monotonic()
        answer = judged(problem)
        seconds = time.monotonic() - began
        rule = baselines.earliest_task_first(parse(problem))
        other = rule.verdict.latency_s if rule.verdict is not None and rule.feasible else None
        gain = None if other is None else 1 - answer["value"] / 1e3 / other
        found[kind] = {
            **answer,
            "units": units,
            "m_etf": other and other * 1e3,
            "gain": gain,
            "judged_s": seconds,
        }
        beside = "m-ETF finds no placement" if gain is None else f"{gain:.1%} better than m-ETF"
        bound = answer["bound"]
        say(
            f"{kind:14}{units:7} units: {answer['value']:.0f} ms, bound {bound:.0f}, {beside}, {answer['seconds']:.0f} s"
        )
    return found


def disagreements(graphs: int, say: Any) -> int:
    """Random graphs of up to six stages on which exhaustive search and the solver differ, over objectives."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from advisor_problems import exhaustive, in_process

    wrong = 0
    for objective in ("latency", "throughput", "cost", "energy"):
        for seed in range(graphs):
            kind = list(KINDS)[seed % len(KINDS)]
            problem = KINDS[kind](3 + seed % 3, 2 + seed % 2, seed, 30.0)
            for stage in problem["stages"]:
                for number, option in enumerate(stage["options"].values(), 1):
                    option |= {
                        "usd": option["seconds"] / number,
                        "joules": option["seconds"] * (number % 3 + 1),
                    }
            problem |= {"objective": objective, "gap": 0}
            best, solution = exhaustive(problem), solve(problem, run=in_process, relax=False)
            value = solution["objective"]
            agree = best is value is None or (
                best is not None and value is not None and abs(best - value) <= 1e-6 * abs(best)
            )
            wrong += not agree
    say(f"exhaustive search disagrees on {wrong} of {4 * graphs}")
    return wrong


PARTS = ("throughput", "latency", "random", "large", "exhaustive")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="of the throughput and latency instances")
    parser.add_argument("--parts", default=",".join(PARTS), help="by commas; else all")
    parser.add_argument("--only", default="", help="instances whose name has this in it")
    parser.add_argument("--kind", choices=("contiguous", "free"), help="else both")
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of each instance")
    parser.add_argument("--units", type=int, default=SIZES[-1][0], help="of random graphs, at most")
    parser.add_argument("--large", type=int, default=LARGE[0], help="operators of the largest graph")
    parser.add_argument("--graphs", type=int, default=200, help="searched exhaustively, for each objective")
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    parts = options.parts.split(",")
    wrong = [part for part in parts if part not in PARTS]
    if wrong:
        parser.error(f"no part {wrong[0]!r}: {', '.join(PARTS)}")
    if options.data is None and {"throughput", "latency"} & set(parts):
        parser.error("throughput and latency need --data DIR")

    def say(line: str) -> None:
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    result: dict[str, Any] = {}
    if "throughput" in parts:
        result["throughput"] = on_throughput(options, say)
    if "latency" in parts:
        result["latency"] = on_latency(options, say)
    if "random" in parts:
        result["random"] = on_random([size for size in SIZES if size[0] <= options.units], say)
    if "large" in parts:
        result["large"] = on_large(options.large, LARGE[1], say)
    if "exhaustive" in parts:
        result["exhaustive_disagreements"] = disagreements(options.graphs, say)
    if options.json:
        print(json.dumps(result))


def on_latency(options: argparse.Namespace, say: Any) -> dict[str, Any]:
    """The published latency instances."""
    found = {}
    for path in sorted((options.data / "latency").glob("*.json")):
        if options.only in path.stem:
            answer = judged(read_latency(path, seconds=options.seconds))
            known = KNOWN_LATENCY.get(path.stem)
            gap = (answer["value"] - answer["bound"]) / answer["value"]
            found[path.stem] = {**answer, "known": known, "gap": gap}
            say(
                f"{path.stem:28}latency   {answer['value']:10.4f} ms, bound {answer['bound']:.4f}, "
                f"known {known}, {answer['seconds']:.1f} s, {answer['method']}"
            )
    return found


def on_throughput(options: argparse.Namespace, say: Any) -> dict[str, dict[str, Any]]:
    """The published throughput instances."""
    throughput: dict[str, dict[str, Any]] = {}
    for path in sorted((options.data / "throughput").glob("*.json")):
        if options.only not in path.stem:
            continue
        found = throughput[path.stem] = {}
        for kind, known in zip(("contiguous", "free"), KNOWN.get(path.stem, (None, None)), strict=True):
            if options.kind not in (None, kind):
                continue
            problem = read(path, contiguous=kind == "contiguous", seconds=options.seconds)
            found[kind] = {**judged(problem), "known": known}
            answer = found[kind]
            say(
                f"{path.stem:28}{kind:12}{answer['value']:10.4f} ms, bound {answer['bound']:.4f}, "
                f"known {known}, {answer['seconds']:.1f} s, {answer['method']}"
            )
    return throughput


if __name__ == "__main__":
    main()
