"""Public measurements of kernels as tables of one form, for fitting the cost model and judging it.

Read from a folder with NeuSight's and Vidur's data, and from the PyPI package ``aiconfigurator-core`` (with
``pyarrow``) where it is installed. Each table has the columns of its family
(:mod:`gimlet_lab.costs.kernels`), ``dtype``, ``device`` (an id of the catalogue), ``source`` (who measured:
each has its own overhead), ``group`` (a framework, or an op) and ``seconds``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from gimlet_lab.work.formulas import DTYPE_BYTES

NEUSIGHT = {
    "NVIDIA_A100-PCIE-40GB": "a100-pcie-40gb", "NVIDIA_A100_80GB_PCIe": "a100-pcie-80gb", "Tesla_P100-PCIE-16GB": "p100-pcie",
    "Tesla_P4": "p4", "Tesla_T4": "t4", "Tesla_V100-PCIE-32GB": "v100-pcie", "NVIDIA_H100_80GB_HBM3": "h100-sxm", "NVIDIA_L4": "l4",
    "NVIDIA_A100-SXM4-40GB": "a100-sxm-40gb", "AMD_Instinct_MI100": "mi100", "AMD_Instinct_MI210": "mi210", "AMD_Instinct_MI250": "mi250",
}  # fmt: skip
TABLES = {
    "a100_sxm": "a100-sxm-80gb", "h100_sxm": "h100-sxm", "h200_sxm": "h200-sxm", "l40s": "l40s", "b200_sxm": "b200-sxm", "b300_sxm": "b300-sxm",
    "gb200": "gb200", "gb300": "gb300", "rtx_pro_6000_server": "rtx-pro-6000", "b60": "arc-b60",
}  # fmt: skip

#: What may be fitted on. Everything else is kept back for judging.
FITTED_NEUSIGHT = {"p4", "p100-pcie", "v100-pcie", "t4", "a100-pcie-40gb"}
FITTED_CONV = FITTED_NEUSIGHT | {"a100-pcie-80gb"}
FITTED_TABLES = {"a100-sxm-80gb", "h100-sxm", "l40s"}

_DTYPES = {"bfloat16": "bfloat16", "fp8": "float8_e4m3fn", "half": "float16", "nvfp4": "float4_e2m1fn_x2"}
_BINARY = ("add", "mul", "div", "pow")
_UNARY = ("addu", "mulu", "divu", "powu", "relu", "gelu", "tanh")


def tables_root() -> Path | None:
    """Where aiconfigurator-core keeps its tables; None where it is not installed."""
    if importlib.util.find_spec("aiconfigurator_core") is None or importlib.util.find_spec("pyarrow") is None:
        return None
    import aiconfigurator_core

    return Path(aiconfigurator_core.__file__).parent / "systems"


def neusight(data: Path, ops: tuple[str, ...]) -> pd.DataFrame:
    """NeuSight's rows of some ops, every GPU that the folder holds."""
    frames = []
    for path in sorted((data / "neusight").glob("*/*/*/*.csv.gz")):
        op, gpu = path.parts[-3], path.name[:-7]
        if op not in ops or gpu not in NEUSIGHT:
            continue
        frame = pd.read_csv(path)
        frames.append(frame.assign(op=op, device=NEUSIGHT[gpu]))
    if not frames:
        return pd.DataFrame()
    found = pd.concat(frames, ignore_index=True)
    found["seconds"] = found["Latency"] / 1e3
    # Every op has its own Python around it, so its own overhead.
    return found[found["seconds"] > 0].assign(dtype="float32", source="neusight " + found["op"])


def gemm_neusight(data: Path) -> pd.DataFrame:
    """Linear layers and batched products, float32."""
    rows = neusight(data, ("bmm", "linear"))
    if rows.empty:
        return rows
    linear = (rows["op"] == "linear").to_numpy()
    shape = {
        "b": np.where(linear, 1, rows["B"]), "m": np.where(linear, rows["B"] * rows["M"], rows["M"]),
        # bmm is (B,M,N)×(B,N,K): their K is the width of the result.
        "n": rows["K"], "k": rows["N"], "group": rows["op"],
    }  # fmt: skip
    return _median(rows.assign(**shape), ["b", "m", "n", "k"])


def vector_neusight(data: Path) -> pd.DataFrame:
    """Elementwise operators, softmax and layer norm, float32."""
    rows = neusight(data, (*_BINARY, *_UNARY, "softmax", "ln"))
    if rows.empty:
        return rows
    elements = rows["B"] * rows["H"]
    op = rows["op"]
    operands = np.where(op.isin(_BINARY), 3, 2)
    kind = np.select([op == "softmax", op == "ln"], [1, 2], 0)
    shape = {
        "rows": rows["B"], "cols": rows["H"], "moved": 4.0 * elements * operands, "kind": kind,
        "flops": elements * np.select([op == "softmax", op == "ln"], [5, 7], 1), "group": op,
    }  # fmt: skip
    return _median(rows.assign(**shape), ["rows", "cols", "moved", "kind", "flops"])


def conv_neusight(data: Path) -> pd.DataFrame:
    """Convolutions, float32."""
    rows = neusight(data, ("conv",))
    if rows.empty:
        return rows
    rows = rows.rename(
        columns={"Kernel_Szie": "kernel", "Stride": "stride", "Padding": "padding", "Input_Size": "side"}
    )
    out = (rows["side"] + 2 * rows["padding"] - rows["kernel"]) // rows["stride"] + 1
    inside, outside = rows["Input_Channel"], rows["Output_Channel"]
    places = rows["B"] * out**2
    taps = inside * rows["kernel"] ** 2
    moved = 4.0 * (rows["B"] * inside * rows["side"] ** 2 + outside * taps + places * outside)
    shape = {"b": 1, "m": places, "n": outside, "k": taps, "moved": moved, "group": "conv"}
    rows = rows.assign(**shape)
    return _median(rows[rows["m"] > 0], ["b", "m", "n", "k", "kernel", "stride", "side", "moved"])


def gemm_vidur(data: Path) -> pd.DataFrame:
    """The linear layers of Vidur's models, float16."""
    frames = []
    for path in sorted((data / "vidur" / "compute").glob("*/*/*/mlp.csv.gz")):
        device = {"a100": "a100-sxm-80gb", "a40": "a40", "h100": "h100-sxm"}.get(path.parts[-4])
        if device is None or "llama-3" in str(path).lower() or "qwen" in str(path).lower():
            continue
        rows = pd.read_csv(path)
        hd, tp, gate = (
            rows["n_embd"] / rows["n_head"],
            rows["num_tensor_parallel_workers"],
            np.where(rows["use_gated_mlp"], 2, 1),
        )
        layers = {
            "attn_pre_proj": (rows["n_embd"], (rows["n_head"] + 2 * rows["n_kv_head"]) * hd / tp),
            "attn_post_proj": (rows["n_embd"] / tp, rows["n_embd"]),
            "mlp_up_proj": (rows["n_embd"], gate * rows["n_expanded_embd"] / tp),
            "mlp_down_proj": (rows["n_expanded_embd"] / tp, rows["n_embd"]),
        }
        for layer, (k, n) in layers.items():
            seconds = rows[f"time_stats.{layer}.median"] / 1e3
            frames.append(
                pd.DataFrame(
                    {
                        "b": 1,
                        "m": rows["num_tokens"],
                        "n": n,
                        "k": k,
                        "seconds": seconds,
                        "group": layer,
                        "device": device,
                    }
                )
            )
    if not frames:
        return pd.DataFrame()
    found = pd.concat(frames, ignore_index=True).assign(dtype="float16", source="vidur")
    return _median(found[found["seconds"] > 0], ["b", "m", "n", "k"])


def gemm_tables(dtypes: tuple[str, ...] = ("bfloat16",)) -> pd.DataFrame:
    """GEMMs as aiconfigurator-core measured them, the median over frameworks of each shape."""
    rows = _tables("gemm", "gemm")
    if rows.empty:
        return rows
    rows = rows[rows["gemm_dtype"].isin([name for name, ours in _DTYPES.items() if ours in dtypes])]
    rows = rows.assign(b=1, dtype=rows["gemm_dtype"].map(_DTYPES), group=rows["framework"].str.lower())
    return _median(rows, ["b", "m", "n", "k"])


def attention_tables(kind: str, kv_dtypes: tuple[str, ...] = ("bfloat16",)) -> pd.DataFrame:
    """Attention (``context`` or ``generation``) in bfloat16 with a KV cache of some dtypes."""
    rows = _tables("attention", f"{kind}_attention")
    if rows.empty:
        return rows
    rows = rows[(rows["attn_dtype"] == "bfloat16") & rows["kv_cache_dtype"].isin(kv_dtypes)]
    heads = rows["num_heads"]
    groups = rows["num_key_value_heads"].where(rows["num_key_value_heads"] > 0, heads)
    q, kv = rows["isl"], rows["isl"] + rows["step"]
    window = rows["window_size"].fillna(0) if "window_size" in rows else pd.Series(0, index=rows.index)
    limit = window.where(window > 0, kv)

    def below(position: pd.Series) -> pd.Series:
        ramp = np.minimum(position, limit)
        return ramp * (ramp + 1) / 2 + (position - ramp) * limit

    shape = {
        "batch": rows["batch_size"], "q_len": q, "kv_len": kv, "heads": heads, "kv_heads": groups, "head_dim": rows["head_dim"],
        "window": window, "pairs": below(kv) - below(kv - q), "touched": np.minimum(kv, limit + q - 1), "dtype": "bfloat16",
        "kv_bytes": np.where(rows["kv_cache_dtype"] == "fp8", 1.0, 2.0), "group": rows["framework"].str.lower(),
    }  # fmt: skip
    return _median(
        rows.assign(**shape),
        [
            "batch",
            "q_len",
            "kv_len",
            "heads",
            "kv_heads",
            "head_dim",
            "window",
            "pairs",
            "touched",
            "kv_bytes",
        ],
    )


def moe_tables(dtypes: tuple[str, ...] = ("bfloat16",)) -> pd.DataFrame:
    """Experts, tokens spread evenly or nearly so."""
    rows = _tables("moe", "moe")
    if rows.empty:
        return rows
    rows = rows[
        rows["moe_dtype"].isin([name for name, ours in _DTYPES.items() if ours in dtypes])
        & (rows["distribution"] != "power_law_1.2")
    ]
    rows = rows[~rows["kernel_source"].astype(str).str.contains("nongated")]
    shape = {
        "tokens": rows["num_tokens"], "hidden": rows["hidden_size"], "inter": rows["inter_size"], "experts": rows["num_experts"],
        "top_k": rows["topk"], "tp": rows["moe_tp_size"], "ep": rows["moe_ep_size"], "dtype": rows["moe_dtype"].map(_DTYPES),
        "group": rows["framework"].str.lower(),
    }  # fmt: skip
    return _median(rows.assign(**shape), ["tokens", "hidden", "inter", "experts", "top_k", "tp", "ep"])


def collectives() -> pd.DataFrame:
    """All-reduce and all-gather within a node: NCCL's, and those of serving frameworks in a CUDA graph."""
    nccl, custom = _tables("comm", "nccl"), _tables("comm", "custom_allreduce")
    if nccl.empty or custom.empty:
        return pd.DataFrame()
    nccl = nccl[nccl["nccl_dtype"] == "half"].assign(group="nccl")
    size = 2.0
    custom = custom[~custom["kernel_source"].str.contains("eager|MNNVL", case=False)].assign(group="custom")
    rows = pd.concat([nccl, custom], ignore_index=True)
    rows = rows[rows["op_name"].isin(["all_reduce", "all_gather"])]
    rows = rows.assign(
        bytes=rows["message_size"] * size, devices=rows["num_gpus"], op=rows["op_name"], dtype="float16"
    )
    rows["group"] = rows["op"] + " " + rows["group"]
    return _median(rows, ["op", "bytes", "devices"])


def element_bytes(rows: pd.DataFrame) -> np.ndarray:
    """Bytes of an element of each row."""
    return rows["dtype"].map(DTYPE_BYTES).to_numpy(dtype=float)


def _tables(folder: str, name: str) -> pd.DataFrame:
    return pd.concat(list(_files(folder, name)), ignore_index=True) if tables_root() else pd.DataFrame()


def _files(folder: str, name: str) -> Iterator[pd.DataFrame]:
    root = tables_root()
    assert root is not None
    for system, device in TABLES.items():
        for path in sorted((root / "data" / system / folder).glob(f"*/*/{name}_perf.parquet")):
            rows = pd.read_parquet(path)
            yield rows.assign(device=device, source="aiconfigurator", seconds=rows["latency"] / 1e3)


def _median(rows: pd.DataFrame, shape: list[str]) -> pd.DataFrame:
    """The median of each shape of each group.

    Then over groups: ``seconds``; groups apart stay in ``seconds_by``.
    """
    rows = rows[rows["seconds"] > 0]
    keys = ["device", "source", "dtype", *shape]
    each = rows.groupby([*keys, "group"], observed=True)["seconds"].median().reset_index()
    each[shape] = each[shape].apply(
        lambda column: column if column.dtype.kind in "OUT" or column.name == "op" else column.astype(float)
    )
    return each


def pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a shape: the median over the groups (frameworks) that measured it."""
    keys = [name for name in rows.columns if name not in ("group", "seconds")]
    return rows.groupby(keys, observed=True)["seconds"].median().reset_index()
