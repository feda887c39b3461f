"""How far the cost model is from what others measured, on devices it was not fitted on.

    python benchmarks/costs.py --data DIR [--json] [--no-served] [--rows N]

``DIR`` holds NeuSight's and Vidur's measurements, with as many devices as there are: those outside
``cost_data.FITTED_*`` were kept back. The tables of ``aiconfigurator-core`` (PyPI, 0.12.0, with pyarrow) are
judged where it is installed; its ``silicon_sample.csv`` is the served truth. Error is |predicted − measured|
/ measured, measured being the median over the frameworks (or repeats) of a shape. Of devices that were fitted
on, what a fit without them missed is in ``left_out``.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cost_data import (
    FITTED_NEUSIGHT,
    FITTED_TABLES,
    NEUSIGHT,
    attention_tables,
    gemm_neusight,
    gemm_tables,
    gemm_vidur,
    moe_tables,
    pooled,
    tables_root,
    vector_neusight,
)

from gimlet_lab.costs import predict
from gimlet_lab.costs.columns import OPTIONAL, Group
from gimlet_lab.costs.serving import estimate_serving
from gimlet_lab.costs.tiers import price
from gimlet_lab.errors import GimletError
from gimlet_lab.hardware import catalogue
from gimlet_lab.model.work import Work

OP = {
    "gemm": "gemm",
    "gemm32": "gemm",
    "attention_prefill": "attention_prefill",
    "attention_decode": "attention_decode",
    "moe": "moe",
}

#: How far frameworks' kernels of one shape differ: pairs of devices closer than this are not ranked.
DISAGREE = 0.19

MODELS = {"Qwen/Qwen3-32B": "qwen3-32b", "nvidia/Qwen3-32B-NVFP4": "qwen3-32b", "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
          "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b", "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b"}  # fmt: skip
SYSTEMS = {"h100_sxm": "h100-sxm", "h200_sxm": "h200-sxm", "b200_sxm": "b200-sxm", "gb200": "gb200"}


def predicted(op: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The model tier's answer to rows of one table, with its interval and what the source adds."""
    found = []
    for (device, dtype), part in rows.groupby(["device", "dtype"]):
        many = len(part)
        dims = {
            name: part[name].to_numpy(dtype=float) for name in part.columns if part[name].dtype.kind in "iuf"
        }
        for name, default in (
            OPTIONAL.get(op, {}) | dict.fromkeys(("flops", "bytes_read", "bytes_written"), -1)
        ).items():
            dims.setdefault(name, np.full(many, float(default)))
        group = Group(op, str(dtype), None, np.arange(many), dims, np.ones(many))
        said = predict.predict(group, catalogue.find(str(device)))
        if said is None:
            continue
        over = [overhead(source, str(device)) for source in part["source"]]
        found.append(part.assign(predicted=said.seconds + over, low=said.low + over, high=said.high + over))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def overhead(source: str, device: str) -> float:
    """What a source's way of timing adds: of a device it was not fitted on, the median of the others'."""
    known = predict.coefficients().get("overheads", {}).get(source)
    return 0.0 if not known else known.get(device, float(np.median(list(known.values()))))


def vectors(rows: pd.DataFrame) -> pd.DataFrame:
    """NeuSight's vector operators as the ops of the facade."""
    parts = []
    for kind, part in rows.groupby("kind"):
        if kind == 0:
            elements = part["rows"] * part["cols"]
            part = part.assign(elements=elements, inputs=part["moved"] / elements / 4 - 1, outputs=1.0)
        parts.append(predicted({0: "elementwise", 1: "softmax", 2: "layer_norm"}[int(kind)], part))
    return pd.concat([part for part in parts if not part.empty], ignore_index=True)


def kept_back(rows: pd.DataFrame, fitted: set[str]) -> pd.DataFrame:
    return rows if rows.empty else rows[~rows["device"].isin(fitted)]


def kernels(data: Path, most: int) -> dict[str, pd.DataFrame]:
    """What was kept back, with what is predicted of it."""

    def sampled(rows: pd.DataFrame) -> pd.DataFrame:
        if rows.empty:
            return rows
        return pd.concat(
            [
                part.sample(min(len(part), most), random_state=0)
                for _, part in pooled(rows).groupby(["device", "dtype"])
            ],
            ignore_index=True,
        )

    gemms = [sampled(kept_back(gemm_tables(), FITTED_TABLES)), sampled(kept_back(gemm_neusight(data), FITTED_NEUSIGHT)),
             sampled(kept_back(gemm_vidur(data), {"a100-sxm-80gb", "a40"}))]  # fmt: skip
    gemms = [one for one in gemms if not one.empty]
    found = {"gemm": predicted("gemm", pd.concat(gemms, ignore_index=True)) if gemms else pd.DataFrame()}
    for kind, op in (("context", "attention_prefill"), ("generation", "attention_decode")):
        rows = sampled(kept_back(attention_tables(kind), FITTED_TABLES))
        found[op] = predicted(op, rows) if not rows.empty else rows
    rows = sampled(kept_back(moe_tables(), FITTED_TABLES))
    found["moe"] = predicted("moe", rows) if not rows.empty else rows
    rows = sampled(kept_back(vector_neusight(data), FITTED_NEUSIGHT))
    found["vector"] = vectors(rows) if not rows.empty else rows
    eights = sampled(kept_back(gemm_tables(("float8_e4m3fn",)), set()))
    found["gemm fp8"] = predicted("gemm", eights) if not eights.empty else eights
    return found


def errors(rows: pd.DataFrame, how: str) -> dict[str, float]:
    if rows.empty:
        return {}
    error = (rows["predicted"] / rows["seconds"] - 1).abs()
    return {str(name): round(float(getattr(part, how)()), 4) for name, part in error.groupby(rows["device"])}


def models(data: Path) -> dict[str, list[float]]:
    """NeuSight's whole models.

    The sum of their operators over the measured time, less 1; device → one entry a model.
    """
    found: dict[str, list[float]] = {}
    for path in sorted((data / "neusight" / "label").glob("*/*-inf-*.csv.gz")):
        device = NEUSIGHT.get(path.parts[-2])
        truth = json.loads(path.with_name(path.name[:-7] + ".json").read_text())
        if device is None or not truth.get("num_layer"):
            continue
        works = list(trace(pd.read_csv(path), truth["num_layer"]))
        said = price([work for work, _ in works], catalogue.find(device), "model")
        seconds = float(np.nansum(said.seconds))
        found.setdefault(device, []).append(round(seconds / (truth["fw_latency"] / 1e3) - 1, 4))
    return found


def trace(rows: pd.DataFrame, layers: int) -> Iterator[tuple[Work, str]]:
    """The operators of a traced model: those of its first block as often as it has blocks."""
    inside = rows["Name"].astype(str).str.contains(r"(?:_h_|_layer_|_layers_|_block_)0(?:_|$)")
    first, last = (
        (int(np.flatnonzero(inside)[0]), int(np.flatnonzero(inside)[-1])) if inside.any() else (1, 0)
    )
    nodes = list(rows.itertuples())
    for place, node in enumerate(nodes):
        count = layers if first <= place <= last + 1 else 1
        shapes = [tuple(one) for one in ast.literal_eval(str(node.input_shapes) or "[]")]
        out = tuple(ast.literal_eval(str(node.output_shape)))
        work = _work(str(node.op), str(node.target), str(node.Name), shapes, out, count)
        if work is not None:
            yield work, str(node.Name)


def _work(
    op: str, target: str, name: str, shapes: list[tuple[int, ...]], out: tuple[int, ...], count: int
) -> Work | None:
    """One traced operator; None where it moves nothing."""
    elements = int(np.prod(out)) if out else 0
    big = [shape for shape in shapes if len(shape) > 1 or int(np.prod(shape or (1,))) > 1]
    if op == "call_module":
        if not big or "drop" in name:
            return None
        if re.search(r"(wte|wpe|embed\w*)$", target) and big[0] != out and out[:-1] == big[0]:
            return Work.of("embedding", "float32", count, rows=int(np.prod(big[0])), cols=out[-1])
        if re.search(r"(norm|ln_?\w*)$", target, re.IGNORECASE):
            return Work.of("layer_norm", "float32", count, rows=elements // out[-1], cols=out[-1])
        if re.search(r"act\w*$", target):
            return Work.of("elementwise", "float32", count, elements=elements, inputs=1, outputs=1)
        return Work.of("gemm", "float32", count, m=elements // out[-1], n=out[-1], k=big[0][-1])
    if "addmm" in target:
        return Work.of("gemm", "float32", count, m=out[0], n=out[1], k=shapes[1][-1])
    if "matmul" in target or "bmm" in target:
        b = int(np.prod(out[:-2])) if len(out) > 2 else 1
        return Work.of("bmm", "float32", count, b=b, m=out[-2], n=out[-1], k=shapes[0][-1])
    if "softmax" in target:
        return Work.of("softmax", "float32", count, rows=elements // out[-1], cols=out[-1])
    if op == "call_method" and target in ("contiguous", "reshape"):
        moves = (shapes[0] == out and len(out) == 4) or (target == "reshape" and len(shapes[0]) == 4)
        return Work.of("copy", "float32", count, elements=elements) if moves else None
    pointwise = (
        "add",
        "sub",
        "mul",
        "truediv",
        "pow",
        "tanh",
        "gelu",
        "relu",
        "where",
        "max",
        "masked_fill",
        "to",
    )
    word = re.search(r"(?:function|method|^) ?(\w+)", target)
    if elements > 1 and word and word.group(1) in pointwise and target != "to":
        inputs = sum(1 for shape in big if int(np.prod(shape)) * 4 >= elements) or 1
        return Work.of("elementwise", "float32", count, elements=elements, inputs=inputs, outputs=1)
    return None


def served(tier: str | None) -> pd.DataFrame:
    """The dense, aggregated rows of silicon_sample.csv beside what is estimated of them."""
    root = tables_root()
    if root is None:
        return pd.DataFrame()
    rows = pd.read_csv(root / "silicon_sample.csv")
    rows = rows[(rows["mode"] == "agg") & rows["model_path"].isin(MODELS) & rows["system"].isin(SYSTEMS)]
    found = []
    for row in rows.itertuples():
        dtype = {"fp8": "fp8", "fp4": "fp4"}.get(str(row.precision), "bf16")
        try:
            one = estimate_serving(MODELS[str(row.model_path)], SYSTEMS[str(row.system)], int(row.tp_size), int(row.pp_size), int(row.batch_size),
                                   int(row.isl), int(row.osl), dtype, tier=tier)  # fmt: skip
            ttft, tpot = one.ttft_s, one.tpot_s
        except GimletError:
            ttft = tpot = np.nan
        found.append({"id": row.id, "model": MODELS[str(row.model_path)], "system": row.system, "backend": row.backend, "dtype": dtype, "tp": row.tp_size,
                      "batch": row.batch_size, "isl": row.isl, "osl": row.osl,
                      "ttft": ttft, "tpot": tpot, "true_ttft": row.silicon_ttft_ms / 1e3, "true_tpot": row.silicon_tpot_ms / 1e3})  # fmt: skip
    return pd.DataFrame(found)


def ranking(tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Of each shape that several devices ran.

    How often the faster of two is named so, where they truly differ.
    """
    right = pairs = 0
    for family in ("gemm", "attention_prefill", "attention_decode", "moe"):
        rows = tables[family]
        if rows.empty:
            continue
        rows = rows[rows["source"] == "aiconfigurator"]
        shape = [
            name
            for name in (
                "b",
                "m",
                "n",
                "k",
                "batch",
                "q_len",
                "kv_len",
                "heads",
                "kv_heads",
                "head_dim",
                "window",
                "tokens",
                "hidden",
                "inter",
                "experts",
                "top_k",
                "tp",
                "ep",
            )
            if name in rows
        ]
        true = rows.pivot_table(index=shape, columns="device", values="seconds")
        said = rows.pivot_table(index=shape, columns="device", values="predicted")
        for a, b in itertools.combinations(true.columns, 2):
            ratio: pd.Series = np.log(true[a] / true[b])
            counts = ratio.abs() > np.log1p(DISAGREE)
            right += int(((np.log(said[a] / said[b]) * ratio) > 0)[counts].sum())
            pairs += int(counts.sum())
    return {"right": round(right / pairs, 4) if pairs else None, "pairs": pairs}


def all_devices(most: int) -> dict[str, pd.DataFrame]:
    """The tables of every device for ranking: fitted ones among them. The same shapes of each."""
    found = {}
    sources = {
        "gemm": gemm_tables(),
        "attention_prefill": attention_tables("context"),
        "attention_decode": attention_tables("generation"),
        "moe": moe_tables(),
    }
    for family, rows in sources.items():
        if rows.empty:
            found[family] = rows
            continue
        rows = pooled(rows)
        shape = [name for name in rows.columns if name not in ("device", "source", "dtype", "seconds")]
        keys = rows[shape].drop_duplicates()
        rows = rows.merge(keys.sample(min(len(keys), most), random_state=1), on=shape)
        found[family] = predicted(family, rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, default=20000, help="rows of each device and table")
    parser.add_argument("--no-served", action="store_true")
    options = parser.parse_args()

    tables = kernels(options.data, options.rows)
    attention = pd.concat(
        [tables[name] for name in ("attention_prefill", "attention_decode") if not tables[name].empty]
        or [pd.DataFrame()]
    )
    whole = models(options.data)
    fitted = {name for name in whole if name in FITTED_NEUSIGHT}
    result: dict[str, Any] = {
        "gemm_mean": errors(tables["gemm"], "mean"), "gemm_median": errors(tables["gemm"], "median"),
        "gemm_fp8_mean": errors(tables["gemm fp8"], "mean"),
        "attention_mean": errors(attention, "mean"), "attention_median": errors(attention, "median"),
        "prefill_mean": errors(tables["attention_prefill"], "mean"), "decode_mean": errors(tables["attention_decode"], "mean"),
        "moe_mean": errors(tables["moe"], "mean"), "vector_mean": errors(tables["vector"], "mean"),
        "models_mean": {name: round(float(np.mean(np.abs(each))), 4) for name, each in whole.items()},
        "models_fitted": sorted(fitted), "models": whole,
        "left_out": predict.coefficients()["left_out"],
        "interval_coverage": {}, "interval_width": {},
    }  # fmt: skip
    for family, rows in tables.items():
        if rows.empty:
            continue
        inside = (rows["seconds"] >= rows["low"]) & (rows["seconds"] <= rows["high"])
        width = (rows["high"] - rows["low"]) / rows["predicted"]
        result["interval_coverage"][family] = {
            str(k): round(float(v), 4) for k, v in inside.groupby(rows["device"]).mean().items()
        }
        result["interval_width"][family] = {
            str(k): round(float(v), 4) for k, v in width.groupby(rows["device"]).mean().items()
        }
    result["ranking"] = ranking(all_devices(2000))
    if not options.no_served:
        result["served"] = serving_errors()
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))


def serving_errors() -> dict[str, Any]:
    """Errors of TTFT and TPOT, with kernel tables and without."""
    found: dict[str, Any] = {}
    for tier, suffix in ((None, ""), ("model", "_model_tier")):
        rows = served(tier)
        if rows.empty:
            continue
        known = rows["tpot"].notna() & np.isfinite(rows["tpot"])
        tpot = (rows["tpot"] / rows["true_tpot"] - 1)[known].abs()
        ttft = (rows["ttft"] / rows["true_ttft"] - 1)[known].abs()
        found |= {f"tpot_mean{suffix}": round(float(tpot.mean()), 4), f"tpot_median{suffix}": round(float(tpot.median()), 4),
                  f"ttft_mean{suffix}": round(float(ttft.mean()), 4), f"ttft_median{suffix}": round(float(ttft.median()), 4)}  # fmt: skip
        found["rows"] = int(known.sum())
        found["of"] = len(rows)
    return found


if __name__ == "__main__":
    main()
