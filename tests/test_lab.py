"""The page in a real JupyterLab and a real browser. Its pictures lie in ``out/``, to be looked at."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

CHROMIUM = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
PAGE = Path(sys.prefix) / "share" / "jupyter" / "labextensions" / "gimlet-lab" / "package.json"
MIME = "application/vnd.gimlet.run.v1+json"
PICTURES = Path(__file__).parents[1] / "out"
AXE = Path(__file__).parents[1] / "extension" / "node_modules" / "axe-core" / "axe.min.js"

pytestmark = [
    pytest.mark.ui,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.skipif(not PAGE.is_file(), reason="the page was not built: make ui"),
]

CELLS = [
    "import time\nimport torch\n%load_ext gimlet_lab\n%gimlet config save=off",
    """net = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(4)])
def search(n):
    time.sleep(0.1)
    return torch.ones(n, 512)""",
    "%%gimlet --name agent\nq = search(256)\nfor _ in range(20):\n    y = net(q)",
    "total = net(search(8)).sum().item()",
    "%%gimlet --name slow\nfor _ in range(40):\n    net(search(8))",
]

KEEPING = ["%load_ext gimlet_lab\n%gimlet config save=on", "%%gimlet --name kept\nsum(range(1000))"]

# A kernel of another language.
ECHO = """
from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel

class Echo(Kernel):
    implementation, implementation_version, banner = "echo", "1", "echo"
    language_info = {"name": "echo", "mimetype": "text/plain", "file_extension": ".txt"}

IPKernelApp.launch_instance(kernel_class=Echo)
"""

# What Jupyter's own pages say on their console, also where our extension is disabled.
NOTEBOOKS_OWN = (
    "Cannot read properties of undefined (reading 'schema')",
    "Command 'filebrowser:open-path' not registered.",
)
DEBUGGERS_OWN = ("Could not restore the debugger state",)


class Server:
    """JupyterLab in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        homes = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA", "RUNTIME")}
        command = [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0",
            "--IdentityProvider.token=", "--LabApp.news_url=None", "--ServerApp.disable_check_xsrf=True",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ]  # fmt: skip
        settings = folder / "CONFIG" / "labconfig" / "default_setting_overrides.json"
        settings.parent.mkdir(parents=True)
        news = {"fetchNews": "false", "checkForUpdates": False}
        settings.write_text(json.dumps({"@jupyterlab/apputils-extension:notification": news}))
        env = {
            **os.environ,
            **homes,
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_DATA_HOME": str(folder / "data"),
        }
        self.process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.url = self._url(folder / "RUNTIME")

    def _url(self, runtime: Path) -> str:
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            for path in runtime.glob("jpserver-*.json"):
                try:
                    url = str(json.loads(path.read_text())["url"])
                    urllib.request.urlopen(f"{url}api", timeout=5)
                except (OSError, ValueError, KeyError):
                    continue
                return url
            time.sleep(0.1)
        raise AssertionError("JupyterLab did not start")

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)


def write(path: Path, cells: list[str], kernel: dict[str, str]) -> None:
    made = [nbformat.v4.new_code_cell(source) for source in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel}), path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("lab")
    python = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for name in ("agent", "keys", "seven"):
        write(folder / f"{name}.ipynb", CELLS, python)
    write(folder / "keeping.ipynb", KEEPING, python)
    echo = {"name": "echo", "display_name": "Echo", "language": "echo"}
    write(folder / "echo.ipynb", [], echo)
    (folder / "echo.py").write_text(ECHO)
    kernel = folder / "DATA" / "kernels" / "echo"
    kernel.mkdir(parents=True)
    argv = [sys.executable, str(folder / "echo.py"), "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, **echo}))
    server = Server(folder)
    yield server
    server.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


class Tab:
    """A tab, and what it should not do."""

    def __init__(self, browser: Any, url: str) -> None:
        self.page = browser.new_page(viewport={"width": 1500, "height": 950})
        self.wrong: list[str] = []
        self.page.on("console", lambda said: said.type == "error" and self.wrong.append(said.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self._requested)
        self.sent = 0
        self.page.on("websocket", lambda socket: socket.on("framesent", self._sent))
        self.page.goto(url)

    def _requested(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1", "http://localhost", "data:", "blob:", "ws://127")):
            self.wrong.append(f"asked {request.url}")

    def _sent(self, _frame: object) -> None:
        self.sent += 1

    def picture(self, name: str) -> None:
        PICTURES.mkdir(exist_ok=True)
        self.page.screenshot(path=PICTURES / f"lab-{name}.png")

    def barriers(self, *selectors: str) -> list[str]:
        """What axe finds there that keeps somebody from using it."""
        self.page.add_script_tag(path=AXE)
        found = self.page.evaluate(
            "include => axe.run({include}, {resultTypes: ['violations']}).then(found => found.violations)",
            [[selector] for selector in selectors],
        )
        return [
            f"{one['id']} ({one['impact']}): {node['html'][:120]}: {node['failureSummary'][:200]}"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"][:3]
        ]

    def close(self, besides: tuple[str, ...] = ()) -> None:
        self.page.close()
        assert [said for said in self.wrong if not said.startswith(besides)] == []


def dark(page: Any) -> None:
    """Choose the dark theme as a user does."""
    page.keyboard.press("Control+Shift+C")
    page.keyboard.type("Use Theme: JupyterLab Dark")
    page.locator(".lm-CommandPalette-item", has_text="JupyterLab Dark").first.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    page.locator("#jupyterlab-splash").wait_for(state="detached")


def test_a_cell_is_profiled_seen_planned_and_placed(server: Server, browser: Any) -> None:
    tab = Tab(browser, f"{server.url}lab/tree/agent.ipynb")
    page = tab.page
    page.set_default_timeout(60_000)
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.click("[data-id=gimlet-panel]")
    page.get_by_text("gimlet_lab is not loaded in this kernel").wait_for()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    tab.picture("not-loaded")
    # A kernel that has said no is not asked again and again.
    before = tab.sent
    page.wait_for_timeout(2000)
    assert tab.sent - before < 5
    page.click(".jp-Notebook .jp-Cell .cm-content >> nth=0")
    for _ in CELLS[:3]:
        page.keyboard.press("Shift+Enter")
    view = page.locator(".jp-OutputArea .gimlet-view")
    view.wait_for()
    assert "agent took" in view.inner_text()
    assert view.locator("svg.gimlet-chart").count() == 3
    # By keyboard alone: a stage chosen in one chart is chosen in the others.
    view.locator(".gimlet-mark[aria-label^='net']").first.focus()
    page.keyboard.press("Enter")
    assert view.locator("[aria-pressed=true]").count() >= 3
    assert "net:" in view.locator(".gimlet-said").inner_text()
    page.keyboard.press("Enter")
    panel = page.locator("#gimlet-panel")
    panel.locator(".gimlet-runs button", has_text="agent").wait_for()
    panel.locator(".gimlet-device", has_text="cpu").wait_for()
    tab.picture("run")
    assert tab.barriers("#gimlet-panel", ".jp-OutputArea .gimlet-view") == []
    # The cell that has no magic is profiled by the button, and keeps its text.
    page.click(".jp-Notebook .jp-Cell .cm-content >> nth=3")
    panel.locator("[data-action=profile]").click()
    page.wait_for_function("document.querySelectorAll('.gimlet-runs button').length === 2")
    assert page.locator(".jp-Notebook .jp-Cell .cm-content >> nth=3").inner_text().strip() == CELLS[3]
    panel.locator("[data-action=advise]").click()
    panel.locator("[data-action=apply]").wait_for()
    panel.locator("[data-action=dry-run]").click()
    panel.locator("[data-action=dry-run]:not([disabled])").wait_for()
    panel.locator("[data-action=apply]").click()
    panel.locator("[data-action=rollback]:not([disabled])").wait_for()
    tab.picture("placed")
    panel.locator("[data-action=rollback]").click()
    panel.locator("[data-action=apply]:not([disabled])").wait_for()
    panel.locator("[data-action=export]").click()
    panel.locator(".gimlet-said", has_text="wrote").wait_for()
    assert list(server.folder.glob("*-plan.json")), "the exported plan lies beside the notebook"
    # By keyboard: another target, which takes options.
    panel.get_by_label("Export to").select_option("ray-serve")
    field = panel.get_by_label("Options of the target")
    field.focus()
    page.keyboard.type("app=my_agent:agent")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    panel.locator(".gimlet-said", has_text=re.compile("wrote .*ray-serve.yaml")).wait_for()
    assert list(server.folder.glob("*-ray-serve.yaml"))
    panel.locator(".gimlet-runs button", has_text="agent").click()
    page.locator(".gimlet-document .gimlet-view").wait_for()
    tab.picture("report")
    # By keyboard: a setting of this notebook, there and back.
    keep = panel.get_by_label("Keep the cell's text with its run")
    for on in (True, False):
        keep.focus()
        page.keyboard.press("Space")
        panel.locator(".gimlet-said", has_text=f"keep_text={'on' if on else 'off'}").wait_for()
        panel.locator("[data-action='config keep_text']:enabled").wait_for()
        assert keep.is_checked() == on
    page.evaluate("document.querySelector('.gimlet-document').scrollTop = 0")
    dark(page)
    tab.picture("dark")
    assert tab.barriers("#gimlet-panel", ".gimlet-document .gimlet-view") == []
    # A cell that takes longer shows what it does; then its run is in the same place.
    page.click(".jp-Notebook .jp-Cell .cm-content >> nth=4")
    page.keyboard.press("Control+Enter")
    live = page.locator(".jp-OutputArea .gimlet-widget")
    live.get_by_text(re.compile(r"search × \d+")).wait_for()
    live.locator(".gimlet-strip").first.wait_for()
    tab.picture("live")
    assert tab.barriers(".gimlet-widget") == []
    live.wait_for(state="detached")
    slow = page.locator(".jp-OutputArea .gimlet-view", has_text="slow took")
    slow.locator(".gimlet-said-by-meter").first.wait_for()
    slow.scroll_into_view_if_needed()
    tab.picture("slow")
    page.click(".jp-Notebook .jp-Cell .cm-content >> nth=3")
    page.keyboard.press("Control+s")
    saved = server.folder / "agent.ipynb"
    ends = time.monotonic() + 60
    while MIME not in saved.read_text() and time.monotonic() < ends:
        page.wait_for_timeout(100)
    assert MIME in saved.read_text()
    tab.close()


def test_without_a_kernel_it_is_still_there(server: Server, browser: Any) -> None:
    for session in json.loads(urllib.request.urlopen(f"{server.url}api/sessions").read()):
        request = urllib.request.Request(f"{server.url}api/sessions/{session['id']}", method="DELETE")
        urllib.request.urlopen(request)
    tab = Tab(browser, f"{server.url}lab/tree/agent.ipynb?reset")
    tab.page.set_default_timeout(60_000)
    tab.page.locator(".jp-OutputArea .gimlet-view svg.gimlet-chart").first.wait_for()
    tab.picture("reopened")
    tab.close()


def test_a_saved_run_opens_by_itself(server: Server, browser: Any) -> None:
    import gimlet_lab as gimlet

    with gimlet.profile("saved") as recorder:
        sum(range(1000))
    assert recorder.run is not None
    recorder.run.save(server.folder / "saved.gimlet")
    (server.folder / "torn.gimlet").write_bytes(b"PK nothing")
    for name, says in (("saved", "saved took"), ("torn", "no run of gimlet_lab")):
        tab = Tab(browser, f"{server.url}lab/tree/{name}.gimlet?reset")
        tab.page.set_default_timeout(60_000)
        tab.page.locator(".gimlet-document .gimlet-view").get_by_text(says).first.wait_for()
        tab.close()


FOCUS = """() => {
    const at = document.activeElement, panel = document.querySelector('#gimlet-panel');
    if (!panel.contains(at)) return null;
    const style = getComputedStyle(at);
    return [at.dataset.action ?? at.id, style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0];
}"""
CONTROLS = """() => [...document.querySelectorAll('#gimlet-panel [data-action]')]
    .filter(one => !one.matches(':disabled') && one.checkVisibility()).map(one => one.dataset.action)"""


def walk(page: Any, to: str | None = None) -> list[str]:
    """Tab on from where the keyboard is, to a control or out of the panel; all must be seen to have it."""
    passed: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUS)
        if at is None:
            break
        name, is_seen = at
        assert is_seen, f"nobody sees that {name} has the keyboard"
        passed.append(name)
        if name == to:
            return passed
    assert to is None, f"{to} is not reached by Tab, only {passed}"
    return passed


def test_the_keyboard_alone_does_everything(server: Server, browser: Any) -> None:
    tab = Tab(browser, f"{server.url}lab/tree/keys.ipynb?reset")
    page = tab.page
    page.set_default_timeout(60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.wait_for_function("document.activeElement.closest('.jp-Notebook .jp-Cell') !== null")
    panel = page.locator("#gimlet-panel")
    for _ in CELLS[:3]:
        page.keyboard.press("Shift+Enter")
    page.locator(".jp-OutputArea .gimlet-view").wait_for()
    # Nobody watches the kernel while the panel is hidden, and the shortcut finds it all the same.
    page.keyboard.press("Control+Alt+g")
    page.locator(".jp-OutputArea .gimlet-view").nth(1).wait_for()
    page.keyboard.press("Control+Alt+Shift+G")
    page.wait_for_function("document.querySelectorAll('.gimlet-runs button').length === 2")
    assert page.evaluate(FOCUS), "the shortcut takes the keyboard into the panel"
    walk(page, "advise")
    page.keyboard.press("Enter")
    panel.locator("[data-action=apply]").wait_for()
    assert page.evaluate(FOCUS)[0] == "advise", "a command leaves the keyboard where it was"
    walk(page, "apply")
    page.keyboard.press("Enter")
    panel.locator("[data-action=rollback]:not([disabled])").wait_for()
    assert page.evaluate(FOCUS), "what can no longer be pressed hands the keyboard to its neighbours"
    walk(page, "rollback")
    page.keyboard.press("Enter")
    panel.locator("[data-action=apply]:not([disabled])").wait_for()
    walk(page, "ways")
    page.keyboard.press("Enter")
    panel.locator("details[open]").wait_for()
    walk(page, "export")
    page.keyboard.press("Enter")
    panel.locator(".gimlet-said", has_text="wrote").wait_for()
    assert panel.locator("details[open]").count() == 1, "what was opened stays open"
    page.keyboard.press("Control+Alt+Shift+G")
    assert walk(page) == page.evaluate(CONTROLS)
    tab.picture("keys")
    tab.close()


def test_it_works_in_notebook_7(server: Server, browser: Any) -> None:
    tab = Tab(browser, f"{server.url}notebooks/seven.ipynb")
    page = tab.page
    page.set_default_timeout(60_000)
    profile = page.locator(".jp-NotebookPanel-toolbar [data-command='gimlet:profile-cell']")
    page.get_by_text("Python 3 (ipykernel)").wait_for()
    # Asked too early, the panel opens and says why not; the cell is not run.
    page.click(".jp-Notebook .jp-Cell .cm-content >> nth=0")
    profile.click()
    page.locator("#gimlet-panel").get_by_text("gimlet_lab is not loaded in this kernel").wait_for()
    assert page.locator(".jp-InputPrompt").first.inner_text() == "[ ]:"
    page.click(".jp-Notebook .jp-Cell .cm-content >> nth=0")
    for _ in CELLS[:3]:
        page.keyboard.press("Shift+Enter")
    view = page.locator(".jp-OutputArea .gimlet-view")
    view.wait_for()
    assert view.locator("svg.gimlet-chart").count() == 3
    page.click(".jp-Notebook .jp-Cell .cm-content >> nth=3")
    profile.click()
    page.locator(".jp-OutputArea .gimlet-view").nth(1).wait_for()
    page.click(".jp-Notebook .jp-Cell .cm-content >> nth=4")
    page.locator("#gimlet-panel .gimlet-runs button", has_text="agent").wait_for()
    page.keyboard.press("Control+Enter")
    page.locator(".jp-OutputArea .gimlet-widget").get_by_text(re.compile(r"search × \d+")).wait_for()
    page.locator(".jp-OutputArea .gimlet-view", has_text="slow took").wait_for()
    tab.picture("seven")
    tab.close(besides=NOTEBOOKS_OWN)


def test_a_kernel_of_another_language_is_said_to_be_one(server: Server, browser: Any) -> None:
    tab = Tab(browser, f"{server.url}lab/tree/echo.ipynb?reset")
    tab.page.set_default_timeout(60_000)
    tab.page.click("[data-id=gimlet-panel]")
    tab.page.locator("#gimlet-panel").get_by_text("This kernel speaks echo.").wait_for()
    tab.close()


def test_saved_runs_are_listed_and_may_go_and_a_kernel_may_be_restarted(server: Server, browser: Any) -> None:
    tab = Tab(browser, f"{server.url}lab/tree/keeping.ipynb?reset")
    page = tab.page
    page.set_default_timeout(60_000)
    page.click("[data-id=gimlet-panel]")
    panel = page.locator("#gimlet-panel")
    panel.get_by_text("gimlet_lab is not loaded in this kernel").wait_for()
    page.click(".jp-Notebook .jp-Cell .cm-content >> nth=0")
    for _ in KEEPING:
        page.keyboard.press("Shift+Enter")
    panel.get_by_text("Saved", exact=True).click()
    saved = panel.locator("[data-action^='saved ']")
    saved.click()
    page.locator(".gimlet-document .gimlet-view").get_by_text("kept took").first.wait_for()
    tab.picture("saved")
    [path] = server.folder.glob("data/**/kept-*.gimlet")
    path.unlink()
    saved.click()
    page.locator(".gimlet-document .gimlet-empty", has_text="no such file").wait_for()
    page.click(".jp-NotebookPanel-toolbar [data-command='notebook:restart-kernel']")
    page.locator(".jp-Dialog button", has_text="Restart").click()
    panel.get_by_text("gimlet_lab is not loaded in this kernel").wait_for()
    page.click(".jp-Notebook .jp-Cell .cm-content >> nth=0")
    page.keyboard.press("Shift+Enter")
    panel.get_by_text("No run yet").wait_for()
    tab.close(besides=DEBUGGERS_OWN)
