"""Fake tensors: shapes, dtypes and storages, but no memory and no values.

What a cell does under them leaves nothing behind: modules that the notebook reaches have fake parameters
meanwhile, and get all of their own back, as does the namespace.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from gimlet_lab import boundary
from gimlet_lab.boundary import Ledger
from gimlet_lab.capture.generation import install_generate
from gimlet_lab.capture.kinds import tensors_in
from gimlet_lab.capture.refusals import Guard, refusal
from gimlet_lab.errors import DryRunError

#: How operators that need values are called where a person meets them.
_SPELLED = {
    "_local_scalar_dense": "a Python number or condition from a tensor (.item(), bool(), .tolist())",
    "equal": "torch.equal",
    "allclose": "torch.allclose",
    "nonzero": "nonzero or a boolean mask",
    "_unique2": "torch.unique",
}

#: The shell's own, which a cell is not to be rid of.
_SHELL = frozenset({"In", "Out", "exit", "quit", "get_ipython", "open"})


#: Where a module keeps what it is made of.
_HELD = frozenset({"_parameters", "_buffers", "_modules"})


class Memory:
    """Bytes of the storages that operators made and that are still there."""

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self._held: dict[int, tuple[weakref.ref[Any], int]] = {}

    def mark(self) -> int:
        """Begin a new peak; the bytes there are now."""
        self.peak = self.live
        return self.live

    def made(self, tensor: Any) -> None:
        """An operator gave a tensor out: its storage counts from now until nobody holds it."""
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, int(storage.nbytes())  # noqa: SLF001 - as torch.multiprocessing does
        held = self._held.get(key)
        if held is not None and held[0]() is not None:
            return

        def gone(reference: Any) -> None:
            if self._held.get(key, (None, 0))[0] is reference:
                del self._held[key]
                self.live -= nbytes

        self._held[key] = (weakref.ref(storage, gone), nbytes)
        self.live += nbytes
        self.peak = max(self.peak, self.live)


class FakeWorld:
    """What a cell runs in when it is run dry.

    Parameters
    ----------
    namespace : mapping
        The notebook's.
    is_cell_file : callable
        Whether a file name is a cell of the notebook: errors name its line.

    Attributes
    ----------
    memory : Memory
    notes : list of str
        What was made up, for lack of data.

    Examples
    --------
    >>> import torch
    >>> world = FakeWorld({}, lambda filename: False)
    >>> world.enter()
    >>> torch.zeros(2**40, 2).shape  # eight terabytes
    torch.Size([1099511627776, 2])
    >>> world.leave()
    """

    def __init__(
        self, namespace: MutableMapping[str, Any] | Mapping[str, Any], is_cell_file: Callable[[str], bool]
    ) -> None:
        self.namespace = namespace
        self.is_cell_file = is_cell_file
        self.memory = Memory()
        self.notes: list[str] = []
        self._ledger = Ledger()

    def enter(self) -> None:
        """Make the calling thread's tensors fake, and keep what there is from being changed; once."""
        if len(self._ledger):
            return
        self.notes.clear()
        import torch
        from torch._subclasses.fake_tensor import FakeTensor

        try:
            mode = mode_class()(self)
            self._keep_namespace()
            self._swap_modules(torch, mode)
            self._ledger.set(torch, "save", self._refuse_save)  # writes where Python hears nothing of it
            for name in ("numpy", "__array__"):
                self._ledger.set(FakeTensor, name, self._refuse_numpy)
            # It draws until all lies between its limits, which nobody can tell; transformers calls it too.
            self._ledger.set(torch.nn.init, "_no_grad_trunc_normal_", lambda tensor, *_, **__: tensor)
            install_generate(self._ledger, self.is_cell_file, self.notes.append, FakeTensor)
            guard = Guard(self.is_cell_file)
            self._ledger.add("audit hook", guard.leave)
            guard.enter()
            mode.__enter__()
            self._ledger.add("fake tensors", lambda: mode.__exit__(None, None, None))
        except BaseException:
            self._ledger.undo()
            raise

    def leave(self) -> None:
        """Put everything back."""
        failures = self._ledger.undo()
        if failures:
            raise failures[0]

    def needs_values(self, operator: str) -> DryRunError:
        """The one line for an operator whose result depends on data."""
        name = operator.removeprefix("aten.").split(".")[0]
        return refusal(
            self.is_cell_file, f"{_SPELLED.get(name, name)} needs values, and a dry run has only shapes"
        )

    def _refuse_numpy(self, *_args: object, **_options: object) -> None:
        raise refusal(self.is_cell_file, "numpy needs values, and a dry run has only shapes")

    def _refuse_save(self, *_args: object, **_options: object) -> None:
        raise refusal(self.is_cell_file, "torch.save needs values, and a dry run has only shapes")

    def _keep_namespace(self) -> None:
        namespace = self.namespace
        if not isinstance(namespace, MutableMapping):
            return
        before = {name: value for name, value in namespace.items() if _is_the_users(name)}

        def restore() -> None:
            for name in [name for name in namespace if _is_the_users(name) and name not in before]:
                del namespace[name]
            for name, value in before.items():
                if namespace.get(name) is not value:
                    namespace[name] = value

        self._ledger.add("namespace", restore)

    def _swap_modules(self, torch: Any, mode: Any) -> None:
        """Give every module that the notebook reaches fake parameters, and its own back when undone."""
        modules: dict[int, Any] = {}
        twins: dict[int, Any] = {}

        def twin(tensor: Any) -> Any:
            if id(tensor) not in twins:
                twins[id(tensor)] = mode.from_tensor(tensor)
            return twins[id(tensor)]

        for _, value in boundary.reachable(self.namespace):
            if isinstance(value, torch.nn.Module) and id(value) not in modules:
                modules.update((id(part), part) for part in value.modules())
        for module in modules.values():
            own = module.__dict__
            before = dict(own)
            self._ledger.add(type(module).__name__, functools.partial(_reset, own, before))
            for name, value in before.items():
                own[name] = _faked(value, torch.Tensor, twin, copied=name in _HELD)
        swap = torch.utils.swap_tensors

        def swap_tensors(one: Any, other: Any) -> None:
            # Module.to() swaps them, and torch refuses that for what a memo holds weakly.
            mode.fake_tensor_converter.tensor_memo.clear()
            swap(one, other)

        self._ledger.set(torch.utils, "swap_tensors", swap_tensors)


def _is_the_users(name: str) -> bool:
    return not name.startswith("_") and name not in _SHELL


def _reset(own: dict[str, Any], before: Mapping[str, Any]) -> None:
    own.clear()
    own.update(before)


def _faked(value: Any, tensor_type: type, twin: Callable[[Any], Any], *, copied: bool = False) -> Any:
    """A tensor's fake twin, also in a list or dictionary; ``copied``: a new dictionary in any case."""
    if isinstance(value, tensor_type):
        return twin(value)
    if copied or (type(value) is dict and _holds(value.values(), tensor_type)):
        return type(value)((name, _faked(item, tensor_type, twin)) for name, item in value.items())
    if type(value) in (list, tuple) and _holds(value, tensor_type):
        return type(value)(_faked(item, tensor_type, twin) for item in value)
    return value


def _holds(values: Any, tensor_type: type) -> bool:
    return any(isinstance(value, tensor_type) for value in values)


_classes: list[Any] = []


def mode_class() -> Any:
    """Make the mode's class, once torch is there."""
    if _classes:
        return _classes[0]
    import torch
    from torch._subclasses import fake_tensor
    from torch.utils._pytree import tree_map_only

    # Of what torch.tensor makes the values are known, as long as it is one number.
    lifts = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
    needs_values = (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException)

    class DryMode(fake_tensor.FakeTensorMode):
        """Fake tensors whose memory is counted and whose refusals name the cell's line."""

        def __init__(self, world: FakeWorld) -> None:
            # Real tensors of the notebook become fake ones where an operator meets them.
            super().__init__(allow_non_fake_inputs=True)
            self.world = world
            self.depth = 0

        def _ours(self, tensor: Any) -> Any:
            return tensor if isinstance(tensor, fake_tensor.FakeTensor) else self.from_tensor(tensor)

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            # The wrapper that this would ask for imports torch._dynamo (seconds) at the first operator.
            return False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not self.depth and func not in lifts and _real((args, kwargs or {}), fake_tensor.FakeTensor):
                # By itself an operator of real tensors alone would run, and write into them.
                args, kwargs = tree_map_only(torch.Tensor, self._ours, (args, kwargs or {}))
            self.depth += 1
            try:
                out = super().__torch_dispatch__(func, types, args, kwargs)
            except needs_values as error:
                if self.depth > 1:
                    raise
                raise self.world.needs_values(str(error.func)) from None
            except fake_tensor.UnsupportedOperatorException as error:
                raise refusal(
                    self.world.is_cell_file,
                    f"{error.func} does not run on fake tensors (it has no meta kernel)",
                ) from None
            finally:
                self.depth -= 1
            # A view's storage is its base's, which may be no operator's: a weight's.
            if not self.depth and not any(result.alias_info for result in func._schema.returns):  # noqa: SLF001 - public in all but name
                for tensor in _made(out, fake_tensor.FakeTensor):
                    self.world.memory.made(tensor)
            return out

    _classes.append(DryMode)
    return DryMode


def _real(value: Any, fake_type: type) -> bool:
    """Whether there is a real tensor among an operator's arguments."""
    if isinstance(value, list | tuple):
        return any(_real(item, fake_type) for item in value)
    if isinstance(value, dict):
        return any(_real(item, fake_type) for item in value.values())
    return hasattr(value, "untyped_storage") and not isinstance(value, fake_type)


def _made(out: Any, fake_type: type) -> Iterator[Any]:
    for tensor in tensors_in(out, fake_type):
        if not tensor.is_sparse:
            yield tensor
