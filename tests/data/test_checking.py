"""`steppe data check`: every picture that is missing, surplus, changed or unreadable is named."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from miniatures import SETS, contents, miniature, picture, split_into_lists, write_folder

from steppe.data import check_dataset, examine_dataset, open_dataset
from steppe.data.checking import check_official
from steppe.data.manifest import NAME, Entry, changed, missing_and_surplus, read_manifest, write_manifest
from steppe.data.verification import Record, survey
from steppe.errors import SteppeError

every = pytest.mark.parametrize("name", SETS)


def damage(root: Path, paths: list[str]) -> dict[str, str]:
    """One picture of each kind of fault; kind → path."""
    missing, garbled, truncated, silent = paths[0], paths[3], paths[7], paths[11]
    surplus = f"{Path(paths[5]).parent.as_posix()}/zz.png"
    (root / missing).unlink()
    (root / surplus).write_bytes(picture(998, ".png"))
    (root / garbled).write_text("<html>")
    whole = (root / truncated).read_bytes()
    (root / truncated).write_bytes(whole[:-40])
    (root / silent).write_bytes(picture(997, Path(silent).suffix))  # a good picture, and another one
    return {"missing": missing, "surplus": surplus, "garbled": garbled, "truncated": truncated, "silent": silent}


@every
def test_every_kind_of_fault_is_named_once_remembered(name: str, tmp_path: Path) -> None:
    official = miniature(name)
    root = write_folder(official, tmp_path / official.folder)
    assert check_official(official, root, remember=True).lines == ()
    at = damage(root, sorted(contents(official)))
    findings = check_official(official, root)
    told = "\n".join(findings.problems)
    assert f"{root}: missing: {at['missing']}" in findings.problems
    assert f"{root}: surplus: {at['surplus']}" in findings.problems
    assert f"cannot decode the picture {root / at['garbled']}: it is not a picture" in told
    for kind in ("garbled", "truncated", "silent"):
        assert f"{root}: changed: {at[kind]}" in told
    (in_part,) = findings.in_part
    assert in_part.startswith(f"cannot decode the picture {root / at['truncated']}: ")
    assert in_part.endswith("(it is read as far as it goes)")
    named = [line for line in findings.problems if "missing: " in line or "surplus: " in line]
    assert len(named) == 2


@every
def test_without_a_list_the_figures_say_where(name: str, tmp_path: Path) -> None:
    official = miniature(name)
    root = write_folder(official, tmp_path / official.folder)
    victim = sorted(contents(official))[0]
    (root / victim).unlink()
    folder, label, _ = victim.split("/")
    domain = official.domain_in(folder).name
    assert check_official(official, root).problems == (
        f"{root}: domain {domain!r} has 5 pictures instead of 6",
        f"{root}: class {label!r} of domain {domain!r} has 1 pictures instead of 2",
        f"{root}: which files these are cannot be said: nothing lists what belongs to this copy; on a whole one "
        f"`steppe data check {name} --remember` writes such a list",
    )


def test_domainnets_own_lists_name_the_files(tmp_path: Path) -> None:
    official = miniature("domainnet")
    root = write_folder(official, tmp_path / "domain_net")
    split_into_lists(official, root)
    assert check_official(official, root).lines == ()
    paths = sorted(contents(official))
    (root / paths[0]).unlink()
    shutil.copy(root / paths[1], root / "clipart" / official.classes[0] / "clipart_001_999999.jpg")
    problems = check_official(official, root).problems
    assert problems == (
        f"{root}: missing: {paths[0]}",
        f"{root}: surplus: clipart/{official.classes[0]}/clipart_001_999999.jpg",
    ), "the figures are right, the files are not"


def test_a_domain_that_is_gone_is_one_line(tmp_path: Path) -> None:
    official = miniature("pacs")
    root = write_folder(official, tmp_path / "PACS")
    check_official(official, root, remember=True)
    shutil.rmtree(root / "sketch")
    assert check_official(official, root).problems == (
        f"{root}: domain 'sketch' is missing (there is no folder sketch)",
    )


def test_a_class_folder_that_is_gone_or_too_many(tmp_path: Path) -> None:
    official = miniature("pacs")
    root = write_folder(official, tmp_path / "PACS")
    (root / "photo/dog").rename(root / "photo/Dog")
    (root / "splits").mkdir()
    problems = check_official(official, root).problems
    assert f"{root}: class 'dog' has no pictures in domain 'photo'" in problems
    assert f"{root}: domain 'photo' has a class 'Dog', which the set does not have" in problems
    assert f"{root}: surplus: the folder splits is no domain of the set (DomainBed would take it for one)" in problems
    assert not any("0 pictures" in line for line in problems)


class TestRemembering:
    @pytest.fixture
    def root(self, make_folders) -> Path:
        return make_folders()

    def test_any_folder(self, root: Path) -> None:
        findings = examine_dataset(root, remember=True)
        assert (findings.lines, findings.manifest) == ((), root / NAME)
        assert check_dataset(root) == ()
        (root / "south/dog/3.png").unlink()
        (root / "west/cat/0.png").rename(root / "west/cat/9.png")
        (root / "north/cat/1.png").write_bytes(picture(996, ".png"))
        size = len(picture(996, ".png"))
        assert [line for line in check_dataset(root) if "changed" not in line] == [
            f"{root}: missing: south/dog/3.png",
            f"{root}: missing: west/cat/0.png",
            f"{root}: surplus: west/cat/9.png",
        ]
        assert any(f"changed: north/cat/1.png: {size} bytes instead of" in line for line in check_dataset(root))
        shutil.rmtree(root / "north")
        assert sum(f"{root}: missing: north/" in line for line in check_dataset(root)) == 10

    def test_a_class_that_is_gone_is_named_file_by_file(self, root: Path) -> None:
        examine_dataset(f"folder:{root}", remember=True)
        shutil.rmtree(root / "south/dog")
        first, *rest = check_dataset(root)
        assert first.startswith(f"class 'dog' has no pictures in domain 'south' of {root}; 'north' has it")
        assert rest == [f"{root}: missing: south/dog/{index}.png" for index in range(5)]
        assert check_dataset(f"folder:{root}") == (first, *rest)

    def test_nothing_is_remembered_while_something_is_wrong(self, root: Path) -> None:
        (root / "south/dog/3.png").write_text("no")
        findings = examine_dataset(root, remember=True)
        assert findings.manifest is None
        assert len(findings.problems) == 1
        assert not (root / NAME).exists()

    def test_damage_is_not_remembered_over_an_older_manifest(self, root: Path) -> None:
        examine_dataset(root, remember=True)
        before = (root / NAME).read_bytes()
        (root / "south/dog/3.png").unlink()
        assert examine_dataset(root, remember=True).manifest is None
        assert (root / NAME).read_bytes() == before

    def test_it_moves_with_a_copy_and_changes_nothing_else(self, root: Path, tmp_path: Path) -> None:
        fingerprint = open_dataset(root).fingerprint()
        examine_dataset(root, remember=True)
        copy = shutil.copytree(root, tmp_path / "elsewhere" / "copy")
        (copy / "north/dog/2.png").unlink()
        assert check_dataset(copy) == (f"{copy}: missing: north/dog/2.png",)
        assert open_dataset(root).fingerprint() == fingerprint
        assert open_dataset(root).domains == ("north", "south", "west")

    def test_bits_that_a_disk_has_lost_are_found_when_asked_again(self, root: Path) -> None:
        """Size and time of the file are as before."""
        examine_dataset(root, remember=True)
        victim = root / "south/dog/3.png"
        status, other = victim.stat(), picture(995, ".png")
        content = bytearray(victim.read_bytes())
        content[-5] ^= 1  # in the checksum of the last chunk, which decoders do not look at
        victim.write_bytes(content)
        os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert other != bytes(content)
        assert check_dataset(root) == ()
        assert examine_dataset(root, again=True).problems == (f"{root}: changed: south/dog/3.png",)

    def test_sets_with_checksums_of_their_own(self) -> None:
        assert examine_dataset("emoji").lines == ()
        with pytest.raises(SteppeError, match="'emoji' is held against published checksums; there is nothing to rem"):
            examine_dataset("emoji", remember=True)

    def test_a_folder_that_cannot_be_written(self, root: Path) -> None:
        (root / NAME).mkdir()
        with pytest.raises(SteppeError, match=f"cannot read {root / NAME}"):
            examine_dataset(root, remember=True)


class TestManifest:
    def test_kept_and_read_back(self, make_folders) -> None:
        root = make_folders()
        records = survey(root, open_dataset(root).files())  # type: ignore[attr-defined]
        path = write_manifest(root, records)
        first = path.read_bytes()
        entries = read_manifest(root)
        assert entries == {file: Entry(record.digest, record.size) for file, record in records.items()}
        assert entries["north/cat/0.png"].size == (root / "north/cat/0.png").stat().st_size
        write_manifest(root, dict(reversed(records.items())))
        assert path.read_bytes() == first, "the manifest of the same pictures is the same file"

    def test_none(self, tmp_path: Path) -> None:
        assert read_manifest(tmp_path) is None

    @given(names=st.sets(st.text(min_size=1).filter(lambda name: name.isprintable() or "\n" in name or "\t" in name)))
    def test_names_of_any_kind(self, names: set[str], tmp_path_factory: pytest.TempPathFactory) -> None:
        names = {name.encode("utf-8", "ignore").decode() for name in names} | {'a"\\\t\n\r\x85\u2028b'}
        root = tmp_path_factory.mktemp("names")
        records = {name: Record(number, 0, f"{number:032x}", "") for number, name in enumerate(names)}
        write_manifest(root, records)
        assert read_manifest(root) == {name: Entry(record.digest, record.size) for name, record in records.items()}

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"not gzip",
            gzip.compress(b""),
            gzip.compress(b"[]\n"),
            gzip.compress(b'{"format": 1, "files": 1}\n'),
            gzip.compress(b'{"format": 1, "files": 1}\nabc\n'),
            gzip.compress(b'{"format": 1, "files": 1}\nabc\tx\tname\n'),
            gzip.compress(b'{"format": 9, "files": 0}\n'),
            gzip.compress(b'{"format": 1, "files": 0}\n')[:-3],
        ],
    )
    def test_damaged(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / NAME).write_bytes(content)
        with pytest.raises(SteppeError, match=rf"{tmp_path / NAME}.*; remove it; `steppe data check --rememb"):
            read_manifest(tmp_path)

    @given(
        listed=st.sets(st.integers(0, 40).map(str)),
        present=st.sets(st.integers(0, 40).map(str)),
        touched=st.sets(st.integers(0, 40).map(str)),
    )
    def test_differences(self, listed: set[str], present: set[str], touched: set[str]) -> None:
        lines = list(missing_and_surplus(listed, present))
        assert {line.removeprefix("missing: ") for line in lines if line.startswith("m")} == listed - present
        assert {line.removeprefix("surplus: ") for line in lines if line.startswith("s")} == present - listed
        entries = {name: Entry("old", 5) for name in listed}
        records = {name: Record(5, 0, "new" if name in touched else "old", "") for name in present}
        assert {line.removeprefix("changed: ") for line in changed(entries, records)} == listed & present & touched
