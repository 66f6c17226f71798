"""Several micro-batches in one pass are one large batch, in every method."""

from __future__ import annotations

import pytest
import torch
from oracle import DIVERGENCES, Oracle, adaptive, half_sum, trust
from problems import EVERY, Problem, batches, losses_of, network, train, weights
from torch import Tensor

import steppe

SPLITS = {"equal": (5, 5, 5), "unequal": (2, 9, 4), "one": (15,)}
NOISELESS = {  # z is drawn anew for every call, so that a large batch has other noise than its micro-batches
    "tram-noise": lambda base, model, **parts: steppe.TRAM(base, model, "noise", sigma=0.0, **parts),
    "tram-fisher": lambda base, model, **parts: steppe.TRAMFisher(base, model, sigma=0.0, **parts),
    "tram-fisher-shared": lambda base, model, **parts: steppe.TRAMFisher(
        base, model, sigma=0.0, shared_pass=True, **parts
    ),
    "everything": lambda base, model, **parts: EVERY["everything"](base, model, sigma=0.0, **parts),
}
DIVIDED = {
    # The parts of micro-batches, climbed on, are others than those of a large batch.
    **{name: make for name, make in EVERY.items() if name not in ("half of the batch", "m-sharpness")},
    **NOISELESS,
    **{
        f"tram-{name}": lambda base, model, name=name, **parts: steppe.TRAM(base, model, divergence=name, **parts)
        for name in DIVERGENCES
    },
}


def micro_batches(problem: Problem, split: tuple[int, ...]) -> list[Problem]:
    return [problem.of(chosen) for chosen in torch.arange(len(problem)).split(split)]


def closure_over(optimizer, model, micro: list[Problem]):
    """A closure that accumulates as a user writes it: each micro-batch has the weight n_j / N."""
    total = sum(len(problem) for problem in micro)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = torch.zeros((), dtype=torch.float64)
        for problem in micro:
            x, y, domain = optimizer.ascent_batch(problem.x, problem.y, domain=problem.domain)
            loss = optimizer.objective(losses_of(model, Problem(x, y, domain)), domain) * (len(problem) / total)
            loss.backward()
            value += loss.detach()
        return value

    return closure


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", DIVIDED)
def test_micro_batches_are_one_large_batch(name: str, split: str) -> None:
    problems = batches(6)
    whole, divided = network(), network()
    reference = DIVIDED[name](torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9), whole)
    train(reference, whole, problems)
    optimizer = DIVIDED[name](torch.optim.SGD(divided.parameters(), lr=0.1, momentum=0.9), divided, accumulate="exact")
    for problem in problems:
        with torch.no_grad():
            expected = losses_of(divided, problem).mean()
        loss = optimizer.step(closure_over(optimizer, divided, micro_batches(problem, SPLITS[split])))
        torch.testing.assert_close(loss, expected, atol=1e-13, rtol=0)
    torch.testing.assert_close(weights(divided), weights(whole), atol=1e-12, rtol=0)
    measured = optimizer.diagnostics
    assert measured.keys() == reference.diagnostics.keys() >= {"radius", "gradient_norm"}
    for key, expected in reference.diagnostics.items():
        torch.testing.assert_close(measured[key], expected, atol=1e-12, rtol=1e-9)


FORMULAS = {
    "disam": {"lam": 0.1},
    "disam+sagm": {"lam": 0.1, "retreat": 0.001, "descent": half_sum},
    "tram-ema": {"rho": trust("ema", "mmd", 0.9), "direction": adaptive(0.0)},
    "disam+tram+sagm": {
        "lam": 0.1,
        "rho": trust("previous", "kl"),
        "direction": adaptive(0.0),
        "retreat": 0.01,
        "descent": half_sum,
    },
}


@pytest.mark.parametrize("name", FORMULAS)
def test_ten_steps_of_micro_batches_agree_with_the_formulas_of_one_batch(name: str) -> None:
    model, problems = network(), batches(10)
    optimizer = EVERY[name](torch.optim.SGD(model.parameters(), lr=0.1), model, accumulate="exact")
    w = Oracle(network(), 0.1, **FORMULAS[name]).run(weights(model), problems)
    for problem in problems:
        optimizer.step(closure_over(optimizer, model, micro_batches(problem, (2, 9, 4))))
    assert (weights(model) - w).abs().max() < 1e-10


def test_without_exact_every_micro_batch_has_an_objective_of_its_own() -> None:
    lam, split = 2.0, (2, 9, 4)
    model, problem = network(), batches(1)[0]
    micro = micro_batches(problem, split)
    oracle, w = Oracle(model, 0.1), weights(model)
    a = sum(len(part) / len(problem) * oracle.gradient(w, part, lam) for part in micro)
    w = w - 0.1 * oracle.gradient(w + 0.05 * a / a.norm(), problem)
    each, exact = network(), network()
    for other, accumulate in ((each, "each"), (exact, "exact")):
        optimizer = steppe.DISAM(torch.optim.SGD(other.parameters(), lr=0.1), lam=lam, accumulate=accumulate)
        optimizer.step(closure_over(optimizer, other, micro))
    torch.testing.assert_close(weights(each), w, atol=1e-12, rtol=0)
    assert (weights(exact) - w).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["disam", "disam+sagm"])
def test_the_passes_written_out(name: str) -> None:
    problem = batches(1)[0]
    micro = micro_batches(problem, (2, 9, 4))
    results = []
    for how in ("passes", "contexts", "one batch"):
        model = network()
        optimizer = EVERY[name](torch.optim.SGD(model.parameters(), lr=0.1), model, accumulate="exact")
        closure = closure_over(optimizer, model, micro)
        if how == "one batch":
            train(optimizer, model, [problem])
        elif how == "passes":
            for each in optimizer.passes():
                with each:
                    closure()
            optimizer.step()
        else:
            with optimizer.surveying():
                closure()
            if optimizer.needs_clean_pass:
                with optimizer.clean():
                    closure()
            with optimizer.climbing():
                closure()
            with optimizer.perturbed():
                closure()
            optimizer.step()
        results.append(weights(model))
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[1], results[2], atol=1e-12, rtol=0)


def test_a_survey_needs_no_graph_and_leaves_no_trace() -> None:
    model, problem = network(normalise=True), batches(1)[0]
    optimizer = EVERY["disam"](torch.optim.SGD(model.parameters(), lr=0.1), model, accumulate="exact")
    with optimizer.surveying(), torch.no_grad():
        value = optimizer.objective(losses_of(model, problem), problem.domain)
    assert value.item() == pytest.approx(losses_of(model, problem).mean().item())
    assert all(p.grad is None for p in model.parameters())
    model = network(normalise=True)
    optimizer = EVERY["disam"](torch.optim.SGD(model.parameters(), lr=0.1), model, accumulate="exact")
    optimizer.step(closure_over(optimizer, model, micro_batches(problem, (5, 5, 5))))
    assert model[1].num_batches_tracked == 3  # once a micro-batch


def test_m_parts_of_micro_batches() -> None:
    """Every part of the batch is the union of the micro-batches' parts."""
    large = batches(1, samples=14)[0]
    one, two = large.of(slice(0, 8)), large.of(slice(8, 14))
    reordered = Problem(
        *(torch.cat([a[:4], b[:3], a[4:], b[3:]]) for a, b in zip(vars(one).values(), vars(two).values(), strict=True))
    )
    results = []
    for micro in ([one, two], [reordered]):
        model = network()
        optimizer = steppe.GSAM(torch.optim.SGD(model.parameters(), lr=0.1), m=2)

        def closure(optimizer=optimizer, model=model, micro=micro) -> Tensor:
            optimizer.zero_grad()
            for problem in micro:
                x, y = optimizer.ascent_batch(problem.x, problem.y)
                losses = losses_of(model, Problem(x, y, y))
                (optimizer.objective(losses) * len(problem) / 14).backward()
            return losses.mean()

        optimizer.step(closure)
        results.append(weights(model))
    torch.testing.assert_close(*results, atol=1e-12, rtol=0)


def test_misuse_is_named_and_leaves_the_optimizer_in_order() -> None:
    model, (problem, other) = network(), batches(2)
    optimizer = steppe.DISAM(torch.optim.SGD(model.parameters(), lr=0.1), accumulate="exact")
    micro = micro_batches(problem, (5, 5, 5))
    everything, less = closure_over(optimizer, model, micro), closure_over(optimizer, model, micro[:2])
    more = closure_over(optimizer, model, [*micro, other])
    start = weights(model)

    with pytest.raises(RuntimeError, match=r"optimizer.surveying\(\).*passes\(\)"), optimizer.climbing():
        everything()
    for climbed, message in ((less, "saw 15 samples, the climb 10"), (more, "saw 15 samples, the climb sees more")):
        with optimizer.surveying():
            everything()
        with pytest.raises(RuntimeError, match=message), optimizer.climbing():
            climbed()
    with optimizer.surveying():
        pass  # the objective was not called
    with pytest.raises(RuntimeError, match="needs the losses of all micro-batches"), optimizer.climbing():
        everything()
    with optimizer.surveying(), pytest.raises(RuntimeError, match="cannot begin inside another"), optimizer.climbing():
        pass
    with pytest.raises(ValueError, match="'each' or 'exact'"):
        steppe.DISAM(torch.optim.SGD(model.parameters(), lr=0.1), accumulate="all")
    assert torch.equal(weights(model), start)

    fresh = network()
    reference = steppe.DISAM(torch.optim.SGD(fresh.parameters(), lr=0.1), accumulate="exact")
    optimizer.step(everything)
    reference.step(closure_over(reference, fresh, micro))
    assert torch.equal(weights(model), weights(fresh))
    with pytest.raises(RuntimeError, match="surveying"), optimizer.climbing():  # a survey serves one step
        everything()
