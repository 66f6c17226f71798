"""Saving and resuming: bit-identical, in a new process, into and out of a bare base optimizer."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from problems import MAKERS, batches, losses_of, network, weights

import steppe

BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def run(optimizer, model, problems) -> None:
    for problem in problems:

        def closure(problem=problem):
            optimizer.zero_grad()
            losses = losses_of(model, problem)
            loss = optimizer.objective(losses, problem.domain) if hasattr(optimizer, "objective") else losses.mean()
            loss.backward()
            return loss

        optimizer.step(closure)


CONTINUE = """
import sys, torch
from problems import MAKERS, batches, network
from test_state import BASES, run
torch.set_num_threads(1)
path, base, method = sys.argv[1:]
saved = torch.load(path, weights_only=True)
model = network(seed=5)
optimizer = MAKERS[method](BASES[base](model.parameters()))
model.load_state_dict(saved["model"])
optimizer.load_state_dict(saved["optimizer"])
run(optimizer, model, batches(20)[10:])
torch.save(model.state_dict(), path)
"""


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", MAKERS)
def test_resuming_in_a_new_process_is_bit_identical(base, method, tmp_path: Path) -> None:
    problems = batches(20)
    model = network()
    optimizer = MAKERS[method](BASES[base](model.parameters()))
    run(optimizer, model, problems[:10])
    path = tmp_path / "state.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    here = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", CONTINUE, str(path), base, method], check=True, cwd=here)
    run(optimizer, model, problems[10:])
    resumed = torch.load(path, weights_only=True)
    assert all(torch.equal(resumed[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("base", BASES)
def test_state_dicts_pass_between_wrapper_and_bare_base(base) -> None:
    model, problems = network(), batches(6)
    inner = BASES[base]([{"params": [p], "rho": 0.1 * i} for i, p in enumerate(model.parameters())])
    optimizer = steppe.SAM(inner)
    run(optimizer, model, problems[:3])
    saved = deepcopy(optimizer.state_dict())  # torch's own state dicts share their tensors
    assert set(saved) == {"state", "param_groups", "steppe"}
    assert not any("steppe" in str(key) for state in saved["state"].values() for key in state)

    # ours → bare: the bare optimizer goes on as the base would have
    bare_model = network()
    bare_model.load_state_dict(model.state_dict())
    bare = BASES[base]([{"params": [p]} for p in bare_model.parameters()])
    bare.load_state_dict(saved)
    run(inner, model, problems[3:])
    run(bare, bare_model, problems[3:])
    assert torch.equal(weights(model), weights(bare_model))

    # bare → ours: ρ, which a bare state dict lacks, survives
    for group in bare.param_groups:
        del group["rho"]
    optimizer.load_state_dict(deepcopy(bare.state_dict()))
    assert [group["rho"] for group in optimizer.param_groups] == [0.1 * i for i in range(4)]
    # ours → ours: the saved ρ wins
    saved["param_groups"][0]["rho"] = 0.7
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["rho"] == 0.7


def test_loading_before_the_first_step_and_lazy_state() -> None:
    """A foreign key in ``state[p]`` would stop AdamW from initialising its moments."""
    model, problems = network(), batches(2)
    optimizer = steppe.SAM(torch.optim.AdamW(model.parameters(), lr=0.01))
    optimizer.load_state_dict(optimizer.state_dict())
    run(optimizer, model, problems)
    assert set(optimizer.state[next(model.parameters())]) == {"step", "exp_avg", "exp_avg_sq"}


def test_a_newer_state_is_refused() -> None:
    optimizer = steppe.SAM(torch.optim.SGD(network().parameters(), lr=0.1))
    with pytest.raises(ValueError, match="newer steppe"):
        optimizer.load_extra_state({"version": 99})
