"""Real drawings in a folder, for every test of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import write_drawings


@pytest.fixture(scope="session")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real drawings in a folder: two domains, two classes, eight of each."""
    return write_drawings(tmp_path_factory.mktemp("sets") / "drawings", ("noto", "line"))
