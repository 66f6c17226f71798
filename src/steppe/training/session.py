"""One run in memory: the model and everything that changes while it trains."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from steppe.data.loader import Batch
from steppe.data.sampling import derived_seed
from steppe.errors import SteppeError
from steppe.models import Classifier, build_classifier, has_batch_norm
from steppe.tasks.classification import sample_losses
from steppe.training.checkpoints import random_state, restore_random_state
from steppe.training.config import RunConfig
from steppe.training.joining import Joint, JointBatchNorm
from steppe.training.losses import ADVICE, LossWindow
from steppe.training.recipes import parse
from steppe.training.schedules import LargeRate, base_optimizer, scheduler
from steppe.training.selection import BestCheckpoint
from steppe.training.sharding import DIVIDED, divide, divided_state, saved_state, whole_state
from steppe.training.team import Team
from steppe.training.vocabulary_trajectory import BN_BATCHES
from steppe.training.words import Value

if TYPE_CHECKING:
    from accelerate import Accelerator

DIVERGED = 10.0
"""By how much the training loss has grown where a run is said to diverge."""


class Session:
    """Model, method, schedule, scaler, losses and selection of one run.

    Args:
        config: what is trained.
        accelerator: holds the device, the precision and, for fp16, the scaler.
        classes: the number of classes.
        domains: the source domains, in the order of a batch's domain index.
        channels: of the pictures.
        team: the processes that train it together; each calls the model on its rows of a batch and computes the loss of
            all.
        parallel: of :class:`~steppe.training.machine.Machine`: whether they replicate the weights or divide them.

    Raises:
        SteppeError: the backbone cannot be had, its batch normalisation would see one picture a step, a batch is
            too small to be divided as the algorithm divides it, or weights cannot be divided for this algorithm.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        *,
        classes: int,
        domains: tuple[str, ...],
        channels: int = 3,
        team: Team | None = None,
        parallel: str = "ddp",
    ) -> None:
        self.team = team or Team()
        self._seed = config.seed
        recipe = parse(config.algorithm)
        hyper = recipe.hyper(config.given)
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        model = build_classifier(
            config.backbone,
            classes,
            pretrained=config.pretrained,
            dropout=config.dropout,
            frozen_batch_norm=config.frozen_batch_norm,
            image_size=config.image_size,
            channels=channels,
        )
        _check_division(
            recipe.names.shared(hyper), samples=config.batch_per_domain * len(domains), domains=len(domains)
        )
        if config.batch_per_domain * len(domains) == 1 and not config.frozen_batch_norm and has_batch_norm(model):
            raise SteppeError(
                "a step has one picture, whose statistics batch normalisation cannot train on: "
                "raise batch_per_domain or set frozen_batch_norm"
            )
        # Convolutions of this layout take about half the time on a CPU, and use the tensor cores of a GPU.
        model = model.to(memory_format=torch.channels_last)
        self._whole: Classifier | None = None
        if self.team.alone:
            self.model: Classifier = accelerator.prepare(model)
            self._called: nn.Module = self.model
        else:
            whole = copy.deepcopy(model) if parallel == "fsdp2" else None
            self.model = accelerator.prepare_model(model, evaluation_mode=True)
            if whole is not None:
                self._whole = accelerator.prepare_model(whole, evaluation_mode=True).cpu()
                divide(self.model, self.device, self.team.size)
                self._called = self.model
            else:
                self._called = _replica(self.model, self.device)
        self._joins_norms = not self.team.alone and _trains_batch_norm(self.model)
        self.large = LargeRate.of(recipe, hyper)
        self.base = base_optimizer(config, self.model, self.large)
        # The loss is that of the whole batch in every process, so there is one climb, whatever their number.
        together = {} if self.team.alone else {"global_ascent": True}
        self.method = recipe.build(
            self.base, self._called, hyper, head=self.model.head, domains=len(domains), **together
        )
        self.scheduler = scheduler(config, self.base, self.large)
        self.scaler: torch.amp.GradScaler | None = accelerator.scaler
        self.batch_norm_batches = _batch_norm_batches(hyper, self.model)
        """Batches that re-estimate the running statistics at the end; 0 where that is not to be done."""
        self.losses = LossWindow(
            domains, self.device, penalties=tuple(self.method.penalties), scaled=self.scaler is not None
        )
        self._features = _HeadInput(self.model.head) if "features" in self.method.needs else None
        self.selection = BestCheckpoint()
        self.checkpoints: list[dict[str, Any]] = []
        """What was measured at each evaluation so far: the table of ``result.json``."""
        self.step = 0
        self.seconds = 0.0
        self.step_seconds: list[float] = []
        self.last_lr = config.lr
        self.first_loss: float | None = None
        """The loss of the first step, which the means of the log are held against."""

    def make_step(self, batch: Batch) -> None:
        """One step of the optimizer and the schedule; does not wait for the device."""
        x, y, domain = (part.to(self.device, non_blocking=True) for part in batch)
        method, optimizer, scaler, team = self.method, self.method.optimizer, self.scaler, self.team
        slots = torch.arange(len(y))
        whole = None if team.alone else Joint(team, slots)
        targets: tuple[Tensor, ...] = (y,)
        team.agree_on_randomness()
        if method.mixup is not None:
            mixed = method.mixup(x if whole is None else whole.gather(x, differentiable=False), y, domain)
            x = mixed.x[team.rank :: team.size]
            targets = (mixed.labels, mixed.partner_labels, mixed.weight)
        if not team.main:  # dropout and noise of its own
            torch.manual_seed(derived_seed("process", self._seed, self.step, team.rank) % 2**63)

        def closure() -> Tensor:
            method.zero_grad()
            joint = whole
            if joint is None:
                inputs, *labels, domains = optimizer.ascent_batch(x, *targets, domain=domain)
            else:
                seen, *labels, domains = optimizer.ascent_batch(slots, *targets, domain=domain)
                joint = joint if len(seen) == len(slots) else Joint(team, seen)
                inputs = x if joint is whole else x.index_select(0, joint.own.to(x.device))
            with JointBatchNorm() if self._joins_norms else nullcontext():
                method.remember_randomness()
                given = {"logits": self._called(inputs), "labels": labels[0], "inputs": inputs}
                if self._features is not None:
                    given["features"] = self._features.taken()
                if joint is not None:
                    method.join(joint)
                    for name in ("logits", "features"):  # in the same order in every process
                        if name in given:
                            given[name] = joint.gather(given[name])
                losses = sample_losses(given["logits"], *labels)
                loss = method.loss(losses, domains, **given)
            self.losses.see(losses, domains, method.values, optimizer.phase)
            self.accelerator.backward(loss)
            return loss

        method.step(closure, scaler=scaler)
        if scaler is not None:
            scaler.update()
        self.last_lr = float(self.base.param_groups[0]["lr"])
        self.losses.close_step(self.last_lr)
        if self.large.round == 1 or (method.lookahead is not None and method.lookahead.round_ended):
            self.scheduler.step()
        self.step += 1

    @contextmanager
    def whole(self) -> Iterator[Classifier]:
        """The model as one process can call it, with the weights of now. Every process must enter.

        That is the model itself; where its weights are divided, a copy, which is on the device meanwhile.
        """
        if self._whole is None:
            yield self.model
            return
        self._whole.load_state_dict(whole_state(self.model.state_dict()))
        try:
            yield self._whole.to(self.device)
        finally:
            self._whole.cpu()

    def divergence(self, loss: float) -> str | None:
        """What to warn of where the loss has grown to ten times what it was in the first step; said once.

        Args:
            loss: the mean of a line of the log, each in turn, right after it was drained.
        """
        if self.first_loss is None:
            self.first_loss = self.losses.first
        if self.first_loss is None or not loss > DIVERGED * self.first_loss:
            return None
        first, self.first_loss = self.first_loss, float("inf")  # never again
        return (
            f"the loss is {loss:.3g} at step {self.step}, and was {first:.3g} in the first step: training diverges at "
            f"learning rate {self.last_lr:g}. {self.advice}"
        )

    @property
    def advice(self) -> str:
        """What usually helps where training breaks down."""
        if self.large.factor <= 1:
            return ADVICE
        return f"{ADVICE} The algorithm multiplies the learning rate by {self.large.factor:g} (--hyper lr_factor=...)."

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain containers, whole on every process. Every process must call this."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "step_seconds": list(self.step_seconds),
            "first_loss": self.first_loss,
            "model": self.model.state_dict(),
            "method": self.method.state_dict(),
            "scheduler": {name: value for name, value in self.scheduler.state_dict().items() if name != "lr_lambdas"},
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "losses": self.losses.state_dict(),
            "selection": self.selection.state_dict(),
            "checkpoints": [dict(row) for row in self.checkpoints],
            "random": random_state(),
        }
        return state if self._whole is None else saved_state(state)

    def can_load(self, state: Mapping[str, Any]) -> bool:
        """Whether a state says what is to be divided, or nothing is."""
        return self._whole is None or DIVIDED in state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with what :meth:`state_dict` gave; the global random generators are put back too."""
        if self._whole is not None:
            state = divided_state(state, self.device, self.team.size)
        self.step, self.seconds = state["step"], state["seconds"]
        self.step_seconds, self.first_loss = list(state["step_seconds"]), state["first_loss"]
        self.model.load_state_dict(state["model"])
        self.method.load_state_dict(state["method"])
        self.scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None]})
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.losses.load_state_dict(state["losses"])
        self.selection.load_state_dict(state["selection"])
        self.checkpoints = [dict(row) for row in state["checkpoints"]]
        restore_random_state(state["random"])

    def trained_state(self) -> list[Any]:
        """What has to be finite for a checkpoint to be worth keeping."""
        return [self.model.state_dict(), self.method.state_dict()]

    @property
    def parameters(self) -> int:
        """The number of the model's parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())


class _HeadInput:
    """The features that the head was given last: those after dropout, as in DomainBed."""

    def __init__(self, head: nn.Module) -> None:
        self._features: Tensor | None = None
        head.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0]

    def taken(self) -> Tensor:
        """The features, which are then let go."""
        assert self._features is not None, "the model has been called"
        features, self._features = self._features, None
        return features


def _check_division(shared: Mapping[str, Value], *, samples: int, domains: int) -> None:
    """Raise unless every climb sees a picture of every domain, or the m parts one picture each."""
    fraction, m = float(shared.get("ascent_fraction", 1)), int(shared.get("m", 1))
    if fraction < 1 and round(fraction * samples) < domains:
        raise SteppeError(
            f"ascent_fraction {fraction:g} of {samples} pictures leaves some of the {domains} domains out of the "
            "climb: raise it, or batch_per_domain"
        )
    if m > samples:
        raise SteppeError(f"a batch of {samples} pictures has no m = {m} parts: raise batch_per_domain")


def _batch_norm_batches(hyper: Mapping[str, Value], model: nn.Module) -> int:
    """Weights that no step ended with have running statistics of their own, where batch normalisation trains."""
    trains = _trains_batch_norm(model)
    wanted = (int(value) for name, value in hyper.items() if name.endswith(f".{BN_BATCHES}"))
    return next(wanted, 0) if trains else 0


def _trains_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


def _replica(model: nn.Module, device: torch.device) -> nn.Module:
    """The model whose gradients are averaged over the processes. Buffers are the same everywhere without being sent."""
    devices = [device] if device.type == "cuda" else None
    replica: Any = nn.parallel.DistributedDataParallel
    known = inspect.signature(replica).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # renamed in torch 2.12
    found: nn.Module = replica(model, device_ids=devices, **{option: False})
    return found
