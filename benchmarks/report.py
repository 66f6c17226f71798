"""How long it takes to read, tabulate and draw a store of thousands of runs, and how much memory.

    python benchmarks/report.py --from RUNS              # 10,000 runs made of those in RUNS
    python benchmarks/report.py --from RUNS --runs 2000 --inside /mnt/shared

The store is made of real ones: every run has the config.json and result.json of a run in RUNS, byte for byte in their
form, with other settings (draws of learning rate, radius and weight decay, as a search makes them), other seeds and
other accuracies. A result of version 1 is given a table of checkpoints, 17 rows, so that its size is that of a run of
DomainBed's length. It is a folder of 10,000 folders of two files; metrics and predictions are not made: a table needs
none, and a page says that they are missing.

Each figure is of a process of its own, so that the memory is that of reading alone (the peak of its resident size):

- first: no index yet; also with the page cache of the operating system emptied, where this program may do that (root);
- again: the index is there, and every run unchanged;
- again, with the page cache emptied;
- after 1 % of the runs were changed;
- the tables of a paper (LaTeX, with tests), and the page, which also needs plotly.

Target: reading and tabulating 10,000 runs in under 5 s and 500 MB on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

READ = """
import resource, sys, time
start = time.perf_counter()
from steppe.report import load_runs, summarise
root, what = sys.argv[1], sys.argv[2]
runs = load_runs(root)
read = time.perf_counter()
summary = summarise(runs)
methods = sum(len(comparison.methods) for comparison in summary.comparisons)
if what == "tables":
    from steppe.report.latex import latex
    from steppe.report.significance import family
    from steppe.report.tables import dataset_table, overall_table, table_of_tests
    tables = [*map(dataset_table, summary.comparisons), overall_table(summary.comparisons)]
    text = latex([*tables, table_of_tests(family(summary.comparisons))])
elif what == "page":
    from steppe.report import write_page
    write_page(root, sys.argv[3], summary=summary)
end = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{end - start:.2f} {read - start:.2f} {peak:.0f} {len(runs)} {methods} {len(runs.problems)}")
"""


def make(root: Path, patterns: list[tuple[dict[str, Any], dict[str, Any]]], runs: int) -> None:
    """Draws of the settings for every algorithm, each on every held-out domain with three seeds, in turn."""
    draw = random.Random(0)
    made = 0
    for settings in _draws(draw):
        for config, result in patterns:
            for seed in range(3):
                if made == runs:
                    return
                _write(root, *_varied(config, result, settings, seed, draw))
                made += 1


def _draws(draw: random.Random) -> Iterator[dict[str, float]]:
    while True:
        yield {
            "lr": 10 ** draw.uniform(-5, -3.5),
            "weight_decay": 10 ** draw.uniform(-6, -2),
            "rho": 10 ** draw.uniform(-2, 0),
        }


def _varied(
    config: dict[str, Any], result: dict[str, Any], settings: dict[str, float], seed: int, draw: random.Random
) -> tuple[dict[str, Any], dict[str, Any]]:
    hyper = {
        name: settings["rho"] if name.rpartition(".")[2] == "rho" else value
        for name, value in (config.get("hyper") or {}).items()
    }
    chosen = {name: settings[name] for name in ("lr", "weight_decay")}
    config = {**config, **chosen, "hyper": hyper, "seed": seed}
    shift = draw.gauss(0, 0.02)

    def moved(value: float) -> float:
        return min(1.0, max(0.0, value + shift + draw.gauss(0, 0.003)))

    accuracy = {
        domain: {name: moved(value) for name, value in parts.items()} for domain, parts in result["accuracy"].items()
    }
    held_out = accuracy[config["held_out"]]
    result = {
        **result,
        "id": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12],
        "seed": seed,
        "accuracy": accuracy,
        "held_out_accuracy": held_out[result["answer"]],
        "held_out_accuracy_all": held_out.get("all", held_out[result["answer"]]),
        "in_domain_accuracy": moved(result["in_domain_accuracy"]),
        "validation_accuracy": moved(result["validation_accuracy"]),
        "checkpoints": result.get("checkpoints") or _checkpoints(draw),
    }
    return config, result


def _checkpoints(draw: random.Random) -> list[dict[str, float]]:
    names = ("validation_accuracy", "validation_loss", "held_out_accuracy", "held_out_accuracy_all")
    names = (*names, "held_out_validation_accuracy", "in_domain_accuracy")
    return [{"step": 300 * row, **{name: draw.random() for name in names}} for row in range(1, 18)]


def _write(root: Path, config: dict[str, Any], result: dict[str, Any]) -> None:
    folder = root / config["dataset"] / config["algorithm"] / config["held_out"] / result["id"]
    folder.mkdir(parents=True)
    for name, content in (("config.json", config), ("result.json", result)):
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def patterns_of(store: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """One run for each data set, algorithm and held-out domain of a store."""
    found: dict[tuple[str, str, str], tuple[dict[str, Any], dict[str, Any]]] = {}
    for path in sorted(store.rglob("result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        found.setdefault((config["dataset"], config["algorithm"], config["held_out"]), (config, result))
    if not found:
        raise SystemExit(f"no finished runs in {store}")
    return list(found.values())


def forget_pages() -> bool:
    """Empty the operating system's cache of files; says whether it could be done."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def touch(root: Path, share: float) -> int:
    """Change a share of the runs, as steppe would: by rename."""
    paths = sorted(root.rglob("result.json"))[:: max(1, round(1 / share))]
    for path in paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["seconds"] = float(content.get("seconds", 0)) + 1
        new = path.with_name("new")
        new.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        new.rename(path)
    return len(paths)


def measure(title: str, root: Path, what: str = "read", *arguments: str) -> None:
    """One line of the table: of a new process."""
    began = time.perf_counter()
    command = [sys.executable, "-c", READ, str(root), what, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    whole = time.perf_counter() - began
    total, read, peak, runs, methods, problems = ran.stdout.split()
    print(f"{title:<44}{read:>7} s{total:>8} s{whole:>8.2f} s{peak:>7} MB   {runs} runs, {methods} rows", flush=True)
    if int(problems):
        raise SystemExit(f"{problems} runs could not be read")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="pattern", type=Path, required=True, metavar="RUNS", help="a store of real runs")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--inside", type=Path, help="the folder in which the store is made, and deleted again")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="steppe-report-", dir=arguments.inside))
    try:
        make(root / "runs", patterns_of(arguments.pattern), arguments.runs)
        report(root / "runs", root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def report(store: Path, scratch: Path) -> None:
    """The table."""
    size = sum(path.stat().st_size for path in store.rglob("*.json"))
    print(f"{size / 1e6:.0f} MB of config.json and result.json; load {os.getloadavg()[0]:.1f}")
    print(f"{'':<44}{'read':>9}{'in all':>10}{'process':>10}{'peak':>10}")
    index = store / ".steppe-index.json"
    measure("first", store)
    print(f"{'':<4}the index has {index.stat().st_size / 1e6:.1f} MB")
    measure("again", store)
    if forget_pages():
        measure("again, page cache emptied", store)
        index.unlink()
        forget_pages()
        measure("first, page cache emptied", store)
    changed = touch(store, 0.01)
    measure(f"after {changed} runs were changed", store)
    measure("tables for a paper", store, "tables")
    measure("the page", store, "page", str(scratch / "page.html"))
    print(f"{'':<4}the page has {(scratch / 'page.html').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
