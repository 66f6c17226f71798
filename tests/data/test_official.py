"""DomainBed's five sets: the table, and opening by name and by folder, held against the official figures."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from miniatures import SETS, contents, miniature, spread, write_counts, write_files, write_folder
from PIL import Image

from steppe.data import OFFICIAL, ImageFolders, OfficialFolders, list_datasets, make_splits, open_dataset
from steppe.data import published_names as published
from steppe.data.official import recognise
from steppe.errors import SteppeError

TOTALS = {  # as published: pictures, classes, domains
    "pacs": (9_991, 7, 4),
    "vlcs": (10_729, 5, 4),
    "officehome": (15_588, 65, 4),
    "terra-incognita": (24_330, 10, 4),
    "domainnet": (586_575, 345, 6),
}
EVERY_VERSION = [
    ("pacs", 0),
    ("vlcs", 0),
    ("officehome", 0),
    ("terra-incognita", 0),
    ("terra-incognita", 1),
    pytest.param("domainnet", 0, marks=pytest.mark.slow),
]


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEPPE_DATA", raising=False)


class TestTable:
    @pytest.mark.parametrize("name", SETS)
    def test_totals_classes_domains(self, name: str) -> None:
        official = OFFICIAL[name]
        assert (official.versions[0].total, len(official.classes), len(official.domains)) == TOTALS[name]
        assert official.classes == tuple(sorted(set(official.classes)))
        for version in official.versions:
            assert len(version.pictures) == len(official.domains)
            if version.by_class:
                assert tuple(sorted(version.by_class)) == official.classes
                assert tuple(map(sum, zip(*version.by_class.values(), strict=True))) == version.pictures

    def test_figures_of_the_domains(self) -> None:
        """As the papers and project pages give them, written down here a second time."""
        assert OFFICIAL["pacs"].versions[0].pictures == (2048, 2344, 1670, 3929)
        assert OFFICIAL["vlcs"].versions[0].pictures == (1415, 2656, 3282, 3376)
        assert OFFICIAL["officehome"].versions[0].pictures == (2427, 4365, 4439, 4357)
        assert OFFICIAL["domainnet"].versions[0].pictures == (48129, 51605, 72266, 172500, 172947, 69128)
        today, paper = OFFICIAL["terra-incognita"].versions
        assert (today.name, today.total, today.pictures) == ("24,330", 24_330, (4741, 9736, 3970, 5883))
        assert (paper.name, paper.total, paper.pictures) == ("24,788", 24_788, (4879, 9767, 4020, 6122))

    @pytest.mark.parametrize("name", SETS)
    def test_the_order_of_the_domains_is_domainbeds(self, name: str) -> None:
        """It numbers them by the sorted names of the folders."""
        assert list(OFFICIAL[name].folders) == sorted(OFFICIAL[name].folders)

    def test_names_in_published_tables(self) -> None:
        assert published("pacs", "art") == ("PACS", "Art")
        assert published("officehome", "real-world") == ("OfficeHome", "Real World")
        assert published("terra-incognita", "L38") == ("TerraIncognita", "L38")
        assert published("pacs", "line") is published("emoji", "line") is None


class TestOpening:
    @pytest.mark.parametrize(("name", "version"), EVERY_VERSION)
    def test_a_whole_set_by_name_and_by_folder(
        self, name: str, version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        official = OFFICIAL[name]
        figures = official.versions[version]
        root = write_counts(tmp_path / "data" / official.folder, spread(official, figures))
        monkeypatch.setenv("STEPPE_DATA", str(tmp_path / "data"))
        dataset = open_dataset(name, verify=False)
        assert isinstance(dataset, OfficialFolders)
        assert (dataset.name, dataset.spec, dataset.root) == (name, name, root)
        assert dataset.version is figures
        assert dataset.domains == tuple(domain.name for domain in official.domains)
        assert dataset.classes == official.classes
        assert tuple(map(dataset.size, dataset.domains)) == figures.pictures
        assert dataset.licence == official.licence
        by_folder = open_dataset(root, verify=False)
        assert (by_folder.name, by_folder.spec, by_folder.domains) == (name, str(root), dataset.domains)

    def test_pictures_and_labels_are_those_of_domainbed(self, tmp_path: Path) -> None:
        """Its MultipleEnvironmentImageFolder: torchvision's ImageFolder on each folder, in sorted order."""
        from torchvision.datasets import ImageFolder  # takes seconds

        official = miniature("officehome", classes=4, each=3)
        dataset = OfficialFolders(official, write_folder(official, tmp_path / "office_home"))
        folders = sorted(path.name for path in dataset.root.iterdir() if path.is_dir())
        assert folders == ["Art", "Clipart", "Product", "Real World"]
        for domain, folder in zip(dataset.domains, folders, strict=True):
            expected = ImageFolder(str(dataset.root / folder))
            ours = [str(dataset.root / dataset.key(domain, index)) for index in range(dataset.size(domain))]
            assert list(zip(ours, dataset.labels(domain).tolist(), strict=True)) == expected.samples
            assert np.array_equal(np.asarray(dataset.image(domain, 5)), np.asarray(expected[5][0]))
        splits = make_splits(dataset, "real-world")
        assert (splits.protocol, sorted(splits.train)) == ("domainbed", ["art", "clipart", "product"])

    def test_survives_pickling(self, tmp_path: Path) -> None:
        """Workers get data sets so."""
        official = miniature("vlcs")
        dataset = OfficialFolders(official, write_folder(official, tmp_path / "VLCS"))
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy.key("pascal", 0) == dataset.key("pascal", 0)
        assert copy.fingerprint() == dataset.fingerprint()

    def test_found_in_the_cache_when_the_variable_is_not_set_or_lacks_it(
        self, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        official = OFFICIAL["vlcs"]
        root = write_counts(own_cache / "domainbed" / "VLCS", spread(official, official.versions[0]))
        assert open_dataset("vlcs", verify=False).root == root  # type: ignore[attr-defined]
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.setenv("STEPPE_DATA", str(tmp_path / "elsewhere"))
        assert open_dataset("vlcs", verify=False).root == root  # type: ignore[attr-defined]

    def test_not_here(self, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(SteppeError, match=r"no folder domain_net in .*; run `steppe data fetch domainnet`, or set"):
            open_dataset("domainnet")
        monkeypatch.setenv("STEPPE_DATA", str(tmp_path))
        with pytest.raises(SteppeError, match=rf"no folder PACS in {tmp_path} or {own_cache}/domainbed; run"):
            open_dataset("pacs")
        monkeypatch.setenv("STEPPE_DATA", str(tmp_path / "none"))
        with pytest.raises(SteppeError, match=f"STEPPE_DATA is set to {tmp_path}/none, which is not a folder"):
            open_dataset("pacs")

    def test_a_folder_above_the_sets_says_how(self, tmp_path: Path) -> None:
        write_folder(miniature("pacs", classes=7), tmp_path / "data" / "PACS")
        with pytest.raises(SteppeError, match=f"holds data sets and is none itself: open the folder {tmp_path}/data/"):
            open_dataset(tmp_path / "data")

    def test_an_archive_unpacked_one_level_too_deep(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_folder(miniature("pacs", classes=7), tmp_path / "PACS" / "kfold")
        monkeypatch.setenv("STEPPE_DATA", str(tmp_path))
        with pytest.raises(
            SteppeError, match="as published: the set lies in kfold: move its folders up; domain 'art' is"
        ):
            open_dataset("pacs")
        with pytest.raises(SteppeError, match=rf"is none itself: open the folder {tmp_path}/PACS/kfold$"):
            open_dataset(tmp_path / "PACS")


class TestRecognising:
    @pytest.mark.parametrize("name", SETS)
    def test_the_official_layout_whatever_the_folder_is_called(self, name: str, tmp_path: Path) -> None:
        official = OFFICIAL[name]
        figures = {folder: dict.fromkeys(official.classes, 1) for folder in official.folders}
        assert recognise(write_counts(tmp_path / "anything", figures)) is official

    def test_not_folders_that_share_names(self, make_folders) -> None:
        root = make_folders(domains=OFFICIAL["pacs"].folders, classes=["cat", "dog"], name="PACS")
        assert recognise(root) is None
        dataset = open_dataset(root)
        assert type(dataset) is ImageFolders
        assert (dataset.domains, dataset.name) == (("art_painting", "cartoon", "photo", "sketch"), "PACS")

    def test_not_some_of_the_domains(self, make_folders) -> None:
        root = make_folders(domains=OFFICIAL["pacs"].folders[:3], classes=OFFICIAL["pacs"].classes, each=1)
        assert type(open_dataset(root)) is ImageFolders

    def test_not_what_does_not_exist(self, tmp_path: Path) -> None:
        assert recognise(tmp_path / "none") is None
        (tmp_path / "file").write_text("")
        assert recognise(tmp_path / "file") is None


class TestDifferences:
    @pytest.fixture
    def official(self):
        return miniature("pacs", classes=3, each=3)

    @pytest.fixture
    def root(self, official, tmp_path: Path) -> Path:
        return write_folder(official, tmp_path / "PACS")

    def error(self, official, root: Path) -> str:
        with pytest.raises(SteppeError) as caught:
            OfficialFolders(official, root)
        return str(caught.value)

    def test_too_few_and_too_many(self, official, root: Path) -> None:
        (root / "photo/dog/pic_002.jpg").unlink()
        shutil.copy(root / "sketch/giraffe/n1-1.png", root / "sketch/giraffe/again.png")
        told = self.error(official, root)
        assert told.startswith(f"{root} is not PACS as published: domain 'photo' has 8 pictures instead of 9; ")
        assert "class 'dog' of domain 'photo' has 2 pictures instead of 3" in told
        assert "domain 'sketch' has 10 pictures instead of 9" in told
        assert "class 'giraffe' of domain 'sketch' has 4 pictures instead of 3" in told
        assert f"`steppe data check {root}` names files; `steppe data fetch pacs` gets the set anew" in told
        assert told.endswith(f"name it folder:{root}")

    def test_the_same_number_in_the_wrong_class(self, official, root: Path) -> None:
        (root / "photo/dog/pic_002.jpg").rename(root / "photo/giraffe/moved.jpg")
        told = self.error(official, root)
        assert "as published: class 'dog' of domain 'photo' has 2 pictures instead of 3; class 'giraffe' of" in told
        assert "; domain 'photo' has" not in told

    def test_missing_domain(self, official, root: Path) -> None:
        shutil.rmtree(root / "art_painting")
        assert "domain 'art' is missing (there is no folder art_painting)" in self.error(official, root)

    def test_wrong_class(self, official, root: Path) -> None:
        (root / "cartoon/dog").rename(root / "cartoon/Dog")
        told = self.error(official, root)
        assert "class 'dog' has no pictures in domain 'cartoon'" in told
        assert "domain 'cartoon' has a class 'Dog', which the set does not have" in told

    def test_other_folders_and_files_beside_the_domains_are_not_looked_at(self, official, root: Path) -> None:
        before = OfficialFolders(official, root)
        write_files(root, {"splits/photo_train.txt": b"", "readme.md": b"", ".git/objects/a.jpg": b""})
        after = OfficialFolders(official, root)
        assert (after.domains, after.fingerprint()) == (before.domains, before.fingerprint())

    def test_terra_incognita_names_the_closest_version(self, tmp_path: Path) -> None:
        official = OFFICIAL["terra-incognita"]
        for version, closest in zip(official.versions, ("24,330", "24,788"), strict=True):
            figures = spread(official, version)
            figures["location_43"]["empty"] -= 1
            root = write_counts(tmp_path / closest, figures)
            with pytest.raises(SteppeError) as caught:
                open_dataset(root, verify=False)
            count = version.pictures[2]
            assert f"has {count - 1:,} pictures instead of {count:,} (of the version with {closest})" in str(
                caught.value
            )

    def test_a_subset_on_purpose_is_opened_as_it_is(self, tmp_path: Path) -> None:
        root = write_folder(miniature("pacs", classes=7, each=2), tmp_path / "PACS")
        with pytest.raises(SteppeError, match=f"'art' has 14 pictures instead of 2,048; .* name it folder:{root}"):
            open_dataset(root)
        dataset = open_dataset(f"folder:{root}")
        assert type(dataset) is ImageFolders
        assert dataset.domains == ("art_painting", "cartoon", "photo", "sketch")
        assert (dataset.size("photo"), dataset.spec, dataset.name) == (14, f"folder:{root}", "PACS")
        assert open_dataset(dataset.spec).fingerprint() == dataset.fingerprint()

    def test_a_domain_by_another_of_its_names(self, official, root: Path) -> None:
        dataset = OfficialFolders(official, root)
        for other in ("art_painting", "Art", "A"):
            with pytest.raises(SteppeError, match=f"the domain '{other}' of 'pacs' is called 'art' here"):
                dataset.labels(other)
        with pytest.raises(SteppeError, match=r"unknown domain 'skech' of 'pacs'; did you mean 'sketch'"):
            make_splits(dataset, "skech")


class TestPicturesOfTheSets:
    def test_one_whose_data_end_too_soon_is_read_as_domainbed_reads_it(self, tmp_path: Path) -> None:
        """It sets Pillow's LOAD_TRUNCATED_IMAGES; the lower part comes out grey."""
        official = miniature("terra-incognita")
        files = contents(official)
        victim = next(path for path in files if path.startswith("location_43/"))
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        root = write_files(tmp_path / "terra_incognita", files)
        Image.fromarray(noise).save(root / victim, "JPEG", quality=90)
        whole = (root / victim).read_bytes()
        (root / victim).write_bytes(whole[: len(whole) // 2])
        dataset = OfficialFolders(official, root)
        assert dataset.problems() == ()
        index = [dataset.key("L43", i) for i in range(dataset.size("L43"))].index(victim)
        read = np.asarray(dataset.image("L43", index))
        assert read.shape == (64, 64, 3)
        assert (read[-8:] == 128).all()
        assert read[:16].std() > 30

    def test_one_that_cannot_be_read_at_all_is_an_error(self, tmp_path: Path) -> None:
        official = miniature("vlcs")
        root = write_folder(official, tmp_path / "VLCS")
        victim = next((root / "SUN09/bird").iterdir())
        victim.write_text("<html>")
        dataset = OfficialFolders(official, root)
        assert dataset.problems() == (f"cannot decode the picture {victim}: it is not a picture in any known format",)
        with pytest.raises(SteppeError, match=str(victim)):
            dataset.verify()


def test_the_list_says_which_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPPE_DATA", str(tmp_path))
    write_folder(miniature("pacs", classes=7, each=1), tmp_path / "PACS")
    (tmp_path / "VLCS" / "Caltech101").mkdir(parents=True)
    rows = {row.name: row for row in list_datasets()}
    assert [(name, rows[name].pictures, rows[name].classes) for name in SETS] == [
        (name, total, classes) for name, (total, classes, _) in TOTALS.items()
    ]
    assert (rows["pacs"].status, rows["pacs"].where) == ("here", tmp_path / "PACS")
    assert rows["vlcs"].status == "not whole: steppe data check vlcs"
    assert rows["officehome"].status == "not here: steppe data fetch officehome"
    assert rows["officehome"].domains == ("art", "clipart", "product", "real-world")
    assert "fair use" in rows["domainnet"].licence
