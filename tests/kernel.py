"""A real kernel for tests: run a cell, get everything it showed."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager, start_new_kernel

DEADLINE_S = 120.0


@dataclass(frozen=True)
class Shown:
    """What a cell showed: its last value, streams, displays and error."""

    status: str
    value: str | None = None
    streams: dict[str, str] = field(default_factory=dict)
    displays: tuple[dict[str, Any], ...] = ()
    error: tuple[str, str] | None = None
    traceback: str = ""
    pages: tuple[str, ...] = ()

    def normal(self) -> Shown:
        """Without what differs between two runs of one cell: counters, temporary names and addresses."""
        return replace(
            self,
            value=self.value and _normal(self.value),
            streams={name: _normal(text) for name, text in self.streams.items()},
            error=self.error and (self.error[0], _normal(self.error[1])),
            traceback=_normal(self.traceback),
            displays=tuple({k: _normal(str(v)) for k, v in shown.items()} for shown in self.displays),
        )


def _normal(text: str) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(r"/\S*/ipykernel_\d+/\d+\.py", "CELL", text)
    text = re.sub(r"\b\d+\.py\b", "CELL", text)
    text = re.sub(r"In\s?\[\d+\]", "In[N]", text)
    return re.sub(r"0x[0-9a-f]{6,}", "ADDRESS", text)


class Kernel:
    """One kernel; cells run one after another."""

    def __init__(self, **options: Any) -> None:
        self.manager: KernelManager
        #: Kinds and contents of the last cell's messages.
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.manager, self.client = start_new_kernel(startup_timeout=DEADLINE_S, **options)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, code: str) -> Shown:
        """Run a cell to its end."""
        return self._hear(self.client.execute(code, allow_stdin=False))

    def interrupted(self, code: str, sign: Path) -> Shown:
        """Run a cell and interrupt it once the file ``sign`` is there."""
        sign.unlink(missing_ok=True)
        message = self.client.execute(code, allow_stdin=False)
        deadline = time.monotonic() + DEADLINE_S
        while not sign.exists():
            assert time.monotonic() < deadline, "the cell never got as far as its sign"
            time.sleep(0.005)
        self.manager.interrupt_kernel()
        return self._hear(message)

    def _hear(self, message: str) -> Shown:
        streams: dict[str, str] = {}
        displays: list[dict[str, Any]] = []
        places: dict[str, int] = {}
        self.heard = []
        value, error, trace = None, None, ""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            heard = self.client.get_iopub_msg(timeout=max(1.0, deadline - time.monotonic()))
            if heard["parent_header"].get("msg_id") != message:
                continue
            kind, content = heard["msg_type"], heard["content"]
            self.heard.append((kind, content))
            if kind == "stream":
                streams[content["name"]] = streams.get(content["name"], "") + content["text"]
            elif kind == "execute_result":
                value = content["data"].get("text/plain")
            elif kind == "display_data":
                if "display_id" in content.get("transient", {}):
                    places[content["transient"]["display_id"]] = len(displays)
                displays.append(content["data"])
            elif kind == "update_display_data":
                displays[places[content["transient"]["display_id"]]] = content["data"]
            elif kind == "error":
                error, trace = (content["ename"], content["evalue"]), "\n".join(content["traceback"])
            elif kind == "status" and content["execution_state"] == "idle":
                break
        reply = self.client.get_shell_msg(timeout=DEADLINE_S)
        while reply["parent_header"].get("msg_id") != message:
            reply = self.client.get_shell_msg(timeout=DEADLINE_S)
        content = reply["content"]
        if error is None and content["status"] == "error":
            error = (content["ename"], content["evalue"])
        pages = tuple(page["data"]["text/plain"] for page in content.get("payload", ()) if "data" in page)
        return Shown(content["status"], value, streams, tuple(displays), error, trace, pages)

    def get(self, expression: str) -> str:
        """The ``repr`` of an expression."""
        reply = self.client.execute(
            "", silent=True, user_expressions={"it": expression}, reply=True, timeout=60
        )
        found = reply["content"]["user_expressions"]["it"]
        assert found["status"] == "ok", found
        return str(found["data"]["text/plain"])

    def completions(self, line: str) -> list[str]:
        reply = self.client.complete(line, len(line), reply=True, timeout=60)
        return list(reply["content"]["matches"])
