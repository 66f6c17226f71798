"""Words that act on the weights' course: in a loop of one's own, and in whole runs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import metrics, result, small_config
from sums import a_model, built, closure_for, problems, same, train
from torch import nn

import steppe
from steppe.errors import SteppeError
from steppe.models import build_classifier
from steppe.training import RunConfig, Trainer, parse
from steppe.training.schedules import LargeRate
from steppe.training.vocabulary_trajectory import LOOKAHEADS

AVERAGES = ("swad", "swa", "ema")


def fit(config: RunConfig, out: Path, **options: Any) -> Path:
    Trainer(config, out=out, command="test", **options).fit()
    return out


# --- the grammar ---


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("erm+lookahead", "lookahead"),
        ("lookahead+disam", "disam+lookahead"),
        ("swad+sagm", "sagm+swad"),
        ("swa+sam", "sam+swa"),
        ("lookahead_mean+coral", "coral+lookahead-mean"),
        ("ema+looksam+mixup", "mixup+looksam+ema"),
    ],
)
def test_the_trajectory_comes_last(written: str, meant: str) -> None:
    assert parse(written).name == meant


def test_two_courses_exclude_each_other() -> None:
    for one, other in itertools.combinations((*LOOKAHEADS, *AVERAGES), 2):
        with pytest.raises(SteppeError) as caught:
            parse(f"{one}+{other}")
        assert all(repr(name) in str(caught.value) for name in (one, other, "trajectory"))


def test_alpha_is_the_name_of_two_things_in_a_sum_with_gsam() -> None:
    assert parse("gsam+lookahead").hyper({"lookahead.alpha": 0.5, "gsam.alpha": 0.2})["lookahead.alpha"] == 0.5
    with pytest.raises(SteppeError, match=r"gsam\.alpha"):
        parse("gsam+lookahead").hyper({"alpha": 0.5})
    assert parse("sam+lookahead").hyper({"alpha": 0.5})["lookahead.alpha"] == 0.5


# --- in a loop of one's own ---


def by_hand(variant: dict[str, Any], inner: str, steps: int) -> list[torch.Tensor]:
    model = a_model()
    torch.manual_seed(4)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = steppe.Lookahead(steppe.DISAM(base, model=model) if inner == "disam" else base, k=2, **variant)
    for x, y, domain in problems(steps):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            losses = nn.functional.cross_entropy(model(x), y, reduction="none")  # noqa: B023 - called in this turn
            loss = optimizer.objective(losses, domain) if inner == "disam" else losses.mean()  # noqa: B023
            loss.backward()
            return loss

        optimizer.step(closure)
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("inner", ["erm", "disam"])
@pytest.mark.parametrize(
    ("word", "variant", "hyper"),
    [
        ("lookahead", {"alpha": 0.5}, {"alpha": 0.5}),
        ("lookahead-mean", {"alpha": 0.5, "fast": "mean"}, {"alpha": 0.5}),
        ("lookahead-anchor", {"alpha": 0.5, "anchor": 0.01}, {"alpha": 0.5}),
        (
            "lookahead-mean",
            {"alpha": 0.5, "fast": "mean", "anchor": 0.3, "anchor_reduction": "sum", "state": "reset"},
            {"alpha": 0.5, "anchor": 0.3, "anchor_reduction": "sum", "state": "reset"},
        ),
    ],
)
def test_a_word_is_lookahead_around_the_rest_of_the_sum(
    word: str, variant: dict[str, Any], hyper: dict[str, Any], inner: str
) -> None:
    model = a_model()
    torch.manual_seed(4)
    method = built(f"{inner}+{word}", model, {"k": 2, **{f"{word}.{name}": value for name, value in hyper.items()}})
    assert same(train(method, model, 5), by_hand(variant, inner, 5))
    assert method.base is method.optimizer.base.base


@pytest.mark.parametrize("word", AVERAGES)
def test_an_average_sees_every_step_and_leaves_training_alone(word: str) -> None:
    plain, model = a_model(), a_model()
    method = built(f"sam+{word}", model, {"decay": 0.5} if word == "ema" else {})
    train(built("sam", plain), plain, 4)
    seen = []
    for step in range(4):
        train(method, model, 1, first=step)
        seen.append([parameter.detach().double().clone() for parameter in model.parameters()])
        method.evaluated(1.0 / (step + 1))
    assert same(list(model.parameters()), list(plain.parameters()))
    averaged = method.averaged()
    assert averaged is not None
    assert method.average is not None
    if word == "ema":
        expected = [
            sum(w * p for w, p in zip((0.125, 0.125, 0.25, 0.5), ps, strict=True)) for ps in zip(*seen, strict=True)
        ]
    elif word == "swa":
        expected = [sum(each) / 4 for each in zip(*seen, strict=True)]
    else:  # losses fall throughout: three segments never begin with the smallest, and the last is what is left
        expected = seen[-1]
    for name, found, wanted in zip(dict(model.named_parameters()), averaged.values(), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-7, msg=name)


def test_a_skipped_step_is_in_no_average() -> None:
    model = a_model()
    method = built("swa", model)
    train(method, model, 1)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    closure, scaler = closure_for(method, model, problems(1)[0]), torch.amp.GradScaler("cpu", init_scale=1.0)

    def broken() -> torch.Tensor:
        loss = closure()
        next(iter(model.parameters())).grad.fill_(float("inf"))  # type: ignore[union-attr]
        return loss

    scaler.scale(torch.zeros(()))
    method.step(broken, scaler=scaler)
    averaged = method.averaged()
    assert averaged is not None
    assert same(list(averaged.values()), weights)


# --- the learning rate ---


@pytest.mark.parametrize(
    ("hyper", "rates"),
    [
        # W = 2 of 8 steps: (1 + 4 · ½) and then 5 times 0.1.
        ({"lr_warmup": 0.25}, [0.3, *[0.5] * 7]),
        ({"lr_warmup": 0.0, "lr_factor": 3.0}, [0.3] * 8),
        # The line from 1 to 0 is moved on after steps 3 and 6 only.
        ({"lr_warmup": 0.0, "lr_per": "round", "k": 3}, [0.5] * 3 + [0.5 * 7 / 8] * 3 + [0.5 * 6 / 8] * 2),
        # A warm-up of 5 steps: 1/5 until step 3, 4/5 until step 6, and then the line begins.
        ({"lr_warmup": 0.0, "lr_per": "round", "k": 3, "warmup": 5}, [0.1] * 3 + [0.4] * 3 + [0.5] * 2),
    ],
)
@pytest.mark.parametrize("word", LOOKAHEADS)
def test_the_learning_rate_is_multiplied_and_the_factor_comes_in_slowly(
    word: str, hyper: dict[str, Any], rates: list[float], drawings: Path, tmp_path: Path
) -> None:
    hyper = dict(hyper)
    config = small_config(
        drawings,
        algorithm=word,
        optimizer="sgd",
        lr=0.1,
        warmup=hyper.pop("warmup", 0),
        schedule="linear" if "lr_per" in hyper else "constant",
        steps=8,
        eval_every=8,
        hyper=hyper,
    )
    logged = [line["lr"] for line in metrics(fit(config, tmp_path)) if line["kind"] == "train"]
    assert logged == pytest.approx(rates)


def test_sums_without_lookahead_keep_their_learning_rate() -> None:
    for name in ("erm", "disam", "sagm+swad"):
        recipe = parse(name)
        assert LargeRate.of(recipe, recipe.hyper()) == LargeRate()


def test_gsam_s_falling_radius_begins_at_rho_at_the_large_rate(drawings: Path, tmp_path: Path) -> None:
    from steppe.training.machine import Machine, accelerator
    from steppe.training.session import Session

    config = small_config(
        drawings, algorithm="gsam+lookahead", schedule="linear", rho=0.5, rho_min=0.1, hyper={"lr_warmup": 0.0}
    )
    session = Session(config, accelerator(Machine(device="cpu"), "no"), classes=3, domains=("a", "b"))
    assert "Proportional(0.5, 0.1, lr_max=0.005, lr_min=0.0)" in repr(session.method)
    assert session.base.param_groups[0]["lr"] == pytest.approx(0.005)


def test_a_divergence_is_named_with_the_factor(drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings, algorithm="lookahead", optimizer="sgd", lr=1e6, hyper={"lr_warmup": 0.0})
    with pytest.raises(SteppeError, match=r"not finite.*learning rate 5e\+06.*multiplies the learning rate by 5"):
        fit(config, tmp_path)


class Heard:
    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, name: str, *, step: int, total: int) -> None: ...

    def advance(self, step: int, loss: float) -> None: ...

    def evaluated(self, step: int, validation: float, loss: float, seconds: float) -> None: ...

    def say(self, message: str) -> None:
        self.said.append(message)


def test_a_loss_that_grows_is_told_once(drawings: Path, tmp_path: Path) -> None:
    heard = Heard()
    rates = {"optimizer": "sgd", "lr": 3.0, "momentum": 0.0, "weight_decay": 0.0}
    config = small_config(drawings, **rates, frozen_batch_norm=True, steps=3, eval_every=3)
    fit(config, tmp_path, report=heard)
    (warning,) = [said for said in heard.said if "diverges" in said]
    assert "at step 3" in warning
    assert "learning rate 3." in warning
    fit(small_config(drawings), tmp_path / "calm", report=(calm := Heard()))
    assert not calm.said


def test_a_divergence_within_the_first_line_of_the_log_is_told(drawings: Path, tmp_path: Path) -> None:
    heard = Heard()
    rates = {"optimizer": "sgd", "lr": 3.0, "momentum": 0.0, "weight_decay": 0.0}
    config = small_config(drawings, **rates, frozen_batch_norm=True, steps=4, eval_every=40)
    with pytest.raises(SteppeError, match="not finite in the evaluation"):
        fit(config, tmp_path, report=heard)
    assert [line["step"] for line in metrics(tmp_path) if line["kind"] == "train"] == [4], "one line"
    (warning,) = [said for said in heard.said if "diverges" in said]
    assert "at step 4, and was 1.09 in the first step" in warning


# --- whole runs ---


def test_lookahead_is_selected_by_its_slow_weights(drawings: Path, tmp_path: Path) -> None:
    # α so small that the slow weights stay at the first, however far the fast ones run.
    config = small_config(
        drawings, algorithm="lookahead", frozen_batch_norm=True, hyper={"alpha": 1e-12, "k": 5}, steps=8, eval_every=8
    )
    run = fit(config, tmp_path)
    torch.manual_seed(config.seed)
    first = build_classifier(config.backbone, 3, pretrained=False, frozen_batch_norm=True).state_dict()
    found = load_file(run / "model.safetensors")
    for name, tensor in first.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("word", AVERAGES)
def test_a_run_ends_with_its_average(word: str, drawings: Path, tmp_path: Path) -> None:
    hyper = {"swad": {"n_converge": 1, "n_tolerance": 1}, "swa": {"start": 3}, "ema": {"decay": 0.5}}[word]
    config = small_config(drawings, algorithm=word, frozen_batch_norm=True, hyper=hyper, optimizer="sgd", lr=1e-2)
    plain = small_config(drawings, frozen_batch_norm=True, optimizer="sgd", lr=1e-2, steps=12, eval_every=1)
    found, content = load_file(fit(config, tmp_path / "averaged") / "model.safetensors"), result(tmp_path / "averaged")
    # The same weights step by step, from plain runs cut short: training is the same whatever is averaged.
    steps = [weights_after(step, plain, tmp_path) for step in range(1, 13)]
    first, last = content["average"]["start"], content["average"]["end"]
    assert content["selected_step"] == last
    if word == "swa":
        assert (first, last) == (4, 12)
    for name in steps[0]:
        if not steps[0][name].is_floating_point() or "running" in name:
            continue
        if word == "ema":
            mean = steps[0][name].double()
            for step in steps[1:]:
                mean = 0.5 * mean + 0.5 * step[name].double()
        else:
            mean = sum(step[name].double() for step in steps[first - 1 : last]) / (last - first + 1)
        torch.testing.assert_close(found[name].double(), mean, rtol=1e-5, atol=1e-7, msg=name)


def weights_after(step: int, config: RunConfig, tmp_path: Path) -> dict[str, torch.Tensor]:
    import dataclasses

    cut = dataclasses.replace(config, steps=step, eval_every=step)
    return load_file(fit(cut, tmp_path / str(step)) / "model.safetensors")


@pytest.mark.parametrize("word", ["swad", "swa", "ema", "lookahead"])
def test_running_statistics_are_those_of_the_final_weights(word: str, drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings, algorithm=word, hyper={"bn_batches": 2}, steps=4, eval_every=2)
    run = fit(config, tmp_path / "estimated")
    assert result(run)["batch_norm_batches"] == 2
    found = load_file(run / "model.safetensors")
    assert {int(t) for name, t in found.items() if "num_batches" in name} == {2}
    kept = small_config(drawings, algorithm=word, hyper={"bn_batches": 0}, steps=4, eval_every=2)
    assert "batch_norm_batches" not in result(fit(kept, tmp_path / "kept"))
    frozen = small_config(drawings, algorithm=word, frozen_batch_norm=True, steps=4, eval_every=2)
    assert "batch_norm_batches" not in result(fit(frozen, tmp_path / "frozen"))


def test_what_cannot_come_to_effect_is_noted() -> None:
    def notes(algorithm: str, **changes: Any) -> str:
        return " ".join(RunConfig(held_out="line", algorithm=algorithm, steps=10, **changes).notes)

    assert "swad.n_converge is 3, and the run has 1 evaluations" in notes("swad")
    assert not notes("swad", eval_every=3)
    assert "swa.start is 10, and the run has 9 steps to average" in notes("swa", hyper={"start": 10})
    assert "lookahead.k is 15, and the run has 10 steps" in notes("lookahead")
    assert not notes("lookahead", hyper={"k": 10}, optimizer="sgd")


def test_a_large_rate_of_another_optimizer_and_an_anchor_of_a_mean_are_noted() -> None:
    def notes(algorithm: str, hyper: dict[str, Any], optimizer: Any = "sgd") -> str:
        return " ".join(RunConfig(held_out="line", algorithm=algorithm, hyper=hyper, optimizer=optimizer).notes)

    for word in LOOKAHEADS:
        said = notes(f"disam+{word}", {"anchor": 0}, "adam")
        assert f"{word} multiplies the learning rate by 5, which is published for sgd alone" in said
        assert "optimizer is adam" in said
        assert not notes(word, {"anchor": 0, "lr_factor": 5}, "adam"), "asked for"
        assert not notes(word, {"anchor": 0, f"{word}.lr_factor": 1}, "adam")
        assert f"{word}.anchor is 0.5 times a mean over all weights" in notes(word, {"anchor": 0.5})
        assert not notes(word, {"anchor": 0.5, "anchor_reduction": "sum"})
    assert "lookahead-anchor.anchor is 0.01" in notes("lookahead-anchor", {})
    assert not notes("disam", {}, "adam")


def test_swad_that_does_not_converge_says_which_weights_it_gives(drawings: Path, tmp_path: Path) -> None:
    heard = Heard()
    config = small_config(drawings, algorithm="swad", frozen_batch_norm=True, steps=4, eval_every=2)
    fit(config, tmp_path, report=heard)
    assert any("warning" in said and "last segment" in said for said in heard.said)
    assert result(tmp_path)["average"] == {"start": 3, "end": 4}
