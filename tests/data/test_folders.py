"""A folder of pictures as a data set: layout, order, identity, and broken input found before training."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from steppe.data import ImageFolders, check_dataset, open_dataset, verification
from steppe.errors import SteppeError


def test_names_labels_and_pictures(make_folders) -> None:
    root = make_folders()
    dataset = open_dataset(root)
    assert (dataset.name, dataset.spec) == ("photos", str(root))
    assert dataset.domains == ("north", "south", "west")
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels("south").tolist() == [0] * 5 + [1] * 5
    assert dataset.labels("south").dtype == np.int64
    assert dataset.concepts("south") is None
    assert dataset.key("south", 6) == "south/dog/1.png"
    with Image.open(root / "south/dog/1.png") as expected:
        assert np.array_equal(np.asarray(dataset.image("south", 6)), np.asarray(expected))


def test_spec_opens_the_same_set_from_elsewhere(make_folders, monkeypatch, tmp_path) -> None:
    root = make_folders()
    monkeypatch.chdir(root.parent)
    dataset = open_dataset("photos")
    assert dataset.spec == str(root)
    monkeypatch.chdir("/")
    assert open_dataset(dataset.spec).fingerprint() == dataset.fingerprint()
    monkeypatch.chdir(root)
    assert open_dataset(".").name == "photos"


def test_order_is_that_of_torchvisions_image_folder(make_folders) -> None:
    """Names chosen so that sorting by whole path, by stem or without case would differ."""
    root = make_folders(classes=["b", "a", "a b", "B"], each=0)
    names = ["10.png", "2.png", "B.PNG", "b.png", "a/1.png", "a.png", "a b/1.png", "a/b/3.png", "é.jpg", "Z.jpeg"]
    for folder in root.glob("*/*"):
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2)).save(path, "PNG")
    dataset = open_dataset(root)
    for domain in dataset.domains:
        expected = ImageFolder(str(root / domain))
        assert dataset.classes == tuple(expected.classes)
        ours = [str(root / dataset.key(domain, index)) for index in range(dataset.size(domain))]
        assert list(zip(ours, dataset.labels(domain).tolist(), strict=True)) == expected.samples


def test_hidden_and_other_files_are_left_out(make_folders) -> None:
    root = make_folders(domains=["north", "south"], each=2)
    before = open_dataset(root).fingerprint()
    (root / "north/cat/._0.png").write_bytes(b"what macOS leaves")
    (root / "north/cat/Thumbs.db").write_bytes(b"what Windows leaves")
    (root / ".git/objects").mkdir(parents=True)
    (root / "north/.cache").mkdir()
    (root / "north/cat/.thumbnails").mkdir()
    shutil.copy(root / "north/cat/0.png", root / "north/cat/.thumbnails/0.png")
    (root / "README.md").write_text("about")
    after = open_dataset(root)
    assert after.domains == ("north", "south")
    assert after.size("north") == 4
    assert after.fingerprint() == before


def test_links_are_followed_and_loops_are_not(make_folders, tmp_path) -> None:
    root = make_folders(domains=["north"], each=2)
    (root / "linked").symlink_to(root / "north")
    (root / "north/cat/again").symlink_to(root / "north/cat")
    dataset = open_dataset(root)
    assert dataset.size("linked") == dataset.size("north") == 4


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "JPG"])
def test_suffixes(suffix: str, make_folders) -> None:
    root = make_folders(domains=["north", "south"], classes=["cat"], each=0)
    for domain in ("north", "south"):
        picture = Image.new("RGB", (9, 7), (10, 200, 90))
        picture.save(root / domain / "cat" / f"x.{suffix}")
    dataset = open_dataset(root)
    assert dataset.image("north", 0).size == (9, 7)


class TestLayoutErrors:
    def test_class_missing_in_a_domain_names_both(self, make_folders) -> None:
        root = make_folders()
        shutil.rmtree(root / "south/dog")
        with pytest.raises(SteppeError, match=r"class 'dog' has no pictures in domain 'south' of .*'north' has it"):
            open_dataset(root)

    def test_empty_class_folder(self, make_folders) -> None:
        root = make_folders()
        for picture in (root / "west/cat").iterdir():
            picture.unlink()
        with pytest.raises(SteppeError, match="class 'cat' has no pictures in domain 'west'"):
            open_dataset(root)

    def test_class_folder_empty_everywhere(self, make_folders) -> None:
        root = make_folders()
        for domain in ("north", "south", "west"):
            (root / domain / "notes").mkdir()
        with pytest.raises(SteppeError, match=r"class 'notes' has no pictures in domain 'north' .* nor in any other"):
            open_dataset(root)

    def test_empty_domain(self, make_folders) -> None:
        root = make_folders()
        (root / "east").mkdir()
        with pytest.raises(SteppeError, match=r"domain 'east' of .* has no pictures; expected .*<domain>/<class>"):
            open_dataset(root)

    def test_level_of_classes_missing(self, make_folders) -> None:
        root = make_folders(domains=["cats"])
        with pytest.raises(SteppeError, match=r"0\.png lies in the domain itself, the level of classes is missing"):
            open_dataset(root / "cats")

    def test_no_folders(self, tmp_path) -> None:
        with pytest.raises(SteppeError, match="has no folders in it"):
            open_dataset(tmp_path)

    def test_a_file(self, tmp_path) -> None:
        file = tmp_path / "photos.zip"
        file.write_bytes(b"PK")
        with pytest.raises(SteppeError, match=r"photos\.zip is not a folder"):
            open_dataset(file)


class TestBrokenPictures:
    def test_truncated_file_is_found_on_opening(self, make_folders) -> None:
        root = make_folders()
        victim = root / "west/dog/3.png"
        victim.write_bytes(victim.read_bytes()[:60])
        with pytest.raises(SteppeError, match=f"cannot decode the picture {victim}"):
            open_dataset(root)

    def test_all_of_them_are_reported(self, make_folders) -> None:
        root = make_folders()
        victims = sorted(root.glob("*/dog/*.png"))[:7]
        for victim in victims:
            victim.write_text("<html>")
        with pytest.raises(SteppeError, match="and 2 more") as caught:
            open_dataset(root)
        assert str(victims[0]) in str(caught.value)
        problems = check_dataset(root)
        assert len(problems) == 7
        assert all(str(victim) in problem for victim, problem in zip(victims, problems, strict=True))

    def test_mended_file_is_looked_at_again(self, make_folders) -> None:
        root = make_folders()
        victim = root / "west/dog/3.png"
        good = victim.read_bytes()
        victim.write_bytes(good[:60])
        assert check_dataset(root)
        victim.write_bytes(good)
        assert check_dataset(root) == ()

    def test_file_broken_after_a_good_check_is_found(self, make_folders) -> None:
        root = make_folders()
        open_dataset(root)
        victim = root / "west/dog/3.png"
        victim.write_bytes(bytes(victim.stat().st_size))
        with pytest.raises(SteppeError, match=str(victim)):
            open_dataset(root)


class TestMemory:
    def test_second_opening_reads_no_picture(self, make_folders, monkeypatch) -> None:
        root = make_folders()
        first = open_dataset(root).fingerprint()
        read = []
        monkeypatch.setattr(verification, "decoding_problem", lambda path, content: read.append(path) or "")
        assert open_dataset(root).fingerprint() == first
        assert read == []
        os.utime(root / "north/cat/2.png", ns=(1, 1))
        assert open_dataset(root).fingerprint() == first
        assert read == [root / "north/cat/2.png"]

    @pytest.mark.parametrize(
        "content", ["", "[]", '{"format": 1, "files": {"north/cat/0.png": [1]}}', '{"format": 99}']
    )
    def test_memory_that_is_not_ours_is_ignored(self, content: str, make_folders, own_cache) -> None:
        root = make_folders()
        first = open_dataset(root).fingerprint()
        (memory,) = (own_cache / "checked").iterdir()
        memory.write_text(content)
        assert open_dataset(root).fingerprint() == first
        assert len(json.loads(memory.read_text())["files"]) == 30

    def test_works_without_a_writable_cache(self, make_folders, monkeypatch, tmp_path) -> None:
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("STEPPE_CACHE", str(tmp_path / "file" / "cache"))
        assert len(open_dataset(make_folders()).fingerprint()) == 16

    def test_interrupted_check_is_remembered(self, make_folders, monkeypatch, own_cache) -> None:
        root = make_folders()
        monkeypatch.setattr(verification, "BLOCK", 4)
        decode = verification.decoding_problem

        def interrupted(path: Path, content: bytes) -> str:
            if path == root / "south/dog/1.png":
                raise KeyboardInterrupt
            return decode(path, content)

        monkeypatch.setattr(verification, "decoding_problem", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_dataset(root)
        (memory,) = (own_cache / "checked").iterdir()
        assert 12 <= len(json.loads(memory.read_text())["files"]) < 30


class TestFingerprint:
    def test_copy_elsewhere_is_the_same_data(self, make_folders, tmp_path) -> None:
        root = make_folders()
        copy = tmp_path / "elsewhere" / "photos"
        shutil.copytree(root, copy, copy_function=shutil.copy)  # new times
        assert open_dataset(copy).fingerprint() == open_dataset(root).fingerprint()

    def test_changes_with_content_name_class_and_number(self, make_folders) -> None:
        root = make_folders()
        seen = {open_dataset(root).fingerprint()}
        target = root / "north/cat/0.png"
        Image.new("RGB", (24, 20), (1, 2, 3)).save(target)
        seen.add(open_dataset(root).fingerprint())
        target.rename(target.with_name("renamed.png"))
        seen.add(open_dataset(root).fingerprint())
        target.with_name("renamed.png").rename(root / "north/dog/renamed.png")
        seen.add(open_dataset(root).fingerprint())
        (root / "north/dog/renamed.png").unlink()
        seen.add(open_dataset(root).fingerprint())
        assert len(seen) == 5

    def test_same_size_and_time_of_another_content_is_seen_in_a_fresh_cache(self, make_folders, monkeypatch, tmp_path):
        root = make_folders()
        target = root / "north/cat/0.bmp"
        Image.new("RGB", (8, 8), (1, 2, 3)).save(target)
        first = ImageFolders(root).fingerprint()
        Image.new("RGB", (8, 8), (3, 2, 1)).save(target)
        monkeypatch.setenv("STEPPE_CACHE", str(tmp_path / "other"))
        assert ImageFolders(root).fingerprint() != first


@pytest.mark.parametrize("level", ["picture", "class", "root"])
def test_a_name_that_is_no_text_is_refused_before_training(make_folders, level: str) -> None:
    root = make_folders()
    old = {"picture": root / "north/cat/0.png", "class": root / "north/cat", "root": root}[level]
    new = old.with_name("0\udcff\udce9.png")
    try:
        old.rename(new)
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    with pytest.raises(SteppeError, match="is not UTF-8 text: rename it") as caught:
        open_dataset(new if level == "root" else root)
    assert r"0\udcff\udce9.png" in str(caught.value)
    str(caught.value).encode()
