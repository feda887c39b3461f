"""Execute the demo's notebook without a browser, then say what it found and where to look.

Run by ``make demo``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

import gimlet_lab as gimlet
from gimlet_lab.export import load_plan
from gimlet_lab.model import Plan, Run
from gimlet_lab.render.bundle import run_png

HERE = Path(__file__).parent
OUT = HERE / "out"


def execute(notebook: Path, executed: Path) -> None:
    """Run every cell with a progress bar; the executed notebook is written even if a cell fails."""
    document = nbformat.read(notebook, as_version=4)
    client = NotebookClient(document, timeout=900, resources={"metadata": {"path": str(notebook.parent)}})
    with tqdm(total=len(document.cells), desc=notebook.name, unit="cell") as bar:
        client.on_cell_complete = lambda **_: bar.update()
        try:
            client.execute()
        finally:
            nbformat.write(document, executed)


def summary(run: Run, plan: Plan, best: Run, split: Plan, halves: Run) -> str:
    """What the demo found, as lines of text."""
    lines = ["What held each part of the agent back:", ""]
    for stage in run.graph.stages:
        if stage.total_s >= 0.01 * run.duration_s:
            intensity = "" if stage.intensity is None else f"{stage.intensity:8.1f} FLOP/byte"
            took = f"{stage.calls:>4} calls {stage.total_s:8.2f} s"
            lines.append(f"  {stage.id:<16}{took}   {stage.bound:<10}{intensity}")
    lines += [
        "",
        f"Profiling took {run.overhead_s:.2f} s of {run.duration_s:.2f} s.",
        "",
        f"The plan ({plan.status}, gap {plan.gap:.1%}): "
        + ", ".join(f"{stage} on {device}" for stage, device in plan.assignment.items()),
        "",
        "                      predicted [90% interval]     measured",
        _compared("best plan", plan, best),
        _compared("forced split", split, halves),
    ]
    return "\n".join(lines)


def _compared(title: str, plan: Plan, run: Run) -> str:
    low, high = plan.interval_s
    return f"  {title:<16}{plan.latency_s:10.2f} s [{low:.2f} – {high:.2f}]{run.net_s:12.2f} s"


def main() -> int:
    """Execute, print, point."""
    OUT.mkdir(exist_ok=True)
    executed = OUT / "agent.ipynb"
    try:
        execute(HERE / "agent.ipynb", executed)
    except CellExecutionError as error:
        print(f"A cell of the demo failed: {error.ename}: {error.evalue}\nSee {executed}", file=sys.stderr)
        return 1
    run = gimlet.Run.load(OUT / "agent.gimlet")
    picture = OUT / "agent.png"
    picture.write_bytes(run_png(run))
    print(
        summary(
            run,
            load_plan(OUT / "plan.json"),
            gimlet.Run.load(OUT / "best.gimlet"),
            load_plan(OUT / "split.json"),
            gimlet.Run.load(OUT / "halves.gimlet"),
        )
    )
    print("\nWhere to look:")
    for title, path in (
        ("executed notebook", executed),
        ("report", OUT / "agent.html"),
        ("picture", picture),
        ("plan", OUT / "plan.json"),
        ("device map", OUT / "device_map.json"),
    ):
        print(f"  {title:<20}{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
