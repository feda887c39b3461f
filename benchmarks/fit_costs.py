"""Fit the cost model's coefficients on public measurements and write them where the package reads them.

    python benchmarks/fit_costs.py --data DIR [--out gimlet_lab/costs/coefficients.json] [--family NAME ...]

``DIR`` holds NeuSight's and Vidur's measurements; those of ``aiconfigurator-core`` (PyPI, with pyarrow) are read where it
is installed. Only the devices of ``cost_data.FITTED_*`` are fitted on. Each family is also fitted once without each of its
devices: what it misses there is printed, kept in ``left_out``, and where the intervals that ship come from.

time = overhead of who measured + base · exp(network(features) + the device's own factor). The base and the features are
:mod:`gimlet_lab.costs.kernels`. A device nobody measured has the factor 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from cost_data import (
    FITTED_CONV,
    FITTED_NEUSIGHT,
    FITTED_TABLES,
    attention_tables,
    collectives,
    conv_neusight,
    element_bytes,
    gemm_neusight,
    gemm_tables,
    gemm_vidur,
    moe_tables,
    pooled,
    vector_neusight,
)

from gimlet_lab.costs import kernels
from gimlet_lab.costs.silicon import Silicon, silicon, stack
from gimlet_lab.hardware import catalogue

torch.set_num_threads(1)

#: Rows of one device and source that a fit looks at, widths of the network, passes over the rows.
ROWS, WIDTH, PASSES = 3500, 32, 50

#: Pull of the network's weights towards 0.
DECAY = 0.05

#: Overheads are looked for in rows no slower than so many times the fastest.
FLOOR = 1.15


@dataclass
class Problem:
    """The rows of one family, ready to fit: features, bases, times, and who measured what where."""

    features: np.ndarray
    base: np.ndarray
    seconds: np.ndarray
    device: np.ndarray
    source: np.ndarray


def rows_of(family: str, data: Path) -> pd.DataFrame:
    """What a family may be fitted on."""
    if family == "gemm32":
        return _only(gemm_neusight(data), FITTED_NEUSIGHT)
    if family == "gemm":
        return pd.concat([_only(gemm_tables(), FITTED_TABLES), gemm_vidur(data)], ignore_index=True)
    if family == "attention_prefill":
        return _only(attention_tables("context"), FITTED_TABLES)
    if family == "attention_decode":
        return _only(attention_tables("generation"), FITTED_TABLES)
    if family == "moe":
        return _only(moe_tables(), FITTED_TABLES)
    if family == "vector":
        return _only(vector_neusight(data), FITTED_NEUSIGHT)
    if family == "conv2d":
        return _only(conv_neusight(data), FITTED_CONV)
    raise ValueError(family)


FAMILIES = ("gemm32", "gemm", "attention_prefill", "attention_decode", "moe", "vector", "conv2d")


def problem(family: str, rows: pd.DataFrame) -> Problem:
    """Features and bases of rows."""
    columns = {
        name: rows[name].to_numpy(dtype=float) for name in rows.columns if rows[name].dtype.kind in "iuf"
    }
    chips = chips_of(rows)
    base, features = kernels.FAMILIES[family](columns, element_bytes(rows), chips)
    return Problem(
        features, base, columns["seconds"], rows["device"].to_numpy(str), rows["source"].to_numpy(str)
    )


def chips_of(rows: pd.DataFrame) -> Silicon:
    """The silicon of each row."""
    known = {}
    for device, dtype in set(zip(rows["device"], rows["dtype"], strict=True)):
        found = silicon(catalogue.find(device), dtype)
        assert found is not None, device
        known[device, dtype] = found[0]
    return stack([known[key] for key in zip(rows["device"], rows["dtype"], strict=True)])


def sample(rows: pd.DataFrame, seed: int, most: int = ROWS) -> pd.DataFrame:
    """As many rows of every device as a fit looks at, of all its sources, and twice as many where there are more."""
    sources = rows.groupby("device")["source"].nunique()
    parts = []
    for (device, _), part in rows.groupby(["device", "source"]):
        share = most // max(sources[device] // 2, 1)
        parts.append(part.sample(min(len(part), share), random_state=seed))
    return pd.concat(parts, ignore_index=True)


def overheads(parts: Problem) -> dict[str, dict[str, float]]:
    """What each source adds on each device, in seconds: its fastest rows, less what the kernel must take."""
    found: dict[str, dict[str, float]] = {}
    for source in sorted(set(parts.source)):
        if source == "aiconfigurator":  # timed inside a CUDA graph
            continue
        found[source] = {}
        for device in sorted(set(parts.device[parts.source == source])):
            here = (parts.source == source) & (parts.device == device)
            left = parts.seconds[here] - parts.base[here]
            small = parts.seconds[here] < FLOOR * np.quantile(parts.seconds[here], 0.002)
            found[source][device] = float(max(np.median(left[small]), 0.0)) if small.any() else 0.0
    return found


def overhead_of(found: Mapping[str, Mapping[str, float]], source: str, device: str) -> float:
    """A source's overhead on a device; on one it was not seen on, the median of the others."""
    known = found.get(source)
    if not known:
        return 0.0
    return known.get(device, float(np.median(list(known.values()))))


def fit(parts: Problem, seed: int, passes: int = PASSES) -> dict[str, Any]:
    """Fit one network and the devices' factors."""
    torch.manual_seed(seed)
    mean, scale = parts.features.mean(0), np.maximum(parts.features.std(0), 0.25)
    x = torch.tensor((parts.features - mean) / scale, dtype=torch.float32)
    devices = sorted(set(parts.device))
    which = torch.tensor([devices.index(one) for one in parts.device])
    over = overheads(parts)
    extra = torch.tensor([overhead_of(over, s, d) for s, d in zip(parts.source, parts.device, strict=True)])
    base, truth = torch.tensor(parts.base), torch.tensor(parts.seconds).log()
    network = torch.nn.Sequential(
        torch.nn.Linear(x.shape[1], WIDTH),
        torch.nn.Tanh(),
        torch.nn.Linear(WIDTH, WIDTH),
        torch.nn.Tanh(),
        torch.nn.Linear(WIDTH, 1),
    )
    factor = torch.nn.Parameter(torch.zeros(len(devices)))
    optimizer = torch.optim.AdamW(
        [{"params": network.parameters(), "weight_decay": DECAY}, {"params": [factor], "weight_decay": 0.0}],
        lr=4e-3,
    )
    # Devices weigh the same, however many rows they have.
    counts = np.bincount(which.numpy())
    weight = torch.tensor((len(which) / len(devices) / counts)[which.numpy()], dtype=torch.float32)
    batch = 1024
    steps = passes * (-(-len(x) // batch))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(passes):
        for index in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            guess = (
                extra[index]
                + base[index] * (network(x[index])[:, 0] + factor[which[index]]).clamp(-6, 6).exp()
            ).log()
            loss = torch.nn.functional.smooth_l1_loss(guess, truth[index], beta=0.05, reduction="none")
            ((loss * weight[index]).mean() + 0.02 * factor.square().mean()).backward()
            optimizer.step()
            schedule.step()
    layers = [
        (one.weight.detach().double().numpy(), one.bias.detach().double().numpy())
        for one in network
        if isinstance(one, torch.nn.Linear)
    ]
    # The network speaks for a device nobody measured: the factors' mean is its own.
    factors = factor.detach().double().numpy()
    centre = factors.mean()
    layers[-1] = (layers[-1][0], layers[-1][1] + centre)
    return {"mean": mean, "scale": scale, "layers": layers, "overheads": over,
            "factors": dict(zip(devices, (factors - centre).tolist(), strict=True))}  # fmt: skip


def predict(nets: list[dict[str, Any]], parts: Problem, known: bool = False) -> np.ndarray:
    """Seconds by the mean of some networks; with the devices' factors where they are known."""
    from gimlet_lab.costs.network import forward

    logs = np.mean(
        [forward(parts.features, net["mean"], net["scale"], net["layers"]) for net in nets], axis=0
    )
    if known:
        logs = logs + np.array([nets[0]["factors"].get(one, 0.0) for one in parts.device])
    over = np.array(
        [overhead_of(nets[0]["overheads"], s, d) for s, d in zip(parts.source, parts.device, strict=True)]
    )
    return over + parts.base * np.exp(logs)


def leave_out(
    family: str, rows: pd.DataFrame, seeds: int = 1, passes: int = PASSES // 2, most: int = 2500
) -> pd.DataFrame:
    """For each device, fit without it and predict it; ``error`` is predicted over measured, less 1."""
    rows = pooled(rows)
    found = []
    for device in sorted(set(rows["device"])):
        others = problem(family, sample(rows[rows["device"] != device], 1, most))
        test = sample(rows[rows["device"] == device], 2, 4000)
        parts = problem(family, test)
        # What who measured added on this device is not the model's to know: from the other devices.
        nets = [fit(others, seed, passes) for seed in range(seeds)]
        found.append(test.assign(predicted=predict(nets, parts)))
        print(family, "without", device, describe(found[-1]), flush=True)
    return pd.concat(found, ignore_index=True)


def describe(rows: pd.DataFrame) -> str:
    """Mean, median and bias of a table with ``predicted``."""
    error = rows["predicted"] / rows["seconds"] - 1
    return f"mean {error.abs().mean():.3f} median {error.abs().median():.3f} bias {error.median():+.3f} n {len(error)}"


def _only(rows: pd.DataFrame, devices: set[str]) -> pd.DataFrame:
    return rows if rows.empty else rows[rows["device"].isin(devices)]


def intervals(family: str, left: pd.DataFrame) -> list[list[float]]:
    """Bounds of measured over predicted that hold 90% of what was left out.

    For small, middle and large kernels.

    Every device counts the same. The start of a kernel is what small is measured by: see
    :func:`kernels.size`.
    """
    parts = problem(family, left)
    sizes = kernels.size(family, parts.base, chips_of(left))
    ratio = (left["seconds"] / left["predicted"]).to_numpy()
    found = []
    for index in range(3):
        here = sizes == index
        counts = pd.Series(parts.device[here]).map(pd.Series(parts.device[here]).value_counts()).to_numpy()
        if len(counts) < 30:
            found.append([0.5, 2.0])
            continue
        order = np.argsort(ratio[here])
        share = np.cumsum(1 / counts[order])
        share /= share[-1]
        low, high = (float(ratio[here][order][np.searchsorted(share, bound)]) for bound in (0.05, 0.95))
        found.append([min(low, 0.95), max(high, 1.05)])
    return found


def collective_terms() -> dict[str, dict[str, float]]:
    """Latency, its growth with the devices, and the share of a link's rate: of each operation, by kind of link."""
    from scipy.optimize import least_squares

    rows = _only(collectives(), FITTED_TABLES)
    if rows.empty:
        return {}
    # A framework takes the quicker of its own kernel and NCCL's.
    rows = rows.groupby(["device", "op", "bytes", "devices"])["seconds"].min().reset_index()
    rows["link"] = [kernels.link(catalogue.find(one))[1] for one in rows["device"]]
    found = {}
    for (op, kind), part in rows.groupby(["op", "link"]):
        rates = np.array([kernels.link(catalogue.find(one))[0] for one in part["device"]])
        ring = ((part["devices"] - 1) / part["devices"] * (2 if op == "all_reduce" else 1)).to_numpy()
        doublings, moved = np.log2(part["devices"].to_numpy()), ring * part["bytes"].to_numpy() / rates
        truth = part["seconds"].to_numpy()

        def seconds(
            x: np.ndarray, doublings: np.ndarray = doublings, moved: np.ndarray = moved
        ) -> np.ndarray:
            return (x[0] + x[1] * doublings) * 1e-6 + moved / x[2]

        answer = least_squares(
            lambda x, f=seconds, truth=truth: np.log(f(x) / truth),
            [2.0, 1.0, 0.7],
            loss="soft_l1",
            f_scale=0.2,
            bounds=([0.1, 0, 0.05], [50, 50, 1.2]),
        )
        ratio = truth / seconds(answer.x)
        low, high = np.quantile(ratio, [0.05, 0.95])
        found[f"{op} {kind}"] = {
            "latency_s": answer.x[0] * 1e-6,
            "per_doubling_s": answer.x[1] * 1e-6,
            "share": float(answer.x[2]),
            "low": float(low),
            "high": float(high),
        }
        print(op, kind, found[f"{op} {kind}"], "mean error", float(np.abs(1 / ratio - 1).mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent.parent / "gimlet_lab" / "costs" / "coefficients.json",
    )
    parser.add_argument("--family", nargs="*", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()

    table = json.loads(options.out.read_text()) if options.out.exists() else {"families": {}, "left_out": {}}
    for family in options.family:
        began = time.perf_counter()
        rows = rows_of(family, options.data)
        if rows.empty:
            print(f"{family}: no measurements here", file=sys.stderr)
            continue
        left = leave_out(family, rows)
        parts = problem(family, sample(pooled(rows), 0))
        nets = [fit(parts, seed) for seed in range(options.seeds)]
        known = predict(nets, parts, known=True)
        inside = np.quantile(parts.seconds / known, [0.03, 0.97])
        table["families"][family] = {
            "networks": [_rounded(net) for net in nets],
            "factors": {name: round(float(np.mean([net["factors"][name] for net in nets])), 4) for name in nets[0]["factors"]},
            "lowest": _digits(parts.features.min(0)), "highest": _digits(parts.features.max(0)),
            "interval": [_digits(pair) for pair in intervals(family, left)], "interval_known": _digits(inside),
        }  # fmt: skip
        table.setdefault("overheads", {}).update(
            {source: {d: round(s, 8) for d, s in by.items()} for source, by in nets[0]["overheads"].items()}
        )
        error = (left["predicted"] / left["seconds"] - 1).abs()
        table["left_out"][family] = {
            name: [round(float(e.mean()), 4), round(float(e.median()), 4)]
            for name, e in error.groupby(left["device"])
        }
        print(
            family,
            "fitted in",
            round(time.perf_counter() - began),
            "s; on its own rows",
            float(np.abs(known / parts.seconds - 1).mean()),
            flush=True,
        )
        options.out.write_text(json.dumps(table, separators=(",", ":")) + "\n", encoding="utf-8")
    terms = collective_terms()
    if terms:
        table["collectives"] = {
            op: {name: float(f"{value:.4g}") for name, value in of.items()} for op, of in terms.items()
        }
    options.out.write_text(json.dumps(table, separators=(",", ":")) + "\n", encoding="utf-8")


def _rounded(net: dict[str, Any]) -> dict[str, Any]:
    layers = [
        {"weight": [_digits(row) for row in weight], "bias": _digits(bias)} for weight, bias in net["layers"]
    ]
    return {"mean": _digits(net["mean"]), "scale": _digits(net["scale"]), "layers": layers}


def _digits(values: Any) -> list[float]:
    return [float(f"{float(value):.5g}") for value in values]


if __name__ == "__main__":
    main()
