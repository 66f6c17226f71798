"""Leave one domain out: the runs that a comparison consists of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from steppe.benchmark.store import Store
from steppe.data import DomainDataset
from steppe.errors import SteppeError
from steppe.training.config import RunConfig, Settings
from steppe.training.inputs import check_inputs, splits_of
from steppe.training.recipes import check_taken, parse

ALL = "all"


@dataclass(frozen=True)
class Job:
    """A run and the directory it belongs in; picklable.

    Attributes:
        stop: asked after each evaluation whether the run is to be stopped (:class:`steppe.Trainer`'s ``evaluated``).
    """

    config: RunConfig
    directory: Path
    stop: Callable[[int, float], bool] | None = None


def leave_one_domain_out(
    dataset: DomainDataset,
    *,
    algorithms: Sequence[str],
    held_out: Sequence[str] = (ALL,),
    seeds: int | Sequence[int] = 3,
    settings: Settings | None = None,
) -> list[RunConfig]:
    """Every algorithm on every held-out domain with every seed.

    Seeds vary slowest and algorithms fastest, so that a sweep that is stopped early has whole rows to compare. A
    hyper-parameter goes to those algorithms that take it.

    Args:
        dataset: the data.
        algorithms: recipes such as ``"disam+sagm"``; two spellings of one count once.
        held_out: domains to leave out in turn, or ``"all"``.
        seeds: how many, at least 1, which are those from 0 on; or which ones.
        settings: everything else.

    Raises:
        SteppeError: an algorithm or a domain is not known, a domain is called ``"all"`` where all are asked for,
            nothing is left to do, or a hyper-parameter was given that none of the algorithms takes.
    """
    settings = settings or Settings()
    if isinstance(seeds, int):
        if seeds < 1:
            raise SteppeError(f"seeds must be at least 1, got {seeds}")
        seeds = range(seeds)
    names = list(dict.fromkeys(parse(algorithm).name for algorithm in algorithms))
    if ALL in held_out and ALL in dataset.domains:
        raise SteppeError(
            f"{ALL!r} means every domain in turn, and a domain of {dataset.name!r} is called {ALL!r}: rename it"
        )
    domains = list(dataset.domains) if ALL in held_out else list(dict.fromkeys(held_out))
    if not names:
        raise SteppeError("no algorithm was given")
    if not domains:
        raise SteppeError("no held-out domain was given")
    for domain in domains:
        dataset.check_domain(domain)
    check_taken(names, settings.given)
    return [
        RunConfig.at(settings, dataset=dataset.spec, held_out=domain, algorithm=name, seed=seed)
        for seed in seeds
        for domain in domains
        for name in names
    ]


def crossed(config: RunConfig, domains: Sequence[str]) -> dict[str, RunConfig]:
    """Other domain → the run that holds out both: what leave-one-domain-out cross-validation looks at.

    Such a run belongs to both domains; the one that comes first in ``domains`` is its held-out domain.

    Args:
        config: the run that holds out one domain.
        domains: all domains of the data set, in its order.
    """
    pairs = {}
    for other in domains:
        if other != config.held_out:
            first, second = sorted((config.held_out, other), key=domains.index)
            pairs[other] = replace(config, held_out=first, validation_domain=second)
    return pairs


def jobs(store: Store, dataset: DomainDataset, configs: Sequence[RunConfig]) -> list[Job]:
    """The directories of the runs; every split is made once, so that what is wrong with one is known before training.

    Raises:
        SteppeError: a split cannot be made, or the data set cannot be fed to the network.
    """
    for config in configs:
        check_inputs(dataset, config)
    fingerprint = dataset.fingerprint()
    protocols: dict[tuple[str, str | None, int], str] = {}
    found = []
    for config in configs:
        key = (config.held_out, config.validation_domain, config.seed)
        if key not in protocols:
            splits = splits_of(dataset, config)
            protocols[key] = splits.protocol
        canonical = config.canonical(dataset=dataset.name, fingerprint=fingerprint, split=protocols[key])
        found.append(Job(config, store.directory(canonical)))
    return found
