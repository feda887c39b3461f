"""What profiling costs: cells bare, under gimlet_lab and under its peers, in interleaved pairs."""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import torch
from models import load_embedder, load_llm

import gimlet_lab as gimlet

Cell = Callable[[], None]
#: CPU and wall seconds of the process.
Taken = tuple[float, float]

PROMPT = 128
PASSAGES = 1000
STEPS = 50


def decode(options: argparse.Namespace) -> dict[str, Any]:
    """SmolLM2-135M: a prompt of 128 tokens, then a decode loop; the shortest one under the peers as well."""
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    for tokens in options.tokens:
        cell = decode_cell(tokens)
        runs: dict[str, Callable[[], Taken]] = {"overhead": lambda cell=cell: timed(lambda: profiled(cell))}
        served: Served | None = None
        if tokens == min(options.tokens):
            runs["torch_profiler"] = lambda cell=cell: timed(lambda: torch_profiler(cell))
            runs["flop_counter"] = lambda cell=cell: timed(lambda: flop_counter(cell))
            if options.peers:
                served = Served(options.peers, tokens)
                runs["scalene"] = served.run
        wanted = options.variants or list(runs)
        for name, found in pairs(
            cell, {name: run for name, run in runs.items() if name in wanted}, options.pairs
        ).items():
            figures[f"{name}_{tokens}"] = found
        if served is not None:
            served.close()
    return figures


def embed(options: argparse.Namespace) -> dict[str, Any]:
    """MiniLM: 1,000 passages of 8 to 14 words in batches of 32, tokenising included."""
    torch.set_num_threads(1)
    tokenizer, encoder = load_embedder()
    words = [
        "river",
        "stone",
        "light",
        "paper",
        "garden",
        "engine",
        "winter",
        "signal",
        "copper",
        "market",
        "harbour",
        "letter",
    ]
    draw = random.Random(0)
    passages = [" ".join(draw.choices(words, k=draw.randint(8, 14))) for _ in range(PASSAGES)]

    def cell() -> None:
        with torch.inference_mode():
            for start in range(0, PASSAGES, 32):
                batch = tokenizer(passages[start : start + 32], padding=True, return_tensors="pt")
                hidden = encoder(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1)
                torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    found = pairs(cell, {"overhead_embed": lambda: timed(lambda: profiled(cell))}, options.pairs)
    return dict(found)


def train(options: argparse.Namespace) -> dict[str, Any]:
    """A residual network of 18 layers, 50 steps of SGD on batches of 8 images of 32 by 32."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = residual_network(32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))

    def cell() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    found = pairs(cell, {"overhead_train": lambda: timed(lambda: profiled(cell))}, options.pairs)
    return dict(found)


def decode_cell(tokens: int) -> Cell:
    """The cell that decodes so many tokens."""
    _, llm = load_llm()
    ids = torch.randint(0, llm.config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))

    def cell() -> None:
        with torch.inference_mode():
            llm.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
            )

    return cell


class Block(torch.nn.Module):
    """Two convolutions around which the input goes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            torch.nn.BatchNorm2d(outputs),
            torch.nn.ReLU(),
            torch.nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            torch.nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.around = torch.nn.Identity() if same else torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.around(x))


def residual_network(width: int) -> torch.nn.Module:
    """ResNet-18's shape (two blocks at each of four sizes) for small images."""
    layers: list[torch.nn.Module] = [torch.nn.Conv2d(3, width, 3, 1, 1, bias=False)]
    inputs = width
    for size in range(4):
        outputs = width << size
        layers += [Block(inputs, outputs, 1 if size == 0 else 2), Block(outputs, outputs, 1)]
        inputs = outputs
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(inputs, 10)]
    return torch.nn.Sequential(*layers)


# -- variants ---------------------------------------------------------------------------------------------


def profiled(cell: Cell) -> None:
    with gimlet.profile("overhead"):
        cell()


def torch_profiler(cell: Cell) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True):
        cell()


def flop_counter(cell: Cell) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False):
        cell()


class Served:
    """The decode cell in a process under Scalene, run whenever it is asked for.

    CPU only: Scalene 2 else starts torch's own profiler every few milliseconds, and one cell had taken 21 GB and
    eight minutes without coming to its end.
    """

    def __init__(self, peers: Path, tokens: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        outfile = Path(self.folder.name) / "profile.json"
        command = [
            *(sys.executable, "-m", "scalene", "run", "--cpu-only", "-o", str(outfile)),
            *(__file__, "---", str(tokens)),
        ]
        here = os.environ.get("PYTHONPATH")
        path = os.pathsep.join(filter(None, (here, str(peers))))
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            cwd=self.folder.name,
        )

    def run(self) -> Taken:
        """Run it once."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("taken "):
                cpu, wall = line.split()[1:]
                return float(cpu), float(wall)
        raise SystemExit("scalene ended early; see above")

    def close(self) -> None:
        """End the process."""
        self.process.communicate()
        self.folder.cleanup()


def serve(tokens: int) -> None:
    """Run the decode cell for each line of the standard input, and say what it took."""
    torch.set_num_threads(1)
    cell = decode_cell(tokens)
    for _ in sys.stdin:
        cpu, wall = timed(cell)
        print("taken", cpu, wall, flush=True)


# -- measuring --------------------------------------------------------------------------------------------


def timed(run: Cell) -> Taken:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def pairs(cell: Cell, runs: dict[str, Callable[[], Taken]], count: int) -> dict[str, Any]:
    """Ratios to the bare cell, each run between the two bare ones it is compared with."""
    for run in (lambda: timed(cell), *runs.values()):
        run()
    ratios: dict[str, list[Taken]] = {name: [] for name in runs}
    before = timed(cell)
    for number in range(count):
        for name, run in runs.items():
            taken, after = run(), timed(cell)
            cpu, wall = ((2 * taken[i]) / (before[i] + after[i]) for i in (0, 1))
            ratios[name].append((cpu, wall))
            before = after
        told = "  ".join(f"{name} {found[-1][0]:.3f}" for name, found in ratios.items())
        print(f"pair {number + 1} of {count}: {told}", file=sys.stderr)
    return {
        name: {
            "cpu": round(statistics.median(cpu for cpu, _ in found), 4),
            "cpu_quartiles": quartiles([cpu for cpu, _ in found]),
            "wall": round(statistics.median(wall for _, wall in found), 4),
            "wall_quartiles": quartiles([wall for _, wall in found]),
            "pairs": count,
            "bare_cpu_s": round(before[0], 3),
        }
        for name, found in ratios.items()
    }


def quartiles(values: list[float]) -> list[float]:
    if len(values) < 2:
        return [round(value, 4) for value in values * 2]
    first, _, last = statistics.quantiles(values, n=4)
    return [round(first, 4), round(last, 4)]


if __name__ == "__main__":
    serve(int(sys.argv[1]))
