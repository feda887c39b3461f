"""Ten runs of ``make chaos``: the right answer, or a clear error where a stage may run once only."""

from __future__ import annotations

import importlib.util

import pytest

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray"),
]


def test_ten_runs_under_fire():
    from chaos import chaos

    counts = chaos(10, seed=3)
    assert counts["right"] + counts["refused"] == counts["runs"] == 10
    assert counts["right"] >= 5
    assert [counts[bad] for bad in ("wrong", "twice", "hung", "leaked")] == [0, 0, 0, 0]
