"""Making EmojiStyles: on miniature packages in the layout of the real ones, and, where npm can be reached, on those."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steppe.data import check_dataset, emoji_build, fetch_emoji, list_datasets, open_dataset
from steppe.data.emoji import Drawing, embedded_emoji
from steppe.data.emoji_build import balanced, class_table, draw, ink, with_shared_concepts
from steppe.data.emoji_sources import PACKAGES, Package, Vector, code_points_of, locate, read
from steppe.errors import SteppeError

TABLE = [
    Drawing("1f435", "monkey face", "mammal", "1f435"),
    Drawing("2708", "airplane", "vehicle", "2708"),
    Drawing("1f9d1-200d-1f692", "firefighter", "person", "1f9d1-200d-1f692"),
]
FILES = ["1f435", "2708-fe0f", "1f9d1-200d-1f692"]
RED, GREEN, BLACK, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 0), (255, 255, 255)


def webp(colour: tuple[int, ...]) -> bytes:
    picture = Image.new("RGBA", (256, 256))
    picture.paste((*colour, 255), (64, 64, 192, 192))
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=True)
    return file.getvalue()


def iconify(size: int) -> dict[str, bytes]:
    """Icons drawn in the surrounding text's colour, in a picture half as high as wide, and in red."""
    icons = {
        "monkey-face": {"body": '<rect x="4" y="4" width="24" height="24" fill="currentColor"/>'},
        "airplane": {"body": '<rect width="32" height="16" fill="green"/>', "height": 16},
        "firefighter": {"body": '<rect x="4" y="4" width="24" height="24" fill="red"/>'},
        "unused": {"body": "<path/>"},
    }
    chars = {"1f435": "monkey-face", "2708-fe0f": "airplane", "1f9d1-200d-1f692": "firefighter", "1f4a9": "unused"}
    return {
        "package/icons.json": json.dumps({"icons": icons, "width": size, "height": size}).encode(),
        "package/chars.json": json.dumps(chars).encode(),
    }


def openmoji() -> dict[str, bytes]:
    svg = (
        '<svg id="emoji" viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">\n  <g id="line">\n'
        '    <circle cx="36" cy="36" r="20" fill="none" stroke="#000" stroke-width="2"/>\n  </g>\n</svg>'
    )
    return {f"package/black/svg/{name.upper()}.svg": svg.encode() for name in FILES}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four tarballs, which for this test are the pinned ones, for a table of three things."""
    folder = tmp_path / "packages"
    folder.mkdir()
    contents = {
        "fluent": {f"package/assets/{name}.webp": webp(RED) for name in FILES},
        "noto": iconify(32),
        "twemoji": iconify(32),
        "line": openmoji(),
    }
    pinned = []
    for package in PACKAGES:
        write_tarball(folder / package.file_name, contents[package.style])
        pinned.append(repinned(package, folder))
    monkeypatch.setattr(emoji_build, "PACKAGES", tuple(pinned))
    monkeypatch.setattr(emoji_build, "class_table", lambda: list(TABLE))
    return folder


def write_tarball(path: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"package/package.json": b"{}", **contents}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def repinned(package: Package, folder: Path) -> Package:
    digest = hashlib.sha512((folder / package.file_name).read_bytes()).digest()
    return dataclasses.replace(package, integrity="sha512-" + base64.b64encode(digest).decode())


def test_a_set_is_made_from_tarballs_and_opens(packages: Path, own_cache: Path) -> None:
    with pytest.raises(SteppeError, match="run `steppe data fetch emoji`"):
        open_dataset("emoji-full")
    assert list_datasets()[1].status == "not here: steppe data fetch emoji"
    directory = fetch_emoji(packages=packages)
    assert directory == own_cache / "emoji-full"
    dataset = open_dataset("emoji-full")
    assert dataset.domains == ("fluent", "noto", "twemoji", "line")
    assert dataset.classes == ("mammal", "person", "vehicle")
    assert [dataset.key("line", index) for index in range(3)] == ["1f435", "2708", "1f9d1-200d-1f692"]
    assert dataset.labels("noto").tolist() == [0, 2, 1]
    assert check_dataset("emoji-full") == ()
    assert (list_datasets()[1].status, list_datasets()[1].pictures) == ("here", 12)
    assert (directory / "LICENSES" / "CC-BY-SA-4.0.txt").is_file()


def test_drawing_rules(packages: Path, tmp_path: Path) -> None:
    dataset = open_dataset(fetch_emoji(tmp_path / "out", packages))
    assert dataset.spec == str(tmp_path / "out")
    monkey, plane, firefighter = (dataset.image("noto", index) for index in range(3))
    assert monkey.getpixel((32, 32)) == BLACK  # currentColor
    assert firefighter.getpixel((32, 32)) == RED
    assert [plane.getpixel((32, y)) for y in (0, 15, 16, 47, 48, 63)] == [WHITE, WHITE, GREEN, GREEN, WHITE, WHITE]
    fluent = np.asarray(dataset.image("fluent", 0))
    assert (fluent[16:48, 16:48] == RED).all()
    assert ink(fluent).sum() == 32 * 32
    line = np.asarray(dataset.image("line", 0))
    assert (line[32, 32] == WHITE).all()
    assert 0.03 < ink(line).mean() < 0.12


def test_a_drawing_that_reaches_over_its_edge_is_drawn_smaller_and_whole() -> None:
    inside = draw(Vector('<rect width="36" height="36"/>', 36, 36))
    assert ink(inside).all()
    overflowing = ink(draw(Vector('<rect x="-1" y="-1" width="38" height="38"/>', 36, 36)))
    border = np.ones_like(overflowing)
    border[1:-1, 1:-1] = False
    assert not overflowing[border].any()
    assert overflowing[4:-4, 4:-4].all()


def test_things_that_a_style_draws_alike_are_one_concept() -> None:
    """b looks like a in noto and c like b in line, so the three are one; d looks like a but is of another class."""
    names = {"a": "vehicle", "b": "vehicle", "c": "vehicle", "d": "person", "e": "vehicle"}
    drawings = [Drawing(name, name, class_name, name) for name, class_name in names.items()]
    shades = {"noto": (10, 12, 90, 10, 200), "line": (10, 90, 91, 10, 200)}
    pictures = {style: [np.full((4, 4, 3), s, np.uint8) for s in values] for style, values in shades.items()}
    found = with_shared_concepts(drawings, pictures)
    assert [drawing.concept for drawing in found] == ["a", "a", "a", "d", "e"]


def test_a_second_run_writes_the_same_and_mends_damage(packages: Path, own_cache: Path) -> None:
    directory = fetch_emoji(packages=packages)
    before = {path.name: path.read_bytes() for path in directory.glob("*.*")}
    (directory / "noto.webp").write_bytes(b"broken")
    assert check_dataset("emoji-full")
    fetch_emoji(packages=packages)
    assert {path.name: path.read_bytes() for path in directory.glob("*.*")} == before
    assert check_dataset("emoji-full") == ()


def test_wrong_checksum_stops_before_anything_is_written(packages: Path, own_cache: Path) -> None:
    victim = packages / "iconify-json-noto-1.2.9.tgz"
    write_tarball(victim, iconify(64))
    with pytest.raises(SteppeError, match=r"noto-1\.2\.9\.tgz is not the @iconify-json/noto 1\.2\.9 .* checksum"):
        fetch_emoji(packages=packages)
    assert not (own_cache / "emoji-full" / "manifest.json").exists()


def test_missing_tarball_names_the_command_that_makes_it(packages: Path) -> None:
    (packages / "openmoji-17.0.0.tgz").unlink()
    with pytest.raises(SteppeError, match=r"openmoji-17\.0\.0\.tgz does not exist; `npm pack openmoji@17\.0\.0`"):
        fetch_emoji(packages=packages)


def test_package_without_a_wanted_drawing(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        emoji_build, "class_table", lambda: [*TABLE, Drawing("1f40d", "snake", "bird_fish_bug", "1f40d")]
    )
    with pytest.raises(SteppeError, match=r"@lobehub/fluent-emoji-3d 1\.1\.0 has no drawing of 1f40d"):
        fetch_emoji(packages=packages)


def test_blank_drawing_is_refused(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = {f"package/assets/{name}.webp": webp(WHITE) for name in FILES}
    write_tarball(packages / PACKAGES[0].file_name, blank)
    pinned = (repinned(PACKAGES[0], packages), *emoji_build.PACKAGES[1:])
    monkeypatch.setattr(emoji_build, "PACKAGES", pinned)
    with pytest.raises(SteppeError, match=r"monkey face \(1f435\) is blank in style 'fluent' \(0\.0% ink\)"):
        fetch_emoji(packages=packages)


def test_without_resvg(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(SteppeError, match="pip install resvg_py"):
        fetch_emoji(packages=packages)


def test_output_that_cannot_be_written(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SteppeError, match=r"cannot write .*file/set/fluent\.webp: Not a directory"):
        fetch_emoji(tmp_path / "file" / "set", packages)


def test_without_npm(packages: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SteppeError, match=r"npm is not installed: install Node\.js, .* --packages FOLDER"):
        fetch_emoji()


def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "npm"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for npm is a shell script")
class TestNpm:
    def test_is_asked_for_the_pinned_versions(self, packages: Path, tmp_path: Path, monkeypatch) -> None:
        """The stand-in hands out the tarballs under the names that the real npm gives them."""
        log = tmp_path / "log"
        fake_npm(tmp_path, monkeypatch, f'echo "$1 $2" >> {log}\ncp {packages}/*.tgz .\n')
        fetch_emoji()
        assert log.read_text().splitlines() == [f"pack {package.name}@{package.version}" for package in PACKAGES]
        assert check_dataset("emoji-full") == ()

    def test_failure_shows_what_npm_said(self, packages: Path, tmp_path: Path, monkeypatch) -> None:
        fake_npm(tmp_path, monkeypatch, 'echo "npm error code ENOTFOUND" >&2\nexit 1\n')
        with pytest.raises(SteppeError, match=r"(?s)`npm pack @lobehub.*ENOTFOUND.*--packages FOLDER"):
            fetch_emoji()


def test_code_points() -> None:
    assert code_points_of("1F9D1-200D-2708-FE0F") == "1f9d1-200d-2708"


def test_balanced_part_is_spread_over_each_class() -> None:
    chosen = balanced(class_table())
    assert [drawing.code_points for drawing in chosen] == [d.code_points for d in embedded_emoji().drawings]
    faces = [drawing for drawing in class_table() if drawing.class_name == "face"]
    gaps = np.diff([faces.index(drawing) for drawing in chosen if drawing.class_name == "face"])
    assert set(gaps.tolist()) == {2, 3}


@pytest.mark.network
@pytest.mark.slow
def test_what_ships_is_what_the_published_packages_hold(tmp_path: Path) -> None:
    """Every shipped picture drawn again from the real packages; the one that reaches over its edge is known."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    asked = ["npm", "view", "openmoji@17.0.0", "version", "--fetch-retries=0", "--fetch-timeout=10000"]
    if subprocess.run(asked, capture_output=True, check=False, timeout=60).returncode:
        pytest.skip("no package registry can be reached")
    emoji = embedded_emoji()
    overflowing = []
    for package in PACKAGES:
        wanted = [drawing.code_points for drawing in emoji.drawings]
        sources = read(package, locate(package, None, tmp_path), wanted)
        for index, drawing in enumerate(emoji.drawings):
            source = sources[drawing.code_points]
            shipped = np.asarray(emoji.image(package.style, index), dtype=int)
            # Not to the bit: another version of resvg may round an edge differently.
            assert np.abs(draw(source) - shipped).mean() < 0.5, (package.style, drawing.name)
            if isinstance(source, Vector) and emoji_build._render(source).size != (256, 256):
                overflowing.append((package.style, drawing.name))
    assert overflowing == [("twemoji", "cockroach")]
