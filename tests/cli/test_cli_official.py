"""The command line on DomainBed's sets: PACS with its 9,991 (small) pictures, the others where they are not there."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from command_line import complaint
from miniatures import SETS, file_name, picture, spread, write_counts

from steppe.cli import run
from steppe.data import OFFICIAL

PACS = OFFICIAL["pacs"]


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("STEPPE_DATA", raising=False)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    status = run([str(argument) for argument in arguments])
    return status, capsys.readouterr().out


def whole_pacs(path: Path) -> Path:
    """The archive in its official layout, with the official number of pictures of every class of every domain."""
    small = [picture(number, ".png") for number in range(50)]
    with zipfile.ZipFile(path, "w") as archive:
        for folder, by_class in spread(PACS, PACS.versions[0]).items():
            for label, count in by_class.items():
                for number in range(count):
                    name = file_name(PACS, folder, label, number)
                    archive.writestr(f"kfold/{folder}/{label}/{name}", small[number % len(small)])
    return path


def test_fetched_listed_checked_damaged_and_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "run `steppe data fetch pacs`, or set STEPPE_DATA" in complaint(capsys, "bench", "pacs")
    (tmp_path / "downloads").mkdir()
    whole_pacs(tmp_path / "downloads" / "PACS.zip")
    status, told = printed(capsys, "data", "fetch", "pacs", "--packages", tmp_path / "downloads")
    root = tmp_path / "cache" / "domainbed" / "PACS"
    assert status == 0
    assert "PACS. No licence is stated; gathered for research" in told
    assert f"made {root}\nuse it: steppe bench pacs\n" in told

    monkeypatch.setenv("COLUMNS", "160")
    _, listed = printed(capsys, "data", "list")
    (row,) = [line.split() for line in listed.splitlines() if line.startswith("pacs ")]
    assert row == ["pacs", "art", "cartoon", "photo", "sketch", "7", "9,991", "here"]

    status, told = printed(capsys, "data", "check", "pacs")
    assert status == 0
    rows = [line.split() for line in told.splitlines()]
    assert ["dog", "379", "389", "189", "772"] in rows
    assert ["all", "2048", "2344", "1670", "3929"] in rows
    assert told.endswith("PACS as published\n\nevery picture can be read\n")

    gone, broken = root / "photo/house/pic_007.jpg", root / "sketch/dog/n5-1.png"
    gone.unlink()
    broken.write_text("no picture")
    status, told = printed(capsys, "data", "check", "pacs")
    assert status == 1
    assert told.splitlines() == [
        f"{root}: domain 'photo' has 1,669 pictures instead of 1,670",
        f"{root}: class 'house' of domain 'photo' has 279 pictures instead of 280",
        f"{root}: missing: photo/house/pic_007.jpg",
        f"{root}: changed: sketch/dog/n5-1.png: 10 bytes instead of {len(picture(5, '.png'))}",
        f"cannot decode the picture {broken}: it is not a picture in any known format",
    ]
    told = complaint(capsys, "train", "pacs", "--held-out", "sketch")
    assert "domain 'photo' has 1,669 pictures instead of 1,670" in told
    assert f"name it folder:{root}" in told


def test_the_list_fits_80_columns_and_names_every_domain(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = printed(capsys, "data", "list")
    assert status == 0
    assert max(map(len, told.splitlines())) <= 80
    for name in SETS:
        assert f"\n{name} " in told
        for domain in OFFICIAL[name].domains:
            assert domain.name in told
    assert "586,575" in told


def test_remembering_a_folder(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shutil.copytree(drawings, tmp_path / "set")
    status, told = printed(capsys, "data", "check", root, "--remember")
    assert (status, f"remembered in {root}/.steppe-manifest.gz" in told) == (0, True)
    victim = next((root / "line" / "face").iterdir())
    victim.unlink()
    status, told = printed(capsys, "data", "check", root, "--remember", "--again")
    assert status == 1
    assert f"{root}: missing: line/face/{victim.name}" in told
    assert "nothing was remembered" in told


def test_a_subset_is_used_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {folder: dict.fromkeys(PACS.classes, 3) for folder in PACS.folders}
    root = write_counts(tmp_path / "PACS", figures)
    told = complaint(capsys, "data", "sheet", root, "--out", tmp_path / "sheet.png")
    assert f"name it folder:{root}" in told
    status, _ = printed(capsys, "data", "sheet", f"folder:{root}", "--out", tmp_path / "sheet.png")
    assert status == 0
    status, told = printed(capsys, "data", "check", f"folder:{root}")
    assert (status, told.endswith("every picture can be read\n")) == (0, True)


def test_where_a_person_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = complaint_of_fetch(capsys, "domainnet", tmp_path)
    assert "there is no clipart_train.txt in" in told
    assert "http://csr.bu.edu/ftp/visda/2019/multi-source/domainnet/txt/clipart_train.txt" in told
    told = complaint_of_fetch(capsys, "terra-incognita", tmp_path)
    assert "there is no eccv_18_annotations.tar.gz in" in told


def complaint_of_fetch(capsys: pytest.CaptureFixture[str], name: str, packages: Path) -> str:
    assert run(["data", "fetch", name, "--packages", str(packages)]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{OFFICIAL[name].title}, ")
    assert captured.err.startswith("error: ")
    return captured.err
