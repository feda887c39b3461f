"""The live view: a widget while a cell runs, and the run in its place afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel import Kernel, Shown

import gimlet_lab

BUILT = Path(gimlet_lab.__file__).parent / "static" / "live.js"

pytestmark = pytest.mark.skipif(not BUILT.is_file(), reason="the page is not built: make ui")

WIDGET = "application/vnd.jupyter.widget-view+json"
RUN = "application/vnd.gimlet.run.v1+json"

#: Long enough for the live view to come.
LONG = "import time\ndef work():\n    time.sleep(0.1)\nfor _ in range(22): work()"


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    started = Kernel()
    started.run("%load_ext gimlet_lab\nfrom IPython.display import clear_output")
    started.run("%%gimlet --quiet\n1")  # imports and calibration, once
    yield started
    started.close()


def first_displays(kernel: Kernel) -> list[set[str]]:
    return [set(content["data"]) for kind, content in kernel.heard if kind == "display_data"]


def told(kernel: Kernel) -> list[dict[str, Any]]:
    """What the widget was told of the running cell."""
    said = [content["data"] for kind, content in kernel.heard if kind == "comm_msg"]
    return [one["state"]["seen"] for one in said if "seen" in one.get("state", {})]


def of_run(shown: Shown) -> list[bool]:
    return [RUN in display for display in shown.displays]


def test_a_long_cell_shows_what_it_does_and_then_its_run_in_the_same_place(kernel: Kernel) -> None:
    shown = kernel.run(f"%%gimlet\n{LONG}")
    assert shown.status == "ok", shown
    assert [WIDGET in found for found in first_displays(kernel)] == [True], "the widget came first"
    assert of_run(shown) == [True], "and the run took its place"
    *while_running, last = told(kernel)
    assert last == {}, "a widget in a saved notebook holds nothing"
    running = [seen["running"] for seen in while_running]
    assert len(running) >= 2
    assert running[-1]["stretches"][-1]["name"] == "work"
    assert running[-1]["elapsed_s"] > running[0]["elapsed_s"] >= 1.0
    assert any(meter["device"] for meter in while_running[-1]["meters"])


def test_another_cell_has_a_place_of_its_own(kernel: Kernel) -> None:
    kernel.run(f"%%gimlet\n{LONG}")
    first = [content["transient"] for kind, content in kernel.heard if kind == "display_data"]
    shown = kernel.run(f"%%gimlet\n{LONG}")
    second = [content["transient"] for kind, content in kernel.heard if kind == "display_data"]
    assert of_run(shown) == [True]
    assert first != second


def test_a_cell_that_fails_or_clears_its_output_has_its_run_all_the_same(kernel: Kernel) -> None:
    failed = kernel.run(f"%%gimlet\n{LONG}\n1 / 0")
    assert failed.error is not None
    assert of_run(failed) == [True]
    shown = kernel.run(f"%%gimlet\n{LONG}\nclear_output()\nprint('done')")
    assert of_run(shown) == [False, True], "its place was cleared away: the run has a new one"
    assert shown.streams["stdout"] == "done\n"
    assert kernel.get("'clear_output' in vars(get_ipython().display_pub)") == "False", "put back"


@pytest.mark.parametrize("cell", ["%%gimlet\n1", f"%%gimlet --quiet\n{LONG}"])
def test_short_and_quiet_cells_have_none(kernel: Kernel, cell: str) -> None:
    kernel.run(cell)
    assert not [found for found in first_displays(kernel) if WIDGET in found]


def test_it_can_be_turned_off(kernel: Kernel) -> None:
    kernel.run("%gimlet config live=off")
    shown = kernel.run(f"%%gimlet\n{LONG}")
    kernel.run("%gimlet config live=on")
    assert of_run(shown) == [True]
    assert told(kernel) == []
