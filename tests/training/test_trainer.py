from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from small_runs import metrics, outputs, result, small_config
from torch.nn import functional as F

import steppe
from steppe.data import DomainDataset, balanced_loader, eval_transform, make_splits, open_dataset, train_transform
from steppe.errors import SteppeError
from steppe.models import build_classifier
from steppe.training import Machine, NonFiniteLossError, RunConfig, Trainer
from steppe.training.config import canonical_json
from steppe.training.schedules import rate_factor
from steppe.training.session import Session


def fit(config: RunConfig, out: Path, **options: Any) -> Path:
    Trainer(config, out=out, command="test", **options).fit()
    return out


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    with safe_open(run / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


# --- the loop is the loop that a user would write ---


def by_hand(config: RunConfig) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Plain PyTorch: domain losses of every step, and the weights at the end."""
    dataset = open_dataset(config.dataset)
    splits = make_splits(dataset, config.held_out, trial_seed=config.seed)
    torch.manual_seed(config.seed)
    model = build_classifier(config.backbone, len(dataset.classes), pretrained=False, dropout=config.dropout)
    model = model.to(memory_format=torch.channels_last)
    base = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    optimizer = steppe.DISAM(base, rho=0.05, lam=0.1, model=model) if config.algorithm == "disam" else base
    scheduler = torch.optim.lr_scheduler.LinearLR(base, start_factor=1.0, end_factor=0.0, total_iters=config.steps)
    names = list(splits.train)
    history = []
    for x, y, domain in balanced_loader(
        dataset,
        splits.train,
        batch_per_domain=config.batch_per_domain,
        start=0,
        stop=config.steps,
        seed=config.seed,
        transform=train_transform(config.image_size, model.mean, model.std),
    ):
        seen: list[torch.Tensor] = []

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            losses = F.cross_entropy(model(x), y, reduction="none")  # noqa: B023 - called in this turn
            seen.append(losses.detach())  # noqa: B023
            loss = optimizer.objective(losses, domain) if optimizer is not base else losses.mean()  # noqa: B023
            loss.backward()
            return loss

        optimizer.step(closure)
        scheduler.step()
        means, _, _ = steppe.domain_means(seen[0], domain)
        history.append(dict(zip(names, means.tolist(), strict=True)))
    return history, model.state_dict()


@pytest.mark.parametrize("algorithm", ["erm", "disam"])
def test_a_run_equals_a_hand_written_loop_bit_for_bit(algorithm: str, drawings: Path, tmp_path: Path) -> None:
    # One evaluation, at the end, so that the selected weights are the last; a line of the log for every step.
    config = small_config(drawings, algorithm=algorithm, steps=8, eval_every=8, schedule="linear", dropout=0.2)
    history, weights = by_hand(config)
    run = fit(config, tmp_path)
    logged = [line for line in metrics(run) if line["kind"] == "train"]
    assert [line["step"] for line in logged] == list(range(1, 9))
    for line, expected in zip(logged, history, strict=True):
        assert line["domain_loss"] == pytest.approx(expected, rel=1e-6)
    found = weights_of(run)
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("algorithm", ["sam", "disam+sagm"])
def test_the_gradient_is_clipped_where_the_base_optimizer_gets_it(
    algorithm: str, drawings: Path, tmp_path: Path
) -> None:
    # Plain SGD moves by lr times the gradient: with the limit every step has at most that length.
    config = small_config(
        drawings, algorithm=algorithm, optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=1.0, clip_norm=1e-3, steps=1
    )
    torch.manual_seed(config.seed)
    before = build_classifier(config.backbone, 3, pretrained=False).state_dict()
    after = weights_of(fit(config, tmp_path))
    moved = [(after[n] - before[n]).flatten() for n in before if "running" not in n and "num_batches" not in n]
    assert float(torch.cat(moved).norm()) == pytest.approx(1e-3, rel=1e-2)


# --- what a run says ---


def test_the_files_of_a_run_agree_with_each_other_and_with_the_model(drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings, algorithm="sam", frozen_batch_norm=True)
    run = fit(config, tmp_path)
    content = json.loads((run / "result.json").read_text())
    stored = json.loads((run / "config.json").read_text())
    assert content["version"] == 2
    assert content["id"] == Trainer(config, out=tmp_path).id
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "predictions.json",
        "result.json",
    ]

    # The selected step is the first best of the evaluations, by the mean over the source domains.
    evaluations = [line for line in metrics(run) if line["kind"] == "eval"]
    assert [line["step"] for line in evaluations] == [4, 8, 12]
    scores = [np.mean([line["accuracy"][d]["out"] for d in ("fluent", "noto")]) for line in evaluations]
    best = evaluations[int(np.argmax(scores))]
    assert content["selected_step"] == best["step"]
    assert content["validation_accuracy"] == max(scores)
    assert content["accuracy"] == best["accuracy"]
    assert content["held_out_accuracy"] == best["accuracy"]["line"]["in"]
    assert content["held_out_accuracy_all"] == best["accuracy"]["line"]["all"]
    assert content["in_domain_accuracy"] == np.mean([best["accuracy"][d]["out"] for d in ("fluent", "noto")])

    # The stored weights, loaded into a new model, predict what is stored.
    dataset = open_dataset(drawings)
    model = build_classifier(config.backbone, 3, pretrained=False).eval()
    model.load_state_dict(weights_of(run))
    transform = eval_transform(32, model.mean, model.std)
    predictions = json.loads((run / "predictions.json").read_text())
    assert list(predictions) == list(dataset.domains)
    for domain, rows in predictions.items():
        split = "in" if domain == "line" else "out"
        assert len(rows) == content["counts"][domain][split]
        for row in rows:
            with torch.no_grad():
                logits = model(transform(dataset.image(domain, row["index"]))[None])[0]
            assert row["key"] == dataset.key(domain, row["index"])
            assert row["label"] == dataset.labels(domain)[row["index"]]
            assert row["predicted"] == int(logits.argmax())
            assert row["confidence"] == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)
        assert np.mean([row["label"] == row["predicted"] for row in rows]) == content["accuracy"][domain][split]

    with safe_open(run / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"config": canonical_json(stored)}


def test_the_strict_split_keeps_the_answer_apart(tmp_path: Path) -> None:
    config = small_config("emoji", algorithm="disam", steps=2, eval_every=2)
    run = fit(config, tmp_path)
    content = result(run)
    assert (content["answer"], content["in_domain"]) == ("test", "test")
    rows = json.loads((run / "predictions.json").read_text())
    answer = {row["key"] for row in rows["line"]}
    splits = make_splits(open_dataset("emoji"), "line")
    trained = {open_dataset("emoji").key("noto", int(index)) for index in splits.train["noto"]}
    assert answer
    assert not answer & trained


# --- reproducibility ---


def test_same_seed_same_bits_other_seed_other_bits(drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings, algorithm="disam", dropout=0.3)
    first = outputs(fit(config, tmp_path / "first"))
    torch.randn(7)  # whatever the process did before
    assert outputs(fit(config, tmp_path / "again")) == first
    assert outputs(fit(config, tmp_path / "workers", machine=Machine(workers=2))) == first
    other = outputs(fit(small_config(drawings, algorithm="disam", dropout=0.3, seed=1), tmp_path / "other"))
    assert other["metrics"] != first["metrics"]


class Replaced(DomainDataset):
    """Another set whose pictures of one domain are all white."""

    def __init__(self, dataset: DomainDataset, domain: str) -> None:
        self.inner, self.domain = dataset, domain
        self.name, self.spec, self.classes, self.domains = dataset.name, dataset.spec, dataset.classes, dataset.domains

    def labels(self, domain: str) -> Any:
        return self.inner.labels(domain)

    def image(self, domain: str, index: int) -> Image.Image:
        return Image.new("RGB", (32, 32), "white") if domain == self.domain else self.inner.image(domain, index)

    def key(self, domain: str, index: int) -> str:
        return self.inner.key(domain, index)

    def fingerprint(self) -> str:
        return self.inner.fingerprint()


def test_the_held_out_domain_has_no_influence_on_the_model(drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings, algorithm="disam")
    dataset = open_dataset(drawings)
    seen = fit(config, tmp_path / "seen", dataset=dataset)
    unseen = fit(config, tmp_path / "unseen", dataset=Replaced(dataset, "line"))
    assert (seen / "model.safetensors").read_bytes() == (unseen / "model.safetensors").read_bytes()
    assert result(seen)["selected_step"] == result(unseen)["selected_step"]
    assert result(seen)["loss"]["line"] != result(unseen)["loss"]["line"]


def test_a_finished_run_is_not_trained_again(drawings: Path, tmp_path: Path) -> None:
    config = small_config(drawings)
    first = fit(config, tmp_path)
    stamps = {path.name: path.stat().st_mtime_ns for path in first.iterdir() if path.name != ".lock"}
    assert Trainer(config, out=tmp_path).fit().content == json.loads((first / "result.json").read_text())
    assert {path.name: path.stat().st_mtime_ns for path in first.iterdir() if path.name != ".lock"} == stamps


def test_a_directory_with_another_run_is_left_alone(drawings: Path, tmp_path: Path) -> None:
    run = fit(small_config(drawings), tmp_path)
    before = outputs(run)
    with pytest.raises(SteppeError, match=r"holds another run \(it differs in lr, seed\)"):
        fit(small_config(drawings, seed=1, lr=1e-2), tmp_path)
    assert outputs(run) == before


# --- precision, schedule ---


@pytest.mark.parametrize("algorithm", ["erm", "disam"])
def test_bf16_is_mixed_precision(algorithm: str, drawings: Path, tmp_path: Path) -> None:
    full = fit(small_config(drawings, algorithm=algorithm), tmp_path / "full")
    mixed = fit(small_config(drawings, algorithm=algorithm, precision="bf16"), tmp_path / "mixed")
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in weights_of(mixed).values())
    losses = [[line["loss"] for line in metrics(run) if line["kind"] == "train"] for run in (full, mixed)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0][:4], losses[1][:4], rtol=0.05)  # later on the two paths part


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which can do fp16")
def test_what_the_device_cannot_do_is_said_before_training(drawings: Path, tmp_path: Path) -> None:
    with pytest.raises(SteppeError, match="precision fp16 needs a GPU"):
        fit(small_config(drawings, precision="fp16"), tmp_path)
    with pytest.raises(SteppeError, match="no CUDA device"):
        fit(small_config(drawings), tmp_path, machine=Machine(device="cuda"))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
    ],
)
def test_the_learning_rate_warms_up_and_falls(
    schedule: str, expected: list[float], drawings: Path, tmp_path: Path
) -> None:
    config = small_config(drawings, schedule=schedule, warmup=2, steps=6, lr=1e-3)
    assert [rate_factor(config, step) for step in range(6)] == pytest.approx(expected)
    logged = [line["lr"] for line in metrics(fit(config, tmp_path)) if line["kind"] == "train"]
    assert logged == pytest.approx([1e-3 * factor for factor in expected])


# --- training that breaks down ---


@pytest.mark.parametrize("algorithm", ["erm", "disam"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    algorithm: str, drawings: Path, tmp_path: Path
) -> None:
    # A rate that rises to 30 with plain SGD and no normalisation: the loss overflows in the fifth step.
    wild: dict[str, Any] = {"algorithm": algorithm, "optimizer": "sgd", "lr": 30.0, "frozen_batch_norm": True}
    run = tmp_path / "run"
    with pytest.raises(NonFiniteLossError) as caught:
        fit(small_config(drawings, **wild, steps=40, warmup=11, eval_every=3), run)
    error = caught.value
    state = torch.load(run / "state.pt", weights_only=True)
    assert state["step"] == 3 < error.step <= 6
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())
    assert error.domains
    assert set(error.domains) <= {"fluent", "noto"}
    assert error.lr == pytest.approx(30 * error.step / 11)
    for part in (
        f"step {error.step} ",
        error.domains[0],
        f"learning rate {error.lr:g}",
        f"the last good checkpoint, of step 3, is kept in {run / 'state.pt'}",
    ):
        assert part in str(error)
    assert not (run / "result.json").exists()
    assert "NaN" not in (run / "metrics.jsonl").read_text()

    # Losses are looked at every fourth step only, and the step is the same.
    with pytest.raises(NonFiniteLossError, match="no checkpoint had been written yet") as caught:
        fit(small_config(drawings, **wild, steps=40, warmup=11, eval_every=40), tmp_path / "coarse")
    assert (caught.value.step, caught.value.domains, caught.value.lr) == (error.step, error.domains, error.lr)

    # The same command goes on from the good checkpoint and meets the same end.
    with pytest.raises(NonFiniteLossError) as caught:
        fit(small_config(drawings, **wild, steps=40, warmup=11, eval_every=3), run)
    assert caught.value.step == error.step


def test_weights_that_are_not_finite_are_never_saved(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Losses stay finite up to the evaluation; only the weights tell.
    make_step = Session.make_step

    def poisoned(self: Session, batch: Any) -> None:
        make_step(self, batch)
        if self.step == 8:
            with torch.no_grad():
                self.model.head.bias[0] = math.nan

    monkeypatch.setattr(Session, "make_step", poisoned)
    with pytest.raises(NonFiniteLossError, match="weights or optimizer state are not finite after step 8, at learning"):
        fit(small_config(drawings), tmp_path)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4


def test_one_picture_a_step_is_nothing_to_normalise_by(drawings: Path, tmp_path: Path) -> None:
    dataset = open_dataset(drawings)
    dataset.domains = ("noto", "line")
    config = small_config(drawings, batch_per_domain=1, steps=2, eval_every=2)
    with pytest.raises(SteppeError, match=r"a step has one picture.*batch_per_domain"):
        Trainer(config, out=tmp_path / "run", dataset=dataset).fit()
    frozen = small_config(drawings, batch_per_domain=1, steps=2, eval_every=2, frozen_batch_norm=True)
    assert Trainer(frozen, out=tmp_path / "frozen", dataset=dataset).fit().selected_step == 2
