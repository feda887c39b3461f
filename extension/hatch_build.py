"""Put the built page into the wheel, where it was built: without Node the package is whole but for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WHERE = "share/jupyter/labextensions/gimlet-lab"


class Page(BuildHookInterface):  # type: ignore[type-arg]
    """Adds what ``make ui`` made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add it as shared data of the environment."""
        extension = Path(self.root) / "extension"
        if version == "standard" and (extension / "labextension" / "package.json").is_file():
            build_data["shared_data"][str(extension / "labextension")] = WHERE
            build_data["shared_data"][str(extension / "install.json")] = f"{WHERE}/install.json"
