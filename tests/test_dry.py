"""Runs on fake tensors: models from configs, cells in a plain program, and what a dry run refuses."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gimlet_lab as gimlet
from gimlet_lab.errors import DryRunError, UnknownNameError, UsageError
from gimlet_lab.hardware import architectures
from gimlet_lab.model import Run
from gimlet_lab.render.text import plan_text, run_text

transformers = pytest.importorskip("transformers")

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500, "max_position_embeddings": 512,
}  # fmt: skip
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}


def closed(config: Mapping[str, Any], prompt: int, new: int) -> dict[str, float]:
    """What a decoder of this shape computes and holds, by pencil."""
    layers, hidden, inter = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
    heads, kv_heads, vocab = (
        config["num_attention_heads"],
        config["num_key_value_heads"],
        config["vocab_size"],
    )
    experts, top_k = config.get("num_local_experts", 1), config.get("num_experts_per_tok", 1)
    width = config.get("head_dim") or hidden // heads
    attention = 2 * hidden * heads * width + 2 * hidden * kv_heads * width
    expert, router = 3 * hidden * inter, hidden * experts if experts > 1 else 0
    products = layers * (attention + top_k * expert + router)
    head, kv_token = hidden * vocab, 2 * 2 * layers * kv_heads * width
    lengths = range(prompt + 1, prompt + new)

    def weights_read(tokens: int) -> float:
        reached = experts * (1 - (1 - top_k / experts) ** tokens)
        return 2 * (layers * (attention + reached * expert + router) + head + tokens * hidden)

    return {
        "prefill": 2 * prompt * products + 2 * head + 2 * layers * heads * width * prompt * (prompt + 1),
        "decode": sum(2 * products + 2 * head + 4 * layers * heads * width * kv for kv in lengths),
        "prefill weights": weights_read(prompt),
        "decode weights": (new - 1) * weights_read(1),
        "prefill kv": kv_token * prompt,
        "decode kv": sum(kv_token * kv for kv in lengths),
        "state": kv_token * (prompt + new - 1),
        "all weights": 2 * (layers * (attention + experts * expert + router) + 2 * head),
    }


def counted(run: Run) -> dict[str, float]:
    """The same of a run."""
    found: dict[str, float] = {"state": run.graph["decode"].state_bytes, "all weights": run.weight_bytes}
    for role in ("prefill", "decode"):
        flops = run.graph[role].flops
        assert flops is not None
        ops = [op for op, stage in zip(run.operators, run.stage_of, strict=True) if stage == role]
        found[role] = flops
        found[f"{role} weights"] = sum(op.weight_bytes for op in ops)
        found[f"{role} kv"] = sum(op.kv_bytes for op in ops if "attention" in op.op)
    return found


def assert_as_by_pencil(run: Run, config: Mapping[str, Any], prompt: int, new: int, flops: float) -> None:
    found, expected = counted(run), closed(config, prompt, new)
    for name, value in expected.items():
        tolerance = flops if name in ("prefill", "decode") else 0.02
        assert found[name] == pytest.approx(value, rel=tolerance), name


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL], ids=["llama", "mixtral"])
def test_flops_weights_and_cache_are_those_of_the_closed_formulas(config: dict[str, Any]) -> None:
    run = gimlet.dry_run(config, prompt_tokens=128, new_tokens=40, device="h100-sxm")
    # In a model this small the norms and activations, which the formulas leave out, are 3% of the FLOPs.
    assert_as_by_pencil(run, config, 128, 40, flops=0.04)
    assert [(stage.id, stage.calls) for stage in run.graph.stages] == [("prefill", 1), ("decode", 39)]


def test_a_dry_run_counts_what_the_real_one_does() -> None:
    values = {name: value for name, value in LLAMA.items() if name != "model_type"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values)).eval()
    ids = torch.ones(1, 40, dtype=torch.int64)
    with gimlet.profile("real", exact=True, namespace={"model": model}) as real, torch.no_grad():
        model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    with gimlet.profile("dry", dry=True, namespace={"model": model}) as dry:
        model.generate(ids, max_new_tokens=12)
    assert real.run is not None
    assert dry.run is not None
    for role in ("prefill", "decode"):
        ours, theirs = dry.run.graph[role], real.run.graph[role]
        assert (ours.calls, ours.state_bytes, ours.weights) == (
            theirs.calls, theirs.state_bytes, theirs.weights,
        )  # fmt: skip
        assert ours.flops == pytest.approx(theirs.flops, rel=1e-3)
        assert ours.bytes_read == pytest.approx(theirs.bytes_read, rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-3.1-8b", "mixtral-8x7b"])
def test_real_sizes_are_within_one_percent(name: str) -> None:
    run = gimlet.dry_run(name, prompt_tokens=4096, new_tokens=128, device="h100-sxm")
    assert_as_by_pencil(run, architectures.config(name), 4096, 128, flops=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["llama-3.1-70b", "qwen3-32b", "bert-base", "vit-base-patch16-224", "whisper-large-v3"]
)
def test_real_models_run_dry(name: str) -> None:
    run = gimlet.dry_run(name, new_tokens=2, device="h100-sxm")
    assert run.status == "ok"
    assert all(stage.flops for stage in run.graph.stages if stage.kind == "module")


def test_decode_steps_that_did_not_run_lie_on_a_line_between_those_that_did() -> None:
    """Not one of the steps between is made up: a run that looks at every one finds the same."""
    prompt = 20
    config = transformers.LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"})
    model = transformers.LlamaForCausalLM(config).eval()
    with gimlet.profile("all", dry=True, namespace={"model": model}) as recorder, torch.no_grad():
        cache = model(input_ids=torch.zeros(1, prompt, dtype=torch.int64), logits_to_keep=1).past_key_values
        for _ in range(9):
            token = torch.zeros(1, 1, dtype=torch.int64)
            cache = model(input_ids=token, past_key_values=cache, logits_to_keep=1).past_key_values
    assert recorder.run is not None
    every = recorder.run.graph["decode"]
    few = gimlet.dry_run(model, prompt_tokens=prompt, new_tokens=10).graph["decode"]
    assert (few.calls, few.ops) == (every.calls, every.ops)
    assert few.flops == pytest.approx(every.flops)
    assert few.bytes_read == pytest.approx(every.bytes_read, rel=1e-6)
    assert few.state_bytes == every.state_bytes
    assert few.total_s == pytest.approx(every.total_s, rel=0.02)


def test_a_sliding_window_keeps_the_cache_at_its_length() -> None:
    config = {**LLAMA, "model_type": "mistral", "sliding_window": 32}
    run = gimlet.dry_run(config, prompt_tokens=16, new_tokens=64, device="h100-sxm")
    kv_token = 2 * 2 * 3 * 2 * 16
    assert run.graph["decode"].state_bytes <= 32 * kv_token
    assert run.graph["decode"].calls == 63


def test_times_are_the_cost_models_and_the_run_says_so() -> None:
    run = gimlet.dry_run(LLAMA, prompt_tokens=64, new_tokens=4, device="h100-sxm")
    assert run.dry
    assert run.measured_on is None
    assert run.overhead_s == 0
    assert any("no time was measured" in note for note in run.notes)
    text = run_text(run)
    assert text.splitlines()[0].startswith("llama · dry, no time was measured · estimated ")
    assert "Profiling took" not in text
    assert all(stage["of_roof"] is None for stage in run.display["stages"])
    for stage in run.graph.stages:
        estimate = gimlet.advise(run, gimlet.fleet("h100-sxm", "epyc-9654")).estimates[stage.id]["h100-sxm"]
        assert estimate.source == "model"
        assert stage.call_s == pytest.approx(estimate.seconds, rel=0.05)


def test_a_dry_run_is_stored_priced_and_placed(tmp_path: Path) -> None:
    run = gimlet.dry_run(LLAMA, prompt_tokens=64, new_tokens=4, device="h100-sxm")
    assert Run.load(run.save(tmp_path / "dry")) == run
    plan = gimlet.advise(run, gimlet.fleet("h100-sxm", "mi300x", "epyc-9654"))
    assert set(plan.assignment) == {"prefill", "decode"}
    assert "stay" not in plan.baselines  # it is nowhere yet
    assert "nothing ran yet, the run was dry" in plan_text(plan)


def test_what_does_not_fit_is_not_placed() -> None:
    """Memory is weights, cache and activations: the l4 holds the weights of this model, not the rest."""
    sizes = {"hidden_size": 8192, "intermediate_size": 65536, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 64, "num_key_value_heads": 64, "max_position_embeddings": 80_000}
    config = {**LLAMA, **sizes, **heads}
    run = gimlet.dry_run(config, prompt_tokens=75_000, new_tokens=2, device="l4")
    l4 = next(iter(gimlet.fleet("l4"))).memory_bytes
    assert l4 is not None
    assert run.peak_bytes is not None
    assert run.weight_bytes < l4.value < run.peak_bytes
    plan = gimlet.advise(run, gimlet.fleet("l4", "h100-sxm", "epyc-9654"))
    assert plan.assignment["decode"] != "l4"


# -- kinds of models ---------------------------------------------------------------------------------------


def roles(run: Run) -> list[str | None]:
    return [stage.role for stage in run.graph.stages if stage.kind == "module"]


def flops(run: Run) -> float:
    known = [stage.flops for stage in run.graph.stages]
    assert all(value is not None for value in known)
    return sum(value or 0.0 for value in known)


def test_qwen3() -> None:
    config = {**LLAMA, "model_type": "qwen3", "head_dim": 32}
    run = gimlet.dry_run(config, prompt_tokens=64, new_tokens=8, device="h100-sxm")
    assert_as_by_pencil(run, config, 64, 8, flops=0.05)


def test_bert() -> None:
    hidden, inter, layers, tokens = 64, 256, 2, 100
    config = {"model_type": "bert", "hidden_size": hidden, "intermediate_size": inter, "vocab_size": 500,
              "num_hidden_layers": layers, "num_attention_heads": 4}  # fmt: skip
    run = gimlet.dry_run(config, prompt_tokens=tokens, batch=3, dtype="float32", device="h100-sxm")
    products = 2 * 3 * tokens * layers * (4 * hidden**2 + 2 * hidden * inter) + 2 * 3 * hidden**2
    assert roles(run) == ["embed"]
    assert flops(run) == pytest.approx(products + 4 * 3 * layers * hidden * tokens**2, rel=0.03)


def test_vit() -> None:
    hidden, layers, patches = 64, 2, 17
    config = {"model_type": "vit", "hidden_size": hidden, "intermediate_size": 256, "image_size": 64,
              "num_hidden_layers": layers, "num_attention_heads": 4, "patch_size": 16}  # fmt: skip
    run = gimlet.dry_run(config, batch=2, dtype="float32", device="h100-sxm")
    products = 2 * 2 * patches * layers * 12 * hidden**2 + 2 * 2 * 16 * 3 * 16**2 * hidden
    attention = 4 * 2 * layers * hidden * patches**2
    assert flops(run) == pytest.approx(products + attention + 2 * 2 * hidden**2, rel=0.05)


def test_whisper_encodes_once_and_decodes() -> None:
    config = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "d_model": 64,
              "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "vocab_size": 200,
              "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "pad_token_id": 0,
              "max_source_positions": 50, "max_target_positions": 60, "num_mel_bins": 8,
              "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}  # fmt: skip
    run = gimlet.dry_run(config, new_tokens=12, device="h100-sxm")
    assert [(stage.role, stage.calls) for stage in run.graph.stages] == [
        ("forward", 1), ("prefill", 1), ("decode", 11),
    ]  # fmt: skip
    encoder, prefill, _ = run.graph.stages
    carried = {(edge.src, edge.dst): edge.bytes for edge in run.graph.edges}
    assert carried[encoder.id, prefill.id] == 50 * 64 * 2
    assert set(encoder.weights) < set(prefill.weights)  # its weights are the whole model's


class Unet(nn.Module):
    """A denoiser as small as one can be: down, attention in the middle, up with a skip, time in between."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4, width, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2 * width))
        self.norm = nn.GroupNorm(8, width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.qkv, self.out = nn.Linear(2 * width, 6 * width), nn.Linear(2 * width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.leave = nn.Conv2d(2 * width, 4, 3, padding=1)

    def forward(self, sample: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        skip = nn.functional.silu(self.norm(self.enter(sample)))
        low = self.down(skip) + self.time(time)[:, :, None, None]
        batch, channels, height, width = low.shape
        tokens = low.flatten(2).transpose(1, 2)
        heads = self.qkv(tokens).view(batch, -1, 3, 4, channels // 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*heads)
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(batch, -1, channels))
        low = tokens.transpose(1, 2).reshape(batch, channels, height, width)
        return self.leave(torch.cat([skip, self.up(low)], dim=1))


def test_a_diffusion_unet_of_the_users_own() -> None:
    model = Unet()
    run = gimlet.dry_run(model, inputs={"sample": torch.empty(2, 4, 64, 64), "time": torch.empty(2, 32)})
    pixels, low = 2 * 64 * 64, 2 * 32 * 32
    convolutions = 2 * pixels * (4 * 32 * 9 + 64 * 4 * 9) + 2 * low * (32 * 64 * 9 + 64 * 32 * 4)
    attention = 2 * low * 4 * 64**2 + 4 * 2 * 64 * (32 * 32) ** 2
    assert flops(run) == pytest.approx(convolutions + attention, rel=0.03)
    assert run.peak_bytes is not None
    assert run.peak_bytes > run.weight_bytes + 2 * 32 * 64 * 64 * 4


def test_a_config_of_transformers_and_a_file(tmp_path: Path) -> None:
    values = {name: value for name, value in LLAMA.items() if name != "model_type"}
    config = transformers.LlamaConfig(**values)
    config.save_pretrained(tmp_path)
    ways = (LLAMA, config, tmp_path, str(tmp_path / "config.json"))
    runs = [gimlet.dry_run(way, prompt_tokens=8, new_tokens=2, device="t4") for way in ways]
    assert len({flops(run) for run in runs}) == 1


@pytest.mark.parametrize(
    ("model", "options", "error", "says"),
    [
        ("llama-3.1-8", {}, UnknownNameError, "llama-3.1-8b"),
        ({"hidden_size": 3}, {}, UsageError, "no model_type"),
        ({"model_type": "nonesuch"}, {}, UsageError, "nonesuch"),
        (LLAMA, {"prompt_tokens": 600}, UsageError, "512 positions"),
        (LLAMA, {"batch": 0}, UsageError, "batch is a whole number above 0"),
        (LLAMA, {"dtype": "int3"}, UsageError, "'int3'"),
        (LLAMA, {"device": "h100-smx"}, UnknownNameError, "h100-sxm"),
        (nn.Linear(2, 2), {}, UsageError, "needs inputs="),
        (7, {}, UsageError, "not int"),
        ("no/such/config.json", {}, UsageError, "there is no such config"),
    ],
)
def test_bad_input_is_one_line(
    model: object, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says.replace("(", "\\(")) as raised:
        gimlet.dry_run(model, **options)
    assert "\n" not in str(raised.value)
    assert type(torch.zeros(1)) is torch.Tensor  # and nothing fake is left


class Chooses(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def test_a_module_that_looks_at_values_is_named() -> None:
    with pytest.raises(DryRunError, match="needs values, and a dry run has only shapes"):
        gimlet.dry_run(Chooses(), inputs=torch.empty(3))


def test_a_module_that_fails_is_one_line() -> None:
    with pytest.raises(DryRunError, match="Linear does not run dry: RuntimeError: ") as raised:
        gimlet.dry_run(nn.Linear(2, 2), inputs=torch.empty(3, 3))
    assert "\n" not in str(raised.value)


def test_memory_at_its_fullest_is_two_activations() -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(8)))
    run = gimlet.dry_run(model, inputs=torch.empty(64, 1024))
    assert run.weight_bytes == 8 * 1024 * 1024 * 4
    assert run.peak_bytes == run.weight_bytes + 2 * 64 * 1024 * 4


@pytest.mark.parametrize("name", architectures.names())
def test_shipped_configs_are_of_models_that_transformers_has(name: str) -> None:
    config = architectures.config(name)
    assert hasattr(transformers, config["architectures"][0])
    assert config["model_type"] in transformers.CONFIG_MAPPING


# -- a block of the user's ----------------------------------------------------------------------------------


def test_a_block_leaves_nothing_behind() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.LSTM(8, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = dict(model[0]._parameters)
    namespace: dict[str, Any] = {"model": model, "held": torch.ones(3)}
    held = namespace["held"]
    with gimlet.profile("train", dry=True, namespace=namespace) as recorder:
        model.half()
        model.double().train()
        namespace["new"] = loss = model(torch.randn(5, 8, dtype=torch.float64))[0].sum()
        loss.backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
        held.add_(1)
        namespace["held"] = None
        del namespace["model"]
    assert recorder.run is not None
    assert recorder.run.status == "ok"
    assert namespace == {"model": model, "held": held}
    assert held.tolist() == [1, 1, 1]
    assert {name: id(tensor) for name, tensor in model[0]._parameters.items()} == {
        name: id(tensor) for name, tensor in kept.items()
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model(torch.randn(5, 8))[0].shape == (5, 4)


def test_a_block_that_fails_leaves_nothing_behind() -> None:
    model = nn.Linear(4, 4)
    weight = model.weight
    recorder = gimlet.profile("broken", dry=True, namespace={"model": model})
    with pytest.raises(ZeroDivisionError), recorder:
        model(torch.zeros(1, 4)).size(1 // 0)
    assert recorder.run is not None
    assert (recorder.run.status, recorder.run.dry) == ("failed", True)
    assert model.weight is weight
    assert type(torch.zeros(1)) is torch.Tensor
    assert "model" in [stage.id for stage in recorder.run.graph.stages]


def _write(path: Path) -> None:
    path.write_text("x")


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda _: torch.ones(2)[0].item(), r"\.item\(\)"),
        (lambda _: torch.ones(2).tolist(), r"\.tolist\(\)"),
        (lambda _: bool(torch.ones(2).sum() > 0), r"bool\(\)"),
        (lambda _: torch.ones(2).numpy(), "numpy"),
        (lambda _: torch.ones(2).nonzero(), "nonzero"),
        (lambda _: torch.ones(2)[torch.ones(2) > 0], "boolean mask"),
        (lambda _: torch.unique(torch.ones(2)), "torch.unique"),
        (_write, "opening '.*there' for writing"),
        (lambda path: os.open(path, os.O_CREAT), "opening '.*there' for writing"),
        (lambda path: path.mkdir(), "making the folder"),
        (lambda path: torch.save(torch.nn.Linear(1, 1).state_dict(), path), "torch.save needs values"),
        (lambda _: subprocess.run(["true"], check=False), "starting 'true'"),
        (lambda _: os.system("true"), "running 'true'"),
        (lambda _: socket.create_connection(("127.0.0.1", 9)), "connecting to '127.0.0.1'"),
    ],
)
def test_what_needs_values_or_touches_the_world_is_refused_with_its_line(
    tmp_path: Path, act: Callable[[Path], object], says: str
) -> None:
    there = tmp_path / "there"
    with pytest.raises(DryRunError, match=says) as raised, gimlet.profile("b", dry=True):
        act(there)
    line = act.__code__.co_firstlineno + (act is _write)
    assert str(raised.value).startswith(f"dry run, line {line}: ")
    assert not there.exists()
    _write(there)  # afterwards it is the user's own affair again


def test_reading_a_file_is_no_matter() -> None:
    with gimlet.profile("reads", dry=True) as recorder:
        assert Path(__file__).read_text()
    assert recorder.run is not None
    assert recorder.run.status == "ok"


def test_a_block_without_torch_ran_as_it_is() -> None:
    with gimlet.profile("plain", dry=True) as recorder:
        total = sum(range(1_000_000))
    assert total == 499_999_500_000
    assert recorder.run is not None
    assert recorder.run.duration_s > 0


def test_generate_refuses_what_is_another_loop() -> None:
    values = {name: value for name, value in LLAMA.items() if name != "model_type"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
    own = type(model).generate
    recorder = gimlet.profile("beams", dry=True, namespace={"model": model})
    with pytest.raises(DryRunError, match=r"num_beams=.* cannot run dry: beam search"), recorder:
        model.generate(torch.zeros(1, 4, dtype=torch.int64), num_beams=4)
    assert type(model).generate is own


def test_text_of_an_answer_is_a_placeholder_and_said_to_be() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.WordLevel({"word": 0, "what": 1, "?": 2}, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="?")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{k: LLAMA[k] for k in list(LLAMA)[1:]}))
    answers: list[Any] = []
    with gimlet.profile("agent", dry=True, namespace={"model": model}) as recorder:
        text = "what word ?"
        for _ in range(2):  # an agent that goes on with what it was told
            ids = tokenizer(text, return_tensors="pt").input_ids
            text = tokenizer.decode(model.generate(ids, max_new_tokens=5)[0])
            answers.append((ids.shape[1], text))
        answers.append(tokenizer.batch_decode(model.generate(ids, max_new_tokens=1)))
        answers.append(tokenizer.decode([1, 2]))
    assert answers == [
        (3, " ".join(["word"] * 8)),
        (8, " ".join(["word"] * 13)),
        [" ".join(["word"] * 9)],
        "what ?",
    ]
    run = recorder.run
    assert run is not None
    assert any("placeholder" in note for note in run.notes)
    assert any("limit of new tokens" in note for note in run.notes)
    assert (run.graph["prefill"].calls, run.graph["prefill"].turns, run.graph["decode"].calls) == (3, 3, 8)


def test_generate_from_embeddings() -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{k: LLAMA[k] for k in list(LLAMA)[1:]}))
    with gimlet.profile("embeds", dry=True, namespace={"model": model}) as recorder:
        shape = model.generate(inputs_embeds=torch.zeros(2, 9, 64), max_new_tokens=4).shape
    assert shape == (2, 4)
    assert recorder.run is not None
    assert recorder.run.graph["decode"].state_bytes == 2 * 12 * 2 * 3 * 2 * 16 * 4


def test_plain_python_in_a_block_keeps_its_time(tmp_path: Path) -> None:
    def busy() -> int:
        return sum(range(2_000_000))

    model = nn.Linear(16, 16)
    with gimlet.profile("mixed", dry=True, namespace={"model": model, "busy": busy}) as recorder:
        busy()
        model(torch.zeros(1, 16))
    run = recorder.run
    assert run is not None
    assert any("busy ran as Python on this machine" in note for note in run.notes)
    assert run.graph["busy"].call_s > run.graph["model"].call_s > 0
