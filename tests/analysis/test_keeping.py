"""What is measured is left as it was: every bit, after exceptions too; and so is what is drawn afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from analysis_models import INSTRUMENTS, Failing, bits, data, moved_state, network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from steppe.analysis import cka, evaluate, local_entropy, pairwise, plane, segment


@pytest.mark.parametrize("name", INSTRUMENTS)
@pytest.mark.parametrize("training", [True, False])
def test_the_model_comes_back_bit_for_bit(name: str, training: bool) -> None:
    model = network()
    if not training:
        model.eval()
    before = bits(model)
    INSTRUMENTS[name](model, data())
    assert bits(model) == before


ONE_PASS = ("evaluate", "cka", "cka of states")


@pytest.mark.parametrize("name", INSTRUMENTS)
@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_exception_in_the_middle_leaves_no_trace(name: str, after: int) -> None:
    model = network()
    before = bits(model)
    with pytest.raises(OSError, match="the disk is gone"):
        INSTRUMENTS[name](model, Failing(data(size=8), min(after, 2) if name in ONE_PASS else after))
    assert bits(model) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_interrupt_in_the_middle_leaves_no_trace() -> None:
    model, calls = network(), 0

    def interrupted(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt
        return outputs.square().mean(1)

    before = bits(model)
    with pytest.raises(KeyboardInterrupt):
        local_entropy(model, data(), sigma=10.0, loss=interrupted)
    assert bits(model) == before


def test_gradients_and_a_graph_in_progress_are_left_alone() -> None:
    model = network()
    x, y = data()[0]
    evaluate(model, [(x, y)])
    output = model(x).square().sum()  # made in training mode, its backward pass still to come
    evaluate(model, data())
    output.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    local_entropy(model, data(), sigma=0.1, samples=2)
    assert gradients.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, p in model.named_parameters():
        assert p.grad is None or torch.equal(p.grad, gradients[name])


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_what_is_drawn_afterwards_is_not_shifted(name: str) -> None:
    x, y = (torch.cat(parts) for parts in zip(*data(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    model = network()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    INSTRUMENTS[name](model, loader)
    assert torch.equal(torch.rand(3), expected)


class Augmented:
    """The same samples with noise of the global generator, as augmentations are."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __iter__(self) -> Iterator[Any]:
        for x, y in data():
            noised = x + torch.randn_like(x)
            self.seen.append(noised)
            yield noised, y


def test_every_point_sees_the_same_draws() -> None:
    model, loader = network(), Augmented()
    found = segment(model, model, moved_state(model, 1), loader, 3)
    per_pass = len(data())
    assert len(loader.seen) == 3 * per_pass
    for place in range(per_pass):
        first, *others = loader.seen[place::per_pass]
        assert all(torch.equal(first, other) for other in others)
    assert found.start.loss != found.end.loss


def test_a_dropout_layer_is_at_rest_and_a_batch_norm_does_not_count() -> None:
    model = network()
    assert evaluate(model, data()) == evaluate(model, data())
    reference = network().eval()
    with torch.no_grad():
        expected = torch.cat([reference(x) for x, _ in data()])
        found = []
        evaluate(model, data(), loss=lambda outputs, y: (found.append(outputs), outputs[:, 0])[1])
    assert torch.equal(torch.cat(found), expected)


def test_autocast_does_not_go_on_with_old_weights() -> None:
    """In one region the cast of a weight is kept until somebody says that the weight was written to."""
    model, batches = nn.Sequential(nn.Linear(6, 3)), data()
    other = moved_state(model, 1, scale=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = segment(model, model, other, batches, 2)
        again = evaluate(model, batches)
        disturbed = local_entropy(model, batches, sigma=1.0, samples=3).losses
        last = evaluate(model, batches)
    expected = nn.Sequential(nn.Linear(6, 3))
    expected.load_state_dict(other)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert evaluate(expected, batches) == found.end
    assert again == last == found.start
    assert len({*disturbed, again.loss}) == 4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 6, bias=False)
        self.head = nn.Linear(6, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embed(x)))


def test_tied_weights_move_as_one_and_stay_tied() -> None:
    model = Tied()
    before = bits(model)
    other = moved_state(model, 1)
    other["head.weight"] = other["embed.weight"]
    whole = segment(model, model, other, data(), 3)
    distance = (other["embed.weight"] - model.embed.weight).norm().item()
    assert whole.distance == pytest.approx(distance, rel=1e-6)
    del other["head.weight"]  # files hold a tied tensor once
    assert segment(model, model, other, data(), 3) == whole
    assert local_entropy(model, data(), sigma=0.1, samples=2).losses[0] != whole.start.loss
    assert pairwise([model, other], names=["embed.weight"]).mean_distance == pytest.approx(distance, rel=1e-6)
    assert bits(model) == before
    assert model.head.weight is model.embed.weight


def test_wrapped_models_are_known_by_their_inner_names() -> None:
    class Compiled(nn.Module):
        """What ``torch.compile`` returns is of this form."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self._orig_mod = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self._orig_mod(x)

    model = network()
    other, wrapped = moved_state(model, 1), Compiled(model)
    before = bits(wrapped)
    assert segment(wrapped, model, other, data(), 2) == segment(model, model, other, data(), 2)
    assert local_entropy(wrapped, data(), sigma=0.1, samples=2, names=["0.bias"]).losses
    assert cka(wrapped, model, data()).layers_a == ("7:input",)
    assert pairwise([wrapped, other]).weights == sum(p.numel() for p in model.parameters())
    assert bits(wrapped) == before


@pytest.mark.parametrize("name", [name for name in INSTRUMENTS if name != "evaluate" and "cka" not in name])
def test_an_iterator_cannot_be_gone_through_at_every_point(name: str) -> None:
    model = network()
    with pytest.raises(ValueError, match="an iterator, which can be gone through once"):
        INSTRUMENTS[name](model, iter(data()))


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_an_empty_loader_is_an_error(name: str) -> None:
    model = network()
    before = bits(model)
    with pytest.raises(ValueError, match="the loader gave no"):
        INSTRUMENTS[name](model, [])
    assert bits(model) == before


@pytest.mark.parametrize("rich", [True, False])
def test_progress_is_shown_where_rich_is_there(monkeypatch: pytest.MonkeyPatch, rich: bool) -> None:
    shown: list[tuple[str, Any, int]] = []
    if rich:
        import rich.progress

        class Counted(rich.progress.Progress):
            def __exit__(self, *error: Any) -> None:
                shown.extend((task.description, task.total, int(task.completed)) for task in self.tasks)
                super().__exit__(*error)

        monkeypatch.setattr(rich.progress, "Progress", Counted)
    else:
        for module in ("rich", "rich.console", "rich.progress"):
            monkeypatch.setitem(sys.modules, module, None)
    model, other = network(), moved_state(network(), 1)
    third = moved_state(model, 2)
    evaluate(model, data(), progress=True)
    evaluate(model, iter(data()), progress=True)
    local_entropy(model, data(), sigma=0.1, samples=2, progress=True)
    segment(model, model, other, data(), 3, extend=1.0, progress=True)
    plane(model, (model, other, third), data(), (2, 3), progress=True)
    cka(model, model, data(), progress=True)
    pairwise([model, other], progress=True)
    passes = [("evaluating", 4, 4), ("evaluating", None, 4), ("local entropy", 3, 3)]
    passes += [("along the line", 5, 5), ("in the plane", 9, 9), ("comparing layers", 4, 4)]
    assert shown == ([*passes, ("comparing weights", 10, 10)] if rich else [])


PROGRAM = """
import sys
from steppe.analysis import *
import steppe.analysis, torch
model = torch.nn.Linear(3, 2)
loader = [(torch.randn(8, 3), torch.tensor([0, 1] * 4))]
other, third = ({name: torch.randn_like(value) for name, value in model.state_dict().items()} for _ in range(2))
evaluate(model, loader, progress=True)
pairwise([model, other]), cka(model, model, loader, state_b=other), linear_cka(loader[0][0], loader[0][0])
local_entropy(model, loader, sigma=0.1, samples=2), segment(model, model, other, loader, 2)
plane(model, (model, other, third), loader, 2)
assert "figures" in dir(steppe.analysis)
"""


def test_the_instruments_need_torch_alone() -> None:
    blocked = (
        "import sys\nfor name in ('plotly', 'rich', 'safetensors', 'jinja2', 'polars'): sys.modules[name] = None\n"
    )
    done = subprocess.run([sys.executable, "-c", blocked + PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_needs_more_says_so() -> None:
    program = (
        "import sys; sys.modules['plotly'] = None; sys.modules['plotly.graph_objects'] = None\n"
        "import steppe.analysis\nsteppe.analysis.figures"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'steppe[bench]'" in done.stderr
