"""One kind of operator call as arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of operator call: what it computes, not where or how fast.

    Capture records it, a dry run invents it and the cost model prices it: the same noun.
    FLOPs and bytes follow from it by the pure formulas of :mod:`gimlet_lab.work`.

    Attributes
    ----------
    op : str
        ``gemm``, ``bmm``, ``attention_prefill``, ``attention_decode``, ``elementwise``,
        ``softmax``, ``layer_norm``, ``rms_norm``, ``embedding``, ``conv2d``, ``copy``,
        ``all_reduce``, ``all_gather``, ``send``, ``moe``, or ``other`` (no formula known).
    dims : tuple of (str, int)
        The shape, by the names of the file formats: ``(("k", 4096), ("m", 1), ("n", 4096))``,
        sorted by name so that equal works compare and hash equal.
    dtype : str
        torch's name without ``torch.``.
    count : int
        How many equal calls this stands for.
    kv_dtype : str or None
        Attention only: the dtype of the KV cache, where it is another than ``dtype``.

    Examples
    --------
    >>> work = Work.from_json({"op": "gemm", "m": 1, "n": 4096, "k": 4096, "dtype": "bfloat16"})
    >>> work["n"], work.count
    (4096, 1)
    >>> Work.from_json(work.to_json()) == work
    True
    """

    op: str
    dims: tuple[tuple[str, int], ...] = ()
    dtype: str = "float32"
    count: int = 1
    kv_dtype: str | None = None

    def __getitem__(self, name: str) -> int:
        for key, value in self.dims:
            if key == name:
                return value
        raise KeyError(f"a {self.op} work needs {name!r}; it has {', '.join(k for k, _ in self.dims)}")

    def get(self, name: str, default: int) -> int:
        """The dimension ``name``, or ``default`` where the work leaves it out."""
        return next((value for key, value in self.dims if key == name), default)

    @classmethod
    def of(
        cls, op: str, dtype: str = "float32", count: int = 1, *, kv_dtype: str | None = None, **dims: int
    ) -> Work:
        """Build a work from keyword dimensions."""
        return cls(op, tuple(sorted(dims.items())), dtype, count, kv_dtype)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Work:
        """Read the flat JSON form.

        Raises
        ------
        ValueError
            If ``op`` is missing or a dimension is not an integer.
        """
        if "op" not in data:
            raise ValueError(f"a work needs 'op': {dict(data)!r}")
        dims: dict[str, int] = {}
        for key, value in data.items():
            if key in ("op", "dtype", "count", "kv_dtype"):
                continue
            if not isinstance(value, (int, bool)):
                raise ValueError(f"work {data['op']!r}: {key} must be an integer, not {value!r}")
            dims[key] = int(value)
        dtype, count, kv_dtype = data.get("dtype", "float32"), data.get("count", 1), data.get("kv_dtype")
        kept = None if kv_dtype is None else str(kv_dtype)
        return cls(str(data["op"]), tuple(sorted(dims.items())), str(dtype), int(count), kept)

    def to_json(self) -> dict[str, Any]:
        """The flat JSON form; ``count`` is left out when it is 1."""
        data: dict[str, Any] = {"op": self.op, **dict(self.dims), "dtype": self.dtype}
        if self.count != 1:
            data["count"] = self.count
        if self.kv_dtype is not None:
            data["kv_dtype"] = self.kv_dtype
        return data
