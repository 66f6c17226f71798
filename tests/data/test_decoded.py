"""A cache of decoded pictures changes no pixel, keeps to its budgets, and is rebuilt where the files have changed."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import everything, make_photos, reader, save_noise
from PIL import Image

from steppe.data import (
    CacheOptions,
    DomainDataset,
    ImageFolders,
    balanced_loader,
    decoded,
    decoded_build,
    decoded_files,
    decoded_pictures,
    decoded_places,
    decoded_problems,
    eval_transform,
    evaluation_loader,
    open_dataset,
    train_transform,
)
from steppe.data.decoded import LARGE_BYTES, DecodedPictures
from steppe.data.decoded_build import GB, Budget, average_bytes, build, contents
from steppe.data.decoded_places import cache_places
from steppe.data.pictures import read_picture

ON = CacheOptions("on")
HALF = (0.5, 0.5, 0.5)


def cached(dataset: DomainDataset, options: CacheOptions = ON, says: list[str] | None = None) -> DecodedPictures:
    kept = decoded_pictures(dataset, options, say=[].append if says is None else says.append)
    assert isinstance(kept, DecodedPictures)
    return kept


def held(dataset: DecodedPictures) -> int:
    return sum(map(dataset.held, dataset.domains))


@pytest.fixture
def photos(tmp_path: Path) -> ImageFolders:
    return make_photos(tmp_path / "photos")


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever the cache decodes a picture."""
    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return decode(*arguments)

    decode = decoded_build._decode
    monkeypatch.setattr(decoded_build, "_decode", counted)
    return calls


def test_the_pixels_are_those_of_decoding(photos: ImageFolders) -> None:
    kept = cached(photos)
    assert held(kept) == 16
    assert everything(kept) == everything(photos)
    pixels = kept.pixels("south", 3)
    assert np.array_equal(pixels, np.asarray(photos.image("south", 3)))
    assert not pixels.flags.writeable
    kept.image("south", 3).putpixel((0, 0), (1, 2, 3))  # a picture of one's own
    assert everything(kept) == everything(photos)


def test_every_kind_of_file_comes_out_as_it_is_decoded(tmp_path: Path) -> None:
    folder = tmp_path / "kinds" / "a" / "x"
    folder.mkdir(parents=True)
    (tmp_path / "kinds" / "b" / "x").mkdir(parents=True)
    draw = np.random.default_rng(1)
    photo = Image.fromarray(draw.integers(0, 256, (20, 33, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "turned.jpg", exif=exif)
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("L").save(folder / "grey.jpg")
    photo.convert("P").save(folder / "palette.png", transparency=3)
    photo.convert("RGBA").save(folder / "clear.webp", lossless=True)
    Image.fromarray(draw.integers(0, 65536, (9, 7), dtype=np.uint16)).save(folder / "deep.png")
    photo.save(folder / "moving.gif", save_all=True, append_images=[photo.rotate(90)])
    Image.new("RGB", (1, 1), (7, 8, 9)).save(folder / "one.png")
    photo.resize((700, 2)).save(folder / "flat.bmp")
    photo.save(tmp_path / "kinds" / "b" / "x" / "plain.tiff")
    kinds = ImageFolders(tmp_path / "kinds")
    kept = cached(kinds)
    assert held(kept) == 10
    assert everything(kept) == everything(kinds)


def test_in_everything_else_it_is_the_data_set_that_it_wraps(photos: ImageFolders) -> None:
    kept = cached(photos)
    for name in ("name", "spec", "classes", "domains", "licence"):
        assert getattr(kept, name) == getattr(photos, name)
    assert kept.fingerprint() == photos.fingerprint()
    assert kept.labels("north").tolist() == photos.labels("north").tolist()
    assert [kept.key("south", i) for i in range(8)] == [photos.key("south", i) for i in range(8)]
    assert kept.concepts("north") is None
    assert kept.problems() == ()
    assert decoded_pictures(kept, ON) is kept


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 3])
def test_the_cache_workers_and_a_resume_change_no_pixel(photos: ImageFolders, workers: int, start: int) -> None:
    def batches(dataset: DomainDataset, first: int, helpers: int) -> list[torch.Tensor]:
        everywhere = {domain: np.arange(dataset.size(domain)) for domain in dataset.domains}
        loader = balanced_loader(
            dataset,
            everywhere,
            batch_per_domain=3,
            start=first,
            stop=6,
            seed=5,
            transform=train_transform(24, HALF, HALF),
            workers=helpers,
        )
        return [batch.x for batch in loader]

    expected = batches(photos, 0, 0)[start:]
    found = batches(cached(photos), start, workers)
    assert len(found) == 6 - start
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_evaluation_sees_the_same(photos: ImageFolders) -> None:
    def seen(dataset: DomainDataset) -> torch.Tensor:
        loader = evaluation_loader(
            dataset, "north", np.array([4, 0, 7]), batch_size=2, transform=eval_transform(24, HALF, HALF)
        )
        return torch.cat([x for x, _ in loader])

    assert torch.equal(seen(photos), seen(cached(photos)))


def test_nothing_is_decoded_a_second_time(photos: ImageFolders, decodings: list[int]) -> None:
    cached(photos)
    assert len(decodings) == 16
    before = sorted((path, path.stat().st_mtime_ns) for path in cache_places(photos.root)[0].iterdir())
    cached(ImageFolders(photos.root))
    assert len(decodings) == 16
    assert sorted((path, path.stat().st_mtime_ns) for path in cache_places(photos.root)[0].iterdir()) == before


def test_a_changed_file_and_a_new_one_are_decoded_again_and_no_other(
    photos: ImageFolders, decodings: list[int]
) -> None:
    cached(photos)
    draw = np.random.default_rng(9)
    save_noise(photos.root / "south" / "dog" / "002.jpg", (50, 20), draw)
    save_noise(photos.root / "south" / "dog" / "009.jpg", (20, 50), draw)
    (photos.root / "north" / "cat" / "000.jpg").unlink()
    now = ImageFolders(photos.root)
    kept = cached(now)
    assert len(decodings) == 18
    assert held(kept) == 16
    assert everything(kept) == everything(now)


def test_a_file_of_the_same_size_with_another_time_is_decoded_again(photos: ImageFolders, decodings: list[int]) -> None:
    cached(photos)
    os.utime(photos.root / "north" / "dog" / "001.jpg", ns=(1, 1))
    assert everything(cached(photos)) == everything(photos)
    assert len(decodings) == 17


def test_a_file_that_changes_after_the_cache_was_opened_is_as_it_was_then(photos: ImageFolders) -> None:
    kept = cached(photos)
    before = everything(kept)
    save_noise(photos.root / "north" / "cat" / "000.jpg", (9, 9), np.random.default_rng(3))
    assert everything(kept) == before


def test_pixels_of_another_decoder_are_not_used(
    photos: ImageFolders, decodings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(photos)
    for module in (decoded_build, decoded_files):
        monkeypatch.setattr(module, "decoder", lambda: "pillow 99")
    kept = cached(photos)
    assert len(decodings) == 32
    assert held(kept) == 16
    assert {shard.decoder for shard in contents(kept.directory).shards} == {"pillow 99"}


def test_what_is_no_longer_true_is_given_up(photos: ImageFolders) -> None:
    """A shard of which less than half is still true goes; what is true of it is written again."""
    directory = cached(photos).directory
    for number in range(5):
        for path in sorted(photos.root.rglob("*.jpg"))[:12]:
            os.utime(path, ns=(number, number))
        cached(photos)
    shards = contents(directory).shards
    true = sum(np.asarray(read_picture(photos.root / file)).nbytes for file in photos.files())
    assert sum(shard.size for shard in shards) < 2.5 * true
    assert everything(cached(photos)) == everything(photos)


# --- budgets ---


@settings(max_examples=15)
@given(shard=st.integers(1, 60_000), disk=st.integers(0, 90_000))
def test_shards_and_cache_stay_within_their_bytes(
    tmp_path_factory: pytest.TempPathFactory, shard: int, disk: int
) -> None:
    root = tmp_path_factory.getbasetemp() / "budgeted"
    photos = ImageFolders(root) if root.exists() else make_photos(root)
    directory = tmp_path_factory.mktemp("cache") / "pixels"
    sizes = {file: np.asarray(read_picture(root / file)).nbytes for file in photos.files()}
    reason = build(directory, root, photos.files(), reader(photos), Budget(disk, spare=0, shard=shard))
    found = contents(directory)
    assert sum(sizes[key] for key in found.found) <= disk
    assert bool(reason) == (len(found.found) < len(sizes))
    for each in found.shards:
        pixels = [entry.nbytes for entry in each.entries]
        assert sum(pixels) <= shard or len(pixels) == 1
    for key, (where, entry) in found.found.items():
        assert np.array_equal(where.file.pixels(*entry[2:5]), np.asarray(read_picture(root / key)))


def test_what_does_not_fit_is_decoded(photos: ImageFolders) -> None:
    says: list[str] = []
    kept = cached(photos, CacheOptions("on", disk_gb=20_000 / GB), says)
    assert [kept.held("north"), kept.held("south")] == [3, 2]
    assert everything(kept) == everything(photos)
    assert any("5 of 16 decoded pictures are kept" in line for line in says)


def test_a_larger_budget_goes_on_where_the_smaller_one_ended(photos: ImageFolders, decodings: list[int]) -> None:
    cached(photos, CacheOptions("on", disk_gb=20_000 / GB))
    before = len(decodings)
    assert held(cached(photos)) == 16
    assert len(decodings) == before + 11


def test_auto_leaves_small_pictures_alone(photos: ImageFolders) -> None:
    says: list[str] = []
    assert decoded_pictures(photos, say=says.append) is photos
    assert not says
    assert not cache_places(photos.root)[0].exists()


def test_auto_keeps_large_pictures_where_they_fit(tmp_path: Path) -> None:
    large = make_photos(tmp_path / "large", each=2, size=(150, 140))
    average = average_bytes([large.root / file for file in large.files()])
    assert average >= LARGE_BYTES
    says: list[str] = []
    few = CacheOptions("auto", disk_gb=7.5 * average / GB)
    assert decoded_pictures(large, few, say=says.append) is large
    assert "more than the" in says[0]
    assert "--cache-gb" in says[0]
    says.clear()
    kept = cached(large, CacheOptions("auto", disk_gb=8.5 * average / GB), says)
    assert held(kept) == 8
    assert says == [f"decoding pictures once, into {kept.directory} (--cache off: at every use)"]
    # What is there is used whatever the budget says now.
    assert held(cached(large, few)) == 8


def test_auto_keeps_no_more_than_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = make_photos(tmp_path / "large", each=2, size=(150, 140))
    total = 8 * average_bytes([large.root / file for file in large.files()])
    says: list[str] = []
    monkeypatch.setattr(decoded_places, "total_memory", lambda: int(1.9 * total))
    assert decoded_pictures(large, say=says.append) is large
    assert "more than half of the memory" in says[0]
    few = CacheOptions("auto", memory_gb=0.9 * total / GB)
    assert decoded_pictures(large, few, say=says.append) is large
    assert "--cache-memory-gb" in says[1]
    assert held(cached(large, CacheOptions("on", memory_gb=0.9 * total / GB))) == 7
    assert held(cached(large, CacheOptions("auto", memory_gb=1.1 * total / GB))) == 8


def test_the_memory_is_the_machines_or_less() -> None:
    assert 10**8 < decoded_places.total_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_off_is_off(photos: ImageFolders) -> None:
    cached(photos)
    assert decoded_pictures(photos, CacheOptions("off")) is photos


def test_sets_that_are_no_files_are_left_alone() -> None:
    emoji = open_dataset("emoji")
    assert decoded_pictures(emoji, ON) is emoji


def test_the_progress_goes_from_what_is_there_to_all(photos: ImageFolders) -> None:
    steps: list[tuple[int, int]] = []
    decoded_pictures(photos, ON, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 16) for done in range(17)]
    os.utime(photos.root / "north" / "dog" / "001.jpg", ns=(1, 1))
    steps.clear()
    decoded_pictures(photos, ON, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(15, 16), (16, 16)]


def mapped_kilobytes() -> int:
    """Of shards, in this process's memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            ours = line.endswith(".pixels")
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc/self/smaps")
def test_a_process_keeps_no_more_mapped_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = make_photos(tmp_path / "large", each=6, size=(300, 300))
    picture = 300 * 300 * 3 / 1000

    def most() -> int:
        kept = cached(large)
        seen = []
        for domain in kept.domains:
            for index in range(kept.size(domain)):
                kept.pixels(domain, index).sum()
                seen.append(mapped_kilobytes())
        assert everything(kept) == everything(large)
        return max(seen)

    budget = 4 * picture
    assert most() > 20 * picture * 0.9
    monkeypatch.setattr(decoded, "MAPPED_BYTES", int(budget * 1000))
    assert most() < budget + 2 * picture + 300  # the kernel maps up to 64 kB around what is read


def test_it_travels_to_spawned_workers(photos: ImageFolders) -> None:
    kept = cached(photos)
    everything(kept)
    sent = pickle.dumps(kept)
    assert len(sent) < 20_000
    assert everything(pickle.loads(sent)) == everything(photos)


def test_without_the_cache_directory_pictures_are_decoded(photos: ImageFolders) -> None:
    kept, other = cached(photos), cached(photos)
    kept.pixels("north", 0)  # mapped: stays readable
    shutil.rmtree(kept.directory)
    assert everything(kept) == everything(other) == everything(photos)
    assert held(other) == 0


def test_checking_finds_nothing_wrong(photos: ImageFolders) -> None:
    assert decoded_problems(photos) == ()
    assert decoded_problems(cached(photos)) == ()
    assert decoded_problems(open_dataset("emoji")) == ()
