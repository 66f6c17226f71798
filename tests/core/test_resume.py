"""Stop after any step, load in a new process, continue: every bit as in the undisturbed run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from every_method import Classifier, closure_of, same
from problems import EVERY
from torch.optim import AdamW

STEPS = 6
"""So many that re-use every third step goes through its whole cycle twice."""
OVERFLOW = 3
"""The step whose gradient is not finite, where there is a scaler."""

Kind = tuple[str, str]
"""A method's name, and how it is trained."""


class Training:
    """What a checkpoint has to hold: model, optimizer, scaler, random state.

    Dropout and noise draw from the global generator; the scale grows and falls; one step is skipped.
    """

    def __init__(self, kind: Kind, seed: int) -> None:
        name, how = kind
        self.model = Classifier(dropout=0.2, seed=seed)
        parameters = self.model.parameters()
        base = torch.optim.SGD(parameters, lr=0.1, momentum=0.9) if how == "sgd" else AdamW(parameters, lr=0.01)
        self.optimizer = EVERY[name](base, self.model)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2, enabled=how == "adamw, scaled")
        torch.manual_seed(seed)
        self.number = 0

    def step(self) -> None:
        def overflow(name: str) -> None:
            gradient = self.model.first.weight.grad
            if self.scaler.is_enabled() and self.number == OVERFLOW and gradient is not None:
                gradient.fill_(torch.inf)

        closure = closure_of(self.optimizer, self.model, self.number, scaler=self.scaler, after=overflow)
        self.optimizer.step(closure, scaler=self.scaler)
        self.scaler.update()
        self.number += 1

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "number": self.number,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        self.number = state["number"]


def kinds() -> Iterator[Kind]:
    for name in EVERY:
        for how in ("sgd", "adamw, scaled"):
            yield name, how


def continue_all(directory: Path) -> None:
    """What the new process does: goes on from every checkpoint, in fresh objects that were initialised otherwise."""
    torch.set_num_threads(1)
    ends: dict[str, dict[Kind, Any]] = {}
    for path in sorted(directory.glob("after-*.pt")):
        ends[path.stem] = {}
        for kind, state in torch.load(path, weights_only=True).items():
            training = Training(kind, seed=1)
            training.load(state)
            while training.number < STEPS:
                training.step()
            ends[path.stem][kind] = training.state()
    torch.save(ends, directory / "ends.pt")


def test_resuming_in_a_new_process_is_bit_identical(tmp_path: Path) -> None:
    stops: dict[str, dict[Kind, Any]] = {f"after-{k}": {} for k in range(STEPS)}
    undisturbed: dict[Kind, Any] = {}
    for kind in kinds():
        training = Training(kind, seed=0)
        for k in range(STEPS):
            stops[f"after-{k}"][kind] = clone(training.state())
            training.step()
        undisturbed[kind] = training.state()
    for name, states in stops.items():
        torch.save(states, tmp_path / f"{name}.pt")
    program = f"from pathlib import Path; from test_resume import continue_all; continue_all(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent)
    ends = torch.load(tmp_path / "ends.pt", weights_only=True)
    different = [
        (stop, kind, key)
        for stop, resumed in ends.items()
        for kind, expected in undisturbed.items()
        for key in expected
        if not same(resumed[kind][key], expected[key])
    ]
    assert not different
    assert len(ends) == STEPS
    assert all(len(resumed) == len(undisturbed) == 2 * len(EVERY) for resumed in ends.values())


def clone(state: Any) -> Any:
    """Independent of what the run goes on to write; a file would be the same."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: clone(value) for key, value in state.items()}
    return [clone(each) for each in state] if isinstance(state, list) else state


def test_the_runs_are_worth_resuming() -> None:
    """A step is skipped, the scale rises and falls, and there is something to lose in what the optimizer remembers."""
    for kind in kinds():
        training = Training(kind, seed=0)
        scales = []
        for _ in range(STEPS):
            training.step()
            scales.append(training.scaler.get_scale())
        extra = training.optimizer.extra_state()
        if kind[1] == "adamw, scaled":
            assert min(scales[0], scales[OVERFLOW]) < max(scales)
            assert extra["steps"] == STEPS - 1
        for part in extra["memory"].values():
            for remembered in part.values():
                assert any(tensor.any() for tensor in remembered.values()), kind
        assert training.optimizer.diagnostics["radius"] > 0
