"""What a command imports before its first step."""

from __future__ import annotations

import subprocess
import sys


def test_training_does_not_wait_for_statistics() -> None:
    script = "import sys, steppe.cli.sweep; print('scipy.stats' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
