"""Plans as configs of Ray Serve and KubeRay: refused where wrong, and one of them served."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from placing import device, function, module, plan

import gimlet_lab as gimlet
from gimlet_lab.errors import UsageError
from gimlet_lab.model import Fleet

HAS_RAY = importlib.util.find_spec("ray") is not None
NODES = Fleet(
    (
        device("cpu", (0,)),
        device("small/cpu", (0,), node="1f"),
        device("h100-sxm", (), kind="gpu", vendor="NVIDIA", live=False, torch_device=None),
        device("mi300x", (), kind="gpu", vendor="AMD", live=False, torch_device=None),
    )
)
PLACED = plan(
    (function("search"), "small/cpu"),
    (function("agent"), "cpu"),
    (module("prefill", "llm", "prefill"), "h100-sxm"),
    (module("decode", "llm", "decode"), "mi300x"),
    over=NODES,
)


def unknown_keys(value: Any, schema: Any, where: str = "") -> Iterator[str]:
    """Keys that a pydantic model of Ray's does not know: it lets them pass."""
    for key, item in value.items():
        if key not in schema.model_fields:
            yield f"{where}{key}"
            continue
        inner = schema.model_fields[key].annotation
        models = [one for one in (inner, *getattr(inner, "__args__", ())) if hasattr(one, "model_fields")]
        for one in item if isinstance(item, list) else [item]:
            if models and isinstance(one, dict):
                yield from unknown_keys(one, models[0], f"{where}{key}.")


def check(config: dict[str, Any]) -> None:
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(config)
    assert list(unknown_keys(config, ServeDeploySchema)) == []


@pytest.mark.skipif(not HAS_RAY, reason="no Ray")
def test_the_config_is_one_of_ray_serve(tmp_path):
    path = gimlet.export(PLACED, "ray-serve", tmp_path / "serve.yaml", app="my_agent:agent")
    text = path.read_text()
    config = yaml.safe_load(text)
    check(config)
    assert config["http_options"] == {"host": "127.0.0.1", "port": 8000}
    (application,) = config["applications"]
    assert application["args"]["app"] == "my_agent:agent"
    resources = {one["name"]: one["ray_actor_options"] for one in application["deployments"]}
    assert resources == {
        "agent": {"num_cpus": 1},
        "stages-small-cpu": {"num_cpus": 1, "label_selector": {"gimlet/name": "small"}},
        "stages-h100-sxm": {
            "num_cpus": 1,
            "num_gpus": 1,
            "label_selector": {"ray.io/accelerator-type": "H100"},
        },
        "stages-mi300x": {"num_cpus": 1, "num_gpus": 1, "label_selector": {"gimlet/device": "mi300x"}},
    }
    assert "# mi300x: start its nodes with --labels gimlet/device=mi300x" in text.splitlines()
    # What Ray's own schema lets pass is found.
    application["deployments"][0]["num_replica"] = 1
    with pytest.raises(AssertionError, match="num_replica"):
        check(config)


@pytest.mark.skipif(not HAS_RAY, reason="no Ray")
def test_names_of_accelerators_are_rays():
    from ray.util import accelerators

    from gimlet_lab.export.ray_serve import _RAY_NAMES

    assert set(_RAY_NAMES.values()) <= {v for k, v in vars(accelerators).items() if k.isupper()}


@pytest.mark.skipif(not HAS_RAY, reason="no Ray")
def test_the_manifest_is_one_of_kuberay(tmp_path):
    options = {"app": "my_agent:agent", "image": "registry.example/agent:1"}
    manifest = yaml.safe_load(gimlet.export(PLACED, "kuberay", tmp_path / "k.yaml", **options).read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    assert set(manifest["spec"]) == {"serveConfigV2", "rayClusterConfig"}
    check(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    cluster = manifest["spec"]["rayClusterConfig"]
    assert set(cluster) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"small-cpu", "h100-sxm", "mi300x"}
    (container,) = groups["mi300x"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["amd.com/gpu"] == "1"
    assert groups["mi300x"]["labels"] == {"gimlet/device": "mi300x"}
    assert "labels" not in groups["h100-sxm"]  # Ray sets that one itself


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("ray-serve", {}, "needs --option app=MODULE:FUNCTION"),
        ("ray-serve", {"app": "my_agent"}, "MODULE:FUNCTION, not 'my_agent'"),
        ("ray-serve", {"app": "a:b", "port": "http"}, "a port is a number"),
        ("ray-serve", {"app": "a:b", "hots": "0.0.0.0"}, "no option 'hots'.*did you mean 'host'"),
        ("kuberay", {"app": "a:b"}, "needs --option image=IMAGE"),
        ("kuberay", {"app": "a:b", "image": "i", "name": "No Name"}, "small letters"),
    ],
)
def test_what_is_missing_is_said(tmp_path, target, options, message):
    with pytest.raises(UsageError, match=message):
        gimlet.export(PLACED, target, tmp_path / "x.yaml", **options)
    assert list(tmp_path.iterdir()) == []


AGENT = """
import torch, transformers
torch.manual_seed(0)
torch.set_num_threads(1)
llm = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=None)).eval()

def lookup(word):
    return [1 + ord(letter) % 90 for letter in word]

def agent(word, new=6):
    ids = torch.tensor([lookup(word)])
    with torch.no_grad():
        tokens = llm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
    return tokens.tolist()
"""


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="no Ray")
def test_a_config_that_is_served_answers_as_the_notebook(tmp_path, monkeypatch):
    from nodes import cluster

    (tmp_path / "served_agent.py").write_text(AGENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    expected = importlib.import_module("served_agent").agent("lighthouse")
    with cluster("small", "other") as machines:  # a core for each of the three deployments
        fleet = Fleet((device("cpu", (0,)), device("small/cpu", (0,), node="1f"), device("cpu/0", (0,))))
        placed = plan(
            (function("lookup"), "small/cpu"),
            (module("prefill", "llm", "prefill"), "small/cpu"),
            (module("decode", "llm", "decode"), "cpu/0"),
            over=fleet,
        )
        port = 18000 + os.getpid() % 2000
        config = gimlet.export(
            placed, "ray-serve", tmp_path / "serve.yaml", app="served_agent:agent", port=port
        )
        command = [str(Path(sys.executable).with_name("serve")), "run", str(config)]
        with (tmp_path / "log").open("w") as log:
            serving = subprocess.Popen(
                [*command, "--address", machines.address], stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path
            )
        try:
            assert ask(port, {"word": "lighthouse"}, serving, tmp_path / "log") == expected
            assert ask(port, ["lighthouse", 6], serving, tmp_path / "log") == expected
        finally:
            serving.terminate()
            serving.wait(30)


def ask(port: int, body: Any, serving: subprocess.Popen[bytes], log: Path) -> Any:
    """The answer, once the application is there."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    for _ in range(240):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError):
            assert serving.poll() is None, log.read_text()[-2000:]
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])
