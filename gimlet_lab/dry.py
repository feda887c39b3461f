"""``gimlet.dry_run``: a model from its config, run on fake tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gimlet_lab.errors import DryRunError, GimletError, UsageError
from gimlet_lab.hardware import architectures
from gimlet_lab.model import Device, Run
from gimlet_lab.profiling import Profile

#: Tokens of a prompt where nobody says how many.
PROMPT_TOKENS = 1024


def dry_run(
    model: Any,
    *,
    prompt_tokens: int | None = None,
    new_tokens: int = 128,
    batch: int = 1,
    dtype: str | None = None,
    inputs: Any = None,
    device: str | Device | None = None,
    name: str | None = None,
) -> Run:
    """Run a model without its weights: operators, bytes and memory are exact, times are the cost model's.

    Parameters
    ----------
    model : str, Path, mapping, config or Module
        A name of the shipped list (``llama-3.1-8b``, …), a ``config.json``, its dictionary, a config of
        transformers, or a module.
    prompt_tokens, new_tokens, batch : int
        What a language model is asked for. The first new token comes out of the prefill; the others are a
        decode step each. A prompt has 1,024 tokens where left out, or as many as fit.
    dtype : str, optional
        Of weights and activations; the config's, or ``bfloat16``, where left out.
    inputs : tensor, sequence or mapping, optional
        What a module is called with; only shapes and dtypes count.
    device : str or Device, optional
        Whose times the run gets; this machine's processor where left out. A plan does not go by it.
    name : str, optional
        What the run is called.

    Raises
    ------
    UnknownNameError
        If there is no such model; says which are near.
    DryRunError
        If the model needs values of tensors, or does not run on fake ones.

    Examples
    --------
    >>> import gimlet_lab as gimlet
    >>> tiny = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    ...         "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}
    >>> run = gimlet.dry_run(tiny, prompt_tokens=32, new_tokens=8, device="h100-sxm")
    >>> [(stage.id, stage.calls) for stage in run.graph.stages], run.dry
    ([('prefill', 1), ('decode', 7)], True)
    """
    import torch

    source = _source(model)
    label = name or (str(model) if isinstance(model, str) else _type_of(source))
    variable = re.sub(r"\W", "_", f"model_{label}" if label[:1].isdigit() else label)
    namespace: dict[str, Any] = {}
    if isinstance(source, torch.nn.Module):
        namespace[variable] = source
    profile = Profile(label, namespace, lambda _: False, dry=True, device=_device(device))
    assert profile.world is not None
    profile.world.enter()
    try:
        with _one_line(label), torch.no_grad():
            module = namespace.get(variable)
            if module is None:
                module = namespace[variable] = _build(source, dtype)
            module.eval()
            call = _call(module, inputs, prompt_tokens, new_tokens, batch)
            with profile:
                call()
    finally:
        profile.world.leave()
    assert profile.run is not None
    return profile.run


@contextmanager
def _one_line(label: str) -> Any:
    try:
        yield
    except GimletError:
        raise
    except Exception as error:
        text = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {text[0] if text else 'no message'}"
        raise DryRunError(f"{label} does not run dry: {why}") from error


def _source(model: Any) -> Any:
    """A module as it is, or a config of transformers."""
    if isinstance(model, str | Path | Mapping):
        found = architectures.config(model)
        auto = _transformers().AutoConfig
        kind = found.pop("model_type")
        try:
            return auto.for_model(kind, **found)
        except ValueError as error:
            raise UsageError(f"{kind}: this transformers has no such model ({_first(error)})") from None
    import torch

    if isinstance(model, torch.nn.Module) or hasattr(model, "model_type"):
        return model
    raise UsageError(f"dry_run takes a model's name, config or module, not {type(model).__name__}")


def _type_of(source: Any) -> str:
    return str(getattr(source, "model_type", None) or type(source).__name__)


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise GimletError(
            "a dry run of a config needs transformers: pip install 'gimlet-lab[demo]'"
        ) from None
    return transformers


def _device(device: str | Device | None) -> Device | None:
    if not isinstance(device, str):
        return device
    from gimlet_lab.hardware.fleet import fleet

    return next(iter(fleet(device)))


def _build(config: Any, dtype: str | None) -> Any:
    """A module of fake parameters."""
    import torch

    transformers = _transformers()
    wanted = dtype or getattr(config, "dtype", None) or "bfloat16"
    found = getattr(torch, wanted, None) if isinstance(wanted, str) else wanted
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UsageError(f"dtype {wanted!r} is none of torch's floating-point dtypes")
    named = (getattr(config, "architectures", None) or [None])[0]
    kind = getattr(transformers, named, None) if named else None
    if kind is not None:
        return kind._from_config(config, dtype=found)  # noqa: SLF001 - what the auto classes call
    auto = transformers.AutoModel
    if _has(transformers.AutoModelForCausalLM, config) and not _has(
        transformers.AutoModelForMaskedLM, config
    ):
        auto = transformers.AutoModelForCausalLM
    return auto.from_config(config, dtype=found)


def _has(auto: Any, config: Any) -> bool:
    return type(config) in auto._model_mapping  # noqa: SLF001 - nothing public says


def _call(module: Any, inputs: Any, prompt_tokens: int | None, new_tokens: int, batch: int) -> Any:
    """What is to be run: the module with what it was given, or as a model of its kind is used."""
    import torch

    for count, what in ((prompt_tokens, "prompt_tokens"), (new_tokens, "new_tokens"), (batch, "batch")):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise UsageError(f"{what} is a whole number above 0, not {count!r}")
    if inputs is not None:
        if isinstance(inputs, Mapping):
            return lambda: module(**inputs)
        arguments = inputs if isinstance(inputs, list | tuple) else (inputs,)
        return lambda: module(*arguments)
    config, main = getattr(module, "config", None), getattr(module, "main_input_name", None)
    if config is None or main is None:
        raise UsageError(f"dry_run: a {type(module).__name__} needs inputs=…, the tensors it is called with")
    generates = bool(module.can_generate())
    if main == "input_ids":
        tokens = _prompt(config, prompt_tokens, new_tokens if generates else 0)
        given = torch.zeros((batch, tokens), dtype=torch.int64)
    else:
        given = torch.zeros((batch, *_shape(config, main, type(module).__name__)), dtype=module.dtype)
    if generates:
        return lambda: module.generate(given, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    return lambda: module(**{main: given})


def _prompt(config: Any, wanted: int | None, new: int) -> int:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int):
        return wanted or PROMPT_TOKENS
    if wanted is None:
        wanted = max(1, min(PROMPT_TOKENS, limit - new))
    if wanted + new > limit:
        raise UsageError(
            f"{wanted:,} tokens and {new:,} new ones are more than the model's {limit:,} positions"
        )
    return wanted


def _shape(config: Any, main: str, kind: str) -> tuple[int, ...]:
    """One input of a model that does not read tokens."""
    if main == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = vision.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return (getattr(vision, "num_channels", 3), height, width)
    if main == "input_features" and hasattr(config, "max_source_positions"):
        return (config.num_mel_bins, 2 * config.max_source_positions)
    raise UsageError(f"dry_run: what a {kind} reads ({main}) must be given as inputs=…")
