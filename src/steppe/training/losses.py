"""The losses of the steps since the last line of the log: averaged for the log, watched for NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steppe.errors import SteppeError

ADVICE = "What usually helps: a smaller learning rate (--lr), a warm-up (--warmup) or clipping (--clip-norm 1)."


class NonFiniteLossError(SteppeError):
    """Training broke down.

    Attributes:
        step: the first step whose loss is NaN or infinite, counted from 1.
        domains: the source domains whose loss it was.
        lr: the learning rate of that step.
    """

    def __init__(self, message: str, *, step: int, domains: tuple[str, ...], lr: float) -> None:
        super().__init__(message)
        self.step = step
        self.domains = domains
        self.lr = lr


class LossWindow:
    """Losses per domain, kept on the device until a line is due, so that a step does not wait for the device.

    Args:
        domains: names of the source domains; a batch's domain index points into them.
        device: where the losses are.
        scaled: a ``GradScaler`` is in use. It skips a step whose climb overflowed, so the loss at w + ε may be NaN
            then, and is not watched.
    """

    def __init__(self, domains: Sequence[str], device: torch.device, *, scaled: bool = False) -> None:
        self.domains = tuple(domains)
        self._scaled = scaled
        self._ids = torch.arange(len(self.domains), device=device)[:, None]
        self._passes: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._rates: list[float] = []
        self.seconds = 0.0
        """Wall time spent on the steps of the window, kept by the caller."""

    def __len__(self) -> int:
        return len(self._rows)

    def see(self, losses: Tensor, domain: Tensor) -> None:
        """Take in one pass of the current step: losses ``[N]`` and domain indices ``[N]``, every domain present."""
        if self._scaled and self._passes:
            return
        mask = domain[None, :] == self._ids
        # where(), not a product: NaN in one domain must not spread to the others' sums.
        sums = torch.where(mask, losses.detach().float()[None, :], 0.0).sum(1)
        self._passes.append(sums / mask.sum(1))

    def close_step(self, lr: float) -> None:
        """The step is made: the first pass is the loss at w, the others are watched only."""
        worst = self._passes[0]
        for later in self._passes[1:]:
            worst = torch.maximum(worst, later)  # hands on NaN
        self._rows.append(torch.stack([self._passes[0], worst]))
        self._rates.append(lr)
        self._passes = []

    def check(self, step: int, *, kept: str) -> None:
        """Look at every step of the window (one synchronisation).

        Args:
            step: the number of the last step made.
            kept: what the message is to say about the last good checkpoint.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite, at w or at w + ε.
        """
        if not self._rows:
            return
        rows = torch.stack(self._rows).cpu()
        finite = rows.isfinite().all(2).all(1)
        if bool(finite.all()):
            return
        index = int(torch.nonzero(~finite)[0])
        first, worst = rows[index].tolist()
        where, values = ("", first) if not all(map(math.isfinite, first)) else (" at w + ε", worst)
        bad = {name: value for name, value in zip(self.domains, values, strict=True) if not math.isfinite(value)}
        at = step - len(self._rows) + index + 1
        raise NonFiniteLossError(
            f"the loss{where} is not finite at step {at} in domain "
            + ", ".join(f"{name} ({value})" for name, value in bad.items())
            + f", at learning rate {self._rates[index]:g}; {kept}. "
            + ADVICE
            + (" A smaller radius (--rho) may do, too." if where else ""),
            step=at,
            domains=tuple(bad),
            lr=self._rates[index],
        )

    def drain(self) -> dict[str, Any]:
        """Means over the window, which is then empty: ``loss``, ``domain_loss``, ``lr`` (the last), ``seconds``."""
        means = torch.stack(self._rows)[:, 0].double().mean(0).tolist()
        line = {
            "loss": sum(means) / len(means),
            "domain_loss": dict(zip(self.domains, means, strict=True)),
            "lr": self._rates[-1],
            "seconds": self.seconds / len(self._rows),
        }
        self._rows, self._rates, self.seconds = [], [], 0.0
        return line

    def state_dict(self) -> dict[str, Any]:
        """The window between two steps, for a checkpoint."""
        return {"rows": list(self._rows), "rates": list(self._rates), "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with what :meth:`state_dict` gave."""
        self._rows = [row.to(self._ids.device) for row in state["rows"]]
        self._rates = list(state["rates"])
        self.seconds = state["seconds"]
