"""A plan as a Ray Serve config: YAML that ``serve deploy`` and a KubeRay ``RayService`` take.

One application: the agent behind HTTP, and a deployment for each device that stages go to, on a node of that
kind by Ray's labels and resources. Serve binds to this machine alone unless another host is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gimlet_lab.errors import UsageError
from gimlet_lab.model.device import Device
from gimlet_lab.model.plan import Plan
from gimlet_lab.model.store import write_atomic, writer

OPTIONS = {
    "app": "what answers a request, MODULE:FUNCTION; the module has the stages' functions and models",
    "host": "the address to listen on; 127.0.0.1",
    "port": "8000",
    "working_dir": "an archive or folder with the module, for Ray's runtime_env",
}

#: What Ray calls accelerators that it knows, by the start of our ids.
_RAY_NAMES = {
    "h100": "H100",
    "a100": "A100",
    "l4": "L4",
    "t4": "T4",
    "a10g": "A10G",
    "v100": "V100",
    "p100": "P100",
    "p4": "P4",
    "mi100": "AMD-Instinct-MI100",
    "mi210": "AMD-Instinct-MI210",
    "gaudi": "Intel-GAUDI",
    "tpu-v5p": "TPU-V5P",
    "tpu-v6e": "TPU-V6E",
}


def write(plan: Plan, path: Path, options: Mapping[str, Any]) -> Path:
    """Write the config.

    Parameters
    ----------
    plan : Plan
    path : Path
    options : mapping
        See :data:`OPTIONS`.

    Raises
    ------
    UsageError
        If ``app`` is missing or not ``MODULE:FUNCTION``, or the port is no port.
    """
    write_atomic(path, yaml(config(plan, options), plan).encode())
    return path


def yaml(document: Mapping[str, Any], plan: Plan) -> str:
    """A document with what it is above it."""
    from yaml import safe_dump

    low, high = plan.interval_s
    head = [
        f"# plan {plan.id} for {plan.name}, written by {writer()}",
        f"# predicted: {plan.latency_s:.3g} s a request (90%: {low:.3g} to {high:.3g} s)",
        *(f"# {line}" for line in notes(plan)),
    ]
    return "\n".join([*head, safe_dump(dict(document), sort_keys=False, width=100)])


def notes(plan: Plan) -> list[str]:
    """What whoever runs the cluster has to know."""
    return [
        f"{device.id}: start its nodes with --labels {key}={value}"
        for device in used(plan)
        for key, value in own_labels(device).items()
    ]


def config(plan: Plan, options: Mapping[str, Any]) -> dict[str, Any]:
    """The config as of ``ray.serve.schema.ServeDeploySchema``."""
    app = str(options.get("app", ""))
    if not re.fullmatch(r"[\w.]+:\w+", app):
        given = f", not {app!r}" if app else ""
        raise UsageError(f"ray-serve needs --option app=MODULE:FUNCTION{given}: what answers a request")
    port = str(options.get("port", 8000))
    if not (port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"a port is a number below 65536, not {port!r}")
    environment = {"working_dir": str(options["working_dir"])} if options.get("working_dir") else {}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": str(options.get("host", "127.0.0.1")), "port": int(port)},
        "applications": [
            {
                "name": "agent",
                "route_prefix": "/",
                "import_path": "gimlet_lab.backends.ray.serve:build",
                **({"runtime_env": environment} if environment else {}),
                "args": {"app": app, "plan": _told(plan)},
                "deployments": [
                    {"name": "agent", "num_replicas": 1, "ray_actor_options": {"num_cpus": 1}},
                    *(
                        {**_deployment(device), "ray_actor_options": _resources(device)}
                        for device in used(plan)
                    ),
                ],
            }
        ],
    }


def _deployment(device: Device) -> dict[str, Any]:
    # One replica, since it holds what its ingress has sent it; for more, deploy the application more often.
    return {"name": _name(device), "num_replicas": 1, "max_ongoing_requests": 1}


def _resources(device: Device) -> dict[str, Any]:
    chosen = selector(device)
    return {
        "num_cpus": threads(device),
        **({} if device.is_host else {"num_gpus": 1}),
        **({"label_selector": chosen} if chosen else {}),
    }


def selector(device: Device) -> dict[str, str]:
    """Labels of the nodes that a device is part of; none for this machine's own slices.

    Examples
    --------
    >>> selector(Device("h100-sxm", "H100", "NVIDIA", "gpu"))
    {'ray.io/accelerator-type': 'H100'}
    >>> selector(Device("mi300x", "MI300X", "AMD", "gpu"))
    {'gimlet/device': 'mi300x'}
    >>> selector(Device("big/cpu", "EPYC", "AMD", "cpu", node="1f0b"))
    {'gimlet/name': 'big'}
    """
    if device.node:
        return {"gimlet/name": device.id.partition("/")[0]}
    if device.live and device.is_host:
        return {}
    known = [name for name in _RAY_NAMES if device.id == name or device.id.startswith(f"{name}-")]
    known = known or [name for name in _RAY_NAMES if name == "gaudi" and device.id.startswith(name)]
    if known and not device.live:
        return {"ray.io/accelerator-type": _RAY_NAMES[known[0]]}
    return {"gimlet/device": re.sub(r"[^\w.-]", "-", device.id)}


def own_labels(device: Device) -> dict[str, str]:
    """Of its labels those that Ray does not give a node by itself."""
    return {key: value for key, value in selector(device).items() if not key.startswith("ray.io/")}


def used(plan: Plan) -> list[Device]:
    """Devices that stages move to, in the plan's order."""
    by_id = {device.id: device for device in plan.fleet}
    wanted = dict.fromkeys(option.partition("@")[0] for option in plan.assignment.values())
    return [by_id[name] for name in wanted if name in by_id and name != "cpu"]


def _name(device: Device) -> str:
    return "stages-" + re.sub(r"[^\w-]", "-", device.id)


def threads(device: Device) -> int:
    """How many a stage computes with on a device."""
    return max(len(device.cores), 1)


def _told(plan: Plan) -> dict[str, Any]:
    """What :func:`gimlet_lab.backends.ray.serve.build` needs of the plan."""
    moved_to = used(plan)
    placed = {stage: option.partition("@")[0] for stage, option in plan.assignment.items()}
    return {
        "id": plan.id,
        "stages": [
            {
                "id": stage.id,
                "kind": stage.kind,
                "target": stage.target,
                "role": stage.role,
                "bound": stage.bound,
                "pure": stage.pure,
                "idempotent": stage.idempotent,
                "device": placed[stage.id],
            }
            for stage in plan.graph.stages
            if stage.id in placed
        ],
        "devices": [
            {
                "id": device.id,
                "kind": device.kind,
                # Ray shows a replica its own accelerator only.
                "torch_device": "cpu" if device.is_host else _torch(device),
                "threads": threads(device),
                "deployment": _name(device) if device in moved_to else None,
            }
            for device in plan.fleet
            if device.id in placed.values()
        ],
    }


def _torch(device: Device) -> str:
    kind = (device.torch_device or "").partition(":")[0]
    return kind or {"Intel": "xpu"}.get(device.vendor, "cuda")
