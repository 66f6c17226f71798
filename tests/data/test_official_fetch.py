"""`steppe data fetch` on the five sets, from archives in exactly the official layouts, on a server of this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from miniatures import (
    ARCHIVES,
    SETS,
    contents,
    miniature,
    picture,
    tarred,
    write_archives,
    write_files,
    write_folder,
    zipped,
)
from range_server import serve

from steppe.data import OfficialFolders, fetch_official
from steppe.data import download as download_module
from steppe.data.checking import check_official
from steppe.data.manifest import NAME, read_manifest
from steppe.data.official import OFFICIAL, Version
from steppe.data.official_sources import SOURCES, Download, Source
from steppe.errors import SteppeError

every = pytest.mark.parametrize("name", SETS)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEPPE_DATA", raising=False)
    monkeypatch.setattr(download_module, "PAUSE", 0.001)


def at(address: str, name: str) -> Source:
    """The set's source with the addresses of a server of this machine."""

    def moved(download: Download) -> Download:
        return Download(download.file, f"{address}/{download.file}", download.also)

    source = SOURCES[name]
    return Source(tuple(map(moved, source.archives)), tuple(map(moved, source.lists)))


def files_in(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def pictures_in(root: Path) -> dict[str, bytes]:
    return {path: content for path, content in files_in(root).items() if path.count("/") == 2}


class TestWholeSets:
    @every
    def test_over_http(self, name: str, tmp_path: Path) -> None:
        official = miniature(name)
        write_archives(official, tmp_path / "server")
        with serve(tmp_path / "server") as (address, behaviour):
            root = fetch_official(official, tmp_path / "data" / official.folder, source=at(address, name))
        assert root == tmp_path / "data" / official.folder
        assert pictures_in(root) == contents(official)
        assert [path.name for path in root.parent.iterdir()] == [official.folder], "nothing else stays"
        asked = {path.rpartition("/")[2] for path, _ in behaviour.asked}
        assert set(ARCHIVES[name]) <= asked
        dataset = OfficialFolders(official, root)
        assert dataset.domains == tuple(domain.name for domain in official.domains)
        assert set(read_manifest(root) or {}) == set(contents(official))
        assert check_official(official, root).lines == ()

    @every
    def test_from_a_folder_of_archives(self, name: str, tmp_path: Path) -> None:
        official = miniature(name)
        packages = write_archives(official, tmp_path / "packages")
        before = files_in(packages)
        root = fetch_official(official, tmp_path / official.folder, packages)
        assert pictures_in(root) == contents(official)
        assert files_in(packages) == before

    @every
    def test_domainbed_finds_the_domains_and_nothing_else(self, name: str, tmp_path: Path) -> None:
        """It takes every folder of the set, hidden ones too, for a domain."""
        official = miniature(name)
        root = fetch_official(official, tmp_path / "set", write_archives(official, tmp_path / "packages"))
        assert sorted(entry.name for entry in os.scandir(root) if entry.is_dir()) == list(official.folders)

    def test_where_it_goes(self, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        official = miniature("pacs")
        packages = write_archives(official, tmp_path / "packages")
        assert fetch_official(official, packages=packages) == own_cache / "domainbed" / "PACS"
        monkeypatch.setenv("STEPPE_DATA", str(tmp_path / "sets"))
        assert fetch_official(official, packages=packages) == tmp_path / "sets" / "PACS"

    def test_archives_under_the_names_that_browsers_save(self, tmp_path: Path) -> None:
        for name, other in (("officehome", "OfficeHomeDataset_10072016.zip"), ("pacs", "kfold.zip")):
            official = miniature(name)
            packages = write_archives(official, tmp_path / name)
            (packages / ARCHIVES[name][0]).rename(packages / other)
            assert pictures_in(fetch_official(official, tmp_path / f"{name}-set", packages)) == contents(official)

    def test_lists_and_annotations_stay_with_the_set(self, tmp_path: Path) -> None:
        for name, kept in (("domainnet", "quickdraw_test.txt"), ("terra-incognita", "trans_val_annotations.json")):
            official = miniature(name)
            root = fetch_official(official, tmp_path / name, write_archives(official, tmp_path / f"{name}-packages"))
            assert (root / kept).is_file()
            (root / NAME).unlink()
            victim = next(iter(contents(official)))
            (root / victim).unlink()
            assert f"{root}: missing: {victim}" in check_official(official, root).problems

    def test_a_picture_with_two_animals_lies_in_both_classes(self, tmp_path: Path) -> None:
        official = miniature("terra-incognita", classes=2, each=1)
        packages = write_archives(official, tmp_path / "packages")
        names = {path.split("/")[0]: path.split("/")[2] for path in contents(official)}
        categories = [{"id": index, "name": label} for index, label in enumerate(official.classes)]
        images = [
            {"id": folder, "file_name": name, "location": folder.partition("_")[2]} for folder, name in names.items()
        ]
        labels = [{"image_id": folder, "category_id": index} for folder in names for index in (0, 1)]
        content = json.dumps({"categories": categories, "images": images, "annotations": labels}).encode()
        parts = ("cis_test", "cis_val", "train", "trans_test", "trans_val")
        nothing = json.dumps({"categories": [], "images": [], "annotations": []}).encode()
        tarred(
            packages / "eccv_18_annotations.tar.gz",
            {
                f"eccv_18_annotation_files/{part}_annotations.json": content if part == "train" else nothing
                for part in parts
            },
        )
        figures = dict.fromkeys(official.classes, (1,) * 4)
        official = dataclasses.replace(official, versions=(Version("", (2,) * 4, figures),))
        root = fetch_official(official, tmp_path / "set", packages)
        name = names["location_38"]
        first, second = (root / "location_38" / label / name for label in official.classes)
        assert first.read_bytes() == second.read_bytes()


class TestRefused:
    def test_other_figures_are_never_put_in_place(self, tmp_path: Path) -> None:
        official = miniature("pacs")
        packages = write_archives(official, tmp_path / "packages")
        files = {f"kfold/{path}": content for path, content in contents(official).items()}
        files.pop(next(path for path in files if "/photo/" in path))
        zipped(packages / "PACS.zip", files)
        root = tmp_path / "data" / "PACS"
        with pytest.raises(SteppeError) as caught:
            fetch_official(official, root, packages)
        told = str(caught.value)
        assert told.startswith("what was fetched is not PACS as published: domain 'photo' has 5 pictures instead of 6")
        assert f"It is kept in {root.parent}/.PACS.fetching: remove that to begin anew" in told
        assert not root.exists()

    def test_a_class_too_many_is_seen(self, tmp_path: Path) -> None:
        official = miniature("vlcs")
        packages = write_archives(official, tmp_path / "packages")
        extra = {"VLCS/SUN09/horse/1.jpg": picture(7)}
        tarred(packages / "VLCS.tar.gz", {f"VLCS/{p}": c for p, c in contents(official).items()} | extra)
        with pytest.raises(SteppeError, match="domain 'sun' has a class 'horse', which the set does not have"):
            fetch_official(official, tmp_path / "VLCS", packages)

    def test_a_listed_picture_that_the_archive_lacks(self, tmp_path: Path) -> None:
        official = miniature("domainnet")
        packages = write_archives(official, tmp_path / "packages")
        own = {path: content for path, content in contents(official).items() if path.startswith("sketch/")}
        own.pop(next(iter(own)))
        zipped(packages / "sketch.zip", own)
        with pytest.raises(SteppeError, match="domain 'sketch' has 5 pictures instead of 6"):
            fetch_official(official, tmp_path / "domain_net", packages)

    def test_a_folder_without_the_archives(self, tmp_path: Path) -> None:
        (tmp_path / "packages").mkdir()
        address = SOURCES["officehome"].archives[0].address
        with pytest.raises(SteppeError) as caught:
            fetch_official("officehome", tmp_path / "set", tmp_path / "packages")
        assert str(caught.value) == (
            f"there is no office_home.zip or OfficeHomeDataset_10072016.zip in {tmp_path}/packages; get {address}"
        )

    @every
    def test_a_page_instead_of_the_archive(self, name: str, tmp_path: Path) -> None:
        packages = write_archives(miniature(name), tmp_path / "packages")
        victim = packages / ARCHIVES[name][-1]
        victim.write_bytes(b"<!DOCTYPE html>quota exceeded")
        with pytest.raises(SteppeError, match=rf"{victim} is not a whole archive .*\. Get it again: http"):
            fetch_official(miniature(name), tmp_path / "set", packages)
        assert victim.exists(), "what someone has got by hand is left alone"
        assert not (tmp_path / "set").exists()

    def test_a_page_from_the_server_is_not_kept(self, tmp_path: Path) -> None:
        official = miniature("vlcs")
        write_archives(official, tmp_path / "server")
        whole = (tmp_path / "server/VLCS.tar.gz").read_bytes()
        (tmp_path / "server/VLCS.tar.gz").write_bytes(b"<!DOCTYPE html>quota exceeded")
        with serve(tmp_path / "server") as (address, _):
            with pytest.raises(SteppeError, match=r"not a whole archive .* It was removed\. The same command"):
                fetch_official(official, tmp_path / "VLCS", source=at(address, "vlcs"))
            (tmp_path / "server/VLCS.tar.gz").write_bytes(whole)
            root = fetch_official(official, tmp_path / "VLCS", source=at(address, "vlcs"))
        assert pictures_in(root) == contents(official)

    def test_an_archive_of_something_else(self, tmp_path: Path) -> None:
        zipped(tmp_path / "packages.zip", {"photos/1.jpg": picture(1)}).rename(tmp_path / "PACS.zip")
        with pytest.raises(SteppeError, match=r"PACS\.zip holds no pictures of PACS"):
            fetch_official("pacs", tmp_path / "set", tmp_path)

    def test_a_server_that_refuses_says_what_a_person_can_do(self, tmp_path: Path) -> None:
        with serve(tmp_path) as (address, _), pytest.raises(SteppeError) as caught:
            fetch_official("vlcs", tmp_path / "VLCS", source=at(address, "vlcs"))
        told = str(caught.value)
        assert told.startswith(
            f"cannot fetch {address}/VLCS.tar.gz: Not Found (404). The same command goes on from here."
        )
        assert f"open {address}/VLCS.tar.gz in a browser, save it as VLCS.tar.gz in a folder" in told
        assert "steppe data fetch vlcs --packages FOLDER" in told
        assert OFFICIAL["vlcs"].page in told

    def test_something_else_in_the_way(self, tmp_path: Path) -> None:
        write_files(tmp_path / "PACS", {"notes.txt": b"mine"})
        with pytest.raises(
            SteppeError, match=f"{tmp_path}/PACS exists and is not PACS as published: domain 'art' is mis"
        ):
            fetch_official("pacs", tmp_path / "PACS", tmp_path)
        assert files_in(tmp_path / "PACS") == {"notes.txt": b"mine"}

    def test_unknown_set(self) -> None:
        with pytest.raises(SteppeError, match="unknown data set to fetch 'pasc'; did you mean 'pacs'"):
            fetch_official("pasc")

    def test_a_parent_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(SteppeError, match=r"cannot (write|read) "):
            fetch_official("pacs", tmp_path / "file" / "PACS", tmp_path)


class TestAgain:
    def test_what_is_there_is_not_fetched_and_not_touched(self, tmp_path: Path) -> None:
        official = miniature("pacs")
        root = write_folder(official, tmp_path / "PACS")
        assert fetch_official(official, root, tmp_path / "no packages") == root
        assert (root / NAME).is_file(), "it is remembered from then on"
        assert pictures_in(root) == contents(official)

    def test_into_an_empty_folder(self, tmp_path: Path) -> None:
        """DomainBed's script, stopped early, leaves one."""
        official = miniature("pacs")
        (tmp_path / "PACS").mkdir()
        root = fetch_official(official, tmp_path / "PACS", write_archives(official, tmp_path / "packages"))
        assert pictures_in(root) == contents(official)

    def test_after_a_failure_only_what_is_missing_is_fetched(self, tmp_path: Path) -> None:
        official = miniature("domainnet")
        write_archives(official, tmp_path / "server")
        (tmp_path / "server/quickdraw.zip").rename(tmp_path / "later.zip")
        root = tmp_path / "data" / "domain_net"
        with serve(tmp_path / "server") as (address, behaviour):
            with pytest.raises(SteppeError, match=r"quickdraw\.zip: Not Found"):
                fetch_official(official, root, source=at(address, "domainnet"))
            assert not root.exists()
            behaviour.asked.clear()
            (tmp_path / "later.zip").rename(tmp_path / "server/quickdraw.zip")
            fetch_official(official, root, source=at(address, "domainnet"))
        assert [path for path, _ in behaviour.asked] == ["/quickdraw.zip", "/real.zip", "/sketch.zip"]
        assert pictures_in(root) == contents(official)

    def test_what_a_kill_after_the_last_step_left_is_removed(self, tmp_path: Path) -> None:
        official = miniature("pacs")
        root = write_folder(official, tmp_path / "PACS")
        write_files(tmp_path / ".PACS.fetching", {"archives/PACS.zip": b"gigabytes"})
        fetch_official(official, root, tmp_path / "no packages")
        assert [path.name for path in tmp_path.iterdir()] == ["PACS"]

    def test_a_picture_that_cannot_be_read_is_told(self, tmp_path: Path) -> None:
        official = miniature("vlcs")
        packages = tmp_path / "packages"
        packages.mkdir()
        files = contents(official)
        victim = next(iter(files))
        tarred(packages / "VLCS.tar.gz", {f"VLCS/{path}": b"no" if path == victim else c for path, c in files.items()})
        with pytest.raises(SteppeError, match=rf"(?s)is there, with faults:.*cannot decode the picture .*{victim}"):
            fetch_official(official, tmp_path / "VLCS", packages)

    def test_one_published_with_its_end_missing_is_remembered_as_it_is(self, tmp_path: Path) -> None:
        official = miniature("vlcs")
        packages = tmp_path / "packages"
        packages.mkdir()
        files = contents(official)
        victim = next(iter(files))
        files[victim] = files[victim][:-40]
        tarred(packages / "VLCS.tar.gz", {f"VLCS/{path}": content for path, content in files.items()})
        root = fetch_official(official, tmp_path / "VLCS", packages)
        assert check_official(official, root).lines == ()
        (root / victim).write_bytes(files[victim][:-5])
        (told, truncated) = check_official(official, root).lines
        assert told == f"{root}: changed: {victim}: {len(files[victim]) - 5} bytes instead of {len(files[victim])}"
        assert f"cannot decode the picture {root / victim}: " in truncated


PROGRAM = """
import sys
sys.path[:0] = {path!r}
from miniatures import miniature
from test_official_fetch import at
from pathlib import Path
from steppe.data import fetch_official
fetch_official(miniature({name!r}, each={each}), Path({root!r}), source=at({address!r}, {name!r}))
"""


def child(name: str, root: Path, address: str, each: int) -> subprocess.Popen[bytes]:
    here = str(Path(__file__).parent)
    script = textwrap.dedent(PROGRAM).format(path=[here], name=name, root=str(root), address=address, each=each)
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)


def wait_for(condition, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < end
        time.sleep(0.002)


class TestKilled:
    """SIGKILL in the middle; the same command then makes the same set."""

    def test_while_downloading(self, tmp_path: Path) -> None:
        official = miniature("vlcs", each=60)
        write_archives(official, tmp_path / "server")
        size = (tmp_path / "server/VLCS.tar.gz").stat().st_size
        root = tmp_path / "data" / "VLCS"
        part = tmp_path / "data/.VLCS.fetching/archives/VLCS.tar.gz.part"
        with serve(tmp_path / "server") as (address, behaviour):
            behaviour.pause = 0.02
            process = child("vlcs", root, address, each=60)
            wait_for(lambda: part.exists() and part.stat().st_size > size // 4, process)
            process.send_signal(signal.SIGKILL)
            process.wait()
            have = part.stat().st_size
            assert have < size
            assert not root.exists()
            behaviour.pause = 0
            behaviour.asked.clear()
            fetch_official(official, root, source=at(address, "vlcs"))
            assert behaviour.asked == [("/VLCS.tar.gz", f"bytes={have}-")]
        assert pictures_in(root) == contents(official)

    def test_while_unpacking(self, tmp_path: Path) -> None:
        official = miniature("pacs", each=150)
        write_archives(official, tmp_path / "server")
        root = tmp_path / "data" / "PACS"
        tree = tmp_path / "data/.PACS.fetching/set"
        with serve(tmp_path / "server") as (address, behaviour):
            process = child("pacs", root, address, each=150)
            wait_for(lambda: (tree / "art_painting/elephant").exists() or root.exists(), process)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not root.exists(), "the rest was unpacked faster than the signal came"
            found = len(pictures_in(tree))
            assert 0 < found < 12 * 150
            behaviour.asked.clear()
            fetch_official(official, root, source=at(address, "pacs"))
            assert behaviour.asked == [], "the archive was there"
        assert pictures_in(root) == contents(official)

    def test_two_at_once(self, tmp_path: Path) -> None:
        official = miniature("pacs")
        write_archives(official, tmp_path / "server")
        root = tmp_path / "data" / "PACS"
        with serve(tmp_path / "server") as (address, behaviour):
            behaviour.pause = 0.3
            process = child("pacs", root, address, each=2)
            wait_for(lambda: bool(behaviour.asked), process)
            with pytest.raises(SteppeError, match=f"another process is fetching into {root}"):
                fetch_official(official, root, source=at(address, "pacs"))
            assert process.wait(120) == 0
        assert pictures_in(root) == contents(official)


def test_the_addresses_are_those_of_domainbeds_script() -> None:
    """facebookresearch/DomainBed b93c22a, domainbed/scripts/download.py, written down a second time."""
    by_set = {name: [archive.address for archive in source.archives] for name, source in SOURCES.items()}
    lila = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps/"
    boston = "http://csr.bu.edu/ftp/visda/2019/multi-source/"
    assert list(by_set) == list(OFFICIAL)
    assert by_set == {
        "pacs": ["https://drive.google.com/uc?id=1JFr8f805nMUelQWWmfnJR3y4_SYoN5Pd"],
        "vlcs": ["https://drive.google.com/uc?id=1skwblH1_okBwxWxmRsp9_qi15hyPpxg8"],
        "officehome": ["https://drive.google.com/uc?id=1uY0pj7oFsjMxRwaD3Sxy0jgel0fsYXLC"],
        "terra-incognita": [f"{lila}eccv_18_annotations.tar.gz", f"{lila}eccv_18_all_images_sm.tar.gz"],
        "domainnet": [
            f"{boston}groundtruth/clipart.zip",
            f"{boston}infograph.zip",
            f"{boston}groundtruth/painting.zip",
            f"{boston}quickdraw.zip",
            f"{boston}real.zip",
            f"{boston}sketch.zip",
        ],
    }
    assert SOURCES["domainnet"].lists[5].address == f"{boston}domainnet/txt/painting_test.txt"
