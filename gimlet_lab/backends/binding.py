"""What a plan means in this notebook on this machine: which live object goes where, or why it cannot."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gimlet_lab.backends.base import PLACED
from gimlet_lab.backends.chains import chain_of
from gimlet_lab.boundary import declaration, resolve
from gimlet_lab.capture.weights import is_compiled
from gimlet_lab.errors import GimletError
from gimlet_lab.model import Device, Plan, Stage


@dataclass(frozen=True)
class Placement:
    """One stage with its live object and its device.

    Attributes
    ----------
    thing : object
        The function or the module.
    elsewhere : bool
        False: it stays where the notebook is.
    """

    stage: Stage
    device: Device
    thing: Any
    elsewhere: bool

    @property
    def pure(self) -> bool:
        """Declared pure, when it was profiled or since."""
        return self.stage.pure or bool((declaration(self.thing) or {}).get("pure", False))

    @property
    def idempotent(self) -> bool:
        """Not declared otherwise, when it was profiled or since."""
        return self.stage.idempotent and bool((declaration(self.thing) or {}).get("idempotent", True))

    @property
    def role(self) -> str:
        """The role whose calls it gets."""
        return self.stage.role or "forward"

    def route(self, plan: Plan) -> dict[str, str]:
        """What ``__gimlet_placed__`` says of it."""
        estimate = plan.estimates.get(self.stage.id, {}).get(self.device.id)
        bound = (estimate.bound if estimate else None) or self.stage.bound
        return {"device": self.device.id, "bound": bound, "stage": self.stage.id}


def bind(
    plan: Plan,
    namespace: Mapping[str, Any],
    check: Callable[[Plan, Stage, Device], None],
    problems: list[str] | None = None,
) -> list[Placement]:
    """Find the live objects of a plan's stages, and check that each can go where the plan says.

    Parameters
    ----------
    check : callable
        The backend's own; raises GimletError.
    problems : list of str, optional
        Where given, a stage that cannot go is left out and why is added here.

    Returns
    -------
    list of Placement
        Of the functions and modules that go elsewhere, of the other roles of those modules, and of pure
        functions that stay beside functions that go: while they run, others are started.

    Raises
    ------
    GimletError
        Which stage cannot, and what to do.
    """
    found: list[Placement] = []
    for stage_id, device_id in plan.assignment.items():
        try:
            placement = _bind_stage(plan, stage_id, device_id, namespace, check)
        except GimletError as error:
            if problems is None:
                raise
            problems.append(str(error))
            continue
        if placement is not None:
            found.append(placement)
    _check_apart([placement for placement in found if placement.elsewhere])
    moved = {id(placement.thing) for placement in found if placement.elsewhere}
    beside = any(placement.elsewhere and placement.stage.kind == "function" for placement in found)
    return [
        placement
        for placement in found
        if id(placement.thing) in moved or (beside and placement.pure and _plain(placement.thing))
    ]


def _check_apart(moving: Iterable[Placement]) -> None:
    """Check that no layer goes elsewhere twice: in two stretches, or in one and with its model."""
    modules = {id(p.thing): p for p in moving if p.stage.kind == "module"}
    owner: dict[int, Placement] = {}
    for placement in modules.values():
        stretch = placement.stage.is_stretch
        for part in placement.thing.layers if stretch else placement.thing.modules():
            other = owner.setdefault(id(part), placement)
            if other is not placement and (stretch or other.stage.is_stretch):
                raise GimletError(
                    f"{other.stage.target} and {placement.stage.target} have layers in common, and only one "
                    f"of them can be moved: advise with --pin {placement.stage.id}=cpu"
                )


def _plain(thing: Any) -> bool:
    return isinstance(thing, types.FunctionType) and not (
        inspect.isgeneratorfunction(thing) or inspect.isasyncgenfunction(thing)
    )


def _bind_stage(
    plan: Plan,
    stage_id: str,
    device_id: str,
    namespace: Mapping[str, Any],
    check: Callable[[Plan, Stage, Device], None],
) -> Placement | None:
    stage = next((stage for stage in plan.graph.stages if stage.id == stage_id), None)
    device = next((device for device in plan.fleet if device.id == device_id), None)
    if stage is None or device is None:
        missing = f"stage {stage_id!r}" if stage is None else f"device {device_id!r}"
        raise GimletError(f"plan {plan.id} names a {missing} that it does not describe: advise again")
    elsewhere = device.torch_device != "cpu" or "/" in device.id or not device.live
    if elsewhere:
        _check_device(plan, stage, device)
        check(plan, stage, device)
    if stage.kind not in ("module", "function") or stage.target is None:
        if elsewhere:
            raise GimletError(
                f"{stage.id!r} has no name in the notebook by which it could be moved: "
                f"advise with --pin {stage.id}=cpu"
            )
        return None
    try:
        thing = (chain_of if stage.is_stretch else resolve)(stage.target, namespace)
    except LookupError as error:
        if not elsewhere:
            return None
        raise GimletError(
            f"stage {stage.id!r} of plan {plan.id}: {error}: run the cell that defines it, then apply again"
        ) from None
    placement = Placement(stage, device, thing, elsewhere)
    if elsewhere:
        _check_thing(placement)
    return placement


def _check_device(plan: Plan, stage: Stage, device: Device) -> None:
    if not device.live:
        raise GimletError(
            f"plan {plan.id} puts {stage.id!r} on {device.id!r}, which is not on this machine: "
            "advise again with --on the devices that %gimlet devices lists, or export the plan"
        )
    if device.kind != "cpu":
        if stage.kind != "module":
            raise GimletError(
                f"{stage.id!r} is a Python function, which cannot run on {device.id!r}: pin it to the host"
            )
        if device.torch_device is None:
            raise GimletError(
                f"torch cannot use {device.id!r} ({device.name}): {stage.id!r} cannot run there"
            )


def _check_thing(placement: Placement) -> None:
    stage, thing = placement.stage, placement.thing
    if stage.kind == "function":
        if not isinstance(thing, types.FunctionType):
            raise GimletError(
                f"stage {stage.id!r}: {stage.target} is a {type(thing).__name__}, not a function of the "
                f"notebook: pin it with --pin {stage.id}=cpu"
            )
        if hasattr(thing, PLACED):  # by another plan, or this one: it was looked at then
            return
        if inspect.isgeneratorfunction(thing) or inspect.isasyncgenfunction(thing):
            raise GimletError(
                f"stage {stage.id!r}: {stage.target} is a generator, which cannot run in another process: "
                f"pin it with --pin {stage.id}=cpu"
            )
        return
    torch: Any = sys.modules.get("torch")
    if torch is None or not isinstance(thing, torch.nn.Module):
        raise GimletError(
            f"stage {stage.id!r}: {stage.target} is a {type(thing).__name__}, not a torch module"
        )
    if is_compiled(thing):
        raise GimletError(
            f"stage {stage.id!r}: {stage.target} has parts that torch.compile made, which run where they "
            f"were compiled: pin it with --pin {stage.id}=cpu"
        )
    parts = (thing, *thing.layers) if stage.is_stretch else (thing,)
    if any("forward" in vars(part) and not hasattr(vars(part)["forward"], PLACED) for part in parts):
        raise GimletError(
            f"stage {stage.id!r}: {stage.target} has a forward of its own (accelerate's dispatch_model?): "
            "load it without a device map, or pin it to the host"
        )
    if any(tensor.device.type != "cpu" for tensor in (*thing.parameters(), *thing.buffers())):
        raise GimletError(
            f"stage {stage.id!r}: {stage.target} is not on the CPU, where plans start from: pin it there"
        )


def imports(things: Iterable[Any]) -> list[str]:
    """Installed modules that workers will need for these functions and modules."""
    wanted: dict[str, None] = {}
    for thing in things:
        if isinstance(thing, types.FunctionType):
            for name in thing.__code__.co_names:
                value = thing.__globals__.get(name)
                if value is not None:
                    wanted[
                        value.__name__ if isinstance(value, types.ModuleType) else type(value).__module__
                    ] = None
        else:
            wanted["torch"] = None
            wanted.update(dict.fromkeys(type(part).__module__ for part in thing.modules()))
            wanted[type(getattr(thing, "config", None)).__module__] = None
    return [name for name in wanted if _installed(name)]


def _installed(name: str) -> bool:
    """Whether a module is a library, which stays the same, and not the user's own file."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None) or ""
    return name != "__main__" and (
        "site-packages" in file or "dist-packages" in file or file.startswith(sys.base_prefix)
    )


def shape(module: Any) -> tuple[Any, ...]:
    """What a module must have in common with another to take its place: class, parameters and their sizes."""
    return type(module).__qualname__, [
        (name, tuple(p.shape), str(p.dtype)) for name, p in module.named_parameters()
    ]
