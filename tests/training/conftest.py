from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import export_drawings


@pytest.fixture(scope="session")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_drawings(tmp_path_factory.mktemp("sets") / "drawings")
