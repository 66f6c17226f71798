"""A cache beside a large store: what its small files say, so that they need not be opened again.

What costs time in a store of thousands of runs is opening and parsing two files of each, above all where the store
lies on a disk that is shared over a network. The index holds their content, without what only a look at a single run
needs, in one file. It is a cache and nothing else:

- an entry is used only while size, times and inode of both files are what they were when they were read;
- the file carries a checksum: one that is damaged, or of another version, is as good as none;
- only what passed the checks of :mod:`steppe.report.reading` is in it, and those of another version of steppe count
  for nothing;
- it may be deleted at any time, and where it cannot be written the store is read without it.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steppe import __version__
from steppe.report.reading import UnreadableFile, as_object, check, read_object, read_text
from steppe.training.files import OutputError, write_atomically
from steppe.training.results import VERSION as RESULTS

NAME = ".steppe-index.json"
RULES = [1, RESULTS, __version__]
"""By whose rules an index was made: its own, those of a result, and steppe's; others are not used."""
WORTH = 100
"""An index is written when so many runs had to be read from their own files."""

THREADS, PORTION, AHEAD = 8, 50, 16
"""Threads that read, runs that one reads at a time, and how many such portions are on their way."""

BULK = ("checkpoints", "loss")
"""Fields of ``result.json`` that no table needs: left where they are, and read when asked for."""

_OWN_CONFIG = ("held_out", "seed", "trial_seed", "validation_domain")
_SHARED_RESULT = (
    *("version", "dataset", "dataset_spec", "algorithm", "answer", "in_domain", "steps", "parameters", "command"),
    *("versions", "device", "threads", "counts"),
)

Signature = list[int]


class StoredResult(Mapping[str, Any]):
    """A run's ``result.json`` whose large fields (`BULK`) stay in the file until they are asked for.

    Raises:
        UnreadableFile: on such a question, where the file is no longer what it was.
    """

    __slots__ = ("_bulk", "_content", "_path")

    def __init__(self, path: Path, content: Mapping[str, Any], bulk: tuple[str, ...]) -> None:
        self._path = path
        self._content = content
        self._bulk = bulk

    def __getitem__(self, name: str) -> Any:
        if name not in self._bulk:
            return self._content[name]
        found = read_object(self._path)
        if name not in found or found.get("id") != self._content.get("id"):
            raise UnreadableFile(self._path, f"has changed while it was in use: {name!r} is no longer there")
        return found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._content or name in self._bulk

    def __iter__(self) -> Iterator[str]:
        yield from self._content
        yield from self._bulk

    def __len__(self) -> int:
        return len(self._content) + len(self._bulk)


Loaded = tuple[dict[str, Any], StoredResult]


@dataclass(frozen=True)
class _Fetched:
    """What the disk says of a run: that its files are as known (no texts), their texts, or an error."""

    folder: Path
    name: str
    signature: Signature = field(default_factory=list)
    texts: tuple[str, str] | None = None
    error: UnreadableFile | None = None


class Index:
    """The files of a store's runs, from the cache where that is still true of them.

    Args:
        root: the store. What the cache there says is read at once; a damaged one says nothing.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / NAME
        self.opened = 0
        """Runs whose own files had to be opened."""
        self._shared, self._known = self._read()
        self._places = {_text(part): place for place, part in enumerate(self._shared)}
        self._entries: dict[str, list[Any]] = {}

    def load(self, folders: Sequence[Path]) -> Iterator[Loaded | UnreadableFile]:
        """Config and result of the finished run in each of the folders, in their order; or why there is none.

        Threads read ahead: what takes time on a disk that others share is waiting for it.
        """
        portions = [folders[start : start + PORTION] for start in range(0, len(folders), PORTION)]
        if len(portions) < 2:
            for folder in folders:
                yield self._taken(self._fetched(folder))
            return
        with ThreadPoolExecutor(THREADS) as pool:
            ahead = deque(pool.submit(self._portion, portion) for portion in portions[:AHEAD])
            for place in range(len(portions)):
                found = ahead.popleft().result()
                if place + AHEAD < len(portions):
                    ahead.append(pool.submit(self._portion, portions[place + AHEAD]))
                for fetched in found:
                    yield self._taken(fetched)

    def save(self) -> None:
        """Write the cache, where enough was read to be worth it; a store that cannot be written does without."""
        if self.opened < WORTH:
            return
        body = _text({"rules": RULES, "shared": self._shared, "runs": self._entries}).encode()
        content = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        try:
            write_atomically(self.path, lambda file: file.write(content))
        except OutputError:
            return

    def _read(self) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
        try:
            digest, _, body = self.path.read_bytes().partition(b"\n")
            if digest.decode("ascii", "replace") != hashlib.sha256(body).hexdigest():
                return [], {}
            content = json.loads(body)
            if content["rules"] != RULES:
                return [], {}
            return list(content["shared"]), dict(content["runs"])
        except (OSError, ValueError, TypeError, KeyError):
            return [], {}

    def _portion(self, folders: Sequence[Path]) -> list[_Fetched]:
        return [self._fetched(folder) for folder in folders]

    def _fetched(self, folder: Path) -> _Fetched:
        """What has to be asked of the disk; changes nothing here, so that threads may do it."""
        name = folder.relative_to(self.path.parent).as_posix()
        config, result = folder / "config.json", folder / "result.json"
        try:
            # Taken before the files are read: what changes in between is seen the next time.
            signature = _signature(config, result)
            known = self._known.get(name)
            if known is not None and known[0] == signature:
                return _Fetched(folder, name, signature)
            return _Fetched(folder, name, signature, (read_text(config), read_text(result)))
        except UnreadableFile as error:
            return _Fetched(folder, name, error=error)

    def _taken(self, fetched: _Fetched) -> Loaded | UnreadableFile:
        folder, name = fetched.folder, fetched.name
        if fetched.error is not None:
            return fetched.error
        if fetched.texts is None:
            entry = self._known[name]
        else:
            try:
                config = as_object(folder / "config.json", fetched.texts[0])
                result = as_object(folder / "result.json", fetched.texts[1])
                check(folder, config, result)
            except UnreadableFile as error:
                return error
            entry = self._condensed(fetched.signature, config, result)
            self.opened += 1
        self._entries[name] = entry
        _, common, own, common_result, own_result, bulk = entry
        stored = StoredResult(folder / "result.json", {**self._shared[common_result], **own_result}, tuple(bulk))
        return {**self._shared[common], **own}, stored

    def _condensed(self, signature: Signature, config: dict[str, Any], result: dict[str, Any]) -> list[Any]:
        """An entry: what many runs have in common is kept once, in memory too."""
        bulk = [name for name in BULK if name in result]
        own_config = {name: config.pop(name) for name in _OWN_CONFIG if name in config}
        common = {name: result.pop(name) for name in _SHARED_RESULT if name in result}
        own_result = {name: value for name, value in result.items() if name not in bulk}
        return [signature, self._place(config), own_config, self._place(common), own_result, bulk]

    def _place(self, part: dict[str, Any]) -> int:
        text = _text(part)
        if text not in self._places:
            self._places[text] = len(self._shared)
            self._shared.append(part)
        return self._places[text]


def _text(content: Any) -> str:
    # Not sorted: the order of a config's settings is the order in which a table names them.
    return json.dumps(content, separators=(",", ":"))


def _signature(*paths: Path) -> Signature:
    """What changes when a file does; two files with the same are taken for the same."""
    found: Signature = []
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:
            raise UnreadableFile(path, "the file is missing") from None
        except OSError as error:
            raise UnreadableFile(path, f"cannot be read ({error})") from error
        found += [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return found
