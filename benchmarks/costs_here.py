"""Predicted beside measured on this machine, stage by stage, for the demo's agent in a real kernel.

Calibrates in a fresh cache folder, executes the set-up of ``examples/agent.ipynb`` and profiles the agent once more
than asked for. The first run is predicted by the model and the calibration alone (``model_error``); from it on, each
run is predicted before it begins from the runs before it (``here_stage_error``). An error is |predicted − measured| /
measured of one call of a stage; a run's is the mean over its stages, as is the mean over the runs.

With ``--cpu-time`` calibration and profiles count processor seconds of one thread instead of the wall's: what a
machine shared with others would take if it were not.

    python benchmarks/costs_here.py [--rounds 5] [--long] [--cpu-time] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile

import agent

CPU_TIME = """
import functools as _functools, time as _time
import gimlet_lab.profiling as _profiling
from gimlet_lab.hardware import machine as _machine, measurement as _measurement
torch.set_num_threads(1)
_measurement.measure = _functools.partial(_measurement.measure, clock=_time.process_time)
_profiling.Profile.__init__.__kwdefaults__["clock"] = _time.process_time
_machine.Load.others = lambda self: 0.0
"""
# Only now: the demo keeps its models and its embedded corpus in the cache folder of before.
CALIBRATE = """
import os as _os
_os.environ["GIMLET_LAB_CACHE"] = {cache!r}
from gimlet_lab.hardware.discovery import local_devices as _devices
_cpu = _devices(long={long})[0]
"""
ROUND = """
%%gimlet -o _run --quiet
agent(question)
"""
KEEP = """
_rounds = globals().get("_rounds", [])
_others = [note for note in _run.notes if note.startswith("other programs")]
_rounds.append({
    stage.id: {"kind": stage.kind, "measured": stage.call_s, "share": stage.call_s * stage.calls / _run.net_s,
               "predicted": (_run.predicted[stage.id].to_json() if stage.id in _run.predicted else None)}
    for stage in _run.graph.stages})
_disturbed = [*globals().get("_disturbed", []), *_others]
"""
REPORT = """
import json as _json
print(_json.dumps({"rounds": _rounds, "calibration": _cpu.launch_s.source, "disturbed": _disturbed}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", action="store_true", help="the calibration of %%gimlet devices --calibrate")
    parser.add_argument("--cpu-time", action="store_true", help="count processor seconds of one thread")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        found = measured(options.rounds, cache, long=options.long, cpu_time=options.cpu_time)
    result = (
        {"cpu_time": options.cpu_time}
        | judge(found["rounds"])
        | {name: found[name] for name in ("calibration", "disturbed")}
    )
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for stage, errors in result["stages"].items():
        print(f"{stage:20}" + "".join("       –" if e is None else f"{e:8.1%}" for e in errors))
    print(f"model alone {result['model_error']:.1%}; corrected {result['here_stage_error']:.1%} "
          f"({' '.join(f'{each:.1%}' for each in result['by_round'])}); {result['calibration']}")  # fmt: skip


def measured(rounds: int, cache: str, *, long: bool, cpu_time: bool) -> dict:
    """Run the notebook's set-up, the calibration, and the agent."""
    setting = [CPU_TIME] * cpu_time + [CALIBRATE.format(long=long, cache=cache)]
    return agent.execute([*agent.demo_cells()[:-1], *setting, *[ROUND, KEEP] * (rounds + 1), REPORT])


def judge(rounds: list[dict]) -> dict:
    """Errors by stage and round; the first round is the model's alone."""
    names = list(dict.fromkeys(name for each in rounds for name in each))
    stages = {name: [_error(each.get(name)) for each in rounds] for name in names}
    by_round = [
        statistics.mean(errors[index] for errors in stages.values() if errors[index] is not None)
        for index in range(len(rounds))
    ]
    inside = [
        one["predicted"]["low"] <= one["measured"] <= one["predicted"]["high"]
        for each in rounds[1:]
        for one in each.values()
        if one["predicted"]
    ]
    return {
        "model_error": by_round[0],
        "here_stage_error": statistics.mean(by_round[1:]),
        "here_module_error": statistics.mean(
            error
            for each in rounds[1:]
            for one in each.values()
            if one["kind"] == "module" and (error := _error(one)) is not None
        ),
        "by_round": by_round[1:],
        "interval_coverage": statistics.mean(inside),
        "stages": stages,
        "measured_s": {name: [(each.get(name) or {}).get("measured") for each in rounds] for name in names},
    }


def _error(one: dict | None) -> float | None:
    if not one or not one["predicted"]:
        return None
    return abs(one["predicted"]["seconds"] - one["measured"]) / one["measured"]


if __name__ == "__main__":
    main()
