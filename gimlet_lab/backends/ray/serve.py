"""A plan in production: a Ray Serve application whose deployments are the places of the plan.

``gimlet export ray-serve`` writes the config; Ray imports :func:`build` on the cluster and hands it the
config's ``args``. The ingress imports the agent's module; its stages run in a deployment for each device.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle

from gimlet_lab.backends.deployment import PlacedDeployment
from gimlet_lab.backends.packing import Packed
from gimlet_lab.backends.places import Place, Places
from gimlet_lab.backends.ray.actor import StageActor, arrays, messages, use_threads
from gimlet_lab.backends.ray.cluster import START_S
from gimlet_lab.backends.ray.library import first_line, library
from gimlet_lab.backends.remote import Remote, WorkerDiedError
from gimlet_lab.errors import GimletError
from gimlet_lab.model import Device, Fleet, Graph, Plan, Stage


class StageReplica(StageActor):
    """One place: what a :class:`StageActor` is, and which one it is.

    Serve starts a replica anew where it is lost, and that one has nothing of what the lost one was sent.
    """

    def __init__(self, threads: int, device: str) -> None:
        super().__init__((), [], device)
        use_threads(threads)
        self.name = uuid.uuid4().hex

    def who(self) -> str:
        """Its name; no other replica's, ever."""
        return self.name

    def answer_as(self, name: str, stream: bytes, buffers: Sequence[Any]) -> list[Any] | None:
        """Answer a message that is meant for the replica of that name, else None."""
        return self.answer(stream, buffers) if name == self.name else None


class ReplicaPlace(Remote):
    """A deployment of one replica, as the ingress calls it.

    Parameters
    ----------
    device : str
    handle : DeploymentHandle
    """

    def __init__(self, device: str, handle: Any) -> None:
        super().__init__(device)
        self._handle = handle
        self._name: str | None = None

    @property
    def running(self) -> bool:
        """Whether the replica is known."""
        return self._name is not None

    def _open(self) -> None:
        try:
            self._name = self._handle.who.remote().result(timeout_s=START_S)
        except Exception as error:  # noqa: BLE001 - whatever Serve and Ray raise
            raise WorkerDiedError(f"no replica answers for {self.device}: {first_line(error)}") from None

    def _exchange(self, packed: Packed) -> Iterator[Packed]:
        ray = library()
        try:
            reply = self._handle.answer_as.remote(self._name, packed.stream, arrays(packed)).result()
        except ray.exceptions.RayError as error:
            raise ConnectionError(first_line(error)) from None
        if reply is None:
            raise ConnectionError("another replica has taken its place")
        yield from messages(reply)

    def _end(self) -> str:
        self._name = None
        return "was lost"


class ReplicaPlaces(Places):
    """The deployments that the application is bound to.

    Parameters
    ----------
    handles : mapping of device id to DeploymentHandle
    """

    def __init__(self, handles: Mapping[str, Any]) -> None:
        self._handles = handles

    def check(self, plan: Plan, stage: Stage, device: Device) -> None:
        """Check that there is a deployment for the device."""
        if device.id not in self._handles:
            raise GimletError(f"{stage.id!r} of plan {plan.id}: no deployment stands for {device.id!r}")

    def still(self, place: Place, device: Device) -> bool:
        """Whether it is that device's."""
        return place.device == device.id

    def open(self, devices: Sequence[Device], things: Sequence[Any]) -> dict[str, Place]:  # noqa: ARG002 - what they import they import there
        """A place for each deployment."""
        places = {device.id: ReplicaPlace(device.id, self._handles[device.id]) for device in devices}
        for place in places.values():
            place.start()
        return dict(places)

    def close(self) -> None:
        """Deployments are Serve's to end."""


class Agent:
    """The ingress: imports the agent's module, puts the plan in force there, and answers requests.

    Parameters
    ----------
    app : str
        ``MODULE:FUNCTION``.
    plan : mapping
        As in the config's ``args``.
    handles : mapping of device id to DeploymentHandle
    """

    def __init__(self, app: str, plan: Mapping[str, Any], handles: Mapping[str, Any]) -> None:
        module, _, name = app.partition(":")
        if os.getcwd() not in sys.path:  # noqa: PTH109 - where Ray unpacks a working_dir
            sys.path.insert(0, os.getcwd())  # noqa: PTH109
        agent = importlib.import_module(module)
        # By value: the places need not import the module, which would load its models there too.
        cloudpickle.register_pickle_by_value(agent)
        self._function = getattr(agent, name)
        # Handles are asked in a thread: an answer may not be waited for in Serve's own event loop.
        with ThreadPoolExecutor(1) as pool:
            placing = pool.submit(PlacedDeployment, _plan(plan), vars(agent), ReplicaPlaces(handles))
            self._deployment = placing.result()

    async def __call__(self, request: Any) -> Any:
        """Answer a POST: a JSON object is the function's keywords, a list its arguments; JSON back."""
        body = await request.json()
        kwargs = body if isinstance(body, dict) else {}
        args = body if isinstance(body, list) else [] if isinstance(body, dict) else [body]
        if inspect.iscoroutinefunction(self._function):
            return await self._function(*args, **kwargs)
        return await asyncio.to_thread(self._function, *args, **kwargs)


def build(args: Mapping[str, Any]) -> Any:
    """The application of a config: what Ray Serve imports.

    Parameters
    ----------
    args : mapping
        ``app`` (``MODULE:FUNCTION``) and ``plan`` (``id``, ``stages``, ``devices``), as exported.
    """
    library()
    from ray import serve

    places = {
        device["id"]: serve.deployment(StageReplica)
        .options(name=device["deployment"])
        .bind(device["threads"], device["torch_device"])
        for device in args["plan"]["devices"]
        if device["deployment"]
    }
    return serve.deployment(Agent).options(name="agent").bind(args["app"], args["plan"], places)


def _plan(told: Mapping[str, Any]) -> Plan:
    """The part of a plan that putting it in force needs."""
    stages = tuple(
        Stage(
            one["id"], one["kind"], one["target"], one["role"], 1, 0.0, 0.0, one["bound"],
            pure=one["pure"], idempotent=one["idempotent"],
        )
        for one in told["stages"]
    )  # fmt: skip
    devices = tuple(
        Device(one["id"], one["id"], "", one["kind"], live=True, torch_device=one["torch_device"])
        for one in told["devices"]
    )
    assignment = {one["id"]: one["device"] for one in told["stages"]}
    return Plan(
        id=told["id"], name="", assignment=assignment, latency_s=0.0, interval_s=(0.0, 0.0), usd=None,
        joules=None, bound=0.0, gap=0.0, status="feasible", objective="latency", baselines={}, estimates={},
        why=(), problem={}, solution={}, graph=Graph(stages), fleet=Fleet(devices),
    )  # fmt: skip
