"""Running statistics re-estimated: torch's where they must be, the formula, what is kept, what is put back."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from steppe.averaging import reestimate_batch_norm
from steppe.errors import SteppeError
from steppe.models.classifier import Classifier


def network(dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(dropout), nn.Linear(4, 2), nn.BatchNorm1d(2)]
    model = nn.Sequential(*layers).to(dtype)
    for layer in (model[1], model[5]):  # as training leaves them
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        layer.num_batches_tracked.fill_(17)
    return model


def inputs(number: int = 5, dtype: torch.dtype = torch.float64, sizes: tuple[int, ...] = (6, 3, 8)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(sizes[i % len(sizes)], 3, generator=generator, dtype=torch.float64).to(dtype) + i
        for i in range(number)
    ]


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- what is computed ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_torchs_where_nothing_differs(dtype) -> None:
    ours, torchs = network(dtype), network(dtype)
    assert reestimate_batch_norm(ours, inputs(dtype=dtype)) == 5
    update_bn(inputs(dtype=dtype), torchs)
    assert same(ours.state_dict(), torchs.state_dict())
    assert ours[1].num_batches_tracked == 5


def test_it_is_the_mean_over_the_batches() -> None:
    model = network()
    reestimate_batch_norm(model, inputs())
    hidden = [model[0](x).detach() for x in inputs()]
    torch.testing.assert_close(model[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    normal = [(h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt() for h in hidden]
    second = [model[4](torch.tanh(n)).detach() for n in normal]  # the affine parameters are 1 and 0
    torch.testing.assert_close(model[5].running_mean, torch.stack([h.mean(0) for h in second]).mean(0))
    torch.testing.assert_close(model[5].running_var, torch.stack([h.var(0) for h in second]).mean(0))


def test_what_was_before_plays_no_part_and_it_is_reproducible() -> None:
    model, other = network(), network()
    other[1].running_mean.fill_(1e6)
    other[5].running_var.fill_(torch.nan)
    for each in (model, other):
        reestimate_batch_norm(each, inputs())
    assert same(buffers(model), buffers(other))
    reestimate_batch_norm(model, inputs())
    assert same(buffers(model), buffers(other))


def test_nothing_is_drawn_at_random_and_no_dropout() -> None:
    model, without = network(dropout=0.5), network(dropout=0.0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for each in (model, without):
        reestimate_batch_norm(each, inputs())
    assert torch.equal(torch.get_rng_state(), before)
    assert same(buffers(model), buffers(without))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype) -> None:
    """In bfloat16 a running mean would move no more with the later batches, which are others."""
    model, exact = network(dtype), network(torch.float32)
    exact.load_state_dict(model.state_dict())
    batches = [(torch.randn(4, 3) + (3 if number >= 300 else 0)).to(dtype) for number in range(600)]
    weight, mean = model[1].weight, model[1].running_mean
    assert reestimate_batch_norm(model, batches) == 600
    reestimate_batch_norm(exact, [x.float() for x in batches])
    assert model[1].weight is weight
    assert model[1].running_mean is mean
    assert all(tensor.dtype == dtype for tensor in model.state_dict().values() if tensor.is_floating_point())
    torch.testing.assert_close(model[1].running_mean.float(), exact[1].running_mean, rtol=0, atol=0.01)
    torch.testing.assert_close(model[1].running_var.float(), exact[1].running_var, rtol=0.02, atol=0)


def test_no_gradient_is_computed() -> None:
    model, seen = network(), []
    model.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    reestimate_batch_norm(model, inputs())
    assert seen == [False] * 5
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


# --- which layers ---


class Frozen(nn.Sequential):
    """Its first BatchNorm is never in training mode, as in a classifier with frozen BatchNorm."""

    def train(self, mode: bool = True):
        super().train(mode)
        self[1].eval()
        return self


@pytest.mark.parametrize("how", ["by train()", "by hand"])
@pytest.mark.parametrize("training", [True, False])
def test_layers_held_in_evaluation_mode_keep_their_statistics(how, training) -> None:
    model = Frozen(*network()) if how == "by train()" else network()
    model.train(training)
    if training and how == "by hand":
        model[1].eval()
    before = buffers(model)
    reestimate_batch_norm(model, inputs())
    kept = {name for name, buffer in buffers(model).items() if torch.equal(buffer, before[name])}
    held = how == "by train()" or training
    assert kept == ({"1.running_mean", "1.running_var", "1.num_batches_tracked"} if held else set())
    assert model.training == training
    if held:  # and normalise by them
        hidden = model[1].eval()(model[0](inputs()[0]))
        reestimate_batch_norm(model, inputs(1))
        torch.testing.assert_close(model[5].running_mean, model[4](torch.tanh(hidden)).mean(0))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_classifiers_frozen_batch_norm(frozen, training) -> None:
    backbone, norm = network()[:2], {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    model = Classifier(backbone, 4, 2, **norm, dropout=0.5, frozen_batch_norm=frozen).train(training)
    expected = network()
    update_bn(inputs(), expected)
    before = buffers(model)
    assert reestimate_batch_norm(model.double(), inputs()) == (0 if frozen else 5)
    assert torch.equal(buffers(model)["backbone.1.running_var"], expected[1].running_var) != frozen
    assert same(buffers(model), before) == frozen
    assert (backbone[1].training, model.dropout.training) == (training and not frozen, training)


class Unused(nn.Module):
    """One layer no batch reaches, one has no statistics, one is another kind of norm; one is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.bare = nn.BatchNorm1d(3, track_running_stats=False)
        self.other = nn.InstanceNorm1d(3, track_running_stats=True)
        for layer in (self.used, self.unused, self.other):
            layer.running_mean.fill_(5.0)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.other(x[..., None])[..., 0]
        self.used(x + 1)
        return self.bare(self.used(x))


def test_layers_without_statistics_or_calls() -> None:
    model = Unused()
    before = buffers(model)
    assert reestimate_batch_norm(model, inputs()) == 5
    after = buffers(model)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"used.running_mean", "used.running_var", "used.num_batches_tracked"}
    normal = [model.other.eval()(x[..., None])[..., 0] for x in inputs()]
    torch.testing.assert_close(after["used.running_mean"], torch.stack([n.mean(0) for n in normal]).mean(0) + 0.5)
    assert after["used.num_batches_tracked"] == 10


class Untouchable:
    def __iter__(self) -> Iterator[Tensor]:
        raise AssertionError("the batches were touched")


@pytest.mark.parametrize(
    "model",
    [nn.Linear(3, 2), nn.BatchNorm1d(3, track_running_stats=False), Frozen(*network()[:4]), nn.LayerNorm(3)],
    ids=["linear", "no statistics", "frozen", "another norm"],
)
def test_without_such_layers_nothing_is_done(model) -> None:
    for mode in (True, False):
        before = copy.deepcopy(model.train(mode).state_dict())
        assert reestimate_batch_norm(model, Untouchable()) == 0
        assert same(model.state_dict(), before)
        assert model.training == mode


# --- what goes in ---


class Batch(NamedTuple):
    x: Tensor
    y: Tensor


class Two(nn.Module):
    """Takes two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3).double()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.norm(one - other)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: (x, x[:, 0]),
        lambda x: [x, "a label"],
        lambda x: Batch(x, x[:, 0]),
        lambda x: {"input": x},
    ],
    ids=["tensor", "tuple", "list", "named tuple", "dict"],
)
def test_forms_of_a_batch(form) -> None:
    model, expected = network(), network()
    reestimate_batch_norm(expected, inputs())
    assert reestimate_batch_norm(model, [form(x) for x in inputs()]) == 5
    assert same(buffers(model), buffers(expected))


def test_several_inputs() -> None:
    found = []
    for form in (
        lambda x: {"one": x, "other": x * x},
        lambda x: ((x, x * x), 1),
        lambda x: [{"other": x * x, "one": x}],
    ):
        model = Two()
        reestimate_batch_norm(model, map(form, inputs()))
        found.append(model.norm.running_mean)
    torch.testing.assert_close(found[0], torch.stack([(x - x * x).mean(0) for x in inputs()]).mean(0))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_limit_draws_no_more() -> None:
    model, expected, source = network(), network(), iter(inputs(9))
    assert reestimate_batch_norm(model, source, limit=4) == 4
    assert len(list(source)) == 5
    reestimate_batch_norm(expected, inputs(4))
    assert same(buffers(model), buffers(expected))
    assert reestimate_batch_norm(model, inputs(3), limit=500) == 3


def test_bad_input() -> None:
    model = network().eval()
    before = buffers(model)
    with pytest.raises(SteppeError, match=r"no batches.*loader is empty"):
        reestimate_batch_norm(model, [])
    for limit in (0, -1):
        with pytest.raises(ValueError, match="limit must be at least 1"):
            reestimate_batch_norm(model, Untouchable(), limit=limit)
    assert same(buffers(model), before)
    assert not model.training


# --- what is put back ---


def modes(model: nn.Module) -> dict[str, object]:
    named = dict(model.named_modules())
    return {name: (module.training, getattr(module, "momentum", None)) for name, module in named.items()}


def failing(how: str) -> Iterator[Tensor]:
    yield from inputs(2)
    if how == "loader":
        raise OSError("the picture is gone")
    if how == "interrupt":
        raise KeyboardInterrupt
    yield torch.zeros(4, 7, dtype=torch.float64)  # what the model cannot take


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("how", ["loader", "model", "interrupt", None])
@pytest.mark.parametrize("training", [True, False])
def test_modes_momenta_and_after_a_failure_the_statistics(how, training, dtype) -> None:
    model = network(dtype).train(training)
    model[1].momentum, model[5].momentum = 0.25, None
    model[3].train(not training)
    before, state = modes(model), copy.deepcopy(model.state_dict())
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    if how is None:
        reestimate_batch_norm(model, inputs(dtype=dtype))
    else:
        with pytest.raises((OSError, KeyboardInterrupt, RuntimeError)):
            reestimate_batch_norm(model, (x.to(dtype) for x in failing(how)))
    assert modes(model) == before
    now = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    assert all(now[name] is tensor for name, tensor in tensors.items())
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])}
    assert changed == (set() if how else {name for name in state if "running" in name or "tracked" in name})


class Switching(nn.Linear):
    """Changes with its mode, as adapters do that are merged for evaluation."""

    merged = False

    def train(self, mode: bool = True):
        self.merged = not mode
        return super().train(mode)


@pytest.mark.parametrize("training", [True, False])
def test_what_a_module_does_when_its_mode_changes_is_undone(training) -> None:
    seen = []
    model = nn.Sequential(Switching(3, 3), nn.BatchNorm1d(3)).double().train(training)
    model[0].register_forward_hook(lambda module, args, output: seen.append(module.merged))
    reestimate_batch_norm(model, inputs(2))
    assert seen == [False, False]
    assert model[0].merged == (not training)


# --- wrappers, progress ---


@pytest.mark.parametrize("wrap", [torch.compile, nn.Sequential], ids=["compiled", "inside another"])
def test_wrapped_models(wrap) -> None:
    model, expected = network(), network()
    reestimate_batch_norm(wrap(model), inputs())
    reestimate_batch_norm(expected, inputs())
    assert same(buffers(model), buffers(expected))


@pytest.mark.parametrize("rich", [True, False])
def test_progress_on_standard_error_where_there_is_rich(rich, monkeypatch, capsys) -> None:
    if rich:
        monkeypatch.setenv("FORCE_COLOR", "1")  # as if it were a terminal
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
    else:
        monkeypatch.setitem(sys.modules, "rich.progress", None)
    model, expected = network(), network()
    assert reestimate_batch_norm(model, iter(inputs()), limit=4, progress=True) == 4
    shown = capsys.readouterr()
    assert shown.out == ""
    assert ("BatchNorm statistics" in shown.err) == rich
    reestimate_batch_norm(expected, inputs(4))
    assert same(buffers(model), buffers(expected))
    assert capsys.readouterr() == ("", "")
