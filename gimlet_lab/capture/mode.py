"""The dispatch mode: where torch hands every operator of a thread to us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gimlet_lab.capture.hiding import forget_frames, hide_from_dynamo
from gimlet_lab.capture.timeline import Lane

#: Runs an operator for a lane: the operator, its arguments.
Dispatch = Callable[[Lane, Any, tuple[Any, ...], dict[str, Any]], Any]

_NOTHING: dict[str, Any] = {}


class Stack:
    """The calling thread's stack of dispatch modes.

    Entering a mode by the book would tell the whole process of it, dynamo as well.
    """

    def __init__(self, torch: Any) -> None:
        core = torch._C  # noqa: SLF001 - torch.utils._python_dispatch does the same
        self.push: Callable[[Any], None] = core._push_on_torch_dispatch_stack  # noqa: SLF001 - see above
        self._pop: Callable[[Any], Any] = core._pop_torch_dispatch_stack  # noqa: SLF001 - see above
        self._at: Callable[[int], Any] = core._get_dispatch_stack_at  # noqa: SLF001 - see above
        self._depth: Callable[[], int] = core._len_torch_dispatch_stack  # noqa: SLF001 - see above

    def __contains__(self, mode: object) -> bool:
        return any(self._at(index) is mode for index in range(self._depth()))

    def top(self) -> Any:
        """The mode that sees an operator first; None: there is none."""
        depth = self._depth()
        return self._at(depth - 1) if depth else None

    def pop(self) -> Any:
        """Take the top mode away."""
        return self._pop(None)

    def remove(self, mode: Any) -> None:
        """Take a mode away from wherever it lies."""
        if mode not in self:
            return
        above: list[Any] = []
        while (top := self.pop()) is not mode:
            above.append(top)
        for other in reversed(above):
            self.push(other)


_classes: dict[int, Any] = {}


def _is_made_of_others(kind: type) -> bool:
    """Whether tensors of this class hold others that do the work: quantised, distributed, nested ones."""
    return hasattr(kind, "__tensor_flatten__") and "__torch_dispatch__" in vars(kind)


def mode_class(torch: Any) -> Any:
    """Make the mode's class, once torch is there."""
    if id(torch) in _classes:
        return _classes[id(torch)]
    from torch.utils._python_dispatch import TorchDispatchMode

    class OperatorMode(TorchDispatchMode):
        """Hands every operator of its thread to the recording."""

        def __init__(self, dispatch: Dispatch, lane: Lane) -> None:
            super().__init__()
            self.dispatch = dispatch
            self.lane = lane

        @classmethod
        def ignore_compile_internals(cls) -> bool:
            # Else a compiled function called once under the mode runs in eager for good (pytorch#140909).
            return True

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            # The wrapper that this would ask for imports torch._dynamo (seconds) at the first operator.
            return False

        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if types and any(_is_made_of_others(kind) for kind in types):
                # It takes the operator apart itself, and its parts come by again.
                return NotImplemented
            if types and self.lane.real and any(kind.__name__ == "FakeTensor" for kind in types):
                return func(*args, **(kwargs or _NOTHING))  # a library that asks for a shape: no work
            try:
                return self.dispatch(self.lane, func, args, kwargs or _NOTHING)
            except BaseException as error:
                forget_frames(error)
                raise

    hide_from_dynamo(torch, OperatorMode.__torch_dispatch__, deep=True)
    _classes[id(torch)] = OperatorMode
    return OperatorMode
