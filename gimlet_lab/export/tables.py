"""A run as tables for a spreadsheet or pandas: a folder of ops, phases, spans and edges, CSV or Parquet."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gimlet_lab.errors import GimletError
from gimlet_lab.model.columns import dumps, frame
from gimlet_lab.model.graph import Edge
from gimlet_lab.model.run import Run
from gimlet_lab.model.store import write_atomic

if TYPE_CHECKING:
    import pandas


def write_csv(run: Run, path: Path, _options: Mapping[str, Any]) -> Path:
    """Write one CSV a table; unknown is empty."""

    def encode(table: pandas.DataFrame) -> bytes:
        return table.to_csv(index=False).encode()

    return _write(run, path, "csv", encode)


def write_parquet(run: Run, path: Path, _options: Mapping[str, Any]) -> Path:
    """Write one Parquet file a table; unknown is null.

    Raises
    ------
    GimletError
        If pyarrow is not installed.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise GimletError(
            "export parquet: needs pyarrow, which is not installed: pip install 'gimlet-lab[parquet]'"
        )

    def encode(table: pandas.DataFrame) -> bytes:
        data = table.to_parquet(index=False, engine="pyarrow")
        assert isinstance(data, bytes)
        return data

    return _write(run, path, "parquet", encode)


def tables(run: Run) -> dict[str, pandas.DataFrame]:
    """``ops``, ``phases``, ``spans`` and ``edges``; a cell that is neither text nor a number holds JSON."""
    edges = {column.name: [getattr(edge, column.name) for edge in run.graph.edges] for column in fields(Edge)}
    found = {"ops": run.ops, "phases": run.phases, "spans": run.spans, "edges": frame(edges)}
    return {name: _plain(table) for name, table in found.items()}


def _write(run: Run, path: Path, suffix: str, encode: Callable[[pandas.DataFrame], bytes]) -> Path:
    encoded = {name: encode(table) for name, table in tables(run).items()}
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        reason = "is a file, not a folder" if path.is_file() else error.strerror or error
        raise GimletError(f"cannot write {path}: {reason}") from None
    for name, data in encoded.items():
        write_atomic(path / f"{name}.{suffix}", data)
    return path


def _plain(table: pandas.DataFrame) -> pandas.DataFrame:
    """Columns of one kind each: where they hold several, all of it is text."""
    for name in table.columns:
        column = table[name]
        if column.dtype != object:
            continue
        kinds = {type(value) for value in column if value is not None and value == value}
        if kinds <= {str} or kinds <= {bool} or kinds <= {int, float}:
            continue
        table[name] = [_text(value) for value in column]
    return table


def _text(value: Any) -> str | None:
    if value is None or value != value:
        return None
    return value if isinstance(value, str) else dumps(value).decode()
