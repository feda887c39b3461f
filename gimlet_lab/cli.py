"""``gimlet COMMAND``: thin over :mod:`gimlet_lab.commands`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gimlet_lab import commands
from gimlet_lab.errors import GimletError, UnknownNameError, UsageError
from gimlet_lab.model import Plan, Run
from gimlet_lab.notebook import Notebook


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns
    -------
    int
        The exit status: 0 done, 2 a mistake in the command line, 1 anything else, 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    notebook = Notebook({})
    try:
        if words == ["--version"]:
            import gimlet_lab

            print(gimlet_lab.__version__)
            return 0
        answer, path = commands.run_line(words or ["--help"], notebook, "gimlet")
        if path is not None:
            print(f"wrote {_write(answer.value, Path(path).expanduser())}")
        else:
            print(answer.text())
        sys.stdout.flush()
        return int(answer.failed)
    except GimletError as error:
        print(f"gimlet: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError | UnknownNameError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _write(value: object, path: Path) -> Path:
    from gimlet_lab.model.store import write_atomic

    if isinstance(value, Run):
        return value.save(path)
    data = value.to_json() if isinstance(value, Plan) or hasattr(value, "to_json") else value
    return write_atomic(path, (json.dumps(data, indent=1) + "\n").encode())
