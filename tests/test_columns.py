"""Long columns: as bytes on disk, the same rows when read."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from samples import empty_run

from gimlet_lab.errors import RunFileError
from gimlet_lab.model import Op, Run, Span, Work, columns, store

ROWS = columns.DENSE_ROWS + 3


def long_run() -> Run:
    """Columns of every kind: one value, few, many, None among them, numbers JSON has no word for."""
    works = [Work.of("gemm", m=1, n=64 + index, k=8) for index in range(300)]
    ops = tuple(
        Op(
            f"aten::op{index % 700}",
            index % 5,
            "schön" if index % 2 else "\ud800",
            None if index % 7 == 0 else works[index % 300],
            index * 1.1e-6,
            math.inf if index == 9 else 1e-7 + index * 1e-12,
            None if index % 3 else float(index),
            float(index % 11),
            None,
            "bfloat16",
            "cpu",
            index,
            device_timed=bool(index % 2),
        )
        for index in range(ROWS)
    )
    spans = tuple(
        Span(index, "f", "function", 0.1 * index, 0.1, None if index == 0 else 0, attributes={"n": [index]})
        for index in range(ROWS)
    )
    return replace(
        empty_run(),
        operators=ops,
        inferred=tuple(index % 2 == 0 for index in range(ROWS)),
        stage_of=tuple(None if index % 2 else "s" for index in range(ROWS)),
        span_list=spans,
    )


def test_long_columns_come_back_as_they_were(tmp_path: Path) -> None:
    run = long_run()
    again = Run.load(run.save(tmp_path / "r"))
    assert again == run
    assert {type(op.count) for op in again.operators} == {int}
    assert {type(op.device_timed) for op in again.operators} == {bool}
    assert {type(flag) for flag in again.inferred} == {bool}
    with zipfile.ZipFile(tmp_path / "r.gimlet") as archive:
        held = json.loads(archive.read("operators.json"))["columns"]
    assert set(held["start_s"]) == {"f8"}
    assert set(held["dtype"]) == {"table", "u1"}
    assert set(held["op"]) == {"table", "u2"}
    assert isinstance(held["flops"], dict | list)


def test_a_file_of_lists_is_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = long_run()
    monkeypatch.setattr(columns, "DENSE_ROWS", 10**9)
    path = run.save(tmp_path / "r")
    monkeypatch.undo()
    assert Run.load(path) == run


@pytest.mark.parametrize(
    "held", [{}, {"f8": "not base64!"}, {"f8": "AAAA"}, {"table": ["x"], "u1": "AQ=="}, {"u2": "AAA="}]
)
def test_a_column_that_is_not_whole_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: dict[str, object]
) -> None:
    monkeypatch.setattr(columns, "_dense", lambda values, known: held)
    path = replace(empty_run(), operators=long_run().operators[:1], inferred=(False,), stage_of=(None,)).save(
        tmp_path / "r"
    )
    with pytest.raises(RunFileError, match="is not a whole run") as caught:
        store.load(path)
    assert "\n" not in str(caught.value)
