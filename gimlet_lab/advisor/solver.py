"""Problem in, solution out: the solver runs in a process of its own, and the judge has the last word."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gimlet_lab.advisor import baselines
from gimlet_lab.advisor.instance import TOLERANCE, Instance
from gimlet_lab.advisor.judge import Verdict, judge, timetable
from gimlet_lab.advisor.problem import parse
from gimlet_lab.advisor.schema import SOLUTION
from gimlet_lab.advisor.symmetry import renamed
from gimlet_lab.errors import UsageError
from gimlet_lab.progress import Progress, silent

#: What runs a request: the request and progress in, the answer of the solver's process out.
Runner = Callable[[dict[str, Any], Progress], dict[str, Any]]

#: Seconds a solver may overrun before it is killed; it stops by itself well within.
GRACE_S = 3.0

#: Graphs this large are not handed to another process, which would only read them again.
LARGE_UNITS = 10_000


def solve(
    problem: Mapping[str, Any],
    progress: Progress = silent,
    *,
    run: Runner | None = None,
    exclude: Sequence[Mapping[str, str]] = (),
    relax: bool = True,
) -> dict[str, Any]:
    """Find the best placement, with a proof of how good it is.

    Ctrl-C ends the search and returns the best so far.

    Parameters
    ----------
    problem : mapping
        ``gimlet.problem/1`` (contract, section 4).
    run : callable, optional
        Runs the solver; a process of its own where left out.
    exclude : sequence of assignments
        Placements that are not wanted, under whatever names of equal devices.
    relax : bool
        Whether to find out what would help where nothing fits.

    Returns
    -------
    dict
        ``gimlet.solution/1``. Its objective is the judge's; ``bound`` is proved.

    Raises
    ------
    UsageError
        Names the place where the problem is malformed.

    Examples
    --------
    >>> solution = solve({
    ...     "schema": "gimlet.problem/1", "objective": "latency",
    ...     "devices": [{"id": "slow"}, {"id": "fast"}],
    ...     "stages": [{"id": "s", "options": {"slow": {"seconds": 2}, "fast": {"seconds": 1}}}],
    ... })
    >>> solution["assignment"], solution["objective"], solution["status"]
    ({'s': 'fast'}, 1.0, 'optimal')
    """
    began = time.monotonic()
    instance = parse(problem)
    _check_supported(instance)
    progress(0.0, "list scheduling")
    unwanted = [other for one in exclude for other in renamed(instance, one)]
    hurried = began + instance.time_limit_s / 2
    rules = baselines.candidates(instance, lambda: time.monotonic() < hurried)
    known = [c for c in rules if c.assignment not in unwanted]
    start = baselines.best(known)
    if not instance.units:
        start = baselines.Candidate("nothing to place", {}, (), judge(instance, {}), None)
        answer: dict[str, Any] = {"status": "optimal", "bound": 0.0}
    elif start is not None and instance.objective == "latency" and len(instance.units) >= LARGE_UNITS:
        answer = _large(instance, progress)
    else:
        request = {
            "problem": dict(problem),
            "seconds": max(0.0, instance.time_limit_s - (time.monotonic() - began)),
            "start": _start(start),
            "exclude": unwanted,
            "relax": relax,
        }
        answer = (run or run_process)(request, progress)
    return _solution(instance, start, answer, time.monotonic() - began)


def _large(instance: Instance, progress: Progress) -> dict[str, Any]:
    """Too large for a program: list scheduling is the answer, bounded by prices, here."""
    from gimlet_lab.advisor.pricing import priced_bound_s

    progress(0.5, "bounding")
    answer: dict[str, Any] = {"status": "feasible", "bound": 0.0, "method": "prices"}
    try:
        answer["bound"] = priced_bound_s(instance)
    except KeyboardInterrupt:
        answer["why"] = "interrupted"
    return answer


def _check_supported(instance: Instance) -> None:
    limits = instance.limits
    timed = limits.latency_s is not None or limits.paths
    if instance.contiguous and (timed or (instance.objective == "latency" and not instance.through_host)):
        what = "limits on time" if timed else "latency over direct links"
        raise UsageError(f"contiguous: {what} are not supported by the solver yet; evaluate judges them")
    if instance.objective == "throughput":
        for position, unit in enumerate(instance.units.values()):
            for key, option in unit.options.items():
                if option.devices_used > 1:
                    place = f"stages[{position}].options.{key}.devices_used"
                    raise UsageError(f"{place}: is not supported under throughput yet")


def _start(candidate: baselines.Candidate | None) -> dict[str, Any] | None:
    if candidate is None or candidate.assignment is None or candidate.verdict is None:
        return None
    return {
        "assignment": dict(candidate.assignment),
        "start_s": dict(candidate.verdict.start_s),
        "makespan_s": candidate.verdict.latency_s,
        "value": candidate.verdict.objective,
    }


def _solution(
    instance: Instance, start: baselines.Candidate | None, answer: Mapping[str, Any], spent_s: float
) -> dict[str, Any]:
    assignment, order = answer.get("assignment"), answer.get("order")
    method = answer.get("method") or "CP-SAT"
    verdict = None if assignment is None else judge(instance, assignment, order)
    if verdict is not None and not verdict.feasible:
        # The solver's word alone is never passed on.
        verdict = None
    if start is not None and (verdict is None or _value(start.verdict) < _value(verdict)):
        assignment, verdict = start.assignment, start.verdict
        method = start.name if answer.get("bound") is None else f"{start.name}, bound by {method}"
    if answer.get("why"):
        method += f" ({answer['why']})"
    if verdict is None or assignment is None:
        infeasible = answer["status"] == "infeasible"
        return {
            "schema": SOLUTION,
            "status": "infeasible" if infeasible else "unknown",
            "objective": None,
            "bound": None,
            "gap": None,
            "assignment": {},
            "count": {},
            "latency_s": None,
            "usd": None,
            "usd_per_hour": None,
            "joules": None,
            "schedule": [],
            "relax": dict(answer.get("relax") or {}),
            "method": method,
            "seconds_spent": spent_s,
        }
    objective = _value(verdict)
    bound = min(objective, max(answer.get("bound") or 0.0, lower_bound(instance)))
    gap = 0.0 if objective == bound else (objective - bound) / objective
    return {
        "schema": SOLUTION,
        "status": "optimal" if gap <= instance.gap + TOLERANCE else "feasible",
        "objective": objective,
        "bound": bound,
        "gap": gap,
        "assignment": {name: assignment[name] for name in instance.units},
        "count": dict(verdict.count),
        "latency_s": verdict.latency_s,
        "usd": verdict.usd,
        "usd_per_hour": verdict.usd_per_hour,
        "joules": verdict.joules,
        "schedule": timetable(instance, assignment, verdict),
        "relax": {},
        "method": method,
        "seconds_spent": spent_s,
    }


def _value(verdict: Verdict | None) -> float:
    return math.inf if verdict is None or verdict.objective is None else verdict.objective


def lower_bound(instance: Instance) -> float:
    """A bound that needs no solver: the longest way through the graph, or the sum, each unit at its best."""
    if instance.objective == "throughput":
        copies = {name: max(machine.max_count or 1, 1) for name, machine in instance.machines.items()}
        work = [
            [(unit.work_s(key), copies[option.device]) for key, option in unit.options.items()]
            for unit in instance.units.values()
        ]
        spread = sum(min(seconds for seconds, _ in own) for own in work) / max(sum(copies.values()), 1)
        alone = max((min(seconds / of for seconds, of in own) for own in work), default=0.0)
        return max(spread, alone)
    if instance.sized:
        price = {name: machine.usd_per_hour for name, machine in instance.machines.items()}
        return float(
            sum(
                min(option.load * price[option.device] for option in unit.options.values())
                for unit in instance.units.values()
            )
        )
    if instance.objective != "latency":
        figure = "usd" if instance.objective == "cost" else "joules"
        least = (
            unit.calls * min(getattr(option, figure) for option in unit.options.values())
            for unit in instance.units.values()
        )
        return float(sum(least))
    end: dict[str, float] = {}
    for name in instance.order:
        unit = instance.units[name]
        begin = max((end[producer] for producer in instance.producers[name]), default=0.0)
        end[name] = begin + min(unit.work_s(key) for key in unit.options)
    return max(end.values(), default=0.0)


def run_process(request: dict[str, Any], progress: Progress = silent) -> dict[str, Any]:
    """Run a request in a process of its own; it is gone when this returns, whatever happens.

    The process is told to stop by the end of its input: it says its best so far and exits. A Ctrl-C reaches
    only this side (the process has a session of its own).
    """
    began = time.monotonic()
    limit_s = float(request["seconds"])
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryFile(mode="w+") as log:
        process = subprocess.Popen(
            # -P: a file of the user's folder must not shadow a module that the solver imports.
            [sys.executable, "-P", "-m", "gimlet_lab.advisor.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        lines: queue.Queue[str | None] = queue.Queue()
        output = process.stdout

        def read() -> None:
            with contextlib.suppress(ValueError, OSError):
                for line in output:
                    lines.put(line)
            lines.put(None)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        interrupted = ended = False
        answer: dict[str, Any] | None = None
        best = "searching"
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
            deadline = began + limit_s + GRACE_S
            while answer is None and time.monotonic() < deadline:
                try:
                    progress(min(1.0, (time.monotonic() - began) / max(limit_s, 1e-9)), best)
                    line = lines.get(timeout=0.1)
                    if line is None:
                        ended = True
                        break
                    message = json.loads(line)
                    answer = message.get("answer")
                    best = _describe(message.get("progress")) or best
                except queue.Empty:
                    pass
                except KeyboardInterrupt:
                    if interrupted:
                        raise
                    interrupted = True
                    deadline = min(deadline, time.monotonic() + GRACE_S)
                    _close(process.stdin)
        finally:
            _close(process.stdin)
            if answer is None:
                process.kill()
            try:
                process.wait(timeout=GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            reader.join()
            output.close()
        if answer is None:
            log.seek(0)
            said = log.read().strip().splitlines()
            last = said[-1] if said else f"exit code {process.returncode}"
            why = f"the solver's process failed: {last}" if ended else "the solver did not answer in time"
            answer = {"status": "unknown", "why": why}
        if interrupted:
            answer["why"] = "interrupted"
        return answer


def _close(stream: Any) -> None:
    # A pipe to a process that is gone says so when it is closed.
    with contextlib.suppress(BrokenPipeError, OSError):
        stream.close()


def _describe(found: Mapping[str, float | None] | None) -> str | None:
    if not found or found.get("value") is None:
        return None
    bound = found.get("bound") or 0.0
    return f"best {found['value']:.4g}, bound {bound:.4g}"
