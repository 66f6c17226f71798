"""Which checkpoint of a run is taken: early selection without a look at the held-out domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from steppe.training.evaluation import Evaluation


@dataclass
class TrainingDomainValidation:
    """DomainBed's *training-domain validation set* rule (Gulrajani and Lopez-Paz 2021, section 3).

    The checkpoint with the largest mean over the source domains of the accuracy on their validation pictures; the
    first of them in a tie. Domains weigh the same whatever their size.

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
