"""Workers and nodes killed at random moments: ``python tests/chaos.py --runs 200 --seed 1`` (``make chaos``).

Every run makes the calls of a small agent over three nodes while something of the cluster is killed. It has
to give the right answer, or one error of ours where a stage may run once only; nothing may hang, run twice
that may not, or be left over.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "examples"))

import torch
from nodes import cluster, start
from placing import actors, function, module, notebook, plan
from small_llm import IDS, make_llm

import gimlet_lab as gimlet
from gimlet_lab.errors import GimletError
from gimlet_lab.model import Plan

AGENT = """
import time
def search(n):
    end = time.perf_counter() + 0.02
    while time.perf_counter() < end: pass
    return [i * i % 97 for i in range(n)]
def book(path, order):
    with open(path, 'a') as file: file.write(f'{order}\\n')
    time.sleep(0.02)
    return order + 1
def agent(path, order):
    found = search(200)
    with torch.no_grad():
        tokens = llm.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    return sum(found), tokens.tolist(), book(path, order)
"""

#: A run that takes longer hangs: losing a node takes Ray some seconds to notice, each of them anew.
HANGS_S = 120.0

#: One run in so many loses a node, which takes seconds to start again; the others lose a worker.
NODE_ONE_IN = 10


def chaos(runs: int, seed: int, say: Callable[[str], object] = lambda _: None) -> dict[str, int]:
    """Make so many runs; how many gave what they should not have.

    Returns
    -------
    dict
        ``runs``, ``right``, ``refused`` (a clear error of a stage that may run once), ``wrong``, ``twice``,
        ``hung``, ``leaked``.
    """
    dice = random.Random(seed)
    counts = dict.fromkeys(("runs", "right", "refused", "wrong", "twice", "hung", "leaked"), 0)
    torch.set_num_threads(1)
    book = notebook(AGENT)
    book |= {"torch": torch, "llm": make_llm(), "ids": IDS, "mask": torch.ones_like(IDS)}
    with TemporaryDirectory() as folder, cluster("left", "right") as machines:
        expected = book["agent"](f"{folder}/before", 7)
        gimlet.connect("ray", machines.address)
        deployment = gimlet.apply(_placed(), namespace=book)
        for number in range(runs):
            path = Path(folder) / str(number)
            node = dice.choice(["left", "right"]) if dice.randrange(NODE_ONE_IN) == 0 else None
            outcome = _run(book, path, expected, machines, dice, node)
            say(f"{number + 1}/{runs}: {node or 'a worker'} killed, {outcome}")
            counts["runs"] += 1
            counts[outcome] += 1
            counts["twice"] += path.exists() and len(path.read_text().splitlines()) > 1
            if node is not None:
                deployment.rollback()
                counts["leaked"] += len(_left())
                _replace(machines, node)
                deployment = gimlet.apply(_placed(), namespace=book)
            deployment.refresh()
        deployment.rollback()
        counts["leaked"] += len(_left())
        gimlet.disconnect()
    return counts


def _placed() -> Plan:
    return plan(
        (function("search"), "left/cpu/0"),
        (function("book", idempotent=False), "right/cpu/0"),
        (module("prefill", "llm", "prefill"), "left/cpu/1"),
        (module("decode", "llm", "decode"), "right/cpu/1"),
        over=gimlet.fleet(),
    )


def _run(
    book: dict[str, Any], path: Path, expected: Any, machines: Any, dice: random.Random, node: str | None
) -> str:
    outcome = ["hung"]

    def work() -> None:
        try:
            outcome[0] = "right" if book["agent"](str(path), 7) == expected else "wrong"
        except GimletError as error:
            outcome[0] = "refused" if "idempotent=False" in str(error) else "wrong"

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    time.sleep(dice.uniform(0.0, 0.15))
    if node is not None:
        machines.remove_node(machines.named[node], allow_graceful=False)
    else:
        with contextlib.suppress(ProcessLookupError):  # the one killed before, not yet said to be dead
            os.kill(dice.choice(sorted(actor["Pid"] for actor in actors())), signal.SIGKILL)
    thread.join(HANGS_S)
    return outcome[0]


def _replace(machines: Any, name: str) -> None:
    """Start a node in a lost one's place, once the cluster has noticed that it is lost."""
    import ray

    while sum(node["Alive"] for node in ray.nodes()) > len(machines.named):
        time.sleep(0.1)
    machines.named[name] = start(machines, name)
    gimlet.connect("ray", "auto")


def _left() -> list[dict[str, Any]]:
    """Actors that outlive their plan; Ray takes a moment to say that one has ended."""
    for _ in range(100):
        if not actors():
            return []
        time.sleep(0.1)
    return actors()


def main() -> int:
    """Run, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    say = (lambda _: None) if options.json else print
    counts = chaos(options.runs, options.seed, say)
    print(json.dumps({"faults": counts}) if options.json else collections.Counter(counts))
    return int(any(counts[name] for name in ("wrong", "twice", "hung", "leaked")))


if __name__ == "__main__":
    sys.exit(main())
