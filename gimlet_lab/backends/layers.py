"""Stretches of a model's layers sent elsewhere: the first one's call is that of all, the others pass it on.

The model itself stays where the notebook is, with all that is not in its layers. Its KV cache is the
notebook's as ever; each place is sent the part of its own layers. A batch goes through stretches that follow
each other in parts, so that all places work at once.
"""

from __future__ import annotations

import contextvars
import functools
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Any

from gimlet_lab.backends import caches
from gimlet_lab.backends.ambient import ambient, applied
from gimlet_lab.backends.base import PLACED
from gimlet_lab.backends.chains import first_of, origin_of
from gimlet_lab.backends.modules import Module, Route, redirected
from gimlet_lab.backends.places import Place
from gimlet_lab.boundary import Ledger
from gimlet_lab.capture.calls import Call, read_call
from gimlet_lab.errors import GimletError

#: What the host's own forward stands for: the layers then run one by one, as ever.
_HERE = object()
#: Parts of a batch for each stretch that it goes through.
PARTS = 2

_PLAIN = (bool, int, float, str, type(None))


class _Passing(threading.local):
    """A call that was made for this stretch, and which of its layers is to pass it on next; None: none is."""

    next: int | None = None
    output: Any = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}

    def begin(self, output: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """All layers are to pass it on."""
        self.next, self.output, self.args, self.kwargs = 0, output, args, kwargs

    def end(self) -> None:
        """Hold nothing of it any more."""
        self.next, self.output, self.args, self.kwargs = None, None, (), {}


class Layers(Module):
    """One redirected stretch.

    Parameters
    ----------
    chain : torch.nn.Module
        As of :func:`~gimlet_lab.backends.chains.chain_of`.
    host_caches : HostCaches
        Of the deployment.
    """

    def __init__(self, chain: Any, host_caches: caches.HostCaches) -> None:
        super().__init__(chain, host_caches)
        self.layers = list(chain.layers)
        self.first = chain.first
        #: The stretch that its model calls next, where that is elsewhere too.
        self.follower: Layers | None = None
        self.passing = _Passing()
        self._parts: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def redirect(self, ledger: Ledger, routes: Mapping[str, Route]) -> None:
        """Let calls of the layers come here."""
        self.routes = routes
        self._original = lambda *_args, **_kwargs: _HERE
        root, _ = origin_of(self.module)
        if root is not None and not hasattr(vars(root).get("forward"), PLACED):
            # What listens to the model's calls must not look into them: some of it is elsewhere.
            ledger.set(root, "forward", redirected(root.forward, root.forward))
        for index, layer in enumerate(self.layers):
            own = layer.forward
            ledger.set(layer, "forward", redirected(functools.partial(self._layer, index, own), own))

    def _layer(self, index: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The call of one layer: passed on, made for all of them, or its own."""
        given, named = args, dict(kwargs)
        if not args and "hidden_states" in kwargs:
            given = (named.pop("hidden_states"),)
        if self.passing.next == index:  # of the first one: made together with the stretch before
            return self._pass(index, given, named)
        output = self._all(given, named) if index == 0 else _HERE
        return own(*args, **kwargs) if output is _HERE else output

    def _all(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stretches = [self]
        while stretches[-1].follower is not None:
            stretches.append(stretches[-1].follower)
        for stretch in stretches:  # an earlier call may have ended half way
            stretch.passing.end()
        if not args:
            return _HERE
        output = _in_parts(stretches, args, kwargs)
        if output is _HERE:
            stretches, output = [self], self._call(args, kwargs)
        if output is _HERE:
            return _HERE
        for stretch in stretches:
            stretch.passing.begin(output, args[1:], kwargs)
        return self._passed(0)

    def _pass(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        passing = self.passing
        same = _same((args[1:], kwargs), (passing.args, passing.kwargs))
        if not args or args[0] is not first_of(passing.output) or not same:
            passing.end()
            kind = type(self.layers[0]).__name__
            raise GimletError(
                f"the model does not hand on from {kind} to {kind} what they give, so that they cannot run "
                "elsewhere as one: roll back, and place the whole model"
            )
        return self._passed(index)

    def _passed(self, index: int) -> Any:
        output = self.passing.output
        if index + 1 < len(self.layers):
            self.passing.next = index + 1
        else:
            self.passing.end()
        return output

    # -- calls -------------------------------------------------------------------------------------------

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        whole = _cache_of(args, kwargs)
        part = None if whole is None else self.part(whole)
        if whole is None or part is None:
            return super()._call(args, kwargs)
        own_args = tuple(part if value is whole else value for value in args)
        own_kwargs = {name: part if value is whole else value for name, value in kwargs.items()}
        try:
            return super()._call(own_args, own_kwargs)
        finally:
            whole.layers[self.first : self.first + len(self.layers)] = part.layers

    def part(self, whole: Any) -> Any:
        """The cache of these layers: the same objects, in one that a place is sent."""
        last = self.first + len(self.layers)
        kind = getattr(whole, "layer_class_to_replicate", None)
        while len(whole.layers) < last and kind is not None:
            whole.layers.append(kind())
        if len(whole.layers) < last:
            return None
        part = self._parts.get(whole)
        if part is None:
            part = self._parts[whole] = caches.restore(None, {**caches.whole(whole), "layers": []})
        part.layers[:] = whole.layers[self.first : last]
        return part

    def goes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether such a call is made elsewhere, as far as can be told before."""
        call = read_call(self.module, args, kwargs, self.torch.Tensor)
        place = self._route(call).place
        return place is not None and self._why_host(call, place) is None

    def _why_host(self, call: Call, place: Place) -> str | None:
        if any(layer.training for layer in self.layers):
            return "it is in training mode: call .eval()"
        collector = getattr(sys.modules.get("transformers.utils.output_capturing"), "_active_collector", None)
        if (collector is not None and collector.get()) or call.named.get("output_attentions"):
            return "it is asked for what its layers give one by one"
        return super()._why_host(call, place)


def _cache_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return next((value for value in (*args, *kwargs.values()) if caches.is_cache(value)), None)


def _same(one: tuple[tuple[Any, ...], Mapping[str, Any]], other: Any) -> bool:
    """Whether two calls have the same arguments, as the same objects."""
    (args, kwargs), (given, named) = one, other
    return (
        len(args) == len(given)
        and kwargs.keys() == named.keys()
        and all(map(_alike, args, given))
        and all(_alike(value, named[name]) for name, value in kwargs.items())
    )


def _alike(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, _PLAIN) and type(one) is type(other) and one == other)


# -- a batch in parts ------------------------------------------------------------------------------------


def join(modules: Iterable[Module]) -> None:
    """Say of each stretch which one its model calls next."""
    stretches = [module for module in modules if isinstance(module, Layers)]
    begins = {(origin_of(one.module)[1], one.first): one for one in stretches}
    for one in stretches:
        one.follower = begins.get((origin_of(one.module)[1], one.first + len(one.layers)))


def _in_parts(stretches: Sequence[Layers], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Send a batch through stretches part by part, each part on its own way; or nothing, where it cannot be.

    A cache that holds something goes with the batch as it is: to take it apart would cost more.
    """
    import torch

    hidden = args[0]
    if len(stretches) < 2 or not isinstance(hidden, torch.Tensor) or hidden.dim() < 3:
        return _HERE
    rows, length = hidden.shape[:2]
    whole = _cache_of(args, kwargs)
    filled = whole is not None and any(map(caches.length, whole.layers))
    # What is as long as the batch is taken for the batch.
    if rows < 2 or rows == length or filled or not all(one.goes(args, kwargs) for one in stretches):
        return _HERE
    if whole is not None and stretches[-1].part(whole) is None:
        return _HERE
    step = ceil(rows / (PARTS * len(stretches)))
    parts = [slice(start, start + step) for start in range(0, rows, step)]
    own: list[Any] = [None if whole is None else caches.restore(None, caches.whole(whole)) for _ in parts]
    settings = ambient()

    def send(part: slice, cache: Any) -> Any:
        output, *given = _rows(args, rows, part, whole, cache)
        named = _rows(kwargs, rows, part, whole, cache)
        with applied(settings):
            for stretch in stretches:
                output = stretch._call((first_of(output), *given), named)  # noqa: SLF001 - our own
                if output is _HERE:
                    return _HERE
        return output

    with ThreadPoolExecutor(len(parts), thread_name_prefix="gimlet-part") as pool:
        # What is asked of the call is known by its context, and each thread needs one of its own.
        sent = [
            pool.submit(contextvars.copy_context().run, send, part, cache)
            for part, cache in zip(parts, own, strict=True)
        ]
        outputs = [one.result() for one in sent]
    if any(output is _HERE for output in outputs):
        return _HERE
    if whole is not None:
        for index in range(stretches[0].first, stretches[-1].first + len(stretches[-1].layers)):
            _gather(whole.layers[index], [cache.layers[index] for cache in own])
    return _together(outputs)


def _rows(value: Any, rows: int, part: slice, whole: Any, cache: Any) -> Any:
    """A part of the batch in a value; a tensor of one dimension counts tokens."""
    if value is whole and whole is not None:
        return cache
    if type(value) in (tuple, list):
        return type(value)(_rows(item, rows, part, whole, cache) for item in value)
    if isinstance(value, dict):
        return {key: _rows(item, rows, part, whole, cache) for key, item in value.items()}
    batched = hasattr(value, "untyped_storage") and value.dim() > 1 and value.shape[0] == rows
    return value[part] if batched else value


def _gather(layer: Any, parts: Sequence[Any]) -> None:
    """Put the caches of all parts into the one of the batch."""
    import torch

    if parts[0].keys is None:
        return
    vars(layer).update(vars(parts[0]))
    layer.keys = torch.cat([part.keys for part in parts])
    layer.values = torch.cat([part.values for part in parts])


def _together(outputs: Sequence[Any]) -> Any:
    import torch

    if not isinstance(outputs[0], tuple):
        return torch.cat(list(outputs))
    return tuple(
        torch.cat(items) if hasattr(items[0], "untyped_storage") else items[0]
        for items in zip(*outputs, strict=True)
    )
