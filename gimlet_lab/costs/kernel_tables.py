"""The kernel-table tier: what others measured of a device's kernels, looked up.

The tables are those of the PyPI package ``aiconfigurator-core`` (``pip install 'gimlet-lab[tables]'``), read
as files: its engine is not used. Where a shape was measured the median over serving frameworks is the answer;
between shapes, the model tier's answer times what the nearest measured shapes were of theirs. This module
alone knows the package.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gimlet_lab.costs import predict
from gimlet_lab.costs.columns import Group
from gimlet_lab.errors import UsageError
from gimlet_lab.model.device import Device

Array = NDArray[np.float64]

#: Our devices by the package's names of them.
SYSTEMS = {
    "a100-sxm-80gb": "a100_sxm",
    "h100-sxm": "h100_sxm",
    "h200-sxm": "h200_sxm",
    "l40s": "l40s",
    "b200-sxm": "b200_sxm",
    "b300-sxm": "b300_sxm",
    "gb200": "gb200",
    "gb300": "gb300",
    "rtx-pro-6000": "rtx_pro_6000_server",
    "arc-b60": "b60",
}

#: Half width of the 90% interval, as factors: frameworks' kernels of one shape differ, and so do shapes
#: apart.
EXACT, BETWEEN, FAR = (0.85, 1.18), (0.75, 1.35), (0.5, 2.0)

#: Distance to the nearest measured shape, in octaves over all dimensions, up to which it counts as near.
NEAR_OCTAVES = 1.5

#: Measured shapes an answer is drawn from.
NEIGHBOURS = 6

#: Products in eight and four bits were timed with the quantising of activations in front (3 µs to 15
#: and more), which engines fuse with what came before: those are left to the model tier.
_QUANT = {"bfloat16": "bfloat16", "float16": "bfloat16", "float8": "fp8", "float4": "nvfp4"}
_SHAPES = {
    "gemm": ("gemm", "gemm", ("m", "n", "k")),
    "attention_prefill": (
        "attention",
        "context_attention",
        ("batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim", "window"),
    ),
    "attention_decode": (
        "attention",
        "generation_attention",
        ("batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim", "window"),
    ),
    "moe": ("moe", "moe", ("tokens", "hidden", "inter", "experts", "top_k", "tp", "ep")),
}


@dataclass(frozen=True)
class Table:
    """The measured shapes of one kind of kernel on one device.

    And how much slower each was than the model says.
    """

    tree: Any
    shapes: Array
    ratio: Array


def installed() -> Path | None:
    """Where the tables are; None without the package (or without pyarrow, which reads them)."""
    for name in ("aiconfigurator_core", "pyarrow"):
        if importlib.util.find_spec(name) is None:
            return None
    spec = importlib.util.find_spec("aiconfigurator_core")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "systems" / "data"


def require(device: Device) -> None:
    """Say what is missing for kernel tables of a device.

    Raises
    ------
    UsageError
    """
    if installed() is None:
        raise UsageError(
            "no kernel tables here: pip install 'gimlet-lab[tables]', or ask for the 'model' tier"
        )
    if device.id not in SYSTEMS:
        raise UsageError(f"no kernel tables of {device.id}: they are of {', '.join(SYSTEMS)}")


def look_up(group: Group, device: Device) -> predict.Prices | None:
    """What a group of works takes by the tables; None where they do not have its kind."""
    family = predict.family_of(group)
    if family not in _SHAPES or device.id not in SYSTEMS or installed() is None or group.op == "bmm":
        return None
    kind = next((ours for prefix, ours in _QUANT.items() if group.dtype.startswith(prefix)), None)
    if kind is None or (family == "gemm" and (group.dims["b"] != 1).any()):
        return None
    if family == "gemm" and kind != "bfloat16":
        return None
    kv = "fp8" if (group.kv_dtype or group.dtype).startswith("float8") else "bfloat16"
    table = _table(device, family, kind, kv if family.startswith("attention") else "")
    base = predict.predict(group, device)
    if table is None or base is None:
        return None
    shapes = _logs(_dims(group, family))
    distance, nearest = table.tree.query(shapes, k=min(NEIGHBOURS, len(table.ratio)))
    distance, nearest = distance.reshape(len(shapes), -1), nearest.reshape(len(shapes), -1)
    weight = 1 / (distance + 1e-3) ** 2
    logs = (weight * table.ratio[nearest]).sum(axis=1) / weight.sum(axis=1)
    seconds = base.seconds * np.exp(logs)
    gap = distance[:, 0]
    bounds = np.where((gap < 1e-6)[:, None], EXACT, np.where((gap < NEAR_OCTAVES)[:, None], BETWEEN, FAR))
    note = ["no measured shape is near" if one else "" for one in gap >= NEAR_OCTAVES]
    return predict.Prices(seconds, seconds * bounds[:, 0], seconds * bounds[:, 1], base.bound, note)


@cache
def _frame(system: str, folder: str, name: str) -> Any:
    """All rows of one kind on one system, every framework's newest version."""
    import pandas as pd

    root = installed()
    assert root is not None
    found = []
    for framework in sorted((root / system / folder).glob("*")):
        files = sorted(framework.glob(f"*/{name}_perf.parquet"), key=lambda path: path.stat().st_size)
        if files:  # the fullest collection of a framework
            found.append(pd.read_parquet(files[-1]))
    return pd.concat(found, ignore_index=True) if found else None


@cache
def _load(system: str, family: str, kind: str, kv: str) -> Any:
    import pandas as pd

    folder, name, dims = _SHAPES[family]
    rows = _frame(system, folder, name)
    if rows is None:
        return None
    if family == "gemm":
        rows = rows[rows["gemm_dtype"] == kind]
    elif family == "moe":
        rows = rows[(rows["moe_dtype"] == kind) & (rows["distribution"] != "power_law_1.2")]
        rows = rows[~rows["kernel_source"].astype(str).str.contains("nongated")]
        rows = rows.rename(
            columns={
                "num_tokens": "tokens",
                "hidden_size": "hidden",
                "inter_size": "inter",
                "num_experts": "experts",
                "topk": "top_k",
                "moe_tp_size": "tp",
                "moe_ep_size": "ep",
            }
        )
    else:
        rows = rows[(rows["attn_dtype"] == "bfloat16") & (rows["kv_cache_dtype"] == kv)]
        heads = rows["num_heads"]
        window = rows["window_size"].fillna(0) if "window_size" in rows else 0
        rows = rows.assign(
            batch=rows["batch_size"],
            q_len=rows["isl"],
            kv_len=rows["isl"] + rows["step"],
            heads=heads,
            kv_heads=rows["num_key_value_heads"].where(rows["num_key_value_heads"] > 0, heads),
            window=window,
        )
    rows = rows[rows["latency"] > 0]
    if rows.empty:
        return None
    found: pd.DataFrame = rows.groupby(list(dims), observed=True)["latency"].median().reset_index()
    return found


_TABLES: dict[tuple[str, str, str, str], Table | None] = {}


def _table(device: Device, family: str, kind: str, kv: str) -> Table | None:
    """The table of a kind of kernel, built at its first use."""
    key = (device.id, family, kind, kv)
    if key not in _TABLES:
        _TABLES[key] = _build(device, family, kind, kv)
    return _TABLES[key]


def _build(device: Device, family: str, kind: str, kv: str) -> Table | None:
    from scipy.spatial import cKDTree  # type: ignore[import-untyped]

    rows = _load(SYSTEMS[device.id], family, kind, kv)
    if rows is None:
        return None
    dtype = {"fp8": "float8_e4m3fn", "nvfp4": "float4_e2m1fn_x2"}.get(kind, "bfloat16")
    dims = {name: rows[name].to_numpy(dtype=float) for name in _SHAPES[family][2]}
    many = len(rows)
    extra = {"gemm": {"b": 1.0, "tf32": 0.0}, "moe": {}}.get(family, {"causal": 1.0})
    columns = dims | {name: np.full(many, value) for name, value in extra.items()}
    kv_dtype = "float8_e4m3fn" if kv == "fp8" else None
    group = Group(family, dtype, kv_dtype, np.arange(many), columns, np.ones(many))
    said = predict.predict(group, device)
    if said is None:
        return None
    ratio = np.log(rows["latency"].to_numpy(dtype=float) / 1e3 / said.seconds)
    shapes = _logs(np.stack([dims[name] for name in _SHAPES[family][2]], axis=1))
    return Table(cKDTree(shapes), shapes, ratio)


def _dims(group: Group, family: str) -> Array:
    x = dict(group.dims)
    if family.startswith("attention"):
        x["kv_heads"] = np.where(x["kv_heads"] > 0, x["kv_heads"], x["heads"])
    return np.stack([x[name] for name in _SHAPES[family][2]], axis=1)


def _logs(shapes: Array) -> Array:
    return np.log2(shapes + 1e-3).clip(-1)
