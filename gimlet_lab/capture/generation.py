"""``generate`` without values: one prefill and the decode steps, of which a few stand for all.

What a model says, and so when it stops, depends on data: it runs to its limit of new tokens, and the text of
what it says is a placeholder of as many words.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from gimlet_lab.boundary import Ledger
from gimlet_lab.capture.arrival import Arrival
from gimlet_lab.capture.refusals import refusal

#: Where transformers has a ``generate`` that is a loop of its own.
_LOOPS = (
    ("transformers.generation.utils", "GenerationMixin"),
    ("transformers.models.whisper.generation_whisper", "WhisperGenerationMixin"),
)

#: What turns tokens into text.
_TOKENIZER = ("transformers.tokenization_utils_base", "PreTrainedTokenizerBase")

#: Notes of a dry run about what it made up.
_NO_END = "dry run: generate runs to its limit of new tokens; when it would stop, only data tell"
_NO_TEXT = "dry run: the text of tokens that were computed is a placeholder of as many words"

#: New tokens where nobody says how many, as in transformers.
_DEFAULT_NEW = 20

#: Options of ``generate`` whose loop is another one.
_OTHER_LOOPS = {
    "num_beams": "beam search reorders the KV cache at every step",
    "assistant_model": "how much of a draft is accepted depends on data",
    "prompt_lookup_num_tokens": "how much of a draft is accepted depends on data",
}


def install_generate(
    ledger: Ledger, is_cell_file: Callable[[str], bool], note: Callable[[str], None], fake_type: Any
) -> None:
    """Have every model of transformers generate dry and every tokenizer decode it, now or once imported."""

    def dry(self: Any, *args: Any, **options: Any) -> Any:
        note(_NO_END)
        return generate(self, *args, is_cell_file=is_cell_file, **options)

    def generating(owner: Any) -> None:
        ledger.set(owner, "generate", dry)

    for module_name, class_name in _LOOPS:
        _once_there(ledger, module_name, class_name, generating)

    def decoding(tokenizer: Any) -> None:
        for name in ("decode", "batch_decode"):
            ledger.set(tokenizer, name, _decoding(getattr(tokenizer, name), note, fake_type))

    _once_there(ledger, *_TOKENIZER, decoding)


def _once_there(ledger: Ledger, module_name: str, class_name: str, replace: Callable[[Any], None]) -> None:
    def act() -> None:
        replace(getattr(sys.modules[module_name], class_name))

    if module_name in sys.modules:
        act()
        return
    arrival = Arrival(module_name, act)
    arrival.install()
    ledger.add("sys.meta_path", arrival.uninstall)


def _decoding(
    original: Callable[..., Any], note: Callable[[str], None], fake_type: Any
) -> Callable[..., Any]:
    @functools.wraps(original)
    def decode(self: Any, ids: Any, *args: Any, **options: Any) -> Any:
        if isinstance(ids, fake_type):
            note(_NO_TEXT)
            return _words(ids.shape)
        if isinstance(ids, list | tuple) and ids and isinstance(ids[0], fake_type):
            note(_NO_TEXT)
            return [_words(one.shape) for one in ids]
        return original(self, ids, *args, **options)

    return decode


def _words(shape: Any) -> Any:
    """Of one sequence a text, of several a list of them."""
    if len(shape) < 2:
        return " ".join(["word"] * (int(shape[0]) if shape else 1))
    return [_words(shape[1:]) for _ in range(shape[0])]


def generate(
    model: Any,
    inputs: Any = None,
    generation_config: Any = None,
    *,
    is_cell_file: Callable[[str], bool] = lambda _: False,
    **options: Any,
) -> Any:
    """Prefill, then decode to the limit of new tokens.

    The first and the last decode step run, and those in which a sliding window has just filled; the ones
    between lie on lines between them. The attention mask is left out: whether it pads depends on data.

    Returns
    -------
    Tensor
        Token ids, prompt and answer, of no value.
    """
    import torch

    config = generation_config if generation_config is not None else getattr(model, "generation_config", None)

    def option(name: str) -> Any:
        return options.get(name) if options.get(name) is not None else getattr(config, name, None)

    for name, why in _OTHER_LOOPS.items():
        if (value := option(name)) and value != 1:
            raise refusal(is_cell_file, f"generate({name}=…) cannot run dry: {why}")
    with torch.no_grad():
        ids, given = _inputs(model, inputs, options, option, is_cell_file)
        ids = ids.repeat_interleave(int(option("num_return_sequences") or 1), 0)
        length = int(ids.shape[1])
        new = option("max_new_tokens")
        if new is None:
            limit = option("max_length")
            new = limit - length if limit is not None else _DEFAULT_NEW
        if new < 1:
            raise refusal(is_cell_file, f"generate: no room for new tokens after {length} of the prompt")
        loop = _Loop(model, ids, given)
        places = _places(model, length, int(new))
        for before, at in pairwise((length - 1, *places)):
            loop.skip(at - before - 1)
            loop.step()
        answer = ids.new_zeros((ids.shape[0], int(new)))
        if "inputs_embeds" not in given:
            answer = torch.cat([ids, answer], dim=-1)
    if option("return_dict_in_generate"):
        from transformers.generation import GenerateDecoderOnlyOutput

        return GenerateDecoderOnlyOutput(sequences=answer, past_key_values=loop.cache)
    return answer


class _Loop:
    """The tokens' way through a model: prefill when made, then a step at a time."""

    def __init__(self, model: Any, ids: Any, given: dict[str, Any]) -> None:
        self.model = model
        self.ids = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
        self.kept = {"encoder_outputs": given["encoder_outputs"]} if "encoder_outputs" in given else {}
        self.last = _takes(model, "logits_to_keep")
        output = self._run(None if "inputs_embeds" in given else ids, **given)
        self.cache = output.past_key_values
        self.token = self._next(output)

    def step(self) -> None:
        """Decode one token."""
        self.token = self._next(self._run(self.token, past_key_values=self.cache, **self.kept))

    def skip(self, tokens: int) -> None:
        """Let the cache grow as if so many steps had been; the last one that ran stands for them."""
        if tokens < 1:
            return
        from gimlet_lab.capture.recorder import Recorder

        many = self.token.new_zeros((self.token.shape[0], tokens))
        recorder = Recorder.current()
        if recorder is None:
            self._run(many, past_key_values=self.cache, **self.kept)
            return
        with recorder.unseen(stands_for=tokens):
            self._run(many, past_key_values=self.cache, **self.kept)

    def _run(self, ids: Any, **options: Any) -> Any:
        kept: dict[str, Any] = {"logits_to_keep": 1} if self.last else {}
        if ids is not None:
            kept[self.ids] = ids
        return self.model(use_cache=True, return_dict=True, **kept, **options)

    def _next(self, output: Any) -> Any:
        import torch

        # As transformers' own loop has it.
        scores = output.logits[:, -1].to(copy=True, dtype=torch.float32)
        return scores.argmax(dim=-1)[:, None]


def _inputs(
    model: Any,
    inputs: Any,
    options: dict[str, Any],
    option: Callable[[str], Any],
    is_cell_file: Callable[[str], bool],
) -> tuple[Any, dict[str, Any]]:
    """The tokens that are prefilled, and what else the model is given then."""
    import torch

    own = {
        name: value
        for name, value in options.items()
        if isinstance(value, torch.Tensor) and not name.endswith(("attention_mask", "input_ids"))
    }
    if not model.config.is_encoder_decoder:
        ids = options.get("input_ids") if inputs is None else inputs
        if ids is None:
            embeds = own.get("inputs_embeds")
            first = next(iter(own.values()), None) if embeds is None else embeds
            batch, length = 1 if first is None else first.shape[0], 1 if embeds is None else embeds.shape[1]
            ids = torch.zeros((batch, length), dtype=torch.int64)
        return ids, own
    name = model.main_input_name
    source = inputs if inputs is not None else own.pop(name, options.get(name))
    if not isinstance(source, torch.Tensor):
        raise refusal(is_cell_file, f"generate: a {type(model).__name__} needs {name}")
    encoded = model.get_encoder()(source, return_dict=True)
    ids = options.get("decoder_input_ids")
    if ids is None:
        start = option("decoder_start_token_id") or 0
        ids = torch.full((source.shape[0], 1), int(start if isinstance(start, int) else 0), dtype=torch.int64)
    return ids, {"encoder_outputs": encoded, **own}


def _places(model: Any, length: int, new: int) -> list[int]:
    """Lengths of the cache at which decode steps run, the first and the last among them."""
    last = length + new - 2
    if last < length:
        return []
    text = model.config.get_text_config(decoder=True)
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
    kinks = {window - 1, window} if isinstance(window, int) else set()
    return sorted({length, last} | {at for at in kinks if length < at < last})


def _takes(model: Any, name: str) -> bool:
    import inspect

    return name in inspect.signature(type(model).forward).parameters
