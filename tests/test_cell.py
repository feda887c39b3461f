"""The input transformer: what becomes of a cell's lines, without a kernel."""

from __future__ import annotations

import ast

from hypothesis import given
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager

from gimlet_lab.cell import Transformer, find_request, misplaced_below
from gimlet_lab.commands import read_cell_options

transform = Transformer(read_cell_options)


def transformed(cell: str) -> str:
    manager = TransformerManager()
    manager.cleanup_transforms.insert(0, transform)
    return manager.transform_cell(cell)


lines_without_magics = st.lists(
    st.sampled_from(["x = 1", "", " ", "# note", "'''", "%%time", "  %%gimlet_lab", "for i in x:"]),
    max_size=6,
)  # fmt: skip
options = st.sampled_from(["", " --name rag", " profile -o run", " --exact --quiet", "  ", "\t--keep-text"])


@given(lines_without_magics)
def test_a_cell_without_the_line_is_left_alone(lines: list[str]) -> None:
    cell = [line + "\n" for line in lines]
    assert transform(cell) == cell


@given(st.lists(st.sampled_from(["", "  ", "# note", "#"]), max_size=3), options, lines_without_magics)
def test_a_valid_line_becomes_a_comment_and_no_line_moves(
    above: list[str], words: str, below: list[str]
) -> None:
    if any(line.startswith("%%") for line in below):
        below = [line for line in below if not line.startswith("%%")]
    cell = [line + "\n" for line in (*above, f"%%gimlet{words}", *below)]
    before = list(cell)
    after = transform(cell)
    assert cell == before  # pure
    assert len(after) == len(cell)
    assert after[len(above)] == f"# %%gimlet{words}\n"
    assert after[: len(above)] + after[len(above) + 1 :] == cell[: len(above)] + cell[len(above) + 1 :]
    assert transform(after) == after
    assert find_request("".join(cell)) == words.strip()


@given(st.text(max_size=30))
def test_any_words_give_a_comment_or_one_call_that_says_what_is_wrong(words: str) -> None:
    line = "%%gimlet " + " ".join(words.split())
    result = transform([line + "\n", "x = 1\n"])
    if result[0].startswith("# %%gimlet"):
        assert result[1:] == ["x = 1\n"]
    else:
        call = ast.parse("".join(result)).body
        assert len(call) == 1
        assert result[0].startswith("get_ipython().run_cell_magic('gimlet', ")


def test_indented_cells_keep_their_indentation() -> None:
    assert transformed("  %%gimlet\n  x = 1\n  y = 2\n") == "# %%gimlet\nx = 1\ny = 2\n"


def test_another_cell_magic_below_stays_in_its_line() -> None:
    result = transformed("%%gimlet\n\n# why\n%%time\nx = 1\n")
    assert result == "# %%gimlet\n\n# why\nget_ipython().run_cell_magic('time', '', 'x = 1\\n')\n"


def test_help_is_left_to_ipython() -> None:
    assert "pinfo" in transformed("%%gimlet?")
    assert find_request("%%gimlet?\n") is None


def test_a_wrong_option_leaves_nothing_of_the_cell_but_the_call() -> None:
    result = transformed("# note\n%%gimlet --nmae x\nlaunch()\n")
    assert result == "# note\nget_ipython().run_cell_magic('gimlet', '--nmae x', 'launch()\\n')\n"


def test_below_other_magics_it_is_found() -> None:
    assert misplaced_below("%%time\n\n%%gimlet\nx") == "%%time"
    assert misplaced_below("%%capture out\n%%time\n%%gimlet\nx") == "%%capture"
    assert misplaced_below("%%gimlet\n%%time\nx") is None
    assert misplaced_below("%%time\nx = 1\n%%gimlet") is None
    assert misplaced_below("x = 1\n%%gimlet") is None


def test_completeness_is_that_of_a_cell_magic() -> None:
    manager = TransformerManager()
    manager.cleanup_transforms.insert(0, transform)
    for cell in ("%%gimlet", "%%gimlet\nfor i in x:\n    pass", "%%gimlet --nonsense\nx = 1"):
        assert manager.check_complete(cell)[0] == "incomplete"
        assert manager.check_complete(cell + "\n\n")[0] == "complete"
