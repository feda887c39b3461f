"""``gimlet profile NOTEBOOK.ipynb``: run a whole notebook in a kernel of its own and bring back its runs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from gimlet_lab.cell import find_request
from gimlet_lab.errors import GimletError, UnknownNameError, UsageError


def select(cells: Sequence[Mapping[str, Any]], wanted: str | None) -> list[int]:
    r"""Find the code cells that are meant.

    Parameters
    ----------
    cells : sequence of mapping
        The code cells of a notebook.
    wanted : str or None
        Numbers from 1, ranges, cell ids or tags, by commas; None: the cells that carry ``%%gimlet``.

    Returns
    -------
    list of int
        Indices into ``cells``.

    Examples
    --------
    >>> cells = [{"source": "a"}, {"source": "%%gimlet\nb"}, {"source": "c", "id": "rag"}]
    >>> select(cells, None), select(cells, "1-2,rag")
    ([1], [0, 1, 2])
    """
    if wanted is None:
        return [i for i, cell in enumerate(cells) if find_request(cell["source"]) is not None]
    found: set[int] = set()
    for part in wanted.split(","):
        first, dash, last = part.strip().partition("-")
        if first.isdecimal() and (last.isdecimal() or not dash):
            numbers = range(int(first), int(last or first) + 1)
            outside = [n for n in numbers if not 1 <= n <= len(cells)]
            if outside or not numbers:
                raise UsageError(f"--cells {part}: there are code cells 1 to {len(cells)}")
            found.update(n - 1 for n in numbers)
            continue
        named = [i for i, cell in enumerate(cells) if part.strip() in _names(cell)]
        if not named:
            raise UnknownNameError("cell", part.strip(), {name for cell in cells for name in _names(cell)})
        found.update(named)
    return sorted(found)


def _names(cell: Mapping[str, Any]) -> list[str]:
    return [name for name in (cell.get("id"), *cell.get("metadata", {}).get("tags", ())) if name]


def profile_notebook(
    path: Path, *, cells: str | None, output: Path, words: str = "", progress_to: TextIO | None = None
) -> list[Path]:
    """Run all cells of a notebook and profile some of them. The notebook's file stays as it is.

    Parameters
    ----------
    path : Path
    cells : str or None
        Which, see :func:`select`.
    output : Path
        A ``.gimlet`` file for one run, else a folder for all.
    words : str
        Options of ``%%gimlet`` for the cells that are named by ``cells``.
    progress_to : file, optional
        One line a cell.

    Returns
    -------
    list of Path
        A run file for each profiled cell, in order.

    Raises
    ------
    GimletError
        If the notebook cannot be read or one of its cells fails; what had been profiled is written first.
    """
    notebook, client = _open(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    chosen = select(code, cells)
    if not chosen:
        raise UsageError(f"{path}: no cell carries %%gimlet; name some with --cells")
    if output.suffix == ".gimlet" and len(chosen) > 1:
        raise UsageError(f"{output}: one file for {len(chosen)} profiled cells; name a folder")
    for index in chosen:
        if find_request(code[index].source) is None:
            code[index].source = f"%%gimlet {words}\n{code[index].source}"
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    failure: str | None = None
    with tempfile.TemporaryDirectory() as folder, client.setup_kernel(cwd=str(path.resolve().parent)):
        _in_kernel(client, f"import gimlet_lab.execution as _e; _e.begin({folder!r}); del _e")
        for number, cell in enumerate(code, 1):
            if progress_to is not None:
                print(f"cell {number} of {len(code)}", file=progress_to)
            try:
                client.execute_cell(cell, notebook.cells.index(cell))
            except CellExecutionError as error:
                failure = f"{path}: cell {number} failed: {error.ename}: {error.evalue}"
            except DeadKernelError:
                failure = f"{path}: the kernel died in cell {number}"
            if failure:
                break
        written = _bring(sorted(Path(folder).glob("*.gimlet")), output)
    if failure:
        kept = (
            f"; {len(written)} profiled before it or in it: {', '.join(map(str, written))}" if written else ""
        )
        raise GimletError(failure + kept)
    return written


def _open(path: Path) -> tuple[Any, Any]:
    try:
        import nbformat
        from nbclient import NotebookClient
    except ImportError as error:
        raise GimletError(f"gimlet profile needs {error.name}: pip install 'gimlet-lab[notebook]'") from None
    try:
        notebook = nbformat.read(path, as_version=4)
    except OSError as error:
        raise GimletError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001 - nbformat raises what its JSON and schema libraries raise
        raise GimletError(f"{path}: not a notebook: {error}") from None
    return notebook, NotebookClient(notebook, timeout=None)


def _in_kernel(client: Any, code: str) -> None:
    """Run a line of ours in the kernel, before the notebook and without a trace in it."""
    from nbclient.util import run_sync

    reply = run_sync(client.kc.execute_interactive)(code, silent=True, store_history=False)
    content = reply["content"]
    if content["status"] != "ok":
        raise GimletError(
            f"the notebook's kernel cannot import gimlet_lab ({content['ename']}: {content['evalue']}); "
            "install it in that kernel's environment"
        )


def begin(folder: str) -> None:
    """Inside the kernel: load the extension and write every run into a folder."""
    from gimlet_lab import magics, notebook
    from gimlet_lab.profiling import running_shell

    shell = running_shell()
    magics.load(shell)
    held = notebook.of(shell)
    held.folder = lambda: Path(folder)
    held.settings.save = True


def _bring(files: Sequence[Path], output: Path) -> list[Path]:
    """Move run files to where the user wants them, the order in front of their names left off."""
    from gimlet_lab.model.store import write_atomic

    written: list[Path] = []
    for file in files:
        target = output if output.suffix == ".gimlet" else output / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        written.append(write_atomic(target, file.read_bytes()))
    return written
