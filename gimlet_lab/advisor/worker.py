"""The solver's own process: a problem on stdin, JSON lines on stdout.

``python -m gimlet_lab.advisor.worker`` reads one line and keeps stdin open: its end (the parent closed it, or
died) means stop and say the best so far. Nothing here outlives its parent.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TextIO

from gimlet_lab.advisor.balance import balance
from gimlet_lab.advisor.contraction import contract, limited
from gimlet_lab.advisor.ideals import Partition, partition
from gimlet_lab.advisor.infeasible import relax
from gimlet_lab.advisor.instance import Instance
from gimlet_lab.advisor.judge import judge
from gimlet_lab.advisor.latency import EXACT_UNITS, Answer, Budget, Report, Start, minimise
from gimlet_lab.advisor.pricing import priced_bound_s
from gimlet_lab.advisor.problem import parse
from gimlet_lab.advisor.search import search, searchable
from gimlet_lab.advisor.spans import spans
from gimlet_lab.advisor.timing import flows

#: Seconds to say the best so far once told to stop.
GRACE_S = 3.0

#: The part of the time that a start may take, each way.
SHARE = 0.2

#: Graphs larger than this are searched and bounded, no longer proved; the search's part of the time.
MODEST_UNITS, LARGE_SHARE = 60, 0.9

#: The figure that each objective minimises.
FIGURES = {"latency": "latency_s", "throughput": "load_s", "cost": "usd", "energy": "joules"}


def work(
    instance: Instance,
    start: Start | None,
    budget: Budget,
    report: Report,
    *,
    exclude: Sequence[Mapping[str, str]] = (),
    help_out: bool = True,
) -> dict[str, Any]:
    """Solve, and where nothing fits find out what would help."""
    method = "CP-SAT"
    if exclude:
        figure = _figure(instance)
        answer = minimise(instance, figure, budget, start=start, report=report, exclude=exclude)
    elif instance.objective == "latency" and instance.contiguous:
        return _spans(instance, budget, report)
    elif instance.objective == "throughput":
        answer, method = _balance(instance, start, budget, report)
    elif instance.objective == "latency" and len(instance.units) > EXACT_UNITS:
        answer, method = _search(instance, start, budget, report)
    else:
        answer = minimise(instance, _figure(instance), budget, start=start, report=report)
    amounts = relax(instance, budget) if answer.status == "infeasible" and help_out else {}
    return {**_plain(answer), "relax": amounts, "method": method}


def _figure(instance: Instance) -> str:
    return "usd_per_hour" if instance.sized else FIGURES[instance.objective]


def _spans(instance: Instance, budget: Budget, report: Report) -> dict[str, Any]:
    """The least contiguous makespan that is met; nothing is proved but by the graph's longest way."""
    places = spans(instance, lambda: budget.left_s > 0, lambda value: report(value, None))
    status = "unknown" if places is None else "feasible"
    return {**_plain(Answer(status, None, places)), "relax": {}, "method": "spans by local search"}


def _search(instance: Instance, start: Start | None, budget: Budget, report: Report) -> tuple[Answer, str]:
    """The least makespan of a larger graph: bounded by prices, searched, then proved if small."""
    if start is None or not start.start_s or not searchable(instance):
        return minimise(instance, "latency_s", budget, start=start, report=report), "CP-SAT"
    size = len(instance.units)
    bound = priced_bound_s(instance)
    report(start.makespan_s, bound)
    until_s = budget.left_s * (1 - SHARE if size <= MODEST_UNITS else 1 - LARGE_SHARE)
    begins, rank = start.start_s, {unit: position for position, unit in enumerate(instance.order)}
    listed = sorted(instance.units, key=lambda unit: (begins[unit], rank[unit]))
    places, order = search(instance, start.assignment, listed, lambda: budget.left_s > until_s)
    verdict = judge(instance, places, order)
    searched: Answer | None = None
    if verdict.feasible and verdict.latency_s is not None and verdict.latency_s < start.makespan_s:
        searched = Answer("feasible", bound, places, order, verdict.latency_s)
        start = Start(places, verdict.start_s, verdict.latency_s, verdict.latency_s)
        report(verdict.latency_s, None)
    if size > MODEST_UNITS:
        return searched or Answer("unknown", bound), "local search, prices"
    answer = minimise(instance, "latency_s", budget, start=start, report=report)
    answer = replace(answer, bound=max(answer.bound or 0.0, bound))
    if searched is not None and (answer.value is None or answer.value > (searched.value or 0.0)):
        answer = replace(searched, bound=answer.bound)
    return answer, "local search, CP-SAT"


def _balance(instance: Instance, start: Start | None, budget: Budget, report: Report) -> tuple[Answer, str]:
    """The least largest load, of a smaller instance with the same optimum."""
    line = _pipeline(instance, budget)
    if line is not None and line.complete and instance.contiguous:
        status = "infeasible" if line.assignment is None else "optimal"
        value = None if line.assignment is None else line.value
        return Answer(status, value, line.assignment, None, value), "dynamic program over ideals"
    begin = None if start is None else start.assignment
    if line is not None and line.assignment is not None and (start is None or line.value < start.value):
        begin = line.assignment
    smaller = contract(instance)
    placed = None if begin is None else smaller.shrink(begin)
    if placed is not None and not instance.contiguous and not limited(instance):
        until_s = budget.left_s * (1 - (SHARE if len(smaller.instance.units) <= MODEST_UNITS else 0.5))
        placed = balance(smaller.instance, placed, lambda: budget.left_s > until_s)
        begin = smaller.expand(placed)
    timing = {} if start is None or begin is not start.assignment else start.start_s
    hint = None if placed is None else Start(placed, timing, math.inf)
    answer = minimise(smaller.instance, "load_s", budget, start=hint, report=report)
    found = begin if answer.assignment is None else smaller.expand(answer.assignment)
    return replace(answer, assignment=found), "CP-SAT"


def _pipeline(instance: Instance, budget: Budget) -> Partition | None:
    """A contiguous placement: the answer where that is asked for, else a start; original units."""
    line = contract(replace(instance, contiguous=True, flows=flows(instance)))
    until_s = 0.0 if instance.contiguous else budget.left_s * (1 - SHARE)
    found = partition(line.instance, lambda: budget.left_s > until_s)
    if found is None or found.assignment is None:
        return found
    return replace(found, assignment=line.expand(found.assignment))


def _plain(answer: Answer) -> dict[str, Any]:
    return {
        "status": answer.status,
        "bound": answer.bound,
        "assignment": None if answer.assignment is None else dict(answer.assignment),
        "order": None if answer.order is None else list(answer.order),
    }


def main(stdin: TextIO = sys.stdin, stdout: TextIO = sys.stdout) -> int:
    """Serve one request."""
    began = time.monotonic()
    request = json.loads(stdin.readline())
    budget = Budget(began + request["seconds"])

    def wait_for_end() -> None:
        stdin.read()
        budget.stopped.set()
        # Presolve does not look up; nobody waits for what it would say after that.
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()

    def say(message: dict[str, Any]) -> None:
        stdout.write(json.dumps(message) + "\n")
        stdout.flush()

    try:
        import ortools  # noqa: F401 - is it there at all?
    except ImportError:
        say({"answer": {"status": "unknown", "why": "ortools is not installed"}})
        return 0
    best: dict[str, float | None] = {"value": None, "bound": None}

    def report(value: float | None, bound: float | None) -> None:
        best.update({k: v for k, v in (("value", value), ("bound", bound)) if v is not None})
        say({"progress": best})

    start = Start(**request["start"]) if request["start"] else None
    rules = {"exclude": request["exclude"], "help_out": request["relax"]}
    say({"answer": work(parse(request["problem"]), start, budget, report, **rules)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
