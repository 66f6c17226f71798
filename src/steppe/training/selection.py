"""Which checkpoint of a run is taken: early selection without a look at the held-out domain."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from steppe.averaging import reestimate_batch_norm
from steppe.training.evaluation import Evaluation
from steppe.training.method import Method
from steppe.training.sharding import whole_state


@dataclass
class BestCheckpoint:
    """The weights of a run that are kept: those best on the source domains' validation pictures.

    This is what DomainBed's *training-domain validation set* rule (Gulrajani and Lopez-Paz 2021, section 3) chooses
    within one run: the checkpoint with the largest mean over the source domains of the accuracy on their validation
    pictures; the first of them in a tie. Domains weigh the same whatever their size. The rule over many runs, and the
    other rules, are in :mod:`steppe.benchmark.selection`.

    Attributes:
        step: the selected step; 0 before the first evaluation.
        score: its mean validation accuracy.
        weights: its state dict, on the CPU.
        evaluation: all that was measured there.
    """

    step: int = 0
    score: float = -1.0
    weights: dict[str, Tensor] = field(default_factory=dict)
    evaluation: Evaluation | None = None

    def consider(self, step: int, evaluation: Evaluation, model: nn.Module) -> bool:
        """Take this checkpoint if it is better than all before; says whether it was taken."""
        if evaluation.validation_accuracy <= self.score:
            return False
        self.step = step
        self.score = evaluation.validation_accuracy
        self.evaluation = evaluation
        self.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        return True

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers."""
        evaluation = None if self.evaluation is None else self.evaluation.state_dict()
        return {"step": self.step, "score": self.score, "weights": self.weights, "evaluation": evaluation}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with what :meth:`state_dict` gave."""
        self.step, self.score, self.weights = state["step"], state["score"], dict(state["weights"])
        self.evaluation = None if state["evaluation"] is None else Evaluation.from_state_dict(state["evaluation"])


@dataclass(frozen=True)
class Settled:
    """The weights that a run ends with: the selected checkpoint's, or an average.

    Attributes:
        step: the selected step; the last of an average.
        weights: the model's state dict, on the CPU.
        evaluation: what these weights are worth.
        average: first and last step whose weights are averaged, counted from 1.
        batch_norm_batches: how many batches re-estimated the running statistics; 0 where they are those of training.
    """

    step: int
    weights: Mapping[str, Tensor]
    evaluation: Evaluation
    average: tuple[int, int] | None = None
    batch_norm_batches: int = 0

    @property
    def made_at_the_end(self) -> bool:
        """Whether these are weights or running statistics that no evaluation during training has seen."""
        return self.average is not None or self.batch_norm_batches > 0

    @property
    def told(self) -> dict[str, Any]:
        """What ``result.json`` says of it beyond the step."""
        average = None if self.average is None else {"start": self.average[0], "end": self.average[1]}
        found = {"average": average, "batch_norm_batches": self.batch_norm_batches or None}
        return {name: value for name, value in found.items() if value is not None}


def settle(
    method: Method,
    selection: BestCheckpoint,
    model: nn.Module,
    *,
    batches: Iterable[Any] | None,
    evaluate: Callable[[], Evaluation],
    say: Callable[[str], None],
) -> Settled:
    """Put into the model what training ends with: the averaged weights, where there is an average, else the selected.

    Args:
        method: has the average.
        selection: the checkpoint that is best in validation, where there is no average.
        model: where they are put.
        batches: re-estimate the running statistics of batch normalisation on these; ``None`` for not at all.
        evaluate: measures the model.
        say: is told of warnings.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        averaged = method.averaged()
    if averaged is not None:  # of the model as it is called, which several processes wrap or divide
        averaged = {name.removeprefix("module."): tensor for name, tensor in whole_state(averaged).items()}
    for warning in caught:
        say(f"warning: {warning.message}")
    if averaged is None and batches is None:
        assert selection.evaluation is not None, "the last step evaluates"
        return Settled(selection.step, selection.weights, selection.evaluation)
    model.load_state_dict(selection.weights if averaged is None else averaged)
    used = 0 if batches is None else reestimate_batch_norm(model, batches)
    average = method.average
    return Settled(
        step=selection.step if average is None else average.end,
        evaluation=evaluate(),
        weights={name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()},
        average=None if average is None else (average.start, average.end),
        batch_norm_batches=used,
    )
