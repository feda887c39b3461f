"""The largest runs, by the script that measures them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "scale.py"


def test_a_run_of_many_operators_stays_small_below_its_cell():
    command = [sys.executable, str(SCRIPT), "--operators", "50000", "--rounds", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["operators"] == 50_000
    assert 10 < found["output_kb"] < 200
    # 50 bytes for each operator of a million.
    assert found["million_ops_mb"] < 50 / 20
