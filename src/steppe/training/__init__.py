"""Training one run: what it is (config), how it steps (recipes), the loop, checkpoints and resume."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steppe.training.config import RunConfig as RunConfig
    from steppe.training.config import Settings as Settings
    from steppe.training.files import OutputError as OutputError
    from steppe.training.files import RunLockedError as RunLockedError
    from steppe.training.interruption import Interrupted as Interrupted
    from steppe.training.losses import NonFiniteLossError as NonFiniteLossError
    from steppe.training.machine import Machine as Machine
    from steppe.training.recipes import Recipe as Recipe
    from steppe.training.recipes import parse as parse
    from steppe.training.results import Result as Result
    from steppe.training.trainer import Trainer as Trainer

# The command line shows its help without importing torch, so nothing is imported before it is asked for.
_HOMES = {
    "Trainer": "trainer",
    "RunConfig": "config",
    "Settings": "config",
    "Machine": "machine",
    "Result": "results",
    "Recipe": "recipes",
    "parse": "recipes",
    "NonFiniteLossError": "losses",
    "OutputError": "files",
    "RunLockedError": "files",
    "Interrupted": "interruption",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'steppe.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"steppe.training.{_HOMES[name]}"), name)
