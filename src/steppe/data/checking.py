"""What `steppe data check` finds: every picture that is missing, surplus, changed or unreadable, one line each.

Which names a folder should hold is known from a manifest (:mod:`steppe.data.manifest`), else, for DomainNet and
TerraIncognita, from the lists of the download where they lie beside the pictures
(:mod:`steppe.data.official_lists`). The official figures, of each domain and where known of each class, are held
against any copy. Its decoded pictures, where they are kept, are looked through as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from steppe.data.decoded import cache_problems
from steppe.data.domains import DomainDataset
from steppe.data.folders import ImageFolders, Layout, absolute, scan
from steppe.data.manifest import changed, manifest_path, missing_and_surplus, read_manifest, write_manifest
from steppe.data.official import Official
from steppe.data.official_folders import (
    OfficialFolders,
    class_differences,
    count_differences,
    missing_folders,
    readable_in_part,
)
from steppe.data.official_lists import listed_files
from steppe.data.verification import survey
from steppe.errors import SteppeError


@dataclass(frozen=True)
class Findings:
    """What a check found.

    Attributes:
        problems: one line each.
        in_part: pictures of an official set whose data end too soon, one line each. They are read as far as they go;
            whether its authors published them so cannot be said without a manifest.
        manifest: the one that was written.
    """

    problems: tuple[str, ...] = ()
    in_part: tuple[str, ...] = ()
    manifest: Path | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """Everything, in this order."""
        return self.problems + self.in_part


def check(dataset: DomainDataset, *, progress: bool = False, again: bool = False, remember: bool = False) -> Findings:
    """What is wrong with an opened set; arguments as of :func:`check_official`.

    Raises:
        SteppeError: as :func:`check_official`, or ``remember`` for a set that has checksums of its own.
    """
    if isinstance(dataset, OfficialFolders):
        return check_official(dataset.official, dataset.root, progress=progress, again=again, remember=remember)
    if isinstance(dataset, ImageFolders):
        return check_folders(dataset.root, progress=progress, again=again, remember=remember)
    if remember:
        raise SteppeError(f"{dataset.name!r} is held against published checksums; there is nothing to remember")
    return Findings(dataset.problems(progress=progress))


def check_official(
    official: Official, root: Path, *, progress: bool = False, again: bool = False, remember: bool = False
) -> Findings:
    """What is wrong with the copy of ``official`` in ``root``, also where it cannot be opened for it.

    Args:
        progress: show a bar.
        again: read every picture, also those found good before and not changed since.
        remember: write the manifest, unless there are problems: what is missing now would be forgotten.

    Raises:
        SteppeError: the folder, or the manifest, cannot be read or written.
    """
    root = absolute(root)
    found = missing_folders(official, root)
    there = [folder for folder in official.folders if (root / folder).is_dir()]
    layout = scan(root, there)
    files = _files(layout)
    found += [*class_differences(official, layout), *count_differences(official, layout)]
    found += _surplus_folders(official, root)
    entries = read_manifest(root)
    names = listed_files(official, root) if entries is None else entries.keys()
    if names is not None:
        # Of a domain without a folder not every file is named: that all of it is missing has been said.
        found += missing_and_surplus([file for file in names if file.partition("/")[0] in there], files)
    elif found:
        found.append(
            "which files these are cannot be said: nothing lists what belongs to this copy; on a whole one "
            f"`steppe data check {official.name} --remember` writes such a list"
        )
    records = survey(root, files, progress=progress, again=again)
    found += changed(entries or {}, records)
    problems = [f"{root}: {line}" for line in found]
    in_part = []
    for file, record in records.items():
        if record.problem and not readable_in_part(root / file):
            problems.append(record.problem)
        elif record.problem and not (entries and file in entries and entries[file].digest == record.digest):
            in_part.append(f"{record.problem} (it is read as far as it goes)")
    manifest = write_manifest(root, records) if remember and not problems else None
    return Findings((*problems, *cache_problems(root)), tuple(in_part), manifest)


def remembered(root: Path) -> bool:
    """Whether a manifest lies in ``root``."""
    try:
        return manifest_path(root).is_file()
    except OSError:  # the folder may not be looked into
        return False


def check_folders(root: Path, *, progress: bool = False, again: bool = False, remember: bool = False) -> Findings:
    """What is wrong with any folder; arguments as of :func:`check_official`.

    A folder with a manifest is held against it also where it is no data set any more, because a class is gone.

    Raises:
        SteppeError: as :class:`~steppe.data.folders.ImageFolders` where there is no manifest; or the one that is there
            cannot be read or written.
    """
    root = absolute(root)
    entries = read_manifest(root)
    found = []
    try:
        files = ImageFolders(root).files()
    except SteppeError as error:
        if entries is None:
            raise
        found.append(str(error))
        files = _files(scan(root))
    records = survey(root, files, progress=progress, again=again)
    if entries is not None:
        lines = (*missing_and_surplus(entries.keys(), files), *changed(entries, records))
        found += [f"{root}: {line}" for line in lines]
    found += [record.problem for record in records.values() if record.problem]
    manifest = write_manifest(root, records) if remember and not found else None
    return Findings((*found, *cache_problems(root)), manifest=manifest)


def _files(layout: Layout) -> list[str]:
    return [file for by_class in layout.values() for name in sorted(by_class) for file in by_class[name]]


def _surplus_folders(official: Official, root: Path) -> Iterator[str]:
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in official.folders:
            yield f"surplus: the folder {entry.name} is no domain of the set (DomainBed would take it for one)"
