"""A plan as JSON: the whole of it, its predictions with their intervals, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gimlet_lab.errors import GimletError
from gimlet_lab.model.columns import dumps, loads
from gimlet_lab.model.plan import SCHEMA, Plan
from gimlet_lab.model.store import write_atomic, writer


class PlanFileError(GimletError, ValueError):
    """A file that is not a whole plan of a version this program reads."""


def write(plan: Plan, path: Path, _options: Mapping[str, Any]) -> Path:
    """Write a plan; ``load_plan`` reads it."""
    return write_atomic(path, dumps(plan.to_json(), indent=1) + b"\n")


def load_plan(path: str | Path) -> Plan:
    """Read an exported plan, where torch is missing too.

    Raises
    ------
    PlanFileError
        If there is no such file, or it is cut short, of another kind or of a newer version.
    """
    path = Path(path)
    try:
        data = loads(path.read_bytes())
    except FileNotFoundError:
        raise PlanFileError(f"{path}: there is no such file") from None
    except OSError as error:
        raise PlanFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise PlanFileError(f"{path}: is cut short or not JSON, not a plan") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    kind, _, version = str(schema).partition("/")
    ours, _, newest = SCHEMA.partition("/")
    if schema is None or kind != ours or not version.isdecimal():
        said = f"it is {str(schema)[:60]!r}" if schema is not None else "it names no schema"
        raise PlanFileError(f"{path}: is not a plan: {said}, wanted {SCHEMA!r}")
    if int(version) > int(newest):
        raise PlanFileError(
            f"{path}: is a plan of version {version}; this is {writer()}, which reads up to version "
            f"{newest}: upgrade gimlet_lab to open it"
        )
    try:
        return Plan.from_json(data)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        what = " ".join(str(error).split())[:120]
        raise PlanFileError(f"{path}: is not a whole plan ({type(error).__name__}: {what})") from None
