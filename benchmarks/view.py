"""What looking costs: sizes of the page and of what a run leaves in a notebook, and the meters' share of a core.

    python benchmarks/view.py [--json]

``page_gzip_kb``: all of our JavaScript that JupyterLab loads, compressed. ``output_kb``: what a profiled cell of the
demo's kind (`examples/out/agent.gimlet`, else a sum) adds to its notebook, all forms of it. ``messages_per_s`` and
``kernel_cpu_share``: of a kernel with ten devices that a page watches, over ten seconds. ``million_draw_s``: from the
double click on a saved run of a million operators (`scale.py`) in JupyterLab until its view is there, ``million_pan_ms``
a step to the side in its timeline until it is drawn; both where Chromium is, medians of five with the extremes.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def page_kb() -> dict[str, float]:
    static = ROOT / "extension" / "labextension" / "static"
    if not static.is_dir():
        raise SystemExit("the page was not built: make ui")
    sizes = {path.name: len(gzip.compress(path.read_bytes(), 9)) / 1e3 for path in static.glob("*.js")}
    return {"page_gzip_kb": sum(sizes.values()), "largest_gzip_kb": max(sizes.values())}


def output_kb() -> dict[str, float]:
    import gimlet_lab as gimlet
    from gimlet_lab.render.bundle import run_bundle

    saved = ROOT / "examples" / "out" / "agent.gimlet"
    if saved.exists():
        run = gimlet.Run.load(saved)
    else:
        with gimlet.profile("a sum") as recorder:
            sum(range(1_000_000))
        run = recorder.run
    kept = {
        kind: base64.b64encode(data).decode() if isinstance(data, bytes) else data
        for kind, data in run_bundle(run).items()
    }
    sizes = {kind: len(json.dumps(data)) / 1e3 for kind, data in kept.items()}
    return {"output_kb": sum(sizes.values()), "by_kind_kb": sizes}


def watched(seconds: float = 10.0) -> dict[str, float]:
    """A page that looks on, without a browser: the comm's other end."""
    sys.path.insert(0, str(ROOT / "tests"))
    from fake_drivers import environment
    from kernel import Kernel

    kernel = Kernel(env=environment(nvidia="devices=9"))
    try:
        kernel.run("%load_ext gimlet_lab\nimport time")
        # fmt: off
        kernel.run(
            "from gimlet_lab import magics\n"
            "page = next(iter(magics._watches.values()))[1]\n"
            "class Comm:\n"
            "    comm_id = 'bench'\n    said = 0\n"
            "    def on_msg(self, call): self.hear = call\n    def on_close(self, call): pass\n"
            "    def send(self, data=None, **_): Comm.said += 1\n"
            "comm = Comm(); page._opened(comm, {})\n"
            "comm.hear({'content': {'data': {'watch': True}}})\ntime.sleep(2)"
        )
        # fmt: on
        now = "[Comm.said, time.process_time(), time.monotonic()]"
        before = json.loads(kernel.get(now))
        time.sleep(seconds)
        after = json.loads(kernel.get(now))
    finally:
        kernel.close()
    said, used_s, took_s = (late - early for early, late in zip(before, after, strict=True))
    return {"messages_per_s": said / took_s, "kernel_cpu_share": used_s / took_s}


def million(rounds: int = 5) -> dict[str, Any]:
    """How long a large run takes to be seen, in a real browser."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
    import scale
    from playwright.sync_api import sync_playwright
    from test_lab import CHROMIUM, Server, Tab

    if CHROMIUM is None:
        return {}
    run = scale.assembled(scale.recording(1_000_000))
    drawn: list[float] = []
    panned: list[float] = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        run.save(Path(folder) / "million.gimlet")
        server = Server(Path(folder))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = Tab(browser, f"{server.url}lab?reset").page
            entry = page.locator(".jp-DirListing-item", has_text="million.gimlet")
            for _ in range(rounds):
                entry.wait_for()
                began = time.perf_counter()
                entry.dblclick()
                view = page.locator(".gimlet-document .gimlet-view svg.gimlet-chart").first
                view.wait_for()
                drawn.append(time.perf_counter() - began)
                page.click('.gimlet-document [aria-label="Zoom in"]')
                panned.append(view.evaluate(_PAN))
                tab = page.locator(".lm-TabBar-tab", has_text="million.gimlet")
                tab.locator(".lm-TabBar-tabCloseIcon").click()
        finally:
            browser.close()
            server.close()
    return {
        "million_draw_s": statistics.median(drawn),
        "million_draw_s_range": [min(drawn), max(drawn)],
        "million_pan_ms": statistics.median(panned),
        "million_pan_ms_range": [min(panned), max(panned)],
    }


_PAN = """() => new Promise(done => {
    const began = performance.now();
    document.querySelector('.gimlet-document [aria-label="Later"]').click();
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
})"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    result = {**page_kb(), **output_kb(), **watched(), **million()}
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
