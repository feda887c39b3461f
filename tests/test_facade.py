"""What ``import gimlet_lab`` gives, what it costs, and the core under the magic in a plain program."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from samples import sample_plan, sample_run

import gimlet_lab as gimlet
from gimlet_lab import profiling
from gimlet_lab.errors import UsageError


def python(code: str, *flags: str) -> str:
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_import_loads_nothing_heavy() -> None:
    heavy = {
        "torch",
        "ray",
        "matplotlib",
        "pandas",
        "ortools",
        "numpy",
        "transformers",
        "IPython",
        "networkx",
    }
    loaded = set(json.loads(python("import json, sys, gimlet_lab; print(json.dumps(sorted(sys.modules)))")))
    assert loaded & heavy == set()
    loaded = set(
        json.loads(
            python(
                "import json, sys, gimlet_lab.cli, gimlet_lab.magics, gimlet_lab.profiling;"
                "print(json.dumps(sorted(sys.modules)))"
            )
        )
    )
    assert loaded & (heavy - {"numpy"}) == set()


def test_import_takes_less_than_three_tenths_of_a_second() -> None:
    # The interpreter's own account of the import, the best of three: a busy machine must not fail this.
    def cost_us() -> int:
        lines = python("import gimlet_lab", "-X", "importtime").splitlines()
        line = next(line for line in reversed(lines) if line.endswith(" gimlet_lab"))
        return int(line.split("|")[1])

    assert min(cost_us() for _ in range(3)) < 300_000


@pytest.mark.parametrize("name", gimlet.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(gimlet, name) is not None
    assert name in dir(gimlet)


def test_unknown_names_and_version() -> None:
    with pytest.raises(AttributeError, match="no attribute 'profil'"):
        _ = gimlet.profil
    assert gimlet.__version__.count(".") == 2


def test_export_is_a_package_and_a_function(tmp_path: Path) -> None:
    from gimlet_lab.export import targets

    path = gimlet.export(sample_plan(), "plan", tmp_path / "plan.json")
    assert Path(path).exists()
    assert "plan" in targets()
    assert "plan" in gimlet.export.targets()


def test_advise_and_solve() -> None:
    run = sample_run()
    plan = gimlet.advise(run, gimlet.fleet("cpu", "h100-sxm"))
    assert set(plan.assignment) == {stage.id for stage in run.graph.stages}
    again = gimlet.solve(plan.problem)
    assert again["objective"] == pytest.approx(plan.solution["objective"], rel=1e-3)
    with pytest.raises(UsageError, match="measured_on"):
        gimlet.advise(run.graph)


def test_a_block_has_its_run() -> None:
    with gimlet.profile("block") as recorder:
        total = sum(range(1000))
    assert total == 499500
    assert recorder.run is not None
    assert (recorder.run.name, recorder.run.status, recorder.run.error) == ("block", "ok", None)
    assert recorder.run.overhead_s >= 0
    assert recorder.run.display
    assert recorder.run.environment["python"].startswith("3.")
    assert profiling.active() is None


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("bad"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (asyncio.CancelledError(), "interrupted"),
        (SystemExit(3), "failed"),
        (MemoryError(), "failed"),
    ],
)
def test_a_failed_block_has_its_run_and_still_fails(error: BaseException, status: str) -> None:
    recorder = gimlet.profile("fails")
    with pytest.raises(type(error)) as caught, recorder:
        raise error
    assert caught.value is error
    assert recorder.run is not None
    assert (recorder.run.status, recorder.run.error) == (status, type(error).__name__)
    assert profiling.active() is None


def test_a_traceback_has_no_frame_of_ours() -> None:
    import torch

    recorder = gimlet.profile("shapes")
    with pytest.raises(RuntimeError) as caught, recorder:
        torch.nn.Linear(3, 4)(torch.zeros(2, 5))
    files = [entry.path for entry in caught.traceback]
    assert [file for file in files if "gimlet_lab" in str(file)] == []
    assert str(files[-1]).endswith("torch/nn/modules/linear.py")


def test_functions_plain_and_async() -> None:
    @gimlet.profile("named")
    def double(x: int, *, y: int = 2) -> int:
        """Double."""
        return x * y

    @gimlet.profile
    async def later(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    assert double(4) == 8
    assert (double.__name__, double.__doc__) == ("double", "Double.")
    assert str(inspect.signature(double)).startswith("(x")
    assert double.recorder.run.name == "named"
    first = double.recorder.run
    double(5)
    assert double.recorder.run is not first
    assert asyncio.run(later(1)) == 2
    assert inspect.iscoroutinefunction(later)
    assert later.recorder.run.name == "later"

    async def block() -> str | None:
        async with gimlet.profile("async block") as recorder:
            await asyncio.sleep(0)
        return recorder.run.name if recorder.run else None

    assert asyncio.run(block()) == "async block"

    with pytest.raises(UsageError, match="generator"):

        @gimlet.profile
        def numbers() -> object:
            yield 1


def test_recursion_is_one_profile() -> None:
    @gimlet.profile
    def factorial(n: int) -> int:
        return 1 if n == 0 else n * factorial(n - 1)

    assert factorial(5) == 120
    assert profiling.active() is None


def test_one_at_a_time_and_the_first_one_goes_on() -> None:
    with gimlet.profile("outer") as outer:
        with pytest.raises(UsageError, match="'outer' is running already"), gimlet.profile("inner"):
            pass
        caught: list[Exception] = []

        def other() -> None:
            try:
                gimlet.profile("thread").start()
            except UsageError as error:
                caught.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert len(caught) == 1
        assert profiling.active() is outer
    assert outer.run is not None
    assert outer.run.status == "ok"


def test_a_forked_child_has_no_profile() -> None:
    recorder = gimlet.profile("parent")
    recorder.start()
    child = os.fork()
    if child == 0:
        os._exit(0 if profiling.active() is None and recorder.finish() is None else 1)
    _, status = os.waitpid(child, 0)
    run = recorder.finish()
    assert os.waitstatus_to_exitcode(status) == 0
    assert run is not None


def test_nothing_is_left_behind() -> None:
    before = (sys.getprofile(), sys.gettrace(), threading.active_count())
    with gimlet.profile("clean"):
        sorted(range(100), key=lambda x: -x)
    assert (sys.getprofile(), sys.gettrace(), threading.active_count()) == before


def test_text_is_kept_only_when_asked_for() -> None:
    with gimlet.profile("without") as without:
        pass
    with gimlet.profile("with", keep_text=True) as kept:
        pass
    assert without.run is not None
    assert without.run.text is None
    assert kept.run is not None
    assert "test_text_is_kept_only_when_asked_for" in (kept.run.text or "")


def test_a_step_that_fails_is_a_note_in_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise RuntimeError("no analysis today")

    monkeypatch.setattr("gimlet_lab.analysis.analyse", broken)
    with gimlet.profile("noted") as recorder:
        pass
    assert recorder.run is not None
    assert any("no analysis today" in note for note in recorder.run.notes)


def test_runs_show_as_pictures_once_the_package_is_imported(tmp_path: Path) -> None:
    path = sample_run().save(tmp_path / "r.gimlet")
    code = (
        "from IPython.core.interactiveshell import InteractiveShell as S; shell = S.instance()\n"
        f"import gimlet_lab\nrun = gimlet_lab.Run.load({str(path)!r})\n"
        "print(sorted(shell.display_formatter.format(run)[0]))\n"
        "print([t for t in shell.input_transformers_cleanup if 'gimlet' in str(t)])"
    )
    shown = ["application/vnd.gimlet.run.v1+json", "image/png", "text/html", "text/plain"]
    assert python(code).splitlines()[-2:] == [str(shown), "[]"]
