"""Where steppe keeps what it can make again, and how files get there whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_directory() -> Path:
    """``$STEPPE_CACHE``, else ``$XDG_CACHE_HOME/steppe``, else ``~/.cache/steppe``; it need not exist yet.

    As the XDG specification asks, an XDG_CACHE_HOME that is not an absolute path counts as unset.
    """
    own = os.environ.get("STEPPE_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(shared) if Path(shared).is_absolute() else Path.home() / ".cache"
    return base / "steppe"


def write_atomically(path: Path, content: bytes) -> None:
    """Writes ``path`` so that it holds either its old or the whole new content, whenever the process dies.

    Raises:
        OSError: the folder cannot be made or written; no temporary file is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # mkstemp makes private files; a cache may be shared
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
