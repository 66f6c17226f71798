"""What is asked of a caller, what is raised, and what a call leaves alone: precision, synchronisation, compilation."""

from __future__ import annotations

import inspect

import pytest
import torch
from domain_batches import LABELS, MAKERS, Batch, batch, call, gradients, linear_head
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import steppe.penalties
from steppe.penalties import CORAL, IRM, MMD, AnnealedPenalty, Fishr, GroupDRO, Mixup, Penalty, VREx
from steppe.penalties.segments import KnownDomains, Segments


@settings(max_examples=100, deadline=None)
@given(layout=st.lists(st.integers(-4, 4), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_segments_are_loops_over_domains(layout, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(layout), 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(len(layout), generator=generator, dtype=torch.float64)
    domain = torch.tensor(layout)
    segments = Segments(domain, torch.float64)
    ids = sorted(set(layout))
    assert float(segments.present) == len(ids)
    assert segments.count.tolist() == [layout.count(label) for label in layout]
    assert segments.rank.tolist() == [layout[:place].count(label) for place, label in enumerate(layout)]
    means = {label: values[domain == label].mean(0) for label in ids}
    torch.testing.assert_close(segments.mean(values), torch.stack([means[label] for label in layout]))
    torch.testing.assert_close(segments.mean(values[:, 0]), segments.mean(values)[:, 0])
    firsts = torch.stack([means[label][0] for label in ids])
    torch.testing.assert_close(segments.across(segments.mean(values[:, 0])), firsts.mean())
    sums = [(weights[domain == label, None] * values[domain == label]).sum(0) for label in ids]
    distances = [float(((a - b) ** 2).sum()) for i, a in enumerate(sums) for b in sums[i + 1 :]]
    expected = sum(distances) / max(len(distances), 1)
    assert float(segments.pairs(values @ values.T, weights)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


# --- defaults and names ---


@pytest.mark.parametrize(
    ("made", "defaults"),
    [
        (CORAL(), {"weight": 1.0}),
        (MMD(), {"weight": 1.0, "gammas": (0.001, 0.01, 0.1, 1, 10, 100, 1000)}),
        (VREx(), {"weight": 10.0, "weight_before": 1.0, "anneal_steps": 500}),
        (IRM(), {"weight": 100.0, "weight_before": 1.0, "anneal_steps": 500}),
        (Fishr(nn.Linear(2, 2), 3), {"weight": 1000.0, "weight_before": 0.0, "anneal_steps": 1500, "ema": 0.95}),
        (GroupDRO(3), {"eta": 0.01}),
        (Mixup(), {"alpha": 0.2}),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict) else "",
)
def test_defaults_are_domainbeds(made, defaults) -> None:
    assert {name: getattr(made, name) for name in defaults} == defaults


@pytest.mark.parametrize("name", MAKERS)
def test_a_penalty_names_what_it_needs(name) -> None:
    kind = type(MAKERS[name](linear_head(), LABELS))
    assert kind.needs == tuple(inspect.signature(kind.compute).parameters)[1:]
    assert kind.__name__ in steppe.penalties.__all__


# --- errors ---

GOOD = {
    "losses": torch.zeros(4),
    "logits": torch.zeros(4, 3),
    "features": torch.zeros(4, 5),
    "labels": torch.zeros(4, dtype=torch.long),
    "domain": torch.zeros(4, dtype=torch.long),
}
BAD = {
    "losses": [(torch.zeros(()), r"losses must have shape \[N\], got \[\]; use reduction='none'")],
    "logits": [(torch.zeros(4), r"logits must have shape \[N, C\], got \[4\]")],
    "features": [
        (torch.zeros(4, 5, 2, 2), r"features must have shape \[N, F\], got \[4, 5, 2, 2\]"),
        (torch.zeros(4, 5, dtype=torch.long), "features must be floating-point, got torch.int64"),
    ],
    "labels": [(torch.zeros(4, 3), r"labels must have shape \[N\], got \[4, 3\]")],
    "domain": [
        (torch.zeros(4), "domain must be integers, got torch.float32"),
        (torch.zeros(4, dtype=torch.bool), "domain must be integers, got torch.bool"),
        (torch.zeros(3, dtype=torch.long), "a row a sample; got .* of 4, domain of 3"),
        (None, r"takes .*domain=; missing: domain"),
    ],
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_wrong_with_a_batch_is_said(name) -> None:
    penalty = MAKERS[name](linear_head(), LABELS)
    good = {need: GOOD[need] for need in penalty.needs}
    for need in penalty.needs:
        for value, message in BAD[need]:
            with pytest.raises(ValueError, match=message):
                penalty(**{**good, need: value})
    with pytest.raises(ValueError, match=f"missing: {', '.join(penalty.needs)}"):
        penalty()
    with pytest.raises(TypeError, match="got mask too"):
        penalty(**good, mask=torch.zeros(4))
    with pytest.raises(TypeError, match="domain must be a tensor, got list"):
        penalty(**{**good, "domain": [0, 0, 1, 1]})
    with pytest.raises(ValueError, match="the batch is empty"):
        penalty(**{need: tensor[:0] for need, tensor in good.items()})


@pytest.mark.parametrize("name", ["groupdro", "fishr"])
def test_a_domain_that_was_not_named_is_an_error(name) -> None:
    penalty = MAKERS[name](linear_head(), (7, -3))
    with pytest.raises(ValueError, match=r"a sample's domain is none of \(7, -3\)"):
        call(penalty, batch())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CORAL(weight=-1.0), "weight must be at least 0"),
        (lambda: MMD(weight=float("nan")), "weight must be at least 0"),
        (lambda: MMD(gammas=()), "gammas must be positive, at least one"),
        (lambda: MMD(gammas=(1.0, 0.0)), "gammas must be positive, at least one"),
        (lambda: VREx(weight=-1.0), "weight must be at least 0"),
        (lambda: IRM(anneal_steps=-1), "anneal_steps must be a whole number"),
        (lambda: GroupDRO(3, eta=-1.0), "eta must be at least 0"),
        (lambda: GroupDRO(0), "domains must be a number of domains or their labels"),
        (lambda: GroupDRO((1, 2, 1)), "domains must be a number of domains or their labels"),
        (lambda: Fishr(linear_head(), 3, ema=1.0), r"ema must be in \[0, 1\)"),
        (lambda: Fishr(nn.ReLU(), 3), "no parameter that requires a gradient"),
        (lambda: Mixup(alpha=0.0), "alpha must be positive and finite"),
        (lambda: Mixup(alpha=float("inf")), "alpha must be positive and finite"),
        (lambda: CORAL(weight=float("inf")), "weight must be at least 0 and finite"),
        (lambda: AnnealedPenalty(weight=1.0, weight_before=-1.0, anneal_steps=1), "weight_before must be at least 0"),
    ],
)
def test_hyper_parameters_out_of_range(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_number_of_domains_stands_for_the_first_integers() -> None:
    assert KnownDomains(3).labels == (0, 1, 2)
    assert repr(GroupDRO(2)) == "GroupDRO(domains=(0, 1), eta=0.01)"


def test_a_head_that_mixes_samples_is_refused_while_it_does() -> None:
    given = batch(head=nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double())
    penalty = Fishr(given.head, LABELS, anneal_steps=0)
    with pytest.raises(ValueError, match="BatchNorm mixes samples in training mode"):
        call(penalty, given)
    given.head.eval()
    assert call(penalty, given).isfinite()


def test_a_penalty_must_say_what_it_computes() -> None:
    with pytest.raises(NotImplementedError, match="Penalty does not say"):
        Penalty()()


@pytest.mark.parametrize("name", ["groupdro", "fishr"])
def test_a_step_that_was_not_made_leaves_no_trace(name) -> None:
    """Such as one that a GradScaler skips, where features have overflowed."""
    penalty, other = (MAKERS[name](linear_head(), LABELS) for _ in range(2))
    overflown = batch(seed=1)
    with torch.no_grad():
        overflown.features[0] = torch.inf
    call(penalty, overflown)
    penalty.forget()
    for each in (penalty, other):
        call(each, batch(seed=2))
        each.step()
    for kept, expected in zip(penalty.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(torch.as_tensor(kept), torch.as_tensor(expected))
        assert torch.as_tensor(kept).isfinite().all()


# --- precision, synchronisation, compilation ---


@pytest.mark.parametrize("name", MAKERS)
def test_autocast_and_half_precision_do_not_reach_inside(name) -> None:
    """Features and logits that arrive in bfloat16 are computed with in float32."""
    exact = batch()
    half = Batch(exact.features.detach().bfloat16(), exact.labels, exact.domain, linear_head().bfloat16())
    tensors = {key: value.detach() for key, value in half.tensors().items()}
    penalty = MAKERS[name](half.head, LABELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = penalty(**{need: tensors[need] for need in penalty.needs})
    widened = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    expected = MAKERS[name](half.head.float(), LABELS)(**{need: widened[need] for need in penalty.needs})
    assert value.dtype == torch.float32
    assert torch.equal(value.detach(), expected.detach())


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_depends_on_values_that_the_host_would_have_to_wait_for(name) -> None:
    """On fake tensors of an accelerator there are no values: reading one, or a shape made of one, raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        head = nn.Linear(5, 3, dtype=torch.float64, device="cuda")
        features = torch.zeros(6, 5, dtype=torch.float64, device="cuda", requires_grad=True)
        labels = torch.zeros(6, dtype=torch.long, device="cuda")
        given = Batch(features, labels, torch.zeros(6, dtype=torch.long, device="cuda"), head)
        penalty = MAKERS[name](head, LABELS)
        for _ in range(2):
            value = call(penalty, given)
            penalty.step()
            assert value.shape == ()
            assert value.device.type == "cuda"


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.mark.parametrize(
    ("name", "head"), [*((name, linear_head()) for name in MAKERS), ("fishr", two_layers())], ids=[*MAKERS, "fishr2"]
)
def test_a_penalty_is_compiled_whole_with_its_gradient_and_not_at_every_step(name, head) -> None:
    """Anew where the weight jumps, and where the state takes the dtype of the batch."""
    torch.compiler.reset()
    penalty, other = MAKERS[name](head, LABELS), MAKERS[name](head, LABELS)
    penalty.anneal_steps = other.anneal_steps = 5
    given = batch(head=head)
    needed = {need: given.tensors()[need].detach() for need in penalty.needs}
    leaves = [tensor.requires_grad_() for tensor in needed.values() if tensor.is_floating_point()]
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def compiled(**tensors):
        return penalty(**tensors)

    for _ in range(12):
        value, expected = compiled(**needed), other(**needed)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        assert value.requires_grad == expected.requires_grad
        if value.requires_grad:
            actual = torch.autograd.grad(value, leaves)
            torch.testing.assert_close(actual, torch.autograd.grad(expected, leaves), rtol=1e-10, atol=1e-11)
        penalty.step()
        other.step()
    assert counter.frame_count <= 4


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_reach_what_the_penalty_is_about(name) -> None:
    given = batch()
    assert gradients(call(MAKERS[name](given.head, LABELS), given), given)[0].abs().sum() > 1e-3
