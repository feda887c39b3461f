"""A plan as a KubeRay ``RayService``: the Ray Serve config, and workers for each kind of device."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gimlet_lab.errors import UsageError
from gimlet_lab.export import ray_serve
from gimlet_lab.model.device import Device
from gimlet_lab.model.plan import Plan
from gimlet_lab.model.store import write_atomic

OPTIONS = {
    **{name: ray_serve.OPTIONS[name] for name in ("app", "working_dir")},
    "image": "a container image with Ray, gimlet-lab, torch and the agent's module",
    "name": "of the RayService; agent",
}

#: The extended resource of Kubernetes by maker.
_RESOURCES = {
    "NVIDIA": "nvidia.com/gpu",
    "AMD": "amd.com/gpu",
    "Intel": "habana.ai/gaudi",
    "Google": "google.com/tpu",
}


def write(plan: Plan, path: Path, options: Mapping[str, Any]) -> Path:
    """Write the manifest.

    Raises
    ------
    UsageError
        If ``app`` or ``image`` is missing, or the name is none for Kubernetes.
    """
    write_atomic(path, ray_serve.yaml(manifest(plan, options), plan).encode())
    return path


def manifest(plan: Plan, options: Mapping[str, Any]) -> dict[str, Any]:
    """The ``RayService``."""
    from yaml import safe_dump

    image, name = str(options.get("image", "")), str(options.get("name", "agent"))
    if not image:
        raise UsageError("kuberay needs --option image=IMAGE: one with Ray, gimlet-lab, torch and the agent")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?", name):
        raise UsageError(f"name={name!r}: Kubernetes takes small letters, digits and dashes")
    # Inside the cluster the proxy is reached by a Service of Kubernetes, which is not the machine itself.
    serve = ray_serve.config(plan, {**options, "host": "0.0.0.0"})  # noqa: S104 - of a pod, behind a Service
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": name, "annotations": {"gimlet-lab/plan": plan.id}},
        "spec": {
            "serveConfigV2": safe_dump(serve, sort_keys=False, width=100),
            "rayClusterConfig": {
                **({"rayVersion": _ray()} if _ray() else {}),
                "headGroupSpec": {
                    "rayStartParams": {"dashboard-host": "127.0.0.1", "num-cpus": "1"},
                    "template": _pod("ray-head", image, {"cpu": "2", "memory": "8Gi"}),
                },
                "workerGroupSpecs": [_group(plan, device, image) for device in ray_serve.used(plan)],
            },
        },
    }


def _group(plan: Plan, device: Device, image: str) -> dict[str, Any]:
    held = {
        block: nbytes
        for stage in plan.graph.stages
        if plan.assignment.get(stage.id, "").partition("@")[0] == device.id
        for block, nbytes in stage.weights.items()
    }
    gibibytes = max(4, round(2.5 * sum(held.values()) / 2**30) + 2)
    resources = {"cpu": str(ray_serve.threads(device)), "memory": f"{gibibytes}Gi"}
    if not device.is_host:
        resources[_RESOURCES.get(device.vendor, "nvidia.com/gpu")] = "1"
    labels = ray_serve.own_labels(device)
    group = re.sub(r"[^a-z0-9-]", "-", device.id.lower())
    return {
        "groupName": group,
        "replicas": 1,
        "minReplicas": 1,
        "maxReplicas": 1,
        **({"labels": labels} if labels else {}),
        "rayStartParams": {},
        "template": _pod("ray-worker", image, resources),
    }


def _pod(name: str, image: str, resources: Mapping[str, str]) -> dict[str, Any]:
    limits = {"limits": dict(resources), "requests": dict(resources)}
    return {"spec": {"containers": [{"name": name, "image": image, "resources": limits}]}}


def _ray() -> str | None:
    """The version of Ray that is installed here; the image should have the same."""
    try:
        return version("ray")
    except PackageNotFoundError:
        return None
