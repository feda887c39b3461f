"""Predicted against measured, on the demo's agent in a real kernel.

Executes the set-up of ``examples/agent.ipynb``, profiles the agent once, then in every round measures it where it is
and under a forced split (prefill on one core, decode on the other). The prediction of the split is made from the
first profile alone; errors are against the median of the rounds.

    python benchmarks/agent.py [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"

MEASURE = """
import json as _json
_answers, _seconds = set(), {"here": [], "split": []}
%gimlet advise run -o stay
%gimlet advise run --on "cpu cpu/0 cpu/1" --pin prefill=cpu/0 --pin decode=cpu/1 -o split
"""
HERE = """
%%gimlet -o _run --quiet
_answers.add(agent(question))
"""
SPLIT = """
%gimlet apply split
"""
BACK = """
%gimlet rollback
"""
KEEP = '_seconds["{name}"].append((_run.net_s, _run.duration_s))'
REPORT = """
print(_json.dumps({
    "seconds": _seconds,
    "answers": len(_answers),
    "predicted": {"here": [stay.latency_s, *stay.interval_s], "split": [split.latency_s, *split.interval_s]},
}))
"""


def demo_cells() -> list[str]:
    """The demo's notebook up to its first profiled cell, that one included."""
    document = nbformat.read(EXAMPLES / "agent.ipynb", as_version=4)
    sources = [cell.source for cell in document.cells if cell.cell_type == "code"]
    return sources[: 1 + next(i for i, source in enumerate(sources) if source.startswith("%%gimlet"))]


def execute(cells: list[str]) -> dict:
    """Run cells in a kernel, in the demo's folder; the last one prints an object as JSON."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source.strip("\n")) for source in cells]
    )
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(EXAMPLES)}})
    client.on_cell_complete = lambda cell, cell_index, **_: print(
        f"cell {cell_index + 1}/{len(cells)}", file=sys.stderr
    )
    client.execute()
    return json.loads(notebook.cells[-1].outputs[-1]["text"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    cells = [*demo_cells(), MEASURE]
    for _ in range(options.rounds):
        cells += [HERE, KEEP.format(name="here"), SPLIT, HERE, KEEP.format(name="split"), BACK]
    cells.append(REPORT)
    result = execute(cells)
    print(f"answers: {result['answers']} different over {2 * options.rounds} runs")
    print(f"{'':8}{'predicted':>12}{'90% interval':>18}{'measured':>12}{'range':>16}{'error':>10}")
    for name, rounds in result["seconds"].items():
        net = [each[0] for each in rounds]
        predicted, low, high = result["predicted"][name]
        median = statistics.median(net)
        result.setdefault("error", {})[name] = abs(predicted - median) / median
        print(
            f"{name:8}{predicted:10.2f} s{f'{low:.2f} – {high:.2f}':>18}{median:10.2f} s"
            f"{f'{min(net):.2f} – {max(net):.2f}':>16}{(predicted - median) / median:10.1%}"
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
