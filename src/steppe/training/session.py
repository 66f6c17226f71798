"""One run in memory: the model and everything that changes while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steppe.data.loader import Batch
from steppe.errors import SteppeError
from steppe.models import Classifier, build_classifier, has_batch_norm
from steppe.sharpness import SharpnessAware
from steppe.tasks.classification import sample_losses
from steppe.training.checkpoints import random_state, restore_random_state
from steppe.training.config import RunConfig
from steppe.training.losses import LossWindow
from steppe.training.recipes import parse
from steppe.training.schedules import base_optimizer, scheduler
from steppe.training.selection import TrainingDomainValidation

if TYPE_CHECKING:
    from accelerate import Accelerator


class Session:
    """Model, optimizer, schedule, scaler, losses and selection of one run.

    Args:
        config: what is trained.
        accelerator: holds the device, the precision and, for fp16, the scaler.
        classes: the number of classes.
        domains: the source domains, in the order of a batch's domain index.

    Raises:
        SteppeError: the backbone cannot be had, or its batch normalisation would see one picture a step.
    """

    def __init__(self, config: RunConfig, accelerator: Accelerator, *, classes: int, domains: tuple[str, ...]) -> None:
        recipe = parse(config.algorithm)
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        model = build_classifier(
            config.backbone,
            classes,
            pretrained=config.pretrained,
            dropout=config.dropout,
            frozen_batch_norm=config.frozen_batch_norm,
            image_size=config.image_size,
        )
        if config.batch_per_domain * len(domains) == 1 and not config.frozen_batch_norm and has_batch_norm(model):
            raise SteppeError(
                "a step has one picture, whose statistics batch normalisation cannot train on: "
                "raise batch_per_domain or set frozen_batch_norm"
            )
        # Convolutions of this layout take about half the time on a CPU, and use the tensor cores of a GPU.
        self.model: Classifier = accelerator.prepare(model.to(memory_format=torch.channels_last))
        self.base = base_optimizer(config, self.model)
        self.optimizer = recipe.build(self.base, self.model, recipe.hyper(config.hyper))
        self.scheduler = scheduler(config, self.base)
        self.scaler: torch.amp.GradScaler | None = accelerator.scaler
        self.losses = LossWindow(domains, self.device, scaled=self.scaler is not None)
        self.selection = TrainingDomainValidation()
        self.step = 0
        self.seconds = 0.0
        self.step_seconds: list[float] = []
        self.last_lr = config.lr

    def make_step(self, batch: Batch) -> None:
        """One step of the optimizer and the schedule; does not wait for the device."""
        x, y, domain = (part.to(self.device, non_blocking=True) for part in batch)
        optimizer, scaler = self.optimizer, self.scaler

        def closure() -> Tensor:
            optimizer.zero_grad()
            losses = sample_losses(self.model(x), y)
            self.losses.see(losses, domain)
            loss = optimizer.objective(losses, domain) if isinstance(optimizer, SharpnessAware) else losses.mean()
            self.accelerator.backward(loss)
            return loss

        if isinstance(optimizer, SharpnessAware):
            optimizer.step(closure, scaler=scaler)
        else:
            closure()
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
        self.last_lr = float(self.base.param_groups[0]["lr"])
        self.losses.close_step(self.last_lr)
        self.scheduler.step()
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain containers."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "step_seconds": list(self.step_seconds),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {name: value for name, value in self.scheduler.state_dict().items() if name != "lr_lambdas"},
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "losses": self.losses.state_dict(),
            "selection": self.selection.state_dict(),
            "random": random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with what :meth:`state_dict` gave; the global random generators are put back too."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.step_seconds = list(state["step_seconds"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None]})
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.losses.load_state_dict(state["losses"])
        self.selection.load_state_dict(state["selection"])
        restore_random_state(state["random"])

    def trained_state(self) -> list[Any]:
        """What has to be finite for a checkpoint to be worth keeping."""
        return [self.model.state_dict(), self.optimizer.state_dict()]

    @property
    def parameters(self) -> int:
        """The number of the model's parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())
