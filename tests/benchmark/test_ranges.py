"""Random draws against DomainBed's published ranges, each written down here a second time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.benchmark.ranges import OWN, SETTINGS, default_draw, draw_seed, random_draw, space_of
from steppe.errors import SteppeError
from steppe.training.hyper import WORDS
from steppe.training.recipes import parse

SEEDS = st.integers(0, 2**31 - 1)


def hashed(*parts: Any) -> int:
    return int(hashlib.md5(str(parts).encode("utf-8")).hexdigest(), 16) % (2**31)


def drawn(seed: int, name: str, rule: Callable[[np.random.RandomState], Any]) -> Any:
    return rule(np.random.RandomState(hashed(seed, name)))


# setting of steppe: name in DomainBed's registry, its default, its rule
LARGE: dict[str, tuple[str, Any, Any]] = {
    "lr": ("lr", 5e-5, lambda r: 10 ** r.uniform(-5, -3.5)),
    "weight_decay": ("weight_decay", 0.0, lambda r: 10 ** r.uniform(-6, -2)),
    "batch_per_domain": ("batch_size", 32, lambda r: int(2 ** r.uniform(3, 5.5))),
    "dropout": ("resnet_dropout", 0.0, lambda r: r.choice([0.0, 0.1, 0.5])),
}
SMALL: dict[str, tuple[str, Any, Any]] = {
    "lr": ("lr", 1e-3, lambda r: 10 ** r.uniform(-4.5, -2.5)),
    "weight_decay": ("weight_decay", 0.0, lambda r: 0.0),
    "batch_per_domain": ("batch_size", 64, lambda r: int(2 ** r.uniform(3, 9))),
}
DOMAINNET = LARGE | {"batch_per_domain": ("batch_size", 32, lambda r: int(2 ** r.uniform(3, 5)))}
DATASETS = {
    "emoji": LARGE,
    "PACS": LARGE,
    "office-home": LARGE,
    "DomainNet": DOMAINNET,
    "domainnet": DOMAINNET,
    "rotated-mnist": SMALL,
    "rotated-mnist-6000@3": SMALL,
    "colored-mnist": SMALL,
}
ALGORITHMS: dict[str, dict[str, tuple[str, Any, Any]]] = {
    "erm": {},
    "irm": {
        "irm.weight": ("irm_lambda", 1e2, lambda r: 10 ** r.uniform(-1, 5)),
        "irm.anneal_steps": ("irm_penalty_anneal_iters", 500, lambda r: int(10 ** r.uniform(0, 4))),
    },
    "mixup": {"mixup.alpha": ("mixup_alpha", 0.2, lambda r: 10 ** r.uniform(-1, 1))},
    "groupdro": {"groupdro.eta": ("groupdro_eta", 1e-2, lambda r: 10 ** r.uniform(-3, -1))},
    "mmd": {"mmd.weight": ("mmd_gamma", 1.0, lambda r: 10 ** r.uniform(-1, 1))},
    "coral": {"coral.weight": ("mmd_gamma", 1.0, lambda r: 10 ** r.uniform(-1, 1))},
    "vrex": {
        "vrex.weight": ("vrex_lambda", 1e1, lambda r: 10 ** r.uniform(-1, 5)),
        "vrex.anneal_steps": ("vrex_penalty_anneal_iters", 500, lambda r: int(10 ** r.uniform(0, 4))),
    },
    "fishr": {
        "fishr.weight": ("lambda", 1000.0, lambda r: 10 ** r.uniform(1.0, 4.0)),
        "fishr.anneal_steps": ("penalty_anneal_iters", 1500, lambda r: int(r.uniform(0.0, 5000.0))),
        "fishr.ema": ("ema", 0.95, lambda r: r.uniform(0.90, 0.99)),
    },
}


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(seed=SEEDS)
def test_a_draw_is_domainbeds_digit_by_digit(algorithm: str, dataset: str, seed: int) -> None:
    rules = DATASETS[dataset] | ALGORITHMS[algorithm]
    found = random_draw(space_of(algorithm, dataset), seed)
    assert found == {name: drawn(seed, theirs, rule) for name, (theirs, _, rule) in rules.items()}
    assert all(type(value) in (int, float) for value in found.values()), "plain numbers, as JSON has them"


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_draw_0_is_domainbeds_defaults(algorithm: str, dataset: str) -> None:
    rules = DATASETS[dataset] | ALGORITHMS[algorithm]
    found = {**parse(algorithm).hyper({}), **default_draw(space_of(algorithm, dataset))}
    assert {name: found[name] for name in rules} == {name: default for name, (_, default, _) in rules.items()}


def test_a_draw_written_down_once() -> None:
    """DomainBed's ``random_hparams("CORAL", "PACS", 1)``, run from its code: a NumPy that drew otherwise would show."""
    assert random_draw(space_of("coral", "PACS"), 1) == {
        "lr": 2.1013712179831686e-05,
        "weight_decay": 0.00464042443007805,
        "batch_per_domain": 32,
        "dropout": 0.5,
        "coral.weight": 0.3544970650944205,
    }


@given(draw=st.integers(1, 1000), trial=st.integers(0, 100))
def test_a_draw_of_a_trial_is_seeded_as_domainbeds_script_does(draw: int, trial: int) -> None:
    assert draw_seed(draw, trial) == hashed(draw, trial)


@given(seed=SEEDS)
def test_a_sum_draws_what_each_of_its_words_draws_alone(seed: int) -> None:
    together = random_draw(space_of("coral+disam+sagm", "emoji"), seed)
    assert set(together) == {*SETTINGS, "coral.weight", "disam.rho", "disam.lam", "sagm.alpha"}
    for word in ("coral", "disam", "sagm"):
        alone = random_draw(space_of(word, "emoji"), seed)
        shared = set(alone) - {"sagm.rho"}  # a sum has rho once, here as disam.rho
        assert {name: together[name] for name in shared} == {name: alone[name] for name in shared}


def test_a_geometrys_radius_has_its_own_range() -> None:
    assert space_of("asam+disam", "emoji")["asam.rho"] == replace(OWN["asam.rho"], default=0.5)
    assert space_of("sam", "emoji")["sam.rho"] == replace(OWN["rho"], default=0.05)
    assert not [name for name in space_of("tram", "emoji") if "." in name]


def test_what_is_fixed_is_not_drawn() -> None:
    assert set(space_of("asam+disam", "emoji", ["lr", "rho", "disam.lam"])) == set(SETTINGS) - {"lr"}
    assert set(space_of("erm", "emoji", ["rho"])) == set(SETTINGS), "erm has none"
    with pytest.raises(SteppeError, match="unknown hyper-parameter 'roh'"):
        space_of("disam", "emoji", ["roh"])


@given(seed=SEEDS)
def test_a_searched_anchor_acts(seed: int) -> None:
    found = random_draw(space_of("lookahead-anchor", "emoji"), seed)
    assert found["lookahead-anchor.anchor_reduction"] == "sum"
    assert type(found["lookahead-anchor.anchor_reduction"]) is str, "as JSON has it"
    assert 0.1 <= found["lookahead-anchor.anchor"] <= 10
    given = space_of("lookahead-anchor", "emoji", ["anchor"])
    assert not [name for name in given if "anchor." in name and "anchor.anchor" in name]


@pytest.mark.parametrize("word", WORDS)
@given(seed=SEEDS)
def test_whatever_is_drawn_can_be_run_and_optuna_can_propose_it(word: str, seed: int) -> None:
    from optuna.distributions import FloatDistribution

    space = space_of(word, "emoji")
    found = random_draw(space, seed)
    hyper = {name: value for name, value in found.items() if "." in name}
    taken = parse(word).hyper(hyper)
    assert {name: taken[name] for name in hyper} == hyper
    for name, value in found.items():
        distribution = space[name].range.distribution()
        if isinstance(distribution, FloatDistribution):
            assert distribution.low <= value <= distribution.high
        else:
            assert distribution._contains(distribution.to_internal_repr(value)), (name, value, distribution)


def test_every_range_is_of_a_hyper_parameter_that_exists_and_names_its_source() -> None:
    names = {f"{word.name}.{parameter.name}" for word in WORDS.values() for parameter in word.parameters}
    assert set(OWN) - {"rho"} <= names
    assert all(searched.source for searched in (*OWN.values(), *SETTINGS.values()))
