"""The README's first picture: the demo's executed notebook in JupyterLab, as it is after reopening.

make demo && .venv/bin/python benchmarks/picture.py     # writes docs/lab.png
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from playwright.sync_api import sync_playwright  # noqa: E402 - the path above
from test_lab import CHROMIUM, Server  # noqa: E402 - likewise


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        shutil.copy(ROOT / "examples" / "out" / "agent.ipynb", folder)
        server = Server(Path(folder))
        try:
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page(viewport={"width": 1240, "height": 1120}, device_scale_factor=1.5)
            page.goto(f"{server.url}doc/tree/agent.ipynb?reset")
            view = page.locator(".jp-OutputArea .gimlet-view").first
            view.wait_for()
            page.wait_for_timeout(1500)
            # The profiled cell at the top, what it became beneath it.
            view.evaluate("node => node.closest('.jp-CodeCell').scrollIntoView({block: 'start'})")
            page.wait_for_timeout(500)
            page.screenshot(path=ROOT / "docs" / "lab.png")
            browser.close()
        finally:
            server.close()


if __name__ == "__main__":
    main()
