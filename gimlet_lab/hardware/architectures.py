"""Models by name, path or dictionary: their Hugging Face configs, those shipped among them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gimlet_lab.errors import UnknownNameError, UsageError
from gimlet_lab.hardware.profiles import shipped as profiles_dir


def names() -> list[str]:
    """Models whose configs are shipped.

    Examples
    --------
    >>> "llama-3.1-8b" in names()
    True
    """
    return sorted(path.stem for path in (profiles_dir() / "models").glob("*.json"))


def config(model: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model.

    Parameters
    ----------
    model : str, Path or mapping
        A name of the shipped list, a ``config.json`` or the folder it is in, or the config itself.

    Raises
    ------
    UnknownNameError
        If there is none of that name; says which are near.
    UsageError
        If a file is not a config.

    Examples
    --------
    >>> config("llama-3.1-70b")["num_hidden_layers"]
    80
    """
    if isinstance(model, Mapping):
        return _checked(dict(model), "the config")
    path = Path(model).expanduser()
    shipped = profiles_dir() / "models" / f"{str(model).lower()}.json"
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        if path.suffix == ".json":
            raise UsageError(f"{path}: there is no such config")
        if shipped.parent != shipped.resolve().parent or not shipped.is_file():
            raise UnknownNameError("model", str(model), names())
        path = shipped
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: not a config: it is a {type(found).__name__}")
    return _checked(found, str(path))


def _checked(found: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(found.get("model_type"), str):
        raise UsageError(f"{where}: not a Hugging Face config: it has no model_type")
    return found
