"""What Lookahead costs over the optimizer inside: a table of its variants on ResNet-50.

    python benchmarks/lookahead.py                      # on the CPU: some five minutes on two cores
    python benchmarks/lookahead.py --device cuda

For every variant around SGD with momentum, k = 15:

- seconds of a step over those of SGD: the median of interleaved pairs of single whole steps, with its 95 % interval.
  Most steps end no round, and a step's seconds vary by more than the target, so there is also
- its own part: what a step of Lookahead takes over one of SGD where gradients are ready, the mean of whole rounds
  (the median of interleaved pairs, with the 95 % interval of their ratio), in milliseconds and as a share of a whole
  step of SGD, which is the figure that the target of 2 % is for;
- memory in copies of the weights beyond SGD's: held between steps, and at the peak of a step.

Inputs are random numbers: how long a step takes does not depend on them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks on stderr; read when torch is imported

import torch
from contenders import BASE, METHODS, Built, Contender, Pass
from measure import interleaved, setting
from quantities import OwnPart, Run, measure_memory, measure_step
from results import describe
from torch import nn
from torch.optim import SGD
from workloads import workloads

import steppe

K = 15
TARGET = 0.02
"""What Lookahead's own part may take of a step."""
HEAD = [
    "Lookahead",
    "seconds of a step, in SGD's",
    "its own part, ms a step",
    "of a step of SGD",
    "memory held, copies",
    "at the peak",
    "target",
]


@dataclass(frozen=True)
class Variant:
    """Lookahead's options, and how many copies of the weights it may take.

    Args:
        options: beside k and α.
        copies: beyond SGD's.
    """

    options: dict[str, Any]
    copies: int

    def contender(self, k: int, cycle: int) -> Contender:
        """Around SGD, with rounds of ``k`` steps, measured in units of ``cycle`` steps."""
        return Contender("lookahead", self.build(k), passes=1.0, cycle=cycle, copies=self.copies)

    def build(self, k: int) -> Callable[[nn.Module], Built]:
        def built(model: nn.Module) -> Built:
            optimizer = steppe.Lookahead(SGD(model.parameters(), **BASE), k, 0.05, **self.options)

            def step(one_pass: Pass) -> None:
                one_pass()
                optimizer.step()

            return Built(optimizer, step)

        return built


VARIANTS = {
    "plain": Variant({}, 1),
    "mean": Variant({"fast": "mean"}, 2),
    "anchor": Variant({"anchor": 0.01}, 2),
    "mean and anchor": Variant({"fast": "mean", "anchor": 0.01}, 2),
    "pulled-back state": Variant({"state": "pullback"}, 2),
}


@dataclass(frozen=True)
class Row:
    """What was measured of a variant.

    Args:
        step: seconds of a step over those of SGD.
        erm: seconds of a step of SGD.
        added: seconds that its own part adds to a step: the median, and the ends of the interval.
        memory: copies of the weights, held and at the peak.
    """

    step: dict[str, Any]
    erm: float
    added: tuple[float, float, float]
    memory: dict[str, Any]

    def cells(self, name: str, copies: int) -> list[str]:
        """As the table has them; what misses its target is bold."""
        share, low, high = (seconds / self.erm for seconds in self.added)
        own = f"{share:.2%} [{low:.2%}, {high:.2%}]"
        return [
            name,
            describe("step", self.step),
            f"{1e3 * self.added[0]:.2f}",
            f"{own if share < TARGET else f'**{own}**'} (< {TARGET:.0%})",
            *(f"{n:.2f}" if n <= copies + 0.05 else f"**{n:.2f}**" for n in (self.memory["held"], self.memory["peak"])),
            str(copies),
        ]


def measure(variant: Variant, run: Run) -> Row:
    """All figures of a variant."""
    step = measure_step(variant.contender(K, 1), run)
    own, base = OwnPart(variant.contender(K, K), run), OwnPart(METHODS["erm"], run)
    ratio = interleaved(lambda: own.seconds(K), lambda: base.seconds(K), pairs=run.pairs)
    added = tuple((value - 1) * ratio.b_median / K for value in (ratio.median, ratio.low, ratio.high))
    memory = measure_memory(variant.contender(2, 2), run)
    return Row(step, step["b_median"] / step["steps"], added, memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--pairs", type=int, default=20, help="20 or more for a figure that is quoted")
    parser.add_argument("--batch", type=int, default=8, help="pictures of 224 × 224 a step")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to try the program out")
    arguments = parser.parse_args()
    workload = workloads(arguments.batch, 1024, arguments.tiny)["resnet50"]
    run = Run(workload, torch.device(arguments.device), arguments.pairs, steps=1)
    rows = {}
    for number, name in enumerate(arguments.variants, 1):
        start = time.perf_counter()
        rows[name] = measure(VARIANTS[name], run)
        print(f"[{number}/{len(arguments.variants)}] {name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    seconds = [row.erm for row in rows.values()]
    print(
        f"{workload.title}, {workload.shape(1)}, on {setting('torchvision')}. Around SGD with momentum, k = {K}. "
        f"Medians of {run.pairs} interleaved pairs [95 % interval]. A step of SGD takes {min(seconds):.3g} to "
        f"{max(seconds):.3g} s.\n"
    )
    for cells in (HEAD, ["---"] * len(HEAD), *(row.cells(name, VARIANTS[name].copies) for name, row in rows.items())):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
