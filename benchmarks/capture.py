"""What capture costs and how true it is: the figures of the README.

Overhead is process CPU time of the profiled block, analysis and display form included, over that of the bare one:
the median of interleaved pairs with its quartiles, wall time beside. Truth compares counted FLOPs and bytes with
closed formulas of the models, sampled runs with ``--exact`` ones, and edges with graphs written by hand.

    python benchmarks/capture.py [--only GROUP ...] [--pairs 20] [--json]

Scalene (1.5 or later) is a peer, not a dependency: ``pip install --target FOLDER scalene`` and give
``--peers FOLDER``; without it ``scalene_64`` is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import capture_edges
import capture_overhead
import capture_truth

#: Figures by group; each takes the options and gives keys and values of the one object that --json prints.
GROUPS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "decode": capture_overhead.decode,
    "embed": capture_overhead.embed,
    "train": capture_overhead.train,
    "truth": capture_truth.truth,
    "edges": capture_edges.edges,
    "sampled": capture_truth.sampled,
    "times": capture_truth.times,
    "bounds": capture_truth.bounds,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP")
    parser.add_argument("--pairs", type=int, default=20, help="of bare and profiled runs")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256], help="lengths of decode")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="of the 64-token cell; else all")
    parser.add_argument("--peers", type=Path, help="where Scalene is installed")
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in options.only:
        figures.update(GROUPS[name](options))
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        for key, value in figures.items():
            print(f"{key:24}{value}")


if __name__ == "__main__":
    main()
