"""Module stages: calls of a model sent to where its role runs.

The module stays the object it is; only its own ``forward`` is set, so that ``generate`` and pipelines
work unchanged. What a worker could not do the same way (gradients, training, hooks inside, caches of
other kinds) runs on the host, and is counted with the reason.
"""

from __future__ import annotations

import functools
import itertools
import operator
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gimlet_lab.backends import caches
from gimlet_lab.backends.ambient import ambient
from gimlet_lab.backends.base import PLACED, Placed
from gimlet_lab.backends.chains import title
from gimlet_lab.backends.packing import Packed, describe, fingerprint, own_hooks, pack
from gimlet_lab.backends.places import Place
from gimlet_lab.backends.remote import Remote, WorkerDiedError, WorkerLostError, again
from gimlet_lab.backends.resident import Resident
from gimlet_lab.backends.trampoline import forget_frames
from gimlet_lab.backends.usage import Usage
from gimlet_lab.backends.weights import references
from gimlet_lab.boundary import Ledger
from gimlet_lab.capture.calls import Call, read_call
from gimlet_lab.errors import GimletError

_keys = itertools.count()
_versions = operator.attrgetter("_version")
_pointers = operator.methodcaller("data_ptr")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Route:
    """Where the calls of one role go; without a place they stay on the host."""

    place: Place | None = None
    usage: Usage | None = None
    placed: dict[str, str] = field(default_factory=dict)


_HOST = Route()


def redirected(
    call: Callable[..., Any], original: Callable[..., Any], placed: Mapping[str, dict[str, str]] | None = None
) -> Callable[..., Any]:
    """A forward that makes this call, and looks like the original; our frames are in no traceback."""

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except BaseException as error:
            forget_frames(error)
            raise

    setattr(forward, PLACED, Placed(dict(placed or {}), original))
    return forward


class Module:
    """One redirected module.

    Parameters
    ----------
    module : torch.nn.Module
        Of the notebook; it stays the object it is.
    host_caches : HostCaches
        Of the deployment.
    """

    def __init__(self, module: Any, host_caches: caches.HostCaches) -> None:
        import torch

        self.torch = torch
        self.module = module
        self.caches = host_caches
        self.routes: Mapping[str, Route] = {}
        #: Why all calls stay on the host; None while they do not.
        self.stays: str | None = None
        self._key = f"module {next(_keys)}"
        self._packed: Packed | None = None
        self._original: Any = None

    @property
    def name(self) -> str:
        """What a person calls it."""
        return title(self.module)

    @property
    def places(self) -> list[Place]:
        """Everywhere that calls of it go, once."""
        return list({id(r.place): r.place for r in self.routes.values() if r.place is not None}.values())

    @property
    def usages(self) -> list[Usage]:
        """Where its calls are counted."""
        return [route.usage for route in self.routes.values() if route.usage is not None]

    # -- on and off --------------------------------------------------------------------------------------

    def ship(self, places: Iterable[Place], usages: Iterable[Usage] = ()) -> None:
        """Send the weights where they are not what the notebook has now.

        Raises
        ------
        GimletError
            If the module cannot travel; says what to do.
        """
        if self._packed is None or self._changed() or self.changed_deeply():
            try:
                # Of one machine all workers share the pages of the kernel's own.
                known = references(self.module) if any(place.far for place in places) else None
                packed = pack(("keep", self._key, self.module), known=known).share()
            except Exception as error:  # noqa: BLE001 - pickling runs the user's code
                raise GimletError(f"{self.name} cannot travel to a worker: {describe(error)}") from None
            self._remember(packed)
        assert self._packed is not None
        for place in places:
            if place.contents.get(self._key) is not self._packed:
                place.keep(self._key, self._packed)
                for usage in usages:
                    usage.loaded(self._packed.nbytes)

    def _remember(self, packed: Packed) -> None:
        module = self.module
        old, self._packed = self._packed, packed
        if old is not None:
            old.close()
        self._tensors = [*module.parameters(), *module.buffers()]
        self._versioned = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._seen = self._state()
        self._inner_hooks = [
            getattr(part, name) for part in module.modules() if part is not module for name in _HOOKS
        ]
        self._config = getattr(module, "config", None)
        self._config_seen = dict(vars(self._config)) if hasattr(self._config, "__dict__") else None
        self._mark = fingerprint(module)

    def _state(self) -> tuple[Any, ...]:
        return tuple(map(_versions, self._versioned)), tuple(map(_pointers, self._tensors))

    def _changed(self) -> bool:
        """Whether weights or configuration are not what the workers have: cheap enough for every call."""
        return self._state() != self._seen or (
            self._config_seen is not None and vars(self._config) != self._config_seen
        )

    def changed_deeply(self) -> bool:
        """Whether anything of the module is not what the workers have."""
        return fingerprint(self.module) != self._mark

    def redirect(self, ledger: Ledger, routes: Mapping[str, Route]) -> None:
        """Let its calls come here, and go on by ``routes``: all its roles, those on the host too."""
        self.routes = routes
        original = self._original = self.module.forward
        placed = {
            role if role in ("prefill", "decode") else "*": route.placed
            for role, route in routes.items()
            if route.place is not None
        }
        dispatch = self._call
        forward = redirected(lambda *args, **kwargs: dispatch(args, kwargs), original, placed)
        ledger.set(self.module, "forward", forward)

    def leave(self, places: Iterable[Place]) -> None:
        """Free what these places keep of it."""
        for place in places:
            place.drop(self._key)

    def close(self) -> None:
        """Free the shared memory of its weights."""
        if self._packed is not None:
            self._packed.close()
            self._packed = None

    # -- calls -------------------------------------------------------------------------------------------

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = read_call(self.module, args, kwargs, self.torch.Tensor)
        route = self._route(call)
        place, usage = route.place, route.usage
        if place is not None and usage is not None:
            why = self._why_host(call, place)
            if why is None:
                if isinstance(place, Resident):
                    return self._resident(place, usage, call, args, kwargs)
                done, value = self._remote(place, usage, call, args, kwargs)
                if done:
                    return value
                why = value
            usage.kept(why)
        self._home(call)
        return self._original(*args, **kwargs)

    def _home(self, call: Call) -> None:
        """Bring a cache back that an accelerator has had."""
        if call.cache is not None and any(isinstance(place, Resident) for place in self.places):
            caches.move(call.cache, self._tensors[0].device)

    def _resident(
        self, place: Resident, usage: Usage, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        started = time.perf_counter()
        if self._changed():
            self.ship(self.places)
        result = place.call(self._key, args, kwargs, call.cache, self._tensors[0].device)
        usage.placed(time.perf_counter() - started, 0, 0)
        return result

    def _route(self, call: Call) -> Route:
        routes = self.routes
        if call.q_len is not None and call.cache is not None:
            return routes.get("decode" if call.q_len == 1 and call.past_len else "prefill", _HOST)
        if call.q_len is not None and "prefill" in routes:
            wanted = call.named.get("use_cache")
            if (
                wanted
                if wanted is not None
                else getattr(getattr(self.module, "config", None), "use_cache", False)
            ):
                return routes["prefill"]
        return routes.get("embed") or routes.get("forward") or _HOST

    def _why_host(self, call: Call, place: Place) -> str | None:
        torch, module = self.torch, self.module
        if self.stays is not None:
            return self.stays
        if not place.alive:
            return f"the worker of {place.device} is gone"
        if module.training:
            return "it is in training mode: call .eval()"
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self._tensors):
            return "gradients are on: call it under torch.inference_mode() or torch.no_grad()"
        if any(self._inner_hooks) and any(map(own_hooks, self._inner_hooks)):
            return "it has hooks on parts of it"
        if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():  # noqa: SLF001 - no public way to ask
            return "a torch mode is on, which would not see it"
        if call.cache is None:
            return None
        if isinstance(place, Remote):
            self._home(call)
        return caches.why_not(call.cache)

    def _remote(
        self, worker: Remote, usage: Usage, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[bool, Any]:
        """Make a call on a worker, or the next one where it is lost: its result, or why it is the host's."""
        return again(lambda: self._attempt(worker, usage, call, args, kwargs), self.name, usage.lost)

    def _attempt(
        self, worker: Remote, usage: Usage, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[bool, Any]:
        started = time.perf_counter()
        cache = call.cache
        tokens: dict[str, Any] = {}

        def name(value: Any) -> Any:
            if value is not cache or value is None:
                return None
            named = self.caches.name(value, worker.device, worker.generation)
            tokens[named[1]] = value
            return named

        def find(named: tuple[str, str, Any]) -> Any:
            _, token, content = named
            if token not in tokens:
                tokens[token] = self.caches.made(token, content, worker.device, worker.generation)
            return tokens[token]

        try:
            if self._changed():
                self.ship(self.places)
            worker.ready()
            request = pack(
                ("module", self._key, args, kwargs, ambient(), self.caches.dropped(worker.device)), name
            )
        except WorkerDiedError as error:  # nothing was done yet
            return False, str(error)
        except Exception as error:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
            return False, f"an argument cannot travel: {describe(error)}"
        try:
            answer, received = worker.call(request, find)
        except BaseException as error:
            if cache is not None:
                self.caches.forget(cache, worker.device)
            if isinstance(error, WorkerDiedError) and not isinstance(error, WorkerLostError):
                return False, str(error)
            raise
        kind, value, *more = answer
        if kind == "ok":
            for token, update in more[0]:
                self.caches.grown(tokens[token], update, worker.device, worker.generation)
            usage.placed(time.perf_counter() - started, request.nbytes, received)
            return True, value
        if cache is not None:
            self.caches.forget(cache, worker.device)
        # Whatever went wrong there is the module's to say here, with a traceback the user can read.
        why = (
            str(value)
            if kind in ("redo", "host")
            else f"it failed there: {describe(value) if kind == 'error' else value}"
        )
        if kind == "redo":
            self.stays = why
        return False, why
