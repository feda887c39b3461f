"""Ray itself, imported so that it works, and what it raises in words for people."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from gimlet_lab.errors import GimletError

#: A folder with an ``amdsmi`` that says it is not there. Ray takes that for an answer, and breaks on the
#: KeyError that the real package raises on a machine without ROCm.
_WITHOUT_AMDSMI = Path(__file__).with_name("without_amdsmi")


def library() -> Any:
    """The module ``ray``.

    Raises
    ------
    GimletError
        If it is not installed, or cannot be imported.
    """
    if "ray" in sys.modules:
        return sys.modules["ray"]
    if importlib.util.find_spec("ray") is None:
        raise GimletError("Ray is not installed: pip install 'gimlet-lab[ray]'")
    _set_amdsmi_aside()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
        raise GimletError(f"Ray cannot be imported: {type(error).__name__}: {error}") from None


def first_line(error: BaseException) -> str:
    """The line of one of Ray's long messages that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _set_amdsmi_aside() -> None:
    """Where AMD's binding is installed and its driver is not, hide it from Ray and from what Ray starts."""
    if importlib.util.find_spec("amdsmi") is None:
        return
    from gimlet_lab.hardware.meters.amd import library_loads

    if not library_loads():
        sys.modules["amdsmi"] = None  # type: ignore[assignment]
        path = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(_WITHOUT_AMDSMI), *([path] if path else [])])
