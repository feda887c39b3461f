"""Settings of torch that a call depends on besides its arguments: they travel with it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any


def ambient() -> dict[str, Any] | None:
    """The caller's settings; None where torch is not loaded."""
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "get_default_dtype"):
        return None
    autocast = torch.is_autocast_enabled("cpu")
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": _name(torch.get_autocast_dtype("cpu")) if autocast else None,
        "dtype": _name(torch.get_default_dtype()),
        "precision": torch.get_float32_matmul_precision(),
    }


#: What a process that has not touched them has: a worker need not load torch for these.
_USUAL = {"grad": True, "inference": False, "autocast": None, "dtype": "float32", "precision": "highest"}


@contextlib.contextmanager
def applied(settings: Mapping[str, Any] | None) -> Iterator[None]:
    """Make a call with the caller's settings."""
    if settings is None or settings == _USUAL:
        yield
        return
    import torch

    before = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, before[1])
        stack.callback(torch.set_default_dtype, before[0])
        torch.set_default_dtype(getattr(torch, settings["dtype"]))
        torch.set_float32_matmul_precision(settings["precision"])
        if settings["inference"]:
            stack.enter_context(torch.inference_mode())
        else:
            stack.enter_context(torch.set_grad_enabled(settings["grad"]))
        if settings["autocast"]:
            stack.enter_context(torch.autocast("cpu", dtype=getattr(torch, settings["autocast"])))
        yield


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
