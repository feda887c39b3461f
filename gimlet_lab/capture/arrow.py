"""Where Arrow data lies: a column of a table is another Python object each time, but the same memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from gimlet_lab.capture.sizes import ITEMS


def memories(value: object) -> list[int]:
    """Addresses of what an Arrow table, batch, column or array is made of, the first ones; none for others.

    Examples
    --------
    >>> memories([1.0, 2.0])
    []
    """
    if type(value).__module__ != "pyarrow.lib":  # without importing it
        return []
    return list(itertools.islice(_addresses(value), ITEMS))


def _addresses(value: Any) -> Iterator[int]:
    for column in getattr(value, "columns", (value,)):
        for chunk in getattr(column, "chunks", (column,)):
            for buffer in chunk.buffers() if hasattr(chunk, "buffers") else ():
                if buffer is not None and buffer.size:
                    yield int(buffer.address)
