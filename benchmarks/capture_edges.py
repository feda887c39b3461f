"""Edges against graphs written by hand: programs of several models and functions, and random ones.

An edge is right when data that one stage made reaches another one. Edges of mere order, and the Python between
stages, do not count. Of the random programs the graph is known because it was there before the program.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import linecache
import random
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from gimlet_lab.model import Run
from gimlet_lab.profiling import Profile

Edges = set[tuple[str, str]]

SETUP = """
import dataclasses
import numpy as np, pandas as pd, torch

def small(n=8): return torch.nn.Sequential(torch.nn.Linear(8, n), torch.nn.Tanh()).eval()
a, b, c, d = small(), small(), small(), small()
x = torch.randn(4, 8)

def work(value):
    # Long enough to be a stage.
    total = 0
    for i in range(20000): total += i & 3
    return total

@dataclasses.dataclass
class Answer:
    text: str
    score: object
"""


@dataclass(frozen=True)
class Program:
    """A cell and its graph."""

    cell: str
    edges: Edges
    setup: str = ""


def chain(*names: str) -> Edges:
    return set(itertools.pairwise(names))


PROGRAMS = {
    "a chain": Program("y = c(b(a(x)))", chain("a", "b", "c")),
    "a diamond through views and in-place writes": Program(
        """
        h = a(x)
        left = b(h.view(2, 2, 8).reshape(4, 8))
        right = c(h[:2])
        left[:2].add_(right)
        y = d(left)
        """,
        {("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")},
    ),
    "branches that do not meet": Program("y = b(a(x)); z = d(c(x))", {("a", "b"), ("c", "d")}),
    "arithmetic between modules": Program(
        "h = a(x); g = b(x); y = c((h * 2 + g).relu())", {("a", "c"), ("b", "c")}
    ),
    "memory given out again": Program(
        """
        for i in range(50):
            t = a(torch.randn(4, 8)); del t
            u = b(torch.randn(4, 8)); del u
        y = c(x)
        """,
        set(),
    ),
    "objects of every kind": Program(
        """
        def load(): work(0); return [f"passage number {i} of the corpus" for i in range(50)]
        def count(texts): work(0); return {text: len(text) for text in texts}
        def rows(counts): work(0); return pd.DataFrame({"n": list(counts.values())})
        def matrix(frame): work(0); return frame.to_numpy(dtype="float32")
        def judge(values): work(0); return Answer("the best of all the passages", values.mean())
        def say(answer): work(0); return answer.text + "!"
        said = say(judge(matrix(rows(count(load())))))
        """,
        chain("load", "count", "rows", "matrix", "judge", "say"),
    ),
    "numpy and torch share memory": Program(
        """
        def vectors(): work(0); return np.ones((4, 8), dtype="float32")
        def best(scores): work(0); return int(scores.argmax())
        top = best(a(torch.from_numpy(vectors())).detach().numpy())
        """,
        {("vectors", "a"), ("a", "best")},
    ),
    "threads": Program(
        """
        from concurrent.futures import ThreadPoolExecutor
        h = a(x)
        with ThreadPoolExecutor(2) as pool:
            left, right = pool.map(lambda module: module(h), (b, c))
        y = d(left + right)
        """,
        {("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")},
    ),
    "prefill and decode": Program(
        """
        ids = torch.arange(12)[None]
        out = llm.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
        """,
        {("prefill", "decode")},
        "llm",
    ),
    "vision, projector, language": Program(
        """
        pixels = torch.randn(1, 3, 16, 16)
        seen = vision(pixels).last_hidden_state
        out = llm(inputs_embeds=projector(seen))
        """,
        chain("vision", "projector", "prefill"),
        "vision",
    ),
    "retrieval": Program(
        """
        def search(vector): work(0); return (corpus @ vector[0].numpy()).argsort()[::-1][:3].copy()
        def prompt(best): work(0); return torch.tensor(best)[None] % 64
        with torch.inference_mode():
            vector = embedder(torch.arange(6)[None]).last_hidden_state.mean(1)
            out = llm(prompt(search(vector)))
        """,
        chain("embed", "search", "prompt", "prefill"),
        "rag",
    ),
    "a loop of an agent": Program(
        """
        def tool(value): work(0); return value.sum().item()
        state = x
        for turn in range(3):
            h = a(state)
            state = x + tool(h)
        """,
        {("a", "tool"), ("tool", "a")},
    ),
}  # fmt: skip


def _models(kind: str) -> dict[str, Any]:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    made: dict[str, Any] = {}
    if kind:
        config = transformers.LlamaConfig(vocab_size=64, num_key_value_heads=2, **shape)
        made["llm"] = transformers.LlamaForCausalLM(config).eval()
    if kind == "vision":
        config = transformers.ViTConfig(image_size=16, patch_size=8, **shape)
        made["vision"] = transformers.ViTModel(config, add_pooling_layer=False).eval()
        made["projector"] = torch.nn.Linear(32, 32)
    if kind == "rag":
        import numpy

        config = transformers.BertConfig(vocab_size=64, **shape)
        made["embedder"] = transformers.BertModel(config, add_pooling_layer=False).eval()
        made["corpus"] = numpy.random.default_rng(0).normal(size=(100, 32)).astype("float32")
    return made


def random_program(seed: int, size: int = 8) -> Program:
    """Modules that read the results of earlier ones, through glue of every kind."""
    draw = random.Random(seed)
    lines, edges = ["import torch"], set()
    for index in range(size):
        sources = sorted(draw.sample(range(index), min(index, draw.randint(0, 2))))
        parts = [
            draw.choice(["h{}", "h{}.clone()", "h{}.view(2, 2, 8).flatten(0, 1)", "[h{}][0]", "h{}.t().t()", "h{} * 2"])
            .format(source)
            for source in sources
        ]  # fmt: skip
        lines.append(f"h{index} = m{index}({' + '.join(parts) or 'torch.randn(4, 8)'})")
        edges |= {(f"m{source}", f"m{index}") for source in sources}
        if draw.random() < 0.3:
            lines.append("torch.randn(4, 8).sum()")
    return Program("\n".join(lines), edges, "random")


def run(program: Program, name: str) -> Run:
    """Profile the cell as a notebook would."""
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(SETUP, names)
    if program.setup == "random":
        names.update({f"m{i}": torch.nn.Linear(8, 8) for i in range(8)})
    else:
        names.update(_models(program.setup))
    source, file = textwrap.dedent(program.cell).strip("\n"), f"<cell {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    profile = Profile(name, names, lambda other: other == file)
    code = compile(source, file, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with torch.no_grad(), profile:
        exec(code, names)
    assert profile.run is not None
    return profile.run


def found(result: Run) -> Edges:
    """Edges by data between stages that are not glue."""
    stages = {stage.id for stage in result.graph.stages if stage.kind != "glue"}
    return {
        (edge.src, edge.dst)
        for edge in result.graph.edges
        if edge.known != "order" and edge.src in stages and edge.dst in stages
    }


def edges(_options: argparse.Namespace) -> dict[str, Any]:
    """Edges that are missing, and edges that are false, over all programs."""
    torch.set_num_threads(1)
    programs = {**PROGRAMS, **{f"random {seed}": random_program(seed) for seed in range(10)}}
    missing, false, all_edges = 0, 0, 0
    for name, program in programs.items():
        seen = found(run(program, name))
        lacks, more = program.edges - seen, seen - program.edges
        missing, false, all_edges = missing + len(lacks), false + len(more), all_edges + len(program.edges)
        if lacks or more:
            print(f"{name}: missing {sorted(lacks)}, false {sorted(more)}", file=sys.stderr)
    return {
        "edges_missing": missing,
        "edges_false": false,
        "edges_all": all_edges,
        "edge_programs": len(programs),
    }
