"""Try the installed wheel in an environment of its own, without torch; ``.ci/run`` calls this.

Usage: ``python tests/wheel.py FOLDER`` with the folder that the demo wrote to.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from jupyter_client.manager import start_new_kernel
from jupyter_core.paths import jupyter_path


def main(folder: Path) -> int:
    if importlib.util.find_spec("torch") is not None:
        print("this check is for an environment without torch", file=sys.stderr)
        return 1
    manager, client = start_new_kernel(kernel_name="python3")
    failures = []
    shown: list[str] = []

    def run(code: str, expected: str) -> None:
        shown.clear()

        def collect(message: dict) -> None:
            content = message["content"]
            shown.append(str(content.get("text", "")) + str(content.get("data", {}).get("text/plain", "")))

        reply = client.execute_interactive(code, timeout=120, output_hook=collect)
        text = "".join(shown)
        good = reply["content"]["status"] == "ok" and expected in text
        print(f"{'ok    ' if good else 'FAILED'} {code.splitlines()[-1]}")
        if not good:
            failures.append(code)
            print(text, reply["content"])

    try:
        run("%load_ext gimlet_lab", "")
        run("import gimlet_lab, sys; print(gimlet_lab.__file__, 'torch' in sys.modules)", "site-packages")
        run("%%gimlet -o mine\nsum(range(10))", "45")
        run(f"%gimlet load {folder}/agent.gimlet", "")
        run("%gimlet phases", "decode")
        run("from gimlet_lab.export.plan_json import load_plan", "")
        run(f"print(load_plan('{folder}/plan.json').explain())", " ")
        run("%gimlet export", "device-map")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    if shutil.which("npm") is not None:  # else it was not built
        page = any(
            (Path(folder) / "gimlet-lab" / "package.json").is_file()
            for folder in jupyter_path("labextensions")
        )
        spec = importlib.util.find_spec("gimlet_lab")
        live = spec is not None and (Path(str(spec.origin)).parent / "static" / "live.js").is_file()
        for found, what in (
            (page, "the page lies where JupyterLab looks for it"),
            (live, "the live view lies in the package"),
        ):
            print(f"{'ok    ' if found else 'FAILED'} {what}")
            failures += [] if found else [what]
    print(f"{len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
