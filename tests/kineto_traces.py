"""Kineto traces made by hand, in the format of libkineto: no accelerator was here to record one.

>>> made = Made("NVIDIA H100 80GB HBM3")
>>> with made.module("Llama_0"):
...     made.mm(4, 8, 16, device_us=50.0)
>>> [event["cat"] for event in made.events]
['cpu_op', 'cuda_runtime', 'kernel', 'python_function']
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: The trace's clock at its first event, in µs.
ZERO_US = 4_788_306_000_000.0

H100 = "NVIDIA H100 80GB HBM3"
MI300X = "AMD Instinct MI300X"


class Made:
    """A program acted out on a host that launches work and a device that does it, stream by stream."""

    def __init__(
        self, device: str | None = H100, *, runtime: str = "cuda_runtime", launch: str = "cudaLaunchKernel"
    ) -> None:
        self.events: list[dict[str, Any]] = []
        self.now = 0.0
        self.free = {7: 0.0}
        self.runtime = runtime
        self.launch_name = launch
        self.correlation = 100
        self.external = 0
        self.head: dict[str, Any] = {
            "schemaVersion": 1,
            "deviceProperties": []
            if device is None
            else [{"id": 0, "name": device, "totalGlobalMem": 85_000_000_000, "numSms": 132}],
            "record_shapes": 1,
            "host_name": "server-1",
            "displayTimeUnit": "ms",
            "baseTimeNanoseconds": 1_790_857_026_000_000_000,
        }

    def event(self, cat: str, name: str, start: float, end: float, **more: Any) -> dict[str, Any]:
        made = {
            "ph": "X",
            "cat": cat,
            "name": name,
            "pid": 1,
            "tid": 1,
            "args": {},
            "ts": ZERO_US + start,
            "dur": end - start,
            **more,
        }
        self.events.append(made)
        return made

    def host(self, us: float) -> None:
        """Let the host work."""
        self.now += us

    @contextmanager
    def _around(self, cat: str, name: str, **args: Any) -> Iterator[None]:
        began = self.now
        yield
        self.event(cat, name, began, self.now, args=args)

    def module(self, name: str) -> Any:
        return self._around("python_function", f"nn.Module: {name}")

    def annotation(self, name: str) -> Any:
        return self._around("user_annotation", name)

    def kernel(
        self, name: str, us: float, *, stream: int = 7, cat: str = "kernel", delay: float = 5.0, **args: Any
    ) -> None:
        """Launch work; it starts when its stream is free, at the earliest ``delay`` later."""
        self.correlation += 1
        began = self.now
        self.event(
            self.runtime, self.launch_name, began, began + 2.0,
            args={"cbid": 211, "correlation": self.correlation, "External id": self.external},
        )  # fmt: skip
        start = max(self.free.get(stream, 0.0), began + delay)
        self.free[stream] = start + us
        ids = {"device": 0, "stream": stream, "correlation": self.correlation, "External id": self.external}
        self.event(cat, name, start, start + us, pid=0, tid=stream, args={**ids, **args})
        self.now = began + 3.0

    @contextmanager
    def op(self, name: str, dims: Any = None, types: Any = None, concrete: Any = None) -> Iterator[None]:
        self.external += 1
        args: dict[str, Any] = {"External id": self.external, "Record function id": self.external}
        if dims is not None:
            args |= {"Input Dims": dims, "Input type": types, "Concrete Inputs": concrete or [""] * len(dims)}
        began, place = self.now, len(self.events)
        self.now += 1.0
        yield
        self.now += 1.0
        made = self.event("cpu_op", name, began, self.now, args=args)
        self.events.insert(place, self.events.pop())
        assert self.events[place] is made

    def mm(self, m: int, n: int, k: int, *, device_us: float, **more: Any) -> None:
        half = "c10::BFloat16"
        with self.op("aten::mm", [[m, k], [k, n]], [half, half]):
            self.kernel("gemm_bf16", device_us, **more)

    def attention(self, q_len: int, kv_len: int, *, device_us: float, causal: bool = True) -> None:
        half = "c10::BFloat16"
        query, key = [1, 32, q_len, 128], [1, 8, kv_len, 128]
        dims, types = [query, key, key, [], [], []], [half, half, half, "Scalar", "Scalar", "Scalar"]
        with self.op(
            "aten::_scaled_dot_product_flash_attention", dims, types, ["", "", "", "0.", str(causal), "False"]
        ):
            self.kernel("flash_fwd_kernel", device_us)

    def copy(self, kind: str, nbytes: int, us: float, *, stream: int = 7) -> None:
        """``HtoD`` or ``DtoH``."""
        sides = {"HtoD": "(Pinned -> Device)", "DtoH": "(Device -> Pinned)", "DtoD": "(Device -> Device)"}[
            kind
        ]
        with self.op(
            "aten::copy_", [[nbytes // 4], [nbytes // 4], []], ["float", "float", "Scalar"], ["", "", "True"]
        ):
            self.kernel(f"Memcpy {kind} {sides}", us, stream=stream, cat="gpu_memcpy", bytes=nbytes)

    def synchronize(self) -> None:
        """Let the host wait until the device is done."""
        self.now = max([self.now, *self.free.values()])

    def write(self, path: Path, **more: Any) -> Path:
        text = json.dumps({**self.head, "traceEvents": self.events, **more})
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
        return path


def served(made: Made, tokens: int = 4) -> Made:
    """A model served: a prefill of 512 tokens, then single tokens, one layer of 4096 × 14336 each."""
    for step in range(tokens + 1):
        q_len, kv_len = (512, 512) if step == 0 else (1, 512 + step)
        with made.module("Llama_0"):
            with made.module("LlamaDecoderLayer_0"):
                with made.module("Linear_0"):
                    made.mm(q_len, 14336, 4096, device_us=95.0 if step == 0 else 40.0)
                made.attention(q_len, kv_len, device_us=20.0 if step == 0 else 4.0)
            with made.module("Linear_1"):
                made.mm(q_len, 4096, 14336, device_us=95.0 if step == 0 else 40.0)
        made.synchronize()
        made.host(10.0)
    return made
