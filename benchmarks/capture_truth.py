"""How true the counts are: models of random weights against closed formulas, sampled runs against exact ones."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

import gimlet_lab as gimlet

Model = Any


@dataclass(frozen=True)
class Case:
    """A model, what is done with it, and what that takes by hand.

    Attributes
    ----------
    make : callable
        Gives the model.
    run : callable
        Does it once.
    stage : str
        Whose operators count: a role, or a span's name.
    flops : callable
        Matrix products, convolutions and attention, two FLOPs a multiply-add, from the model's config alone.
    weights : callable or None
        Bytes of weights read; None where that is not the question.
    kv : callable or None
        Bytes of the KV cache read by attention.
    """

    make: Callable[[], Model]
    run: Callable[[Model], object]
    stage: str
    flops: Callable[[Model], float]
    weights: Callable[[Model], float] | None = None
    kv: Callable[[Model], float] | None = None


PROMPT, STEPS = 48, 3
#: What the closed formulas leave out: elementwise operators, norms, softmax, rotations.
PRODUCTS = ("gemm", "bmm", "conv2d", "attention_prefill", "attention_decode", "other", "moe")
SMALL = {"vocab_size": 512, "hidden_size": 192, "intermediate_size": 448, "num_hidden_layers": 3}


def llama(**options: Any) -> Model:
    config = transformers.LlamaConfig(**SMALL, num_attention_heads=6, num_key_value_heads=2, **options)
    return transformers.LlamaForCausalLM(config).eval()


def causal_pairs(length: int) -> float:
    return length * (length + 1) / 2


def llama_linear(model: Model, experts: int = 0) -> float:
    """Multiply-adds a token in the layers' matrices."""
    c = model.config
    head = c.hidden_size // c.num_attention_heads
    attention = c.hidden_size * head * (2 * c.num_attention_heads + 2 * c.num_key_value_heads)
    mlp = 3 * c.hidden_size * c.intermediate_size * (experts or 1)
    router = c.hidden_size * c.num_local_experts if experts else 0
    return c.num_hidden_layers * (attention + mlp + router)


def attention(model: Model, pairs: float) -> float:
    """FLOPs of the scores and of what they weigh, over all layers."""
    c = model.config
    return 4 * c.num_hidden_layers * c.hidden_size * pairs


def llama_head(model: Model) -> float:
    return model.config.hidden_size * model.config.vocab_size


def llama_prefill(model: Model) -> float:
    return 2 * (PROMPT * llama_linear(model) + llama_head(model)) + attention(model, causal_pairs(PROMPT))


def llama_decode(model: Model) -> float:
    each = 2 * (llama_linear(model) + llama_head(model))
    return sum(each + attention(model, PROMPT + 1 + step) for step in range(STEPS))


def llama_weights(model: Model) -> float:
    """Each weight once a step; of the embedding's table one row."""
    c = model.config
    norms = (2 * c.num_hidden_layers + 1) * c.hidden_size
    head = c.hidden_size // c.num_attention_heads
    buffers = head // 2
    return STEPS * 4 * (llama_linear(model) + llama_head(model) + norms + c.hidden_size + buffers)


def llama_kv(model: Model) -> float:
    """Of a decode step: the past to copy it, and all of it to attend."""
    c = model.config
    token = 2 * 4 * c.num_hidden_layers * c.hidden_size // c.num_attention_heads * c.num_key_value_heads
    return sum(token * ((PROMPT + step) + (PROMPT + step + 1)) for step in range(STEPS))


def generate(model: Model) -> object:
    ids = torch.arange(PROMPT)[None] % 512
    options = {
        "max_new_tokens": STEPS + 1,
        "min_new_tokens": STEPS + 1,
        "do_sample": False,
        "pad_token_id": 0,
    }
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def bert() -> Model:
    return transformers.BertModel(
        transformers.BertConfig(num_attention_heads=6, **SMALL), add_pooling_layer=False
    ).eval()


def encoder_linear(hidden: int, inner: int, layers: int) -> float:
    return layers * (4 * hidden * hidden + 2 * hidden * inner)


def bert_flops(model: Model, batch: int = 4, length: int = 32) -> float:
    c = model.config
    linear = encoder_linear(c.hidden_size, c.intermediate_size, c.num_hidden_layers)
    return 2 * batch * length * linear + attention(model, batch * length * length)


def vit() -> Model:
    config = transformers.ViTConfig(
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=3,
        num_attention_heads=6,
        image_size=64,
        patch_size=8,
    )
    return transformers.ViTModel(config, add_pooling_layer=False).eval()


def vit_flops(model: Model, batch: int = 2) -> float:
    c = model.config
    patches = (c.image_size // c.patch_size) ** 2
    linear = encoder_linear(c.hidden_size, c.intermediate_size, c.num_hidden_layers)
    first = patches * c.hidden_size * 3 * c.patch_size**2
    tokens = patches + 1
    return 2 * batch * (tokens * linear + first) + attention(model, batch * tokens * tokens)


def whisper() -> Model:
    config = transformers.WhisperConfig(
        vocab_size=512, d_model=192, encoder_layers=2, decoder_layers=2, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=448, decoder_ffn_dim=448, num_mel_bins=20,
        max_source_positions=100, max_target_positions=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config).eval()


def whisper_flops(model: Model, frames: int = 200, tokens: int = 8) -> float:
    c = model.config
    d, mel, half = c.d_model, c.num_mel_bins, frames // 2
    convolutions = 3 * (frames * mel * d + half * d * d)
    encoder = half * encoder_linear(d, c.encoder_ffn_dim, c.encoder_layers)
    own = tokens * encoder_linear(d, c.decoder_ffn_dim, c.decoder_layers)
    across = c.decoder_layers * 2 * (tokens + half) * d * d
    head = tokens * d * c.vocab_size
    pairs = c.encoder_layers * half * half + c.decoder_layers * (causal_pairs(tokens) + tokens * half)
    return 2 * (convolutions + encoder + own + across + head) + 4 * d * pairs


def mixtral() -> Model:
    config = transformers.MixtralConfig(
        **SMALL, num_attention_heads=6, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
    )
    return transformers.MixtralForCausalLM(config).eval()


def mixtral_prefill(model: Model) -> float:
    linear = llama_linear(model, model.config.num_experts_per_tok)
    return 2 * PROMPT * (linear + llama_head(model)) + attention(model, causal_pairs(PROMPT))


def cnn() -> Model:
    layers = (
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=4),
        torch.nn.ReLU(), torch.nn.ConvTranspose2d(32, 8, 2, stride=2), torch.nn.Flatten(), torch.nn.Linear(8 * 32 * 32, 10),
    )  # fmt: skip
    return torch.nn.Sequential(*layers).eval()


def cnn_flops(_model: Model, batch: int = 4) -> float:
    first, second = 32 * 32 * 16 * 3 * 9, 16 * 16 * 32 * 4 * 9
    third, last = 16 * 16 * 32 * 8 * 4, 8 * 32 * 32 * 10
    return 2 * batch * (first + second + third + last)


def lstm() -> Model:
    return torch.nn.LSTM(32, 64, 2, batch_first=True).eval()


def lstm_flops(_model: Model, batch: int = 3, length: int = 20) -> float:
    return 2 * batch * length * (4 * 64 * (32 + 64) + 4 * 64 * (64 + 64))


def twice(forward: Callable[[Model], float], less: Callable[[Model], float]) -> Callable[[Model], float]:
    """A backward pass: twice the products of the forward one, less what needs no gradient."""
    return lambda model: 2 * forward(model) - less(model)


def train(model: Model) -> object:
    model.zero_grad()
    ids = torch.arange(PROMPT)[None] % 512
    loss = model(ids, labels=ids, use_cache=False).loss
    return loss.backward()


def llama_backward(model: Model) -> float:
    products = 2 * PROMPT * (llama_linear(model) + llama_head(model))
    # Attention's backward takes five products where the forward takes two.
    return 2 * products + 2.5 * attention(model, causal_pairs(PROMPT))


CASES = {
    "llama prefill": Case(llama, generate, "prefill", llama_prefill),
    "llama decode": Case(llama, generate, "decode", llama_decode, llama_weights, llama_kv),
    "llama backward": Case(llama, train, "backward", llama_backward),
    "mixtral prefill": Case(mixtral, lambda m: m(torch.arange(PROMPT)[None], use_cache=False), "forward", mixtral_prefill),
    "bert": Case(bert, lambda m: m(torch.ones(4, 32, dtype=torch.long)), "embed", bert_flops),
    "vit": Case(vit, lambda m: m(torch.ones(2, 3, 64, 64)), "forward", vit_flops),
    "whisper": Case(
        whisper,
        lambda m: m(input_features=torch.ones(1, 20, 200), decoder_input_ids=torch.ones(1, 8, dtype=torch.long)),
        "prefill",
        whisper_flops,
    ),
    "cnn": Case(cnn, lambda m: m(torch.ones(4, 3, 32, 32)), "forward", cnn_flops),
    "cnn backward": Case(
        cnn,
        lambda m: m(torch.ones(4, 3, 32, 32)).sum().backward(),
        "backward",
        twice(cnn_flops, lambda _: 2 * 4 * 32 * 32 * 16 * 3 * 9),
    ),
    "lstm": Case(lstm, lambda m: m(torch.ones(3, 20, 32)), "forward", lstm_flops),
}  # fmt: skip


def profiled(case: Case, *, exact: bool = False) -> tuple[gimlet.Run, Model]:
    torch.manual_seed(0)
    model = case.make()
    case.run(model)
    with gimlet.profile("truth", namespace={"model": model}, exact=exact) as recorder:
        if case.stage == "backward":
            case.run(model)
        else:
            with torch.inference_mode():
                case.run(model)
    assert recorder.run is not None
    return recorder.run, model


def operators(run: gimlet.Run, stage: str) -> list[Any]:
    """All operators of a stage, by its role or its name."""
    ids = {s.id for s in run.graph.stages if stage in (s.role, s.id)}
    return [op for op, owner in zip(run.operators, run.stage_of, strict=True) if owner in ids]


def truth(_options: argparse.Namespace) -> dict[str, Any]:
    """Counts against closed formulas."""
    torch.set_num_threads(1)
    flops_errors: dict[str, float] = {}
    bytes_errors: dict[str, float] = {}
    for name, case in CASES.items():
        run, model = profiled(case)
        found = operators(run, case.stage)
        products = [op for op in found if op.work is not None and op.work.op in PRODUCTS]
        flops_errors[name] = relative(sum(op.flops or 0.0 for op in products), case.flops(model))
        if case.weights is not None:
            bytes_errors[f"{name} weights"] = relative(
                sum(op.weight_bytes for op in found), case.weights(model)
            )
        if case.kv is not None:
            bytes_errors[f"{name} kv"] = relative(sum(op.kv_bytes for op in found), case.kv(model))
    for name, error in {**flops_errors, **bytes_errors}.items():
        print(f"{name:28}{100 * error:8.3f}%", file=sys.stderr)
    return {
        "flops_error_max": max(flops_errors.values()),
        "bytes_error_max": max(bytes_errors.values()),
        "truth": {**flops_errors, **bytes_errors},
    }


def relative(found: float, true: float) -> float:
    return abs(found - true) / true


def sampled(_options: argparse.Namespace) -> dict[str, Any]:
    """FLOPs and bytes of a sampled run against those of an exact one; all of them must be equal."""
    torch.set_num_threads(1)
    errors = {}
    for name, case in CASES.items():
        (some, _), (every, _) = profiled(case), profiled(case, exact=True)
        for what in ("flops", "bytes_read", "bytes_written", "weight_bytes", "kv_bytes"):
            a, b = (sum(getattr(op, what) or 0.0 for op in run.operators) for run in (some, every))
            errors[f"{name} {what}"] = relative(a, b) if b else abs(a)
    for name, error in errors.items():
        if error:
            print(f"{name:28}{100 * error:8.3f}%", file=sys.stderr)
    return {"sampled_count_error_max": max(errors.values())}


def bounds(_options: argparse.Namespace) -> dict[str, Any]:
    """Cells of known kernels, three times each: how many are put down to another bound."""
    from kernels import KNOWN

    wrong = 0
    for name, (kernel, bound) in KNOWN.items():
        for _ in range(3):
            with gimlet.profile(name) as recorder:
                kernel()
            seconds: dict[str, float] = {}
            assert recorder.run is not None
            for phase in recorder.run.phase_list:
                seconds[phase.bound] = seconds.get(phase.bound, 0.0) + phase.duration_s
            found = max(seconds, key=lambda each: seconds[each])
            if found != bound:
                wrong += 1
                print(f"{name}: {found}, not {bound}", file=sys.stderr)
    return {"bounds_wrong": wrong}


def times(options: argparse.Namespace) -> dict[str, Any]:
    """Stage times of a sampled run of the decode cell against those of an exact one, medians of the pairs."""
    from capture_overhead import decode_cell

    torch.set_num_threads(1)
    cell = decode_cell(32)
    ratios: dict[str, list[float]] = {}
    for number in range(max(3, options.pairs // 4)):
        runs = {}
        for exact in (False, True) if number % 2 else (True, False):
            with gimlet.profile("times", exact=exact) as recorder:
                cell()
            assert recorder.run is not None
            runs[exact] = {
                stage.id: stage.total_s for stage in recorder.run.graph.stages if stage.kind == "module"
            }
        for stage, seconds in runs[True].items():
            ratios.setdefault(stage, []).append(runs[False][stage] / seconds)
    found = {stage: statistics.median(each) for stage, each in ratios.items()}
    return {"sampled_error_max": max(abs(ratio - 1) for ratio in found.values()), "sampled_ratio": found}
