r"""Does Lookahead with a large learning rate do what its paper says? Diversity, flatness and accuracy, rate by rate.

    python examples/large_learning_rates/experiment.py --data emoji-full --held-out line --out runs/large-lr
    python examples/large_learning_rates/experiment.py --data rotated-mnist --held-out 75 --out runs/large-lr \
        --setting.steps 1000 --most 2000

Every run is one file under --out, written when it is finished, so the command can be stopped, given again, and given
with more --seeds. At the end the table is printed, and a page with plots is written beside the runs.

Lookahead's slow weights move alpha times as far as its fast ones: the fair control for it at a factor F is SGD at about
alpha F, beside SGD at F.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import tyro
from page import table, write
from pictures import load
from rich.progress import track
from train import Setting, plan, run


@dataclass(frozen=True)
class Options:
    """What to run."""

    data: str = "emoji-full"
    """emoji, emoji-full or rotated-mnist."""
    held_out: str = "line"
    """The domain that is not trained on."""
    out: Path = Path("runs/large-lr")
    """Where the runs are kept."""
    seeds: int = 5
    """How many."""
    factors: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    """What the learning rate is multiplied by."""
    size: int = 64
    """Side of the emoji pictures, in pixels."""
    backbone: str | None = None
    """The network: EfficientNet-Lite0 for drawings, timm's test_resnet for digits, unless another is named."""
    most: int = 512
    """Evaluate at most so many pictures of the sources' validation and of the held-out domain."""
    jobs: int = 2
    """Runs at the same time, each with its share of the cores."""
    setting: Setting = field(default_factory=Setting)
    """Training and measures."""


def one(options: Options, path: Path, seed: int, optimizer: str, factor: float, threads: int) -> None:
    """Make one run, and write it: what becomes of the other runs does not matter to it."""
    torch.set_num_threads(threads)
    shown = {"size": options.size, "most": options.most, "backbone": options.backbone}
    pictures = load(options.data, options.held_out, seed, **shown)
    found = run(pictures, optimizer, factor, seed, options.setting)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps({"seed": seed, "optimizer": optimizer, "factor": factor, **found}))
    temporary.replace(path)


def main(options: Options) -> None:
    directory = options.out / f"{options.data}-{options.held_out}"
    directory.mkdir(parents=True, exist_ok=True)
    shown = {"size": options.size, "most": options.most, "backbone": options.backbone}
    settings = json.loads(json.dumps({**asdict(options.setting), **shown}))
    kept = directory / "setting.json"
    if kept.exists() and json.loads(kept.read_text()) != settings:
        raise SystemExit(f"{directory} has runs of another setting: choose another --out")
    kept.write_text(json.dumps(settings))
    paths = {
        each: directory / f"seed{each[0]}-{each[1]}-{each[2]:g}x.json" for each in plan(options.factors, options.seeds)
    }
    missing = [each for each, path in paths.items() if not path.exists()]
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    with ProcessPoolExecutor(options.jobs) as pool:
        started = [pool.submit(one, options, paths[each], *each, threads) for each in missing]
        try:
            for done in track(as_completed(started), total=len(started), description=directory.name):
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # those under way are finished, and kept
            raise
    runs = [json.loads(path.read_text()) for path in paths.values()]
    print(table(runs))
    print(f"page: {write(directory / 'page.html', runs, options.data, options.held_out)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
