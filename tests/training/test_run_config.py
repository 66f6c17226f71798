from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest

from steppe.errors import SteppeError
from steppe.training.config import HYPER, RunConfig, Settings, canonical_json, config_id


def identity(**fields: Any) -> str:
    config = RunConfig(**{"held_out": "line", **fields})
    return config_id(config.canonical(dataset="emoji", fingerprint="abc", split=fields.get("split", "strict")))


def test_the_id_of_a_known_config_stays_what_it_was() -> None:
    # Stores written by earlier versions are found again only as long as this holds.
    config = RunConfig(held_out="line", algorithm="disam", steps=200, lr=3e-4)
    canonical = config.canonical(dataset="emoji", fingerprint="0123456789abcdef", split="strict")
    assert canonical["hyper"] == {
        "disam.ascent_fraction": 1.0,
        "disam.lam": 0.1,
        "disam.m": 1,
        "disam.rho": 0.05,
    }
    assert config_id(canonical) == "ba0382e01d56"


CHANGES: dict[str, Any] = {
    "held_out": "noto",
    "algorithm": "asam",
    "seed": 1,
    "backbone": "resnet18",
    "pretrained": False,
    "frozen_batch_norm": False,
    "dropout": 0.1,
    "image_size": 64,
    "batch_per_domain": 8,
    "steps": 100,
    "eval_every": 10,
    "optimizer": "sgd",
    "lr": 1e-3,
    "weight_decay": 0.1,
    "schedule": "cosine",
    "warmup": 5,
    "clip_norm": 1.0,
    "precision": "bf16",
    "rho": 0.1,
    "hyper": {"ascent_fraction": 0.5},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_numbers_changes_the_id(name: str) -> None:
    assert identity(**{"algorithm": "sam", name: CHANGES[name]}) != identity(algorithm="sam")


def test_every_field_is_in_the_id_or_in_no_run_of_this_kind() -> None:
    config = RunConfig(held_out="line", validation_domain="noto", optimizer="sgd", split="domainbed")
    canonical = config.canonical(dataset="emoji", fingerprint="abc", split="domainbed")
    fields = {field.name for field in dataclasses.fields(RunConfig)} - set(HYPER)
    assert set(canonical) == fields | {"hyper", "dataset_fingerprint"}
    assert json.loads(canonical_json(canonical)) == canonical


def test_two_ways_to_ask_for_the_same_run_give_one_id() -> None:
    assert identity(algorithm="disam") == identity(algorithm="sam+DISAM", rho=0.05, lam=0.1)
    assert identity(algorithm="sagm+disam") == identity(algorithm="disam+sagm")
    assert identity(algorithm="coral+sam", hyper={"coral": {"weight": 1}, "rho": "0.05"}) == identity(
        algorithm="sam+coral"
    )
    for hyper in ({"rho": 0.2}, {"disam.rho": 0.2}, {"sagm.rho": 0.2}):
        assert identity(algorithm="disam+sagm", rho=0.2) == identity(algorithm="sagm+disam", hyper=hyper)
    assert identity(lr=1) == identity(lr=1.0)
    assert identity(momentum=0.5) == identity()
    assert identity(holdout=0.3) == identity()
    assert identity(optimizer="sgd", momentum=0.5) != identity(optimizer="sgd")
    assert identity(split="domainbed", holdout=0.3) != identity(split="domainbed")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be larger than 0"),
        ({"lr": float("nan")}, "lr must be larger than 0"),
        ({"rho": -1.0}, "rho must be at least 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"holdout": 1.0}, "holdout must be between 0 and 1"),
        ({"clip_norm": 0.0}, "clip_norm must be larger than 0"),
        ({"warmup": 5000}, r"warmup must be less than steps \(5000\)"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"optimizer": "adamv"}, "unknown optimizer 'adamv'; did you mean 'adam"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"algorithm": "gsam+sagm"}, "both fill the slot 'descent'"),
        ({"algorithm": "sam", "lam": 0.1}, "'sam' has no hyper-parameter 'lam'"),
        ({"algorithm": "gsam", "rho_min": 0.01}, "set schedule to cosine or linear"),
        ({"algorithm": "gsam", "hyper": {"gsam.rho_min": 0.01}}, "set schedule to cosine or linear"),
        ({"algorithm": "sam", "rho": 0.1, "hyper": {"rho": 0.2}}, "rho is given twice: 0.1 and, in hyper, 0.2"),
        ({"algorithm": "coral+fishr", "hyper": {"weight": 1}}, "means coral.weight and fishr.weight: say which"),
        ({"algorithm": "coral", "hyper": {"coral.wait": 1}}, "did you mean 'weight'"),
    ],
)
def test_wrong_values_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SteppeError, match=message):
        RunConfig(held_out="line", **fields)


def test_a_hyper_parameter_goes_only_where_it_is_taken() -> None:
    settings = Settings(rho=0.2, lam=0.3, hyper={"coral.weight": 2, "asam.rho": 0.7})
    options = {"ascent_fraction": 1.0, "m": 1}
    for algorithm, hyper in (
        ("erm", {}),
        ("sam", {"sam.rho": 0.2}),
        ("disam", {"disam.rho": 0.2, "disam.lam": 0.3}),
        ("coral", {"coral.weight": 2.0}),
        ("coral+asam", {"coral.weight": 2.0, "asam.rho": 0.7, "asam.eta": 0.01, "asam.weights_only": False}),
    ):
        config = RunConfig.at(settings, dataset="emoji", held_out="line", algorithm=algorithm, seed=0)
        found = config.canonical(dataset="emoji", fingerprint="", split="strict")["hyper"]
        climbing = algorithm.removeprefix("coral").removeprefix("+")
        shared = {f"{climbing}.{name}": value for name, value in options.items()} if climbing not in ("", "erm") else {}
        assert found == hyper | shared


def test_a_penalty_that_the_run_is_too_short_for_is_noted() -> None:
    config = RunConfig(held_out="line", algorithm="fishr+disam", steps=1500)
    (note,) = config.notes
    assert note.startswith("fishr.anneal_steps is 1500 (steps in which the weight is 0 instead), and the run has 1500")
    assert RunConfig(held_out="line", algorithm="fishr+disam", steps=1501).notes == []
    assert RunConfig(held_out="line", algorithm="fishr", steps=9, hyper={"anneal_steps": 3}).notes == []


def test_a_config_travels_to_another_process() -> None:
    config = RunConfig(held_out="line", algorithm="coral+sam", hyper={"coral": {"weight": 2}})
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.hyper == {"coral.weight": 2}
