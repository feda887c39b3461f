"""What sampling stacks costs, beside peers, and how well it tells where time went.

``overhead``: a decode loop under gimlet_lab without and with stacks, and under peers, interleaved in one run: each
round runs every variant once, in a new order, and a ratio is against the bare run of the same round (stacks: against
gimlet_lab without them), so that a busy machine moves both. Medians, with the quartiles.

``attribution_error_max``: 30 seconds of two threads, each 40% in a line of Python, 30% in C (one holds the interpreter's
lock there, the other lets go), 30% waiting; the largest difference, in points, between the share of a thread's time
that its own clock gives to a section and the one that its stacks do. ``idle_error_max`` is that of the time spent idle.

    python benchmarks/stacks.py [overhead] [attribution] [--rounds 9] [--tokens 16] [--seconds 30] [--json]

Scalene, as a peer, is not one of our dependencies: pip install --target DIR scalene, then --peers DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import gimlet_lab as gimlet
from gimlet_lab.capture.pyspy import find_program
from gimlet_lab.capture.stacks import StackOptions
from gimlet_lab.profiling import Profile

SHARES = {"python": 0.4, "native": 0.3, "wait": 0.3}


# --- overhead ---


def workload(tokens: int) -> Callable[[], None]:
    import torch
    from capture_overhead import decode_cell

    torch.set_num_threads(1)
    return decode_cell(tokens)


def from_inside(sampled: Callable[[], Any]) -> Callable[[], Any]:
    """Profile without py-spy."""

    def run() -> Any:
        options = Profile._stack_options  # noqa: SLF001 - no option of the user's
        Profile._stack_options = lambda self: StackOptions(program=None)  # type: ignore[method-assign]  # noqa: SLF001
        try:
            return sampled()
        finally:
            Profile._stack_options = options  # type: ignore[method-assign]  # noqa: SLF001

    return run


def under_py_spy(generate: Callable[[], None], *more: str) -> Callable[[], None]:
    """``py-spy record`` as its users run it; it has begun before the clock does."""

    def run() -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            words = [str(find_program()), "record", "--pid", str(os.getpid()), "-f", "speedscope", *more]
            spy = subprocess.Popen(
                [*words, "-o", f"{folder}/out"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            assert spy.stdout is not None
            spy.stdout.readline()
            taken = timed(generate)
            spy.send_signal(signal.SIGINT)
            spy.communicate()
        return taken

    return run  # type: ignore[return-value]


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the wall and of this process's CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    own = run()
    return own or (time.perf_counter() - wall, time.process_time() - cpu)


def profiled(generate: Callable[[], None], **options: Any) -> Callable[[], Any]:
    def run() -> tuple[float, float]:
        with gimlet.profile("overhead", **options):
            return timed(generate)

    return run


def interleaved(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    for run in variants.values():
        timed(run)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    order, shuffle = list(variants), random.Random(0)
    for number in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            taken[name].append(timed(variants[name]))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return taken


def ratio(mine: list[tuple[float, float]], base: list[tuple[float, float]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for place, name in enumerate(("wall", "cpu")):
        ratios = [a[place] / b[place] for a, b in zip(mine, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        found |= {f"{name}_ratio": middle, f"{name}_quartiles": [low, high]}
        found[f"{name}_least"] = min(a[place] for a in mine) / min(b[place] for b in base)
    return found


def overhead(rounds: int, tokens: int, peers: str | None) -> dict[str, Any]:
    generate = workload(tokens)
    default = profiled(generate, stacks=True)
    variants: dict[str, Callable[[], Any]] = {
        "bare": generate,
        "without stacks": profiled(generate),
        "from inside": from_inside(default),
        "stacks": default,
        "py_spy": under_py_spy(generate),
    }
    taken = interleaved(variants, rounds)
    result = {
        "overhead": ratio(taken["stacks"], taken["without stacks"]),
        "overhead_from_inside": ratio(taken["from inside"], taken["without stacks"]),
        "gimlet_lab": ratio(taken["stacks"], taken["bare"]),
        "py_spy": ratio(taken["py_spy"], taken["bare"]),
        "bare_s": statistics.median(wall for wall, _ in taken["bare"]),
    }
    if peers:
        result["scalene"] = scalene(rounds, tokens, peers)
    return result


def scalene(rounds: int, tokens: int, peers: str) -> dict[str, Any]:
    """Scalene wants to start the program itself; there it is switched on and off."""
    words = [
        sys.executable,
        "-m",
        "scalene",
        "run",
        "--cpu-only",
        "--off",
        "-o",
        str(Path(tempfile.gettempdir()) / "scalene.json"),
        __file__,
    ]
    said = subprocess.run(
        [*words, "---", "under-scalene", "--rounds", str(rounds), "--tokens", str(tokens)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([peers, os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    lines = [line for line in said.stdout.splitlines() if line.startswith('{"wall_ratio"')]
    return json.loads(lines[-1]) if lines else {"failed": said.stderr.strip()[-300:]}


def under_scalene(rounds: int, tokens: int) -> None:
    from scalene import scalene_profiler

    generate = workload(tokens)

    def watched() -> tuple[float, float]:
        scalene_profiler.start()
        taken = timed(generate)
        scalene_profiler.stop()
        return taken

    taken = interleaved({"bare": generate, "scalene": watched}, rounds)
    print(json.dumps(ratio(taken["scalene"], taken["bare"])))


# --- attribution ---


class Worker:
    """A thread that knows where its time went."""

    def __init__(self, seconds: float, native: Callable[[], None]) -> None:
        self.until = time.perf_counter() + seconds
        self.native = native
        self.spent = dict.fromkeys(SHARES, 0.0)

    def work(self) -> None:
        begun = time.perf_counter()
        while time.perf_counter() < self.until:
            for section in SHARES:
                entered = time.perf_counter()
                # What has had the least of its share catches up: a busy machine stretches sections unequally.
                due = SHARES[section] * (entered - begun + 0.5) - self.spent[section]
                getattr(self, f"do_{section}")(entered + max(0.0, due))
                self.spent[section] += time.perf_counter() - entered

    def do_python(self, until: float) -> None:
        while time.perf_counter() < until:
            sum(i * i for i in range(200))

    def do_native(self, until: float) -> None:
        while time.perf_counter() < until:
            self.native()

    def do_wait(self, until: float) -> None:
        time.sleep(max(0.0, until - time.perf_counter()))


def attribution(seconds: float, *, inside: bool = False, native: bool = False) -> dict[str, Any]:
    block, number = os.urandom(2**20), 3**30_000
    holds, lets_go = (lambda: pow(number, 3)), (lambda: zlib.crc32(block))
    workers: list[Worker] = []

    def cell() -> None:
        workers[:] = [Worker(seconds, holds), Worker(seconds, lets_go)]
        other = threading.Thread(target=workers[1].work, name="other")
        other.start()
        workers[0].work()
        other.join()

    def sampled() -> Any:
        with gimlet.profile("attribution", stacks=True, native=native) as recorder:
            cell()
        return recorder.run

    found: list[Any] = []
    run = (lambda: found.append(sampled())) if not inside else from_inside(lambda: found.append(sampled()))
    run()
    rows = found[0].stacks
    errors, idle_errors, table = [0.0], [0.0], {}
    for worker, thread in zip(workers, ("MainThread", "other"), strict=True):
        mine = rows[rows.thread == thread]
        true_s, seen_s = sum(worker.spent.values()), mine.duration_s.sum()
        for section in SHARES:
            true = worker.spent[section] / true_s
            seen = mine[mine.frames.str.contains(f"do_{section}")].duration_s.sum() / seen_s
            errors.append(100 * abs(true - seen))
            table[f"{thread}.{section}"] = [round(true, 4), round(float(seen), 4)]
        idle = mine.idle_s.sum() / mine[mine.idle_s.notna()].duration_s.sum()
        idle_errors.append(100 * abs(worker.spent["wait"] / true_s - idle))
    return {
        "attribution_error_max": float(max(errors)),
        "idle_error_max": float(max(idle_errors)),
        "shares_true_and_seen": table,
        "source": found[0].sampled.source,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["overhead", "attribution"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--peers", metavar="DIR")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.parts == ["under-scalene"]:
        under_scalene(options.rounds, options.tokens)
        return
    result: dict[str, Any] = {}
    if "overhead" in options.parts:
        result |= overhead(options.rounds, options.tokens, options.peers)
    if "attribution" in options.parts:
        found = attribution(options.seconds)
        result |= found
        result["from_inside"] = attribution(options.seconds, inside=True)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:24} {json.dumps(value)}")


if __name__ == "__main__":
    main()
