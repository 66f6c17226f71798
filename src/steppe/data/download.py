"""Large files from the web, so that an interruption costs nothing: what is there already is not fetched again."""

from __future__ import annotations

import contextlib
import http.client
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from steppe.errors import SteppeError

CHUNK = 2**20
TIMEOUT = 60.0  # seconds without a byte after which a connection counts as broken
ATTEMPTS = 4  # in a row without a new byte
PAUSE = 1.0  # seconds before the second attempt; doubled each time
PART = ".part"
VALIDATOR = ".part.version"
DRIVE = "drive.google.com"


def download(address: str, path: Path, *, progress: bool = False) -> None:
    """Fetches ``address`` into ``path``; a part that an earlier call left is continued.

    A file of Google Drive is fetched by gdown, anything else by HTTP: the part lies beside ``path`` and is continued by
    a range request, unless the server has another version by now or knows no ranges; then it begins anew. ``path``
    appears when it is whole.

    Raises:
        SteppeError: the server refuses, cannot be reached after several attempts, or the file cannot be written.
    """
    if path.is_file():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if urllib.parse.urlsplit(address).hostname == DRIVE:
            from_drive(address, path, progress=progress)
        else:
            _over_http(address, path, progress=progress)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        status = f" ({error.code})" if isinstance(error, urllib.error.HTTPError) else ""
        raise SteppeError(f"cannot fetch {address}: {reason}{status}") from error
    except OSError as error:
        raise SteppeError(f"cannot write {path}: {error.strerror or error}") from error


def from_drive(address: str, path: Path, *, progress: bool = False) -> None:
    """Fetches a file of Google Drive with gdown, which knows how to ask for large ones, and continues a part.

    Raises:
        SteppeError: gdown is not installed, or Google refuses; it limits how often a file is fetched in a day.
    """
    try:
        import gdown
    except ModuleNotFoundError as error:
        raise SteppeError(f"gdown fetches {address} and is not installed: pip install 'steppe[data]'") from error
    try:
        made = gdown.download(url=address, output=str(path), quiet=not progress, resume=True)
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
            raise
        raise SteppeError(f"cannot fetch {address}: {error}") from error
    except Exception as error:  # gdown's own errors have changed their base class over its versions
        raise SteppeError(f"cannot fetch {address}: {' '.join(str(error).split())}") from error
    if made is None or not path.is_file():
        raise SteppeError(f"cannot fetch {address}: gdown gave no file")


def byte_progress(*, enabled: bool) -> Progress:
    """A bar on standard error that counts bytes."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
        disable=not enabled,
    )


def on_terminal() -> bool:
    """Whether someone would see a bar."""
    return sys.stderr.isatty()


def _over_http(address: str, path: Path, *, progress: bool) -> None:
    part = path.with_name(path.name + PART)
    failures = 0
    with byte_progress(enabled=progress) as bars:
        task = bars.add_task(path.name, total=None)
        while True:
            before = _size(part)
            try:
                if _continue(address, part, bars, task):
                    break
                error: Exception = ConnectionError("the connection ended before the file did")
            except urllib.error.HTTPError as refusal:
                if refusal.code < 500 and refusal.code not in (408, 429):
                    raise
                error = refusal
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as broken:
                error = broken
            failures = 1 if _size(part) > before else failures + 1
            if failures >= ATTEMPTS:
                raise error
            time.sleep(PAUSE * 2 ** (failures - 1))
    part.replace(path)
    _validator(part).unlink(missing_ok=True)


def _continue(address: str, part: Path, bars: Progress, task: Any) -> bool:
    """One connection; whether the file is whole afterwards."""
    have = _size(part)
    version = _read(_validator(part))
    # Without the server's name for the version a part could be continued with the bytes of another file.
    headers = {"Range": f"bytes={have}-", "If-Range": version} if have and version else {}
    request = urllib.request.Request(address, headers={"User-Agent": "steppe", **headers})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and headers:
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return True  # it was stopped between the last byte and the renaming
            part.unlink()
            return False
        raise
    with response:
        continued = response.status == http.HTTPStatus.PARTIAL_CONTENT
        have = have if continued else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        if not continued:
            _validator(part).write_text(_version(response.headers))
        bars.update(task, total=total, completed=have)
        with part.open("ab" if continued else "wb") as file:
            while chunk := _received(response):
                file.write(chunk)
                bars.advance(task, len(chunk))
    return total is None or _size(part) == total


def _received(response: Any) -> bytes:
    try:
        return cast(bytes, response.read1(CHUNK))  # what has come, so that a kill loses little
    except OSError as error:  # among them what TLS raises, which must not be taken for a fault of the disk
        raise ConnectionError(str(error)) from error


def _version(headers: Any) -> str:
    """What ``If-Range`` may be asked with: a strong entity tag, else the time of the last change."""
    tag = str(headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else str(headers.get("Last-Modified", ""))


def _validator(part: Path) -> Path:
    return part.with_name(part.name.removesuffix(PART) + VALIDATOR)


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _read(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    return ""
