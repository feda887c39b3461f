"""Cells of known kernels, classified: how often is each bound right?

Every round profiles five cells whose answer is known: a large GEMM (compute), a copy of 1 GB (bandwidth),
10,000 tiny operators (overhead), a sleep and a read from a socket (wait). Load the machine meanwhile to make it hard.

    python benchmarks/kernels.py [--rounds 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

import gimlet_lab as gimlet


def gemm() -> None:
    a = torch.ones(2048, 2048)
    for _ in range(4):
        a @ a


def copy() -> None:
    source = torch.ones(256 * 1024 * 1024)
    source.clone()


def tiny() -> None:
    x = torch.ones(4)
    for _ in range(10_000):
        x.add(1)


def sleep() -> None:
    time.sleep(0.2)


def read_socket() -> None:
    here, there = socket.socketpair()
    timer = threading.Timer(0.2, there.sendall, args=(b"x",))
    timer.start()
    here.recv(1)
    timer.join()
    here.close()
    there.close()


KNOWN: dict[str, tuple[Callable[[], None], str]] = {
    "large GEMM": (gemm, "compute"),
    "1 GB copy": (copy, "bandwidth"),
    "10,000 tiny operators": (tiny, "overhead"),
    "sleep": (sleep, "wait"),
    "socket read": (read_socket, "wait"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    seen: dict[str, Counter[str]] = {name: Counter() for name in KNOWN}
    for number in range(options.rounds):
        for name, (kernel, _) in KNOWN.items():
            with gimlet.profile(name) as recorder:
                kernel()
            seconds: Counter[str] = Counter()
            for phase in recorder.run.phase_list:
                seconds[phase.bound] += phase.duration_s
            seen[name][seconds.most_common(1)[0][0]] += 1
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    for name, (_, bound) in KNOWN.items():
        others = {b: n for b, n in seen[name].items() if b != bound}
        print(
            f"{name:24}{bound:12}{seen[name][bound]:>4} of {options.rounds}"
            + (f"   {others}" if others else "")
        )
    if options.json:
        options.json.write_text(
            json.dumps({n: dict(c) for n, c in seen.items()}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
