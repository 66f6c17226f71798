"""DomainBed's split against a second implementation of its rule, and what the two protocols promise."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.data import make_splits, open_dataset, split_indices
from steppe.data.domains import DomainDataset
from steppe.errors import SteppeError


def domainbed(n: int, trial_seed: int, domain_index: int, holdout: float) -> tuple[list[int], list[int]]:
    """The published rule, written from its description with lists and hexadecimal, apart from the package's code."""
    text = f"({trial_seed}, {domain_index})"
    seed = int(hashlib.md5(text.encode("utf-8")).hexdigest(), 16) % (2**31)
    keys = list(range(n))
    np.random.RandomState(seed).shuffle(keys)
    count = int(n * holdout)
    return keys[count:], keys[:count]


@given(
    n=st.integers(0, 400),
    trial_seed=st.integers(0, 50),
    domain_index=st.integers(0, 9),
    holdout=st.floats(0.01, 0.99),
)
def test_split_is_domainbeds(n: int, trial_seed: int, domain_index: int, holdout: float) -> None:
    kept, out = split_indices(n, trial_seed, domain_index, holdout)
    assert (kept.tolist(), out.tolist()) == domainbed(n, trial_seed, domain_index, holdout)
    assert kept.dtype == out.dtype == np.int64


def test_split_of_a_known_case() -> None:
    """Written down once: a NumPy that shuffled in another way would change every published split."""
    kept, out = split_indices(10, 0, 1)
    assert (kept.tolist(), out.tolist()) == ([3, 7, 8, 6, 1, 2, 9, 4], [5, 0])


def test_numpy_integers_give_the_same_split() -> None:
    plain = split_indices(50, 3, 2)
    numpy = split_indices(50, np.int64(3), np.int64(2))
    assert [part.tolist() for part in numpy] == [part.tolist() for part in plain]


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_holdout_must_be_a_share(holdout: float) -> None:
    with pytest.raises(SteppeError, match="between 0 and 1"):
        split_indices(10, 0, 0, holdout)


@pytest.fixture(scope="module")
def emoji() -> DomainDataset:
    return open_dataset("emoji")


@pytest.mark.parametrize("held_out", ["fluent", "noto", "twemoji", "line"])
@pytest.mark.parametrize("trial_seed", [0, 1, 7])
def test_strict_parts_share_no_concept(emoji: DomainDataset, held_out: str, trial_seed: int) -> None:
    splits = make_splits(emoji, held_out, trial_seed=trial_seed)
    assert (splits.protocol, splits.answer, splits.in_domain) == ("strict", "test", "test")
    concepts: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for domain in emoji.domains:
        names = emoji.concepts(domain)
        assert names is not None
        for part, seen in concepts.items():
            seen.update(names[splits.evaluation[domain][part]].tolist())
    assert not concepts["train"] & concepts["validation"]
    assert not concepts["train"] & concepts["test"]
    assert not concepts["validation"] & concepts["test"]
    assert set().union(*concepts.values()) == set(names.tolist())


def test_strict_takes_60_15_25_of_every_class(emoji: DomainDataset) -> None:
    splits = make_splits(emoji, "line")
    for domain in emoji.domains:
        labels = emoji.labels(domain)
        sizes = np.bincount(labels)
        for part, share in (("train", 0.60), ("validation", 0.15), ("test", 0.25)):
            counts = np.bincount(labels[splits.evaluation[domain][part]], minlength=len(emoji.classes))
            assert (np.abs(counts - share * sizes) <= 1).all()


def test_strict_partition_is_the_same_for_every_domain_and_held_out_domain(emoji: DomainDataset) -> None:
    tests = set()
    for held_out in emoji.domains:
        splits = make_splits(emoji, held_out, trial_seed=4)
        for domain in emoji.domains:
            names = emoji.concepts(domain)
            assert names is not None
            tests.add(tuple(sorted(names[splits.evaluation[domain]["test"]].tolist())))
    assert len(tests) == 1


def test_trial_seed_changes_the_strict_partition(emoji: DomainDataset) -> None:
    first, second = (make_splits(emoji, "line", trial_seed=seed).train["noto"].tolist() for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("protocol", ["strict", "domainbed"])
def test_training_and_selection_never_see_the_held_out_domain(emoji: DomainDataset, protocol: str) -> None:
    splits = make_splits(emoji, "noto", protocol=protocol)
    assert list(splits.train) == list(splits.validation) == ["fluent", "twemoji", "line"]
    assert splits.evaluation["noto"]["all"].tolist() == list(range(383))
    assert all("all" not in splits.evaluation[domain] for domain in splits.train)
    for domain, indices in splits.train.items():
        parts = [splits.train[domain], splits.validation[domain]]
        assert not set(parts[0].tolist()) & set(parts[1].tolist())
        assert indices.tolist() == sorted(indices.tolist())


def test_domainbed_protocol_uses_each_domains_own_index(emoji: DomainDataset) -> None:
    splits = make_splits(emoji, "noto", protocol="domainbed", trial_seed=2)
    assert (splits.answer, splits.in_domain) == ("in", "out")
    for number, domain in enumerate(emoji.domains):
        kept, out = domainbed(emoji.size(domain), 2, number, 0.2)
        assert splits.evaluation[domain]["in"].tolist() == sorted(kept)
        assert splits.evaluation[domain]["out"].tolist() == sorted(out)
    assert splits.train["line"] is splits.evaluation["line"]["in"]
    assert splits.validation["line"] is splits.evaluation["line"]["out"]


def test_auto_is_domainbeds_for_folders(make_folders) -> None:
    splits = make_splits(open_dataset(make_folders()), "south")
    assert splits.protocol == "domainbed"
    assert {domain: len(indices) for domain, indices in splits.train.items()} == {"north": 8, "west": 8}


def test_unknown_domain_names_near_matches(emoji: DomainDataset) -> None:
    with pytest.raises(SteppeError, match="did you mean 'twemoji'"):
        make_splits(emoji, "twemojis")


def test_unknown_protocol(emoji: DomainDataset) -> None:
    with pytest.raises(SteppeError, match="did you mean 'strict'"):
        make_splits(emoji, "noto", protocol="strikt")


def test_the_only_domain_cannot_be_held_out(make_folders) -> None:
    with pytest.raises(SteppeError, match="one domain, 'north'"):
        make_splits(open_dataset(make_folders(domains=["north"])), "north")


def test_strict_needs_concepts(make_folders) -> None:
    with pytest.raises(SteppeError, match="use the protocol 'domainbed'"):
        make_splits(open_dataset(make_folders()), "north", protocol="strict")


def test_too_few_pictures_to_hold_any_out(make_folders) -> None:
    with pytest.raises(SteppeError, match=r"'north' of 'photos' has 4 pictures, too few to hold out 0\.2"):
        make_splits(open_dataset(make_folders(each=2)), "south")


class Reduced(DomainDataset):
    """EmojiStyles with some pictures of one domain left out."""

    def __init__(self, whole: DomainDataset, domain: str, keep: np.ndarray) -> None:
        self.name, self.spec, self.classes, self.domains = whole.name, whole.spec, whole.classes, whole.domains
        self._whole, self._domain, self._keep = whole, domain, keep

    def _kept(self, domain: str) -> np.ndarray:
        return self._keep if domain == self._domain else np.arange(self._whole.size(domain))

    def labels(self, domain: str) -> np.ndarray:
        return self._whole.labels(domain)[self._kept(domain)]

    def concepts(self, domain: str) -> np.ndarray | None:
        names = self._whole.concepts(domain)
        return None if names is None else names[self._kept(domain)]

    def image(self, domain: str, index: int):
        return self._whole.image(domain, int(self._kept(domain)[index]))

    def key(self, domain: str, index: int) -> str:
        return self._whole.key(domain, int(self._kept(domain)[index]))

    def fingerprint(self) -> str:
        return self._whole.fingerprint()


def test_domain_without_pictures(emoji: DomainDataset) -> None:
    with pytest.raises(SteppeError, match="domain 'noto' of 'emoji' has no pictures"):
        make_splits(Reduced(emoji, "noto", np.array([], dtype=np.int64)), "line")


def test_domain_lacking_a_class(emoji: DomainDataset) -> None:
    without = np.flatnonzero(emoji.labels("noto") != emoji.classes.index("hand"))
    with pytest.raises(SteppeError, match="class 'hand' has no pictures in domain 'noto'"):
        make_splits(Reduced(emoji, "noto", without), "line")


def test_domain_without_a_concept_of_some_part(emoji: DomainDataset) -> None:
    """Its pictures would train or select, and nothing of it could be tested on."""
    tested = make_splits(emoji, "line").evaluation["noto"]["test"]
    without = np.setdiff1d(np.arange(emoji.size("noto")), tested)
    with pytest.raises(SteppeError, match=r"'noto' of 'emoji' has no picture of a test concept \(trial seed 0\)"):
        make_splits(Reduced(emoji, "noto", without), "line")


def test_class_with_too_few_concepts_for_a_strict_split(emoji: DomainDataset) -> None:
    class Small(Reduced):
        def _kept(self, domain: str) -> np.ndarray:
            return self._keep

    few = np.concatenate([np.flatnonzero(emoji.labels("noto") == label)[:2] for label in range(len(emoji.classes))])
    with pytest.raises(SteppeError, match=r"class 'bird_fish_bug' of 'emoji' has 2 concepts, too few .* 'domainbed'"):
        make_splits(Small(emoji, "noto", few), "line")


def test_concept_of_two_classes(emoji: DomainDataset) -> None:
    class Contradictory(Reduced):
        def labels(self, domain: str) -> np.ndarray:
            labels = super().labels(domain)
            if domain == "line":
                labels[0] = emoji.classes.index("vehicle")
            return labels

    with pytest.raises(SteppeError, match="has two classes, 'bird_fish_bug' and 'vehicle'"):
        make_splits(Contradictory(emoji, "noto", np.arange(383)), "line")


def test_strict_stays_disjoint_when_a_domain_lacks_some_concepts(emoji: DomainDataset) -> None:
    keep = np.arange(0, emoji.size("noto"), 2)
    reduced = Reduced(emoji, "noto", keep)
    names = {domain: reduced.concepts(domain) for domain in reduced.domains}
    splits = make_splits(reduced, "noto")
    trained = {name for domain, part in splits.train.items() for name in names[domain][part].tolist()}
    assert not trained & set(names["noto"][splits.evaluation["noto"]["test"]].tolist())


def test_tests_do_not_write_into_the_users_cache(own_cache: Path) -> None:
    from steppe.data.cache import cache_directory

    assert cache_directory() == own_cache
