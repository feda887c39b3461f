"""What an outermost module call is: role, signature and cache, from what goes in and comes out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gimlet_lab.capture.dataflow import Dataflow

_IDS = ("input_ids", "decoder_input_ids", "tokens")
_EMBEDS = ("inputs_embeds", "decoder_inputs_embeds")
_CACHES = ("past_key_values", "past_key_value", "cache_params", "kv_cache", "cache")
_MASKS = ("attention_mask", "token_type_ids")


@dataclass(slots=True)
class Call:
    """The inputs of one call.

    Attributes
    ----------
    named : mapping
        Arguments by name, those of a lone dictionary argument unpacked.
    cache : object
        The KV cache it was given; None: none.
    tokens : tensor or None
        What it takes, where that is tokens or their embeddings.
    batch, q_len, past_len : int or None
        Of such a call.
    signature : str
        Calls of one module with one signature are alike, but for the length of the past.
    """

    named: dict[str, Any] = field(default_factory=dict)
    cache: object = None
    tokens: Any = None
    batch: int | None = None
    q_len: int | None = None
    past_len: int | None = None
    signature: str = ""


def read_call(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensor_type: type) -> Call:
    """Look at a call's arguments; nothing is computed and no tensor is kept."""
    call = Call(_named(module, args, kwargs))
    named = call.named
    if len(named) == 1:
        only = next(iter(named.values()))
        if isinstance(only, Mapping):
            named = call.named = {str(key): value for key, value in only.items()}
    for name in _CACHES:
        if named.get(name) is not None:
            call.cache = named[name]
            break
    tokens = _first(named, _IDS, tensor_type)
    if tokens is None:
        tokens = _first(named, _EMBEDS, tensor_type)
    if tokens is not None and tokens.dim() >= 1:
        call.tokens = tokens
        call.batch = int(tokens.shape[0]) if tokens.dim() > 1 else 1
        call.q_len = int(tokens.shape[1] if tokens.dim() > 1 else tokens.shape[0])
        call.past_len = past_length(call.cache)
    call.signature = _signature(call, tensor_type)
    return call


def role_of(call: Call, output: object, tensor_type: type) -> str:
    """Say what a call was by what it did.

    ``prefill`` fills a cache (with several tokens, or the first one), ``decode`` adds one token to it,
    ``embed`` turns tokens into hidden states without a cache or logits over a vocabulary; anything else is
    ``forward``.
    Whether several tokens more are a prompt's or guesses to ``verify``, only their origin tells.
    """
    fields = _fields(output)
    if call.q_len is None:
        return "forward"
    cached = call.cache is not None or any(fields.get(name) is not None for name in _CACHES)
    if cached:
        return "decode" if call.q_len == 1 and call.past_len else "prefill"
    takes = any(name in call.named for name in (*_IDS, *_EMBEDS))
    gives = any(name in fields for name in ("last_hidden_state", "sentence_embedding", "token_embeddings"))
    bare = isinstance(output, tensor_type) and any(call.named.get(name) is not None for name in _MASKS)
    if takes and "logits" not in fields and "loss" not in fields and (gives or bare):
        return "embed"
    return "forward"


def output_cache(call: Call, output: object) -> object:
    """Give the cache as it is after the call."""
    fields = _fields(output)
    for name in _CACHES:
        if fields.get(name) is not None:
            return fields[name]
    return call.cache


def past_length(cache: object) -> int:
    """Tokens a cache holds, now: a static cache answers with a tensor that goes on counting."""
    if cache is None:
        return 0
    length = getattr(cache, "get_seq_length", None)
    try:
        if callable(length):
            return int(length())
        if isinstance(cache, list | tuple) and cache and isinstance(cache[0], list | tuple):
            return int(cache[0][0].shape[-2])
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError):
        return 0
    return 0


def cache_tensors(cache: object, flow: Dataflow, depth: int = 6) -> list[Any]:
    """Every tensor a cache holds, each once."""
    layers = getattr(cache, "layers", None)
    if isinstance(layers, list) and all(
        hasattr(layer, "keys") and hasattr(layer, "values") for layer in layers
    ):
        # As transformers has it; a layer that was never used has no tensors yet.
        return [tensor for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None]
    found: dict[int, Any] = {}
    pending: list[tuple[object, int]] = [(cache, depth)]
    while pending:
        value, left = pending.pop()
        if value is None or left < 0 or isinstance(value, str | bytes | int | float | type):
            continue
        tensors = [tensor for _, tensor in flow.tensors(value, 0)]
        if tensors:
            found.update((id(tensor), tensor) for tensor in tensors)
        elif isinstance(value, Mapping):
            pending += [(item, left - 1) for item in value.values()]
        elif isinstance(value, list | tuple):
            pending += [(item, left - 1) for item in value]
        elif hasattr(value, "__dict__") and not callable(value):
            pending += [(item, left - 1) for item in vars(value).values()]
    return list(found.values())


def cache_places(cache: object, flow: Dataflow) -> dict[int, frozenset[int] | None]:
    """Where a cache's tensors lie: storages and, of those that hold something else as well, offsets.

    Keys and values that were computed together with the queries share a storage with them.
    """
    tensors: dict[int, list[Any]] = {}
    for tensor in cache_tensors(cache, flow):
        tensors.setdefault(flow.address(tensor), []).append(tensor)
    places: dict[int, frozenset[int] | None] = {}
    for address, held in tensors.items():
        whole = sum(tensor.nbytes for tensor in held) >= held[0].untyped_storage().nbytes()
        places[address] = None if whole else frozenset(int(tensor.storage_offset()) for tensor in held)
    return places


_names: dict[type, tuple[str, ...]] = {}


def _named(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    if not args:
        return dict(kwargs)
    kind = type(module)
    names = _names.get(kind)
    if names is None:
        try:
            parameters = inspect.signature(kind.forward).parameters.values()
            names = tuple(
                p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            )[1:]
        except (TypeError, ValueError, AttributeError):
            names = ()
        if len(_names) < 10_000:
            _names[kind] = names
    named = {names[i] if i < len(names) else f"input{i}": value for i, value in enumerate(args)}
    named.update(kwargs)
    return named


def _first(named: Mapping[str, Any], names: tuple[str, ...], tensor_type: type) -> Any:
    return next((named[name] for name in names if isinstance(named.get(name), tensor_type)), None)


def _fields(output: object) -> Mapping[str, Any]:
    if isinstance(output, Mapping):
        return output
    found = getattr(output, "__dict__", None)
    if isinstance(found, dict) and ("logits" in found or "last_hidden_state" in found):
        return found
    return {}


def _signature(call: Call, tensor_type: type) -> str:
    if call.q_len is not None and call.cache is not None and call.past_len:
        # Masks and positions grow with the past; the calls are alike all the same.
        tensors = sorted(name for name, value in call.named.items() if isinstance(value, tensor_type))
        tokens = _first(call.named, _IDS, tensor_type)
        dtype = "embeds" if tokens is None else "ids"
        return f"cached {dtype}[{call.batch},{call.q_len}] {type(call.cache).__name__} {' '.join(tensors)}"
    return " ".join(_spelled(name, value, tensor_type) for name, value in call.named.items())


def _spelled(name: str, value: object, tensor_type: type, depth: int = 2) -> str:
    if isinstance(value, tensor_type):
        tensor: Any = value
        dtype = str(tensor.dtype).removeprefix("torch.")
        return f"{name}:{dtype}[{','.join(map(str, tensor.shape))}]"
    if value is None or isinstance(value, bool | str):
        return f"{name}={str(value)[:32] if not isinstance(value, str) else 'str'}"
    if isinstance(value, list | tuple) and depth:
        return f"{name}:({' '.join(_spelled('', item, tensor_type, depth - 1) for item in value[:16])})"
    if isinstance(value, Mapping) and depth:
        inner = (_spelled(str(key), item, tensor_type, depth - 1) for key, item in list(value.items())[:16])
        return f"{name}:{{{' '.join(inner)}}}"
    return f"{name}:{type(value).__name__}"
