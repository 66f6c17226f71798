"""The losses of the steps since the last line of the log: averaged for the log, watched for NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steppe.errors import SteppeError
from steppe.passes import PassName

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


@dataclass(frozen=True)
class _Pass:
    """What one pass of a step saw: losses by domain, and the penalties."""

    phase: PassName | None
    sums: Tensor
    counts: Tensor
    penalties: Tensor


class LossWindow:
    """Losses per domain, kept on the device until a line is due, so that a step does not wait for the device.

    Args:
        domains: names of the source domains; a batch's domain index points into them.
        device: where the losses are.
        penalties: names of the penalties that are added to the loss.
        scaled: a ``GradScaler`` is in use. It skips a step whose climb overflowed, so what is seen at w + ε may be NaN
            then, and is not watched.
    """

    def __init__(
        self, domains: Sequence[str], device: torch.device, *, penalties: Sequence[str] = (), scaled: bool = False
    ) -> None:
        self.domains = tuple(domains)
        self.penalties = tuple(penalties)
        self._scaled = scaled
        self._ids = torch.arange(len(self.domains), device=device)[:, None]
        self._passes: list[_Pass] = []
        self._rows: list[Tensor] = []
        self._rates: list[float] = []
        self.seconds = 0.0
        """Wall time spent on the steps of the window, kept by the caller."""
        self.first: float | None = None
        """The loss of the first step of the window that was drained last."""

    def __len__(self) -> int:
        return len(self._rows)

    def see(
        self,
        losses: Tensor,
        domain: Tensor,
        penalties: Mapping[str, Tensor] | None = None,
        phase: PassName | None = "climb",
    ) -> None:
        """Take in one pass of the current step, or a part of it.

        Args:
            losses: one a sample, ``[N]``.
            domain: domain indices ``[N]``.
            penalties: the value of each penalty.
            phase: which pass it is. A step's loss is that of its passes at w, which together see every domain.
        """
        if self._scaled and phase == "descent":
            return
        mask = domain[None, :] == self._ids
        # where(), not a product: NaN in one domain must not spread to the others' sums.
        sums = torch.where(mask, losses.detach().float()[None, :], 0.0).sum(1)
        values = [(penalties or {})[word].detach().float() for word in self.penalties]
        self._passes.append(_Pass(phase, sums, mask.sum(1), torch.stack(values) if values else sums[:0]))

    def close_step(self, lr: float) -> None:
        """The step is made: what was seen at w is its loss, everything else is watched only."""
        clean = [one for one in self._passes if one.phase == "clean"]
        at_w = clean or [one for one in self._passes if one.phase == "climb"]
        sums, counts = (torch.stack([getattr(one, name) for one in at_w]).sum(0) for name in ("sums", "counts"))
        penalties = torch.stack([one.penalties for one in at_w]).mean(0)
        worst = torch.cat([at_w[0].sums, at_w[0].penalties]).abs()
        for one in self._passes:
            worst = torch.maximum(worst, torch.cat([one.sums, one.penalties]).abs())  # hands on NaN
        self._rows.append(torch.stack([torch.cat([sums / counts, penalties]), worst]))
        self._rates.append(lr)
        self._passes = []

    def check(self, step: int, *, kept: str, advice: str = ADVICE) -> None:
        """Look at every step of the window (one synchronisation).

        Args:
            step: the number of the last step made.
            kept: what the message is to say about the last good checkpoint.
            advice: what it is to say about what helps.

        Raises:
            NonFiniteLossError: a loss or a penalty is NaN or infinite, at w or at w + ε.
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
        broken = [(n, v) for n, v in enumerate(values) if not math.isfinite(v)]
        domains = {self.domains[n]: value for n, value in broken if n < len(self.domains)}
        # A loss that is not finite is the cause, and a penalty computed from the same outputs its consequence.
        shown = domains or {self.penalties[n - len(self.domains)]: value for n, value in broken}
        at = step - len(self._rows) + index + 1
        raise NonFiniteLossError(
            f"the loss{where} is not finite at step {at} in {'domain' if domains else 'the penalty'} "
            + ", ".join(f"{name} ({value})" for name, value in shown.items())
            + f", at learning rate {self._rates[index]:g}; {kept}. "
            + advice
            + (" A smaller radius (--rho) may do, too." if where else "")
            + ("" if domains else " So may a smaller weight of the penalty (--hyper)."),
            step=at,
            domains=tuple(domains),
            lr=self._rates[index],
        )

    def drain(self) -> dict[str, Any]:
        """Means over the window, which is then empty: ``loss``, ``domain_loss``, ``lr`` (the last), ``seconds``, and
        ``penalty``, weights included, where there is one.
        """
        rows = torch.stack(self._rows)[:, 0].double()
        # Both at once: the host waits for the device once.
        means, first = torch.stack([rows.mean(0), rows[0]]).tolist()
        losses, penalties = means[: len(self.domains)], means[len(self.domains) :]
        self.first = sum(first[: len(losses)]) / len(losses)
        line = {
            "loss": sum(losses) / len(losses),
            "domain_loss": dict(zip(self.domains, losses, strict=True)),
            **({"penalty": dict(zip(self.penalties, penalties, strict=True))} if self.penalties else {}),
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
