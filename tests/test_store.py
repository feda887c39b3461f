from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import random
import subprocess
import sys
import threading
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import empty_run, hostile_run, sample_run

from gimlet_lab.errors import GimletError, RunFileError
from gimlet_lab.model import Edge, Graph, ModuleInfo, Op, Phase, Run, Span, Stage, Work, store
from gimlet_lab.model.meters import Gap, MeterSeries
from gimlet_lab.render.display import display_form

# --- round trip ---

texts = st.text(st.characters(codec=None), max_size=12)
names = st.one_of(st.sampled_from(["decode", "aten::mm", ""]), texts)
maybe_names = st.none() | names
# Not a number is not equal to itself, so the property leaves it out; its own test is below.
numbers = st.floats(allow_nan=False)
maybe_numbers = st.none() | numbers
counts = st.integers(0, 2**70)
dims = st.dictionaries(st.text("mnkxyz_", min_size=1, max_size=4), st.integers(-(2**60), 2**60), max_size=4)
works = st.builds(
    lambda op, d, t, c: Work(op, tuple(sorted(d.items())), t, c), names, dims, names, st.integers(1, 99)
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts.filter(lambda key: key != "$float"), inner, max_size=3)
    ),
    max_leaves=6,
)
mappings = st.dictionaries(texts, json_values, max_size=3).filter(lambda d: "$float" not in d)
ops = st.builds(
    Op, names, counts, names, st.none() | works, numbers, numbers, maybe_numbers, maybe_numbers,
    maybe_numbers, names, names, st.integers(1, 10**9), numbers, numbers,
)  # fmt: skip
spans = st.builds(
    Span, counts, names, names, numbers, numbers, st.none() | counts, counts, maybe_names, maybe_names,
    maybe_names, st.booleans(), mappings,
)  # fmt: skip
phases = st.builds(
    Phase,
    numbers,
    numbers,
    names,
    maybe_names,
    maybe_names,
    maybe_numbers,
    maybe_numbers,
    st.booleans(),
    maybe_numbers,
    st.none() | st.booleans(),
)
weights = st.dictionaries(texts, counts, max_size=3)
stages = st.builds(
    Stage, names, names, maybe_names, maybe_names, counts, numbers, numbers, names,
    st.lists(works, max_size=2).map(tuple), counts, maybe_numbers, maybe_numbers, maybe_numbers, weights,
    counts, maybe_names, maybe_names, st.booleans(), st.booleans(), counts, numbers, maybe_numbers,
)  # fmt: skip
edges = st.builds(Edge, names, names, names, maybe_numbers, counts, names, st.booleans())
graphs = st.builds(Graph, st.lists(stages, max_size=3).map(tuple), st.lists(edges, max_size=3).map(tuple))
readings = st.dictionaries(names, st.lists(maybe_numbers | maybe_names, max_size=3).map(tuple), max_size=3)
meters = st.builds(
    MeterSeries, names, st.lists(numbers, max_size=3).map(tuple), readings, maybe_names,
    st.lists(st.builds(Gap, numbers, numbers, st.booleans()), max_size=2).map(tuple),
)  # fmt: skip
modules = st.builds(ModuleInfo, names, names, weights, names, names, st.booleans())


@st.composite
def runs(draw: st.DrawFn) -> Run:
    rows = draw(st.lists(st.tuples(ops, st.booleans(), maybe_names), max_size=5))
    return replace(
        sample_run(tokens=2),
        name=draw(names), status=draw(names), error=draw(maybe_names), started=draw(names),
        duration_s=draw(numbers), overhead_s=draw(numbers), environment=draw(mappings),
        operators=tuple(row[0] for row in rows), inferred=tuple(row[1] for row in rows),
        stage_of=tuple(row[2] for row in rows),
        span_list=tuple(draw(st.lists(spans, max_size=4))),
        span_stage=draw(st.dictionaries(st.integers(), names, max_size=3)),
        phase_list=tuple(draw(st.lists(phases, max_size=4))), graph=draw(graphs),
        modules=tuple(draw(st.lists(modules, max_size=2))), min_phase_s=draw(numbers),
        notes=tuple(draw(st.lists(texts, max_size=2))),
        deployment=draw(st.dictionaries(texts, texts, max_size=2)),
        meter_list=tuple(draw(st.lists(meters, max_size=2))),
        transferred_bytes=draw(numbers), text=draw(maybe_names),
        display=draw(st.dictionaries(texts, st.none() | st.integers() | texts, max_size=3)),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(run=runs())
def test_what_is_saved_is_what_is_loaded(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = store.save(run, tmp_path_factory.mktemp("runs") / "r.gimlet")
    loaded = store.load(path)
    assert loaded == run
    # Types too: 1 and 1.0 and True are equal and not the same.
    assert repr(loaded) == repr(run)


def test_a_real_run_with_its_display_form_and_back(tmp_path: Path) -> None:
    run = sample_run()
    run = replace(run, display=display_form(run))
    assert Run.load(run.save(tmp_path / "agent")) == run
    assert (tmp_path / "agent.gimlet").is_file()
    assert Run.load(tmp_path / "agent") == run


def test_numbers_that_are_none_are_kept_and_in_the_display_form_unknown(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    run = replace(
        empty_run(),
        overhead_s=nan,
        operators=(Op("x", 0, "", None, -inf, inf, nan, -0.0, 5e-324, "float32", "cpu"),),
        inferred=(False,),
        stage_of=(None,),
        span_list=(Span(0, "s", "cell", 0.0, 1.0, attributes={"a": [nan, {"b": inf}]}),),
        display={"x": nan, "y": [inf, 1.0], "z": None},
    )
    loaded = store.load(store.save(run, tmp_path / "r"))
    op = loaded.operators[0]
    assert math.isnan(loaded.overhead_s)
    assert (op.start_s, op.duration_s, op.bytes_written) == (-inf, inf, 5e-324)
    assert op.flops is not None
    assert math.isnan(op.flops)
    assert str(op.bytes_read) == "-0.0"
    assert str(loaded.span_list[0].attributes) == str({"a": [nan, {"b": inf}]})
    assert loaded.display == {"x": None, "y": [None, 1.0], "z": None}


def test_things_that_json_cannot_hold_are_kept_by_their_text(tmp_path: Path) -> None:
    import numpy

    odd = {"shape": (1, 2), "path": Path("/x"), "n": numpy.int64(3), "f": numpy.float32(0.5), 7: {1}}
    run = replace(empty_run(), environment=odd)
    loaded = store.load(store.save(run, tmp_path / "r"))
    assert loaded.environment == {"shape": [1, 2], "path": "/x", "n": 3, "f": 0.5, "7": [1]}


def test_hostile_names_and_numbers_survive(tmp_path: Path) -> None:
    run = hostile_run()
    loaded = store.load(store.save(run, tmp_path / "r"))
    assert repr(loaded) == repr(run)


def test_every_member_is_plain_json_that_a_page_can_read(tmp_path: Path) -> None:
    run = hostile_run()
    path = store.save(replace(run, display=display_form(run)), tmp_path / "r")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        members = {name: archive.read(name) for name in archive.namelist()}
    for data in members.values():
        json.loads(data.decode("ascii"), parse_constant=refuse)
    manifest = json.loads(members.pop("manifest.json"))
    assert manifest["schema"] == "gimlet.run/1"
    assert manifest["writer"].startswith("gimlet_lab ")
    assert {n: m["sha256"] for n, m in manifest["members"].items()} == {
        n: hashlib.sha256(data).hexdigest() for n, data in members.items()
    }
    assert json.loads(members["display.json"])["schema"] == "gimlet.display/1"


def test_the_same_run_is_the_same_bytes(tmp_path: Path) -> None:
    a = store.save(sample_run(), tmp_path / "a").read_bytes()
    assert a == store.save(sample_run(), tmp_path / "b").read_bytes()


def test_columns_that_do_not_match_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stage has 1 entries for 0 rows"):
        store.save(replace(empty_run(), stage_of=("x",)), tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


# --- files that are not runs ---


def rewritten(path: Path, **members: object) -> Path:
    """The run file with members replaced (None: left out) and checksums made right again."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(contents.pop("manifest.json"))
    manifest.update(members.pop("manifest", {}))  # type: ignore[call-overload]
    for name, value in members.items():
        name += ".json"
        if value is None:
            del contents[name]
        else:
            contents[name] = value if isinstance(value, bytes) else json.dumps(value).encode()
            manifest["members"][name] = {"sha256": hashlib.sha256(contents[name]).hexdigest()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return store.save(sample_run(tokens=2), tmp_path / "r.gimlet")


def refused(path: Path) -> str:
    with pytest.raises(RunFileError) as caught:
        store.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_no_file_a_folder_an_empty_file(tmp_path: Path) -> None:
    assert "there is no such file" in refused(tmp_path / "none.gimlet")
    assert "is a folder" in refused(tmp_path)
    (tmp_path / "empty.gimlet").touch()
    assert "is empty" in refused(tmp_path / "empty.gimlet")


@pytest.mark.parametrize(
    "data", [b"hello", b"\x80\x04K\x01.", b'{"schema": "gimlet.run/1"}', b"\x1f\x8b\x08"]
)
def test_files_of_another_kind(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.gimlet").write_bytes(data)
    assert "is not a run file" in refused(tmp_path / "x.gimlet")


def test_a_zip_of_another_kind(tmp_path: Path, saved: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    assert "zip of another kind" in refused(path)
    for manifest in (
        b"[]",
        b"null",
        b'"x"',
        b"{}",
        b'{"schema": 3}',
        b'{"schema": "gimlet.run/x"}',
        b"[" * 9999,
    ):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("manifest.json", manifest)
        assert "zip of another kind" in refused(path)
    assert "holds a 'gimlet.plan', not a 'gimlet.run'" in refused(
        rewritten(saved, manifest={"schema": "gimlet.plan/1"})
    )


def test_a_newer_version_names_both_versions(saved: Path) -> None:
    message = refused(rewritten(saved, manifest={"schema": "gimlet.run/7", "writer": "gimlet_lab 9.1"}))
    assert "version 7 (written by gimlet_lab 9.1)" in message
    assert "up to version 1" in message
    assert store.writer() in message


def test_a_missing_member_and_a_wrong_checksum(saved: Path) -> None:
    whole = saved.read_bytes()
    assert "spans.json is missing" in refused(rewritten(saved, spans=None))
    saved.write_bytes(whole)
    with zipfile.ZipFile(saved, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile says that the name is there already
        archive.writestr("run.json", "{}")  # readers take the last one
    assert "checksum of run.json is wrong" in refused(saved)
    saved.write_bytes(whole)
    assert "missing" in refused(rewritten(saved, manifest={"members": []}))


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("run", {}),
        ("run", []),
        ("run", b"{"),
        ("run", b"[" * 100_000),
        ("spans", {"rows": 1, "strings": [], "columns": {"id": []}}),
        ("spans", {"rows": 1, "strings": [], "columns": {"id": [0]}}),
        ("spans", {"rows": 1, "strings": [], "columns": {"name": [4]}}),
        ("operators", {"rows": 0, "strings": [], "columns": {}}),
        ("operators", {"rows": 1, "strings": [], "works": [{"m": 1}], "columns": {"work": [0]}}),
        ("phases", None),
        ("phases", "text"),
        ("meters", {"a": 1}),
        ("meters", [{"device": "cpu"}]),
        ("display", b"\xff"),
    ],
)
def test_whole_checksums_around_a_wrong_content(saved: Path, member: str, value: object) -> None:
    assert "not" in refused(rewritten(saved, **{member: value}))


def test_cut_short_anywhere_is_an_error(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in {1, 2, 4, *range(5, len(whole), 97), len(whole) - 1}:
        saved.write_bytes(whole[:length])
        refused(saved)


def test_any_changed_byte_is_an_error_or_changes_nothing(saved: Path) -> None:
    run, whole = store.load(saved), saved.read_bytes()
    chance = random.Random(7)
    errors = 0
    for _ in range(400):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        saved.write_bytes(data)
        try:
            loaded = store.load(saved)
        except RunFileError:
            errors += 1
        else:
            assert loaded == run  # a date or a flag in the zip's own headers
    assert errors > 200


def test_a_bomb_is_not_unpacked(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_MEMBER_BYTES", 100_000)
    assert "larger than a run can be" in refused(rewritten(saved, display=b" " * 10_000_000))


def test_members_nobody_asked_for_are_not_read(saved: Path, tmp_path: Path) -> None:
    run = store.load(saved)
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("../../evil.json", "x")
        archive.writestr("/etc/evil", "x")
    before = set(tmp_path.rglob("*"))
    assert store.load(saved) == run
    assert set(tmp_path.rglob("*")) == before


def test_fields_of_a_later_writer_of_the_same_version_are_left_aside(saved: Path) -> None:
    run = store.load(saved)
    with zipfile.ZipFile(saved) as archive:
        head = json.loads(archive.read("run.json"))
        spans = json.loads(archive.read("spans.json"))
    head["later"] = 1
    spans["columns"]["later"] = [0] * spans["rows"]
    del spans["columns"]["attributes"]
    loaded = store.load(rewritten(saved, run=head, spans=spans))
    assert loaded == replace(run, span_list=tuple(replace(span, attributes={}) for span in run.span_list))


def test_a_run_of_before_there_were_meters_still_opens(saved: Path) -> None:
    run = store.load(saved)
    with zipfile.ZipFile(saved) as archive:
        members = json.loads(archive.read("manifest.json"))["members"]
    del members["meters.json"]
    old = rewritten(saved, meters=None, manifest={"members": members})
    assert store.load(old) == replace(run, meter_list=())


# --- writing ---


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = saved.read_bytes()

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GimletError, match=r"cannot write .*No space left on device"):
        store.save(sample_run(), saved)
    assert saved.read_bytes() == whole
    assert [path.name for path in saved.parent.iterdir()] == ["r.gimlet"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_fd: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(sample_run(tokens=2), tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_say_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "d.gimlet").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "r.gimlet", tmp_path / "d.gimlet", tmp_path / "file" / "r.gimlet",
                 tmp_path / ("n" * 300 + ".gimlet")):  # fmt: skip
        with pytest.raises(GimletError, match="cannot write") as caught:
            store.save(empty_run(), path)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.gimlet", "file"]


def test_permissions_follow_the_umask_and_links_stay_links(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = store.save(empty_run(), tmp_path / "r")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    link = tmp_path / "link.gimlet"
    link.symlink_to(path)
    store.save(empty_run(name="other"), link)
    assert link.is_symlink()
    assert store.load(path).name == "other"


def test_readers_beside_writers_see_whole_runs(tmp_path: Path) -> None:
    path = tmp_path / "r.gimlet"
    versions = [sample_run("a", tokens=2), sample_run("b", tokens=4)]
    store.save(versions[0], path)
    done = threading.Event()

    def write() -> None:
        for turn in range(30):
            store.save(versions[turn % 2], path)
        done.set()

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = 0
    while not done.is_set() or seen == 0:
        assert store.load(path) in versions
        seen += 1
    for writer in writers:
        writer.join()
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.gimlet"]


def test_a_run_opens_where_torch_and_the_rest_are_missing(saved: Path) -> None:
    code = f"""
import sys
for name in ("torch", "matplotlib", "pandas", "ray", "ortools", "IPython", "numpy", "networkx"):
    sys.modules[name] = None
from gimlet_lab.model.store import load
print(load({str(saved)!r}).name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("agent", "")


def test_a_large_run_is_small_on_disk(tmp_path: Path) -> None:
    run = sample_run(tokens=2000)
    data = store.save(run, tmp_path / "r").read_bytes()
    assert len(data) < 40 * len(run.operators)
    assert store.load(tmp_path / "r") == run
    assert zipfile.is_zipfile(io.BytesIO(data))


def test_the_example_in_the_docstring_is_true() -> None:
    import doctest

    done = doctest.testmod(store)
    assert (done.attempted > 0, done.failed) == (True, 0)
