"""FLOPs, bytes and shapes of operators: pure formulas, no torch."""

from __future__ import annotations

from gimlet_lab.work.formulas import DTYPE_BYTES, OPS, bytes_read, bytes_written, flops, intensity

__all__ = ["DTYPE_BYTES", "OPS", "bytes_read", "bytes_written", "flops", "intensity"]
