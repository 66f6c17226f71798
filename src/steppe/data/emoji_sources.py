"""The four published emoji sets behind EmojiStyles: which packages, how they are got and checked, how one drawing is
read.

Packages come from the ordinary npm client, or from a folder of tarballs. Each is pinned by version and by the sha512
of its tarball, so the pictures are the same wherever and whenever the set is made.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from steppe.data.npm import pack, tarball_name
from steppe.errors import SteppeError


@dataclass(frozen=True)
class Vector:
    """The inside of an SVG document whose nominal picture is the rectangle from (0, 0) to (width, height)."""

    body: str
    width: float
    height: float


Drawn = Vector | Image.Image
Reader = Callable[[tarfile.TarFile, Collection[str]], dict[str, Drawn]]


@dataclass(frozen=True)
class Package:
    """One pinned npm package and the function that reads the wanted code points out of its tarball."""

    style: str
    name: str
    version: str
    integrity: str
    licence: str
    read: Reader

    @property
    def file_name(self) -> str:
        """What ``npm pack`` calls the tarball."""
        return tarball_name(self.name, self.version)


def code_points_of(name: str) -> str:
    """The common spelling of code points: lower case, joined by dashes, without the variation selector fe0f."""
    return "-".join(point for point in name.lower().split("-") if point != "fe0f")


def locate(package: Package, folder: Path | None, scratch: Path) -> Path:
    """The checked tarball of ``package``: out of ``folder``, or where that is None got by npm into ``scratch``.

    Raises:
        SteppeError: npm is missing or fails, the folder lacks the file, or its sha512 is not the pinned one.
    """
    if folder is None:
        pack(package.name, package.version, scratch, what="the emoji pictures", fetch="emoji")
    path = (folder or scratch) / package.file_name
    if not path.is_file():
        raise SteppeError(
            f"{path} does not exist; `npm pack {package.name}@{package.version}` run in that folder puts it there"
        )
    found = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != package.integrity:
        raise SteppeError(
            f"{path} is not the {package.name} {package.version} that steppe knows: its checksum is {found}, "
            f"expected {package.integrity}; remove the file and fetch it again"
        )
    return path


def read(package: Package, tarball: Path, wanted: Collection[str]) -> dict[str, Drawn]:
    """The drawings of the ``wanted`` code points in ``tarball``.

    Raises:
        SteppeError: the tarball lacks some of them; they are named.
    """
    with tarfile.open(tarball, "r:gz") as archive:
        drawings = package.read(archive, wanted)
    missing = [code_points for code_points in wanted if code_points not in drawings]
    if missing:
        raise SteppeError(
            f"{package.name} {package.version} has no drawing of {', '.join(missing[:5])}"
            + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        )
    return drawings


def _read_fluent(archive: tarfile.TarFile, wanted: Collection[str]) -> dict[str, Drawn]:
    found: dict[str, Drawn] = {}
    for code_points, content in _files(archive, "package/assets/", ".webp", wanted):
        with Image.open(io.BytesIO(content)) as picture:
            found[code_points] = picture.convert("RGBA")
    return found


def _read_openmoji(archive: tarfile.TarFile, wanted: Collection[str]) -> dict[str, Drawn]:
    found: dict[str, Drawn] = {}
    for code_points, content in _files(archive, "package/black/svg/", ".svg", wanted):
        svg = re.search(r'<svg[^>]*viewBox="0 0 72 72"[^>]*>(.*)</svg>', content.decode(), re.DOTALL)
        if svg is not None:
            found[code_points] = Vector(svg[1], 72, 72)
    return found


def _read_iconify(archive: tarfile.TarFile, wanted: Collection[str]) -> dict[str, Drawn]:
    icons = json.loads(_content(archive, "package/icons.json"))
    found: dict[str, Drawn] = {}
    for sequence, name in json.loads(_content(archive, "package/chars.json")).items():
        code_points = code_points_of(sequence)
        icon = icons["icons"].get(name)  # none of the classes' drawings is an alias of another
        if code_points in wanted and icon is not None:
            width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
            # currentColor is the colour of the surrounding text; here there is none, and black is the default.
            found[code_points] = Vector(icon["body"].replace("currentColor", "#000"), width, height)
    return found


def _files(archive: tarfile.TarFile, folder: str, suffix: str, wanted: Collection[str]) -> list[tuple[str, bytes]]:
    found = []
    for member in archive:
        if member.name.startswith(folder) and member.name.endswith(suffix):
            code_points = code_points_of(member.name[len(folder) : -len(suffix)])
            if code_points in wanted:
                found.append((code_points, _content(archive, member)))
    return found


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo | str) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise SteppeError(f"{getattr(member, 'name', member)} in the package is not a regular file")
    return file.read()


PACKAGES = (
    Package(
        "fluent",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "MIT",
        _read_fluent,
    ),
    Package(
        "noto",
        "@iconify-json/noto",
        "1.2.9",
        "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0",
        _read_iconify,
    ),
    Package(
        "twemoji",
        "@iconify-json/twemoji",
        "1.2.5",
        "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0",
        _read_iconify,
    ),
    Package(
        "line",
        "openmoji",
        "17.0.0",
        "sha512-EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==",
        "CC-BY-SA-4.0",
        _read_openmoji,
    ),
)
