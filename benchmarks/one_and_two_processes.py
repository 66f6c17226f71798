"""Whether two processes give the table of one: the demo in four ways, and how far the losses are apart.

    python benchmarks/one_and_two_processes.py --steps 30 --out runs/processes

The ways are one process with one thread, one with two threads, two processes with a copy of the weights each (ddp) and
two with a half of them each (fsdp2). Numbers differ by rounding, which training multiplies from step to step: so what
two processes change is to be compared with what two threads change in one. Rows are the ways; columns the accuracy on
each held-out domain, and the largest difference of a training loss from that of the first way, over all runs: at the
first logged step (step 1 for up to 79 steps), within the first five, and at the last. A way that is finished is not
trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from steppe.report import load_runs

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
WAYS = {
    "one process, one thread": ((), ("--threads", "1")),
    "one process, two threads": ((), ("--threads", "2")),
    "two processes, ddp": (TORCHRUN, ("--threads", "1")),
    "two processes, fsdp2": (TORCHRUN, ("--threads", "1", "--parallel", "fsdp2")),
}
"""What it is called -> what starts it, and the demo's options."""
FIRST = 5

Run = tuple[str, str, int]
"""Algorithm, held-out domain and seed."""


def train(launcher: tuple[str, ...], options: tuple[str, ...], steps: int, out: Path) -> None:
    """The demo, in one of the ways."""
    command = [sys.executable, *launcher, "-m", "steppe", "demo", "--steps", str(steps), "--device", "cpu"]
    subprocess.run([*command, *options, "--out", str(out)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def losses(root: Path) -> dict[Run, dict[int, float]]:
    """Run → step → training loss, where it was logged."""
    found = {}
    for run in load_runs(root):
        lines = map(json.loads, (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        found[run.algorithm, run.held_out, run.seed] = {
            line["step"]: line["loss"] for line in lines if line["kind"] == "train"
        }
    return found


def accuracies(root: Path) -> dict[Run, float]:
    """Run → accuracy on the held-out domain."""
    return {(run.algorithm, run.held_out, run.seed): run.result["held_out_accuracy"] for run in load_runs(root)}


def apart(some: dict[Run, dict[int, float]], others: dict[Run, dict[int, float]], steps: Sequence[int]) -> float:
    """The largest difference between the losses of these steps, over all runs.

    Raises:
        ValueError: the runs or their logged steps are not the same.
    """
    if {run: [*curve] for run, curve in some.items()} != {run: [*curve] for run, curve in others.items()}:
        raise ValueError("the runs, or the steps at which they were logged, are not the same")
    return max(abs(curve[step] - others[run][step]) for run, curve in some.items() for step in steps)


def table(roots: dict[str, Path]) -> str:
    """The Markdown table of some ways' stores; the first is what the others are compared with."""
    reference = losses(next(iter(roots.values())))
    runs = sorted(reference)
    logged = list(reference[runs[0]])
    first = logged[:FIRST]
    spans = {
        f"step {first[0]}": first[:1],
        f"steps {first[0]} to {first[-1]}": first,
        f"step {logged[-1]}": logged[-1:],
    }
    heads = [f"{algorithm}, {held_out}" + (f", seed {seed}" if seed else "") for algorithm, held_out, seed in runs]
    lines = [["way", *heads, *(f"loss, {span}" for span in spans)]]
    lines.append(["---"] * len(lines[0]))
    for name, root in roots.items():
        reached, own = accuracies(root), losses(root)
        cells = [f"{100 * reached[run]:.1f}" for run in runs]
        lines.append([name, *cells, *(f"{apart(reference, own, span):.1e}" for span in spans.values())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs/processes"))
    given = parser.parse_args()
    roots = {name: given.out / f"{given.steps}-steps" / name.replace(", ", "-").replace(" ", "-") for name in WAYS}
    for name, (launcher, options) in WAYS.items():
        train(launcher, options, given.steps, roots[name])
    print(table(roots))


if __name__ == "__main__":
    main()
