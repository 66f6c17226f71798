"""Which pictures train, which select the model and which give the answer, under two protocols.

*strict* keeps concepts apart: what is drawn in a training picture is drawn in no validation picture and in no picture
of the held-out domain's answer. *domainbed* is the rule of Gulrajani & Lopez-Paz, "In Search of Lost Domain
Generalization" (2021): each domain is cut in 80/20 by picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from steppe.data.domains import DomainDataset, Indices
from steppe.errors import SteppeError, unknown_name

PROTOCOLS = ("auto", "strict", "domainbed")
VALIDATION_SHARE, TEST_SHARE = 0.15, 0.25  # of each class's concepts; the rest trains


@dataclass(frozen=True)
class Splits:
    """The pictures of one leave-one-domain-out experiment; every array is int64, in the order of the data set.

    Attributes:
        protocol: ``"strict"`` or ``"domainbed"``.
        held_out: the domain that takes no part in training or model selection.
        validation_domain: a second domain that takes no part in training, where cross-validation over domains has one.
        train: source domain → pictures to train on.
        validation: source domain → pictures that select the model.
        evaluation: every domain → split name → pictures.
        answer: the split of the held-out domain whose accuracy is *the* number.
        in_domain: the split of the source domains whose mean accuracy is the in-domain number.
        selects: the split of a source domain that selects the model.
        cross_validates: the split of a domain held out beside another whose accuracy leave-one-domain-out
            cross-validation asks for.
    """

    protocol: str
    held_out: str
    train: Mapping[str, Indices]
    validation: Mapping[str, Indices]
    evaluation: Mapping[str, Mapping[str, Indices]]
    answer: str
    in_domain: str
    selects: str
    cross_validates: str
    validation_domain: str | None = None

    @property
    def unseen(self) -> tuple[str, ...]:
        """The domains that are not trained on."""
        return tuple(domain for domain in (self.held_out, self.validation_domain) if domain is not None)


def seed_hash(*parts: object) -> int:
    """DomainBed's seed of a tuple: the md5 of its ``str``, read as one integer, modulo 2³¹."""
    digest = hashlib.md5(str(parts).encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest, "big") % 2**31


def split_indices(n: int, trial_seed: int, domain_index: int, holdout: float = 0.2) -> tuple[Indices, Indices]:
    """DomainBed's split of one domain's ``n`` pictures: (kept, held out), each in DomainBed's shuffled order.

    A RandomState seeded by ``seed_hash(trial_seed, domain_index)`` shuffles the indices; the first ⌊n · holdout⌋ of
    them are held out.

    Raises:
        SteppeError: ``holdout`` is not inside (0, 1).
    """
    check_holdout(holdout)
    keys = np.arange(n, dtype=np.int64)
    # RandomState, not default_rng: its stream is the one DomainBed draws from, and NumPy has frozen it.
    np.random.RandomState(seed_hash(int(trial_seed), int(domain_index))).shuffle(keys)
    held_out = int(n * holdout)
    return keys[held_out:], keys[:held_out]


def make_splits(
    dataset: DomainDataset,
    held_out: str,
    *,
    validation_domain: str | None = None,
    protocol: str = "auto",
    trial_seed: int = 0,
    holdout: float = 0.2,
) -> Splits:
    """The splits for training on all domains of ``dataset`` but ``held_out`` (and ``validation_domain``).

    ``strict`` cuts the concepts of each class in 60 % train, 15 % validation and 25 % test, by ``trial_seed`` alone:
    the cut is the same for every domain and whichever is held out. Every domain has the splits ``train``,
    ``validation`` and ``test``; the answer is the held-out domain's ``test``. ``domainbed`` cuts every domain by
    :func:`split_indices` into ``in`` (kept) and ``out`` (a share of ``holdout``); sources train on ``in`` and select
    on ``out``; the answer is the held-out domain's ``in``. Under both, ``all`` of the held-out domain is evaluated
    too.

    Cross-validation over domains asks a domain that is held out beside another for its ``in`` (as DomainBed does)
    or, under ``strict``, for its ``validation``, so that no selection sees the concepts of the answer.

    Args:
        validation_domain: held out too; the cut of the pictures is the same with it and without.
        protocol: ``"strict"``, ``"domainbed"``, or ``"auto"``: strict where the set knows its concepts.
        holdout: the share that ``domainbed`` holds out; not used by ``strict``.

    Raises:
        SteppeError: unknown domain or protocol, no source domain left, a domain or a class of a domain without
            pictures, ``holdout`` outside (0, 1), ``strict`` for a set without concepts, or a part that would be
            empty.
    """
    dataset.check_domain(held_out)
    if validation_domain is not None:
        dataset.check_domain(validation_domain)
        if validation_domain == held_out:
            raise SteppeError(f"the validation domain {validation_domain!r} is the held-out domain; choose another one")
    check_holdout(holdout)
    if protocol not in PROTOCOLS:
        raise unknown_name("split protocol", protocol, PROTOCOLS)
    if len(dataset.domains) == 1:
        raise SteppeError(
            f"{dataset.name!r} has one domain, {held_out!r}: holding it out leaves nothing to train on; "
            "a second domain is needed"
        )
    if validation_domain is not None and len(dataset.domains) == 2:
        raise SteppeError(
            f"{dataset.name!r} has two domains; holding out both, {held_out!r} and {validation_domain!r}, leaves "
            "nothing to train on; a third domain is needed"
        )
    check_complete(dataset)
    if protocol == "auto":
        protocol = "domainbed" if dataset.concepts(held_out) is None else "strict"
    if protocol == "strict":
        evaluation = _strict(dataset, trial_seed)
        train, validation, answer, in_domain, crossed = "train", "validation", "test", "test", "validation"
    else:
        evaluation = _domainbed(dataset, trial_seed, holdout)
        train, validation, answer, in_domain, crossed = "in", "out", "in", "out", "in"
    evaluation[held_out]["all"] = np.arange(dataset.size(held_out), dtype=np.int64)
    sources = [domain for domain in dataset.domains if domain not in (held_out, validation_domain)]
    return Splits(
        protocol=protocol,
        held_out=held_out,
        train={domain: evaluation[domain][train] for domain in sources},
        validation={domain: evaluation[domain][validation] for domain in sources},
        evaluation=evaluation,
        answer=answer,
        in_domain=in_domain,
        selects=validation,
        cross_validates=crossed,
        validation_domain=validation_domain,
    )


def check_holdout(holdout: float) -> None:
    """Raises SteppeError unless ``holdout`` is a share strictly between 0 and 1."""
    if not 0 < holdout < 1:
        raise SteppeError(f"the held-out share must lie between 0 and 1, both excluded; got {holdout}")


def check_complete(dataset: DomainDataset) -> None:
    """Raises SteppeError naming the first domain without pictures, or the first class that a domain lacks."""
    for domain in dataset.domains:
        counts = np.bincount(dataset.labels(domain), minlength=len(dataset.classes))
        if not counts.any():
            raise SteppeError(f"domain {domain!r} of {dataset.name!r} has no pictures")
        for name, count in zip(dataset.classes, counts, strict=True):
            if count == 0:
                raise SteppeError(
                    f"class {name!r} has no pictures in domain {domain!r} of {dataset.name!r}; "
                    "every class must be there in every domain: add pictures, or take the class out of all domains"
                )


def _domainbed(dataset: DomainDataset, trial_seed: int, holdout: float) -> dict[str, dict[str, Indices]]:
    parts: dict[str, dict[str, Indices]] = {}
    for number, domain in enumerate(dataset.domains):
        n = dataset.size(domain)
        kept, out = split_indices(n, trial_seed, number, holdout)
        if not len(kept) or not len(out):
            raise SteppeError(
                f"domain {domain!r} of {dataset.name!r} has {n} pictures, too few to hold out {holdout:g} of them"
            )
        parts[domain] = {"in": np.sort(kept), "out": np.sort(out)}
    return parts


def _strict(dataset: DomainDataset, trial_seed: int) -> dict[str, dict[str, Indices]]:
    part_of = _concept_parts(dataset, trial_seed)
    parts: dict[str, dict[str, Indices]] = {}
    for domain in dataset.domains:
        where = np.array([part_of[concept] for concept in _concepts(dataset, domain)])
        parts[domain] = {}
        for part in ("train", "validation", "test"):
            parts[domain][part] = np.flatnonzero(where == part).astype(np.int64)
            if not len(parts[domain][part]):
                raise SteppeError(
                    f"domain {domain!r} of {dataset.name!r} has no picture of a {part} concept "
                    f"(trial seed {trial_seed})"
                )
    return parts


def _concept_parts(dataset: DomainDataset, trial_seed: int) -> dict[str, str]:
    """concept → "train" | "validation" | "test", stratified by class."""
    label_of: dict[str, int] = {}
    for domain in dataset.domains:
        for concept, label in zip(_concepts(dataset, domain), dataset.labels(domain).tolist(), strict=True):
            if label_of.setdefault(concept, label) != label:
                names = " and ".join(repr(dataset.classes[i]) for i in (label_of[concept], label))
                raise SteppeError(f"concept {concept!r} of {dataset.name!r} has two classes, {names}")
    part_of: dict[str, str] = {}
    for label, name in enumerate(dataset.classes):
        members = sorted(concept for concept, its_label in label_of.items() if its_label == label)
        validation = round(VALIDATION_SHARE * len(members))
        test = round(TEST_SHARE * len(members))
        if min(validation, test, len(members) - validation - test) < 1:
            raise SteppeError(
                f"class {name!r} of {dataset.name!r} has {len(members)} concepts, too few for a strict split in "
                "train, validation and test; use the protocol 'domainbed'"
            )
        np.random.RandomState(seed_hash("strict", int(trial_seed), name)).shuffle(members)
        part_of |= dict.fromkeys(members[:test], "test")
        part_of |= dict.fromkeys(members[test : test + validation], "validation")
        part_of |= dict.fromkeys(members[test + validation :], "train")
    return part_of


def _concepts(dataset: DomainDataset, domain: str) -> list[str]:
    concepts = dataset.concepts(domain)
    if concepts is None:
        raise SteppeError(
            f"the pictures of {dataset.name!r} carry no concept, so a strict split cannot keep concepts apart; "
            "use the protocol 'domainbed'"
        )
    names: list[str] = concepts.tolist()
    return names
