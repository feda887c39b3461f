"""What a model's layers over two CPU slices gain over the same layers on one, and what that costs a token.

``batch``: prompts without a cache, which go through the stretches in parts, so that both slices work at once.
``token``: decode steps of one prompt, which wait for one slice after the other, over those on one slice.
Ratios are of interleaved rounds: their median, least and most.

    python benchmarks/layers.py [--rounds 9] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
import transformers
from placing import module, plan

from gimlet_lab.backends import backend

LAYERS, BATCH, LENGTH, TOKENS = 8, 16, 96, 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=768, intermediate_size=2048, num_hidden_layers=LAYERS,
        num_attention_heads=12, num_key_value_heads=4, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    llm = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 1000, (BATCH, LENGTH))
    half = LAYERS // 2
    parts = [module(f"{a}", f"llm.model.layers[{a}:{b}]", "forward") for a, b in ((0, half), (half, LAYERS))]
    whole = module("all", f"llm.model.layers[0:{LAYERS}]", "forward")

    def batch() -> Any:
        with torch.inference_mode():
            return llm(ids, use_cache=False).logits

    def token() -> Any:
        return llm.generate(
            ids[:1], attention_mask=torch.ones_like(ids[:1]), max_new_tokens=TOKENS, do_sample=False
        )

    places = {"one": plan((whole, "cpu/0")), "two": plan((parts[0], "cpu/0"), (parts[1], "cpu/1"))}
    expected = {"batch": batch(), "token": token()}
    taken: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for name, placed in places.items():
            with backend("local").deploy(placed, {"llm": llm}):
                for what, run in (("batch", batch), ("token", token)):
                    run()
                    seconds, got = timed(run)
                    same = torch.equal if what == "token" else torch.allclose
                    assert same(got, expected[what], **({} if what == "token" else {"atol": 1e-4}))
                    taken.setdefault(f"{what} {name}", []).append(seconds)
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    found = {
        "batch_gain": ratios(taken["batch one"], taken["batch two"]),
        "token_cost": ratios(taken["token two"], taken["token one"]),
    }
    print(json.dumps(found) if options.json else "\n".join(f"{k:12}{v}" for k, v in found.items()))


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    got = run()
    return time.perf_counter() - started, got


def ratios(above: list[float], below: list[float]) -> dict[str, float]:
    found = [a / b for a, b in zip(above, below, strict=True)]
    return {
        "median": round(statistics.median(found), 3),
        "least": round(min(found), 3),
        "most": round(max(found), 3),
    }


if __name__ == "__main__":
    main()
