"""Whether one process may look into another, and why not."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

_GET_DUMPABLE, _SET_PTRACER = 3, 0x59616D61
_SYS_PTRACE = 19


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides whether one process may look into another.

    Attributes
    ----------
    scope : int or None
        Yama's ``ptrace_scope``; None where there is no Yama.
    may_trace : bool
        Has the capability SYS_PTRACE.
    dumpable : bool
    """

    scope: int | None
    may_trace: bool
    dumpable: bool

    @staticmethod
    def here() -> Facts:
        """Of this process."""
        try:
            scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii"))
        except (OSError, ValueError):
            scope = None
        try:
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            bits = int(status.partition("CapEff:")[2].split()[0], 16)
        except (OSError, ValueError, IndexError):
            bits = 0
        return Facts(scope, bool(bits >> _SYS_PTRACE & 1), _prctl(_GET_DUMPABLE) != 0)


def refusal(said: str, facts: Facts) -> str:
    """Why py-spy could not attach, in one line.

    Examples
    --------
    >>> refusal("Error: Operation not permitted", Facts(None, may_trace=False, dumpable=True))
    'no SYS_PTRACE capability here (in a container: --cap-add SYS_PTRACE)'
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    refused = any(word in said.lower() for word in ("permission", "permitted", "eperm"))
    if facts.scope == 3 and refused:
        return "Yama forbids it to everybody (kernel.yama.ptrace_scope=3)"
    if not facts.may_trace and refused:
        if facts.scope == 2:
            return "Yama allows it to SYS_PTRACE only (kernel.yama.ptrace_scope=2)"
        if not facts.dumpable:
            return "this process is not dumpable (it has changed its user, or forbids it)"
        if facts.scope == 1:
            return "Yama allows it to parents only, and to no other here (kernel.yama.ptrace_scope=1)"
        return "no SYS_PTRACE capability here (in a container: --cap-add SYS_PTRACE)"
    return "it said: " + lines[0][:160] if lines else "it ended without a word"


def allow(pid: int) -> None:
    """Let one process look into this one, where Yama wants to be asked; 0: nobody any more."""
    if Facts.here().scope == 1:
        _prctl(_SET_PTRACER, pid)


def _prctl(what: int, value: int = 0) -> int:
    if sys.platform != "linux":
        return -1
    try:
        return int(ctypes.CDLL(None).prctl(what, ctypes.c_ulong(value), 0, 0, 0))
    except (OSError, AttributeError):
        return -1
