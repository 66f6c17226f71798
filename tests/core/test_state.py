"""What is saved: into and out of a bare base optimizer, copies, states that are refused, names. (See test_resume.)"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from every_method import Classifier, batch, closure_of, same, train, weights
from problems import EVERY
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import steppe

method = pytest.mark.parametrize("name", EVERY)
BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}
REMEMBERING = ["friendly", "vasso", "looksam", "tram", "tram-initial", "tram-ema", "everything"]


def trained(name: str, steps: int = 2, model: nn.Module | None = None) -> tuple[nn.Module, steppe.SharpnessAware]:
    model = model or Classifier(dropout=0.1)
    optimizer = EVERY[name](torch.optim.AdamW(model.parameters(), lr=0.01), model)
    train(optimizer, model, range(steps))
    return model, optimizer


def plain_steps(optimizer: torch.optim.Optimizer, model: nn.Module, steps: range) -> Tensor:
    for number in steps:
        x, y, _ = batch(number)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return weights(model)


# --- a bare base optimizer ---


@method
@pytest.mark.parametrize("base", BASES)
def test_the_state_loads_into_a_bare_base_optimizer_and_back(name, base) -> None:
    model = Classifier()
    inner = BASES[base]([{"params": [p], "rho": 0.1 * i} for i, p in enumerate(model.parameters())])
    optimizer = EVERY[name](inner, model)
    train(optimizer, model, range(3))
    saved = copy.deepcopy(optimizer.state_dict())  # torch's own state dicts share their tensors
    assert set(saved) == {"state", "param_groups", "steppe"}
    assert not any("steppe" in str(key) for state in saved["state"].values() for key in state)

    # ours → bare: the bare optimizer goes on as the base would have
    bare_model = copy.deepcopy(model)
    bare = BASES[base]([{"params": [p]} for p in bare_model.parameters()])
    bare.load_state_dict(saved)
    bare_weights = plain_steps(bare, bare_model, range(3, 5))
    assert torch.equal(plain_steps(inner, model, range(3, 5)), bare_weights)

    # bare → ours: ρ, which a bare state dict lacks, survives
    for group in bare.param_groups:
        del group["rho"]
    optimizer.load_state_dict(copy.deepcopy(bare.state_dict()))
    assert [group["rho"] for group in optimizer.param_groups] == [0.1 * i for i in range(6)]
    # ours → ours: the saved ρ wins
    saved["param_groups"][0]["rho"] = 0.7
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["rho"] == 0.7
    train(optimizer, model, range(5, 6))


def test_loading_before_the_first_step_and_lazy_state() -> None:
    """A foreign key in ``state[p]`` would stop AdamW from initialising its moments."""
    for name in EVERY:
        model = Classifier()
        optimizer = EVERY[name](torch.optim.AdamW(model.parameters(), lr=0.01), model)
        optimizer.load_state_dict(optimizer.state_dict())
        train(optimizer, model, range(2))
        assert set(optimizer.state[next(model.parameters())]) == {"step", "exp_avg", "exp_avg_sq"}


@method
def test_a_state_is_complete_before_the_first_step(name) -> None:
    """As a distributed checkpoint needs, which loads in place: nothing comes or goes with the steps."""
    fresh, used = trained(name, 0)[1].extra_state(), trained(name, 3)[1].extra_state()

    def shapes(state: Any) -> Any:
        if isinstance(state, dict):
            return {key: shapes(value) for key, value in state.items()}
        return (state.shape, state.dtype) if isinstance(state, Tensor) else type(state)

    assert shapes(fresh) == shapes(used)
    torch.save(used, file := io.BytesIO())
    file.seek(0)
    assert same(torch.load(file, weights_only=True), used)


@pytest.mark.parametrize("name", ["vasso", "looksam", "tram-initial", "tram-ema", "everything"])
def test_two_models_whose_parameters_have_the_same_names(name) -> None:
    """Each has a ``weight``: what is remembered of one must not be taken for the other's."""

    def towers(seed: int) -> tuple[nn.Sequential, steppe.SharpnessAware]:
        torch.manual_seed(seed)
        first, second = nn.Linear(6, 6), nn.Linear(6, 6)
        named = [*first.named_parameters(), *second.named_parameters()]
        optimizer = EVERY[name](torch.optim.SGD(named, lr=0.1, momentum=0.9), second)
        return nn.Sequential(first, nn.Tanh(), second), optimizer

    (model, optimizer), (resumed, other) = towers(0), towers(1)
    torch.manual_seed(2)
    train(optimizer, model, range(3))
    resumed.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((model, optimizer), (resumed, other)):
        torch.manual_seed(3)
        for number in range(3, 6):
            its.step(closure_of(its, each, number))
    assert torch.equal(weights(model), weights(resumed))


def test_a_name_that_is_another_ones_number() -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = steppe.VaSSO(torch.optim.SGD([first, second], lr=0.1), model=nn.ParameterList([second]))
    remembered = optimizer.extra_state()["memory"]["geometry"]["gradient"]
    assert sorted(tensor.shape for tensor in remembered.values()) == [(2,), (3,)]


@pytest.mark.parametrize("name", ["tram", "tram-initial", "tram-ema", "disam+tram+sagm", "everything"])
def test_saving_before_the_first_climb_changes_nothing(name) -> None:
    """θ_0 is what the weights were at first, and not when a checkpoint happened to be made."""
    ends = []
    for saved_after in (None, 0, 2):
        model = Classifier()
        optimizer = EVERY[name](torch.optim.SGD(model.parameters(), lr=0.1), model)
        (group,) = optimizer.param_groups
        for number in range(5):
            group["rho"] = 0.0 if number < 3 else None
            if number == saved_after:
                optimizer.state_dict()
            torch.manual_seed(number)
            optimizer.step(closure_of(optimizer, model, number))
        assert optimizer.diagnostics["radius"] > 0
        ends.append(weights(model))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_a_state_of_another_method_begins_anew() -> None:
    for source, target in [("sam", "everything"), ("everything", "tram"), ("friendly", "looksam"), ("tram", "sam")]:
        _, giver = trained(source)
        model, taker = trained(target, 0)
        taker.load_state_dict(copy.deepcopy(giver.state_dict()))
        train(taker, model, range(3))
        assert weights(model).isfinite().all()


# --- copies ---


def pickled(pair: Any) -> Any:
    return pickle.loads(pickle.dumps(pair))


def filed(pair: Any) -> Any:
    torch.save(pair, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


@method
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, filed])
def test_a_copy_of_model_and_optimizer_goes_its_own_way(name, copied: Callable[[Any], Any]) -> None:
    """Also of a model that a trust region watches: the copy watches the copied model."""
    pair = trained(name)
    model, optimizer = copied(pair)
    ends = []
    for each, stepped in (pair, (model, optimizer)):
        torch.manual_seed(7)
        before = [weights(m) for m, _ in (pair, (model, optimizer))]
        train(stepped, each, range(2, 4))
        after = [weights(m) for m, _ in (pair, (model, optimizer))]
        assert sum(torch.equal(*w) for w in zip(before, after, strict=True)) == 1  # only its own moved
        ends.append(weights(each))
    assert torch.equal(*ends)
    for _, part in optimizer.parts.with_member("model"):
        assert part.model is model


# --- states that are refused ---


class Renamed(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.third = self.second
        del self.second

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.norm(self.first(x)))


class Wider(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 16)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x, x[:, :1]], 1))


@pytest.mark.parametrize("name", REMEMBERING)
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Renamed, "nothing for the parameter 'third.weight'.*another model"),
        (Wider, r"'first.weight'.*\(16, 6\).*\(16, 7\)"),
    ],
)
def test_a_state_of_another_model_is_refused_and_changes_nothing(name, other, message) -> None:
    _, giver = trained(name)
    _, optimizer = trained(name, model=other())
    before, theirs = copy.deepcopy(optimizer.state_dict()), giver.state_dict()
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(theirs)
    assert same(optimizer.state_dict(), before)


def test_a_newer_state_is_refused() -> None:
    _, optimizer = trained("everything")
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="newer steppe"):
        optimizer.load_state_dict({**before, "steppe": {**before["steppe"], "version": 99}})
    assert same(optimizer.state_dict(), before)


# --- names ---


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bare": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "distributed": nn.parallel.DistributedDataParallel,
    "compiled and distributed": lambda model: torch.compile(
        nn.parallel.DistributedDataParallel(model), backend="eager"
    ),
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin")
@pytest.mark.parametrize("name", ["tram-ema", "everything"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_are_the_models_own_however_it_is_wrapped(name, wrapper) -> None:
    """A state goes from a wrapped model to a bare one and back."""
    model = Classifier()
    wrapped = WRAPPERS[wrapper](model)
    optimizer = EVERY[name](torch.optim.AdamW(wrapped.parameters(), lr=0.01), wrapped)
    train(optimizer, wrapped, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    assert all(
        set(tensors) == {key for key, _ in model.named_parameters()}
        for part in saved["steppe"]["memory"].values()
        for tensors in part.values()
    )
    bare = copy.deepcopy(model)
    loaded = EVERY[name](torch.optim.AdamW(bare.parameters(), lr=0.01), bare)
    loaded.load_state_dict(saved)
    optimizer.load_state_dict(copy.deepcopy(loaded.state_dict()))
    for each, stepped in ((bare, loaded), (wrapped, optimizer)):
        torch.manual_seed(0)
        train(stepped, each, range(2, 4))
    torch.testing.assert_close(weights(bare), weights(model), atol=1e-6, rtol=0)


def test_names_of_a_compiled_models_parameters_without_the_model() -> None:
    """As the base optimizer was given them."""
    states = []
    for wrapper in ("bare", "compiled"):
        wrapped = WRAPPERS[wrapper](Classifier())
        optimizer = steppe.FriendlySAM(torch.optim.SGD(wrapped.named_parameters(), lr=0.1))
        train(optimizer, wrapped, range(1))
        states.append(optimizer.extra_state()["memory"]["geometry"]["gradient"])
    assert states[0].keys() == states[1].keys() == {key for key, _ in Classifier().named_parameters()}


def test_without_names_parameters_go_by_number_and_that_is_said() -> None:
    model = Classifier()
    nameless = steppe.FriendlySAM(torch.optim.SGD(model.parameters(), lr=0.1))
    nameless.step(closure_of(nameless, model, 0))
    saved = copy.deepcopy(nameless.state_dict())
    assert set(saved["steppe"]["memory"]["geometry"]["gradient"]) == {str(number) for number in range(6)}
    again = steppe.FriendlySAM(torch.optim.SGD(Classifier().parameters(), lr=0.1))
    again.load_state_dict(saved)
    assert same(again.extra_state(), nameless.extra_state())
    _, named = trained("friendly")
    with pytest.raises(ValueError, match=r"the parameter 'first.weight'.*\(pass model=\)"):
        named.load_state_dict(saved)
