"""What a page and a real kernel say to each other, as JupyterLab would say it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from kernel import DEADLINE_S, Kernel


class Page:
    """A page's end of the comm."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.comm = uuid.uuid4().hex
        self.heard: list[dict[str, Any]] = []
        self.closed = False
        self._asked = 0

    def open(self) -> None:
        self._send("comm_open", target_name="gimlet_lab", data={"protocol": 1})

    def close(self) -> None:
        self._send("comm_close", data={})

    def say(self, **data: Any) -> None:
        self._send("comm_msg", data=data)

    def ask(self, **data: Any) -> dict[str, Any]:
        self._asked += 1
        number = self._asked
        self.say(id=number, **data)
        return self.until(lambda said: said.get("id") == number)

    def until(self, wanted: Any) -> dict[str, Any]:
        ends = time.monotonic() + DEADLINE_S
        while time.monotonic() < ends:
            message = self.kernel.client.get_iopub_msg(timeout=DEADLINE_S)
            content = message["content"]
            if content.get("comm_id") != self.comm:
                continue
            if message["msg_type"] == "comm_close":
                self.closed = True
                return {}
            self.heard.append(content["data"])
            if wanted(content["data"]):
                return content["data"]
        raise AssertionError(f"not heard: {self.heard}")

    def _send(self, kind: str, **content: Any) -> None:
        client = self.kernel.client
        client.shell_channel.send(client.session.msg(kind, {"comm_id": self.comm, **content}))


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    kernel.run("%load_ext gimlet_lab\n%gimlet config save=off quiet=on")
    yield kernel
    kernel.close()


@pytest.fixture
def page(kernel: Kernel) -> Iterator[Page]:
    page = Page(kernel)
    page.open()
    page.until(lambda said: "state" in said)
    yield page
    page.close()


def test_a_page_is_told_what_there_is_and_what_changes(kernel: Kernel, page: Page) -> None:
    state = page.heard[-1]["state"]
    assert state["protocol"] == 1
    assert state["deployment"] is None
    assert state["settings"]["live"] is True
    # What a command changed is told before its answer, upon which the page is drawn.
    for quiet in ("off", "on", "off"):
        page.ask(line=f"config quiet={quiet}")
        told = [said["state"] for said in page.heard if "state" in said]
        assert told[-1]["settings"]["quiet"] is (quiet == "on")
    before = len(state["runs"])
    kernel.client.execute("%%gimlet --name counted\nsum(range(1000))")
    runs = page.until(lambda said: "state" in said)["state"]["runs"]
    assert len(runs) == before + 1
    assert runs[-1]["name"] == "counted"
    assert "counted took" in runs[-1]["finding"]


def test_the_next_cell_is_profiled_and_its_text_is_its_own(kernel: Kernel, page: Page) -> None:
    assert page.ask(arm=True) == {"id": 1, "ok": True, "text": ""}
    kernel.client.execute("answer = 6 * 7")
    name = page.until(lambda said: "state" in said)["state"]["runs"][-1]["name"]
    assert name.startswith("cell-")
    assert kernel.run("answer").value == "42"
    last = page.ask(run=name)["form"]
    assert last["schema"] == "gimlet.display/1"
    assert last["name"] == name
    kernel.run("answer += 1")
    assert page.ask(line="runs")["text"].count(name) == 1, "only that one"


def test_a_command_answers_and_a_bad_one_says_why_in_a_line(page: Page) -> None:
    assert page.ask(line="")["ok"]
    wrong = page.ask(line="advize")
    assert not wrong["ok"]
    assert "advise" in wrong["text"]
    missing = page.ask(run="nothing like it")
    assert not missing["ok"]
    assert "\n" not in missing["text"]


def test_meters_come_while_somebody_looks(page: Page) -> None:
    page.say(watch=True)
    rows = page.until(lambda said: said.get("meters"))["meters"]
    cpu = next(row for row in rows if row["device"] == "cpu")
    assert cpu["memory_total_bytes"] > cpu["memory_used_bytes"] > 0
    assert not [row for row in rows if row["device"].startswith("core")]
    page.say(watch=False)
    page.ask(line="")
    # It takes a last reading first.
    page.kernel.run(
        "import threading\nfor t in threading.enumerate():\n    t.name == 'gimlet-page' and t.join(30)"
    )
    threads = page.kernel.run("[t.name for t in threading.enumerate()]").value
    assert "gimlet-page" not in str(threads)


def test_a_cell_that_runs_is_seen_while_it_does(kernel: Kernel, page: Page) -> None:
    kernel.run("import torch, time\nnet = torch.nn.Linear(8, 8)\nx = torch.ones(2, 8)")
    page.say(watch=True)
    page.until(lambda said: "running" in said)
    kernel.client.execute(
        "%%gimlet --name long\nends = time.monotonic() + 3\n"
        "while time.monotonic() < ends: net(x); time.sleep(0.05)"
    )
    seen = page.until(lambda said: (said.get("running") or {}).get("stretches"))["running"]
    assert seen["name"] == "long"
    assert seen["stretches"][-1]["name"] == "forward"
    assert seen["stretches"][-1]["calls"] >= 1
    assert 0 < seen["elapsed_s"] < 60
    page.until(lambda said: "meters" in said and said["running"] is None)
    page.say(watch=False)


def test_what_was_unloaded_does_not_answer(kernel: Kernel, page: Page) -> None:
    kernel.client.execute("%unload_ext gimlet_lab")
    page.until(lambda said: False)
    assert page.closed
    other = Page(kernel)
    other.open()
    other.until(lambda said: False)
    assert other.closed, "nobody there: the comm is closed at once"
    kernel.run("%load_ext gimlet_lab")
