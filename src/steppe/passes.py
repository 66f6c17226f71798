"""What a part may see of a step, and do around its passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

PassName = Literal["survey", "clean", "measure", "climb", "descent"]
"""The passes of a step in their order; most steps have the last two.

- survey: the losses of all micro-batches, for an objective that must know them before the first gradient;
- clean: ∇L(w), where the climb's gradient is another one and the descent needs it;
- measure: the gradient that a geometry measures itself by, such as the Fisher information at noised inputs;
- climb: the gradient that is climbed;
- descent: ∇L(w + ε).
"""

PASSES: tuple[PassName, ...] = get_args(PassName)


OPTIONAL = ("watch", "stepped", "attach", "model", "needs_previous")
"""What a part may have beside its protocol and a memory (:mod:`steppe.parts`), and what wraps it has from it."""


@dataclass(frozen=True)
class View:
    """A step as its parts see it, around a pass (``watch``) and after the base optimizer's step (``stepped``).

    Attributes:
        name: the pass that begins; the last one, after the step.
        parameters: all of the optimizer's parameters.
        remember: the part's memory: a name of its ``remembers`` → tensors parallel to ``parameters``.
        previous: the weights before the last step of the base optimizer, by parameter; ``None`` before the first, and
            for a part that does not ask for it (``needs_previous``).
        replaced: a context inside which parameters have other weights (parameter → weights).
        unrecorded: a context that leaves running statistics as they were.
        total: the sum of a tensor over the ranks that climb together, in place.
        gathered: the rows of all ranks that climb together; ranks may have different numbers of them.
        seed: gives a seed for a generator of the part's own: another one at each call and in each step, the same in a
            run that is resumed. The global generators stay as they are, so that dropout does.
    """

    name: PassName
    parameters: list[Tensor]
    remember: Callable[[str], list[Tensor]]
    previous: Mapping[Tensor, Tensor] | None
    replaced: Callable[[Mapping[Tensor, Tensor]], AbstractContextManager[None]]
    unrecorded: Callable[[], AbstractContextManager[None]]
    total: Callable[[Tensor], Tensor]
    gathered: Callable[[Tensor], Tensor]
    seed: Callable[[], int]


def in_backward() -> bool:
    """Whether a backward pass is under way: a call of the model then is activation checkpointing's recomputation."""
    return bool(torch._C._current_graph_task_id() != -1)
