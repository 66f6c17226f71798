"""Hyper-parameters of a sum: their names, their values, and that the words' defaults are the parts' own."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.errors import SteppeError
from steppe.training.hyper import WORDS, flat
from steppe.training.recipes import check_taken, parse
from steppe.training.vocabulary_trajectory import BN_BATCHES, LR_FACTOR, LR_PER, LR_WARMUP
from steppe.training.words import COMMON, SHARED, Part, Word
from steppe.trust.divergences import NAMES

COMMON_VALUES = {parameter.name: parameter.default for parameter in COMMON}


def own(name: str, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """The values of a sum, the options of whatever climbs aside."""
    values = parse(name).hyper(given)
    return {full: value for full, value in values.items() if full.partition(".")[2] not in COMMON_VALUES}


def arguments_of(made: type) -> dict[str, inspect.Parameter]:
    """Those of a class, and of its bases where it hands on what it does not name."""
    found: dict[str, inspect.Parameter] = {}
    for base in made.__mro__[:-1]:
        own = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        found = {**own, **found}
        if not any(argument.kind is inspect.Parameter.VAR_KEYWORD for argument in own.values()):
            return found
    return found


def parts(word: Word) -> list[Part]:
    return [*word.fills.values(), *word.offers.values(), *(part for _, part in word.switched.values())]


# What becomes of these is in test_trajectory.py.
READ_BY_THE_RUN = (LR_FACTOR, LR_WARMUP, LR_PER, BN_BATCHES)
WHAT_THE_WORD_IS = {("lookahead-anchor", "anchor")}


@pytest.mark.parametrize("name", WORDS)
def test_a_word_s_defaults_are_those_of_the_classes_it_names(name: str) -> None:
    # One place decides a published value, and nobody can change the other unnoticed.
    word = WORDS[name]
    reached = {*SHARED, *READ_BY_THE_RUN}
    for part in parts(word):
        arguments = arguments_of(part.made)
        for argument, parameter_name in part.arguments.items():
            parameter = word.parameter(parameter_name)
            assert parameter is not None
            reached.add(parameter_name)
            default = arguments[argument].default
            if default is not inspect.Parameter.empty and (name, parameter_name) not in WHAT_THE_WORD_IS:
                assert parameter.default == default, (name, parameter_name)
        for argument in (*part.needs, *part.fixed):
            assert argument in arguments, (part.path, argument)
    for parameter in word.parameters:
        assert parameter.name in reached, "a hyper-parameter that nothing reads"
        if parameter.default is not None:
            assert parameter.value(parameter.default, "default") == parameter.default
        if parameter.name == "divergence":
            assert set(parameter.choices) == set(NAMES)


def test_published_values_are_filled_in_under_their_full_names() -> None:
    assert parse("erm").hyper() == {}
    assert parse("sam").hyper() == {"sam.rho": 0.05, "sam.ascent_fraction": 1.0, "sam.m": 1}
    assert own("asam") == {"asam.rho": 0.5, "asam.eta": 0.01, "asam.weights_only": False}
    assert own("disam", {"lam": 0.3, "alpha": None}) == {"disam.rho": 0.05, "disam.lam": 0.3}
    assert own("coral+disam+tram") == {
        "coral.weight": 1.0,
        "disam.lam": 0.1,
        "tram.divergence": "kl",
        "tram.reference_eval": False,
    }
    assert own("groupdro+mixup") == {"groupdro.eta": 0.01, "mixup.alpha": 0.2}


def test_the_radius_is_one_and_that_of_the_geometry() -> None:
    assert own("disam+asam")["asam.rho"] == 0.5
    assert "disam.rho" not in own("disam+asam")
    for name in ("rho", "disam.rho", "sagm.rho"):
        assert own("sagm+disam", {name: 0.2})["disam.rho"] == 0.2
    assert own("disam+sagm", {"disam.rho": 0.2, "sagm.rho": 0.2})["disam.rho"] == 0.2
    with pytest.raises(SteppeError, match=r"disam.rho and sagm.rho are the same in 'disam\+sagm': give one of them"):
        parse("disam+sagm").hyper({"disam.rho": 0.2, "sagm.rho": 0.3})
    for word in ("tram", "fsam"):
        with pytest.raises(SteppeError, match=f"has no hyper-parameter 'rho', as '{word}' brings its own radius"):
            parse(f"disam+{word}").hyper({"rho": 0.1})


def test_one_switch_for_a_descent_and_what_reuses_it() -> None:
    for name in ("shared", "gsam.shared", "looksam.shared"):
        assert own("disam+gsam+looksam", {name: True})["gsam.shared"] is True
    assert own("looksam", {"shared": "true"})["looksam.shared"] is True


def test_a_bare_name_where_one_word_has_it() -> None:
    assert own("gsam", {"alpha": 0.2})["gsam.alpha"] == 0.2
    values = own("gsam+looksam+mixup", {"gsam.alpha": 0.2, "looksam.alpha": 0.3, "mixup.alpha": 0.4})
    assert [values[f"{word}.alpha"] for word in ("gsam", "looksam", "mixup")] == [0.2, 0.3, 0.4]
    for name, bare, words in (
        ("gsam+looksam+mixup", "alpha", "mixup.alpha, gsam.alpha and looksam.alpha"),
        ("coral+fishr", "weight", "coral.weight and fishr.weight"),
        ("asam+groupdro", "eta", "groupdro.eta and asam.eta"),
        ("friendly+tram-x", "sigma", "friendly.sigma and tram-x.sigma"),
    ):
        with pytest.raises(SteppeError, match=f"hyper-parameter '{bare}' of .* means {words}: say which"):
            parse(name).hyper({bare: 0.1})


def test_the_full_name_goes_before_the_bare_one() -> None:
    for order in (["rho", "asam.rho"], ["asam.rho", "rho"]):
        values = {"rho": 0.1, "asam.rho": 1.0}
        assert own("asam", {name: values[name] for name in order})["asam.rho"] == 1.0
        assert own("sam", {"rho": 0.1})["sam.rho"] == 0.1


def test_spelling_of_names() -> None:
    assert own("tram-x", {"tram_x.sigma": 0.3})["tram-x.sigma"] == 0.3
    assert own("vrex", {"VREX.anneal-steps": 3})["vrex.anneal_steps"] == 3
    assert flat({"rho": 1, "coral": {"weight": 2}, "a": {"b": {"c": 3}}}) == {"rho": 1, "coral.weight": 2, "a.b.c": 3}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("sam", {"lam": 0.1}, "'sam' has no hyper-parameter 'lam'; it takes: rho, ascent_fraction, m"),
        ("erm", {"rho": 0.1}, "'erm' has no hyper-parameter 'rho'; it takes: none"),
        ("coral", {"ascent_fraction": 0.5}, "'coral' has no hyper-parameter 'ascent_fraction'; it takes: weight"),
        ("sam", {"coral.weight": 1}, "'sam' has no hyper-parameter 'coral.weight'"),
        ("coral", {"coral.wait": 1}, "unknown hyper-parameter of 'coral': 'wait'; did you mean 'weight'"),
        (
            "coral",
            {"corel.weight": 1},
            "unknown word in the hyper-parameter 'corel.weight': 'corel'; did you mean 'coral'",
        ),
        ("sam", {"roh": 1}, "unknown hyper-parameter 'roh'; did you mean 'rho'"),
        ("sam", {"rho": -1}, "rho must be at least 0, got -1"),
        ("sam", {"rho": "much"}, "rho must be a number, got 'much'"),
        ("sam", {"rho": float("nan")}, "rho must be a number, got nan"),
        ("sam", {"rho": float("inf")}, "rho must be at least 0, got inf"),
        ("sam", {"rho": True}, "rho must be a number, got True"),
        ("sam", {"rho": [1]}, r"rho must be a number, got \[1\]"),
        ("sam", {"ascent_fraction": 0}, "ascent_fraction must be larger than 0 and at most 1, got 0"),
        ("sam", {"m": 2.5}, "m must be a whole number of at least 1, got 2.5"),
        ("sam", {"m": 2, "ascent_fraction": 0.5}, "ascent_fraction and m exclude each other"),
        ("disam+tram", {"m": 2}, "'tram' compares with the weights one step ago, which m > 1 overwrites"),
        ("fishr", {"ema": 1.0}, "ema must be at least 0 and below 1, got 1.0"),
        ("tram", {"divergence": "k"}, "unknown divergence 'k'; .*kl"),
        ("gsam", {"shared": "perhaps"}, "shared must be true or false, got 'perhaps'"),
    ],
)
def test_wrong_hyper_parameters_are_named(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SteppeError, match=message):
        parse(name).hyper(given)


@given(st.sets(st.sampled_from(sorted(WORDS)), min_size=1, max_size=4))
@settings(max_examples=100)
def test_what_was_run_with_is_what_to_run_it_with_again(words: set[str]) -> None:
    try:
        recipe = parse("+".join(sorted(words)))
    except SteppeError:
        return
    values = recipe.hyper()
    assert recipe.hyper(values) == values
    assert recipe.hyper({name: str(value) for name, value in values.items()}) == values, "as a command line has it"
    for full in values:
        short = recipe.names.short(full)
        assert recipe.names.full(short) == full
        assert recipe.hyper({short: values[full]}) == values


def test_a_sweep_takes_what_one_of_its_algorithms_takes() -> None:
    check_taken(["erm", "sam", "coral+disam"], {"rho": 0.1, "lam": 0.2, "coral.weight": 3})
    with pytest.raises(SteppeError, match=r"lam was given, but none of the algorithms \(erm, sam\) takes it"):
        check_taken(["erm", "sam"], {"lam": 0.1})
    with pytest.raises(SteppeError, match=r"'alpha' of 'gsam\+looksam' means gsam.alpha and looksam"):
        check_taken(["gsam", "gsam+looksam"], {"alpha": 0.1})
