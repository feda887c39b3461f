"""``gimlet COMMAND`` in the shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from samples import sample_plan, sample_run

from gimlet_lab.cli import main
from gimlet_lab.execution import select
from gimlet_lab.model import Plan, Run


def test_views_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(sample_run().save(tmp_path / "r.gimlet"))
    for view in ("phases", "roofline", "graph", "calls"):
        assert main([view, path]) == 0
        assert "prefill" in capsys.readouterr().out


def test_exit_status_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, status, text in (
        (["phases"], 2, "needs RUN"),
        (["phasse"], 2, "did you mean 'phases'"),
        (["phases", str(tmp_path / "no.gimlet")], 1, "no such file"),
        (["apply"], 2, "needs a notebook"),
        (["watch", "on"], 1, "not built yet"),
        (["profile", str(tmp_path / "no.ipynb")], 1, "No such file"),
        (["solve", str(tmp_path / "no.json")], 1, "No such file"),
    ):
        assert main(words) == status, words
        shown = capsys.readouterr()
        assert shown.out == ""
        assert text in shown.err
        assert shown.err.startswith("gimlet: ")
        assert shown.err.count("\n") == 1


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "COMMAND" in capsys.readouterr().out
    assert main(["advise", "--help"]) == 0
    assert "--slo" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.count(".") == 2


def test_devices_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json"]) == 0
    assert "cpu" in {device["id"] for device in json.loads(capsys.readouterr().out)}


def test_advise_sizes_a_fleet_at_a_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(sample_run().save(tmp_path / "r.gimlet"))
    goal = "--objective cost --slo ttft=2s,tpot=50ms --rate 10/s --max-price 90/h --time-limit 4s"
    serving = "--model llama-3.1-8b --dtype fp8 --isl 512 --osl 128"
    words = ["advise", path, "--on", "h100-sxm", "mi300x", "gaudi3", "l4", "cpu", *goal.split()]
    assert main([*words, *serving.split()]) == 0
    shown = capsys.readouterr().out
    assert "for 10 requests a second" in shown
    assert "(prefill::decode)" in shown
    assert "gaudi3 is left out: no price of it is known" in shown
    assert main([*words, "--model", "llama"]) == 2
    assert "no model 'llama'" in capsys.readouterr().err


def test_solve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(dict(sample_plan().problem)))
    assert main(["solve", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "gimlet.solution/1"
    path.write_text('{"schema": "gimlet.problem/1", "objective": "latency", "devices": 3}')
    assert main(["solve", str(path)]) == 1
    assert "stages is missing" in capsys.readouterr().err
    path.write_text("{")
    assert main(["solve", str(path)]) == 1
    assert "not JSON" in capsys.readouterr().err


def test_check_judges_a_solution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem, solution = tmp_path / "problem.json", tmp_path / "solution.json"
    data = dict(sample_plan().problem)
    problem.write_text(json.dumps(data))
    assert main(["solve", str(problem), "-o", str(solution)]) == 0
    assert main(["check", str(problem), str(solution)]) == 0
    assert "every rule holds" in capsys.readouterr().out
    claimed = json.loads(solution.read_text())
    solution.write_text(json.dumps({**claimed, "objective": claimed["objective"] / 2}))
    assert main(["check", str(problem), str(solution)]) == 1
    assert "objective: the solution says" in capsys.readouterr().out
    solution.write_text(json.dumps({"assignment": {**claimed["assignment"], "nobody": "cpu"}}))
    assert main(["check", str(problem), str(solution)]) == 1
    assert "there is no stage nobody" in capsys.readouterr().out
    solution.write_text(json.dumps({"status": "infeasible", "assignment": {}}))
    assert main(["check", str(problem), str(solution)]) == 1
    assert "no placement to judge (status infeasible)" in capsys.readouterr().err


def test_advise_writes_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(sample_run().save(tmp_path / "r.gimlet"))
    plan = tmp_path / "plan.json"
    assert main(["advise", run, "--on", "cpu", "h100-sxm", "--forbid", "decode=cpu", "-o", str(plan)]) == 0
    found = Plan.from_json(json.loads(plan.read_text()))
    assert found.assignment["decode"] == "h100-sxm"
    assert main(["export", "plan", str(tmp_path / "again.json"), "--plan", str(plan)]) == 0
    assert (tmp_path / "again.json").exists()


def notebook(*cells: str, **metadata: Any) -> nbformat.NotebookNode:
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Title"), *(nbformat.v4.new_code_cell(cell) for cell in cells)]
    )
    for cell, tags in metadata.items():
        made.cells[int(cell.removeprefix("c"))].metadata["tags"] = tags
    return made


def test_a_notebook_is_run_and_its_marked_cells_profiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "work.ipynb"
    made = notebook(
        "x = 20", "%%gimlet --quiet --name marked\ny = x + 1", "open('ran.txt', 'w').write(str(y))"
    )
    nbformat.write(made, path)
    before = path.read_bytes()
    assert main(["profile", str(path), "-o", str(tmp_path / "out.gimlet")]) == 0
    assert path.read_bytes() == before
    assert (tmp_path / "ran.txt").read_text() == "21"
    assert Run.load(tmp_path / "out.gimlet").name == "marked"
    assert "marked" in capsys.readouterr().out


def test_named_cells_and_a_failing_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "work.ipynb"
    nbformat.write(notebook("x = 1", "x + 1", "1 / 0", "x + 2", c2=["rag"]), path)
    assert main(["profile", str(path), "--cells", "1,rag,3", "-o", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert "cell 3 failed: ZeroDivisionError" in shown.err
    runs = sorted(
        (Run.load(file) for file in (tmp_path / "out").glob("*.gimlet")), key=lambda run: run.started
    )
    assert [run.status for run in runs] == ["ok", "ok", "failed"]


def test_no_cell_to_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "work.ipynb"
    nbformat.write(notebook("x = 1"), path)
    assert main(["profile", str(path)]) == 2
    assert "no cell carries %%gimlet" in capsys.readouterr().err
    assert main(["profile", str(path), "--cells", "7"]) == 2
    assert "code cells 1 to 1" in capsys.readouterr().err
    path.write_text("not a notebook")
    assert main(["profile", str(path)]) == 1
    assert "not a notebook" in capsys.readouterr().err


def test_selection() -> None:
    cells = [
        {"source": "a", "id": "one"},
        {"source": "\n# c\n%%gimlet\n"},
        {"source": "b", "metadata": {"tags": ["t"]}},
    ]
    assert select(cells, None) == [1]
    assert select(cells, "2-3") == [1, 2]
    assert select(cells, "t,one") == [0, 2]
