"""Small JSON files in the cache folder: whole or not there, and never too many."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Mapping[str, Any], most: tuple[str, int] | None = None) -> bool:
    """Write a file whole or not at all; whether it could be written.

    Parameters
    ----------
    path : Path
    content : mapping
    most : tuple of (pattern, number), optional
        Of the files that match, only so many are kept: the newest.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        return False
    if most is not None:
        pattern, number = most
        with contextlib.suppress(OSError):
            for old in sorted(path.parent.glob(pattern), key=lambda one: one.stat().st_mtime)[:-number]:
                old.unlink()
    return True
