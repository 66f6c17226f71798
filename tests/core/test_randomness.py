"""Dropout, references, noise, activation checkpointing: who draws from which generator, and how often."""

from __future__ import annotations

import pytest
import torch
from every_method import Classifier, batch, closure_of, train, weights
from problems import EVERY
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import steppe

method = pytest.mark.parametrize("name", EVERY)
TRAMS = ["tram", "tram-initial", "tram-ema", "tram-noise"]


def optimizer_of(name: str, model: nn.Module, **options) -> steppe.SharpnessAware:
    return EVERY[name](torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, **options)


class Masks:
    """The dropout masks of the passes and of the references' forward passes, by hooks on the layer."""

    def __init__(self, model: Classifier) -> None:
        self.passes: list[Tensor] = []
        self.references: list[Tensor] = []
        model.dropout.register_forward_hook(self._note)

    def _note(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        (self.passes if torch.is_grad_enabled() else self.references).append((output != 0).detach())


# --- the masks of a step's passes ---


@method
@pytest.mark.parametrize("same", [True, False])
def test_dropout_in_the_passes_of_a_step(name, same) -> None:
    model = Classifier(dropout=0.5)
    masks, optimizer = Masks(model), optimizer_of(name, model, same_dropout=same)
    for number in range(3):
        masks.passes.clear()
        torch.manual_seed(number)
        optimizer.step(closure_of(optimizer, model, number))
        drawn, parts = torch.get_rng_state(), optimizer._share.parts
        torch.manual_seed(number)
        for mask in masks.passes[-1:] * parts if same else masks.passes:
            nn.Dropout(0.5)(torch.ones(mask.shape))
        assert torch.equal(torch.get_rng_state(), drawn)
        alike = [mask for mask in masks.passes if parts == 1 and mask.shape == masks.passes[-1].shape]
        assert all(torch.equal(mask, alike[0]) == same for mask in alike[1:])


def test_every_part_of_the_batch_has_masks_of_its_own() -> None:
    model = Classifier(dropout=0.5)
    masks, optimizer = Masks(model), optimizer_of("m-sharpness", model, same_dropout=True)
    optimizer.step(closure_of(optimizer, model, 0))
    first, again, second, still = masks.passes
    assert torch.equal(first, again)
    assert torch.equal(second, still)
    assert not torch.equal(first, second)


def test_the_masks_are_the_same_again_after_an_interrupted_step() -> None:
    """The state to go back to belongs to a step: it must not outlive one."""
    model = Classifier(dropout=0.5)
    masks, optimizer = Masks(model), optimizer_of("sam", model, same_dropout=True)

    def fail(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure_of(optimizer, model, 0, after=fail))
    optimizer.step(closure_of(optimizer, model, 0))
    interrupted, first, second = masks.passes
    assert torch.equal(first, second)
    assert not torch.equal(first, interrupted)


# --- references ---


@pytest.mark.parametrize("name", TRAMS)
def test_a_reference_has_the_models_masks_and_leaves_no_trace(name) -> None:
    """Neither in the global generator nor in BatchNorm: both are as SAM's passes leave them."""
    model, plain = Classifier(dropout=0.5), Classifier(dropout=0.5)
    masks, optimizer, sam = Masks(model), optimizer_of(name, model), optimizer_of("sam", plain)
    for number in range(3):
        masks.passes.clear()
        masks.references.clear()
        plain.load_state_dict(model.state_dict())
        torch.manual_seed(number)
        optimizer.step(closure_of(optimizer, model, number))
        after = torch.get_rng_state()
        torch.manual_seed(number)
        sam.step(closure_of(sam, plain, number))
        assert torch.equal(torch.get_rng_state(), after)
        assert len(masks.references) == (0 if name == "tram" and number == 0 else 1)
        assert all(torch.equal(mask, masks.passes[0]) for mask in masks.references)
        for key, buffer in model.named_buffers():
            assert torch.equal(buffer, dict(plain.named_buffers())[key]), key
    assert model.norm.num_batches_tracked == 3


@pytest.mark.parametrize("name", ["tram", "tram-initial", "tram-ema"])
def test_the_divergence_is_zero_in_the_first_step_with_dropout_and_batch_norm(name) -> None:
    radii = train(optimizer := optimizer_of(name, model := Classifier(dropout=0.5)), model, range(3))
    assert radii[0] == 0
    assert min(radii[1:]) > 0
    assert optimizer.climbs


def test_a_reference_in_evaluation_mode_is_not_the_model() -> None:
    """It has no dropout, and BatchNorm's running statistics."""
    for dropout, normalised in ((0.5, False), (0.0, True)):
        model = Classifier(dropout)
        if not normalised:
            model.norm = nn.Identity()
        optimizer = optimizer_of("tram-initial", model, reference_eval=True)
        assert min(train(optimizer, model, range(2))) > 0
        assert all(module.training for module in model.modules())
        assert not normalised or model.norm.num_batches_tracked == 2


# --- noise ---


class Inputs:
    """What the first layer was called with in passes and in references' forward passes, less the clean inputs."""

    def __init__(self, model: Classifier) -> None:
        self.noise: list[Tensor] = []
        self.clean: Tensor | None = None
        model.first.register_forward_hook(self._note)

    def _note(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        assert self.clean is not None
        noise = args[0].detach() - self.clean
        if noise.abs().max() > 0:
            self.noise.append(noise)


@pytest.mark.parametrize("name", ["tram-noise", "tram-fisher", "tram-fisher-shared"])
def test_noise_is_new_in_every_step_though_nothing_draws_from_the_global_generator(name) -> None:
    """As in a loop without dropout, or with all dropout on another device."""
    model = Classifier()
    inputs, optimizer = Inputs(model), optimizer_of(name, model)
    inputs.clean = batch(0)[0]
    before = torch.get_rng_state()
    train(optimizer, model, range(1))
    for _ in range(5):
        optimizer.step(closure_of(optimizer, model, 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(inputs.noise) == 6
    noise = torch.stack([noise.flatten() for noise in inputs.noise])
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.5
    assert noise.std().item() == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize("name", ["tram-noise", "tram-fisher", "tram-fisher-shared"])
def test_every_micro_batch_has_noise_of_its_own_and_every_seed_other_noise(name) -> None:
    noises = []
    for seed in (0, 1, 1):
        model = Classifier()
        inputs, optimizer = Inputs(model), optimizer_of(name, model)
        inputs.clean, y, _ = batch(0)
        torch.manual_seed(seed)
        for each in optimizer.passes():
            with each:
                for _ in range(2):
                    (optimizer.objective(cross_entropy(model(inputs.clean), y, reduction="none")) / 2).backward()
        optimizer.step()
        noises.append(inputs.noise)
    (a, b), (c, d), (again, _) = noises
    assert not torch.equal(a, b)
    assert not torch.equal(c, d)
    assert not torch.equal(a, c)
    assert torch.equal(c, again)


@pytest.mark.parametrize("name", ["tram-fisher", "tram-fisher-shared"])
def test_noise_does_not_shift_the_masks(name) -> None:
    model = Classifier(dropout=0.5)
    masks, optimizer = Masks(model), optimizer_of(name, model, same_dropout=True)
    optimizer.step(closure_of(optimizer, model, 0))
    assert all(torch.equal(mask, masks.passes[0]) for mask in masks.passes)
    assert len(masks.passes) == (2 if "shared" in name else 3)


# --- activation checkpointing ---


class Checkpointed(Classifier):
    """Recomputes what comes after BatchNorm, dropout included, in the backward pass."""

    reentrant: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x))
        if self.reentrant is None:
            return self.head(hidden)
        return checkpoint(self.head, hidden, use_reentrant=self.reentrant)

    def head(self, hidden: Tensor) -> Tensor:
        return self.second(self.dropout(torch.tanh(hidden)))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@method
@pytest.mark.parametrize("same", [True, False])
def test_activation_checkpointing_changes_nothing(name, same) -> None:
    runs = []
    for reentrant in (None, False, True):
        model = Checkpointed(dropout=0.5).double()
        model.reentrant = reentrant
        torch.manual_seed(0)
        radii = train(optimizer_of(name, model, same_dropout=same), model, range(3))
        runs.append((weights(model), radii, torch.get_rng_state()))
    for other in runs[1:]:
        torch.testing.assert_close(other[0], runs[0][0], atol=1e-12, rtol=0)
        assert other[1] == pytest.approx(runs[0][1], abs=1e-12)
        assert torch.equal(other[2], runs[0][2])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@method
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_the_whole_model(name, reentrant) -> None:
    """The hooks then see a call, and see it again in the backward pass."""
    plain, model = Classifier(dropout=0.5).double(), Classifier(dropout=0.5).double()
    torch.manual_seed(0)
    radii = train(optimizer_of(name, plain), plain, range(3))
    torch.manual_seed(0)
    again = train(
        optimizer_of(name, model), lambda x: checkpoint(model, x.requires_grad_(), use_reentrant=reentrant), range(3)
    )
    assert again == pytest.approx(radii, abs=1e-12)
    torch.testing.assert_close(weights(model), weights(plain), atol=1e-12, rtol=0)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("name", ["tram", "tram-x", "tram-fisher", "tram-fisher-shared"])
def test_checkpointed_micro_batches_see_the_same_noise_again(name) -> None:
    """Each recomputation repeats its own call, not the next one."""
    makers = {
        "tram": lambda base, model: steppe.TRAM(base, model),
        "tram-x": lambda base, model: steppe.TRAM(base, model, "noise"),
        "tram-fisher": lambda base, model: steppe.TRAMFisher(base, model),
        "tram-fisher-shared": lambda base, model: steppe.TRAMFisher(base, model, shared_pass=True),
    }
    runs = []
    for reentrant in (None, False, True):
        model = Classifier(dropout=0.3).double()
        torch.manual_seed(0)
        x, y = torch.randn(3, 5, model.first.in_features, dtype=torch.float64), torch.arange(15).view(3, 5) % 3
        optimizer = makers[name](torch.optim.SGD(model.parameters(), lr=0.1), model)
        for _ in range(3):
            for each in optimizer.passes():
                with each:
                    for part, labels in zip(x, y, strict=True):
                        part = part.clone().requires_grad_()
                        out = model(part) if reentrant is None else checkpoint(model, part, use_reentrant=reentrant)
                        (
                            optimizer.objective(torch.nn.functional.cross_entropy(out, labels, reduction="none")) / 3
                        ).backward()
            optimizer.step()
            optimizer.zero_grad()
        runs.append((weights(model), optimizer.diagnostics["radius"]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][0], runs[2][0])
    assert runs[0][1] > 0
