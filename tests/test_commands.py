"""The commands without a kernel: parser, errors, help, completion, and each over saved nouns."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import sample_fleet, sample_plan, sample_run

from gimlet_lab import commands
from gimlet_lab.comparison import compare
from gimlet_lab.errors import GimletError, RunFileError, UnknownNameError, UsageError
from gimlet_lab.notebook import KEPT, Notebook, file_name
from gimlet_lab.parser import seconds, split


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    held = Notebook({}, folder=lambda: tmp_path / "runs")
    held.add_run(sample_run("first"))
    held.add_run(sample_run("second"))
    held.add_plan(sample_plan())
    held.fleet = sample_fleet()
    return held


def said(line: str, notebook: Notebook, prog: str = "%gimlet") -> str:
    return commands.run_line(split(line), notebook, prog)[0].text()


def value(line: str, notebook: Notebook) -> Any:
    return commands.run_line(split(line), notebook)[0].value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("phasse", "no command 'phasse'; did you mean 'phases'"),
        ("phases secnd", "no run 'secnd'; did you mean 'second'?"),
        ("advise --objectve latency", "no option '--objectve'; did you mean --objective"),
        ("advise --objective latncy", "no objective 'latncy'; did you mean 'latency'?"),
        ("advise --slo ttfft=1s", "no service level 'ttfft'; did you mean 'ttft'?"),
        ("advise --slo ttft=1", "'1' is not a time with its unit"),
        ("advise --pin prefil=cpu", "no stage 'prefil'; did you mean 'prefill'?"),
        ("advise --pin prefill", "'prefill' is not of the form NAME=VALUE"),
        ("advise --rate 10", "'10' is not requests in a time, like 10/s"),
        ("advise --max-price 0/h", "'0/h' is not above 0"),
        ("export plam x", "no target 'plam'; did you mean 'plan'?"),
        ("export plan", "needs PATH"),
        ("apply --backend locl", "'local'"),
        ("config exakt=on", "no setting 'exakt'; did you mean 'exact'?"),
        ("config exact=maybe", "on or off, not 'maybe'"),
        ("save", "needs PATH"),
        ("rollback now", "does not take 'now'"),
        ("runs --all", "takes no options, not '--all'"),
        ("phases 'open", "no closing quotation"),
        ("import trace.json", "trace.json: there is no such file"),
        ("stacks nowhere", "no run 'nowhere'"),
        ("phases -o not-a-name", "'not-a-name' is not a name for a variable"),
        ("load nowhere.gimlet", "no such file"),
        ("load nowhere.json", "no such file"),
        ("fleet h100-smx", "did you mean 'h100-sxm'"),
        ("solve nowhere.json", "No such file"),
        ("check nowhere.json x.json", "No such file"),
        ("check nowhere.json", "needs SOLUTION"),
    ],
)
def test_mistakes_are_one_line_with_what_is_near(notebook: Notebook, line: str, message: str) -> None:
    with pytest.raises(GimletError) as caught:
        said(line, notebook)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.lists(st.text(min_size=1, max_size=12), max_size=4))
def test_no_words_break_the_parser(words: list[str]) -> None:
    with contextlib.suppress(GimletError):
        assert commands.parser("%gimlet").parse(words).command in (None, *commands.COMMANDS)


@given(st.floats(min_value=1e-6, max_value=1e4), st.sampled_from([("us", 1e-6), ("ms", 1e-3), ("s", 1.0)]))
def test_times_with_units(number: float, unit: tuple[str, float]) -> None:
    assert seconds(f"{number:.6f}{unit[0]}") == pytest.approx(float(f"{number:.6f}") * unit[1])


def test_every_command_has_help_and_a_summary() -> None:
    for prog in ("%gimlet", "gimlet"):
        parser = commands.parser(prog)
        assert {"phases", "advise", "export", "profile"} <= set(parser.commands())
        for name in parser.commands():
            assert commands.COMMANDS[name].summary.partition("%")[0][:20] in parser.document(name)
            assert name in parser.document()


def test_help_never_exits(notebook: Notebook) -> None:
    assert "COMMAND" in said("--help", notebook)
    assert "--objective" in said("advise --help", notebook)


def test_views_and_names(notebook: Notebook, tmp_path: Path) -> None:
    path = sample_run("on disk").save(tmp_path / "file.gimlet")
    notebook.namespace["second"] = sample_run("variable")
    notebook.namespace["held"] = [sample_run("item")]
    for reference, name in {
        "": "second", "first": "first", "second": "variable", "held[0]": "item", str(path): "on disk",
    }.items():  # fmt: skip
        assert value(f"phases {reference}", notebook).name == name
    for view in ("phases", "roofline", "graph", "calls"):
        assert "prefill" in said(view, notebook)


def test_a_run_file_that_is_not_one(notebook: Notebook, tmp_path: Path) -> None:
    path = tmp_path / "cut.gimlet"
    path.write_bytes(sample_run().save(tmp_path / "whole.gimlet").read_bytes()[:-100])
    with pytest.raises(RunFileError):
        said(f"phases {path}", notebook)


def test_without_anything_yet() -> None:
    empty = Notebook({}, folder=lambda: Path("/nonexistent"))
    for line, hint in {
        "phases": "%%gimlet",
        "apply": "%gimlet advise",
        "export plan x": "%gimlet advise",
    }.items():
        with pytest.raises(GimletError, match=hint):
            said(line, empty)
    assert "no runs yet" in said("runs", empty)
    assert "nothing to roll back" in said("rollback", empty)
    assert "last run" in said("", empty)


def test_runs_save_load_and_keep(notebook: Notebook, tmp_path: Path) -> None:
    assert said("runs", notebook).index("first") < said("runs", notebook).index("second")
    path = tmp_path / "with space.gimlet"
    assert str(path) in said(f"save first '{path}'", notebook)
    assert value(f"load '{path}' -o loaded", notebook).name == "first"
    assert commands.run_line(["load", str(path), "-o", "loaded"], notebook)[1] == "loaded"
    assert list(notebook.runs)[-1] == "first"
    assert "save=on" in said("config save=on", notebook)
    notebook.keep(sample_run("kept: a/b"))
    assert [file.name.startswith("kept--a-b-") for file in notebook.saved_runs()] == [True]
    assert str(notebook.saved_runs()[0]) in said("runs", notebook)
    for number in range(2 * KEPT):
        notebook.add_run(replace(sample_run("x"), name=f"n{number}"))
    assert len(notebook.runs) == KEPT
    assert next(reversed(notebook.runs)) == f"n{2 * KEPT - 1}"


def test_compare_shows_what_the_plan_had_predicted(notebook: Notebook) -> None:
    plan = sample_plan()
    before = sample_run("before")
    after = replace(before, name="after", deployment=dict(plan.assignment))
    found = compare(before, after, plan)
    rows = {row.stage: row for row in found.rows}
    assert list(rows) == [*(stage.id for stage in before.graph.stages), "whole cell"]
    decode = plan.graph["decode"]
    estimate = plan.estimates["decode"][plan.assignment["decode"]]
    assert rows["decode"].predicted_s == pytest.approx(estimate.seconds * decode.calls)
    assert rows["whole cell"].predicted_s == plan.latency_s
    assert "+0%" in found.text()
    notebook.add_run(before)
    notebook.add_run(after)
    assert plan.assignment["decode"] in said("compare before after", notebook)
    assert commands.run_line(["compare", "after", "before"], notebook)[0].text().count("–") > 0


def test_unknown_is_a_dash_and_names_are_escaped() -> None:
    before, after = sample_run("<b>"), replace(sample_run("&"), graph=type(sample_run().graph)())
    html = compare(before, after).html()
    assert "<b>" not in html and "&lt;b&gt;" in html  # noqa: PT018 - one thing: escaped
    assert "0.00" not in compare(before, after).text()


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [text or "" for name, text in attrs if name in ("src", "href", "xlink:href")]


def test_report_is_one_page_that_asks_nobody(notebook: Notebook, tmp_path: Path) -> None:
    notebook.add_run(sample_run("<script>alert(1)</script>"))
    path = tmp_path / "page.html"
    said(f"report {path}", notebook)
    page = _Tags()
    page.feed(path.read_text(encoding="utf-8"))
    assert {"svg", "table", "h1"} <= page.tags
    assert "script" not in page.tags
    assert [address for address in page.addresses if not address.startswith(("#", "data:"))] == []


def test_export_lists_and_writes(notebook: Notebook, tmp_path: Path) -> None:
    assert {"plan", "device-map"} <= set(said("export", notebook).split())
    said(f"export plan {tmp_path}/plan.json", notebook)
    assert json.loads((tmp_path / "plan.json").read_text())["schema"] == "gimlet.plan/1"
    assert value(f"load {tmp_path}/plan.json", notebook) == sample_plan()
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(GimletError, match="not a plan"):
        said(f"load {tmp_path}/other.json", notebook)


def test_a_fleet_is_priced_by_a_basis(notebook: Notebook) -> None:
    assert "operating: 25,000 USD" in said("fleet h100-sxm --price operating", notebook)
    first = notebook.fleet
    assert first is not None
    assert first["h100-sxm"].usd_per_hour is not None
    said("fleet --price rent", notebook)
    assert notebook.fleet is not None
    assert notebook.fleet["h100-sxm"].usd_per_hour != first["h100-sxm"].usd_per_hour
    with pytest.raises(GimletError, match="amortised"):
        said("fleet h100-sxm --price amortized", notebook)


def test_fleet_is_remembered(notebook: Notebook) -> None:
    assert "t4" in said("fleet t4 h100-sxm:2", notebook)
    assert notebook.fleet is not None
    assert [device.id for device in notebook.find_fleet()] == ["t4", "h100-sxm"]
    notebook.namespace["mine"] = sample_fleet()
    assert notebook.find_fleet(["mine"]) == sample_fleet()


def test_settings(notebook: Notebook) -> None:
    assert "keep_text=on" in said("config keep-text=on", notebook)
    assert notebook.settings.keep_text


def test_completion(notebook: Notebook) -> None:
    notebook.namespace["run_of_mine"] = sample_run()
    complete = lambda line: commands.complete(line, notebook)  # noqa: E731 - one word
    assert complete("%gimlet ro") == ["rollback", "roofline"]
    assert {"phases", "advise", "runs"} <= set(complete("%gimlet "))
    assert complete("%gimlet phases run_") == ["run_of_mine"]
    assert {"first", "second"} <= set(complete("%gimlet graph "))
    assert complete("%gimlet advise --obj") == ["--objective"]
    assert complete("%gimlet advise --objective ") == ["cost", "energy", "latency", "throughput"]
    assert "h100-sxm" in complete("%gimlet fleet h100")
    assert "h100-pcie" in complete("%gimlet advise --on t4 h100")
    assert "decode=" in complete("%gimlet advise --pin dec")[0]
    assert complete("%gimlet export dev") == ["device-map"]
    assert complete("%gimlet config sa") == ["save="]
    assert complete("%%gimlet --na") == ["--name", "--native"]
    assert complete("%%gimlet profile --qu") == ["--quiet"]
    assert complete("%gimlet nosuch ") == []


def test_file_names_are_safe() -> None:
    assert file_name("../../etc/passwd") == "-..-etc-passwd"
    assert file_name("..") == "run"


def test_shell_has_no_last_run_and_no_notebook(notebook: Notebook) -> None:
    with pytest.raises(UsageError, match="needs RUN"):
        said("phases", notebook, "gimlet")
    with pytest.raises(UsageError, match="needs a notebook"):
        said("apply", notebook, "gimlet")
    with pytest.raises(UnknownNameError):
        said("nosuch", notebook, "gimlet")


def test_devices_show_how_they_are_connected_and_what_they_do(
    notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gimlet_lab.hardware import discovery, meters
    from gimlet_lab.model import Device, Quantity

    class Meter:
        name = "a"

        def open(self) -> Any:
            class Probe:
                devices = ("cuda:0", "cuda:1")
                cards = ()

                def read(self, _now_s: float) -> Any:
                    return {
                        "cuda:0": {"utilization": 0.97, "power_w": 352.0, "throttle_reasons": "power cap"},
                        "cuda:1": {"utilization": "N/A"},
                    }

            return [Probe()], ()

    rate = Quantity(450e9, "NVSwitch, 18 links, by the driver", "2026-01-01", "vendor")
    found = (
        Device("cuda:0", "H100", "NVIDIA", "gpu", peers={"cuda:1": rate}, details={"driver": "580.65"}),
        Device("cuda:1", "H100", "NVIDIA", "gpu"),
    )
    sampler = meters.Sampler(lambda: [Meter()])
    monkeypatch.setattr(discovery, "local_devices", lambda **_: found)
    monkeypatch.setattr(meters, "shared", lambda: sampler)
    lines = said("devices", notebook).splitlines()
    assert "cuda:0  cuda:1  450 GB/s  NVSwitch, 18 links, by the driver" in lines
    (first,) = (line for line in lines if "power cap" in line)
    assert first.split()[:2] == ["cuda:0", "97%"]
    assert "352 W" in first
    rows = json.loads(said("devices --json", notebook))
    assert rows[0]["details"]["driver"] == "580.65"
    assert rows[0]["peers"]["cuda:1"]["value"] == 450e9
    assert (rows[0]["now"]["power_w"], rows[1]["now"]["utilization"]) == (352.0, None)
