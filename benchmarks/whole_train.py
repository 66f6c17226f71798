"""The whole of ``steppe train`` beside DomainBed's own program, on the same pictures, network, batch and steps.

    git clone https://github.com/facebookresearch/DomainBed ../DomainBed
    uv venv ../domainbed-env
    uv pip install --python ../domainbed-env torch==2.15.0 torchvision==0.29.2 timm tqdm wilds backpack-for-pytorch
    python benchmarks/whole_train.py --domainbed ../DomainBed --python ../domainbed-env/bin/python --out whole.jsonl
    python benchmarks/whole_train.py --table whole.jsonl

Give DomainBed the versions of torch and torchvision that steppe has. Should ``wilds`` or ``backpack-for-pytorch`` not
install: DomainBed imports them for two of its data sets and for Fishr, which are not used here, so install them with
``--no-deps`` and add what the error messages name. DomainBed's files are run as they are.

A round runs DomainBed and then steppe with each state of its cache of decoded pictures (the next round the other way
round), so that each has a pair with DomainBed in it: ``off``; ``building``, as the first run on a folder, which
looks at every picture and decodes it into the cache; ``warm``, as any later run. A finished round is a line of
--out; the same command goes on where it was stopped, and adds rounds where --rounds is larger.

What is compared, from the commands' outside and out of each program's own record:

- *the whole command*: seconds from its start to its end.
- *a cycle*: the steps from one evaluation to the next, and that evaluation, after the first; what a long run consists
  of. The start counts much in a run as short as can be repeated, and DomainBed's is long: each of its eight
  evaluation loaders decodes 16 batches ahead, however few are needed. A run of 5,001 steps is near the cycle's ratio.
- *training*: pictures of the training steps a second, waiting for them included (``step_time``; ``seconds``).
- *memory* at its peak: by how much less of the machine's was available, which needs a machine that does nothing else;
  and what all processes of the command held together, what they share counted once.

Equal: pictures, splits (80/20, DomainBed's), first domain held out, network (torchvision's ResNet, random weights,
batch normalisation frozen), ERM with Adam at 5e-5, batch, float32, augmentation, number of steps (one more than a
multiple of --every, at which both evaluate equally often), every picture of all domains in an evaluation, threads.
Not equal: DomainBed evaluates after step 1, then every so many steps; steppe every so many, then after the last.
DomainBed augments the validation pictures of the domains it trains on, steppe does not. steppe writes a checkpoint
from which a run can go on at every evaluation, and predictions and the selected weights; DomainBed the weights, at
the end. DomainBed has eight loading processes for each of its eleven loaders; --domainbed-workers measures it with
other numbers too, which are set before its program begins. steppe loads in the training process on a CPU, and in up
to eight others beside a GPU (--steppe-options='--workers 2').

Two settings, each with a target of its own for the ratio of the whole commands:

- *loading* binds (target 1.3): ResNet-18 and photographs of 2,000 to 2,600 pixels a side, each of which takes DomainBed
  tens of milliseconds of a core to decode, as long as two cores compute on it (26 pictures a second in training).
  With photographs of 500 to 700 pixels, which take some 3 ms, the network binds even there.
- *network* binds (target 1.0): ResNet-50 (9.5 pictures a second) and photographs of 500 to 700 pixels.

Their defaults take about half an hour each on two cores: a round of the first is four commands of 45 to 75 s (29 steps
of 3 × 8 pictures and 3 evaluations of 120), and there are seven; of the second four of some 90 s (25 steps and 3
evaluations of 100), and there are five. The decoded pictures of the first fill 2 GB of disk and memory. --folder takes
other pictures; then which setting they belong to is for the user to judge.

The time between evaluations is that of DomainBed's default on PACS: as many steps as show 2.9 pictures of the
training domains for each picture of the folder (300 steps of 3 × 32 on 9,991 pictures), unless --every is given.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from measure import Ratio, paired
from photographs import make_photographs
from results import Figure, Results, provenance
from whole_train_sides import CACHES, NETWORKS, DomainBed, Side, Steppe, Task, know, lines, versions

from steppe.training.machine import describe


@dataclass(frozen=True)
class Setting:
    """What is compared, and how often.

    Attributes:
        network: one of ``NETWORKS``.
        side: the range of the photographs' sides, in pixels.
        target: DomainBed's seconds over steppe's, end to end.
        pictures, evaluations, rounds: see the options of these names.
    """

    network: str
    side: tuple[int, int]
    target: float
    pictures: int
    rounds: int
    evaluations: int = 3


SETTINGS = {
    "loading": Setting("resnet18", (2000, 2600), target=1.3, pictures=120, rounds=7),
    "network": Setting("resnet50", (500, 700), target=1.0, pictures=100, rounds=5),
}
"""What binds -> the setting in which it does."""
SAME = ("machine", "setting", "network", "task")
PER_PICTURE = 300 * 3 * 32 / 9991
SUFFIXES = {".jpg", ".jpeg", ".png"}


def main() -> None:
    """Measure what is missing, print the table."""
    options = arguments()
    if options.table is not None:
        print(markdown(lines(options.table)))
        return
    if options.domainbed is None or options.python is None or options.out is None:
        raise SystemExit("give --domainbed, --python and --out (or --table, for a table of what is there)")
    if not (options.domainbed / "domainbed" / "scripts" / "train.py").is_file():
        raise SystemExit(f"there is no checkout of DomainBed in {options.domainbed}")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what was started ends with this
    root = options.work or options.out.absolute().with_suffix(".work")
    theirs = versions(options.python, options.domainbed)
    results = Results.opened(options.out)
    for name in options.settings:
        setting, work = SETTINGS[name], root.absolute() / name
        pictures = prepared(work, setting, options)
        task = task_of(work, setting, pictures, options)
        figure = {
            **provenance(options.device),
            "theirs": theirs,
            "setting": name,
            "network": setting.network,
            "task": told(task, pictures, setting, options),
            "command": shlex.join(["python", *sys.argv]),
        }
        figure["machine"] += f" ({describe(torch.device(options.device)).partition(': ')[2]})"
        measure(task, figure, sides(options), results, options.rounds or setting.rounds)
    print(markdown(results.figures))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domainbed", type=lambda p: Path(p).absolute(), help="checkout of facebookresearch/DomainBed")
    parser.add_argument("--python", type=lambda p: Path(p).absolute(), help="interpreter that DomainBed can be run by")
    parser.add_argument("--out", type=Path, help="file for the figures; what it holds is not measured again")
    parser.add_argument("--table", type=Path, help="print the table of such a file, measure nothing")
    parser.add_argument("--work", type=Path, help="folder for pictures, cache and runs; else beside --out")
    parser.add_argument("--folder", type=Path, help="these pictures, <domain>/<class>/..; else those of photographs.py")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="what binds")
    parser.add_argument("--pictures", type=int, help="how many of them, the first of every class; else the setting's")
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES))
    parser.add_argument("--rounds", type=int, help="else the setting's")
    parser.add_argument("--batch", type=int, default=8, help="pictures of each domain in a step")
    parser.add_argument("--every", type=int, help="steps between evaluations")
    parser.add_argument("--evaluations", type=int, help="of a run, 3 or more; else the setting's")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--domainbed-workers", type=int, nargs="*", default=[], help="measure it with these as well")
    parser.add_argument("--steppe-options", type=shlex.split, default=[], help="for `steppe train`, in one word")
    options = parser.parse_args()
    if options.evaluations is not None and options.evaluations < 3:
        parser.error("--evaluations must be at least 3: the first cycle does not count")
    return options


def prepared(work: Path, setting: Setting, options: argparse.Namespace) -> dict[str, int]:
    """Pictures in DomainBed's layout and weights for torchvision; the number of pictures of every domain."""
    root = work / "data" / "PACS"
    source, wanted = options.folder, options.pictures or setting.pictures
    if source is None:
        source = work / f"photographs-{wanted}"
        if not source.exists():
            part = source.with_name(f"{source.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            make_photographs(part, wanted, setting.side).rename(source)
    linked(source.absolute(), root, wanted)
    file = work / "torch" / "hub" / "checkpoints" / NETWORKS[setting.network]
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        # Blocks begin as identities: with frozen statistics of 0 and 1 nothing else keeps activations bounded.
        model = getattr(torchvision.models, setting.network)(weights=None, zero_init_residual=True)
        torch.save(model.state_dict(), file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)
    found = {domain.name: sum(1 for file in domain.rglob("*") if file.is_file()) for domain in sorted(root.iterdir())}
    for domain in found:  # so that the first run does not read from the disk what the later ones find in memory
        for file in (root / domain).rglob("*"):
            if file.is_file():
                file.read_bytes()
    return found


def linked(source: Path, root: Path, pictures: int) -> None:
    """Links to about so many pictures of ``source``, as many of every class and domain."""
    folders = sorted(folder for folder in source.glob("*/*") if folder.is_dir() and not folder.name.startswith("."))
    if not folders:
        raise SystemExit(f"{source} is not laid out as <domain>/<class>/<pictures>")
    shutil.rmtree(root, ignore_errors=True)
    for folder in folders:
        into = root / folder.relative_to(source)
        into.mkdir(parents=True, exist_ok=True)
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
        for file in files[: max(2, pictures // len(folders))]:
            (into / file.name).symlink_to(file)


def task_of(work: Path, setting: Setting, pictures: dict[str, int], options: argparse.Namespace) -> Task:
    sources = len(pictures) - 1
    every = options.every or max(1, round(PER_PICTURE * sum(pictures.values()) / (sources * options.batch)))
    evaluations = options.evaluations or setting.evaluations
    return Task(work, setting.network, options.batch, sources, min(pictures), every, evaluations, options.device)


def told(task: Task, pictures: dict[str, int], setting: Setting, options: argparse.Namespace) -> str:
    """The task in words; figures of one task are compared."""
    also = f"; steppe with {shlex.join(options.steppe_options)}" if options.steppe_options else ""
    which = "" if options.folder else f" of {setting.side[0]:,} to {setting.side[1]:,} pixels a side"
    return (
        f"{sum(pictures.values())} pictures{which} in {len(pictures)} domains, 224 × 224, batches of {task.sources} × "
        f"{task.batch}, {task.steps} steps, {task.evaluations} evaluations{also}"
    )


def sides(options: argparse.Namespace) -> list[Side]:
    """In the order of a round; ``building`` leaves behind what ``warm`` needs."""
    domainbed = [
        DomainBed(options.domainbed, options.python, workers) for workers in (None, *options.domainbed_workers)
    ]
    caches = [cache for cache in CACHES if cache in options.caches]
    return [*domainbed, *(Steppe(cache, tuple(options.steppe_options)) for cache in caches)]


def measure(task: Task, setting: Figure, order: list[Side], results: Results, rounds: int) -> None:
    """Add rounds until there are so many of this setting."""
    names = {side.name for side in order}
    done = [
        figure
        for figure in results.figures
        if all(figure[name] == setting[name] for name in SAME) and names <= figure["taken"].keys()
    ]
    theirs = [side for side in order if isinstance(side, DomainBed)]
    ours = [side for side in order if isinstance(side, Steppe)]
    if len(done) < rounds:
        know(task)
    for number in range(len(done), rounds):
        taken: dict[str, Any] = {}
        load = os.getloadavg()[0]
        for side in (*theirs, *ours) if number % 2 == 0 else (*ours, *theirs):
            taken[side.name] = side.run(task)
            note(f"{task.network}, round {number + 1} of {rounds}, {side.name}", taken[side.name]["seconds"])
        results.add({**setting, "load": load, "time": time.strftime("%H:%M"), "taken": taken})


def note(what: str, seconds: float) -> None:
    print(f"{what}: {seconds:.0f} s", file=sys.stderr, flush=True)


# --- the table ---

HEAD = (
    "setting",
    "cache",
    "beside",
    "the whole command, DomainBed / steppe [95 %]",
    "s",
    "a cycle, DomainBed / steppe [95 %]",
    "s",
    "training, steppe / DomainBed [95 %]",
    "pictures a second",
    "memory at the peak, GB",
    "rounds",
)
NOTES = """\
Medians over the rounds, and of the ratios within a round the 95 % bootstrap interval of the median; above 1 steppe is
quicker. Single values are DomainBed's, then steppe's. *A cycle*: the steps between two evaluations and one of them,
after the first. *Memory*: by how much what was available on the machine fell (on a quiet machine), and what all
processes held that cannot be dropped, in brackets mapped files besides (looks at a hundred processes are seldom and
miss peaks). Behind ≥ is the target; what misses it is bold."""


def markdown(figures: list[Figure]) -> str:
    """A table for each machine and task: a row for each setting, state of the cache and way to run DomainBed."""
    groups: dict[tuple[str, str], list[Figure]] = {}
    for figure in figures:
        groups.setdefault((figure["machine"], figure["task"]), []).append(figure)
    return "\n\n".join([NOTES, *(table(group) for group in groups.values())])


def table(figures: list[Figure]) -> str:
    first = figures[0]
    several = {
        name: "; ".join(dict.fromkeys(f[name] for f in figures)) for name in ("date", "versions", "theirs", "commit")
    }
    loads = [figure["load"] for figure in figures]
    lines_of = [
        f"### {first['task']}, on {first['machine']}",
        "",
        f"{several['date']}; steppe {several['commit']}, {several['versions']}; {several['theirs']}. Load average "
        f"before a round {min(loads):.1f} to {max(loads):.1f}.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "| " + " | ".join("---" for _ in HEAD) + " |",
    ]
    for setting in dict.fromkeys(figure["setting"] for figure in figures):
        rounds = [figure["taken"] for figure in figures if figure["setting"] == setting]
        names = list(dict.fromkeys(name for taken in rounds for name in taken))
        for ours in sorted(
            (n for n in names if n.startswith("steppe")), key=lambda n: CACHES.index(n.rpartition(" ")[2])
        ):
            for theirs in (name for name in names if not name.startswith("steppe")):
                both = [(taken[theirs], taken[ours]) for taken in rounds if theirs in taken and ours in taken]
                if both:
                    lines_of.append("| " + " | ".join(row(setting, ours, theirs, both)) + " |")
    return "\n".join(lines_of)


def row(setting: str, ours: str, theirs: str, both: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    def over(quantity: str) -> Ratio:
        return paired([a[quantity] for a, _ in both], [b[quantity] for _, b in both])

    def memory(side: int) -> str:
        names = ("machine_gb", "own_gb", "files_gb")
        machine, own, files = (max(pair[side][name] for pair in both) for name in names)
        return f"{machine:.1f}; {own:.1f} (+{files:.1f})"

    whole, cycle = over("seconds"), over("cycle")
    speed = paired([b["pictures_per_second"] for _, b in both], [a["pictures_per_second"] for a, _ in both])
    target = SETTINGS[setting].target
    end_to_end = f"{whole}" if whole.median >= target else f"**{whole}**"
    return [
        f"{SETTINGS[setting].network}, {setting} binds",
        ours.rpartition(" ")[2],
        theirs,
        f"{end_to_end} (≥ {target})",
        f"{whole.a_median:.0f}, {whole.b_median:.0f}",
        str(cycle),
        f"{cycle.a_median:.1f}, {cycle.b_median:.1f}",
        str(speed),
        f"{speed.b_median:.1f}, {speed.a_median:.1f}",
        f"{memory(0)}, steppe {memory(1)}",
        str(len(both)),
    ]


if __name__ == "__main__":
    main()
