"""What `steppe demo`, `train` and `bench` do."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from steppe.benchmark.execution import Execution, make_executor
from steppe.benchmark.presets import DEMO
from steppe.benchmark.protocol import Job, jobs, leave_one_domain_out
from steppe.benchmark.shared_disk import local_locks
from steppe.benchmark.store import FAILURE, Status, Store, forget_failure, record_failure, status
from steppe.cli.commands import Bench, Demo, Train
from steppe.data import DomainDataset, open_dataset
from steppe.errors import SteppeError
from steppe.report import load_runs, print_table, summarise, write_page
from steppe.report.runs import Runs
from steppe.training.config import RunConfig, Settings, run_name
from steppe.training.losses import NonFiniteLossError
from steppe.training.machine import Machine
from steppe.training.progress import Display, plain_console
from steppe.training.trainer import Trainer

SOME_FAILED = 1


def run_demo(options: Demo, command: str) -> int:
    """The preset comparison on the embedded set."""
    settings = DEMO.settings
    if options.steps is not None:
        settings = replace(
            settings,
            steps=options.steps,
            eval_every=max(1, options.steps * settings.eval_every // settings.steps),
            warmup=options.steps * settings.warmup // settings.steps,
        )
    return _sweep(
        open_dataset(DEMO.dataset),
        algorithms=DEMO.algorithms,
        held_out=DEMO.held_out,
        seeds=options.seeds,
        settings=settings,
        machine=options.machine,
        out=options.out,
        command=command,
    )


def run_bench(options: Bench, dataset: DomainDataset, command: str) -> int:
    """The comparison that was asked for."""
    return _sweep(
        dataset,
        algorithms=options.algorithms,
        held_out=options.held_out,
        seeds=options.seeds,
        settings=options.settings,
        machine=options.machine,
        out=options.out,
        command=command,
        execution=options.execution,
    )


def run_train(options: Train, dataset: DomainDataset, command: str) -> int:
    """One run."""
    console = plain_console()
    fields = {name: getattr(options.settings, name) for name in Settings.__dataclass_fields__}
    config = RunConfig(
        dataset=options.dataset,
        held_out=options.held_out,
        algorithm=options.algorithm,
        seed=options.seed,
        **fields,
    )
    for note in config.notes:
        console.print(f"note: {note}", soft_wrap=True)
    (job,) = jobs(Store(options.out), dataset, [config])
    try:
        with Display(console) as display:
            trainer = Trainer(
                config, out=job.directory, dataset=dataset, machine=options.machine, report=display, command=command
            )
            forget_failure(job.directory)
            result = trainer.fit()
    except NonFiniteLossError as error:
        record_failure(job.directory, error, command)
        print(f"error: {error}", file=sys.stderr)
        return SOME_FAILED
    except SteppeError:
        raise
    except Exception as error:
        record_failure(job.directory, error, command)
        raise
    content = result.content
    validation = f"{100 * content['validation_accuracy']:.1f} % in validation"
    average = content.get("average")
    console.print(
        f"{content['algorithm']}, "
        + (
            f"selected at step {content['selected_step']} of {content['steps']} by {validation}"
            if average is None
            else f"the mean of steps {average['start']} to {average['end']} of {content['steps']}, {validation}"
        )
    )
    console.print(f"  held out, {content['held_out']}: {100 * result.held_out_accuracy:.1f} %")
    console.print(f"  in domain: {100 * result.in_domain_accuracy:.1f} %")
    console.print(f"  {result.path}", soft_wrap=True)
    return 0


def _sweep(
    dataset: DomainDataset,
    *,
    algorithms: Sequence[str],
    held_out: Sequence[str],
    seeds: int,
    settings: Settings,
    machine: Machine,
    out: Path,
    command: str,
    execution: Execution | None = None,
) -> int:
    execution = execution or Execution()
    console = plain_console()
    configs = leave_one_domain_out(dataset, algorithms=algorithms, held_out=held_out, seeds=seeds, settings=settings)
    store = Store(out)
    planned = jobs(store, dataset, configs)
    store.create()
    _announce(console, dataset, planned, execution)
    for note in dict.fromkeys(note for config in configs for note in config.notes):
        console.print(f"note: {note}", soft_wrap=True)
    if warning := local_locks(store.root):
        console.print(f"note: {warning}", soft_wrap=True)
    missing = execution.to_do(planned)
    failed = not execution.retry_failed and any(status(job.directory) == "failed" for job in planned)
    with (
        Display(console, runs=len(planned), done=len(planned) - len(missing)) as display,
        make_executor(execution, dataset, machine, display, command) as executor,
    ):
        for outcome in executor.run(missing):
            name = run_name(outcome.job.config)
            if outcome.result is None:
                failed = True
                record = outcome.job.directory / FAILURE
                display.say(f"{name}: failed; {record if record.exists() else outcome.error}")
            else:
                display.say(
                    f"{name}: {100 * outcome.result.held_out_accuracy:.1f} % on {outcome.job.config.held_out}, "
                    f"{100 * outcome.result.in_domain_accuracy:.1f} % in domain"
                )
            display.run_over()
    _show(console, store, planned)
    return SOME_FAILED if failed else 0


def _announce(console: Console, dataset: DomainDataset, planned: Sequence[Job], execution: Execution) -> None:
    pictures = sum(dataset.size(domain) for domain in dataset.domains)
    console.print(
        f"{dataset.name}: {pictures} pictures of {len(dataset.classes)} classes in {len(dataset.domains)} domains "
        f"({', '.join(dataset.domains)})"
    )
    counts = Counter(status(job.directory) for job in planned)
    notes: dict[Status, str] = {
        "finished": "finished already",
        "partial": "to be continued",
        "failed": "failed before" + (" and tried again" if execution.retry_failed else " (--retry-failed)"),
        "running": "at work in another process",
        "damaged": "with a damaged result",
    }
    told = [f"{counts[state]} {note}" for state, note in notes.items() if counts[state]]
    runs = "1 run" if len(planned) == 1 else f"{len(planned)} runs"
    console.print(runs + (f", of which {', '.join(told)}" if told else ""))


def _show(console: Console, store: Store, planned: Sequence[Job]) -> None:
    """The table of these runs; the page of all runs in the store."""
    found = load_runs(store.root)
    mine = {job.directory for job in planned}
    runs = Runs(
        (run for run in found if run.path in mine),
        root=found.root,
        failures=[failure for failure in found.failures if failure.path in mine],
        problems=[problem for problem in found.problems if problem.path.parent in mine],
    )
    console.print()
    print_table(summarise(runs), console)
    if found:
        console.print(f"\npage: {write_page(store.root)}", soft_wrap=True)
