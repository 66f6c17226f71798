"""The program that measures what Lookahead costs, as a process, on a network that takes milliseconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "lookahead.py"


def test_a_table_of_the_variants_that_were_asked_for() -> None:
    command = [sys.executable, PROGRAM, "--tiny", "--pairs", "2", "--variants", "plain", "mean and anchor"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    first, _, *lines = done.stdout.splitlines()
    assert first.startswith("Tiny ResNet, batch 8 × 32², on ")
    assert "Python" in first
    assert "torch " in first
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(row) for row in rows} == {len(head)}
    assert [row[0] for row in rows] == ["plain", "mean and anchor"]
    for row, copies in zip(rows, (1, 2), strict=True):
        held, peak, target = (float(cell) for cell in row[-3:])
        assert abs(held - copies) < 0.05
        assert abs(peak - copies) < 0.1
        assert target == copies
        assert abs(float(row[2])) < 1000  # a number, whatever the machine is busy with
