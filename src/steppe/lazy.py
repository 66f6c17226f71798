"""Public names that are imported from their modules when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` (PEP 562) that finds public names in modules of ``package``.

    Args:
        package: the full name of the package.
        homes: module of the package → names it defines; a module without names is public itself.

    Returns:
        The function to bind to ``__getattr__``. It raises ``AttributeError`` for a name that is not there, and
        ``ModuleNotFoundError`` with the extra to install where a library is missing.
    """
    home = {name: module for module, names in homes.items() for name in names or (module,)}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(f"{package}.{home[name]}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] == "steppe":
                raise
            needs = f"{package}.{name} needs {error.name!r}: pip install 'steppe[bench]'"
            raise ModuleNotFoundError(needs, name=error.name) from error
        value = module if home[name] == name else getattr(module, name)
        setattr(sys.modules[package], name, value)  # the next use does not come here
        return value

    return find
